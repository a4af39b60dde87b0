"""The loop between the core, which plans, and the engines, which run models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from toolprm_decode import _core
from toolprm_decode.engine import Batch, Engine
from toolprm_decode.errors import BudgetExceeded, ModelNotSupported, RequestError
from toolprm_decode.rewards import ToolPRM

# Scores prefixes of answers for the request of that id: core steps up to and with the one to score.
ExternalScorer = Callable[[Sequence[_core.Step]], float]


def to_batch(plan: _core.Plan) -> Batch:
    """The forward pass of a plan, as the engine takes it."""
    return Batch(
        tokens=plan.tokens,
        positions=plan.positions,
        rows=plan.rows,
        slots=plan.slots,
        prefixes=plan.prefixes,
        block_tables=plan.block_tables,
        lengths=plan.lengths,
        outputs=plan.outputs,
        copies=plan.copies,
        blocks=plan.blocks,
    )


class Clock:
    """Seconds spent a phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Books the time since the last lap on a phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


def run(
    core: _core.Search,
    policy: Engine,
    reward: ToolPRM | None,
    external: Mapping[int, ExternalScorer],
    clock: Clock,
) -> None:
    """Runs all requests of a core search to their ends.

    external: scorers of the requests that are scored by the caller, by request id.
    Raises ModelNotSupported when a model's logits are not numbers, RequestError when a scorer returns no score,
    BudgetExceeded when a text can be read in too many ways.
    """
    try:
        _run(core, policy, reward, external, clock)
    except _core.BudgetError as error:
        raise BudgetExceeded(f"{error}: use simpler tools") from error


def _run(
    core: _core.Search,
    policy: Engine,
    reward: ToolPRM | None,
    external: Mapping[int, ExternalScorer],
    clock: Clock,
) -> None:
    while True:
        plan = core.plan()
        clock.lap("core")
        if plan.kind == _core.PlanKind.DONE:
            return
        if plan.kind == _core.PlanKind.DECODE:
            logits = policy.forward(to_batch(plan))
            clock.lap("policy")
            try:
                tokens, logprobs = _core.sample_plan(plan, _host(logits))
            except ValueError as error:
                raise ModelNotSupported(f"{type(policy.model).__name__}: {error}") from error
            clock.lap("sampling")
            core.commit_tokens(tokens, logprobs)
        elif plan.requests:
            scores = [
                _checked(external[request](steps))
                for request, steps in zip(plan.requests, plan.prefixes_to_score, strict=True)
            ]
            clock.lap("prm")
            core.commit_scores(scores)
        else:
            assert reward is not None
            logits = reward.engine.forward(to_batch(plan), reward.label_ids)
            with np.errstate(invalid="ignore"):  # said below
                judged = reward.scores(logits)
            if np.isnan(judged).any():
                raise ModelNotSupported(f"{type(reward.engine.model).__name__}: the reward model's logits are NaN")
            clock.lap("prm")
            core.commit_scores(judged)


def _host(logits: Any) -> np.ndarray:
    array: np.ndarray = logits.detach().cpu().numpy()
    return np.ascontiguousarray(array, dtype=np.float32)


def _checked(score: Any) -> float:
    try:
        value = float(score)
    except (TypeError, ValueError):
        raise RequestError(f"the reward callable must return a number, not {score!r:.80}") from None
    if not 0.0 <= value <= 1.0:
        raise RequestError(f"the reward callable must return a score between 0 and 1, not {value!r}")
    return value
