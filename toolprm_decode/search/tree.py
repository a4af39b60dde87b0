"""The tree of steps that a search looked at."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from toolprm_decode.grammar.call_grammar import Step


@dataclass(frozen=True)
class Node:
    """A distinct candidate.

    Attributes:
        parent: index of the candidate it continues, None at the start.
        steps: the steps that it added.
        rank: what it was ranked by.
        multiplicity: how many draws ended here.
        kept: it was among the best and went on, or became an answer.
        finished: it is a whole answer. closed: max_tokens ended it.
    """

    parent: int | None
    steps: tuple[Step, ...]
    rank: float
    multiplicity: int
    kept: bool
    finished: bool
    closed: bool


class SearchTree:
    """All distinct candidates of a search, in the order in which they were found. `print(tree)` draws it."""

    def __init__(self, nodes: Sequence[Node], best: int | None = None):
        self.nodes, self.best = list(nodes), best

    def __len__(self) -> int:
        return len(self.nodes)

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=120, color_system=None).print(self.to_rich())
        return out.getvalue().rstrip()

    def to_rich(self) -> Tree:
        """For rich.print: kept candidates bold, pruned ones dim, the answer marked."""
        answer = set()
        at = self.best
        while at is not None:
            answer.add(at)
            at = self.nodes[at].parent
        root = Tree(Text("start"))
        drawn: dict[int | None, Tree] = {None: root}
        for index, node in enumerate(self.nodes):
            drawn[index] = drawn[node.parent].add(self._label(node, index in answer))
        return root

    @staticmethod
    def _label(node: Node, chosen: bool) -> Text:
        style = "bold green" if chosen else "" if node.kept else "dim"
        label = Text(style=style)
        for number, step in enumerate(node.steps):
            score = "" if step.score is None else f" {step.score:.3f}"
            label.append(("\n" if number else "") + f"{step.kind}{score}  ", style="cyan" if node.kept else "dim cyan")
            label.append(step.text.strip("\n") or "(nothing)")
        marks = [f"x{node.multiplicity}"] if node.multiplicity > 1 else []
        if math.isfinite(node.rank):
            marks.append(f"rank {node.rank:.3f}")
        marks += [word for word, on in (("closed by max_tokens", node.closed), ("pruned", not node.kept)) if on]
        marks += ["answer"] if node.finished and chosen else ["finished"] if node.finished else []
        if marks:
            label.append(f"  [{', '.join(marks)}]", style="dim")
        return label
