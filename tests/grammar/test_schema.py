"""One JSON value by its schema: a value is accepted exactly where the jsonschema package accepts it."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from typing import Any

import jsonschema
import pytest

from toolprm_decode.grammar import CallGrammar

from .cases import small_tokenizer

NODE: dict[str, Any] = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}, "all": {"$ref": "#/$defs/nodes"}},
    "required": ["value"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "anything": True,
    "an empty schema": {},
    "recursion": {
        "$ref": "#/$defs/node",
        "$defs": {"node": NODE, "nodes": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}},
    },
    "recursion beside other keywords": {
        "type": "object",
        "properties": {
            "a": {"$ref": "#", "type": "object", "minProperties": 1},
            "b": {"$ref": "#", "required": ["a"]},
        },
        "maxProperties": 2,
    },
    "recursion through the root": {
        "anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]
    },
    "an anchor": {
        "properties": {"a": {"$ref": "#here"}},
        "$defs": {"x": {"$anchor": "here", "type": ["string", "null"]}},
    },
    "a pointer with escapes": {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"enum": ["x", 1]}}},
    "prefix items": {
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"type": "string"}],
        "items": {"type": "null"},
    },
    "prefix items only": {
        "prefixItems": [{"const": 1}, {"type": "boolean"}],
        "items": False,
        "minItems": 1,
        "type": "array",
    },
    "items of draft 7": {"type": "array", "items": [{"type": "integer"}, {"type": "string"}], "additionalItems": False},
    "a word or a string": {"anyOf": [{"enum": ["red", "redder"]}, {"type": "string", "minLength": 6}, {"const": "r"}]},
    "an integer or a number": {"anyOf": [{"type": "integer", "maximum": 3}, {"type": "number", "minimum": 2.5}]},
    "objects that share keys": {
        "anyOf": [
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {}},
                "required": ["a"],
                "additionalProperties": False,
            },
            {"type": "object", "properties": {"a": {"type": "string"}, "c": {"type": "null"}}, "required": ["c"]},
            {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 2},
        ]
    },
    "a list of types": {"type": ["integer", "null", "array", "string"], "maximum": 5, "maxItems": 1, "maxLength": 2},
    "nothing said about the type": {
        "maximum": 5,
        "maxItems": 1,
        "maxLength": 2,
        "required": ["a"],
        "pattern": "^[a-zé]*$",
    },
    "allOf": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 2}, "b": {"type": "string"}}},
            {"properties": {"a": {"maximum": 4}}, "maxProperties": 2},
        ]
    },
    "allOf with references": {
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"$ref": "#/$defs/short"}}, "required": ["b"]}],
        "$defs": {
            "base": {"type": "object", "properties": {"b": {"$ref": "#/$defs/text"}}},
            "text": {"type": "string"},
            "short": {"maxLength": 2},
        },
    },
    "allOf of arrays": {
        "type": "array",
        "allOf": [{"prefixItems": [{"type": "integer"}]}, {"items": {"type": ["integer", "string"]}}, {"minItems": 1}],
    },
    "allOf of patterns": {"type": "string", "allOf": [{"pattern": "a"}, {"pattern": "b$"}, {"maxLength": 4}]},
    "allOf of unions": {
        "allOf": [{"anyOf": [{"type": "string"}, {"type": "integer"}]}, {"anyOf": [{"minimum": 2}, {"const": 1}]}]
    },
    "keywords beside a union": {
        "type": "object",
        "required": ["a"],
        "anyOf": [{"properties": {"a": {"type": "null"}}}, {"minProperties": 2}],
    },
    "oneOf by type": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}, {"type": "null"}]},
    "oneOf by a constant": {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": "x"}, "n": {"type": "integer"}}, "required": ["k"]},
            {
                "type": "object",
                "properties": {"k": {"enum": ["y", "z"]}, "s": {"type": "string"}},
                "required": ["k", "s"],
            },
        ]
    },
    "constants": {
        "enum": ["", "a", 'q"', "é\n", 0, 1.5, -2, 1e300, True, None, [], [1, [True]], {}, {"a": {"b": [0]}, "c": 1}]
    },
    "an enum beside other keywords": {
        "enum": ["a", "abc", 1, 5, None, [1], [1, 2]],
        "type": ["string", "integer", "array"],
        "maxLength": 2,
        "minimum": 3,
        "maxItems": 1,
    },
    "one and true": {
        "properties": {"a": {"const": 1}, "b": {"const": True}, "c": {"enum": [0]}, "d": {"const": False}}
    },
    "integer bounds": {"type": "integer", "minimum": -12, "exclusiveMaximum": 118},
    "number bounds": {"type": "number", "exclusiveMinimum": -1.5, "maximum": 20.25},
    "multiples": {
        "anyOf": [{"type": "integer", "multipleOf": 7}, {"type": "number", "multipleOf": 0.25, "minimum": 0}]
    },
    "lengths": {"type": "string", "minLength": 2, "maxLength": 4},
    "a pattern with lengths": {"type": "string", "pattern": "^(ab|é)+$", "minLength": 2, "maxLength": 5},
    "counts": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    "properties": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "ab": {}, "": {"type": "null"}},
        "required": ["ab"],
        "additionalProperties": {"type": "string"},
    },
    "forbidden properties": {
        "type": "object",
        "properties": {"a": False, "b": {"type": "integer"}},
        "additionalProperties": False,
    },
    "required but not declared": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["b"],
        "additionalProperties": {"type": "string"},
    },
    "counted properties": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "minProperties": 1,
        "maxProperties": 2,
    },
    "many properties": {
        "type": "object",
        "properties": {f"p{i}": {"type": "integer"} for i in range(130)},
        "required": ["p7", "p129"],
        "additionalProperties": False,
    },
    "words without effect": {
        "type": "string",
        "minContains": 2,
        "if": {"maxLength": 1},
        "patternProperties": {},
        "not": False,
        "unknown": 1,
    },
}

_SCALARS: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    5,
    7,
    14,
    117,
    118,
    -12,
    -13,
    2.5,
    1.5,
    -1.5,
    -1.25,
    20.25,
    20.26,
    1.0,
]
_SCALARS += [
    "",
    "a",
    "ab",
    "abc",
    "aab",
    "é",
    "éé",
    "red",
    "redder",
    "reddest",
    "r",
    "x",
    "y",
    "😀😀",
    "😀" * 5,
    'q"',
    "é\n",
]
_KEYS = ["a", "b", "c", "k", "n", "s", "ab", "", "value", "next", "all", "p7", "p129"]


def constants(schema: Any) -> list[Any]:
    """The values that a schema mentions."""
    if isinstance(schema, list):
        return [value for item in schema for value in constants(item)]
    if not isinstance(schema, dict):
        return []
    own = [*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])]
    return own + [value for word, item in schema.items() if word not in ("enum", "const") for value in constants(item)]


def anything(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if kind < 0.2 and depth < 3:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind < 0.4 and depth < 3:
        return {rng.choice(_KEYS): anything(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice(_SCALARS)


def likely(schema: Any, root: Any, rng: random.Random, depth: int = 0) -> Any:
    """A value that satisfies the schema, more often than not."""
    if not isinstance(schema, dict) or depth > 6 or rng.random() < 0.03:
        return anything(rng, 2)
    if "$ref" in schema:
        anchors = {"#here": "#/$defs/x", "#/$defs/a~1b%20c": "#/$defs/a b c"}
        target = root
        for part in anchors.get(schema["$ref"], schema["$ref"])[2:].split("/") if len(schema["$ref"]) > 1 else []:
            target = target.get(part, target.get("a/b c"))
        return likely({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, root, rng, depth + 1)
    for word in ("anyOf", "oneOf"):
        if word in schema and rng.random() < 0.95:
            rest = {k: v for k, v in schema.items() if k != word}
            return likely({**rest, **rng.choice(schema[word])}, root, rng, depth + 1)
    if "allOf" in schema:
        merged: dict[str, Any] = {k: v for k, v in schema.items() if k != "allOf"}
        for member in schema["allOf"]:
            old, new = merged.get("properties", {}), member.get("properties", {})
            properties = {name: {**old.get(name, {}), **new.get(name, {})} for name in {**old, **new}}
            merged = {**merged, **member, **({"properties": properties} if properties else {})}
        return likely(merged, root, rng, depth + 1)
    if "enum" in schema or "const" in schema:
        return rng.choice(schema.get("enum", [schema.get("const")]))
    types = schema.get("type") or rng.choice(["object", "array", "string", "integer"])
    kind = rng.choice(types) if isinstance(types, list) else types
    if kind == "object":
        declared = schema.get("properties", {})
        names = [*schema.get("required", []), *rng.sample(sorted(declared), min(len(declared), rng.randrange(3)))]
        if schema.get("additionalProperties") is not False and rng.random() < 0.5:
            names += rng.sample(_KEYS, rng.randrange(3))
        rng.shuffle(names)
        others = schema.get("additionalProperties", True)
        return {name: likely(declared.get(name, others), root, rng, depth + 1) for name in names}
    if kind == "array":
        prefix, items = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(items, list):
            prefix, items = items, schema.get("additionalItems", True)
        count = rng.randrange(schema.get("minItems", 0), schema.get("maxItems", 3) + 1)
        return [likely(prefix[i] if i < len(prefix) else items, root, rng, depth + 1) for i in range(count)]
    bounds = [schema[word] for word in ("minimum", "maximum") if word in schema]
    if bounds and rng.random() < 0.5:
        return rng.choice(bounds)
    fitting = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}[kind]
    return rng.choice([value for value in _SCALARS if isinstance(value, fitting)] or _SCALARS)


def altered(value: Any, rng: random.Random) -> Any:
    value = copy.deepcopy(value)
    place = value
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if rng.random() < 0.5:
            match rng.randrange(3):
                case 0:
                    place[key] = anything(rng, 2)
                case 1:
                    place.pop(key)
                case _ if isinstance(place, dict):
                    place[rng.choice(_KEYS)] = anything(rng, 2)
                case _:
                    place.append(anything(rng, 2))
            return value
        place = place[key]
    return anything(rng)


@pytest.mark.parametrize("name", SCHEMAS)
def test_values_are_accepted_where_jsonschema_accepts_them(name: str) -> None:
    schema, rng = SCHEMAS[name], random.Random(name)
    is_draft7 = name == "items of draft 7"
    oracle = (jsonschema.Draft7Validator if is_draft7 else jsonschema.Draft202012Validator)(schema)
    grammar = CallGrammar.for_schema(schema, small_tokenizer())
    counts: Counter[bool] = Counter()
    values = [*constants(schema), *_SCALARS, *([] if isinstance(schema, bool) else schema.get("enum", []))]
    for _ in range(250):
        values.append(likely(schema, schema, rng))
        values.append(altered(values[-1], rng))
    for value in values:
        if "pattern" in str(schema) and isinstance(value, str) and value.endswith("\n"):
            continue  # Python's `$` matches before the last line break too
        valid = oracle.is_valid(value)
        for text in {json.dumps(value), json.dumps(value, ensure_ascii=False)}:
            assert grammar.accepts(text) == valid, text
        counts[valid] += 1
    assert counts[True] >= 5, counts
    assert counts[False] >= 5 or name in ("anything", "an empty schema"), counts


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer"}, "5.0"),
        ({"enum": [5]}, "5.0"),
        ({"type": "number"}, "-1.5E+3"),
        ({"type": "number"}, "1e400"),
        ({"type": "string"}, '"\\/\\u00e9\\ud83d\\ude00"'),
        ({"type": "string", "maxLength": 1}, '"\\ud83d\\ude00"'),
        ({"type": "object", "additionalProperties": {}}, '{"\\u0061": 1}'),
    ],
)
def test_other_spellings_that_are_legal(schema: dict[str, Any], text: str) -> None:
    assert CallGrammar.for_schema(schema, small_tokenizer()).accepts(text)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer"}, "05"),
        ({"type": "number"}, "1."),
        ({"type": "number"}, "NaN"),
        ({"type": "string"}, '"\\ud83d"'),
        ({"type": "string"}, '"\n"'),
        ({"type": "string"}, "'a'"),
        ({"type": "array"}, "[1,2]"),
        ({"type": "array"}, "[1, ]"),
        ({"type": "object"}, '{"a":1}'),
        ({"properties": {"a": {"type": "integer"}}}, '{"\\u0061": "x"}'),
        ({"properties": {"a": {"type": "integer"}}, "type": "object"}, '{"a": 1, "a": 2}'),
        ({"properties": {"éñ": {"type": "integer"}}, "type": "object"}, '{"\\u00e9ñ": "x"}'),
    ],
)
def test_texts_that_are_not_legal(schema: dict[str, Any], text: str) -> None:
    assert not CallGrammar.for_schema(schema, small_tokenizer()).accepts(text)


def test_values_end_where_they_end() -> None:
    grammar = CallGrammar.for_schema({"type": "integer"}, small_tokenizer())
    matcher = grammar.matcher()
    assert not matcher.is_complete
    for digit in "12":
        matcher.accept(small_tokenizer().convert_tokens_to_ids(digit))
        assert matcher.is_complete
