"""Reads tools from every dialect people write them in: a name, a description, and arguments as plain JSON Schema."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import unquote

from .errors import ToolSchemaError

MAX_DEPTH = 200  # levels of nested schemas; deeper ones are refused before Python's own stack is at risk
_MAX_JSON_DEPTH = 500  # a schema level takes two containers ({"properties": {...}}), and a default or enum some more
_MAX_TYPE_LENGTH = 256  # characters of a type expression: no honest one comes near, and parsing it is recursive


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: what the call names.
        description: what the model is told about it ("" when nothing was said).
        parameters: JSON Schema of the arguments, in words of draft 2020-12 and draft 7. The root is always of type
            "object" and has "properties", except where "anyOf", "oneOf", "allOf" or "if" say what they are. An object
            with properties but without "additionalProperties" is left so; words unknown to JSON Schema are annotations.
        original: what the caller gave.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    original: Any

    def to_openai(self) -> dict[str, Any]:
        """The tool as chat templates take it: a fresh {"type": "function", "function": {...}}."""
        function = {"name": self.name, "description": self.description, "parameters": _fresh(self.parameters)}
        return {"type": "function", "function": function}


def read_tools(tools: Any) -> list[Tool]:
    """Reads tools of any dialect, mixed freely; nothing the caller gave is changed.

    Read are: OpenAI tools ({"type": "function", "function": {...}} and the flat form of the Responses API), bare
    function dicts, Anthropic and MCP definitions (dicts or objects, `input_schema` or `inputSchema`), the flattened
    parameters of xLAM, Hammer, Seal-Tools and API-Bank ({"city": {"type": "str", "required": true}}), and Python
    functions with type hints and a docstring. Types may be named as in JSON Schema, BFCL, Python's typing, Java or
    JavaScript.

    In flattened parameters, those marked `required: true` or named in a `required` list are required. Where neither is
    used, a default or an "optional" type on one parameter makes the others required; where no parameter says anything,
    none is.

    Args:
        tools: a list of tools, a dict with a "tools" list, or one tool.

    Returns:
        The tools, in the order given; an empty list for an empty one.

    Raises:
        ToolSchemaError: a tool without a name, a name used twice, or parameters that are not a schema.
    """
    read: list[Tool] = []
    seen: set[str] = set()
    for position, given in enumerate(_listed(tools)):
        tool = given if isinstance(given, Tool) else _read_tool(given, position)
        if tool.name in seen:
            raise ToolSchemaError("two tools have this name: a call could mean either; rename one", tool=tool.name)
        seen.add(tool.name)
        read.append(tool)
    return read


# ---------------------------------------------------------------------------------------------------------------------
# Dialects: where the name, the description and the parameters are


@dataclass(frozen=True)
class _Definition:
    """A tool taken apart, nothing in it checked yet. `required` is a list that stood beside the parameters."""

    name: Any
    description: Any
    parameters: Any
    required: Any


def _listed(tools: Any) -> list[Any]:
    holds_a_list = isinstance(tools, Mapping) and "tools" in tools and not tools.keys() & {"name", "function"}
    if holds_a_list:
        tools = tools["tools"]
    if isinstance(tools, (list, tuple)):
        return list(tools)
    if not holds_a_list and (isinstance(tools, Mapping) or callable(tools) or hasattr(tools, "name")):
        return [tools]
    hint = " (parse the JSON first)" if isinstance(tools, (str, bytes)) else ""
    raise ToolSchemaError(f"tools must be a list, or one tool, but this is {_kind(tools)}{hint}")


def _read_tool(given: Any, position: int) -> Tool:
    if isinstance(given, Mapping):
        definition = _from_mapping(given, position)
    elif hasattr(given, "name") and any(hasattr(given, key) for key in _SCHEMA_KEYS):
        parameters = _first(_SCHEMA_KEYS, lambda key: getattr(given, key, None))
        definition = _Definition(given.name, getattr(given, "description", None), parameters, None)
    elif callable(given):
        definition = _from_function(given)
    else:
        raise ToolSchemaError(f"item {position} of the tools is {_kind(given)}, not a tool or a function")

    name, description = definition.name, definition.description
    if not isinstance(name, str) or not name.strip():
        said = "has no name" if name is None else f"has {name!r} for a name"
        raise ToolSchemaError(f"item {position} of the tools {said}: a name is a string that is not empty")
    name = str.__str__(name)
    reader = _Reader(name)
    reader.check_text(name, "", "the name")
    if description is None:
        description = ""
    if not isinstance(description, str):
        reader.fail(f"the description must be a string, but it is {_kind(description)}")
    reader.check_text(description, "", "the description")
    try:
        parameters = reader.parameters(definition.parameters, definition.required)
    except RecursionError:
        reader.fail("the schema is nested too deeply for what is left of the stack")
    return Tool(name=name, description=str.__str__(description), parameters=parameters, original=given)


_SCHEMA_KEYS = ("parameters", "inputSchema", "input_schema")


def _from_mapping(given: Mapping[str, Any], position: int) -> _Definition:
    body = given.get("function", given)
    if not isinstance(body, Mapping):
        raise ToolSchemaError(f'"function" of item {position} of the tools is {_kind(body)}, not an object')
    return _Definition(
        name=_first(("name", "api_name"), body.get),
        description=_first(("description", "api_description"), body.get),
        parameters=_first(_SCHEMA_KEYS, body.get),
        required=body.get("required"),
    )


def _from_function(function: Callable[..., Any]) -> _Definition:
    import inspect

    from transformers.utils.chat_template_utils import (  # slow to import, and needed for functions alone
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    name = getattr(function, "__name__", type(function).__name__)
    advice = "give every argument a type hint, and write a docstring with a line for each of them under 'Args:'"
    try:
        kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
        if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            raise ToolSchemaError("*args and **kwargs cannot be called by name; name the arguments", tool=name)
        body = get_json_schema(function)["function"]
    except (DocstringParsingException, TypeHintParsingException) as error:
        reason = " ".join(str(part) for part in error.args)
        raise ToolSchemaError(f"{reason}; {advice}", tool=name) from error
    except NameError as error:
        raise ToolSchemaError(f"a type hint cannot be resolved ({error}); import what it names", tool=name) from error
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, ToolSchemaError):
            raise
        raise ToolSchemaError(f"its signature cannot be read ({error}); {advice}", tool=name) from error
    return _Definition(body["name"], body.get("description"), body["parameters"], None)


def _first(keys: tuple[str, ...], get: Callable[[str], Any]) -> Any:
    """The first value that is not None."""
    return next((value for key in keys if (value := get(key)) is not None), None)


def _is_schema(parameters: Mapping[str, Any]) -> bool:
    """Whether these are a JSON Schema; else each key is a parameter and each value says what it is.

    Flattened parameters may be called "type", "properties" or "required": there the value is an object that describes
    the parameter, which none of these keywords has, and for "properties" its "type" is a string.
    """
    for keyword, kinds in _TELLTALES.items():
        if isinstance(parameters.get(keyword), kinds):
            return True
    properties = parameters.get("properties", {})
    if isinstance(properties, Mapping):
        return "properties" in parameters and not isinstance(properties.get("type"), str)
    return True


_TELLTALES: dict[str, type | tuple[type, ...]] = {
    "type": (str, list, tuple),
    "additionalProperties": bool,
    "$ref": str,
    "$schema": str,
    "anyOf": (list, tuple),
    "oneOf": (list, tuple),
    "allOf": (list, tuple),
}


# ---------------------------------------------------------------------------------------------------------------------
# Type names

_JSON_TYPES = {
    "string": "string str String char Character bytes date datetime time Callable callable Function function",
    "integer": "integer int int32 int64",
    "number": "number float float32 float64 decimal Decimal",
    "boolean": "boolean bool",
    "array": "array list List tuple Tuple set Set frozenset FrozenSet Sequence Iterable ndarray np.ndarray",
    "object": "object dict Dict Mapping",
    "null": "null None NoneType",
}
# Names that Java or JavaScript alone use. Their values are passed as JSON or as a source literal, which is a string.
_SOURCE_TYPES = {
    "integer": "byte Byte short Short long Long Integer BigInteger Bigint BigInt",
    "number": "double Double Float Number BigDecimal",
    "boolean": "Boolean",
    "array": "Array ArrayList LinkedList Vector Queue Deque Stack HashSet TreeSet",
    "object": "HashMap Hashtable LinkedHashMap TreeMap Map Object",
}
_TYPE_NAMES = {name: (json_type, False) for json_type, names in _JSON_TYPES.items() for name in names.split()}
_TYPE_NAMES |= {name: (json_type, True) for json_type, names in _SOURCE_TYPES.items() for name in names.split()}
_TYPE_NAMES |= {json_type.upper(): (json_type, False) for json_type in _JSON_TYPES}  # Gemini's spelling
_TYPE_NAMES |= dict.fromkeys(("any", "Any"), ("", False))
_TUPLES = {"tuple", "Tuple"}
_TYPE_TOKEN = re.compile(r"\s*(\.\.\.|[A-Za-z_][\w.\-]*|[\[\](){}<>,|/]|\S)")
_TYPE_SUFFIX = re.compile(r"[\s,(]+(optional|required|default\b.*)\)*\s*$", re.IGNORECASE | re.DOTALL)
_CLOSING = {"[": "]", "(": ")", "<": ">"}


@dataclass(frozen=True)
class _Type:
    """What a type expression says.

    Attributes:
        alternatives: schemas of which a value fits one; {} is any value.
        source: the value may be a source literal, the string among the alternatives.
        optional: it says that the value may be left out.
    """

    alternatives: tuple[dict[str, Any], ...]
    source: bool = False
    optional: bool = False

    def schema(self) -> dict[str, Any]:
        if any(not alternative for alternative in self.alternatives):
            return {}
        if len(self.alternatives) == 1:
            return dict(self.alternatives[0])
        if not self.source and all(alternative.keys() == {"type"} for alternative in self.alternatives):
            return {"type": [alternative["type"] for alternative in self.alternatives]}
        return {"anyOf": [dict(alternative) for alternative in self.alternatives]}


class _UnknownType(Exception):
    """Carries the part of a type expression that is not understood."""


@lru_cache(maxsize=4096)
def _parse_type(text: str) -> _Type:
    """Parses "str", "List[int]", "list(str)", "Dict[str, int]", "Union[int, float]", "str, optional" and their like."""
    if len(text) > _MAX_TYPE_LENGTH:
        raise _UnknownType(text[:40] + "...")
    optional = False
    while suffix := _TYPE_SUFFIX.search(text):
        optional |= suffix[1].lower() != "required"
        text = text[: suffix.start()]
    if not text.strip():
        return _Type(({},), optional=optional)
    parser = _TypeParser(_TYPE_TOKEN.findall(text.replace("typing.", "")))
    parsed = parser.union()
    if parser.tokens:
        raise _UnknownType(text)
    return _Type(parsed.alternatives, parsed.source, optional or parsed.optional)


class _TypeParser:
    """Recursive descent over the tokens of a type expression; what was read is taken off the list."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens[::-1]

    def peek(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def union(self) -> _Type:
        members = [self.atom()]
        while self.peek() in {"|", "/", "or"}:
            self.tokens.pop()
            members.append(self.atom())
        return _any_of(members)

    def atom(self) -> _Type:
        if self.peek() == "[":  # the argument list inside Callable[[float], float]
            self.arguments()
            return _Type(({},))
        name = self.tokens.pop() if self.tokens else ""
        arguments = self.arguments() if self.peek() in _CLOSING else None
        found = self.named(name, arguments)
        if arguments == []:  # the first pair of brackets of Java's and TypeScript's int[][]
            found = _array_of(found)
        while self.peek() == "[":
            if self.arguments():
                raise _UnknownType(name)
            found = _array_of(found)
        return found

    def arguments(self) -> list[_Type]:
        closing = _CLOSING[self.tokens.pop()]
        arguments: list[_Type] = []
        while self.peek() != closing:
            if self.peek() == "...":
                self.tokens.pop()
                arguments.append(_ELLIPSIS)
            else:
                arguments.append(self.union())
            if self.peek() == ",":
                self.tokens.pop()
            elif self.peek() != closing:
                raise _UnknownType(self.peek() or "an unclosed bracket")
        self.tokens.pop()
        return arguments

    def named(self, name: str, arguments: list[_Type] | None) -> _Type:
        if name in {"Union", "Optional", "optional"} and arguments:
            union = _any_of(arguments)
            if name == "Union":
                return union
            return _Type(_any_of([union, _Type(({"type": "null"},))]).alternatives, union.source, optional=True)
        if name not in _TYPE_NAMES:
            raise _UnknownType(name)
        json_type, source = _TYPE_NAMES[name]
        if not json_type:
            return _Type(({},))
        schema: dict[str, Any] = {"type": json_type}
        if arguments and json_type == "array":
            schema = _sequence(arguments, is_tuple=name in _TUPLES)
        elif arguments and json_type == "object" and (values := arguments[-1].schema()):
            schema["additionalProperties"] = values
        return _Type((schema, {"type": "string"}), source=True) if source else _Type((schema,))


_ELLIPSIS = _Type(({},), optional=True)


def _any_of(members: list[_Type]) -> _Type:
    alternatives: list[dict[str, Any]] = []
    for member in members:
        alternatives.extend(one for one in member.alternatives if one not in alternatives)
    return _Type(tuple(alternatives), len(members) == 1 and members[0].source, any(m.optional for m in members))


def _array_of(items: _Type) -> _Type:
    return _Type(({"type": "array", "items": items.schema()},))


def _sequence(arguments: list[_Type], *, is_tuple: bool) -> dict[str, Any]:
    schemas = [argument.schema() for argument in arguments if argument is not _ELLIPSIS]
    if is_tuple and len(schemas) == len(arguments):
        length = {"minItems": len(schemas), "maxItems": len(schemas)}
        if all(schema == schemas[0] for schema in schemas):
            return {"type": "array", "items": schemas[0], **length}
        return {"type": "array", "prefixItems": schemas, **length}
    return {"type": "array", "items": schemas[0]} if schemas and schemas[0] else {"type": "array"}


# ---------------------------------------------------------------------------------------------------------------------
# Schemas

_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions")
_LISTS_OF_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMAS = (
    "items",
    "contains",
    "unevaluatedItems",
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "contentSchema",
    "not",
    "if",
    "then",
    "else",
)
_PLAIN = frozenset({"type", "description"})
_PLAIN_TYPES = ("string", "number", "integer", "boolean", "null")
_WITH_SCHEMAS = (*_MAPS_OF_SCHEMAS, *_LISTS_OF_SCHEMAS, *_SCHEMAS)
_ANY_WITH_SCHEMAS = frozenset(_WITH_SCHEMAS)
# Branches speak of a value that is described around them, so what they leave unsaid must stay unsaid.
_BRANCHES = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"})
_TESTS = frozenset({"not", "if", "then", "else", "dependentSchemas", "dependencies"})
_SAY_MORE = frozenset({"$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"})
_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "example", "deprecated", "$comment"})
_ANNOTATIONS |= {"readOnly", "writeOnly", "$defs", "definitions"}  # the last two stay where `$ref` finds them
_KINDS_OF_ANNOTATIONS: dict[str, type] = dict.fromkeys(("title", "description", "$comment", "format"), str)
_KINDS_OF_ANNOTATIONS |= {"deprecated": bool, "readOnly": bool, "writeOnly": bool, "examples": list}


class _Reader:
    """Turns the parameters of one tool into plain JSON Schema; knows the tool's name for its errors."""

    def __init__(self, tool: str):
        # An unreadable name must not make the error message unprintable.
        self.tool = tool.encode("utf-8", "backslashreplace").decode("utf-8")

    def fail(self, message: str, pointer: str = "", keyword: str | None = None) -> NoReturn:
        raise ToolSchemaError(message, tool=self.tool, pointer=pointer, keyword=keyword)

    def parameters(self, given: Any, required: Any) -> dict[str, Any]:
        """The schema of the arguments.

        Args:
            given: a JSON Schema, flattened parameters, or None for a tool without arguments.
            required: what stood beside the parameters under "required"; all but lists are ignored.
        """
        if given is None:
            given = {}
        if not isinstance(given, Mapping):
            self.fail(f"parameters must be a JSON Schema (an object), but they are {_kind(given)}")
        beside = required if isinstance(required, (list, tuple)) else None
        if given and _is_schema(given):
            root = self.copy(given)
            if beside is not None and "required" not in root:
                root["required"] = self.copy(beside)
        else:
            root = self.flattened(given, beside)
        return self.root(root)

    def flattened(self, given: Mapping[str, Any], beside: Any) -> dict[str, Any]:
        properties = self.copy(given, "/properties")
        for name, said in properties.items():
            if not isinstance(said, dict):
                self.fail(
                    f"a parameter must be described by an object, not by {_kind(said)}", _join("/properties", name)
                )
        if beside is not None:
            return {"type": "object", "properties": properties, "required": self.copy(beside, "/required")}
        root: dict[str, Any] = {"type": "object", "properties": properties}
        if not any("required" in said for said in properties.values()):
            forced = [name for name, said in properties.items() if not self.is_optional(said, name)]
            if 0 < len(forced) < len(properties):
                root["required"] = forced
        return root

    def is_optional(self, said: dict[str, Any], name: str) -> bool:
        if "default" in said or _is_true(said.get("optional")):
            return True
        written = said.get("type")
        return isinstance(written, str) and self.type(written, _join("/properties", name)).optional

    def root(self, node: dict[str, Any]) -> dict[str, Any]:
        node = self.follow_root(node)
        node.pop("$schema", None)  # the result is written in draft 2020-12, whatever this was
        node.pop("nullable", None)  # a call always has arguments
        written = node.get("type")
        written = written if isinstance(written, list) else [written if written is not None else ""]
        types = [self.type(one, "") for one in written]
        fitting = [one for said in types for one in said.alternatives if one.get("type", "object") == "object"]
        if not fitting:
            self.fail("the arguments of a call are an object", keyword="type")
        node["type"] = "object"
        if "properties" not in node and not node.keys() & _SAY_MORE:
            node["properties"] = {}
        result: dict[str, Any] = self.schema(node, "", 1)
        if result.get("type") != "object":  # the type gave way to the enum's values
            self.fail("the arguments of a call are an object, but none of these values is one", keyword="enum")
        return result

    def follow_root(self, root: dict[str, Any]) -> dict[str, Any]:
        """Puts what the root refers to in its place: generators write {"$ref": "#/definitions/Args", ...}."""
        seen: set[str] = set()
        while isinstance(reference := root.get("$ref"), str):
            if reference in seen or not reference.startswith("#"):
                self.fail(f"the root must be an object, but {reference!r} leads elsewhere", keyword="$ref")
            seen.add(reference)
            target: Any = root
            for part in unquote(reference[1:]).split("/")[1:]:
                part = part.replace("~1", "/").replace("~0", "~")
                target = target.get(part) if isinstance(target, dict) else None
            if not isinstance(target, dict) or target is root:
                self.fail(f"the root must be an object, but {reference!r} does not lead to one", keyword="$ref")
            del root["$ref"]
            root = {**self.copy(target), **root}
        return root

    def schema(self, node: Any, pointer: str, depth: int, *, branch: bool = False, test: bool = False) -> Any:
        """Normalises a schema of which this reader owns the copy.

        Args:
            node: the schema; it is changed in place where that is simplest.
            pointer: where it stands.
            depth: 1 at the root.
            branch: it stands in an allOf, anyOf, `if` or the like, so what it requires may be declared outside.
            test: it is a condition or depends on one, so a type that is not written is not implied either.
        """
        if isinstance(node, bool):
            return node
        if type(node) is dict and node.keys() == _PLAIN and node["type"] in _PLAIN_TYPES:
            if type(node["description"]) is str:
                return node  # most schemas of tools are like this, and read already
        if not isinstance(node, dict):
            self.fail(f"a schema must be an object, but this is {_kind(node)}", pointer)
        if depth > MAX_DEPTH:
            self.fail(f"the schema is nested deeper than {MAX_DEPTH} levels", pointer)
        for keyword, kind in _KINDS_OF_ANNOTATIONS.items():
            if keyword in node and not isinstance(node[keyword], kind):
                del node[keyword]  # JSON Schema has no such thing, and no value depends on it
        self.read_required(node, pointer)
        self.read_tuple_items(node)
        _read_exclusive_bounds(node)
        if "enum" in node and (not isinstance(node["enum"], list) or not node["enum"]):
            self.fail("enum must be a list with at least one value", pointer, "enum")
        for keyword in () if _ANY_WITH_SCHEMAS.isdisjoint(node) else _WITH_SCHEMAS:
            if keyword in node:
                inside_branch = branch or keyword in _BRANCHES
                self.inside(node, keyword, pointer, depth, branch=inside_branch, test=test or keyword in _TESTS)
        if depth > 1 and node.get("properties") == {} and node.get("additionalProperties") is not False:
            del node["properties"]  # an object of which nothing is said; only at the root does it mean "no arguments"
            if node.get("type") is None and not node.keys() & _SAY_MORE and not test:
                node["type"] = "object"
        if not branch:
            self.check_required(node, pointer)
        nullable = _is_true(node.pop("nullable", None))
        node = self.read_type(node, pointer, test=test)
        return _or_null(node) if nullable else node

    def inside(self, node: dict[str, Any], keyword: str, pointer: str, depth: int, *, branch: bool, test: bool) -> None:
        """Normalises the schemas that stand under a keyword."""
        value, at = node[keyword], _join(pointer, keyword)
        if keyword in _SCHEMAS:
            node[keyword] = self.schema(value, at, depth + 1, branch=branch, test=test)
        elif keyword in _LISTS_OF_SCHEMAS:
            if not isinstance(value, list) or not value:
                self.fail(f"{keyword} must be a list with at least one schema", pointer, keyword)
            for index, one in enumerate(value):
                value[index] = self.schema(one, _join(at, index), depth + 1, branch=branch, test=test)
        else:
            if not isinstance(value, dict):
                self.fail(f"{keyword} must be an object, but it is {_kind(value)}", pointer, keyword)
            for name, one in value.items():
                if keyword == "dependencies" and isinstance(one, list):
                    continue  # names of properties that the first one calls for
                value[name] = self.schema(one, _join(at, name), depth + 1, branch=branch, test=test)

    def read_required(self, node: dict[str, Any], pointer: str) -> None:
        """Checks `required`, and gathers the `required: true` of properties, as draft 3 and many people write it."""
        required = node.pop("required", None)
        if required is None or _is_flag(required):  # a flag is the parent's to read, and it was here first
            required = []
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self.fail("required must be a list of property names", pointer, "required")
        properties = node.get("properties")
        for name, said in properties.items() if isinstance(properties, dict) else ():
            if isinstance(said, dict) and _is_flag(said.get("required")) and _is_true(said["required"]):
                required.append(name)
        if required:
            node["required"] = list(dict.fromkeys(required))

    def check_required(self, node: dict[str, Any], pointer: str) -> None:
        properties = node.get("properties")
        if properties is None or node.get("additionalProperties", False) is not False:
            return
        if "patternProperties" in node or node.keys() & _SAY_MORE:
            return
        for name in node.get("required", ()):
            if name not in properties:
                close = _suggestion(name, properties)
                self.fail(f"required property {name!r} is not among the properties{close}", pointer, "required")

    def read_tuple_items(self, node: dict[str, Any]) -> None:
        """Draft 7's list under `items` is `prefixItems` now, and what follows it `items`."""
        if isinstance(node.get("items"), list):
            prefix = node.pop("items")
            if prefix:
                node["prefixItems"] = prefix
            if "additionalItems" in node:
                node["items"] = node["additionalItems"]
        node.pop("additionalItems", None)  # without that list it says nothing

    def read_type(self, node: dict[str, Any], pointer: str, *, test: bool) -> dict[str, Any]:
        """Replaces the type's name by JSON Schema's own, and settles what goes with it."""
        written = node.pop("type", None)
        if written is None:
            if not test:
                if "properties" in node:
                    node["type"] = "object"
                elif "items" in node or "prefixItems" in node:
                    node["type"] = "array"
            return node
        if isinstance(written, list):
            if not written:
                self.fail("a list of types must name at least one", pointer, "type")
            said = _any_of([self.type(one, pointer) for one in written])
        else:
            said = self.type(written, pointer)
        schema = said.schema()
        if said.source and not node.keys() & {"enum", "const"}:
            native = {**said.alternatives[0], **{key: node[key] for key in node if key not in _ANNOTATIONS}}
            outside = {key: node[key] for key in node if key in _ANNOTATIONS}
            return {"anyOf": [native, *map(dict, said.alternatives[1:])], **outside}
        if said.source:
            schema = dict(said.alternatives[0])
        if "anyOf" in schema and "anyOf" in node:
            schema = {"allOf": [*node.pop("allOf", []), schema]}
        node = {**schema, **node}
        return _fit_enum(node)

    def type(self, written: Any, pointer: str) -> _Type:
        if not isinstance(written, str):
            self.fail(f"a type must be a string or a list of strings, not {_kind(written)}", pointer, "type")
        try:
            return _parse_type(written.strip())
        except _UnknownType as error:
            unknown = str(error)
        whole = f" in {written[:80]!r}" if unknown != written.strip() else ""
        known = ", ".join(sorted(filter(None, _TYPE_NAMES), key=str.lower))
        close = _suggestion(unknown, _TYPE_NAMES)
        self.fail(f"unknown type {unknown!r}{whole}{close}; known are {known}, Optional and Union", pointer, "type")

    def copy(self, value: Any, pointer: str = "", depth: int = 0) -> Any:
        """A copy made of plain JSON values, so that what follows may change it; refuses what JSON cannot write."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            self.check_text(value, pointer, "a string")
            return str.__str__(value)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            if not math.isfinite(value):
                self.fail(f"JSON has no {float(value)!r}", pointer)
            return float(value)
        if not isinstance(value, (dict, list, tuple, Mapping)):
            self.fail(f"{_kind(value)} cannot be written as JSON", pointer)
        if depth >= _MAX_JSON_DEPTH:
            self.fail(f"the schema is nested deeper than {MAX_DEPTH} levels", pointer)
        if isinstance(value, (dict, Mapping)):  # dict first: to ask an abstract class takes ten times as long
            copied: dict[str, Any] = {}
            for key, one in value.items():
                if not isinstance(key, str):
                    self.fail(f"the key {key!r} is not a string", pointer)
                self.check_text(key, pointer, "a key")
                plain = type(one) is str and one.isascii()  # most are, and need no pointer to be told by
                copied[str.__str__(key)] = one if plain else self.copy(one, _join(pointer, key), depth + 1)
            return copied
        listed: list[Any] = []
        for index, one in enumerate(value):
            listed.append(self.copy(one, _join(pointer, index), depth + 1))
        return listed

    def check_text(self, text: str, pointer: str, what: str) -> None:
        if text.isascii():
            return
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            shown = ascii(text[error.start : error.start + 1])
            self.fail(f"{what} holds the lone surrogate {shown}, which UTF-8 cannot write", pointer)


def _read_exclusive_bounds(node: dict[str, Any]) -> None:
    """Draft 4 and OpenAPI 3.0 write `exclusiveMinimum: true` beside `minimum`."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(exclusive), bool) and node.pop(exclusive) and bound in node:
            node[exclusive] = node.pop(bound)


def _fit_enum(node: dict[str, Any]) -> dict[str, Any]:
    """Settles an enum none of whose values is of the type, which would leave nothing to call.

    On an array it lists what the items may be; elsewhere the values are the better witness of what the tool takes.
    """
    values, types = node.get("enum"), node.get("type")
    if values is None or types is None:
        return node
    types = [types] if isinstance(types, str) else types
    if any(_is_of_type(value, one) for value in values for one in types):
        return node
    items = node.get("items", {})
    if "array" in types and "prefixItems" not in node and isinstance(items, dict) and "enum" not in items:
        del node["enum"]
        node["items"] = _fit_enum({**items, "enum": values})
    else:
        del node["type"]
    return node


def _is_of_type(value: Any, json_type: str) -> bool:
    if isinstance(value, bool) or value is None:
        return json_type == ("null" if value is None else "boolean")
    if isinstance(value, float):
        return json_type == "number" or (json_type == "integer" and value.is_integer())
    if isinstance(value, int):
        return json_type in {"integer", "number"}
    if isinstance(value, str):
        return json_type == "string"
    return json_type == ("array" if isinstance(value, list) else "object")


def _or_null(node: dict[str, Any]) -> dict[str, Any]:
    """The schema with null allowed as well, as OpenAPI's `nullable: true` has it."""
    constraints = node.keys() - _ANNOTATIONS
    if not constraints:
        return node
    if constraints == {"anyOf"}:
        return {**node, "anyOf": [*node["anyOf"], {"type": "null"}]}
    if "type" in node and not constraints & (_SAY_MORE | {"const", "not"}):
        types = node["type"] if isinstance(node["type"], list) else [node["type"]]
        if "null" not in types:
            node["type"] = [*types, "null"]
        if "enum" in node and None not in node["enum"]:
            node["enum"] = [*node["enum"], None]
        return node
    outside = {key: node[key] for key in node if key in _ANNOTATIONS}
    inside = {key: node[key] for key in node if key not in _ANNOTATIONS}
    return {"anyOf": [inside, {"type": "null"}], **outside}


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in {"true", "false"})


def _is_true(value: Any) -> bool:
    """Whether a flag is set; some datasets write it as a string."""
    return value is True or (isinstance(value, str) and value.strip().lower() == "true")


def _suggestion(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, [name for name in known if name], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _join(pointer: str, part: str | int) -> str:
    text = str(part)
    if "~" in text or "/" in text:
        text = text.replace("~", "~0").replace("/", "~1")
    return f"{pointer}/{text}"


def _kind(value: Any) -> str:
    """What a value is, in words for an error message."""
    if value is None:
        return "null"
    names: tuple[tuple[Any, str], ...] = (
        (bool, "a boolean"),
        (str, "a string"),
        ((int, float), "a number"),
        (Mapping, "an object"),
        ((list, tuple), "a list"),
    )
    for kind, name in names:
        if isinstance(value, kind):
            return name
    return f"a Python {type(value).__name__}"


def _fresh(value: Any) -> Any:
    """A copy of plain JSON; copy.deepcopy takes several frames a level and would overflow on a deep schema."""
    if isinstance(value, dict):
        fresh = {}
        for key, one in value.items():
            fresh[key] = _fresh(one)
        return fresh
    if isinstance(value, list):
        listed = []
        for one in value:
            listed.append(_fresh(one))
        return listed
    return value
