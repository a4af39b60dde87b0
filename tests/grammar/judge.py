"""Judges texts of calls by parsing them and validating the arguments: slow, and apart from the package."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from toolprm_decode.tools import Tool

from .bfcl import misfits
from .texts import JSON_FORMATS, dumps_of, write


@dataclass(frozen=True)
class Verdict:
    """What is known of a text.

    legal: it is laid out as the format asks, and its calls fit their schemas; only such texts may be accepted.
    plain: it is spelt as json.dumps (or repr) spells it; legal texts that are plain must be accepted. Others may be
        refused: numbers such as 5e0 for an integer, escapes such as \\u0061 in a key or in the value of an enum, and
        in Pythonic texts keys with characters that repr() alone escapes.
    """

    legal: bool
    plain: bool


class _Refused(Exception):
    """Not a text of the format."""


class _Pairs(list[tuple[str, Any]]):
    """An object with its keys as they were written, twice perhaps."""


def judge(text: str, format: str, tools: Sequence[Tool]) -> Verdict:
    """What a text is to a set of tools."""
    try:
        text.encode()
        calls = list(_python_calls(text) if format == "pythonic" else _json_calls(text, format))
        plain_calls = [{"name": name, "arguments": _plain(arguments)} for name, arguments in calls]
        json.dumps(plain_calls, ensure_ascii=False).encode()  # refuses lone surrogates
    except (_Refused, ValueError, SyntaxError, RecursionError):
        return Verdict(False, False)
    schemas = {tool.name: tool.parameters for tool in tools}
    legal = not misfits(plain_calls, list(tools))
    legal = legal and not any(_repeats(schemas[name], arguments) for name, arguments in calls)
    plain = text in {write(plain_calls, format, dumps) for dumps in dumps_of(format)}
    return Verdict(legal, plain and (format != "pythonic" or all(map(_is_plain_key, _keys(plain_calls)))))


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for member in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(member)


def _is_plain_key(key: str) -> bool:
    """Whether repr() escapes nothing in it but what JSON escapes too: such keys have one spelling only."""
    return key.replace("\n", "").isprintable() and not {"'", '"'} <= set(key)


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {key: _plain(member) for key, member in value}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _repeats(schema: Any, value: Any) -> bool:
    """Whether a declared property occurs twice. Other keys may: to remember all of them, states would be endless."""
    if not isinstance(schema, dict):
        return False
    options = [option for word in ("anyOf", "oneOf", "allOf") for option in schema.get(word, [])]
    if any(_repeats(option, value) for option in options):
        return True
    if isinstance(value, _Pairs):
        properties = schema.get("properties", {})
        keys = [key for key, _ in value if key in properties]
        return len(keys) > len(set(keys)) or any(
            _repeats(properties.get(key, schema.get("additionalProperties")), member) for key, member in value
        )
    return isinstance(value, list) and any(_repeats(schema.get("items"), item) for item in value)


# ---------------------------------------------------------------- JSON


def _constant(word: str) -> Any:
    raise _Refused(word)


def _float(text: str) -> float:
    """The number; where floats end, one on the same side of every bound as the decimal itself."""
    value = float(text)
    if math.isinf(value):
        return math.copysign(1e308, value)
    is_zero = value == 0 and not re.search("[1-9]", re.split("[eE]", text)[0])
    return value if value or is_zero else math.copysign(5e-324, value)


_DECODER = json.JSONDecoder(object_pairs_hook=_Pairs, parse_constant=_constant, parse_float=_float)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[-+.\w]*|.', re.DOTALL)


def _layout(text: str) -> str:
    """The text with every string and number replaced: what is left is punctuation, words and white space."""
    return "".join(
        "S" if token[0] in "\"'" else "N" if re.fullmatch(r"-?\d.*", token) else token for token in _TOKEN.findall(text)
    )


def _dumped(value: Any) -> str:
    if isinstance(value, _Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {_dumped(member)}" for key, member in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dumped, value)) + "]"
    return "0" if isinstance(value, float) else json.dumps(value)  # an endless float has a layout too


def _json_value(text: str, at: int) -> tuple[Any, int]:
    if text[at : at + 1] in ("", " ", "\n", "\t", "\r"):
        raise _Refused("no value")
    value, end = _DECODER.raw_decode(text, at)
    if _layout(text[at:end]) != _layout(_dumped(value)):
        raise _Refused("white space")
    return value, end


def _json_calls(text: str, format: str) -> Iterator[tuple[str, Any]]:
    begin, separator, close, end, name_open, arguments_open, call_close, call_end = JSON_FORMATS[format]
    if not text.startswith(begin) or not text.endswith(close + end):
        raise _Refused("frame")
    at, last, first = len(begin), len(text) - len(close + end), True
    while at < last:
        if not first:
            at = _literal(text, at, separator)
        name, at = _json_value(text, _literal(text, at, name_open))
        arguments, at = _json_value(text, _literal(text, at, arguments_open))
        at = _literal(text, at, call_close + call_end)
        if not isinstance(name, str) or not isinstance(arguments, _Pairs):
            raise _Refused("call")
        yield name, arguments
        first = False
    if at != last:
        raise _Refused("end")


def _literal(text: str, at: int, literal: str) -> int:
    if not text.startswith(literal, at):
        raise _Refused(literal)
    return at + len(literal)


# ---------------------------------------------------------------- Python

_WORDS = {"true": True, "false": False, "null": None}
_PYTHON_TOKEN = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|-?\d[-+.\w]*|\w+|.", re.DOTALL)


def _python_layout(text: str) -> str:
    words = {"true": "True", "false": "False", "null": "None"}
    return "".join(
        "S" if token[0] in "\"'" else "N" if re.fullmatch(r"-?\d.*", token) else words.get(token, token)
        for token in _PYTHON_TOKEN.findall(text)
    )


def _repr(value: Any) -> str:
    if isinstance(value, _Pairs):
        return "{" + ", ".join(f"{key!r}: {_repr(member)}" for key, member in value) + "}"
    return "[" + ", ".join(map(_repr, value)) + "]" if isinstance(value, list) else repr(value)


def _python_calls(text: str) -> Iterator[tuple[str, Any]]:
    if re.search(r"[\x00\r\f]", text) or not text.startswith("["):
        raise _Refused("not plain Python")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that Python does not know
        tree = ast.parse(text, mode="eval").body
    if not isinstance(tree, ast.List):
        raise _Refused("no list")
    calls = []
    for call in tree.elts:
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise _Refused("no call")
        calls.append(
            (ast.unparse(call.func), _Pairs((str(k.arg), _python_value(k.value, text)) for k in call.keywords))
        )
    written = ", ".join(f"{name}({', '.join(f'{k}={_repr(v)}' for k, v in arguments)})" for name, arguments in calls)
    if _python_layout(text) != _python_layout(f"[{written}]"):
        raise _Refused("layout")
    return iter(calls)


def _segment(source: str, node: ast.expr) -> str:
    return ast.get_source_segment(source, node) or ""


def _python_value(node: ast.expr, source: str) -> Any:
    match node:
        case ast.Constant(value=str() as text):  # between double quotes JSON's surrogate pairs are legal too
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        case ast.Constant(value=None | bool() | int()):
            return node.value
        case ast.Constant(value=float()):
            return _float(_segment(source, node))
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float()) as operand):
            return -_python_value(operand, source)
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.List(elts=items):
            return [_python_value(item, source) for item in items]
        case ast.Dict(keys=keys, values=values):
            names = [_python_value(key, source) if key is not None else None for key in keys]
            if all(isinstance(name, str) for name in names):
                return _Pairs((str(n), _python_value(v, source)) for n, v in zip(names, values, strict=True))
    raise _Refused("no literal")
