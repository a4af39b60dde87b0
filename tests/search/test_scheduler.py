"""Requests that come and go as they like: shared passes and prompts, streams, deadlines, cancellation, memory."""

from __future__ import annotations

import asyncio
import copy
import gc
import random
import threading
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from toolprm_decode import Decoded, Decoder, Request, Search, Step, ToolPRM
from toolprm_decode.engine import Batch, Engine, KVStore
from toolprm_decode.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    RequestError,
    ToolprmError,
    ToolSchemaError,
)

from .models import PROMPT, QUICK, SWAP, SWITCH, TOOLS, decoder, held, policy, reward, tokenizer


class Passes:
    """What an engine is asked to run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: Engine, before: Callable[[Batch], None] | None = None):
        self.batches: list[Batch] = []
        forward = engine.forward

        def recorded(store: KVStore, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            self.batches.append(batch)
            if before is not None:
                before(batch)
            return forward(store, batch)

        monkeypatch.setattr(engine, "forward", recorded)


def plain(answer: Decoded) -> Any:
    return answer.text, [(a.text, a.multiplicity) for a in answer.finished]


# ---------------------------------------------------------------------------------------------------------------------
# Sharing


def test_requests_share_passes_and_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(TOOLS, f"Light in room {i}", QUICK) for i in range(8)]
    alone = [decoder(reward()).decode(r.tools, r.prompt, r.search) for r in requests]
    one = decoder(reward())
    seen = [Passes(monkeypatch, one._policy), Passes(monkeypatch, reward().engine)]
    together = one.decode_batch(requests)
    assert [plain(a) for a in together] == [plain(a) for a in alone]
    assert len(seen[0].batches) < sum(a.stats.forward_passes for a in alone) / 2
    assert max(len(batch.lengths) for batch in seen[0].batches) > 4 * QUICK.width
    prompt = alone[0].stats.prompt_tokens
    for tokens, cached in (("policy_tokens", "cached_tokens"), ("prm_tokens", "prm_cached_tokens")):
        spared = [getattr(answer.stats, cached) for answer in together]
        assert spared[0] == 0 and min(spared[1:]) > 0.8 * prompt
        for answer, own in zip(together, alone, strict=True):
            assert getattr(answer.stats, tokens) + getattr(answer.stats, cached) == getattr(own.stats, tokens)


def test_a_prompt_stays_for_the_next_request_over_the_same_tools() -> None:
    one, forgetful = decoder(reward()), decoder(reward(), prefix_memory=0)
    for prompt in ("Light in the hall", "Light in the attic"):
        expected = decoder(reward()).decode(TOOLS, prompt, QUICK)
        for each in (one, forgetful):
            assert plain(each.decode(TOOLS, prompt, QUICK)) == plain(expected)
    again = one.decode(TOOLS, "Light in the attic", QUICK).stats
    assert again.cached_tokens == again.prompt_tokens - 1  # the last one is run for its logits
    stats = forgetful.decode(TOOLS, "Light in the attic", QUICK).stats
    assert (stats.cached_tokens, stats.prm_cached_tokens) == (0, 0)
    assert forgetful._scheduler._core.blocks_in_use == (0, 0)


def test_idle_prompts_stay_within_their_memory() -> None:
    one = decoder()
    prompt = one.decode(TOOLS, PROMPT, QUICK).stats.prompt_tokens
    small = decoder(prefix_memory=2 * prompt * one._policy.kv_bytes)
    for i in range(6):  # the text comes first, so that nothing is shared
        small.decode(TOOLS, [{"role": "user", "content": f"{i} " * 30}], QUICK)
        small.decode([SWAP], PROMPT, QUICK)
    assert 0 < small._scheduler._core.idle_blocks[0] * small._policy.block_size <= 2 * prompt


def test_a_long_prompt_is_read_in_parts_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    one = decoder()
    seen = Passes(monkeypatch, one._policy)
    long = Request(TOOLS, "Light " * 250, QUICK)
    expected = decoder().decode(TOOLS, PROMPT, QUICK), decoder().decode(long.tools, long.prompt, long.search)
    short = [Request(TOOLS, PROMPT, QUICK)] * 2
    answers = one.decode_batch([short[0], long, short[1]])
    assert [plain(a) for a in answers] == [plain(expected[i]) for i in (0, 1, 0)]
    read = [np.bincount(batch.rows).max() for batch in seen.batches]
    assert max(read) <= 512 and sum(count > 400 for count in read) >= 2
    # Rows of the short ones were not kept waiting for it.
    assert any(len(batch.lengths) > 1 and len(batch.outputs) + len(batch.few_outputs) for batch in seen.batches[1:3])


def test_many_beams_hold_the_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search("sample", width=64, temperature=1.5, max_tokens=40, seed=1)
    one = decoder()
    seen = Passes(monkeypatch, one._policy)
    decoded = one.decode(TOOLS, "Light " * 120, search)
    block, prompt = one._policy.block_size, decoded.stats.prompt_tokens - 1
    assert prompt > 1000
    most_rows = 0
    for batch in seen.batches:
        own = {slot // block for slot in batch.slots.tolist()} | set(batch.block_tables.flatten().tolist()) - {-1}
        whole = -(-prompt // block)
        # Each row has at most its own blocks, and all together the prompt's.
        assert len(own) <= whole + sum(-(-int(length) // block) for length in batch.lengths)
        assert batch.blocks <= 1 + whole + 64 * -(-40 // block)
        assert all(int(count) <= block for _, _, count in batch.copies)
        if len(batch.segments) and int(batch.segments[:, 1].sum()) == prompt:
            most_rows = max(most_rows, len(batch.lengths))
            assert len(batch.segments) == 1  # read once, for all of them
    assert most_rows > 20


def test_head_rows_are_computed_where_few_tokens_are_legal(monkeypatch: pytest.MonkeyPatch) -> None:
    one = decoder()
    seen = Passes(monkeypatch, one._policy)
    one.decode(
        [SWITCH], PROMPT, Search(beams=2, width=4, max_calls=1, max_tokens=40, temperature=1.2, allow_no_call=False)
    )
    wanted = [(len(b.outputs), len(b.few_outputs), len(b.few_ids)) for b in seen.batches]
    assert sum(few for _, few, _ in wanted) > 5 * sum(full for full, _, _ in wanted)
    assert max(ids for *_, ids in wanted) < len(tokenizer()) / 4


# ---------------------------------------------------------------------------------------------------------------------
# Streams


@pytest.mark.parametrize("strategy", ["greedy", "step-beam", "sample"])
@pytest.mark.parametrize("prm", [None, reward, lambda: lambda *_: 0.5], ids=["none", "model", "callable"])
def test_a_stream_gives_the_steps_and_then_the_answer(strategy: str, prm: Any) -> None:
    search = Search(strategy, beams=2, width=3, temperature=1.2, max_tokens=60, seed=5, allow_no_call=False)
    one = decoder(prm and prm())
    *steps, decoded = one.stream(TOOLS, PROMPT, search)
    assert isinstance(decoded, Decoded) and all(isinstance(step, Step) for step in steps)
    assert [(s.kind, s.text, s.start, s.end) for s in steps] == [
        (s.kind, s.text, s.start, s.end) for s in decoded.steps
    ]
    assert plain(decoded) == plain(one.decode(TOOLS, PROMPT, search))
    if strategy == "step-beam" and prm is not None:
        assert [s.score for s in steps] == [s.score for s in decoded.steps]


def test_a_submitted_request_tells_its_steps_whatever_its_listener_does(caplog: pytest.LogCaptureFixture) -> None:
    one = decoder(reward())
    told: list[Step] = []

    def listen(steps: list[Step]) -> None:
        told.extend(steps)
        raise ValueError("not my day")

    decoded = one.submit(Request(TOOLS, PROMPT, QUICK), listen).result()
    assert told == decoded.steps
    assert "not my day" in caplog.text
    assert plain(decoded) == plain(one.decode(TOOLS, PROMPT, QUICK))


def test_steps_come_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    one = decoder()
    after = threading.Event()

    def wait_for_reader(batch: Batch) -> None:
        if len(seen.batches) == 8:  # well into the answer
            assert after.wait(60)

    seen = Passes(monkeypatch, one._policy, wait_for_reader)
    search = Search("step-beam", beams=1, width=1, temperature=1.2, max_tokens=60, allow_no_call=False)
    events = one.stream(TOOLS, PROMPT, search)
    first = next(events)
    assert isinstance(first, Step) and first.kind == "FUNC_NAME"
    after.set()
    assert isinstance(list(events)[-1], Decoded)


def test_a_stream_that_is_closed_drops_its_request() -> None:
    one = decoder(reward())
    events = one.stream(TOOLS, PROMPT, Search(beams=2, width=4, temperature=1.2, max_tokens=300, allow_no_call=False))
    assert isinstance(next(events), Step)
    events.close()  # type: ignore[attr-defined]
    wait_until_idle(one)


# ---------------------------------------------------------------------------------------------------------------------
# Errors, deadlines, cancellation


def wait_until_idle(one: Decoder) -> None:
    for _ in range(6000):
        if held(one) == (0, 0) and not one._scheduler._running and not one._scheduler._threads:
            return
        time.sleep(0.01)
    raise AssertionError(f"{held(one)} blocks are held still")


def test_a_batch_may_give_errors_in_place() -> None:
    requests = [
        Request(TOOLS, PROMPT, QUICK),
        Request([{"name": "f", "parameters": {"properties": {"x": False}, "required": ["x"]}}], PROMPT),
        Request(TOOLS, 5),
        Request(TOOLS, PROMPT, Search(max_tokens=1, allow_no_call=False)),
        Request([SWAP], PROMPT, QUICK),
    ]
    one = decoder(reward())
    answers = one.decode_batch(requests, return_exceptions=True)
    kinds = [Decoded, ToolSchemaError, RequestError, BudgetExceeded, Decoded]
    assert all(isinstance(answer, kind) for answer, kind in zip(answers, kinds, strict=True))
    with pytest.raises(ToolSchemaError):
        one.decode_batch(requests)
    wait_until_idle(one)


def test_a_pass_that_fails_takes_its_own_requests_down(monkeypatch: pytest.MonkeyPatch) -> None:
    one = decoder(reward())
    expected = decoder(reward()).decode(TOOLS, PROMPT, QUICK)
    broken = threading.Event()

    def fail(batch: Batch) -> None:
        if broken.is_set():
            broken.clear()
            raise MemoryError("no more")

    for engine in (one._policy, reward().engine):
        with monkeypatch.context() as patch:
            Passes(patch, engine, fail)
            broken.set()
            with pytest.raises(MemoryError, match="no more"):
                one.decode(TOOLS, PROMPT, QUICK)
            assert plain(one.decode(TOOLS, PROMPT, QUICK)) == plain(expected)
    wait_until_idle(one)


def test_a_scorer_that_is_slow_meets_the_deadline() -> None:
    free = threading.Event()

    def score(prompt: str, steps: list[Step]) -> float:
        if "slow" in prompt:
            assert free.wait(60)
        return 0.5

    one = decoder(score)
    with pytest.raises(DeadlineExceeded, match="time was up"):
        one.decode(TOOLS, "slow", QUICK, timeout=0.05)
    events = one.stream(TOOLS, "slow", QUICK, timeout=0.05)
    with pytest.raises(DeadlineExceeded):
        list(events)
    free.set()
    wait_until_idle(one)
    assert one.decode(TOOLS, PROMPT, QUICK, timeout=600).text
    assert isinstance(one.decode_batch([Request(TOOLS, PROMPT, QUICK, 600)])[0], Decoded)


@pytest.mark.parametrize("timeout", [0, -1, "1", True, float("nan")])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    with pytest.raises(RequestError, match="timeout"):
        decoder().decode(TOOLS, PROMPT, QUICK, timeout=timeout)


def test_a_request_can_be_dropped_at_any_time() -> None:
    begun, free = threading.Event(), threading.Event()

    def score(prompt: str, steps: list[Step]) -> float:
        begun.set()
        assert free.wait(60)
        return 0.5

    one = decoder(score)
    first, second = one.submit(Request(TOOLS, PROMPT, QUICK)), one.submit(Request([SWAP], PROMPT, QUICK))
    assert begun.wait(60)
    assert first.cancel() and first.cancelled()
    with pytest.raises(CancelledError):
        first.result()
    free.set()
    assert isinstance(second.result(60), Decoded)
    assert not second.cancel() and not second.cancelled()
    wait_until_idle(one)


def test_futures_can_be_awaited() -> None:
    one = decoder(reward())

    async def both() -> list[Decoded]:
        requests = [Request(TOOLS, PROMPT, QUICK), Request([SWAP], PROMPT, QUICK)]
        return list(await asyncio.gather(*(asyncio.wrap_future(one.submit(request)) for request in requests)))

    assert [plain(a) for a in asyncio.run(both())] == [
        plain(one.decode(tools, PROMPT, QUICK)) for tools in (TOOLS, [SWAP])
    ]

    async def too_late() -> None:
        await asyncio.wait_for(asyncio.wrap_future(one.submit(Request(TOOLS, "Light " * 500, QUICK))), 0.001)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(too_late())
    wait_until_idle(one)


def test_a_callback_may_use_the_decoder() -> None:
    one, texts = decoder(reward()), []
    done = threading.Event()

    def again(_: Any) -> None:
        texts.append(
            one.submit(Request([SWAP], PROMPT, QUICK)).add_done_callback(lambda f: (texts.append(f), done.set()))
        )

    one.submit(Request(TOOLS, PROMPT, QUICK)).add_done_callback(again)
    assert done.wait(60)


def test_those_who_wait_for_a_dropped_request_are_told() -> None:
    free = threading.Event()
    one = decoder(lambda *_: free.wait(60) / 2)
    pending = [one.submit(Request(TOOLS, PROMPT, QUICK)) for _ in range(3)]
    assert pending[0].cancel() and pending[0].cancel()
    free.set()
    done, waiting = futures.wait(pending, timeout=60)
    assert len(done) == 3 and not waiting
    assert {id(future) for future in futures.as_completed(pending, timeout=60)} == {id(future) for future in pending}


def test_a_decoder_does_not_wait_for_itself() -> None:
    errors: list[BaseException] = []
    done = threading.Event()
    one = decoder()

    def wait_for_more(_: Any) -> None:
        for use in (lambda: one.decode(TOOLS, PROMPT, QUICK), lambda: list(one.stream(TOOLS, PROMPT, QUICK))):
            try:
                use()
            except RequestError as error:
                errors.append(error)
        done.set()

    # The callback may come at once, in this thread, where it may wait.
    pending = one.submit(Request(TOOLS, "Light " * 250, QUICK))
    pending.add_done_callback(wait_for_more)
    assert done.wait(60)
    assert len(errors) in (0, 2) and all("submit()" in str(error) for error in errors)
    scored = decoder(lambda *_: scored.decode(TOOLS, PROMPT, QUICK))
    with pytest.raises(RequestError, match=r"submit\(\)"):
        scored.decode(TOOLS, PROMPT, QUICK)


class Rude(BaseException):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("error", [SystemExit(3), Rude(), OSError("\udc80")], ids=["exit", "no-text", "surrogate"])
def test_no_error_ends_a_decoder(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plain(decoder(reward()).decode(TOOLS, PROMPT, QUICK))
    one = decoder(reward())

    def throw(*_: Any) -> Any:
        raise error

    for where in (one._policy, reward().engine):
        with monkeypatch.context() as patch:
            patch.setattr(where, "forward", throw)
            with pytest.raises(type(error)):
                one.decode(TOOLS, PROMPT, QUICK)
        assert plain(one.decode(TOOLS, PROMPT, QUICK)) == expected
    scored = decoder(throw)
    with pytest.raises(type(error)):
        scored.decode(TOOLS, PROMPT, QUICK)
    pending = [one.submit(Request(TOOLS, PROMPT, QUICK)) for _ in range(3)]
    for future in pending:
        future.add_done_callback(lambda _: throw() if threading.current_thread().name.startswith("toolprm") else 0)
    assert [plain(future.result(60)) for future in pending] == [expected] * 3
    wait_until_idle(one)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_scheduler_itself_is_told_to_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    one = decoder(reward())
    with monkeypatch.context() as patch:
        patch.setattr(one._scheduler, "_collect", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            one.decode_batch([Request(TOOLS, PROMPT, QUICK)] * 3)
        wait_until_idle(one)  # the other side's thread meets the fault too, maybe later
    assert one.decode(TOOLS, PROMPT, QUICK).text


def test_a_stream_that_was_never_begun_drops_its_request() -> None:
    free = threading.Event()
    one = decoder(lambda *_: free.wait(60) / 2)
    events = one.stream(TOOLS, PROMPT, QUICK)
    events.close()  # type: ignore[attr-defined]
    forgotten = one.stream(TOOLS, PROMPT, QUICK)
    del forgotten
    free.set()
    wait_until_idle(one)
    assert list(events) == []


def test_a_reward_model_with_a_short_context_refuses_its_own_requests_alone() -> None:
    short = ToolPRM(copy.deepcopy(reward().engine.model), tokenizer())
    prompt = decoder().decode(TOOLS, PROMPT, QUICK).stats.prompt_tokens
    # Its tags are long, so that steps are longer for it than two tokens for each of the policy's.
    tags = {"ARG_VALUE": " is this value right? " * 3, "FUNC_NAME": " name? "}
    wordy = ToolPRM(short.engine, tokenizer(), tags=tags)
    short.engine.model.config.max_position_embeddings = prompt + 100
    one = Decoder(policy(), wordy, tokenizer=tokenizer())
    searches = [Search(beams=2, width=3, temperature=1.2, seed=seed, max_tokens=48) for seed in range(6)]
    requests = [Request(TOOLS if i % 2 else [], PROMPT, search) for i, search in enumerate(searches)]
    answers = one.decode_batch(requests, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert refused == answers[1::2]
    assert all(isinstance(e, BudgetExceeded) and "tokens of the reward model" in str(e) for e in refused)
    wait_until_idle(one)


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def test_what_does_not_fit_alone_is_refused_and_what_does_waits() -> None:
    one = decoder(reward())
    kv_bytes = one._policy.kv_bytes + reward().engine.kv_bytes
    small = decoder(reward(), kv_memory=1000 * kv_bytes)
    requests = [Request(TOOLS, f"Light in room {i}", QUICK) for i in range(5)]
    requests.insert(2, Request(TOOLS, "Light " * 150, QUICK))
    answers = small.decode_batch(requests, return_exceptions=True)
    refused = answers.pop(2)
    assert isinstance(refused, BudgetExceeded) and "kv_memory" in str(refused) and "61 blocks" in str(refused)
    requests.pop(2)
    for answer, request in zip(answers, requests, strict=True):
        assert isinstance(answer, Decoded)
        assert plain(answer) == plain(one.decode(request.tools, request.prompt, request.search))
    wait_until_idle(small)


@pytest.mark.parametrize("option", ["kv_memory", "prefix_memory"])
@pytest.mark.parametrize("value", [-1, 1.5, "2GB", True])
def test_memory_is_a_number_of_bytes(option: str, value: Any) -> None:
    with pytest.raises(RequestError, match=option):
        decoder(**{option: value})


def test_memory_for_less_than_a_block_is_refused() -> None:
    with pytest.raises(RequestError, match="kv_memory of 100 bytes holds 0 tokens"):
        decoder(kv_memory=100)


# ---------------------------------------------------------------------------------------------------------------------
# A soak


def test_two_thousand_requests_of_all_kinds_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are cancelled, late, wrong or unlucky: each gets an answer or an error, and all memory comes back."""
    seed = random.randrange(2**32)
    print("seed", seed)
    choose = random.Random(seed)
    judge = Decoder(policy(), reward(), tokenizer=tokenizer())
    kv_bytes = judge._policy.kv_bytes + reward().engine.kv_bytes
    one = decoder(reward(), kv_memory=3000 * kv_bytes, prefix_memory=1000 * kv_bytes)
    unlucky = threading.Event()

    def fail(batch: Batch) -> None:
        if unlucky.is_set():
            unlucky.clear()
            raise MemoryError("no more")

    Passes(monkeypatch, one._policy, fail)
    bad_tools = [{"name": "f", "parameters": {"properties": {"x": False}, "required": ["x"]}}]
    expected: dict[Any, Any] = {}

    def request() -> Request:
        strategy = choose.choice(["greedy", "sample", "step-beam", "step-beam"])
        search = Search(
            strategy,
            beams=choose.choice([1, 2]),
            width=choose.choice([1, 3]),
            seed=choose.randrange(3),
            max_tokens=choose.choice([12, 20]),
            temperature=1.2,
            distinct=choose.random() < 0.2,
        )
        if strategy == "step-beam" and not search.distinct:
            search = replace(search, confidence=choose.choice([None, 0.5]))
        kind = choose.random()
        if kind < 0.03:
            return Request(bad_tools, PROMPT, search)
        if kind < 0.06:
            return Request(TOOLS, "Light " * 3000, search)
        timeout = choose.choice([0.001, 0.02]) if kind < 0.15 else None
        return Request(choose.choice([[SWITCH], [SWAP]]), f"Room {choose.randrange(3)}", search, timeout)

    def soak(count: int) -> list[Any]:
        outcomes: list[Any] = []
        waiting: list[tuple[Request, Any]] = []
        for number in range(count):
            asked = request()
            try:
                waiting.append((asked, one.submit(asked)))
            except ToolprmError as error:
                outcomes.append(error)
            if choose.random() < 0.08 and waiting:
                choose.choice(waiting)[1].cancel()
            if number % 200 == 100:
                unlucky.set()
            while len(waiting) > choose.choice([1, 20, 40]):
                outcomes.append(outcome(*waiting.pop(choose.randrange(len(waiting)))))
        return outcomes + [outcome(*pair) for pair in waiting]

    def outcome(asked: Request, future: Any) -> Any:
        try:
            answer = future.result(120)
        except (ToolprmError, CancelledError, MemoryError) as error:
            return error
        key = (str(asked.tools), asked.prompt, asked.search)
        if key not in expected:
            expected[key] = plain(judge.decode(asked.tools, asked.prompt, asked.search))
        assert plain(answer) == expected[key]
        return answer

    process = psutil.Process()
    outcomes = soak(600)
    gc.collect()
    before = process.memory_info().rss
    outcomes += soak(1400)
    wait_until_idle(one)
    gc.collect()
    grown = process.memory_info().rss - before
    counts = {kind: sum(isinstance(o, kind) for o in outcomes) for kind in (Decoded, *ERRORS)}
    print(counts, f"{grown / 2**20:.1f} MiB")
    assert sum(counts.values()) == len(outcomes) == 2000
    assert counts[Decoded] > 1200 and min(counts.values()) > 0
    one._scheduler.clear_cache()
    assert one._scheduler._core.blocks_in_use == (0, 0)
    assert grown < 100 * 2**20


ERRORS = (ToolSchemaError, BudgetExceeded, DeadlineExceeded, CancelledError, MemoryError)
