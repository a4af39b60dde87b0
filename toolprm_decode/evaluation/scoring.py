"""What answers are worth: each by the rule of its question, and all of them by the figure that a suite is known by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from toolprm_decode.errors import RequestError
from toolprm_decode.evaluation.suites import AST, IRRELEVANCE, LIVE_AST
from toolprm_decode.questions.bfcl import check_calls
from toolprm_decode.questions.labels import trajectory_right
from toolprm_decode.questions.samples import Sample
from toolprm_decode.tools import Tool, read_tools

HEADLINES = ("accuracy", "bfcl-ast", "f1")

Call = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What one answer is worth.

    Attributes:
        right: by the rule of its question.
        names: how many called names are matched, predicted and in the gold.
        parameters: the same of arguments.
    """

    right: bool
    names: tuple[int, int, int]
    parameters: tuple[int, int, int]


def judge(sample: Sample, calls: Sequence[Call], tools: Sequence[Tool] | None = None) -> Verdict:
    """Whether calls answer a question, and what F1 counts of them.

    Right is what `labels.trajectory_right` says, but for BFCL's questions what the leaderboard says, which pairs calls
    with answers as they come. A native value of a Java or JavaScript function is taken for what its literal means.

    Names and parameters are counted as Hammer scores ToolAlpaca: every call counts, also one of a name that was called
    before; arguments match under the same names of function and parameter where their texts (`str`) are equal, and
    empty texts do not count. Any allowed value matches; what may be left out is in the gold only where it is matched.

    Args:
        calls: [{"name": ..., "arguments": {...}}].
        tools: the sample's tools, where they are read already.
    """
    if sample.match == "bfcl":
        answers = [{gold["name"]: gold["arguments"]} for gold in sample.gold]
        known = read_tools(sample.tools) if tools is None else tools
        right = check_calls(calls, answers, known, sample.meta.get("language", "python"))
    else:
        right = trajectory_right(sample, calls, tools)
    predicted, wanted = (Counter(call["name"] for call in side) for side in (calls, sample.gold))
    matched = (predicted & wanted).total()
    return Verdict(right, (matched, len(calls), len(sample.gold)), _parameters(sample, calls))


def _parameters(sample: Sample, calls: Sequence[Call]) -> tuple[int, int, int]:
    given = Counter(
        (call["name"], name, str(value))
        for call in calls
        for name, value in call["arguments"].items()
        if str(value) != ""
    )
    predicted, matched, wanted = given.total(), 0, 0
    for gold in sample.gold:
        for name, allowed in gold["arguments"].items():
            texts = [text for text in map(str, allowed) if text != ""]
            found = next((text for text in texts if given[gold["name"], name, text]), None)
            if found is not None:
                given[gold["name"], name, found] -= 1
                matched += 1
            wanted += found is not None or (bool(texts) and name not in gold["optional"])
    return matched, predicted, wanted


# ---------------------------------------------------------------------------------------------------------------------
# Figures of a suite


@overload
def headline(
    kind: str,
    right: np.ndarray,
    names: np.ndarray,
    parameters: np.ndarray,
    groups: Sequence[str],
    weights: None = None,
) -> float: ...


@overload
def headline(
    kind: str,
    right: np.ndarray,
    names: np.ndarray,
    parameters: np.ndarray,
    groups: Sequence[str],
    weights: np.ndarray,
) -> np.ndarray: ...


def headline(
    kind: str,
    right: np.ndarray,
    names: np.ndarray,
    parameters: np.ndarray,
    groups: Sequence[str],
    weights: np.ndarray | None = None,
) -> float | np.ndarray:
    """The figure that a suite is known by.

    accuracy: the share of right answers. f1: the mean of micro F1 over names and over parameters (ToolAlpaca, as Hammer
    scores it). bfcl-ast: the leaderboard's non-live AST score, the mean over simple, multiple, parallel and
    parallel_multiple, where simple is the mean of Python, Java and JavaScript. What has no question is left out of a
    mean, and what has none at all is nan.

    Args:
        kind: one of HEADLINES.
        right: bool [n]. names, parameters: counts [n, 3], as in `Verdict`. groups: [n].
        weights: [..., n], how often each question counts, as a bootstrap draws them (default: once).

    Returns: a float without weights, else float64 [...].

    Raises RequestError for an unknown kind, and for lengths that differ.
    """
    table = _Table(kind, right, names, parameters, groups, weights)
    return table.out(table.whole())


@overload
def headline_groups(
    kind: str,
    right: np.ndarray,
    names: np.ndarray,
    parameters: np.ndarray,
    groups: Sequence[str],
    weights: None = None,
) -> dict[str, float]: ...


@overload
def headline_groups(
    kind: str,
    right: np.ndarray,
    names: np.ndarray,
    parameters: np.ndarray,
    groups: Sequence[str],
    weights: np.ndarray,
) -> dict[str, np.ndarray]: ...


def headline_groups(
    kind: str,
    right: np.ndarray,
    names: np.ndarray,
    parameters: np.ndarray,
    groups: Sequence[str],
    weights: np.ndarray | None = None,
) -> dict[str, float] | dict[str, np.ndarray]:
    """The figure of each group, in the order in which they come: F1 for "f1", else accuracy.

    Of BFCL's categories also what the leaderboard sums up: "non-live AST" as `headline` has it, "live AST", in which
    every question counts the same, and "irrelevance overall", the mean of the two categories; each where the suite has
    more than one of its parts. Arguments and errors are those of `headline`.
    """
    table = _Table(kind, right, names, parameters, groups, weights)
    found = {group: table.of([group]) for group in dict.fromkeys(groups)}
    if kind != "f1":
        sums = {
            "non-live AST": ([category for part in AST for category in part], table.ast),
            "live AST": (LIVE_AST, lambda: table.of(LIVE_AST)),
            "irrelevance overall": (IRRELEVANCE, lambda: _mean([table.of([one]) for one in IRRELEVANCE])),
        }
        found |= {name: figure() for name, (parts, figure) in sums.items() if len({*parts} & {*found}) > 1}
    return {name: table.out(figure) for name, figure in found.items()}  # type: ignore[return-value]


class _Table:
    """Verdicts with their weights, and the figures of any of their groups."""

    def __init__(
        self,
        kind: str,
        right: np.ndarray,
        names: np.ndarray,
        parameters: np.ndarray,
        groups: Sequence[str],
        weights: np.ndarray | None,
    ):
        if kind not in HEADLINES:
            raise RequestError(f"unknown figure {kind!r:.60}: use one of {', '.join(HEADLINES)}")
        n = len(groups)
        self.plain = weights is None
        self.weights = np.ones(n) if weights is None else np.asarray(weights, np.float64)
        shapes = [np.shape(right), np.shape(names), np.shape(parameters), self.weights.shape[-1:]]
        if shapes != [(n,), (n, 3), (n, 3), (n,)]:
            raise RequestError(f"{n} questions need verdicts [n], [n, 3] and [n, 3] and weights [..., n], not {shapes}")
        self.kind = kind
        order = {group: place for place, group in enumerate(dict.fromkeys(groups))}
        # One product with the weights gives the sums of all groups, for any number of draws at once.
        member = np.zeros((n, len(order)))
        member[np.arange(n), [order[group] for group in groups]] = 1
        counted = (names, parameters) if kind == "f1" else (np.ones(n), right)
        values = np.column_stack(counted).astype(np.float64)
        sums = self.weights @ (member[:, :, None] * values[:, None, :]).reshape(n, len(order) * values.shape[1])
        self.sums = sums.reshape(*self.weights.shape[:-1], len(order), values.shape[1])
        self.order = order

    def of(self, groups: Sequence[str]) -> np.ndarray:
        """The figure over all questions of some groups [...]."""
        sums = self.sums[..., [self.order[group] for group in groups if group in self.order], :].sum(-2)
        if self.kind != "f1":
            return _ratio(sums[..., 1], sums[..., 0])
        return _mean([_ratio(2 * sums[..., at], sums[..., at + 1] + sums[..., at + 2]) for at in (0, 3)])

    def ast(self) -> np.ndarray:
        """BFCL's non-live AST score [...]."""
        return _mean([_mean([self.of([category]) for category in part]) for part in AST])

    def whole(self) -> np.ndarray:
        """The figure of the suite [...]."""
        return self.ast() if self.kind == "bfcl-ast" else self.of(list(self.order))

    def out(self, figure: np.ndarray) -> float | np.ndarray:
        """As it is given back."""
        return float(figure) if self.plain else figure


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def _mean(figures: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of those that are not nan."""
    stacked = np.stack(figures)
    there = ~np.isnan(stacked)
    return _ratio(np.where(there, stacked, 0.0).sum(0), there.sum(0))
