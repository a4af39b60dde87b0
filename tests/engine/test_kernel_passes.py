"""Whole models under the kernels, as they are and through fixed buffers: on a GPU where there is one, else on the CPU
by Triton's interpreter."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from toolprm_decode.engine import Batch, Engine

from .plans import Plan, assert_close, make, recomputed

pytest.importorskip("triton", reason="triton is not installed: pip install 'toolprm_decode[gpu]'")
Copy = Callable[[PreTrainedModel], PreTrainedModel]
# Grouped heads, windows, soft caps, sinks, and heads whose keys are wider than their values.
SOME = ["qwen2", "gemma2", "gpt-oss", "deepseek-v3"]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLPRM_KERNELS", "triton")
    monkeypatch.setattr("toolprm_decode.engine.graphs._LEAST", (1, 8, 4, 32, 32))  # the interpreter pays for padding


def record_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch, record: object) -> None:
    """Passes are recorded at their first use, those from before (of the checks of a new engine) are forgotten."""
    monkeypatch.setattr("toolprm_decode.engine.graphs.TIMES", 1)
    engine._runner.record = record  # type: ignore[assignment]
    engine._runner._graphs = None


def check(engine: Engine, oracle: PreTrainedModel, plan: Plan, steps: int) -> None:
    for _ in range(steps):
        batch, sequences = plan.random_step()
        logits = plan.forward(batch)
        for row, sequence in zip(logits, sequences, strict=True):
            assert_close(row, recomputed(oracle, sequence)[-1])


@pytest.mark.parametrize("some", SOME)
def test_families_equal_full_recomputation(some: str, plain: Copy, device: torch.device) -> None:
    model = make(some).to(device)
    engine = Engine(model, block_size=4)
    check(engine, plain(model), Plan(engine, seed=1, prompts=(7, 4)), 3)


@pytest.mark.parametrize("some", ["qwen2", "gemma2"])
def test_recorded_passes_equal_full_recomputation(
    some: str, plain: Copy, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recorded runs again on the same buffers, here as it is."""
    model = make(some).to(device)
    engine = Engine(model, block_size=4)
    recorded, replayed = 0, 0

    def record(compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        nonlocal recorded
        recorded += 1

        def replay() -> torch.Tensor:
            nonlocal replayed
            replayed += 1
            return compute()

        return replay

    record_at_once(engine, monkeypatch, record)
    check(engine, plain(model), Plan(engine, seed=2, prompts=(7, 4)), 6)
    assert replayed > recorded > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA graphs are its own")
@pytest.mark.parametrize("some", ["qwen2", "gemma2"])
def test_cuda_graphs_replay_to_the_same_logits(
    some: str, plain: Copy, device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The graphs equal full recomputation, and, replayed over other tokens in other slots, passes as they are."""
    model = make(some).to(device)
    engine, other = Engine(model, block_size=4), Engine(model, block_size=4)
    record_at_once(engine, monkeypatch, engine._runner.record)
    record_at_once(other, monkeypatch, None)
    assert engine._runner.record is not None
    oracle, graphs = plain(model), set()
    plans = [Plan(of, seed=4, prompts=(7, 4)) for of in (engine, other)]
    for _ in range(12):
        (batch, sequences), (same, _) = (plan.random_step() for plan in plans)
        recorded, as_it_is = (plan.forward(of) for plan, of in zip(plans, (batch, same), strict=True))
        assert_close(recorded, as_it_is)
        for row, sequence in zip(recorded, sequences, strict=True):
            assert_close(row, recomputed(oracle, sequence)[-1])
        assert engine._runner._graphs is not None
        graphs |= {(id(layout), shape) for layout, of in engine._runner._graphs._kept.items() for shape in of}
    assert graphs and not [r for r in caplog.records if "cannot be recorded" in r.message]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA graphs are its own")
def test_cuda_graphs_share_their_memory_and_may_all_go(device: torch.device) -> None:
    from toolprm_decode.engine.graphs import CudaGraphs

    before, number = torch.cuda.current_stream(), torch.ones(1000, device=device)
    record = CudaGraphs(number.device)
    with pytest.raises(RuntimeError):
        record(lambda: number * number[0].item())
    assert torch.cuda.current_stream() == before
    graphs = [record(partial(lambda by: (number + by) * 2, by)) for by in range(3)]
    for value in (5.0, 7.0):
        number.fill_(value)
        for by in (2, 0, 1):
            assert graphs[by]().eq((value + by) * 2).all()
    graphs.clear()
    gc.collect()
    assert record(lambda: number - 1)().eq(6).all()
    assert torch.cuda.current_stream() == before


def test_a_model_that_cannot_be_recorded_runs_as_it_is(
    plain: Copy, device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make("qwen2").to(device)
    engine = Engine(model, block_size=4)

    def record(compute: object) -> Callable[[], torch.Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    record_at_once(engine, monkeypatch, record)
    check(engine, plain(model), Plan(engine, seed=3, prompts=(5,)), 3)
    assert [r.message for r in caplog.records if "cannot be recorded" in r.message] != []
    assert len(caplog.records) == 1


def test_a_store_that_grows_is_recorded_anew(
    plain: Copy, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("qwen2").to(device)
    engine = Engine(model, block_size=4)
    record_at_once(engine, monkeypatch, lambda compute: compute)
    store, oracle = engine.new_store(), plain(model)
    none = np.zeros(0, np.int32)
    tokens = [5, 6, 7, 8, 9, 10, 11]
    sizes = set()
    for at, token in enumerate(tokens):
        one = np.array([at], np.int32)
        batch = Batch(
            tokens=np.array([token], np.int32),
            positions=one,
            rows=one * 0,
            slots=4 + one,
            segments=np.array([[4, at]], np.int32)[: min(at, 1)],
            contexts=np.zeros((1, min(at, 1)), np.int32),
            block_tables=np.zeros((1, 0), np.int32),
            lengths=np.ones(1, np.int32),
            outputs=one * 0,
            few_outputs=none,
            few_ids=none,
            copies=np.zeros((0, 3), np.int32),
            blocks=2 + at // 4,
        )
        assert_close(engine.forward(store, batch)[0][0], recomputed(oracle, tokens[: at + 1])[-1])
        sizes.add(store.pools[0][0].shape[1])
    assert len(sizes) > 1
    graphs = engine._runner._graphs
    assert graphs is not None and list(graphs._kept) == [store.layout]  # what went before has gone
    del store
    gc.collect()
    assert not graphs._kept
