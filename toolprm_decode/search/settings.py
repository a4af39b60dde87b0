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
        strategy: "greedy" (the likeliest legal token, one answer), "sample" (width independent answers, ranked), or
            "step-beam" (arXiv 2510.14703: at every step boundary the best `beams` candidates go on, each expanded into
            `width` continuations).
        beams: prefixes retained, N.
        width: candidates a beam, M (of "sample": answers).
        temperature: of the policy's legal tokens, at least 10^-6; 0 takes the likeliest.
        aggregate: how the step scores of a candidate combine: "last", "min", "product" or "mean".
        policy_weight: a candidate ranks by log(score) + policy_weight * log-probability; without a reward model by
            the log-probability. Ranks count to four decimals; among equals the most frequent candidate goes first.
        distinct: the candidates of a beam (of "sample" the answers) are different: drawn without replacement from the
            policy's own distribution (Kool et al. 2019, "Stochastic Beams and Where to Find Them"). Needs a temperature
            above 0.
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
        for name in ("distinct", "allow_no_call", "forced_runs"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} must be True or False, not {getattr(self, name)!r:.60}")
        if self.distinct and self.temperature == 0:
            raise RequestError("distinct candidates need a temperature above 0")

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
        for name in ("beams", "width", "temperature", "policy_weight", "distinct", "seed", "forced_runs"):
            setattr(options, name, getattr(self, name))
        options.max_tokens = max_tokens
        return options
