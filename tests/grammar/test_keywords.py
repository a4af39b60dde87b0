"""Each keyword, and all of them together at random: what a schema accepts is what the jsonschema package accepts."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import jsonschema
import pytest

from toolprm_decode.errors import ToolSchemaError, UnsupportedSchemaError
from toolprm_decode.grammar import CallGrammar
from toolprm_decode.grammar.automata import Impossible

from . import random_schemas
from .cases import FORMATS, small_tokenizer, tool

VALUES = [(value, json.dumps(value, ensure_ascii=False)) for value in random_schemas.values()]
STRING = {"type": "string"}
KIND = {"properties": {"a": {"const": 1}}, "required": ["a"]}
SCHEMAS: dict[str, Any] = {
    "patterns of keys": {"type": "object", "patternProperties": {"^a": {"type": "integer"}, "b$": {"const": 1}}},
    "patterns beside properties": {
        "properties": {"a": {"type": "integer"}, "é": {}},
        "patternProperties": {"^a": {"minimum": 2}, "b": {"type": "string"}},
        "additionalProperties": False,
    },
    "patterns beside other keys": {"patternProperties": {"^a": True}, "additionalProperties": {"type": "null"}},
    "forbidden patterns": {"type": "object", "patternProperties": {"^a": False}},
    "a pattern of every key": {"patternProperties": {"^": {"type": "string"}}, "additionalProperties": False},
    "a pattern of no key": {"patternProperties": {"a^": {"type": "string"}}, "type": "object"},
    "required by a pattern": {"patternProperties": {"^a": {"type": "string"}}, "required": ["ab"], "type": "object"},
    "conjunctions of patterns": {
        "allOf": [
            {"patternProperties": {"^a": {"type": ["string", "integer"]}}, "additionalProperties": STRING},
            {"properties": {"é": {"const": "a"}}, "patternProperties": {"b$": STRING}, "additionalProperties": {}},
        ]
    },
    "a forbidden property beside others": {"type": "object", "properties": {"a": False}},
    "forbidden in a conjunction": {"allOf": [{"properties": {"a": False}}, {"properties": {"b": {}}}]},
    "names by length": {"type": "object", "propertyNames": {"maxLength": 1}},
    "names by pattern": {"type": "object", "propertyNames": {"pattern": "^a"}, "minProperties": 1},
    "names from a list": {"type": "object", "propertyNames": {"enum": ["a", "é", 1]}, "minProperties": 1},
    "names of unions": {"type": "object", "propertyNames": {"anyOf": [{"const": "a"}, {"pattern": "b"}]}},
    "names of the opposite": {"type": "object", "propertyNames": {"not": {"const": "a"}}},
    "no names": {"type": "object", "propertyNames": False},
    "names beside patterns": {"propertyNames": {"pattern": "^.$"}, "patternProperties": {"^a": {"const": 1}}},
    "dependent required": {"type": "object", "dependentRequired": {"a": ["b"], "b": ["é"]}},
    "dependent schemas": {"dependentSchemas": {"a": {"properties": {"b": False}}, "b": {"maxProperties": 1}}},
    "dependencies": {"dependencies": {"a": ["b"], "b": {"properties": {"a": {"type": "integer"}}}}},
    "not a type": {"not": {"type": ["object", "string", "integer"]}},
    "not an integer": {"type": "number", "not": {"type": "integer"}},
    "not a value": {"not": {"enum": [1, "a", True, None, ["a"], {"a": 1}]}},
    "not a property": {"not": KIND},
    "not only these": {"type": "object", "not": {"properties": {"a": {}}, "additionalProperties": False}},
    "not bounds": {"type": "number", "not": {"minimum": 1, "exclusiveMaximum": 3}},
    "not a multiple": {"type": "integer", "not": {"multipleOf": 2}},
    "not a pattern": {"type": "string", "not": {"pattern": "^a"}},
    "not a length": {"type": "string", "not": {"minLength": 1, "maxLength": 2}},
    "not all items": {"type": "array", "not": {"items": {"type": "integer"}}},
    "not contained": {"type": "array", "not": {"contains": {"const": "a"}}},
    "not a count": {"type": ["array", "object"], "not": {"minItems": 1, "maxItems": 2, "minProperties": 1}},
    "not a union": {"not": {"anyOf": [{"type": "object"}, {"type": "string", "maxLength": 1}]}},
    "not a conjunction": {"not": {"allOf": [{"type": "string"}, {"maxLength": 1}]}},
    "not exactly one": {"type": "string", "not": {"oneOf": [{"maxLength": 1}, {"pattern": "^a"}]}},
    "twice not": {"not": {"not": {"type": "string"}}},
    "not a reference": {"not": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": ["object", "array"], "maxItems": 1}}},
    "if": {"if": {"type": "string"}, "then": {"maxLength": 1}},
    "if and else": {"if": KIND, "then": {"required": ["b"]}, "else": {"maxProperties": 1}},
    "if not": {"type": "integer", "if": {"minimum": 2}, "else": {"const": 0}},
    "oneOf of bounds": {"type": "number", "oneOf": [{"minimum": 1}, {"maximum": 2}]},
    "oneOf of multiples": {"type": "integer", "oneOf": [{"multipleOf": 2}, {"multipleOf": 3}]},
    "oneOf of lengths": {"oneOf": [{"type": "string", "maxLength": 1}, {"type": "string", "minLength": 2}]},
    "oneOf of patterns": {"type": "string", "oneOf": [{"pattern": "^a"}, {"pattern": "b$"}]},
    "oneOf of required": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}, {"required": ["é"]}]},
    "oneOf of objects": {"oneOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": STRING}}]},
    "contains": {"type": "array", "contains": {"type": "integer"}},
    "contains some": {"contains": {"type": "integer"}, "minContains": 2, "maxItems": 3, "type": "array"},
    "contains few": {"contains": {"type": "string"}, "maxContains": 1},
    "contains none": {"contains": {"type": "string"}, "minContains": 0, "maxContains": 0},
    "contains both": {"allOf": [{"contains": {"const": 1}}, {"contains": {"type": "string"}}], "type": "array"},
    "contains behind a prefix": {"prefixItems": [{"type": "string"}], "items": {}, "contains": {"const": "a"}},
    "unique values": {"type": "array", "items": {"enum": ["a", "b", "ab"]}, "uniqueItems": True},
    "unique mixed values": {"items": {"enum": [1, 1.0, 2, "a", None, [1]]}, "uniqueItems": True, "type": "array"},
    "unique booleans": {"type": "array", "items": {"type": ["boolean", "null"]}, "uniqueItems": True, "minItems": 1},
    "unique few integers": {
        "type": "array",
        "items": {"type": "integer", "minimum": 1, "maximum": 3},
        "uniqueItems": True,
        "contains": {"const": 2},
    },
    "unique by type": {"prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "uniqueItems": True},
    "one unique item": {"type": "array", "maxItems": 1, "uniqueItems": True},
    "unevaluated properties": {
        "allOf": [{"properties": {"a": {}}}, {"$ref": "#/$defs/b"}],
        "unevaluatedProperties": False,
        "$defs": {"b": {"patternProperties": {"b$": True}}},
    },
    "unevaluated by branches": {
        "anyOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"properties": {"b": {}}}],
        "unevaluatedProperties": {"type": "string"},
    },
    "unevaluated by a condition": {
        "if": KIND,
        "then": {"properties": {"b": {}}},
        "else": {"properties": {"é": {}}},
        "unevaluatedProperties": False,
    },
    "unevaluated items": {
        "prefixItems": [{}],
        "anyOf": [{"prefixItems": [True, {"const": "a"}]}, {"contains": {"const": 2}}],
        "unevaluatedItems": False,
    },
    "identities": {
        "$id": "https://example.com/root",
        "properties": {"a": {"$ref": "part#name"}, "b": {"$ref": "/part#/$defs/c"}},
        "$defs": {
            "x": {"$id": "part", "$defs": {"b": {"$anchor": "name", "type": "integer"}, "c": {"type": "string"}}},
        },
    },
    "anchors of a URN": {
        "$id": "urn:uuid:deadbeef-1234-ff00-00ff-4321feebdaed",
        "properties": {"a": {"$ref": "urn:uuid:deadbeef-1234-ff00-00ff-4321feebdaed#name"}},
        "dependencies": {},
        "definitions": {"x": {"$id": "#name", "type": "integer"}},
    },
    "a dynamic reference": {
        "$dynamicAnchor": "node",
        "type": ["object", "integer"],
        "additionalProperties": {"$dynamicRef": "#node"},
    },
    "formats together": {"type": "string", "allOf": [{"format": "date"}, {"format": "email"}]},
}


def compiled(schema: Any) -> CallGrammar | None:
    """The grammar; None where no value is legal."""
    try:
        return CallGrammar.for_schema(schema, small_tokenizer())
    except Impossible:
        return None


def wrong(schema: Any) -> tuple[list[str], Counter[bool]]:
    """The values on which the grammar and jsonschema differ, and how many values are valid and not."""
    oracle = (jsonschema.Draft7Validator if "dependencies" in schema else jsonschema.Draft202012Validator)(schema)
    grammar = compiled(schema)
    found, counts = [], Counter[bool]()
    for value, text in VALUES:
        valid = oracle.is_valid(value)
        counts[valid] += 1
        if (grammar is not None and grammar.accepts(text)) != valid:
            found.append(f"{text} is {'valid' if valid else 'invalid'}")
    return found, counts


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name != "formats together"])
def test_keywords(name: str) -> None:
    found, counts = wrong(SCHEMAS[name])
    assert not found
    assert counts[True] and counts[False]


def test_two_formats_hold_together() -> None:
    assert compiled(SCHEMAS["formats together"]) is None
    both = compiled({"allOf": [{"format": "ipv4"}, {"format": "hostname"}], "type": "string"})
    assert both is not None and both.accepts('"1.2.3.4"') and not both.accepts('"a.b"')


@pytest.mark.parametrize("seed", range(20))
def test_all_keywords_at_random(seed: int) -> None:
    enforced = 0
    for n in range(10):
        schema = random_schemas.document(random.Random(seed * 1_000 + n))
        try:
            found, _ = wrong(schema) if isinstance(schema, dict) else ([], None)
        except UnsupportedSchemaError:
            continue
        enforced += 1
        assert not found, (schema, found)
    assert enforced >= 5


@pytest.mark.parametrize("seed", range(10))
def test_a_lenient_grammar_refuses_nothing_valid(seed: int) -> None:
    for n in range(25):
        schema = random_schemas.document(random.Random(seed * 1_000 + 500 + n))
        if not isinstance(schema, dict):
            continue
        try:
            grammar = CallGrammar.for_schema(schema, small_tokenizer(), strict=False)
        except Impossible:
            continue
        oracle = jsonschema.Draft202012Validator(schema)
        for value, text in VALUES:
            accepted, valid = grammar.accepts(text), oracle.is_valid(value)
            assert accepted == valid or (accepted and grammar.warnings), (schema, text, grammar.warnings)


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "pythonic"])
def test_keywords_of_tools(format: str) -> None:
    parameters = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": STRING},
        "patternProperties": {"^x-": {"type": "integer"}},
        "dependentRequired": {"a": ["b"]},
        "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
        "then": {"properties": {"b": {"maxLength": 1}}},
    }
    grammar = CallGrammar([tool(parameters)], small_tokenizer(), format)
    assert grammar.format is not None
    for arguments, legal in (
        ({"b": "xyz"}, True),
        ({"a": 2, "b": "xyz", "x-1": 5}, True),
        ({"x-1": "5"}, False),
        ({"a": 2}, False),
        ({"a": 1, "b": "x"}, True),
        ({"a": 1, "b": "xyz"}, False),
        ({"c": 1}, False),  # the tool declares what it takes
    ):
        assert grammar.accepts(grammar.format.render([{"name": "f", "arguments": arguments}])) == legal, arguments


def test_python_literals_keep_to_patterns() -> None:
    inner = {"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": False}
    grammar = CallGrammar([tool({"type": "object", "properties": {"p": inner}})], small_tokenizer(), "pythonic")
    assert grammar.accepts("[f(p={'ab': 1, \"a\": 2})]")
    assert not grammar.accepts("[f(p={'ab': 'x'})]")
    assert not grammar.accepts("[f(p={'b': 1})]")


@pytest.mark.parametrize("text", ['{"\\u0061": "x"}', '{"\\u0062": 1}', '"\\u0061"', '{"a": 1, "a": 1}'])
def test_other_spellings_are_no_way_round(text: str) -> None:
    schema = {
        "type": ["object", "string"],
        "properties": {"b": False, "a": {"type": "integer"}},
        "not": {"const": "a"},
        "patternProperties": {"^a": {"type": "integer"}},
    }
    grammar = compiled(schema)
    assert grammar is not None
    assert not grammar.accepts(text)
    assert grammar.accepts('{"c": "x", "a": 1, "aa": 2}') and grammar.accepts('"b"')


def test_impossible_properties_are_forbidden_ones() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 2, "maximum": 1}}}
    found, counts = wrong(schema)
    assert not found and counts[True]
    with pytest.raises(ToolSchemaError):
        CallGrammar.for_schema({**schema, "required": ["a"]}, small_tokenizer())


IMPOSSIBLE: dict[str, Any] = {
    "a conjunction": {"allOf": [False]},
    "a reference": {"$ref": "#/$defs/nothing"},
    "alternatives": {"anyOf": [False, {"allOf": [False]}]},
    "a required member": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "endless": {"$ref": "#/$defs/endless"},
}
ENDLESS = {"type": "object", "properties": {"a": {"$ref": "#/$defs/endless"}}, "required": ["a"]}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_parts_are_left_out(name: str) -> None:
    """Where a part has no value, values without it are legal."""
    nothing = IMPOSSIBLE[name]
    around: list[Any] = [
        {"type": "object", "properties": {"a": nothing}},
        {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": nothing}, "required": ["b"]}}},
        {"type": "object", "additionalProperties": nothing},
        {"type": "object", "patternProperties": {"^a": nothing}},
        {"type": "object", "propertyNames": nothing},
        {"type": "object", "properties": {"a": {}}, "unevaluatedProperties": nothing},
        {"dependentSchemas": {"a": nothing}},
        {"type": "array", "items": nothing},
        {"type": "array", "prefixItems": [True, nothing]},
        {"type": "array", "contains": nothing, "minContains": 0},
        {"anyOf": [nothing, {"type": "integer"}]},
        {"oneOf": [nothing, {"type": "integer"}]},
        {"not": nothing},
        {"if": nothing, "then": False, "else": {"type": "integer"}},
    ]
    for schema in around:
        found, counts = wrong({**schema, "$defs": {"nothing": False, "endless": ENDLESS}})
        assert not found and counts[True], schema
    for schema in (
        {"type": "object", "properties": {"a": nothing}, "required": ["a"]},
        {"type": "array", "items": nothing, "minItems": 1},
        {"type": "array", "contains": nothing},
        {"anyOf": [nothing]},
    ):
        assert compiled({**schema, "$defs": {"nothing": False, "endless": ENDLESS}}) is None, schema


def test_nullable() -> None:
    grammar = compiled({"type": "string", "nullable": True})
    assert grammar is not None
    assert grammar.accepts("null") and grammar.accepts('"a"') and not grammar.accepts("1")
    strict = compiled({"allOf": [{"type": "string", "nullable": True}, {"type": "string"}]})
    assert strict is not None and not strict.accepts("null")
