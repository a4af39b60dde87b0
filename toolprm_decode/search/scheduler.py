"""The scheduler between the core, which plans, and the engines, which run models: many requests share each pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import psutil
import torch

from toolprm_decode import _core
from toolprm_decode.engine import Batch, Engine
from toolprm_decode.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    MemoryExceeded,
    ModelNotSupported,
    RequestError,
)
from toolprm_decode.kernels.dispatch import backend
from toolprm_decode.machine import usable_cores
from toolprm_decode.rewards import ToolPRM
from toolprm_decode.search.drawing import draw

# Scores prefixes of answers for a request: core steps up to and with the one to score.
ExternalScorer = Callable[[Sequence[_core.Step]], float]

T = TypeVar("T")


def to_batch(plan: _core.Plan, few_ids: Sequence[int] | None = None) -> Batch:
    """The forward pass of a plan, as the engine takes it. few_ids: of all outputs; None for what the plan says."""
    outputs = plan.outputs
    full = plan.full_outputs if few_ids is None else 0
    return Batch(
        tokens=plan.tokens,
        positions=plan.positions,
        rows=plan.rows,
        slots=plan.slots,
        segments=plan.segments,
        contexts=plan.contexts,
        block_tables=plan.block_tables,
        lengths=plan.lengths,
        outputs=outputs[:full],
        few_outputs=outputs[full:],
        few_ids=plan.few_ids if few_ids is None else np.asarray(few_ids, np.int32),
        copies=plan.copies,
        blocks=plan.blocks,
    )


@dataclass
class Work(Generic[T]):
    """A request as the scheduler takes it.

    Attributes:
        matcher: at the start of the answer.
        options: of the search.
        prompt: the policy's tokens. reward_prompt: the reward model's.
        reward_room: tokens that the reward model can read after its prompt.
        scorer: scores in place of a reward model.
        finish: what the future gives, from the core's result and the seconds spent by phase while it was here.
        on_steps: called with steps as they become certain, in order.
        deadline: of time.monotonic().
    """

    matcher: _core.Matcher
    options: _core.SearchOptions
    prompt: list[int]
    reward_prompt: list[int]
    reward_room: int
    scorer: ExternalScorer | None
    finish: Callable[[_core.Result, dict[str, float]], T]
    on_steps: Callable[[list[_core.ScoredStep]], None] | None = None
    deadline: float | None = None


class Pending(Future[T]):
    """The answer to come. cancel() drops a request at any time before its answer is there."""

    def __init__(self, drop: Callable[[Pending[T]], bool]):
        super().__init__()
        self._drop = drop

    def cancel(self) -> bool:
        """Drops the request and frees its memory; False where the answer is there already."""
        dropped = self._drop(self)
        cancelled = super().cancel()
        if dropped and cancelled:  # the scheduler will not: tell those that wait for it
            self.set_running_or_notify_cancel()
        return cancelled


@dataclass
class _Running(Generic[T]):
    work: Work[T]
    pending: Pending[T]
    begun: dict[str, float]  # the clock when it came
    told: int = 0  # steps that on_steps has


class Scheduler:
    """Runs requests of any number of threads, as many as there is memory for, each forward pass with rows of all.

    Its threads live as long as there are requests. Where policy and reward model can run beside each other (two models
    on two devices, or threads that torch leaves idle), scores of some requests are computed while others go on.

    Args:
        policy: the policy. reward: the reward model, if any.
        reward_format: how the reward model reads steps.
        kv_memory: bytes for keys and values, of both models together; None for half of what is free. It is taken as it
            is needed.
        prefix_memory: bytes of them for prompts that no request uses any more; None for half.
        scored: requests may bring scorers of their own.

    Raises:
        RequestError: kv_memory is too small for a single block.
    """

    def __init__(
        self,
        policy: Engine,
        reward: ToolPRM | None,
        reward_format: _core.RewardFormat | None,
        *,
        kv_memory: int | None = None,
        prefix_memory: int | None = None,
        scored: bool = False,
    ):
        self._policy, self._reward, self._reward_format = policy, reward, reward_format
        engines = [policy] if reward is None else [policy, reward.engine]
        tokens = _room(engines, kv_memory)
        idle = tokens // 2 if prefix_memory is None else prefix_memory // sum(e.kv_bytes for e in engines)
        pools = [_pool(engine, tokens, idle) for engine in engines]
        self._core = _core.Search(pools[0], pools[-1])
        self._stores = {
            side: engine.new_store(pool.capacity)
            for side, engine, pool in zip((_core.Side.POLICY, _core.Side.REWARD), engines, pools, strict=False)
        }
        self._sides: list[_core.Side | None] = [None]
        if _beside(policy, reward, scored):
            self._sides = [_core.Side.POLICY, _core.Side.REWARD]
        self._change = threading.Condition()
        self._running: dict[int, _Running[Any]] = {}
        self._threads: dict[_core.Side | None, threading.Thread] = {}
        self._seconds: dict[str, float] = {}

    def submit(self, works: Sequence[Work[T]]) -> list[Pending[T]]:
        """Takes requests in, all at once; returns at once.

        What is wrong with one of them from the start is for its future to say: BudgetExceeded where max_tokens is too
        small for any answer.
        """
        with self._change:
            futures = [self._add(work) for work in works]
            try:
                for side in self._sides:
                    if side not in self._threads:
                        thread = threading.Thread(target=self._serve, args=(side,), name="toolprm-scheduler")
                        thread.start()
                        self._threads[side] = thread
            except BaseException:  # no more threads are to be had
                for future in futures:
                    future.cancel()
                raise
            self._change.notify_all()
        return futures

    def check_caller(self) -> None:
        """Raises RequestError where the caller is one of the scheduler's threads: it would wait for itself."""
        if threading.current_thread() in self._threads.values():
            raise RequestError(
                "a callback or reward function of a decoder cannot wait for the same decoder: use submit() there, or "
                "another thread"
            )

    @property
    def blocks_in_use(self) -> tuple[int, int]:
        """Blocks that requests hold of the policy's and the reward model's pool, without those of idle prompts."""
        with self._change:
            used, idle = self._core.blocks_in_use, self._core.idle_blocks
            return used[0] - idle[0], used[1] - idle[1]

    def clear_cache(self) -> None:
        """Forgets the prompts that no request uses."""
        with self._change:
            self._core.clear_cache()

    # ------------------------------------------------------------------ threads

    def _serve(self, side: _core.Side | None) -> None:
        """Runs the plans of one side, or of both in turn, until no request is left."""
        try:
            while self._turn(side):
                pass
        except BaseException as error:  # whatever it is, nobody may be left waiting
            with self._change:
                self._threads.pop(side, None)
                outcomes = self._end(dict.fromkeys(self._running, error))
                self._change.notify_all()
            _resolve(outcomes)
            raise

    def _turn(self, side: _core.Side | None) -> bool:
        """One pass, or a wait for something to do; False where nothing is left to be done."""
        with self._change:
            outcomes = self._expire()
            clock = _Clock()
            plan = self._core.plan(side) if self._running else None
            self._book("core", clock.lap())
            outcomes += self._collect()
            if plan is not None and plan.kind == _core.PlanKind.DONE:
                plan = None
            if plan is None and not outcomes:
                if not self._running:
                    self._threads.pop(side, None)
                    return False
                outcomes = self._wait(side)
        _resolve(outcomes)
        if plan is not None:
            self._run(plan)
        return True

    def _wait(self, side: _core.Side | None) -> list[_Outcome]:
        """Waits for a change, unless there is something to do after all. Nothing hangs: requests that no side has
        anything to run for fail."""
        # Asked twice, since one side's plan can change what the other one has to run.
        ready = {s for s in self._sides * 2 if self._core.plan(s).kind != _core.PlanKind.DONE}
        if side in ready or self._core.ended():
            return []
        if not ready:
            error = RuntimeError("the search has nothing to run for this request: please report it, with the request")
            return self._end(dict.fromkeys(self._running, error))
        self._change.notify_all()  # the plan is the other side's
        self._change.wait(self._until_deadline())
        return []

    def _run(self, plan: _core.Plan) -> None:
        """Runs a plan and commits what came out."""
        side = _core.Side.POLICY if plan.kind == _core.PlanKind.DECODE else _core.Side.REWARD
        try:
            if side == _core.Side.POLICY:
                commit = self._decode(plan)
            elif self._reward is not None:
                commit = self._score(plan, self._reward)
            else:
                commit = self._ask(plan)
        except BaseException as error:  # out of memory, say: the requests of the pass get it, the others go on
            with self._change:
                self._core.fail(side, "the pass failed")
                outcomes = self._collect(error)
                self._change.notify_all()
        else:
            with self._change:
                clock = _Clock()
                outcomes = commit()
                self._book("core", clock.lap())
                outcomes += self._collect()
                self._change.notify_all()
        _resolve(outcomes)

    # ------------------------------------------------------------------ passes; each returns its commit

    def _decode(self, plan: _core.Plan) -> _Commit:
        clock = _Clock()
        full, few = self._policy.forward(self._stores[_core.Side.POLICY], to_batch(plan))
        if self._policy.device.type == "cuda":
            torch.cuda.synchronize(self._policy.device)  # so that each phase is told its own time
        forward = clock.lap()
        drawn = draw(plan, full, few, self._policy.device)
        sampling = clock.lap()
        name = type(self._policy.model).__name__

        def commit() -> list[_Outcome]:
            self._book("policy", forward)
            self._book("sampling", sampling)
            outcomes = self._end({id: ModelNotSupported(f"{name}: {reason}") for id, reason in drawn.failures.items()})
            self._core.commit_tokens(drawn.tokens, drawn.logprobs, drawn.perturbed)
            return outcomes

        return commit

    def _score(self, plan: _core.Plan, reward: ToolPRM) -> _Commit:
        clock = _Clock()
        store = self._stores[_core.Side.REWARD]
        _, logits = reward.engine.forward(store, to_batch(plan, reward.label_ids))
        with np.errstate(invalid="ignore"):  # said below
            scores = reward.scores(logits)
        forward = clock.lap()
        broken = {plan.requests[i] for i in np.flatnonzero(np.isnan(scores)).tolist()}
        name = type(reward.engine.model).__name__

        def commit() -> list[_Outcome]:
            self._book("prm", forward)
            reason = f"{name}: the reward model's logits are NaN"
            outcomes = self._end({id: ModelNotSupported(reason) for id in broken})
            self._core.commit_scores(scores)
            return outcomes

        return commit

    def _ask(self, plan: _core.Plan) -> _Commit:
        """Scores by the callers' own functions. What one raises is its request's alone."""
        clock = _Clock()
        scores = np.zeros(len(plan.requests))
        failures: dict[int, BaseException] = {}
        for index, (id, steps) in enumerate(zip(plan.requests, plan.prefixes_to_score, strict=True)):
            running = self._running.get(id)
            if running is None or running.work.scorer is None or id in failures:  # cancelled, or failed already
                continue
            try:
                scores[index] = _checked(running.work.scorer(steps))
            except BaseException as error:
                failures[id] = error
        seconds = clock.lap()

        def commit() -> list[_Outcome]:
            self._book("prm", seconds)
            outcomes = self._end(failures)
            self._core.commit_scores(scores)
            return outcomes

        return commit

    # ------------------------------------------------------------------ under the lock

    def _add(self, work: Work[T]) -> Pending[T]:
        model = self._reward is not None
        scoring = _core.Scoring.MODEL if model else _core.Scoring.EXTERNAL if work.scorer else _core.Scoring.NONE
        pending: Pending[T] = Pending(self._drop)
        try:
            id = self._core.add(
                work.matcher,
                work.options,
                work.prompt,
                scoring,
                work.reward_prompt if model else [],
                self._reward_format if model else None,
                work.reward_room,
            )
        except _core.BudgetError as error:
            advice = "raise max_tokens, shorten the prompt or use simpler tools"
            pending.set_exception(BudgetExceeded(f"{error}: {advice}"))
        except Exception as error:  # its tokenizer's
            pending.set_exception(error)
        else:
            self._running[id] = _Running(work, pending, dict(self._seconds))
        return pending

    def _book(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def _drop(self, pending: Pending[Any]) -> bool:
        """Forgets a request that is cancelled; False where it has ended."""
        with self._change:
            ids = [id for id, running in self._running.items() if running.pending is pending]
            for id in ids:
                del self._running[id]
                self._core.cancel(id)
            self._change.notify_all()
        return bool(ids)

    def _end(self, errors: Mapping[int, BaseException]) -> list[_Outcome]:
        """Ends requests with errors."""
        outcomes: list[_Outcome] = []
        for id, error in errors.items():
            self._core.cancel(id)
            running = self._running.pop(id, None)
            if running is not None and running.pending.set_running_or_notify_cancel():
                outcomes.append((running.pending, _raiser(error)))
        return outcomes

    def _expire(self) -> list[_Outcome]:
        now = time.monotonic()
        late = [i for i, r in self._running.items() if r.work.deadline is not None and r.work.deadline <= now]
        return self._end({id: DeadlineExceeded(LATE) for id in late})

    def _until_deadline(self) -> float | None:
        deadlines = [r.work.deadline for r in self._running.values() if r.work.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _collect(self, cause: BaseException | None = None) -> list[_Outcome]:
        """Takes the requests that have ended out of the core. cause: why a pass failed."""
        outcomes: list[_Outcome] = []
        for id, running in self._running.items():
            if running.work.on_steps is not None and (steps := self._core.certain(id, running.told)):
                running.told += len(steps)
                running.work.on_steps(steps)
        for id in self._core.ended():
            running = self._running[id]
            seconds = {phase: spent - running.begun.get(phase, 0.0) for phase, spent in self._seconds.items()}
            try:
                result = self._core.take(id)
            except _core.PassFailed as error:
                outcomes += self._end({id: cause or error})
            except _core.OutOfBlocks as error:
                advice = "raise kv_memory, use fewer beams, a smaller width, or a shorter prompt"
                outcomes += self._end({id: MemoryExceeded(f"{error}: {advice}")})
            except _core.BudgetError as error:
                outcomes += self._end({id: BudgetExceeded(f"{error}: use simpler tools")})
            except BaseException as error:  # its tokenizer's
                outcomes += self._end({id: error})
            else:
                del self._running[id]
                if running.pending.set_running_or_notify_cancel():
                    outcomes.append((running.pending, partial(running.work.finish, result, seconds)))
        return outcomes


_Outcome = tuple[Pending[Any], Callable[[], Any]]
_Commit = Callable[[], list[_Outcome]]

LATE = "the request's time was up before its answer was there: allow it more, or use fewer beams or a smaller width"


def _resolve(outcomes: Sequence[_Outcome]) -> None:
    """Gives futures what they wait for, outside of any lock: they may call back."""
    for pending, outcome in outcomes:
        with suppress(BaseException):  # of a callback: Future logs what is an Exception, and lets SystemExit pass
            try:
                value = outcome()
            except BaseException as error:
                pending.set_exception(error)
            else:
                pending.set_result(value)


def _raiser(error: BaseException) -> Callable[[], Any]:
    def throw() -> Any:
        raise error

    return throw


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        return spent


def _room(engines: Sequence[Engine], kv_memory: int | None) -> int:
    """Tokens whose keys and values each engine may hold."""
    tokens = []
    for device in {engine.device for engine in engines}:
        here = sum(engine.kv_bytes for engine in engines if engine.device == device)
        if kv_memory is not None:
            here, free = sum(engine.kv_bytes for engine in engines), kv_memory
        elif device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0] // 2
        else:
            free = psutil.virtual_memory().available // 2
        tokens.append(free // here)
    smallest = max(engine.block_size for engine in engines)
    if min(tokens) < smallest:
        given = "half of the free memory" if kv_memory is None else f"kv_memory of {kv_memory} bytes"
        raise RequestError(f"{given} holds {min(tokens)} tokens, less than a block of {smallest}: allow more")
    return min(*tokens, _MOST_TOKENS)


# Slots are numbered by 32 bits; this many are beyond any use.
_MOST_TOKENS = 1 << 30


def _pool(engine: Engine, tokens: int, idle: int) -> _core.PoolOptions:
    size = engine.block_size
    return _core.PoolOptions(size, max(1, tokens // size - 1), min(idle, tokens) // size)


def _beside(policy: Engine, reward: ToolPRM | None, scored: bool) -> bool:
    """Whether a pass of the policy and one of the reward model (or of the caller) gain by running at the same time."""
    if reward is None:
        return scored
    if policy.shares_model(reward.engine):
        return False
    if policy.device != reward.engine.device:
        return True
    if policy.device.type != "cpu" or backend(policy.device) == "triton":  # its interpreter is for one thread
        return False
    return 2 * torch.get_num_threads() <= usable_cores()


def _checked(score: Any) -> float:
    try:
        value = float(score)
    except (TypeError, ValueError):
        raise RequestError(f"the reward callable must return a number, not {score!r:.80}") from None
    if not 0.0 <= value <= 1.0:
        raise RequestError(f"the reward callable must return a score between 0 and 1, not {value!r}")
    return value
