"""Ways to spend a budget of tokens on one answer, by the names that the command line takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from toolprm_decode.decoding import Answer, Decoded
from toolprm_decode.errors import RequestError
from toolprm_decode.search import Search

_NAME = re.compile(r"(?P<kind>[a-z-]+?)(?::(?P<n>\d+)(?:x(?P<m>\d+))?)?(?:@(?P<weight>\d+(?:\.\d+)?))?")

HELP = """
greedy; sample; majority-vote:N, weighted-vote:N (by reward), best-of-n:N (by reward), logprob-best-of-n:N over N
samples; step-beam:NxM, logprob-step-beam:NxM. @W mixes the policy's log-probability in, times W: step-beam:2x8@0.5
"""


@dataclass(frozen=True)
class Strategy:
    """One way to answer.

    Attributes:
        name: as it was asked for.
        search: what the decoder runs.
        rewarded: a reward model scores the candidates.
        votes: the answer is the one with the largest sum of draws, "plain", or of draws times scores, "scored".
    """

    name: str
    search: Search
    rewarded: bool
    votes: str | None = None

    def pick(self, decoded: Decoded) -> list[dict[str, Any]]:
        """The calls of the chosen answer."""
        if self.votes is None:
            return decoded.calls
        return max(decoded.finished, key=lambda answer: (self._votes(answer), answer.rank)).calls

    def _votes(self, answer: Answer) -> float:
        return answer.multiplicity * ((answer.score or 0.0) if self.votes == "scored" else 1.0)


def read_strategies(text: str, search: Search) -> list[Strategy]:
    """Strategies from their names, separated by commas.

    search: what the names leave open: temperature, seed, aggregate, and beams, width and policy_weight of "step-beam".
    Raises RequestError for a name that is none.
    """
    return [_read(name.strip(), search) for name in text.split(",") if name.strip()] or _refuse(text)


def _refuse(name: str) -> NoReturn:
    raise RequestError(f"unknown strategy {name!r:.60}: use {' '.join(HELP.split())}")


def _read(name: str, search: Search) -> Strategy:
    match = _NAME.fullmatch(name)
    if match is None:
        _refuse(name)
    kind, n, m, weight = match["kind"], match["n"], match["m"], match["weight"]
    if kind in ("step-beam", "logprob-step-beam"):
        if (n is None) != (m is None):
            _refuse(name)
        chosen = replace(search, strategy="step-beam")
        if n is not None:
            chosen = replace(chosen, beams=int(n), width=int(m))
        if weight is not None:
            chosen = replace(chosen, policy_weight=float(weight))
        return Strategy(name, chosen, rewarded=kind == "step-beam")
    if m is not None:
        _refuse(name)
    if kind == "greedy" and n is None:
        return Strategy(name, replace(search, strategy="greedy"), rewarded=False)
    if kind == "sample" and n is None:
        return Strategy(name, replace(search, strategy="sample", width=1), rewarded=False)
    voting: Mapping[str, tuple[bool, str | None]] = {
        "majority-vote": (False, "plain"),
        "weighted-vote": (True, "scored"),
        "best-of-n": (True, None),
        "logprob-best-of-n": (False, None),
    }
    if kind not in voting:
        _refuse(name)
    rewarded, votes = voting[kind]
    # A bare best-of-n is by the score alone: the search's weight is tuned for its beams.
    own = replace(search, strategy="sample", width=int(n or 16), policy_weight=float(weight or 0.0))
    return Strategy(name, own, rewarded, votes)


def unrewarded(strategies: Sequence[Strategy]) -> bool:
    """Whether none of them needs a reward model."""
    return not any(strategy.rewarded for strategy in strategies)
