"""What cannot be compiled is refused at once, by an error that says which tool, where in it and which keyword."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from toolprm_decode.errors import (
    BudgetExceeded,
    FormatError,
    RequestError,
    TokenizerError,
    ToolSchemaError,
    UnsupportedSchemaError,
)
from toolprm_decode.grammar import CallGrammar
from toolprm_decode.grammar import schema as schema_module
from toolprm_decode.grammar.vocabulary import token_bytes

from .cases import FORMATS, small_tokenizer, tool

STRING = {"type": "string"}


def nested(depth: int, word: str = "items") -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = (
            {word: [schema]} if word == "anyOf" else {"type": "array" if word == "items" else "object", word: schema}
        )
    return schema


# schema of an argument called "x", pointer inside it, keyword
MALFORMED: dict[str, tuple[Any, str, str | None]] = {
    "a list for a schema": ([], "", None),
    "a string for a schema": ("string", "", None),
    "an unknown type": ({"type": "strnig"}, "", "type"),
    "a number for a type": ({"type": 5}, "", "type"),
    "no types": ({"type": []}, "", "type"),
    "an enum without values": ({"enum": []}, "", "enum"),
    "an enum that is no list": ({"enum": "a"}, "", "enum"),
    "properties that are a list": ({"type": "object", "properties": []}, "", "properties"),
    "an unknown type inside": ({"type": "array", "items": {"type": "strnig"}}, "/items", "type"),
    "required that is a string": ({"type": "object", "properties": {}, "required": "a"}, "", "required"),
    "required and not defined": (
        {"type": "object", "properties": {"a": STRING}, "required": ["b"], "additionalProperties": False},
        "",
        "required",
    ),
    "an empty union": ({"anyOf": []}, "", "anyOf"),
    "a union of no schemas": ({"anyOf": [3]}, "/anyOf/0", None),
    "allOf without a list": ({"allOf": {}}, "", "allOf"),
    "allOf of no schemas": ({"allOf": [3]}, "/allOf/0", None),
    "items that are no schema": ({"type": "array", "items": 3}, "/items", None),
    "additional properties that are no schema": (
        {"type": "object", "additionalProperties": 3},
        "/additionalProperties",
        None,
    ),
    "a negative count": ({"type": "string", "minLength": -1}, "", "minLength"),
    "half a count": ({"type": "array", "maxItems": 1.5}, "", "maxItems"),
    "a bound that is text": ({"type": "integer", "minimum": "3"}, "", "minimum"),
    "a factor of zero": ({"type": "integer", "multipleOf": 0}, "", "multipleOf"),
    "a pattern that is no text": ({"type": "string", "pattern": 3}, "", "pattern"),
    "a reference that is no text": ({"$ref": 3}, "", "$ref"),
    "a reference to nowhere": ({"$ref": "#/$defs/nowhere"}, "", "$ref"),
    "a reference out of the schema": ({"$ref": "https://example.com/schema.json"}, "", "$ref"),
    "keywords of the wrong kinds together": ({"allOf": [{"maxLength": 3}, {"maxLength": "x"}]}, "", None),
}
IMPOSSIBLE: dict[str, tuple[Any, str, str | None]] = {
    "nothing is legal": (False, "", None),
    "contradictory bounds": ({"type": "integer", "minimum": 5, "maximum": 4}, "", "minimum"),
    "no integer between": ({"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 5}, "", "exclusiveMinimum"),
    "contradictory lengths": ({"type": "string", "minLength": 5, "maxLength": 4}, "", "minLength"),
    "contradictory counts": ({"type": "array", "minItems": 5, "maxItems": 4}, "", "minItems"),
    "more items than there are": (
        {"type": "array", "prefixItems": [STRING], "items": False, "minItems": 2},
        "",
        "minItems",
    ),
    "too few properties": (
        {"type": "object", "properties": {"a": STRING}, "additionalProperties": False, "minProperties": 2},
        "",
        "minProperties",
    ),
    "too many required": (
        {"type": "object", "properties": {"a": STRING, "b": STRING}, "required": ["a", "b"], "maxProperties": 1},
        "",
        "maxProperties",
    ),
    "a pattern that nothing matches": ({"type": "string", "pattern": "a^"}, "", "pattern"),
    "a pattern of another length": ({"type": "string", "pattern": "^a{5}$", "maxLength": 4}, "", "maxLength"),
    "an enum outside the bounds": ({"enum": [1, 2], "minimum": 3}, "", "enum"),
    "a required property that nothing satisfies": (
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        "/properties/a",
        None,
    ),
    "no alternative": ({"anyOf": [False, {"type": "integer", "minimum": 5, "maximum": 4}]}, "/anyOf/1", "minimum"),
}
# What has no opposite here: some key that matches, of a value that does not.
PATTERNED: dict[str, Any] = {"type": "object", "patternProperties": {"^x": STRING}}
UNSUPPORTED: dict[str, Any] = {
    "patternProperties": {"type": "object", "patternProperties": {r"(x)\1": STRING}},
    "propertyNames": {"type": "object", "propertyNames": {"allOf": [{"pattern": r"(x)\1"}]}},
    "not": {"not": PATTERNED},
    "if": {"if": PATTERNED, "then": {"required": ["x"]}},
    "contains": {"type": "array", "contains": PATTERNED, "maxContains": 2},
    "unevaluatedProperties": {"type": "object", "if": PATTERNED, "unevaluatedProperties": False},
    "unevaluatedItems": {"oneOf": [{**PATTERNED, "items": {}}, PATTERNED], "unevaluatedItems": False},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "$dynamicRef": {"$dynamicRef": "#node"},
    "$recursiveRef": {"$recursiveRef": "#"},
    "oneOf": {"oneOf": [PATTERNED, {"type": "object", "required": ["x"]}]},
    "pattern": {"type": "string", "pattern": r"(a)\1"},
}


def refusal(schema: Any, *, whole: bool) -> ToolSchemaError:
    """The error for a schema: of an argument of the second of two tools, or of a value."""
    if whole:
        with pytest.raises(ToolSchemaError) as caught:
            CallGrammar.for_schema(schema, small_tokenizer())
    else:
        fine = tool({"type": "object", "properties": {"x": STRING}}, "fine")
        parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
        with pytest.raises(ToolSchemaError) as caught:
            CallGrammar([fine, tool(parameters, "broken")], small_tokenizer())
        assert caught.value.tool == "broken" and "broken" in str(caught.value)
    return caught.value


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", {**MALFORMED, **IMPOSSIBLE})
def test_what_is_malformed_or_impossible(name: str, whole: bool) -> None:
    schema, pointer, keyword = {**MALFORMED, **IMPOSSIBLE}[name]
    error = refusal(schema, whole=whole)
    assert not isinstance(error, UnsupportedSchemaError)
    assert error.keyword == keyword, str(error)
    if whole:
        assert error.pointer == pointer, str(error)
    else:
        assert error.pointer == f"/properties/x{pointer}", str(error)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_what_cannot_be_enforced(keyword: str, whole: bool) -> None:
    error = refusal(UNSUPPORTED[keyword], whole=whole)
    assert isinstance(error, UnsupportedSchemaError)
    assert error.keyword == keyword
    assert error.pointer == ("" if whole else "/properties/x")


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_what_cannot_be_enforced_is_left_out_where_that_is_asked_for(keyword: str, whole: bool) -> None:
    if whole:
        grammar = CallGrammar.for_schema(UNSUPPORTED[keyword], small_tokenizer(), strict=False)
    else:
        parameters = {"type": "object", "properties": {"x": UNSUPPORTED[keyword], "y": {"type": "integer"}}}
        tools = [tool({"type": "object", "properties": {"x": STRING}}, "fine"), tool(parameters, "loose")]
        grammar = CallGrammar(tools, small_tokenizer(), "json-list", strict=False)
        assert not grammar.accepts('[{"name": "loose", "arguments": {"y": "1"}}]')
        assert grammar.accepts('[{"name": "loose", "arguments": {"y": 1}}]')
    assert keyword in {warning.keyword for warning in grammar.warnings}
    if keyword in ("patternProperties", "if", "oneOf", "not"):
        assert len(grammar.warnings) == 1
    for warning in grammar.warnings:
        assert warning.tool == (None if whole else "loose")
        assert warning.pointer.startswith("" if whole else "/properties/x")
        assert warning.keyword in str(warning) and warning.message in str(warning)
    assert len(set(grammar.warnings)) == len(grammar.warnings) <= 2


def test_what_is_enforced_beside_what_is_left_out() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 2}},
        "not": PATTERNED,
        "required": ["a"],
        "oneOf": [PATTERNED, {"required": ["b"]}],
    }
    grammar = CallGrammar.for_schema(schema, small_tokenizer(), strict=False)
    assert {(warning.pointer, warning.keyword) for warning in grammar.warnings} == {
        ("/properties/a", "uniqueItems"),
        ("", "not"),
        ("", "oneOf"),
    }
    assert grammar.accepts('{"a": [1, 1]}')
    for text in ('{"a": [1, 2, 3]}', '{"a": ["1"]}', "{}", '{"a": [], "x1": 1}'):
        assert not grammar.accepts(text), text
    with pytest.raises(ToolSchemaError):  # what is malformed or impossible stays an error
        CallGrammar.for_schema({**schema, "required": "a"}, small_tokenizer(), strict=False)
    assert CallGrammar.for_schema({"type": "string", "unknown": 1}, small_tokenizer(), strict=False).warnings == []


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("keyword", ["patternProperties", "uniqueItems", "if", "not"])
def test_keywords_at_the_root_of_a_tool(keyword: str, format: str) -> None:
    parameters = {"properties": {"a": STRING}, **UNSUPPORTED[keyword], "type": "object"}
    if keyword == "uniqueItems":  # asks for nothing of an object
        CallGrammar([tool(parameters, "f")], small_tokenizer(), format)
        return
    with pytest.raises(UnsupportedSchemaError) as caught:
        CallGrammar([tool(parameters, "f")], small_tokenizer(), format)
    assert (caught.value.tool, caught.value.pointer, caught.value.keyword) == ("f", "", keyword)


CIRCLES: dict[str, dict[str, Any]] = {
    "itself": {"$ref": "#/$defs/a"},
    "in two steps": {"$ref": "#/$defs/b"},
    "beside other keywords": {"$ref": "#/$defs/a", "type": "string"},
    "through allOf": {"allOf": [{"$ref": "#/$defs/a"}]},
    "through anyOf": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]},
    "without an end": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]},
}


@pytest.mark.parametrize("name", CIRCLES)
def test_references_in_circles(name: str) -> None:
    definitions = {"a": CIRCLES[name], "b": {"$ref": "#/$defs/a"}}
    error = refusal({"$ref": "#/$defs/a", "$defs": definitions}, whole=True)
    assert error.keyword in ("$ref", "allOf")
    parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"], "$defs": definitions}
    fine = tool({"type": "object", "properties": {}}, "fine")
    with pytest.raises(ToolSchemaError) as caught:
        CallGrammar([fine, tool(parameters, "broken")], small_tokenizer())
    assert caught.value.tool == "broken"
    assert caught.value.keyword in ("$ref", "allOf")


def test_an_optional_value_that_never_ends_is_never_begun() -> None:
    endless = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}, "b": STRING}, "$defs": {"a": endless}}
    grammar = CallGrammar.for_schema({**schema, "additionalProperties": False}, small_tokenizer())
    assert grammar.accepts('{"b": "x"}')
    matcher = grammar.matcher()
    assert matcher.accept_bytes(b'{"a') is None


# ---------------------------------------------------------------- size


@pytest.mark.parametrize("word", ["items", "anyOf", "additionalProperties"])
def test_schemas_nested_far_too_deep(word: str) -> None:
    assert "deep" in str(refusal(nested(10_000, word), whole=True))
    assert "deep" in str(refusal(nested(10_000, word), whole=False))


def test_deep_constants() -> None:
    value: Any = 1
    for _ in range(10_000):
        value = [value]
    assert "deep" in str(refusal({"const": value}, whole=True))


EXPLODING: dict[str, Any] = {
    "nested counts": {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
    "an exponential automaton": {"type": "string", "pattern": "^.*a.{40}$"},
    "a long counted pattern": {"type": "string", "pattern": "^[a-z]+$", "minLength": 1_000_000},
    "a divisor with many digits": {"type": "number", "multipleOf": 0.123456789},
    "a union of very many": {"anyOf": [{"const": i} for i in range(2500)]},
    "an exclusive union of many": {"oneOf": [{"const": i} for i in range(600)]},
    "an enum of very many objects": {"enum": [{} for i in range(2500)]},
}


def overlapping(depth: int) -> Any:
    """Unions inside unions, of which more than one alternative may hold."""
    schema: Any = {"type": "object", "required": ["x"]}
    for i in range(depth):
        others = [{"type": "object", "required": [f"p{i}"]}, {"properties": {"a": schema}}]
        schema = {"oneOf": [schema, *others]}
    return schema


def alternating(depth: int) -> Any:
    """Unions of an object, one that has it as a member, and a third."""
    schema: Any = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for _ in range(depth):
        others = [{"type": "object", "properties": {name: kind}} for name, kind in (("b", schema), ("c", STRING))]
        schema = {"oneOf": [schema, *others]}
    return schema


def texts(depth: int) -> Any:
    """Unions inside unions, of strings whose lengths overlap."""
    schema: Any = {"type": "integer"}
    for i in range(depth):
        schema = {"oneOf": [schema, {"maximum": 10 * i}, {"type": "string", "minLength": i}]}
    return schema


EXPLODING |= {
    "nineteen patterns of keys": {
        "type": "object",
        "patternProperties": {f"^.{{{i}}}a": {"minimum": i} for i in range(19)},
    },
    "overlapping objects inside each other": alternating(4),
    "overlapping texts inside each other": texts(9),
    "patterns that sort keys in many ways": {
        "type": "object",
        "patternProperties": {f"^.*{letter}.*$": {"minimum": i} for i, letter in enumerate("abcdefgh")},
    },
    "exclusive unions inside each other": overlapping(12),
    "very many contained": {"type": "array", "contains": STRING, "minContains": 1_000},
    "contained in many ways": {
        "type": "array",
        "allOf": [{"contains": {"minimum": i}, "minContains": 5} for i in range(8)],
    },
    "unique among many numbers": {"type": "array", "items": {"enum": list(range(30))}, "uniqueItems": True},
}
MULTIPLYING: dict[str, Any] = {
    "if": {
        "type": "object",
        "allOf": [
            {"if": {"properties": {f"p{i}": {"const": 1}}, "required": [f"p{i}"]}, "then": {"required": [f"q{i}"]}}
            for i in range(14)
        ],
    },
    "dependentRequired": {"type": "object", "dependentRequired": {f"p{i}": [f"q{i}"] for i in range(30)}},
    "dependentSchemas": {"dependentSchemas": {f"p{i}": {"properties": {f"q{i}": STRING}} for i in range(14)}},
    "oneOf": {"oneOf": [{"type": "object", "required": [f"a{i}", f"b{i}"]} for i in range(40)]},
    "not": {"not": {"enum": [{"a": i, "b": i} for i in range(40)]}},
    "unevaluatedProperties": {
        "allOf": [{"anyOf": [{"properties": {f"p{i}{j}": STRING}} for i in range(3)]} for j in range(4)],
        "unevaluatedProperties": False,
    },
}


@pytest.mark.parametrize("keyword", MULTIPLYING)
def test_what_multiplies_is_refused_by_name(keyword: str) -> None:
    with pytest.raises(UnsupportedSchemaError) as caught:
        CallGrammar.for_schema(MULTIPLYING[keyword], small_tokenizer())
    assert (caught.value.keyword, caught.value.pointer) == (keyword, "")
    if keyword == "if":
        return  # without some of them it is still too much for the budget
    lenient = CallGrammar.for_schema(MULTIPLYING[keyword], small_tokenizer(), strict=False)
    assert keyword in {warning.keyword for warning in lenient.warnings}


@pytest.mark.parametrize("name", EXPLODING)
def test_what_explodes_is_out_of_budget(name: str) -> None:
    with pytest.raises(BudgetExceeded):
        CallGrammar.for_schema(EXPLODING[name], small_tokenizer())
    with pytest.raises(BudgetExceeded, match=r"broken.*/properties/x|/properties/x"):
        CallGrammar([tool({"type": "object", "properties": {"x": EXPLODING[name]}}, "broken")], small_tokenizer())


def test_unions_that_multiply() -> None:
    unions = [
        {"anyOf": [{"type": "object", "properties": {f"p{i}": {"type": "integer", "minimum": j}}} for i in range(10)]}
        for j in range(9)
    ]
    with pytest.raises((BudgetExceeded, UnsupportedSchemaError)):
        CallGrammar.for_schema({"allOf": unions}, small_tokenizer())


@pytest.mark.parametrize("word", ["allOf", "anyOf"])
@pytest.mark.parametrize("beside", [{}, {"type": "integer"}])
def test_references_that_double_at_every_step_stay_small(word: str, beside: dict[str, Any]) -> None:
    definitions = {f"d{i}": {**beside, word: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**definitions, "d40": {"type": "integer"}}}
    grammar = CallGrammar.for_schema(schema, small_tokenizer())
    assert grammar.accepts("12") and not grammar.accepts('"12"')


def test_alternatives_that_overlap_without_end() -> None:
    definitions = {
        f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}]}]}
        for i in range(40)
    }
    parameters = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/d0"}, "y": STRING},
        "$defs": {**definitions, "d40": {"type": "integer"}},
    }
    grammar = CallGrammar([tool(parameters)], small_tokenizer(), "json-list")
    assert grammar.accepts('[{"name": "f", "arguments": {"y": ""}}]')
    with pytest.raises(BudgetExceeded, match="overlap"):
        grammar.accepts('[{"name": "f", "arguments": {"x": 1}}]')
    matcher = grammar.matcher()
    matcher.accept_bytes(b'[{"name": "f", "arguments": {"x":')
    with pytest.raises(BudgetExceeded, match="overlap"):
        matcher.accept(small_tokenizer().convert_tokens_to_ids("Ġ"))
    assert matcher.text.endswith('"x":')


def test_recursion_inside_conjunctions_stays_small() -> None:
    members = {
        "left": {"allOf": [{"$ref": "#"}], "description": "as data classes are described"},
        "right": {"allOf": [{"$ref": "#"}]},
        "any": {"type": "object", "anyOf": [{"$ref": "#"}, {"$ref": "#/properties/left"}]},
    }
    schema = {"type": "object", "properties": members, "additionalProperties": False}
    grammar = CallGrammar.for_schema(schema, small_tokenizer())
    assert grammar.accepts('{"left": {"right": {}, "left": {"any": {"left": {}}}}}')
    assert not grammar.accepts('{"left": {"right": {}, "left": {"any": {"left": []}}}}')


def test_branching_references_beside_other_keywords_stay_small() -> None:
    branches = {f"p{i}": {"$ref": "#", "type": "object"} for i in range(6)}
    grammar = CallGrammar.for_schema({"type": "object", "properties": branches}, small_tokenizer())
    assert grammar.accepts('{"p0": {"p5": {"p3": {}}}, "p1": {}}')
    assert not grammar.accepts('{"p0": {"p5": {"p3": []}}}')


def test_huge_counts_cost_nothing() -> None:
    schema = {"type": "array", "items": {"type": "string", "maxLength": 2**31}, "minItems": 10**6}
    matcher = CallGrammar.for_schema(schema, small_tokenizer()).matcher()
    assert matcher.closing_bytes == 2 + 10**6 * 2 + (10**6 - 1) * 2
    grammar = CallGrammar.for_schema({"type": "string", "minLength": 10**6}, small_tokenizer())
    assert not grammar.accepts('"' + "é" * (10**6 - 1) + '"')
    assert grammar.accepts('"' + "é" * 10**6 + '"')


def test_only_what_is_made_of_a_large_document_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_module, "MAX_WORK", 40)
    rows = {f"p{i}": {"type": "array", "items": {"type": "string", "minLength": 1}} for i in range(200)}
    schema = {"type": "object", "properties": rows, "additionalProperties": False}
    grammar = CallGrammar.for_schema(schema, small_tokenizer())
    assert grammar.accepts('{"p7": ["a"]}') and not grammar.accepts('{"p7": [""]}')
    made = [{"allOf": [{"type": "integer"}, {"minimum": i}]} for i in range(41)]  # each one schema more
    some = {**schema, "properties": {**rows, "x": {"type": "array", "prefixItems": made[:40], "items": False}}}
    CallGrammar.for_schema(some, small_tokenizer())
    some["properties"]["x"]["prefixItems"] = made
    with pytest.raises(BudgetExceeded, match="more than 40"):
        CallGrammar.for_schema(some, small_tokenizer())


def test_the_compile_budget() -> None:
    tools = [tool({"type": "object", "properties": {f"p{i}": STRING for i in range(50)}}, f"f{j}") for j in range(50)]
    with pytest.raises(BudgetExceeded, match="max_instructions"):
        CallGrammar(tools, small_tokenizer(), max_instructions=10_000)
    CallGrammar(tools, small_tokenizer(), max_instructions=100_000)


# ---------------------------------------------------------------- everything else


def test_tools() -> None:
    fine = tool({"type": "object", "properties": {}}, "f")
    with pytest.raises(ToolSchemaError, match="two tools") as caught:
        CallGrammar([fine, fine], small_tokenizer())
    assert caught.value.tool == "f"
    with pytest.raises(ToolSchemaError, match="no tool"):
        CallGrammar([], small_tokenizer(), allow_no_call=False)
    for max_calls in (0, -1):
        with pytest.raises(RequestError, match="max_calls"):
            CallGrammar([fine], small_tokenizer(), max_calls=max_calls)
    with pytest.raises(FormatError, match="json-list"):
        CallGrammar([fine], small_tokenizer(), "xml")
    with pytest.raises(ToolSchemaError, match="surrogate"):
        CallGrammar([tool({"type": "object", "properties": {"\ud800": STRING}}, "f")], small_tokenizer())
    with pytest.raises(ToolSchemaError, match="surrogate"):
        CallGrammar([{**fine, "name": "\ud800"}], small_tokenizer())


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"\ud800": STRING}},
        {"required": ["\ud800"]},
        {"enum": ["\ud800"]},
        {"const": {"\ud800": 1}},
        {"const": float("nan")},
        {"enum": [float("inf")]},
        {"const": {1, 2}},
        {"maxLength": float("inf")},
        {"maximum": float("nan")},
        {3: 4},
        {"properties": {3: STRING}},
    ],
    ids=str,
)
def test_what_json_cannot_write(schema: dict[Any, Any]) -> None:
    assert refusal(schema, whole=True).pointer in ("", "/const")


@pytest.mark.parametrize("count", range(3))
def test_no_tools_and_few_calls(count: int) -> None:
    for format in FORMATS:
        empty = CallGrammar([], small_tokenizer(), format)
        none = empty.format.render([]) if empty.format else ""
        assert empty.accepts(none)
        one = CallGrammar([tool({"type": "object", "properties": {}})], small_tokenizer(), format, max_calls=1)
        calls = [{"name": "f", "arguments": {}}] * count
        assert one.format is not None
        assert one.accepts(one.format.render(calls)) == (count <= 1)
        some = CallGrammar(one.tools, small_tokenizer(), format, allow_no_call=False)
        assert some.accepts(one.format.render(calls)) == (count >= 1)


@pytest.mark.parametrize("name", ["a=b", "", "a(b", "a, b", " a", '"a"'])
def test_names_that_a_pythonic_call_cannot_write(name: str) -> None:
    with pytest.raises(FormatError, match=r"'f'.*keyword argument"):
        CallGrammar([tool({"type": "object", "properties": {name: STRING}})], small_tokenizer(), "pythonic")


@pytest.mark.parametrize(
    ("parameters", "keyword"),
    [
        ({"type": "object", "additionalProperties": True}, "additionalProperties"),
        ({"type": "object", "anyOf": [{"required": ["a"]}], "properties": {"a": STRING}}, "anyOf"),
        ({"type": "object", "properties": {"a": STRING}, "enum": [{"a": "b"}]}, "enum"),
    ],
)
def test_parameters_that_a_pythonic_call_cannot_write(parameters: dict[str, Any], keyword: str) -> None:
    CallGrammar([tool(parameters)], small_tokenizer(), "json-list")
    with pytest.raises(UnsupportedSchemaError) as caught:
        CallGrammar([tool(parameters)], small_tokenizer(), "pythonic")
    assert (caught.value.tool, caught.value.keyword) == ("f", keyword)


def test_tokenizers_whose_bytes_are_lost() -> None:
    words = {word: index for index, word in enumerate(["[UNK]", "[SEP]", "a", "##b", "{", "}", '"'])}
    for model in (models.WordPiece(words, unk_token="[UNK]"), models.WordLevel(words, unk_token="[UNK]")):
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        for given in (tokenizer, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]")):
            with pytest.raises(TokenizerError, match="byte"):
                CallGrammar([], given, "json-list", stop_ids=[1])
    with pytest.raises(TokenizerError, match="fast tokenizer"):
        CallGrammar([], object(), "json-list")
    with pytest.raises(TokenizerError, match="no tokenizer"):
        CallGrammar([], "/nowhere/at/all", "json-list")


def test_stop_tokens_must_exist() -> None:
    for stop_ids in ([], [len(token_bytes(small_tokenizer()))], [-1]):
        with pytest.raises(TokenizerError, match="stop ids"):
            CallGrammar([], small_tokenizer(), "json-list", stop_ids=stop_ids)
    nameless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(TokenizerError):
        CallGrammar([], nameless, "json-list")
