"""The settings of a search."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

from toolprm_decode import _core
from toolprm_decode.errors import RequestError

STRATEGIES = {
    "greedy": _core.Strategy.GREEDY,
    "sample": _core.Strategy.SAMPLE,
    "step-beam": _core.Strategy.STEP_BEAM,
    "token-beam": _core.Strategy.TOKEN_BEAM,
}
AGGREGATES = {
    "last": _core.Aggregate.LAST,
    "min": _core.Aggregate.MIN,
    "product": _core.Aggregate.PRODUCT,
    "mean": _core.Aggregate.MEAN,
}


@dataclass(frozen=True)
class Search:
    """How to look for an answer.

    Attributes:
        strategy: "greedy" (the likeliest legal token, one answer), "sample" (width independent answers, ranked),
            "step-beam" (arXiv 2510.14703: at every step boundary the best `beams` candidates go on, each expanded into
            `width` continuations), or "token-beam" (the usual beam search: after every token the `beams` likeliest
            prefixes go on).
        beams: prefixes retained, N.
        width: candidates a beam, M (of "sample": answers).
        temperature: of the policy's legal tokens, at least 10^-6; 0 takes the likeliest.
        aggregate: how the step scores of a candidate combine: "last", "min", "product" or "mean".
        policy_weight: a candidate ranks by log(score) + policy_weight * log-probability; without a reward model by
            the log-probability. Ranks count to four decimals; among equals the most frequent candidate goes first.
        distinct: the candidates of a beam (of "sample" the answers) are different: drawn without replacement from the
            policy's own distribution (Kool et al. 2019, "Stochastic Beams and Where to Find Them"). Needs a temperature
            above 0.
        independent: of "step-beam": every beam begins a tree of its own, of which the best candidate goes on at each
            step (the diverse verifier tree search of Beeching et al. 2024, "Scaling test-time compute with open
            models"), instead of the best of all.
        confidence: of "step-beam", which then spends tokens only in doubt: of a beam's continuations the first is
            written out, then the first two, four, and so on up to `width`, until the new step of the best candidate
            scores no less than this times the step before it: it adds no doubt. A candidate whose aggregate reaches it
            goes on alone. Steps that all draws agree on are not scored while there is nothing to choose. Needs a
            reward whose scores are calibrated. None to write out and score all.
        seed: of the random numbers; the same seed gives the same answer, whatever ran before or beside, as far as the
            rounding of the models' float arithmetic goes.
        max_tokens: most tokens of an answer. What would be longer is closed the shortest legal way.
        max_calls: most calls of an answer, None for any number.
        allow_no_call: the answer may be that no tool fits.
        forced_runs: text that the grammar leaves no choice about is written without asking the model.

    Raises:
        RequestError: a value is out of range.
    """

    strategy: str = "step-beam"
    beams: int = 4
    width: int = 4
    temperature: float = 0.8
    aggregate: str = "last"
    policy_weight: float = 0.0
    distinct: bool = False
    independent: bool = False
    confidence: float | None = None
    seed: int = 0
    max_tokens: int = 512
    max_calls: int | None = None
    allow_no_call: bool = True
    forced_runs: bool = True

    def __post_init__(self) -> None:
        for name, known in (("strategy", STRATEGIES), ("aggregate", AGGREGATES)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise RequestError(f"unknown {name} {value!r:.60}: use one of {', '.join(known)}")
        for name, least, most in (
            ("beams", 1, 4096),
            ("width", 1, 4096),
            ("max_tokens", 1, 2**31 - 1),
            ("seed", 0, 2**64 - 1),
        ):
            self._check_count(name, getattr(self, name), least, most)
        if self.max_calls is not None:
            self._check_count("max_calls", self.max_calls, 1, 2**31 - 1)
        self._check_number("temperature", self.temperature, 0.0)
        if 0 < self.temperature < 1e-6:
            raise RequestError(f"temperature must be 0 or at least 1e-6, not {self.temperature!r}")
        self._check_number("policy_weight", self.policy_weight, -math.inf)
        if self.confidence is not None:
            self._check_number("confidence", self.confidence, 0.0)
            if not 0 < self.confidence <= 1:
                raise RequestError(f"confidence must be above 0 and at most 1, not {self.confidence!r}")
        for name in ("distinct", "independent", "allow_no_call", "forced_runs"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} must be True or False, not {getattr(self, name)!r:.60}")
        if self.distinct and self.temperature == 0:
            raise RequestError("distinct candidates need a temperature above 0")
        for name in ("independent", "confidence"):
            if getattr(self, name) and self.strategy != "step-beam":
                raise RequestError(f"{name} is a setting of the strategy 'step-beam', not of {self.strategy!r}")
            if getattr(self, name) and self.distinct:
                raise RequestError(f"distinct and {name} do not go together")

    @staticmethod
    def _check_count(name: str, value: Any, least: int, most: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise RequestError(f"{name} must be a whole number between {least} and {most:,}, not {value!r:.60}")

    @staticmethod
    def _check_number(name: str, value: Any, least: float) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) <= sys.float_info.max or value < least:
            raise RequestError(f"{name} must be a number{' of 0 or more' if least == 0 else ''}, not {value!r:.60}")

    def core_options(self, max_tokens: int) -> _core.SearchOptions:
        """The same as the core takes it. max_tokens: the room that the model's context leaves, at most our own."""
        options = _core.SearchOptions()
        options.strategy, options.aggregate = STRATEGIES[self.strategy], AGGREGATES[self.aggregate]
        for name in (
            "beams",
            "width",
            "temperature",
            "policy_weight",
            "distinct",
            "independent",
            "seed",
            "forced_runs",
        ):
            setattr(options, name, getattr(self, name))
        options.confidence = self.confidence or 0.0
        options.max_tokens = max_tokens
        return options
