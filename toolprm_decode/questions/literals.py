"""What source literals of Java and JavaScript mean, as bfcl-eval's converters read them; other text is itself."""

from __future__ import annotations

import re
from typing import Any

_INTEGER = re.compile(r"-?\d+$")
_JAVA_FLOAT = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?[fF]$")
_JAVA_DOUBLE = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?$")
_JAVA_LONG = re.compile(r"-?\d+[lL]$")
_AS_LIST = re.compile(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)")
_ADDED = re.compile(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*(.+?)\s*\}\}", re.DOTALL)
_EMPTY_LIST = re.compile(r"new\s+ArrayList<\w*>\(\)")
_ARRAY = re.compile(r"new\s+\w+\[\]\s*\{(.*?)\}")
_MAP = re.compile(r"new\s+HashMap<.*?>\s*\(\)\s*\{\s*\{?\s*(.*?)\s*\}?\s*\}", re.DOTALL)
_EMPTY_MAP = re.compile(r"new\s+HashMap<.*?>\s*\(\)")


def java(text: str, type_name: str, items: str | None = None) -> Any:
    """What a Java literal of a type means; text that is no such literal stays text."""
    if type_name in ("byte", "short", "integer"):
        return int(text) if _INTEGER.match(text) else text
    if type_name == "float":
        return float(text.rstrip("\n")[:-1]) if _JAVA_FLOAT.match(text) else text
    if type_name == "double":
        return float(text) if _JAVA_DOUBLE.match(text) else text
    if type_name == "long":
        return int(text.rstrip("\n")[:-1]) if _JAVA_LONG.match(text) else text
    if type_name == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if type_name == "ArrayList":
        return _java_list(text, items)
    if type_name == "Array":
        found = _ARRAY.search(text)
        if found is None:
            return text
        parts = [part.strip() for part in found[1].split(",") if part.strip()]
        return [java(part, items) if items else _java_value(part) for part in parts]
    if type_name == "HashMap":
        if found := _MAP.search(text):
            pairs = re.findall(r"put\(\"(.*?)\",\s*(.*?)\)", found[1])
            return {key: _java_value(value.strip()) for key, value in pairs}
        return {} if _EMPTY_MAP.search(text) else text
    return text


def _java_list(text: str, items: str | None) -> Any:
    if found := _AS_LIST.search(text):
        parts = found[1].split(",")
    elif found := _ADDED.search(text):
        parts = re.findall(r"add\((.+?)\)", found[1])
    else:
        return [] if _EMPTY_LIST.search(text) else text
    stripped = [part.strip() for part in parts]
    if items in ("char", "String"):
        return [part[1:-1] for part in stripped]
    return [java(part, items) if items else _java_value(part) for part in stripped]


def _java_value(text: str) -> Any:
    """A literal of which no type is known."""
    if text in ("true", "false"):
        return text == "true"
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    if _JAVA_LONG.match(text):
        return int(text[:-1])
    if _JAVA_FLOAT.match(text):
        return float(text[:-1])
    return _number(text)


_LISTS = re.compile(r"\[\s*\[.*?\]\s*(,\s*\[.*?\]\s*)*\]|\bnew\s+Array\(\s*\[.*?\]\s*(,\s*\[.*?\]\s*)*\)")
_LIST = re.compile(r"\[(.*?)\]|\bnew\s+Array\((.*?)\)")
_OBJECT = re.compile(r"\{(.*?)\}")
_PAIR = re.compile(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)")


def javascript(text: str, type_name: str, items: str | None = None) -> Any:
    """What a JavaScript literal of a type means; text that is no such literal stays text."""
    if type_name == "String":
        return text[1:-1] if _is_quoted(text) else text
    if type_name == "integer":
        return int(text) if _INTEGER.match(text) else text
    if type_name == "float":
        return float(text) if re.match(r"-?\d+(\.\d+)?$", text) else text
    if type_name == "Bigint":
        return int(text.rstrip("\n")[:-1]) if re.match(r"-?\d+n$", text) else text
    if type_name == "Boolean":
        return {"true": True, "false": False}.get(text, text)
    if type_name == "array":
        return _javascript_list(text.strip(), items)
    if type_name == "dict":
        return _javascript_object(text.strip())
    return text


def _javascript_list(text: str, items: str | None) -> Any:
    if found := _LISTS.match(text):
        inner = [part.strip() for part in re.findall(r"\[(.*?)\]", found[0])]
        if inner[0].startswith("["):
            inner[0] = inner[0][1:]
        return [[_javascript_value(part) for part in one.split(",")] for one in inner]
    if not (found := _LIST.match(text)):
        return text
    written = (found[1] if found[1] is not None else found[2]).strip()
    parts = [part.strip() for part in written.split(",")] if written else []
    return [javascript(part, items) if items else _javascript_value(part) for part in parts]


def _javascript_object(text: str) -> Any:
    if text == "{}":
        return {}
    if not (found := _OBJECT.match(text)):
        return text
    members: dict[str, Any] = {}
    for key, written in _PAIR.findall(found[1]):
        value = written.strip()
        if value.startswith("[") and value.endswith("]"):
            read = _javascript_list(value, None)
        elif value.startswith("{") and value.endswith("}"):
            read = _javascript_object(value)
        else:
            read = _javascript_value(value.strip("'\""))
        members[key.strip().strip("'\"")] = read
    return members


def _javascript_value(text: str) -> Any:
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    return text[1:-1] if _is_quoted(text) else _number(text)


def _is_quoted(text: str) -> bool:
    return any(text.startswith(quote) and text.endswith(quote) for quote in "\"'")


def _number(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
