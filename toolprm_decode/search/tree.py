"""The tree of steps that a search looked at."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

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

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Writes the tree as one page without scripts, light or dark as the reader's system; returns its path."""
        answer = self._answer()
        children: dict[int | None, list[int]] = {}
        for index, node in enumerate(self.nodes):
            children.setdefault(node.parent, []).append(index)
        parts = [_PAGE_START, f"<p>{len(self.nodes)} candidates, {len(answer)} on the way to the answer.</p>\n<ul>\n"]
        # A stack, since a long answer is deeper than Python recurses; None closes the list that was open.
        waiting: list[int | None] = [*children.get(None, [])[::-1]]
        while waiting:
            at = waiting.pop()
            if at is None:
                parts.append("</ul></details></li>\n")
                continue
            node, below = self.nodes[at], children.get(at, [])
            state = "answer" if at in answer else "kept" if node.kept else "pruned"
            row = self._html_row(node, at in answer)
            if below:
                parts.append(f'<li class="{state}"><details open><summary>{row}</summary><ul>\n')
                waiting += [None, *below[::-1]]
            else:
                parts.append(f'<li class="{state}">{row}</li>\n')
        parts.append("</ul>\n</body>\n</html>\n")
        page = Path(path)
        page.write_text("".join(parts), encoding="utf-8", errors="replace")
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

    def _html_row(self, node: Node, chosen: bool) -> str:
        steps = []
        for step in node.steps:
            score = "" if step.score is None else f" <b>{step.score:.3f}</b>"
            chance = "" if step.logprob is None else f' title="log-probability {step.logprob:.3f}"'
            text = escape(step.text.strip("\n")) or "(nothing)"
            steps.append(f"<span{chance}><i>{step.kind}</i>{score} <code>{text}</code></span>")
        marks = "".join(f" <small>{escape(mark)}</small>" for mark in self._marks(node, chosen))
        return "<br>".join(steps) + marks


_PAGE_START = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Search tree</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; }
ul { list-style: none; margin: 0; padding-left: 1.4em; border-left: 1px solid #8884; }
li { margin: 0.25em 0; }
summary { cursor: pointer; }
i { font-style: normal; font-size: 0.8em; color: #2277aa; }
code { white-space: pre-wrap; overflow-wrap: anywhere; background: #8882; border-radius: 3px; padding: 0 0.3em; }
small { border: 1px solid #8886; border-radius: 3px; padding: 0 0.3em; }
li.pruned { opacity: 0.55; }
li.answer > span > code, li.answer > details > summary code { background: #2a84; }
@media (prefers-color-scheme: dark) { i { color: #66bbee; } }
</style>
</head>
<body>
<h1>Search tree</h1>
"""
