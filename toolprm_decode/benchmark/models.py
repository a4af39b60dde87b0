"""Random models of a given shape, and tokenizers for them."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toolprm_decode.errors import RequestError
from toolprm_decode.rewards import DEFAULT_TAGS

VOCABULARY = 151_936
# Tokens of the tokenizer that is made here: as many as Qwen2.5 has, whose file need not be there.
MADE_TOKENS = 151_643


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2 model; tied embeddings, a vocabulary of 151,936."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int

    def __str__(self) -> str:
        return (
            f"Qwen2, {self.layers} layers, {self.hidden} wide, intermediate {self.intermediate}, "
            f"{self.heads}/{self.kv_heads} heads, tied embeddings"
        )


FULL = Shape(24, 896, 4864, 14, 2)
QUICK = Shape(3, 256, 1024, 4, 2)


def random_model(
    shape: Shape,
    tokenizer_size: int,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
    vocabulary: int = VOCABULARY,
) -> Any:
    """A model with weights of standard deviation 0.02, made where it is to be (None: on the CPU), the same for a seed
    and a kind of device."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=max(vocabulary, tokenizer_size),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    device = device or torch.device("cpu")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed % 2**63)
        return Qwen2ForCausalLM(config).eval().to(dtype)


def find_tokenizer(path: str | None) -> tuple[Any, str]:
    """The tokenizer and what it is: the one at path, else $TOOLPRM_DATA/tokenizers/qwen2.5, else one made here.

    Raises TokenizerError where there is none at path, RequestError where it has no end-of-sequence token.
    """
    from transformers import PreTrainedTokenizerFast

    from toolprm_decode.grammar.vocabulary import load_tokenizer

    qwen = Path(os.environ.get("TOOLPRM_DATA", "")) / "tokenizers" / "qwen2.5"
    if path is not None:
        tokenizer, name = load_tokenizer(path), Path(path).name
    elif os.environ.get("TOOLPRM_DATA") and (qwen / "tokenizer.json").is_file():
        tokenizer, name = PreTrainedTokenizerFast.from_pretrained(qwen), "qwen2.5"
    else:
        tokenizer, name = make_tokenizer(), "made by the benchmark"
    if tokenizer.eos_token_id is None:
        raise RequestError(f"the tokenizer {name!r} has no end-of-sequence token: use another one")
    return tokenizer, f"{name}, {len(tokenizer):,} tokens"


def with_tags(tokenizer: Any) -> Any:
    """A copy whose tags of the reward model are one token each, as training adds them."""
    copied = copy.deepcopy(tokenizer)
    copied.add_special_tokens({"additional_special_tokens": list(DEFAULT_TAGS.values())})
    return copied


_TEMPLATE = """
{%- if tools -%}<|im_start|>system
You may call these functions, one JSON schema a line:
{% for tool in tools %}{{ tool | tojson }}
{% endfor -%}
Answer with a JSON list of calls, each with name and arguments.<|im_end|>
{% endif -%}
{%- for message in messages -%}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
""".strip()


def make_tokenizer() -> Any:
    """A byte-level BPE: merges learnt from the benchmark's own texts, then syllables until it is as large as Qwen2.5's.

    Always the same, and made in a second or two.
    """
    import json

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from toolprm_decode.benchmark.workload import REQUESTS, TOOLS

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2_000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator([_TEMPLATE, *(json.dumps(tool) for tool in TOOLS), *REQUESTS] * 2, trainer)
    learnt = json.loads(trained.to_str())["model"]
    vocabulary: dict[str, int] = learnt["vocab"]
    merges = [tuple(merge) for merge in learnt["merges"]]
    for left, right in _syllables():
        if len(vocabulary) == MADE_TOKENS:
            break
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _syllables() -> Iterator[tuple[str, str]]:
    """Pairs to merge, both sides tokens already: syllables, then words of two, plain, capitalised and after a space."""
    consonants, vowels = "bcdfghjklmnprstvwxyz", "aeiou"
    ends = list[str]()
    for first, vowel in itertools.product(consonants, vowels):
        yield first, vowel
        for last in consonants:
            ends.append(first + vowel + last)
            yield first + vowel, last
    starts = ["".join(pair) for pair in itertools.product(consonants, vowels)]
    capitals = [start.capitalize() for start in starts]
    for start, capital in zip(starts, capitals, strict=True):
        yield capital[0], start[1]
        yield "Ġ", start
        yield "Ġ", capital
    for end in ends:
        yield "Ġ", end
        for start in starts[:25]:
            yield start, end
            yield f"Ġ{start}", end
            yield start.capitalize(), end
