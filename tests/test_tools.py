"""Tools read from every dialect: what comes out is plain JSON Schema with the meaning that went in."""

from __future__ import annotations

import contextlib
import copy
import json
from collections import Counter
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator

from toolprm_decode.errors import ToolSchemaError
from toolprm_decode.tools import MAX_DEPTH, Tool, read_tools

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where."}, "days": {"type": "integer"}},
    "required": ["city"],
}


def read(parameters: Any, **more: Any) -> dict[str, Any]:
    """The normalised schema of one bare function with these parameters, checked to be a schema and a fixed point."""
    given_tool = {"name": "f", "description": "", "parameters": parameters, **more}
    before = copy.deepcopy(given_tool)
    (tool,) = read_tools([given_tool])
    assert given_tool == before
    assert tool.original is given_tool
    check_is_plain(tool)
    (again,) = read_tools([tool.to_openai()])
    assert again.parameters == tool.parameters
    return tool.parameters


def read_property(schema: Any, **more: Any) -> Any:
    """What one property of a JSON schema is normalised to."""
    return read({"type": "object", "properties": {"x": schema}, **more})["properties"]["x"]


def check_is_plain(tool: Tool) -> None:
    Draft202012Validator.check_schema(tool.parameters)
    assert tool.parameters["type"] == "object"
    assert "properties" in tool.parameters or tool.parameters.keys() & {"anyOf", "oneOf", "allOf", "if"}
    json.dumps(tool.parameters, allow_nan=False).encode()


def failure(tools: Any) -> ToolSchemaError:
    with pytest.raises(ToolSchemaError) as caught:
        read_tools(tools)
    return caught.value


def failure_of(parameters: Any) -> ToolSchemaError:
    error = failure([{"name": "f", "parameters": parameters}])
    assert error.tool == "f"
    return error


# ---------------------------------------------------------------------------------------------------------------------
# Dialects


def forecast(city: str, days: int = 3) -> str:
    """Tells the weather.

    Args:
        city: Where.
        days: How far ahead.
    """
    return city * days


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"name": "w", "description": "d", "parameters": WEATHER, "strict": True}},
        {"type": "function", "name": "w", "description": "d", "parameters": WEATHER, "strict": True},
        {"name": "w", "description": "d", "parameters": WEATHER, "response": {"type": "dict"}},
        {"name": "w", "description": "d", "input_schema": WEATHER, "cache_control": {"type": "ephemeral"}},
        {"name": "w", "title": "W", "description": "d", "inputSchema": WEATHER, "annotations": {"readOnlyHint": True}},
        SimpleNamespace(name="w", description="d", inputSchema=WEATHER, outputSchema=None),
        {"api_name": "w", "api_description": "d", "field": "x", "parameters": WEATHER},
        Tool("w", "d", WEATHER, None),
    ],
    ids=["openai", "responses", "bare", "anthropic", "mcp", "mcp-object", "seal-tools", "tool"],
)
def test_the_same_tool_in_every_dialect(tool: Any) -> None:
    for tools in ([tool], (tool,), {"tools": [tool]}, tool):
        (found,) = read_tools(tools)
        assert (found.name, found.description, found.parameters) == ("w", "d", WEATHER)
        assert found.to_openai() == {
            "type": "function",
            "function": {"name": "w", "description": "d", "parameters": WEATHER},
        }


def test_dialects_may_be_mixed_and_keep_their_order() -> None:
    tools = [forecast, {"name": "b"}, {"type": "function", "function": {"name": "a", "parameters": None}}]
    assert [tool.name for tool in read_tools(tools)] == ["forecast", "b", "a"]
    assert read_tools([]) == read_tools({"tools": []}) == []


def test_to_openai_shares_nothing_with_the_tool() -> None:
    (tool,) = read_tools({"name": "f", "parameters": WEATHER})
    tool.to_openai()["function"]["parameters"]["properties"]["city"]["type"] = "null"
    assert tool.parameters == WEATHER


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"type": "dict", "properties": {}}])
def test_a_tool_without_arguments(parameters: Any) -> None:
    assert read(parameters) == {"type": "object", "properties": {}}


def test_missing_descriptions_are_empty() -> None:
    assert [tool.description for tool in read_tools([{"name": "a"}, {"name": "b", "description": None}])] == ["", ""]


def test_a_required_list_beside_the_parameters_is_used() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert read(parameters, required=["a"])["required"] == ["a"]
    assert read({**parameters, "required": []}, required=["a"]) == parameters


def test_the_root_may_be_a_reference() -> None:
    definitions = {"Args": {"type": "object", "properties": {"a": {"$ref": "#/definitions/Args"}}, "required": ["a"]}}
    root = {"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/Args"}
    expected = {**definitions["Args"], "definitions": definitions}
    assert read({**root, "definitions": definitions}) == expected
    assert failure_of({"$ref": "#/definitions/None", "definitions": definitions}).keyword == "$ref"
    assert failure_of({"$ref": "#"}).keyword == "$ref"
    assert failure_of({"$ref": "https://example.com/schema"}).keyword == "$ref"
    loop = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    assert failure_of({"$ref": "#/$defs/a", "$defs": loop}).keyword == "$ref"


def test_a_root_made_of_alternatives_is_not_closed_by_empty_properties() -> None:
    alternatives = [{"type": "object", "properties": {"a": {"type": "string"}}}]
    assert read({"anyOf": alternatives}) == {"type": "object", "anyOf": alternatives}


# ---------------------------------------------------------------------------------------------------------------------
# Flattened parameters


def test_flattened_parameters_become_properties() -> None:
    parameters = {
        "city": {"type": "str", "description": "Where.", "required": True},
        "days": {"type": "int", "default": 3},
        "units": {"type": "str", "enum": ["C", "F"], "required": False},
    }
    assert read(parameters) == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where."},
            "days": {"type": "integer", "default": 3},
            "units": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["city"],
    }


A, B = {"type": "str"}, {"type": "int"}


@pytest.mark.parametrize(
    ("parameters", "beside", "required"),
    [
        ({"a": A, "b": B}, None, []),
        ({"a": A | {"required": True}, "b": B}, None, ["a"]),
        ({"a": A | {"required": "true"}, "b": B | {"required": "False"}}, None, ["a"]),
        ({"a": A, "b": B}, ["b"], ["b"]),
        ({"a": A, "b": B | {"default": 1}}, [], []),
        ({"a": A | {"required": True}, "b": B}, ["b"], ["b", "a"]),
        ({"a": A, "b": B | {"default": 1}}, None, ["a"]),
        ({"a": A, "b": B | {"default": None}}, None, ["a"]),
        ({"a": A, "b": {"type": "int, optional"}}, None, ["a"]),
        ({"a": A, "b": {"type": "Optional[int]"}}, None, ["a"]),
        ({"a": A, "b": B | {"optional": True}}, None, ["a"]),
        ({"a": A | {"default": "x"}, "b": {"type": "int, optional"}}, None, []),
        ({"a": A | {"required": False}, "b": B | {"default": 1}}, None, []),
    ],
)
def test_which_flattened_parameters_are_required(parameters: Any, beside: Any, required: list[str]) -> None:
    more = {} if beside is None else {"required": beside}
    assert read(parameters, **more).get("required", []) == required


def test_parameters_may_be_called_like_keywords() -> None:
    names = ["type", "properties", "required", "items", "enum", "default", "anyOf", "description", "$ref"]
    flattened = {name: {"type": "list(str)", "description": "d"} for name in names}
    said = {"type": "array", "items": {"type": "string"}, "description": "d"}
    assert read(flattened)["properties"] == dict.fromkeys(names, said)
    assert read({"type": "object", "properties": flattened})["properties"] == dict.fromkeys(names, said)
    assert read({"properties": flattened})["properties"] == dict.fromkeys(names, said)


STRING, INTEGER, NUMBER, NULL = ({"type": name} for name in ("string", "integer", "number", "null"))
LITERAL = {"type": "string"}


@pytest.mark.parametrize(
    ("written", "schema"),
    [
        ("str", STRING),
        ("string", STRING),
        ("String", STRING),
        ("STRING", STRING),
        ("char", STRING),
        (" int ", INTEGER),
        ("integer", INTEGER),
        ("float", NUMBER),
        ("number", NUMBER),
        ("bool", {"type": "boolean"}),
        ("None", NULL),
        ("dict", {"type": "object"}),
        ("Dict", {"type": "object"}),
        ("list", {"type": "array"}),
        ("set", {"type": "array"}),
        ("tuple", {"type": "array"}),
        ("any", {}),
        ("Any", {}),
        ("", {}),
        (None, {}),
        ("list(str)", {"type": "array", "items": STRING}),
        ("List[str]", {"type": "array", "items": STRING}),
        ("typing.List[str]", {"type": "array", "items": STRING}),
        ("List[List[int]]", {"type": "array", "items": {"type": "array", "items": INTEGER}}),
        ("List[Any]", {"type": "array"}),
        ("Set[float]", {"type": "array", "items": NUMBER}),
        ("str[]", {"type": "array", "items": STRING}),
        ("int[][]", {"type": "array", "items": {"type": "array", "items": INTEGER}}),
        ("array<string>", {"type": "array", "items": STRING}),
        ("Tuple[float, float]", {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}),
        ("Tuple[str, int]", {"type": "array", "prefixItems": [STRING, INTEGER], "minItems": 2, "maxItems": 2}),
        ("Tuple[int, ...]", {"type": "array", "items": INTEGER}),
        ("Dict[str, int]", {"type": "object", "additionalProperties": INTEGER}),
        ("Dict[str, Any]", {"type": "object"}),
        ("List[Dict[str, float]]", {"type": "array", "items": {"type": "object", "additionalProperties": NUMBER}}),
        ("Union[int, float]", {"type": ["integer", "number"]}),
        ("int | str", {"type": ["integer", "string"]}),
        ("int or str", {"type": ["integer", "string"]}),
        ("Union[str, List[str]]", {"anyOf": [STRING, {"type": "array", "items": STRING}]}),
        ("Union[int, Any]", {}),
        ("Optional[str]", {"type": ["string", "null"]}),
        ("Optional[Union[int, float]]", {"type": ["integer", "number", "null"]}),
        ("str, optional", STRING),
        ("str (optional)", STRING),
        ("List[int], optional", {"type": "array", "items": INTEGER}),
        ("str, optional, default='x, y'", STRING),
        ("int, default 5", INTEGER),
        ("str, required", STRING),
        ("Callable[[float], float]", STRING),
        ("HashMap", {"anyOf": [{"type": "object"}, LITERAL]}),
        ("HashMap<String, Integer>", {"anyOf": [{"type": "object", "additionalProperties": {}}, LITERAL]}),
        ("ArrayList", {"anyOf": [{"type": "array"}, LITERAL]}),
        ("ArrayList<String>", {"anyOf": [{"type": "array", "items": STRING}, LITERAL]}),
        ("Array", {"anyOf": [{"type": "array"}, LITERAL]}),
        ("long", {"anyOf": [INTEGER, LITERAL]}),
        ("short", {"anyOf": [INTEGER, LITERAL]}),
        ("byte", {"anyOf": [INTEGER, LITERAL]}),
        ("double", {"anyOf": [NUMBER, LITERAL]}),
        ("Boolean", {"anyOf": [{"type": "boolean"}, LITERAL]}),
    ],
)
def test_type_names(written: Any, schema: dict[str, Any]) -> None:
    if written == "HashMap<String, Integer>":
        schema["anyOf"][0]["additionalProperties"] = {"anyOf": [INTEGER, LITERAL]}
    assert read({"x": {"type": written}})["properties"]["x"] == schema
    assert read_property({"type": written}) == schema


def test_what_a_source_type_says_stays_with_the_json_value() -> None:
    said = {"type": "ArrayList", "description": "d", "default": [], "items": {"type": "long"}, "minItems": 1}
    assert read_property(said) == {
        "description": "d",
        "default": [],
        "anyOf": [{"type": "array", "minItems": 1, "items": {"anyOf": [INTEGER, LITERAL]}}, LITERAL],
    }
    assert read_property({"type": "long", "enum": [1, 2]}) == {"type": "integer", "enum": [1, 2]}


# ---------------------------------------------------------------------------------------------------------------------
# JSON Schema


@pytest.mark.parametrize(
    ("written", "schema"),
    [
        ({}, {}),
        (True, True),
        ({"description": "d"}, {"description": "d"}),
        ({"type": "dict", "properties": {}}, {"type": "object"}),
        ({"properties": {}, "required": []}, {"type": "object"}),
        (
            {"type": "object", "properties": {}, "additionalProperties": False},
            {"type": "object", "properties": {}, "additionalProperties": False},
        ),
        (
            {"type": "dict", "additionalProperties": {"type": "float"}},
            {"type": "object", "additionalProperties": NUMBER},
        ),
        ({"properties": {"a": {"type": "int"}}}, {"type": "object", "properties": {"a": INTEGER}}),
        ({"items": {"type": "str"}}, {"type": "array", "items": STRING}),
        ({"enum": ["a", 1, None]}, {"enum": ["a", 1, None]}),
        ({"type": ["string", "null"]}, {"type": ["string", "null"]}),
        ({"type": ["str"]}, STRING),
        ({"type": ["int", "List[int]"]}, {"anyOf": [INTEGER, {"type": "array", "items": INTEGER}]}),
        (
            {"type": "str | List[str]", "anyOf": [{"minLength": 1}]},
            {"anyOf": [{"minLength": 1}], "allOf": [{"anyOf": [STRING, {"type": "array", "items": STRING}]}]},
        ),
        (
            {"type": "integer", "format": "int32", "optional": True},
            {"type": "integer", "format": "int32", "optional": True},
        ),
        ({"type": "string", "description": 1, "title": None, "examples": "a"}, STRING),
        (
            {"type": "array", "items": [{"type": "str"}, {"type": "int"}]},
            {"type": "array", "prefixItems": [STRING, INTEGER]},
        ),
        (
            {"type": "array", "items": [{"type": "str"}], "additionalItems": False},
            {"type": "array", "prefixItems": [STRING], "items": False},
        ),
        (
            {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1, "exclusiveMaximum": False},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        ),
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        ({"type": "string", "nullable": False}, STRING),
        ({"type": "string", "enum": ["a"], "nullable": True}, {"type": ["string", "null"], "enum": ["a", None]}),
        ({"nullable": True}, {}),
        ({"const": 1, "nullable": True, "title": "t"}, {"anyOf": [{"const": 1}, NULL], "title": "t"}),
        ({"anyOf": [STRING, INTEGER], "nullable": True}, {"anyOf": [STRING, INTEGER, NULL]}),
        # Values that the type forbids would leave nothing to write.
        ({"type": "boolean", "enum": ["True", "False", "dontcare"]}, {"enum": ["True", "False", "dontcare"]}),
        ({"type": "array", "enum": ["a", "b"]}, {"type": "array", "items": {"enum": ["a", "b"]}}),
        (
            {"type": "array", "items": {"type": "str"}, "enum": ["a", "b"]},
            {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
        ),
        ({"type": "array", "enum": [["a"], ["b"]]}, {"type": "array", "enum": [["a"], ["b"]]}),
        ({"type": "integer", "enum": [1.0, "x"]}, {"type": "integer", "enum": [1.0, "x"]}),
        ({"not": {"properties": {"a": {"type": "str"}}}}, {"not": {"properties": {"a": STRING}}}),
    ],
)
def test_normal_forms(written: Any, schema: Any) -> None:
    assert read_property(written) == schema


def test_nullable_reference() -> None:
    definitions = {"P": {"type": "dict", "properties": {"a": {"type": "str"}}}}
    found = read(
        {
            "type": "object",
            "properties": {"p": {"$ref": "#/$defs/P", "nullable": True, "description": "d"}},
            "$defs": definitions,
        }
    )
    assert found["properties"]["p"] == {"anyOf": [{"$ref": "#/$defs/P"}, NULL], "description": "d"}
    assert found["$defs"] == {"P": {"type": "object", "properties": {"a": STRING}}}


def test_required_flags_move_to_the_parent() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "int", "required": True}}, "required": True}
    assert read({"type": "object", "properties": {"a": inner, "c": {"type": "int", "required": False}}}) == {
        "type": "object",
        "properties": {"a": {"type": "object", "properties": {"b": INTEGER}, "required": ["b"]}, "c": INTEGER},
        "required": ["a"],
    }


def test_types_are_read_wherever_a_schema_stands() -> None:
    said, plain = {"type": "float"}, NUMBER
    maps = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
    lists = ("anyOf", "oneOf", "allOf", "prefixItems")
    single = ("items", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else")
    schema: dict[str, Any] = {"type": ["object", "array"]}
    found = read_property(
        schema
        | {keyword: {"a": said} for keyword in maps}
        | {keyword: [said] for keyword in lists}
        | dict.fromkeys(single, said)
        | {"dependencies": {"a": said, "b": ["a"]}, "default": {"type": "float"}, "enum": [{"type": "float"}, []]}
    )
    assert found == (
        schema
        | {keyword: {"a": plain} for keyword in maps}
        | {keyword: [plain] for keyword in lists}
        | dict.fromkeys(single, plain)
        | {"dependencies": {"a": plain, "b": ["a"]}, "default": {"type": "float"}, "enum": [{"type": "float"}, []]}
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {}}, "required": ["b"], "additionalProperties": True},
        {"type": "object", "properties": {"a": {}}, "required": ["b"], "additionalProperties": {"type": "string"}},
        {"type": "object", "properties": {"a": {}}, "required": ["b"], "patternProperties": {"^b": {}}},
        {"type": "object", "properties": {"a": {}}, "required": ["b"], "allOf": [{"properties": {"b": {}}}]},
        {"type": "object", "properties": {"b": {}}, "anyOf": [{"properties": {"a": {}}, "required": ["b"]}]},
        {"type": "object", "required": ["b"]},
    ],
)
def test_a_required_property_may_be_undeclared_where_others_are_allowed(schema: Any) -> None:
    assert read_property(schema)["type"] == "object"


# ---------------------------------------------------------------------------------------------------------------------
# Python functions


class Unit(Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


def test_functions() -> None:
    def search(
        words: list[str], limit: int | None = None, where: dict[str, float] | None = None, unit: Unit = Unit.CELSIUS
    ) -> None:
        """Searches.

        Args:
            words: What for.
            limit: How many.
            where: Weights.
            unit: The unit.
        """

    (tool,) = read_tools(search)
    check_is_plain(tool)
    assert tool.original is search
    assert (tool.name, tool.description) == ("search", "Searches.")
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "words": {"type": "array", "items": STRING, "description": "What for."},
            "limit": {"type": ["integer", "null"], "description": "How many."},
            "where": {"type": ["object", "null"], "additionalProperties": NUMBER, "description": "Weights."},
            "unit": {"type": "string", "enum": ["C", "F"], "description": "The unit."},
        },
        "required": ["words"],
    }


def test_functions_that_cannot_be_read_say_what_to_add() -> None:
    def bare(city: str) -> None: ...

    def undescribed(city: str, days: int) -> None:
        """Does.

        Args:
            city: Where.
        """

    def untyped(city):  # type: ignore[no-untyped-def]
        """Does.

        Args:
            city: Where.
        """

    def custom(city: Path) -> None:
        """Does.

        Args:
            city: Where.
        """

    def unresolved(city: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Does.

        Args:
            city: Where.
        """

    def starred(*cities: str) -> None:
        """Does.

        Args:
            cities: Where.
        """

    def mixed(city: Literal["a"] | tuple[int, ...]) -> None:
        """Does.

        Args:
            city: Where.
        """

    expected = {
        bare: "docstring",
        undescribed: "days",
        untyped: "city",
        custom: "Path",
        unresolved: "Nowhere",
        starred: "*args",
        mixed: "...",
    }
    for function, word in expected.items():
        error = failure([function])
        assert error.tool == function.__name__
        assert word in str(error)


# ---------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize("tools", [None, "[]", b"[]", 3, {"tools": "x"}, {"tools": {}}, [3], ["f"], [None], [[]]])
def test_what_is_no_tool_is_refused(tools: Any) -> None:
    assert failure(tools).tool is None


@pytest.mark.parametrize("name", [None, "", "  ", 3, ["f"]])
def test_a_tool_needs_a_name(name: Any) -> None:
    assert "item 1" in str(failure([{"name": "f"}, {"name": name, "parameters": WEATHER}]))
    assert "name" in str(failure([{"type": "function", "function": {"name": name}}]))
    assert "name" in str(failure([SimpleNamespace(name=name, inputSchema=WEATHER)]))


def test_a_function_entry_must_be_an_object() -> None:
    assert "function" in str(failure([{"type": "function", "function": "f"}]))


def test_two_tools_may_not_share_a_name() -> None:
    error = failure([{"name": "f"}, {"name": "g"}, {"type": "function", "function": {"name": "f"}}])
    assert error.tool == "f"


@pytest.mark.parametrize("parameters", ["{}", [], ["a"], 3, True])
def test_parameters_that_are_no_schema(parameters: Any) -> None:
    assert "parameters" in str(failure_of(parameters))


@pytest.mark.parametrize(
    ("schema", "pointer", "keyword"),
    [
        ({"type": "strng"}, "/properties/x", "type"),
        ({"type": "List[strng]"}, "/properties/x", "type"),
        ({"type": "List[str"}, "/properties/x", "type"),
        ({"type": "str]"}, "/properties/x", "type"),
        ({"type": "[" * 200}, "/properties/x", "type"),
        ({"type": "List[" * 10_000}, "/properties/x", "type"),
        ({"type": 3}, "/properties/x", "type"),
        ({"type": []}, "/properties/x", "type"),
        ({"type": [{"type": "string"}]}, "/properties/x", "type"),
        ({"enum": []}, "/properties/x", "enum"),
        ({"enum": "a"}, "/properties/x", "enum"),
        ({"enum": None}, "/properties/x", "enum"),
        ({"properties": []}, "/properties/x", "properties"),
        ({"properties": {"a/b~c": {"enum": []}}}, "/properties/x/properties/a~1b~0c", "enum"),
        ({"properties": {"a": "str"}}, "/properties/x/properties/a", None),
        ({"anyOf": {}}, "/properties/x", "anyOf"),
        ({"oneOf": []}, "/properties/x", "oneOf"),
        ({"anyOf": [{}, {"type": "strng"}]}, "/properties/x/anyOf/1", "type"),
        ({"items": "string"}, "/properties/x/items", None),
        ({"required": "a"}, "/properties/x", "required"),
        ({"required": [1]}, "/properties/x", "required"),
        ({"properties": {"a": {}}, "required": ["b"]}, "/properties/x", "required"),
        ({"properties": {"a": {}}, "required": ["b"], "additionalProperties": False}, "/properties/x", "required"),
        (3, "/properties/x", None),
        (None, "/properties/x", None),
        ({"default": float("nan")}, "/properties/x/default", None),
        ({"default": {1: 2}}, "/properties/x/default", None),
        ({"default": [{1, 2}]}, "/properties/x/default/0", None),
        ({"default": b"x"}, "/properties/x/default", None),
        ({"description": "\ud800"}, "/properties/x/description", None),
        ({"properties": {"\udfff": {}}}, "/properties/x/properties", None),
    ],
)
def test_malformed_schemas_are_refused_where_they_are_wrong(schema: Any, pointer: str, keyword: str | None) -> None:
    error = failure_of({"type": "object", "properties": {"x": schema}})
    assert (error.pointer, error.keyword) == (pointer, keyword)
    str(error).encode()


def test_a_root_that_is_no_object_is_refused() -> None:
    for kind in ("string", "array", ["string", "null"], "Boolean"):
        assert failure_of({"type": kind}).keyword == "type"
    assert failure_of({"type": "object", "enum": [1, "a"]}).keyword == "enum"
    assert failure_of({"city": "str"}).pointer == "/properties/city"
    assert failure_of({"properties": None}).keyword == "properties"


def test_unknown_types_name_what_is_close_and_what_is_known() -> None:
    message = str(failure_of({"x": {"type": "strng"}}))
    assert "'strng'" in message
    assert "did you mean 'string'" in message
    assert "HashMap" in message


def test_undefined_required_properties_name_what_is_close() -> None:
    assert "did you mean 'city'" in str(failure_of({**WEATHER, "required": ["citi"]}))


@pytest.mark.parametrize("field", ["name", "description"])
def test_lone_surrogates_are_refused_in_names_and_descriptions(field: str) -> None:
    error = failure([{"name": "f", field: "a\ud800"}])
    assert "surrogate" in str(error)
    str(error).encode()


def test_a_description_must_be_a_string() -> None:
    assert "description" in str(failure([{"name": "f", "description": ["a"]}]))


def nested(levels: int, wrap: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        wrapped: dict[str, dict[str, Any]] = {
            "items": {"type": "array", "items": schema},
            "anyOf": {"anyOf": [schema]},
            "properties": {"type": "object", "properties": {"x": schema}},
        }
        schema = wrapped[wrap]
    return {"type": "object", "properties": {"x": schema}}


@pytest.mark.parametrize("wrap", ["items", "anyOf", "properties"])
def test_schemas_may_be_deep_but_not_bottomless(wrap: str) -> None:
    (tool,) = read_tools([{"name": "f", "parameters": nested(MAX_DEPTH - 2, wrap)}])
    assert tool.to_openai()["function"]["parameters"] == tool.parameters == nested(MAX_DEPTH - 2, wrap)
    for levels in (MAX_DEPTH - 1, MAX_DEPTH + 1, 100_000):
        assert "nested" in str(failure_of(nested(levels, wrap)))


def test_a_schema_that_contains_itself_is_refused() -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    assert "nested" in str(failure_of({"type": "object", "properties": {"x": schema}}))


def test_a_stack_that_is_nearly_full_gives_no_recursion_error() -> None:
    def deep(frames: int) -> str:
        if frames:
            return deep(frames - 1)
        return str(failure_of(nested(MAX_DEPTH - 2, "properties")))

    assert "stack" in deep(700)


# ---------------------------------------------------------------------------------------------------------------------
# Meaning

NAMES = st.sampled_from(["a", "b", "c"])
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, -2.5]) | st.text("ab", max_size=3)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
# Tried on every schema: random values alone are mostly refused by both sides.
TELLING: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    0.5,
    "",
    "a",
    "ab",
    "bab",
    [],
    [1],
    ["a", 1],
    [1, 1],
    [{}, [], None],
)
TELLING += ({}, {"a": 1}, {"b": "a"}, {"a": None, "b": []}, {"a": {}, "b": {"a": 1}, "c": "a"}, {"d": 1})
ANNOTATIONS = st.fixed_dictionaries(
    {}, optional={"title": st.text(max_size=3), "default": SCALARS, "$comment": st.just("c"), "unit": st.just("m")}
)


def keywords(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    declared = draw(st.none() | st.dictionaries(NAMES, inner, max_size=3))
    if declared is not None:
        schema["properties"] = declared
    others = draw(st.none() | st.booleans() | inner)
    if others is not None:
        schema["additionalProperties"] = others
    closed = bool(declared) and others in (None, False)
    if names := sorted(declared or []) if closed else ["a", "b", "c"]:
        schema["required"] = draw(st.lists(st.sampled_from(names), unique=True, max_size=2))
    if schema.get("properties") == {} and others is False:
        schema.pop("required", None)
    return schema | draw(keywords(minProperties=st.integers(0, 2), maxProperties=st.integers(0, 3)))


def compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    size = st.integers(0, 3)
    lists = keywords(items=inner, prefixItems=several, minItems=size, maxItems=size, uniqueItems=st.booleans())
    return st.one_of(
        objects(inner),
        lists.map(lambda schema: {"type": "array", **schema}),
        several.map(lambda schemas: {"anyOf": schemas}),
        several.map(lambda schemas: {"oneOf": schemas}),
        several.map(lambda schemas: {"allOf": schemas}),
        inner.map(lambda schema: {"not": schema}),
        st.tuples(inner, inner, inner).map(lambda three: dict(zip(("if", "then", "else"), three, strict=True))),
    )


BOUNDS = keywords(minimum=st.integers(-2, 2), exclusiveMaximum=st.integers(-2, 2), multipleOf=st.sampled_from([1, 0.5]))
LEAVES = st.one_of(
    st.booleans(),
    st.just({}),
    keywords(minLength=st.integers(0, 2), maxLength=st.integers(0, 3), pattern=st.just("^a")).map(
        lambda schema: {"type": "string", **schema}
    ),
    BOUNDS.map(lambda schema: {"type": "integer", **schema}),
    BOUNDS.map(lambda schema: {"type": "number", **schema}),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(st.sampled_from(["string", "integer", "null", "object", "array"]), min_size=1, unique=True).map(
        lambda names: {"type": names}
    ),
    st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
    st.just({"$ref": "#/$defs/d"}),
)
SCHEMAS = st.recursive(LEAVES, compound, max_leaves=6)
ROOTS = compound(SCHEMAS) | LEAVES


@settings(max_examples=300)
@given(schema=ROOTS, definition=SCHEMAS, said=ANNOTATIONS, values=st.lists(VALUES, min_size=1, max_size=8))
def test_json_schemas_keep_their_meaning(schema: Any, definition: Any, said: Any, values: list[Any]) -> None:
    if isinstance(schema, dict):
        schema = {**said, **schema}
    definition = json.loads(json.dumps(definition).replace("#/$defs/d", "#/$defs/e"))  # no reference to itself
    parameters = {
        "type": "object",
        "properties": {"x": schema},
        "required": ["x"],
        "$defs": {"d": definition, "e": {"type": "string"}},
    }
    Draft202012Validator.check_schema(parameters)
    before, after = Draft202012Validator(parameters), Draft202012Validator(read(parameters))
    for value in (*TELLING, *values):
        assert after.is_valid({"x": value}) == before.is_valid({"x": value}), value


@settings(max_examples=100)
@given(
    prefix=st.lists(SCHEMAS, max_size=3),
    rest=st.none() | SCHEMAS,
    values=st.lists(st.lists(VALUES, max_size=4), min_size=1, max_size=5),
)
def test_lists_of_items_mean_what_draft_7_says(prefix: Any, rest: Any, values: list[Any]) -> None:
    definitions = {"d": {"type": "string"}}
    array: dict[str, Any] = {"type": "array", "items": prefix} | ({} if rest is None else {"additionalItems": rest})
    array = json.loads(json.dumps(array).replace("prefixItems", "x-prefixItems"))  # no word of draft 7
    parameters = {"type": "object", "properties": {"x": array}, "$defs": definitions}
    before, after = Draft7Validator(parameters), Draft202012Validator(read(parameters))
    for value in (*TELLING, *values):
        assert after.is_valid({"x": value}) == before.is_valid({"x": value}), value


WORDS = (
    "type",
    "properties",
    "required",
    "items",
    "enum",
    "const",
    "anyOf",
    "nullable",
    "default",
    "$ref",
    "$defs",
    "a",
)
JSON = st.recursive(
    SCALARS | st.sampled_from(["object", "array", "List[str]", "str, optional", "true", "#/properties/x", "any"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(WORDS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=500)
@given(JSON)
def test_anything_gives_a_plain_schema_or_a_clear_error(parameters: Any) -> None:
    tools = [{"name": "f", "parameters": parameters}]
    before = copy.deepcopy(tools)
    with contextlib.suppress(ToolSchemaError):
        (tool,) = read_tools(tools)
        assert tool.parameters["type"] == "object"
        assert read_tools([tool.to_openai()])[0].parameters == tool.parameters
    assert tools == before


# ---------------------------------------------------------------------------------------------------------------------
# Data sets: every tool reads, and what a gold answer breaks is known


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def data_file(data_dir: Path, *parts: str) -> Path:
    path = data_dir.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the data has no {'/'.join(parts)}")
    return path


def read_all(tools: list[Any]) -> dict[str, Tool]:
    before = json.dumps(tools)
    found = read_tools(tools)
    assert json.dumps(tools) == before
    for tool in found:
        check_is_plain(tool)
    return {tool.name: tool for tool in found}


def closed(schema: Any) -> Any:
    """The schema as calls are checked: an object takes the properties that it declares and no others."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    result: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in {"properties", "$defs", "definitions"}:
            result[keyword] = {name: closed(one) for name, one in value.items()}
        else:
            result[keyword] = value if keyword in {"enum", "const", "default", "examples", "example"} else closed(value)
    if "properties" in schema:
        result.setdefault("additionalProperties", False)
    return result


def broken_keyword(tool: Tool | None, arguments: Any) -> str | None:
    """The first keyword of the tool's schema that the arguments break, as jsonschema sees it."""
    if tool is None:
        return "no such tool"
    error = next(Draft202012Validator(closed(tool.parameters)).iter_errors(arguments), None)
    return None if error is None else str(error.validator)


def bfcl_value(allowed: Any) -> Any:
    """One value of BFCL's nested lists of allowed ones; "" marks what may be left out."""
    if isinstance(allowed, dict):
        return {
            name: bfcl_value(next(one for one in values if one != ""))
            for name, values in allowed.items()
            if any(one != "" for one in values)
        }
    return [bfcl_value(one) for one in allowed] if isinstance(allowed, list) else allowed


def bfcl_arguments(tool: Tool, gold: dict[str, list[Any]]) -> dict[str, Any]:
    """Arguments that BFCL accepts, those which fit the tool's schema where there are any."""
    arguments = {}
    for name, allowed in gold.items():
        check = Draft202012Validator(closed(tool.parameters["properties"].get(name, False)))
        required = name in tool.parameters.get("required", [])
        # An empty list is the value itself in two answers; "" is a value where nothing may be left out.
        values = [bfcl_value(one) for one in allowed if one != "" or required] or ([] if allowed else [[]])
        fitting = [value for value in values if check.is_valid(value)]
        if fitting or "" not in allowed or required:
            arguments[name] = (fitting or values)[0]
    return arguments


# Answers that break the schema they were written for, with the keyword.
BFCL_MISFITS = {
    "live_multiple_87-38-4": "enum",
    "live_multiple_552-153-1": "type",
    "live_multiple_595-158-1": "type",
    "live_multiple_596-158-2": "type",
    "live_multiple_731-167-2": "type",
    "live_multiple_733-167-4": "type",
    "live_multiple_735-167-6": "type",
    "live_multiple_862-181-3": "additionalProperties",
    "live_multiple_871-182-8": "enum",
    "live_multiple_947-197-0": "enum",
    "live_multiple_964-207-0": "required",
    "live_multiple_1038-265-0": "type",  # null, the default, for a string
    "parallel_multiple_21": "type",
    "simple_java_88": "type",  # from here on: source code for a value whose type has a name in Python too
    "simple_javascript_5": "type",
    "simple_javascript_11": "type",
    "simple_javascript_19": "type",
    "simple_javascript_32": "type",
    "simple_javascript_37": "type",
    "simple_javascript_39": "type",
}


def test_bfcl(data_dir: Path) -> None:
    folder = data_file(data_dir, "bfcl")
    entries = [entry for path in sorted(folder.glob("BFCL_v4_*.json")) for entry in json_lines(path)]
    tools = {entry["id"]: read_all(entry["function"]) for entry in entries if "function" in entry}
    for path in sorted((folder / "multi_turn_func_doc").glob("*.json")):
        read_all(json_lines(path))
    assert len(tools) > 1000

    misfits = {}
    for path in sorted((folder / "possible_answer").glob("*.json")):
        for answer in json_lines(path) if "multi_turn" not in path.name else []:
            for call in answer["ground_truth"]:
                ((name, gold),) = call.items()
                tool = tools[answer["id"]][name]
                keyword = broken_keyword(tool, bfcl_arguments(tool, gold))
                if keyword is not None:
                    misfits[answer["id"]] = keyword
    assert misfits == BFCL_MISFITS


@pytest.mark.parametrize(
    ("name", "calls", "misfits"),
    [
        # Numbers and lists written as strings, an argument that no tool declares; but nothing is called for in vain.
        ("apibank_l1", 399, {"type": 43, "additionalProperties": 5}),
        ("apibank_l2", 127, {"type": 11, "no such tool": 6}),
        ("sealtool", 294, {"type": 55}),
        ("toolalpaca", 143, {"type": 5, "no such tool": 6}),
    ],
)
def test_hammer(data_dir: Path, name: str, calls: int, misfits: dict[str, int]) -> None:
    entries = json.loads(data_file(data_dir, "hammer", f"{name}.json").read_text(encoding="utf-8"))
    found: Counter[str] = Counter()
    seen = 0
    for entry in entries:
        tools = read_all(entry["tools"])
        for call in entry["answers"]:
            arguments = call["arguments"] if "arguments" in call else call["parameters"]
            keyword = broken_keyword(tools.get(call.get("name") or call.get("tool")), arguments)
            found.update([keyword] if keyword else [])
            seen += 1
    assert (seen, dict(found)) == (calls, misfits)


def test_hammer_training_sample(data_dir: Path) -> None:
    entries = json.loads(data_file(data_dir, "hammer", "masking_sft_data_example.json").read_text(encoding="utf-8"))
    misfits = {}
    for row, entry in enumerate(entries):
        text = entry["instruction"].split("[BEGIN OF AVAILABLE TOOLS]")[1].split("[END OF AVAILABLE TOOLS]")[0]
        listed = json.loads(text)
        if len({tool["name"] for tool in listed}) < len(listed):
            misfits[row] = failure(listed).message.split(":")[0]
            continue
        tools = read_all(listed)
        for call in json.loads(entry["output"].strip("`\n ")):
            keyword = broken_keyword(tools[call["name"]], call["arguments"])
            if keyword is not None:
                misfits[row] = keyword
    # Masking put numbers where booleans were; three different tools have one name.
    assert misfits == {4: "type", 5: "two tools have this name"}


def test_seal_tools(data_dir: Path) -> None:
    tools = read_all(json_lines(data_file(data_dir, "seal_tools", "tool.jsonl")))
    assert len(tools) > 4000
    found: Counter[tuple[str, str]] = Counter()
    for split in ("dev", "test_in_domain", "test_out_domain"):
        for entry in json_lines(data_file(data_dir, "seal_tools", f"{split}.jsonl")):
            for call in entry["calling"]:
                keyword = broken_keyword(tools.get(call["api"]), call["parameters"])
                found.update([(split, keyword)] if keyword else [])
    # Numbers written as strings, results of earlier calls ("API_call_0") and a few slips.
    assert found == {("dev", "type"): 54, ("test_in_domain", "type"): 63, ("test_out_domain", "type"): 17}


def test_sgd(data_dir: Path) -> None:
    splits = json.loads(data_file(data_dir, "sgd_calls", "tools.json").read_text(encoding="utf-8"))
    for services in splits.values():
        for service in services.values():
            for tool in read_all(service["tools"]).values():
                given_schema = tool.original["parameters"]
                if not given_schema["required"]:
                    given_schema = {key: value for key, value in given_schema.items() if key != "required"}
                assert tool.parameters == given_schema


@pytest.mark.parametrize("part", ["bfcl", "glaive"])
def test_maskbench_schemas_keep_their_meaning(data_dir: Path, part: str) -> None:
    objects_read = 0
    for entry in json_lines(data_file(data_dir, "maskbench_fc", f"{part}.jsonl")):
        schema = entry["schema"]
        if schema.get("type") != "object":
            continue
        objects_read += 1
        (tool,) = read_all([{"name": "f", "parameters": schema}]).values()
        before, after = Draft202012Validator(schema), Draft202012Validator(tool.parameters)
        for test in entry["tests"]:
            assert after.is_valid(test["data"]) == before.is_valid(test["data"]), entry["id"]
    assert objects_read > 300
