"""Schemas, tools and a small tokenizer that the grammar's tests share."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FORMATS = ("json-list", "hammer", "hermes", "llama-json", "pythonic")
STOP = "<|end|>"

# Tokens that end a value and more with it, as the large vocabularies have them; each is learnt from its own text.
_JOINED = (
    '"}',
    '"}}',
    '"}]',
    "},",
    '": "',
    '", "',
    '": ',
    "}}",
    "}]",
    '"]',
    "[{",
    "{}",
    "[]",
    '{"',
    '""',
    ", ",
    "': '",
    "')]",
)


@lru_cache(maxsize=1)
def small_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 600 tokens, all bytes among them, with tokens such as `"}}` and `": "`."""
    words = random.Random(0)
    texts = []
    for _ in range(400):
        arguments: dict[str, Any] = {
            "city": words.choice(["Paris", "Zürich", "北京", "São Paulo"]),
            "days": words.randrange(100),
            "tags": [words.choice(["red", "green", "deep blue"]) for _ in range(words.randrange(3))],
            "price": words.random() * 100,
            "ok": words.random() < 0.5,
            "inner": {"note": 'a "quoted" word\n' + "😀" * words.randrange(2), "none": None},
        }
        calls = [{"name": words.choice(["get_weather", "math.add"]), "arguments": arguments}]
        texts += [json.dumps(calls), json.dumps(calls, ensure_ascii=False), repr(arguments)]
    tokenizer = Tokenizer(models.BPE())
    # Without a pre-tokenizer that splits, merges run across quotes and brackets.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(r"[A-Za-z0-9\.]+|[^A-Za-z0-9\.]+", "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[STOP], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *(piece for piece in _JOINED for _ in range(5000))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=STOP)


def tool(parameters: dict[str, Any], name: str = "f") -> dict[str, Any]:
    """A tool of these parameters."""
    return {"name": name, "description": "", "parameters": parameters}


def _object(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required or [], **more}


# One theme a schema; together they use every kind of instruction of the automaton.
PARAMETERS: dict[str, dict[str, Any]] = {
    "nothing": _object({}),
    "strings": _object({"city": {"type": "string"}, "city_code": {"type": "string"}}, ["city"]),
    "enums": _object(
        {
            "unit": {"enum": ["celsius", "cel", "fahrenheit", "°C", 'a "b"']},
            "mixed": {"enum": [1, 12, 1.5, -3, True, None, "1", [1, 2], {"a": {"b": 1}}]},
            "fixed": {"const": "x"},
        },
        ["unit", "mixed", "fixed"],
    ),
    "numbers": _object(
        {
            "days": {"type": "integer", "minimum": -3, "maximum": 117},
            "ratio": {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5},
            "any": {"type": "number"},
            "even": {"type": "integer", "multipleOf": 2},
        },
        ["days"],
    ),
    "nested": _object(
        {
            "inner": _object({"a": {"type": "integer"}, "b": _object({"c": {"type": "boolean"}}, ["c"])}, ["b"]),
            "other": _object({"a": {"type": "null"}}),
        }
    ),
    "arrays": _object(
        {
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
            "grid": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}, "minItems": 2}},
            "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "boolean"}], "items": False},
            "head": {
                "type": "array",
                "prefixItems": [{"type": "boolean"}],
                "items": {"type": "integer"},
                "minItems": 2,
            },
        },
        ["tags"],
    ),
    "unions": _object(
        {
            "a": {"anyOf": [{"enum": ["red", "reddish"]}, {"type": "string", "maxLength": 3}, {"type": "integer"}]},
            "b": {"type": ["string", "number", "null", "boolean"]},
            "c": {
                "anyOf": [
                    _object({"kind": {"const": "x"}, "size": {"type": "integer"}}, ["kind"]),
                    _object({"kind": {"const": "xy"}, "name": {"type": "string"}}, ["kind", "name"]),
                    {"type": "array", "items": {"type": "integer"}},
                ]
            },
            "d": {"anyOf": [{"type": "integer"}, {"type": "number"}]},
        }
    ),
    "recursion": {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/node"}},
        "required": ["tree"],
        "$defs": {
            "node": _object(
                {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
                ["value"],
            )
        },
    },
    "free": _object({"anything": {}, "options": {"type": "object"}, "list": {"type": "array"}}),
    "open": _object(
        {"a": {"type": "integer"}, "é\n": {"type": "boolean"}, "": {"type": "null"}},
        ["a"],
        additionalProperties={"type": "integer"},
    ),
    "open object inside": _object(
        {
            "map": _object({"key": {"type": "boolean"}}, ["key"], additionalProperties=True),
            "counts": {
                "type": "object",
                "additionalProperties": {"type": "integer"},
                "minProperties": 1,
                "maxProperties": 2,
            },
        }
    ),
    "counted properties": _object(
        {n: {"type": "boolean"} for n in ("a", "b", "cc", "ccc")}, ["cc"], minProperties=2, maxProperties=3
    ),
    "patterns": _object(
        {
            "date": {"type": "string", "format": "date"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-\\d+$"},
            "part": {"type": "string", "pattern": "é|x/y"},
        }
    ),
    "many properties": _object({f"p{i}": {"type": "integer"} for i in range(70)}, ["p3", "p68", "p69"]),
}
COUNTED: dict[str, dict[str, Any]] = {
    "lengths": _object(
        {
            "short": {"type": "string", "maxLength": 3},
            "long": {"type": "string", "minLength": 2, "maxLength": 40},
            "least": {"type": "string", "minLength": 3},
            "none": {"type": "string", "maxLength": 0},
            "both": {"type": "string", "pattern": "^[a-z]+é?$", "minLength": 2, "maxLength": 4},
        }
    ),
}
