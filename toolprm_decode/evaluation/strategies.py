"""Ways to spend a budget of tokens on one answer, by the names that the command line takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from toolprm_decode.decoding import Answer, Decoded
from toolprm_decode.errors import RequestError
from toolprm_decode.search import Search
from toolprm_decode.search.settings import AGGREGATES

_SIZES = (1, 2, 4, 8, 16)
_VOTED = ("best-of-n", "weighted-vote")
SETS: dict[str, str] = {
    # the comparison of arXiv 2510.14703, section 5, and what it leaves out: log-probability, votes by score
    "paper": "greedy,sample,token-beam:4,majority-vote:16,logprob-best-of-n:16,best-of-n:16/orm,weighted-vote:16/orm,"
    "best-of-n:16/c-prm,best-of-n:16,weighted-vote:16,logprob-step-beam,step-beam/orm,step-beam/c-prm,step-beam@0,"
    "step-beam,step-beam:2x4+distinct,dvts,adaptive:1x16",
    "grid": ",".join(f"step-beam:{n}x{m}" for n in _SIZES for m in _SIZES),
    "curves": ",".join(
        [
            *(f"majority-vote:{n}" for n in (2, 4, 8, 16, 32, 64)),
            *(f"{kind}:{n}{reward}" for kind in _VOTED for reward in ("", "/orm") for n in (2, 4, 8, 16, 32)),
            *(f"adaptive:1x16{confidence}" for confidence in ("+c0.5", "+c0.8", "", "+c0.97")),
        ]
    ),
    "temperatures": ",".join(f"step-beam+t{t}" for t in ("0.4", "0.7", "1.0", "1.3", "1.6")),
    "aggregates": ",".join(f"step-beam+{aggregate}" for aggregate in AGGREGATES),
}

# What each kind runs: strategy of the search, what N and M are, whether scores are needed, votes.
_SAMPLED = {
    "majority-vote": (False, "plain"),
    "weighted-vote": (True, "scored"),
    "best-of-n": (True, None),
    "logprob-best-of-n": (False, None),
}
_BEAMS = {"step-beam": True, "logprob-step-beam": False, "dvts": True, "adaptive": True}
KINDS = ("greedy", "sample", "token-beam", *_SAMPLED, *_BEAMS)
CONFIDENCE = 0.9  # of adaptive, where its name gives none; chosen on validation questions of the built-in world

_NAME = re.compile(
    r"(?P<kind>[a-z-]+?)(?::(?P<n>\d+)(?:x(?P<m>\d+))?)?(?:@(?P<weight>\d+(?:\.\d+)?))?"
    r"(?P<options>(?:\+[a-z]+(?:\d+(?:\.\d+)?)?)*)(?:/(?P<reward>[\w.-]+))?"
)


@dataclass(frozen=True)
class Strategy:
    """One way to answer.

    Attributes:
        name: as it was asked for.
        kind: the word that it begins with.
        search: what the decoder runs.
        reward: name of the reward model that scores the candidates, None for none.
        votes: the answer is the one with the largest sum of draws, "plain", or of draws times scores, "scored".
        options: what follows the sizes of the name, to tell families of strategies apart.
    """

    name: str
    kind: str
    search: Search
    reward: str | None = None
    votes: str | None = None
    options: tuple[str, ...] = field(default=(), compare=False)

    @property
    def chosen(self) -> bool:
        """Chance has no part in it: every seed gives the same answer."""
        return self.search.strategy in ("greedy", "token-beam") or self.search.temperature == 0

    def pick(self, decoded: Decoded) -> Answer:
        """The chosen answer."""
        if self.votes is None:
            return decoded
        return max(decoded.finished, key=lambda answer: (self._votes(answer), answer.rank))

    def _votes(self, answer: Answer) -> float:
        return answer.multiplicity * ((answer.score or 0.0) if self.votes == "scored" else 1.0)


def read_strategies(text: str, search: Search, rewards: Sequence[str] = ("prm",)) -> list[Strategy]:
    """Strategies from their names, or names of SETS, separated by commas; each once.

    search: what the names leave open: temperature, seed, aggregate, and beams, width and policy_weight of the beams.
    rewards: names of the reward models there are; the first is used where a name says none. Of a set, strategies whose
        reward model is not there are left out.
    Raises RequestError for a name that is none, a reward model that is not there, or sizes out of range.
    """
    names: dict[str, None] = {}
    for name in (name.strip() for name in text.split(",") if name.strip()):
        if name in SETS:
            names |= dict.fromkeys(one for one in SETS[name].split(",") if _can_run(one, rewards))
        else:
            names[name] = None
    found = []
    for name in names:
        try:
            found.append(_read(name, search, rewards))
        except RequestError as error:
            known = str(error)
            raise RequestError(known if name in known else f"{name}: {known}") from error
    return found or _refuse(text)


def _can_run(name: str, rewards: Sequence[str]) -> bool:
    """Whether the reward model that a strategy of a set needs is there."""
    match = _NAME.fullmatch(name)
    assert match is not None
    kind = match["kind"]
    rewarded = _BEAMS.get(kind, False) or (kind in _SAMPLED and _SAMPLED[kind][0])
    return not rewarded or (match["reward"] in rewards if match["reward"] else bool(rewards))


def _refuse(name: str) -> NoReturn:
    raise RequestError(f"unknown strategy {name!r:.60}: use one of {', '.join(KINDS)}, with sizes as in step-beam:2x8")


def _read(name: str, search: Search, rewards: Sequence[str]) -> Strategy:
    match = _NAME.fullmatch(name)
    if match is None:
        _refuse(name)
    kind, n, m, weight = match["kind"], match["n"], match["m"], match["weight"]
    options = tuple(match["options"].split("+")[1:])
    votes: str | None = None
    if kind in _BEAMS:
        if (n is None) != (m is None):
            _refuse(name)
        rewarded, chosen = _BEAMS[kind], replace(search, strategy="step-beam")
        if n is not None and m is not None:
            chosen = replace(chosen, beams=int(n), width=int(m))
        if weight is not None:
            chosen = replace(chosen, policy_weight=float(weight))
        if kind == "dvts":
            chosen = replace(chosen, independent=True)
        if kind == "adaptive":
            chosen = replace(chosen, confidence=CONFIDENCE)
    elif m is not None:
        _refuse(name)
    elif kind == "token-beam":
        rewarded, chosen = False, replace(search, strategy="token-beam", beams=int(n or search.beams))
    elif kind in ("greedy", "sample") and n is None:
        rewarded, chosen = False, replace(search, strategy=kind, width=1)
    elif kind in _SAMPLED:
        rewarded, votes = _SAMPLED[kind]
        # A bare best-of-n is by the score alone: the search's weight is tuned for its beams.
        chosen = replace(search, strategy="sample", width=int(n or 16), policy_weight=float(weight or 0.0))
    else:
        _refuse(name)
    for option in options:
        chosen = _with(name, kind, chosen, option)
    if weight is not None and votes is not None:
        raise RequestError(f"{name}: votes are by draws and scores, @W has no part in them")
    if (weight is not None or match["reward"] is not None) and not rewarded:
        raise RequestError(f"{name}: {kind} has no scores for @W or /NAME to speak of")
    reward = (match["reward"] or next(iter(rewards), "")) if rewarded else None
    if reward is not None and reward not in rewards:
        known = f"the reward models here are {', '.join(rewards)}" if rewards else "pass --prm"
        raise RequestError(f"the strategy {name!r} needs a reward model{f' {reward!r}' if reward else ''}: {known}")
    marks = (*options, *([f"@{weight}"] if weight is not None else []))
    return Strategy(name, kind, chosen, reward, votes, marks)


def _with(name: str, kind: str, search: Search, option: str) -> Search:
    if option == "distinct":
        return replace(search, distinct=True)
    if option in AGGREGATES:
        return replace(search, aggregate=option)
    if option[1:].replace(".", "", 1).isdigit():
        if option[0] == "t":
            return replace(search, temperature=float(option[1:]))
        if option[0] == "c" and kind == "adaptive":
            return replace(search, confidence=float(option[1:]))
    raise RequestError(
        f"{name}: unknown option +{option}: use +distinct, +{', +'.join(AGGREGATES)}, +t0.8 for a temperature, or "
        "+c0.9 for the confidence of adaptive"
    )


def describe(strategy: Strategy) -> dict[str, Any]:
    """The settings that its answers depend on, as plain JSON."""
    search = {key: getattr(strategy.search, key) for key in Search.__dataclass_fields__ if key != "seed"}
    return {"reward": strategy.reward, "votes": strategy.votes, **search}
