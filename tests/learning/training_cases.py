"""A tiny base model, tools and labelled trajectories for tests of the training."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from toolprm_decode import CallGrammar

TOOLS = [
    {
        "name": name,
        "description": f"Sets the {name}.",
        "parameters": {
            "type": "object",
            "properties": {"room": {"enum": ["hall", "attic"]}, "level": {"type": "integer"}},
            "required": ["room"],
        },
    }
    for name in ("lamp", "fan")
]


@lru_cache
def _backend() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [json.dumps(TOOLS), '[{"name": "lamp", "arguments": {"room": "hall", "level": 3}}]', "user: lamp hall"]
    backend.train_from_iterator(texts * 4, trainer)
    return str(backend.to_str())


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE without tags."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_backend()), eos_token="<|end|>")


def model(seed: int = 0, tie: bool = True, **changes: Any) -> LlamaForCausalLM:
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": tie,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = LlamaForCausalLM(LlamaConfig(**(options | changes)))
        with torch.no_grad():
            for parameter in found.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.15)
    return found.eval()


def save_base(folder: Path, seed: int = 0, **changes: Any) -> Path:
    model(seed, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@lru_cache
def _grammar() -> CallGrammar:
    return CallGrammar(TOOLS, tokenizer(), "json-list")


def trajectory(query: str, name: str, gold: dict[str, Any], call: dict[str, Any], count: int) -> dict[str, Any]:
    """A row; the labels are those of one call against one gold call."""
    text = json.dumps([call])
    steps, good = [], True
    for step in _grammar().steps(text):
        if step.kind == "FUNC_NAME":
            good = call["name"] == gold["name"]
        elif step.kind == "ARG_VALUE":
            key = (step.path or "").rpartition("/")[2]
            right = call["name"] == gold["name"] and call["arguments"][key] == gold["arguments"].get(key)
            steps.append({"kind": step.kind, "text": step.text, "path": step.path, "label": "+" if right else "-"})
            good &= right
            continue
        else:
            good = good and call == gold
        steps.append({"kind": step.kind, "text": step.text, "path": step.path, "label": "+" if good else "-"})
    return {
        "id": query,
        "tools": json.dumps(TOOLS),
        "messages": json.dumps([{"role": "user", "content": name}]),
        "gold": json.dumps([gold]),
        "format": "json-list",
        "text": text,
        "count": count,
        "logprob": -1.0,
        "label": "+" if call == gold else "-",
        "steps": steps,
    }


def rows(queries: int, seed: int) -> list[dict[str, Any]]:
    """Some right and some wrong answers to each query."""
    draw = random.Random(seed)
    result = []
    for index in range(queries):
        gold = _call(draw)
        asked = f"{gold['name']} {gold['arguments']['room']} {gold['arguments']['level']}"
        answers = {json.dumps(c): c for c in [gold, *(_call(draw) for _ in range(3))]}
        result += [trajectory(f"q{seed}-{index}", asked, gold, c, draw.randint(1, 4)) for c in answers.values()]
    return result


def many_answers(count: int) -> list[dict[str, Any]]:
    """One query with so many answers that its tree is cut."""
    calls = [{"name": "lamp", "arguments": {"level": level, "room": "hall"}} for level in range(count)]
    return [trajectory("many", "lamp hall 3", calls[3], call, 1 + call["arguments"]["level"] % 3) for call in calls]


def _call(draw: random.Random) -> dict[str, Any]:
    arguments = {"room": draw.choice(["hall", "attic"]), "level": draw.choice([1, 2, 3])}
    return {"name": draw.choice(["lamp", "fan"]), "arguments": arguments}


def write_dataset(folder: Path, train: int = 12, validation: int = 6, test: int = 4) -> Path:
    for number, (split, queries) in enumerate({"train": train, "validation": validation, "test": test}.items()):
        if queries:
            file = folder / "trajectories" / f"{split}-00000.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows(queries, number)), encoding="utf-8")
    return folder
