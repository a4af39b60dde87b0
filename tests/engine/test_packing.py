"""Linear layers in another layout compute the same, and leave the user's model as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from toolprm_decode.engine import Engine
from toolprm_decode.engine.packing import PackedLinears, packed_linears

from .plans import Plan, assert_close, make, recomputed

Copy = Callable[[PreTrainedModel], PreTrainedModel]
TOKENS = list(range(3, 20))


@pytest.fixture(autouse=True)
def all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr("toolprm_decode.engine.packing.LEAST_WEIGHTS", 1)


def packed(model: PreTrainedModel) -> PackedLinears:
    return packed_linears(model, model.get_output_embeddings())


def test_every_family_computes_the_same(family: str, plain: Copy) -> None:
    model = make(family)
    engine = Engine(model, block_size=4)
    oracle, plan = plain(model), Plan(engine, seed=1)
    for _ in range(4):
        batch, sequences = plan.random_step()
        for row, sequence in zip(plan.forward(batch), sequences, strict=True):
            assert_close(row, recomputed(oracle, sequence)[-1], family)


def test_layers_are_copied_and_given_back() -> None:
    model = make("llama")
    engine = Engine(model)
    assert len(packed(model)) == 3 * 7 and len(packed(model)._packed) == 3 * 7
    seen = []
    handle = model.model.register_forward_pre_hook(
        lambda *_: seen.append(sum("forward" in vars(module) for module in model.modules()))
    )
    engine.logits(TOKENS, [16])
    engine.logits(TOKENS[:2], [1])  # too few rows for it in float32
    handle.remove()
    assert seen == [3 * 7, 0]
    assert not any("forward" in vars(module) for module in model.modules())


def test_weights_that_change_are_copied_again(plain: Copy) -> None:
    model = make("qwen2")
    engine = Engine(model)
    before = engine.logits(TOKENS, [16])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(-3)
    changed = engine.logits(TOKENS, [16])
    assert (changed - before).abs().max() > 0.1
    assert_close(changed, recomputed(plain(model), TOKENS)[[16]])
    model.model.layers[2].mlp.down_proj.weight.data += 0.1
    assert_close(engine.logits(TOKENS, [16]), recomputed(plain(model), TOKENS)[[16]])
    other = make("qwen2", seed=5)
    model.load_state_dict(other.state_dict())
    assert_close(engine.logits(TOKENS, [16]), recomputed(other, TOKENS)[[16]])
    model.model.layers[0].mlp.up_proj.weight.data = torch.zeros_like(model.model.layers[0].mlp.up_proj.weight)
    assert_close(engine.logits(TOKENS, [16]), recomputed(plain(model), TOKENS)[[16]])


def test_bfloat16_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no products in bfloat16")
    model = make("qwen2").bfloat16()
    with_copies = Engine(model).logits(TOKENS, [16])
    monkeypatch.setattr(packed(model), "_layers", [])
    torch.testing.assert_close(Engine(model).logits(TOKENS, [16]), with_copies, atol=0.02, rtol=0.02)


def test_what_is_no_ordinary_layer_is_called_as_it_is() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = make("llama")
    model.model.layers[0].mlp.up_proj.__class__ = Doubled
    model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *args: 3 * args[2])
    expected = recomputed(model, TOKENS)
    engine = Engine(model)
    assert len(packed(model)) == 3 * 7 - 2
    assert_close(engine.logits(TOKENS, [16]), expected[[16]])
    hook = model.model.layers[2].mlp.up_proj.register_forward_hook(lambda *args: 3 * args[2])  # later than the engine
    assert_close(engine.logits(TOKENS, [16]), recomputed(model, TOKENS)[[16]])
    hook.remove()


def test_copies_stay_within_their_memory() -> None:
    model = make("llama")
    size = sum(
        m.weight.numel() * 4 for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.lm_head
    )
    assert len(PackedLinears(model, model.lm_head, size)) == 3 * 7
    assert len(PackedLinears(model, model.lm_head, size - 1)) == 0


def test_engines_on_one_model_share_them() -> None:
    model = make("llama")
    assert Engine(model)._runner._packed is Engine(model)._runner._packed
