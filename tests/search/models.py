"""Small random models and tools for tests of the search."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from toolprm_decode import Step, ToolPRM, load_demo
from toolprm_decode.engine import Engine

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


@lru_cache
def tokenizer() -> PreTrainedTokenizerFast:
    return load_demo().tokenizer


@lru_cache
def policy() -> LlamaForCausalLM:
    """A random model with decided opinions."""
    return _decided(load_demo().model, 1)


@lru_cache
def reward() -> ToolPRM:
    """A random reward model whose scores differ widely."""
    return ToolPRM(_decided(load_demo().prm.engine.model, 2), tokenizer())


@lru_cache
def partial_reward() -> ToolPRM:
    """One that judges two kinds of steps, by tags of several tokens."""
    return ToolPRM(
        _decided(load_demo().prm.engine.model, 3), tokenizer(), tags={"ARG_VALUE": " ok? ", "FUNC_FINISH": "!!"}
    )


def judge(prompt: str, steps: list[Step]) -> float:
    """A reward in plain Python, which looks at all that it is given."""
    state = len(prompt)
    for step in steps:
        for byte in f"{step.kind}{step.path}{step.start}:{step.end}{step.text}".encode():
            state = (state * 131 + byte) % 1009
    return state / 1008


def held(engine: Engine) -> int:
    """Prefixes that the engine keeps."""
    return len(engine._store.prefixes)


def _decided(model: Any, seed: int) -> Any:
    model = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3)
    return model
