"""The tree of steps that a search looked at."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from toolprm_decode.errors import RequestError
from toolprm_decode.search.node import Node
from toolprm_decode.search.tree_page import TreePage


class SearchTree:
    """All distinct candidates of a search. `print(tree)` draws it, `tree.to_html(path)` writes a page.

    Attributes:
        nodes: the candidates in the order in which they were found, parents before children.
        best: index of the answer, None where there is none.
    """

    def __init__(self, nodes: Sequence[Node], best: int | None = None):
        self.nodes, self.best = list(nodes), best

    def __len__(self) -> int:
        return len(self.nodes)

    def __str__(self) -> str:
        out = io.StringIO()
        # Wide enough that no depth squeezes the texts.
        Console(file=out, width=120 + 4 * max(self._depths(), default=0), color_system=None).print(self.to_rich())
        return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split("\n"))

    def path(self, index: int) -> list[int]:
        """Indices of the nodes from the start to this one."""
        path = [index]
        while (parent := self.nodes[path[-1]].parent) is not None:
            path.append(parent)
        return path[::-1]

    def to_rich(self) -> Tree:
        """For rich.print: kept candidates bright, pruned ones dim, the answer green."""
        answer = self._answer()
        root = Tree(Text("start"))
        drawn: dict[int | None, Tree] = {None: root}
        for index, node in enumerate(self.nodes):
            drawn[index] = drawn[node.parent].add(self._label(node, index in answer))
        return root

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str | None = None,
        right: Sequence[bool | None] | None = None,
        note: str | None = None,
    ) -> Path:
        """Writes the tree as a page of one file that needs no network, and its script only to fold and to jump.

        Args:
            title: heads the page.
            right: for each node, whether everything up to its end agrees with the gold, None where that is unknown;
                the page then marks right and wrong nodes, and says where gold was lost.
            note: stands above the tree.

        Returns the path. Raises RequestError where right has not one flag a node.
        """
        if right is not None and len(right) != len(self.nodes):
            raise RequestError(f"right has {len(right)} flags for {len(self.nodes)} candidates: give one for each")
        page = Path(path)
        html = TreePage(self.nodes, self.best, right).html(title, note)
        page.write_text(html, encoding="utf-8", errors="replace")
        return page

    def _answer(self) -> set[int]:
        return set() if self.best is None else set(self.path(self.best))

    def _depths(self) -> list[int]:
        depths: list[int] = []
        for node in self.nodes:
            depths.append(1 if node.parent is None else depths[node.parent] + 1)
        return depths

    @staticmethod
    def _marks(node: Node, chosen: bool) -> list[str]:
        """What is to be said of a candidate as a whole."""
        marks = [f"x{node.multiplicity}"] if node.multiplicity > 1 else []
        if math.isfinite(node.rank):
            marks.append(f"rank {node.rank:.3f}")
        if node.closed:
            marks.append("closed by max_tokens")
        if not node.kept:
            marks.append("pruned")
        if node.finished:
            marks.append("answer" if chosen else "finished")
        return marks

    def _label(self, node: Node, chosen: bool) -> Text:
        label = Text(style="bold green" if chosen else "" if node.kept else "dim")
        for number, step in enumerate(node.steps):
            score = "" if step.score is None else f" {step.score:.3f}"
            label.append(("\n" if number else "") + f"{step.kind}{score}  ", style="cyan" if node.kept else "dim cyan")
            label.append(step.text.strip("\n") or "(nothing)")
        if marks := self._marks(node, chosen):
            label.append(f"  [{', '.join(marks)}]", style="dim")
        return label
