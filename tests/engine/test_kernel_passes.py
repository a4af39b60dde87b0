"""Whole models under the kernels, as they are and through fixed buffers; on a CPU by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable

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


def check(engine: Engine, oracle: PreTrainedModel, plan: Plan, steps: int) -> None:
    for _ in range(steps):
        batch, sequences = plan.random_step()
        logits = plan.forward(batch)
        for row, sequence in zip(logits, sequences, strict=True):
            assert_close(row, recomputed(oracle, sequence)[-1])


@pytest.mark.parametrize("some", SOME)
def test_families_equal_full_recomputation(some: str, plain: Copy) -> None:
    model = make(some)
    engine = Engine(model, block_size=4)
    check(engine, plain(model), Plan(engine, seed=1, prompts=(7, 4)), 3)


@pytest.mark.parametrize("some", ["qwen2", "gemma2"])
def test_recorded_passes_equal_full_recomputation(some: str, plain: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded runs again on the same buffers: here as it is, on a GPU as a graph."""
    monkeypatch.setattr("toolprm_decode.engine.graphs.TIMES", 1)
    model = make(some)
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

    engine._runner.record = record
    check(engine, plain(model), Plan(engine, seed=2, prompts=(7, 4)), 6)
    assert replayed > recorded > 0


def test_a_model_that_cannot_be_recorded_runs_as_it_is(
    plain: Copy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("toolprm_decode.engine.graphs.TIMES", 1)
    model = make("qwen2")
    engine = Engine(model, block_size=4)

    def record(compute: object) -> Callable[[], torch.Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    engine._runner.record = record
    check(engine, plain(model), Plan(engine, seed=3, prompts=(5,)), 3)
    assert [r.message for r in caplog.records if "cannot be recorded" in r.message] != []
    assert len(caplog.records) == 1


def test_a_store_that_grows_is_recorded_anew(plain: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolprm_decode.engine.graphs.TIMES", 1)
    model = make("qwen2")
    engine = Engine(model, block_size=4)
    engine._runner.record = lambda compute: compute
    store, oracle = engine.new_store(), plain(model)
    none = np.zeros(0, np.int32)
    tokens = [5, 6, 7, 8, 9, 10, 11]
    layouts = set()
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
        layouts.add(store.layout)
    assert len(layouts) > 1
