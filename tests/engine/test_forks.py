"""Forked rows over shared prefixes give the logits of full recomputation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from toolprm_decode.engine import Engine

from .plans import VOCABULARY, Plan, assert_close, make, recomputed

torch.set_num_threads(1)
Copy = Callable[[PreTrainedModel], PreTrainedModel]


def check(engine: Engine, oracle: PreTrainedModel, plan: Plan, steps: int, note: str) -> None:
    for step in range(steps):
        ids = None if step % 2 else plan.random.permutation(VOCABULARY)[:7].tolist()
        batch, sequences = plan.random_step(ids)
        logits = plan.forward(batch)
        assert logits.dtype == torch.float32
        expected = [recomputed(oracle, sequence)[-1] for sequence in sequences]
        full = torch.stack(expected) if expected else torch.empty(0, VOCABULARY)
        assert_close(logits, full if ids is None else full[:, ids], f"{note}, step {step}")


def test_every_family_equals_full_recomputation(family: str, plain: Copy) -> None:
    model = make(family)
    engine = Engine(model, block_size=4)
    check(engine, plain(model), Plan(engine, seed=1), 7, family)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), block_size=st.integers(1, 5), family=st.sampled_from(["qwen2", "mistral-window"]))
def test_any_plan_equals_full_recomputation(seed: int, block_size: int, family: str) -> None:
    model = make(family)
    engine = Engine(model, block_size=block_size)
    lengths = tuple(np.random.default_rng(seed).integers(0, 20, 3).tolist())
    check(engine, model, Plan(engine, seed, lengths), 5, f"seed {seed}, prefixes {lengths}")


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2", "gpt-oss", "deepseek-v3"])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_a_prefix_is_the_same_in_any_chunks(family: str, chunk: int, plain: Copy) -> None:
    model = make(family)
    engine, tokens = Engine(model), list(range(3, 20))
    logits = engine.logits(tokens, range(len(tokens)), chunk=chunk)
    assert_close(logits, recomputed(plain(model), tokens))
    assert_close(engine.logits(tokens, [2, 16], [5, 9], chunk), logits[[2, 16]][:, [5, 9]])


def test_only_an_untouched_slot_gives_the_right_logits(plain: Copy) -> None:
    model = make("llama")
    engine = Engine(model, block_size=4)
    plan = Plan(engine, seed=3, prompts=(5,))
    plan.add(0)
    plan.forward(plan.step([0], [3])[0])
    plan.fork(0)
    with torch.inference_mode():
        for keys, _ in plan.store.pools.values():
            keys[:, plan.rows[0][2][0] * 4 + 1].neg_()
    batch, sequences = plan.step([0, 1], [2, 2])
    expected = torch.stack([recomputed(plain(model), sequence)[-1] for sequence in sequences])
    with pytest.raises(AssertionError, match="off by"):
        assert_close(plan.forward(batch), expected)


def test_a_pass_without_tokens_still_copies(plain: Copy) -> None:
    model = make("llama")
    engine = Engine(model, block_size=4)
    plan = Plan(engine, seed=3, prompts=(5,))
    plan.add(0)
    batch = plan.step([0], [3])[0]
    plan.forward(batch)
    plan.fork(0)
    copying = plan.batch(plan.columns(), [], [], [])
    assert len(copying.copies) and plan.forward(copying).shape == (0, VOCABULARY)
    batch, sequences = plan.step([1], [2])
    expected = [recomputed(plain(model), sequence)[-1] for sequence in sequences]
    assert_close(plan.forward(batch), torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_stay_near_float32(dtype: torch.dtype) -> None:
    model = make("qwen2").to(dtype)
    engine, oracle = Engine(model, block_size=4), make("qwen2")
    oracle.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    plan = Plan(engine, seed=5)
    for _ in range(4):
        batch, sequences = plan.random_step()
        expected = [recomputed(oracle, sequence)[-1] for sequence in sequences]
        if expected:
            tolerance = 1e-4 if dtype is torch.float64 else 0.06
            assert_close(plan.forward(batch), torch.stack(expected), tolerance=tolerance)
        else:
            plan.forward(batch)


def test_batching_does_not_change_a_row() -> None:
    model = make("qwen3")
    together, alone = Engine(model, block_size=4), Engine(model, block_size=4)
    plan, single = Plan(together, seed=7, prompts=(6, 3)), Plan(alone, seed=7, prompts=(6, 3))
    for prefix in (0, 1, 1):
        plan.add(prefix)
    batch, sequences = plan.step([0, 1, 2], [2, 1, 3])
    rows = plan.forward(batch)
    for index, sequence in enumerate(sequences):
        assert_close(alone.logits(sequence, [len(sequence) - 1])[0], rows[index])
    assert single.prompts == plan.prompts
