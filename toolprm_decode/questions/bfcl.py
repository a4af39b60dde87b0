"""BFCL's AST check: whether calls are those that a question of the Berkeley Function-Calling Leaderboard asks for.

The rule is that of bfcl-eval's ast_checker, oddities included. A possible answer lists the allowed values of each
parameter; "" among them says that the parameter may be left out. Arguments of Java and JavaScript functions are written
as source literals ("3.5f", "new int[]{1, 2}"), which are read first; a value that is no string (true, [1, 2]) is taken
for what its literal means, unless the official rule, which knows strings alone there, is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from toolprm_decode.questions import literals
from toolprm_decode.tools import Tool

Allowed = Mapping[str, Sequence[Any]]

_PYTHON_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "number": float,  # JSON Schema's names, for tools that come in another dialect
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "object": dict,
    "any": str,
}
_JAVA_TYPES: dict[str, type] = {
    **dict.fromkeys(("byte", "short", "integer", "long"), int),
    **dict.fromkeys(("float", "double"), float),
    **dict.fromkeys(("char", "String", "any"), str),
    **dict.fromkeys(("Array", "ArrayList", "Queue", "Stack"), list),
    **dict.fromkeys(("HashMap", "Hashtable"), dict),
    "boolean": bool,
}
_JAVASCRIPT_TYPES: dict[str, type] = {
    "String": str,
    "integer": int,
    "float": float,
    "Bigint": int,
    "Boolean": bool,
    "dict": dict,
    "array": list,
    "any": str,
}
_TYPES = {"python": _PYTHON_TYPES, "java": _JAVA_TYPES, "javascript": _JAVASCRIPT_TYPES}
_READERS = {"java": literals.java, "javascript": literals.javascript}
_HOLDERS = frozenset({"array", "tuple"})  # whose items' types count in Python; elsewhere also these two
_SOURCE_HOLDERS = frozenset({"Array", "ArrayList", "array"})


def check_calls(
    calls: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Allowed]],
    tools: Sequence[Tool],
    language: str = "python",
    *,
    official: bool = False,
) -> bool:
    """Whether the calls are those of the possible answers, in any order.

    Each possible answer takes the first call left that fits it, as the official checker does: where the allowed values
    of two answers overlap, this can refuse calls that another pairing would accept.

    Args:
        calls: [{"name": ..., "arguments": {...}}].
        answers: [{name: {parameter: [allowed value, ...]}}], BFCL's ground truth; [] asks for no call.
        tools: of the question.
        language: python, java or javascript.
        official: in Java and JavaScript take strings alone.
    """
    if len(calls) != len(answers):
        return False
    known = {tool.name: tool for tool in tools}
    left = list(calls)
    for answer in answers:
        name, allowed = next(iter(answer.items()))
        fitting = (
            index
            for index, call in enumerate(left)
            if call["name"] == name
            and check_call(call["arguments"], allowed, known.get(name), language, official=official)
        )
        found = next(fitting, None)
        if found is None:
            return False
        del left[found]
    return True


def check_call(
    arguments: Mapping[str, Any],
    allowed: Allowed,
    tool: Tool | None,
    language: str = "python",
    *,
    official: bool = False,
) -> bool:
    """Whether the arguments of a call, whose name is right, are allowed and complete."""
    return is_complete(arguments, allowed, tool) and all(
        check_value(name, value, allowed, tool, language, official=official) for name, value in arguments.items()
    )


def is_complete(arguments: Mapping[str, Any], allowed: Allowed, tool: Tool | None) -> bool:
    """Whether every parameter that the tool requires, or that the answer does not let go, is given."""
    required = [] if tool is None else tool.parameters.get("required", [])
    return all(name in arguments for name in required) and all(
        name in arguments or "" in values for name, values in allowed.items()
    )


def check_value(
    name: str,
    value: Any,
    allowed: Allowed,
    tool: Tool | None,
    language: str = "python",
    *,
    official: bool = False,
) -> bool:
    """Whether one argument is among the allowed ones, by its type and by its value."""
    if name not in allowed:
        return False
    schema = _declared(name, tool)
    if schema is None:
        return False
    values = list(allowed[name])
    written = schema.get("type")
    items = schema.get("items")
    inner = items.get("type") if isinstance(items, Mapping) else None
    types = _TYPES[language]
    expected = types.get(written) if isinstance(written, str) else None
    nested: type | None = None
    if written in (_HOLDERS if language == "python" else _SOURCE_HOLDERS) and isinstance(inner, str):
        nested = types.get(inner)
    if language != "python":
        if isinstance(value, str) and isinstance(written, str):
            with suppress(ValueError):  # Python reads no more than 4,300 digits
                value = _READERS[language](value, written, inner if written in _SOURCE_HOLDERS else None)
        elif official:
            return False
    if expected is float and type(value) is int and (language == "python" or not official):
        value = float(value)
    if expected is None:  # a type that the leaderboard does not know: the answer's values are the only witness
        expected = type(value)
    fits, is_variable = _check_type(value, values, expected, nested)
    if not fits:
        return False
    if not is_variable:
        if expected is dict:
            return _check_object(value, values)
        if expected is list and nested is dict:
            return _check_objects(value, values)
        if expected is str:
            return isinstance(value, str) and _plain(value) in [_plain(one) for one in values if isinstance(one, str)]
        if expected is list:
            return [_plain(item) for item in value] in [[_plain(item) for item in _items(one)] for one in values]
    return value in values


def _declared(name: str, tool: Tool | None) -> Mapping[str, Any] | None:
    """What the tool says of a parameter, with the type in the words of its author; None where it has no such one."""
    if tool is None:
        return {}
    read = tool.parameters.get("properties", {})
    original = tool.original
    for part in ("function", "parameters", "properties"):
        inside = original.get(part) if isinstance(original, Mapping) else None
        if inside is not None:
            original = inside
    said = original.get(name) if isinstance(original, Mapping) else None
    if name not in read:
        return None
    declared = said if isinstance(said, Mapping) else read[name]
    return declared if isinstance(declared, Mapping) else {}


def _check_type(value: Any, allowed: Sequence[Any], expected: type, nested: type | None) -> tuple[bool, bool]:
    """Whether the value is of the expected type, or of the answer's; and whether the answer is of another one.

    That other type means a variable's name stands for the value, so that values are compared as they are.
    """
    shown = next((type(one) for one in allowed if one != ""), None)
    is_variable = shown is not None and shown is not expected
    if type(value) is expected:
        if nested is None:
            return True, is_variable
        items: Any = value
        fitting = (
            not isinstance(one, list) or all(_check_type(item, one, nested, None)[0] for item in items)
            for one in allowed
        )
        return any(fitting), is_variable
    return shown is not None and type(value) is shown, True


_IGNORED = re.compile(r"[ ,./\-_*^]")


def _plain(value: Any) -> Any:
    """A string without what the leaderboard does not look at; anything else as it is."""
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


def _items(value: Any) -> Any:
    return value if isinstance(value, list | str) else [value]


def _check_object(value: Mapping[str, Any], allowed: Sequence[Any]) -> bool:
    """By key: the members of an allowed object are lists of allowed values again, which are plain."""
    for one in allowed:
        if not isinstance(one, Mapping):
            continue
        if all(
            key in one and _plain(member) in [_plain(choice) for choice in _items(one[key])]
            for key, member in value.items()
        ) and all(key in value or "" in _items(choices) for key, choices in one.items()):
            return True
    return False


def _check_objects(value: Sequence[Any], allowed: Sequence[Any]) -> bool:
    """By position."""
    return any(
        len(value) == len(one)
        and all(
            isinstance(item, Mapping) and _check_object(item, [said]) for item, said in zip(value, one, strict=True)
        )
        for one in allowed
        if isinstance(one, list | str)
    )
