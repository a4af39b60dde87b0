"""The page of a search tree: every candidate with its steps and scores, and where a right answer was lost."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from toolprm_decode.pages import html_page

if TYPE_CHECKING:
    from toolprm_decode.grammar.call_grammar import Step
    from toolprm_decode.search.node import Node

# Candidates this many levels down begin a section of their own: browsers stop nesting at some 500 elements, and a
# narrow screen runs out of width much sooner.
_LEVELS = 12
_LOSSES = 8  # places where gold was lost that are listed


class TreePage:
    """Writes the page of a tree.

    Args:
        nodes: the candidates, parents before children. best: index of the answer.
        right: for each node, whether everything up to its end agrees with the gold; None where that is unknown.
    """

    def __init__(self, nodes: Sequence[Node], best: int | None, right: Sequence[bool | None] | None):
        self._nodes, self._best, self._right = nodes, best, right
        self._children: dict[int | None, list[int]] = {}
        self._depths: list[int] = []
        self._before: list[int | None] = []  # the sibling that was found just before
        for index, node in enumerate(nodes):
            siblings = self._children.setdefault(node.parent, [])
            self._before.append(siblings[-1] if siblings else None)
            siblings.append(index)
            self._depths.append(0 if node.parent is None else self._depths[node.parent] + 1)
        self._way: set[int] = set()
        while best is not None:
            self._way.add(best)
            best = nodes[best].parent
        self._lost = [] if right is None else self._lost_at(right)
        self._losing = set(self._lost)

    def html(self, title: str | None, note: str | None) -> str:
        """The whole page."""
        parts = [f"<h1>{escape(title or 'Search tree')}</h1>\n"]
        if note:
            parts.append(f'<p class="note">{escape(note)}</p>\n')
        parts.append(self._summary())
        if self._right is not None:
            parts.append(self._verdict(self._right))
        parts += [_LEGEND, self._controls(), "<main>\n", *self._sections(), "</main>\n"]
        return html_page(title or "Search tree", "".join(parts), style=_STYLE, script=_SCRIPT)

    # -----------------------------------------------------------------------------------------------------------------
    # Above the tree

    def _summary(self) -> str:
        pruned = sum(not node.kept for node in self._nodes)
        counts = f"{len(self._nodes)} candidates, {pruned} pruned, {len(self._way)} on the way to the answer."
        if self._best is None:
            return f"<p>{counts} There is no answer.</p>\n"
        way = sorted(self._way)
        text = "".join(step.text for index in way for step in self._nodes[index].steps).strip("\n")
        return f'<p>{counts}</p>\n<pre class="result">{escape(text) or "(nothing)"}</pre>\n'

    def _controls(self) -> str:
        node = "" if self._best is None else f' data-node="n{self._best}"'
        return (
            '<div id="controls" hidden>\n'
            '<button type="button" id="pruned">Hide pruned</button>\n'
            '<button type="button" id="expand">Expand all</button>\n'
            '<button type="button" id="collapse">Collapse all</button>\n'
            f'<button type="button" id="answer"{node}>Jump to the answer</button>\n'
            "</div>\n"
        )

    def _lost_at(self, right: Sequence[bool | None]) -> list[int | None]:
        """Right nodes that went on, none of whose children did so and are right; the deepest first. None: the start."""
        alive: set[int | None] = {None}
        going_on: set[int | None] = set()
        for index, node in enumerate(self._nodes):
            if right[index] and node.kept and node.parent in alive:
                alive.add(index)
                going_on.add(node.parent)
        lost = [at for at in alive - going_on if at is None or not self._nodes[at].finished]
        return sorted(lost, key=lambda at: (0, 0) if at is None else (-self._depths[at] - 1, at))

    def _verdict(self, right: Sequence[bool | None]) -> str:
        """Where gold was lost, if it was."""
        if self._best is not None and right[self._best]:
            return '<p class="verdict good">✓ The answer is right.</p>\n'
        found = [i for i, node in enumerate(self._nodes) if right[i] and node.finished and node.kept]
        if found and self._best is not None:
            index = max(found, key=lambda i: (self._nodes[i].rank, -i))
            other = f"{self._value(self._best)} of {self._link(self._best)}"
            places = [f"At the end: a right answer, {self._link(index)}, with {self._value(index)} lost to {other}."]
        else:
            places = [self._loss(at, right) for at in self._lost[:_LOSSES]]
            if more := len(self._lost) - len(places):
                places.append(f"and {more} more, marked in the tree.")
        items = "".join(f"<li>{place}</li>\n" for place in places)
        return f'<section class="verdict"><h2 class="bad">Where gold was lost</h2>\n<ul>\n{items}</ul></section>\n'

    def _loss(self, at: int | None, right: Sequence[bool | None]) -> str:
        where = "At the start" if at is None else f"After {self._link(at)}"
        drawn = self._children.get(at, [])
        pruned = [index for index in drawn if right[index]]
        if pruned:
            index = max(pruned, key=lambda i: (self._nodes[i].rank, -i))
            # All candidates of a round are ranked together: the last one that was kept is what it had to beat.
            rivals = [i for i, n in enumerate(self._nodes) if n.kept and self._depths[i] == self._depths[index]]
            ahead = [i for i in rivals if self._nodes[i].rank >= self._nodes[index].rank] or rivals
            winner = min(ahead, key=lambda i: self._nodes[i].rank, default=None)
            lost = "" if winner is None else f" lost to {self._value(winner)} of {self._link(winner)}"
            return f"{where}, pruned here: a right candidate, {self._link(index)}, with {self._value(index)}{lost}."
        if drawn:
            return f"{where}, never drawn here: no right one among {_plural(len(drawn), 'candidate')}."
        if at is not None and self._nodes[at].closed:
            return f"{where}: max_tokens ended it."
        return f"{where}: the search ended before it went on."

    def _value(self, index: int) -> str:
        """What a candidate was judged by, in words."""
        node = self._nodes[index]
        score = node.steps[-1].score if node.steps else None
        words = [f"score {score:.3f}"] if score is not None else []
        if math.isfinite(node.rank):
            words.append(f"({_rank(node)})" if words else _rank(node))
        return " ".join(words) or "no score"

    @staticmethod
    def _link(index: int) -> str:
        return f'<a href="#n{index}">node {index}</a>'

    # -----------------------------------------------------------------------------------------------------------------
    # The tree

    def _sections(self) -> Iterator[str]:
        waiting: deque[int | None] = deque([None])
        while waiting:
            top = waiting.popleft()
            if top is None:
                yield "<section>\n<ul>\n"
            else:
                levels = f"level {self._depths[top] + 2} on"
                yield f'<section id="below{top}">\n<h2>Below {self._link(top)}, {levels}</h2>\n<ul>\n'
            yield from self._nested(top, waiting)
            yield "</ul>\n</section>\n"

    def _nested(self, top: int | None, sections: deque[int | None]) -> Iterator[str]:
        """The items below a node; those whose children get a section of their own are added to sections."""
        first = 0 if top is None else self._depths[top] + 1
        # A stack, since a long answer is deeper than Python recurses; None closes the list that was open.
        waiting: list[int | None] = [*self._children.get(top, [])[::-1]]
        while waiting:
            at = waiting.pop()
            if at is None:
                yield "</ul></details></li>\n"
                continue
            below = self._children.get(at, [])
            row, start = self._row(at), f'<li class="{self._state(at)}" id="n{at}"{self._flag(at)}>'
            if not below:
                yield f"{start}{row}</li>\n"
            elif self._depths[at] - first + 1 < _LEVELS:
                yield f"{start}<details open><summary>{row}</summary><ul>\n"
                waiting += [None, *below[::-1]]
            else:
                sections.append(at)
                yield f'{start}{row}<a class="below" href="#below{at}">goes on below</a></li>\n'

    def _state(self, index: int) -> str:
        return "answer" if index in self._way else "kept" if self._nodes[index].kept else "pruned"

    def _flag(self, index: int) -> str:
        flag = None if self._right is None else self._right[index]
        return "" if flag is None else f' data-right="{"yes" if flag else "no"}"'

    def _row(self, index: int) -> str:
        node = self._nodes[index]
        same = self._same(index)
        steps = "".join(_step(step, number < same) for number, step in enumerate(node.steps))
        marks = self._marks(index)
        return f'<span class="node"><span class="steps">{steps}</span><span class="marks">{marks}</span></span>'

    def _same(self, index: int) -> int:
        """How many steps the candidate begins with that the one before it began with, too."""
        before = self._before[index]
        if before is None:
            return 0
        pairs = list(zip(self._nodes[before].steps, self._nodes[index].steps, strict=False))
        return next((i for i, (a, b) in enumerate(pairs) if (a.kind, a.text) != (b.kind, b.text)), len(pairs))

    def _marks(self, index: int) -> str:
        """What is to be said of a candidate as a whole."""
        node = self._nodes[index]
        marks = []
        if index == self._best:
            marks.append(("answer", "answer"))
        elif node.finished:
            marks.append(("kept", "finished") if node.kept else ("pruned", "finished, pruned"))
        else:
            marks.append(("kept", "kept") if node.kept else ("pruned", "pruned"))
        flag = None if self._right is None else self._right[index]
        if flag is not None:
            marks.append(("good", "✓ right") if flag else ("bad", "✗ wrong"))
        if index in self._losing:
            marks.append(("bad", "gold lost here"))
        if node.closed:
            marks.append(("bad", "closed by max_tokens"))
        if node.multiplicity > 1:
            marks.append(("plain", f"x{node.multiplicity}"))
        if math.isfinite(node.rank):
            marks.append(("plain", _rank(node)))
        if below := self._children.get(index):
            kept = sum(self._nodes[child].kept for child in below)
            marks.append(("soft", f"{kept} of {len(below)} kept"))
        marks.append(("soft", f"node {index}"))
        return " ".join(f'<small class="{kind}">{text}</small>' for kind, text in marks)


def _rank(node: Node) -> str:
    return f"rank {node.rank:.3f}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _step(step: Step, same: bool) -> str:
    if step.score is None:
        score = '<span class="bar"></span><span class="score soft">no score</span>'
    else:
        share = min(max(step.score, 0.0), 1.0)
        bar = f'<span class="bar"><span style="--share:{share:.3f}"></span></span>'
        score = f'{bar}<b class="score">{step.score:.3f}</b>'
    chance = "" if step.logprob is None else f"{round(step.logprob, 2) + 0.0:.2f}"  # + 0.0: no "-0.00"
    return (
        f'<span class="step{" same" if same else ""}"><i>{escape(step.kind)}</i>{score}'
        f'<span class="chance" title="log-probability">{chance}</span>'
        f"<code>{escape(step.text.strip(chr(10))) or '(nothing)'}</code></span>"
    )


_LEGEND = """<p class="soft legend">Each step of a candidate: its kind, the reward model's score, the policy's
log-probability, its text; faint where the candidate above begins alike. A green edge leads to the answer, a dotted one
is pruned.</p>
"""

_STYLE = """
body { max-width: 1500px; }
.verdict { border-left: 4px solid currentColor; padding: 0.1rem 0 0.1rem 0.8rem; margin: 0.8rem 0; }
section.verdict { border-color: var(--bad); }
.note { white-space: pre-wrap; }
.result { max-height: 10rem; overflow: auto; }
.legend { font-size: 0.85rem; margin: 0.6rem 0 0; }
.verdict h2 { margin: 0; }
.verdict ul { margin: 0.2rem 0; padding-left: 1.2rem; }
#controls { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 0.4rem 0.6rem;
  align-items: center; padding: 0.5rem 0; background: var(--paper); border-bottom: 1px solid var(--line); }
#controls[hidden] { display: none; }
button { font: inherit; color: inherit; background: var(--wash); border: 1px solid var(--line); border-radius: 4px;
  padding: 0.1rem 0.6rem; cursor: pointer; }
main ul { list-style: none; margin: 0; padding: 0; }
main ul ul { margin-left: 0.45rem; padding-left: 0.9rem; border-left: 1px solid var(--line); }
main li { margin: 0.15rem 0; scroll-margin-top: 5rem; }
main h2 { margin: 1.2rem 0 0.3rem; font-size: 1rem; }
summary { display: block; }
summary::-webkit-details-marker { display: none; }
.node { display: flex; flex-wrap: wrap; gap: 0 1rem; padding: 0.15rem 0.5rem; border-radius: 4px;
  border-left: 4px solid var(--line); background: var(--wash); }
.answer > .node, .answer > details > summary > .node { border-left-color: var(--good); }
.pruned > .node, .pruned > details > summary > .node { background: none; color: var(--soft);
  border-left-style: dotted; }
li:target > .node, li:target > details > summary > .node { outline: 2px solid var(--link); }
.steps { flex: 1 1 30rem; min-width: 0; }
.marks { flex: 0 1 auto; align-self: center; }
details > summary .marks::after { content: " ▸"; color: var(--soft); }
details[open] > summary .marks::after { content: " ▾"; }
.step { display: grid; grid-template-columns: 7.4rem 3.5rem 3.9rem 3.4rem minmax(0, 1fr); gap: 0 0.5rem;
  align-items: baseline; font-variant-numeric: tabular-nums; }
.same { opacity: 0.55; }
.step i { font-style: normal; font-size: 0.78rem; color: var(--soft); }
.bar { height: 0.55rem; border-radius: 2px; background: var(--line); overflow: hidden; align-self: center; }
.bar > span { display: block; height: 100%; width: calc(100% * var(--share)); min-width: 3px;
  background: var(--high);
  background: color-mix(in oklab, var(--high) calc(100% * var(--share)), var(--low)); }
.score { font-size: 0.9rem; }
.score.soft { font-size: 0.78rem; }
.chance { font-size: 0.82rem; color: var(--soft); text-align: right; }
small { font-size: 0.78rem; white-space: nowrap; padding: 0 0.35rem; border: 1px solid var(--line);
  border-radius: 3px; }
small.soft { border: 0; padding: 0 0.1rem; }
small.answer { color: var(--paper); background: var(--good); border-color: var(--good); }
small.good, small.bad { border-color: currentColor; }
.without-pruned li.pruned { display: none; }
@media (max-width: 700px) {
  main ul ul { margin-left: 0.1rem; padding-left: 0.4rem; }
  .node { padding: 0.15rem 0.35rem; }
  .steps { flex-basis: 100%; }
  .step { grid-template-columns: minmax(0, 7.4rem) 2.5rem 3.2rem 1fr; }
  .step code { grid-column: 1 / -1; }
}
"""

_SCRIPT = """
(() => {
  const all = (what) => document.querySelectorAll(what);
  const get = (id) => document.getElementById(id);
  const hide = (hidden) => {
    document.body.classList.toggle("without-pruned", hidden);
    get("pruned").textContent = hidden ? "Show pruned" : "Hide pruned";
  };
  const fold = (open) => all("main details").forEach((part) => { part.open = open; });
  const reveal = (node) => {
    if (!node) return;
    if (node.matches("li.pruned")) hide(false);
    for (let at = node.parentElement; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    node.scrollIntoView({ block: "center" });
  };
  const named = () => location.hash ? get(location.hash.slice(1)) : null;
  const jump = (id) => {
    if (location.hash === "#" + id) reveal(get(id)); else location.hash = id;
  };
  get("pruned").addEventListener("click", () => hide(!document.body.classList.contains("without-pruned")));
  get("expand").addEventListener("click", () => fold(true));
  get("collapse").addEventListener("click", () => fold(false));
  const answer = get("answer");
  if (answer.dataset.node) answer.addEventListener("click", () => jump(answer.dataset.node)); else answer.hidden = true;
  addEventListener("hashchange", () => reveal(named()));
  get("controls").hidden = false;
  reveal(named());
})();
"""
