"""A small model and tools made on the spot, to see the decoder at work without any download."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from toolprm_decode.rewards import STEP_KINDS, ToolPRM

TOOLS: list[dict[str, Any]] = [
    {
        "name": "get_weather",
        "description": "The weather forecast for a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 24},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
    {
        "name": "set_alarm",
        "description": "Sets an alarm.",
        "parameters": {
            "type": "object",
            "properties": {
                "time": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
                "repeat": {"type": "boolean"},
            },
            "required": ["time"],
        },
    },
]
REQUEST = "What will the weather be like in Oslo over the next three days?"

_TEXTS = [
    "What will the weather be like in Oslo over the next three days? Set an alarm for 07:30 and repeat it.",
    '[{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3, "unit": "celsius"}}]',
    '[{"name": "set_alarm", "arguments": {"time": "07:30", "repeat": true}}, {"name": "get_weather"}]',
    "You can call these functions, one JSON schema a line. Answer with the calls that the request asks for.",
]


class Demo(NamedTuple):
    """What load_demo() gives: decode(demo.model, demo.prm, demo.tools, demo.request, tokenizer=demo.tokenizer)."""

    model: LlamaForCausalLM
    prm: ToolPRM
    tokenizer: PreTrainedTokenizerFast
    tools: list[dict[str, Any]]
    request: str
    trained: bool


def load_demo(seed: int = 0) -> Demo:
    """A policy and a reward model of 0.1M random weights each: their calls are legal, and mean nothing.

    seed: of the weights.
    """
    tokenizer = _tokenizer()
    policy, judge = (_model(len(tokenizer), seed + i, tokenizer.eos_token_id) for i in range(2))
    return Demo(policy, ToolPRM(judge, tokenizer), tokenizer, TOOLS, REQUEST, trained=False)


def _tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over the demo's own texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|end|>", *(f"<{kind}>" for kind in STEP_KINDS)]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=special[0], additional_special_tokens=special[1:]
    )


def _model(vocabulary: int, seed: int, eos: int) -> LlamaForCausalLM:
    # Llama's: transformers loads its tokenizer as it was saved, while other families bring classes of their own.
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
