"""Small random models and tools for tests of the search."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from toolprm_decode import Decoder, Search, Step, ToolPRM
from toolprm_decode.rewards import STEP_KINDS

SWITCH = {
    "name": "switch",
    "parameters": {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "room": {"enum": ["hall", "attic"]}, "level": {"type": "integer"}},
        "required": ["on"],
    },
}
SWAP = {
    "name": "swap",
    "parameters": {"type": "object", "properties": {"tag": {"type": "string", "maxLength": 5}}, "required": []},
}

TOOLS = [SWITCH, SWAP]
PROMPT = "Light in the hall"
QUICK = Search(beams=2, width=4, temperature=1.2, max_tokens=40)


_TEXTS = [
    "What will the weather be like in Oslo over the next three days? Set an alarm for 07:30 and repeat it.",
    '[{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3, "unit": "celsius"}}]',
    '[{"name": "set_alarm", "arguments": {"time": "07:30", "repeat": true}}, {"name": "get_weather"}]',
    "You can call these functions, one JSON schema a line. Answer with the calls that the request asks for.",
]


@lru_cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over a few texts."""
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


def random_model(seed: int = 0) -> LlamaForCausalLM:
    """A model of 0.1M random weights for the tokenizer."""
    # Llama's: transformers loads its tokenizer as it was saved, while other families bring classes of their own.
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer().eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


class Small(NamedTuple):
    """Undecided random models: what they write varies with the seed."""

    model: LlamaForCausalLM
    prm: ToolPRM
    tokenizer: PreTrainedTokenizerFast


def small() -> Small:
    """Fresh copies, the same each time."""
    return Small(random_model(), ToolPRM(random_model(1), tokenizer()), tokenizer())


@lru_cache
def policy() -> LlamaForCausalLM:
    """A random model with decided opinions."""
    return _decided(random_model(), 1)


@lru_cache
def reward() -> ToolPRM:
    """A random reward model whose scores differ widely."""
    return ToolPRM(_decided(random_model(1), 2), tokenizer())


@lru_cache
def partial_reward() -> ToolPRM:
    """One that judges two kinds of steps, by tags of several tokens."""
    return ToolPRM(_decided(random_model(1), 3), tokenizer(), tags={"ARG_VALUE": " ok? ", "FUNC_FINISH": "!!"})


def judge(prompt: str, steps: list[Step]) -> float:
    """A reward in plain Python, which looks at all that it is given."""
    state = len(prompt)
    for step in steps:
        for byte in f"{step.kind}{step.path}{step.start}:{step.end}{step.text}".encode():
            state = (state * 131 + byte) % 1009
    return state / 1008


def decoder(prm: Any = None, **options: Any) -> Decoder:
    """One over the policy, with an empty cache."""
    return Decoder(policy(), prm, tokenizer=tokenizer(), **options)


def held(decoder: Decoder) -> tuple[int, int]:
    """Blocks that requests of the decoder hold."""
    return decoder._scheduler.blocks_in_use


def _decided(model: Any, seed: int) -> Any:
    model = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3)
    return model
