"""Models that the attention cannot run are refused by name, with the reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.models.llama import modeling_llama

from toolprm_decode.engine import Engine
from toolprm_decode.errors import ModelNotSupported

from .plans import COMMON, GPT2, VOCABULARY, assert_close, make, recomputed

SMALL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
QWEN3_NEXT: dict[str, Any] = {
    **COMMON,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_experts": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
REFUSED: dict[str, tuple[Callable[[], hf.PreTrainedConfig], str]] = {
    "Bloom": (lambda: hf.BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=VOCABULARY), "interface"),
    "Falcon": (lambda: hf.FalconConfig(**SMALL), "interface"),
    "Mpt": (lambda: hf.MptConfig(d_model=64, n_layers=2, n_heads=4, vocab_size=VOCABULARY), "interface"),
    "GPTJ": (lambda: hf.GPTJConfig(**GPT2, rotary_dim=8), "interface"),
    "CodeGen": (lambda: hf.CodeGenConfig(**GPT2, rotary_dim=8), "interface"),
    "Mamba": (lambda: hf.MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=VOCABULARY), "linear_attention"),
    "Qwen3Next": (lambda: hf.Qwen3NextConfig(**QWEN3_NEXT), "linear_attention"),
    "Lfm2": (lambda: hf.Lfm2Config(**SMALL, num_key_value_heads=2, layer_types=["conv", "full_attention"]), "conv"),
    "Llama4": (
        lambda: hf.Llama4TextConfig(**COMMON, head_dim=16, num_local_experts=2, num_experts_per_tok=1),
        "chunked_attention",
    ),
    "DiffLlama": (lambda: hf.DiffLlamaConfig(**COMMON), "more than once"),
    "Roberta": (lambda: hf.RobertaConfig(**SMALL, intermediate_size=64), "mask is another one"),
    "Phimoe": (lambda: hf.PhimoeConfig(**COMMON, sliding_window=9, num_local_experts=2), "mask is another one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_attention_does_not_cover_is_refused_by_name(name: str) -> None:
    config, reason = REFUSED[name]
    model = hf.AutoModelForCausalLM.from_config(config()).eval()
    if reason == "interface" and callable(getattr(model, "_can_set_attn_implementation", None)):
        # transformers moves one model after another to its interface: those that it has moved must be right.
        if model._can_set_attn_implementation():
            tokens = list(range(3, 20))
            assert_close(Engine(model).logits(tokens, [16], chunk=5), recomputed(model, tokens)[[16]])
            return
    with pytest.raises(ModelNotSupported, match=rf"^{name}.*{reason}.*use a ") as caught:
        Engine(model)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_causal_head_is_refused() -> None:
    config = hf.T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=60)
    with pytest.raises(ModelNotSupported, match=r"T5ForConditionalGeneration.*encoder-decoder"):
        Engine(hf.T5ForConditionalGeneration(config))
    with pytest.raises(ModelNotSupported, match=r"LlamaModel.*no causal language-model head"):
        Engine(hf.LlamaModel(hf.LlamaConfig(**COMMON)))
    with pytest.raises(ModelNotSupported, match=r"Linear is not a transformers PreTrainedModel"):
        Engine(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_a_state_between_tokens_that_no_configuration_names_is_refused() -> None:
    class Mixing(modeling_llama.LlamaMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + 0.5 * x.roll(1, 1))

    model = make("llama")
    model.model.layers[1].mlp.__class__ = Mixing
    with pytest.raises(ModelNotSupported, match=r"LlamaForCausalLM.*forked rows differ"):
        Engine(model)


def test_a_layer_that_skips_the_interface_is_refused() -> None:
    class Constant(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
            return hidden_states, None

    model = make("llama")
    model.model.layers[1].self_attn = Constant()
    with pytest.raises(ModelNotSupported, match=r"LlamaForCausalLM.*only 2 of its 3 layers attend"):
        Engine(model)


@pytest.mark.parametrize("window", [None, 5])
def test_a_window_that_only_the_mask_knows_is_refused(window: int | None) -> None:
    config = hf.MistralConfig(**COMMON, sliding_window=4096)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    Engine(model)
    for layer in model.model.layers:
        layer.self_attn.config = copy.deepcopy(config)
        layer.self_attn.config.sliding_window = window
    with pytest.raises(ModelNotSupported, match=r"MistralForCausalLM.*mask is another one"):
        Engine(model)
