"""Whether one JSON value satisfies a schema: for the values of an enum, and for telling alternatives apart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Protocol

from toolprm_decode.grammar.fsm import ByteFSM, EmptyLanguage
from toolprm_decode.grammar.merging import (
    MORE,
    NOT,
    Factor,
    Schema,
    Text,
    containments,
    equal,
    items_of,
    type_of,
)

__all__ = ["TYPES", "CannotTell", "Reader", "constants", "holds", "types_of"]

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


class CannotTell(ValueError):
    """A keyword that this module does not evaluate."""

    def __init__(self, keyword: str):
        super().__init__(f"{keyword} cannot be evaluated here")
        self.keyword = keyword


class Reader(Protocol):
    """What evaluation needs of whoever reads the schema."""

    def resolve(self, reference: Any, pointer: str) -> tuple[Schema, str]: ...

    def text_fsm(self, text: Text) -> ByteFSM | None: ...


_UNKNOWN = ("unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef")
_MAX_DEPTH = 60


def types_of(schema: Schema) -> set[str]:
    """The types that values of the schema may have, as far as its own keywords say; integer is among number's."""
    if not isinstance(schema, dict):
        return set(TYPES) if schema else set()
    given = schema.get("type", list(TYPES))
    names = {given} if isinstance(given, str) else set(given) if isinstance(given, list) else set(TYPES)
    names = names | {"integer"} if "number" in names else names
    names = names | {"null"} if schema.get("nullable") is True else names
    for word, values in (("enum", schema.get("enum")), ("const", [schema.get("const")])):
        if word in schema and isinstance(values, list):
            names &= {type_of(v) for v in values}
    return names


def constants(schema: Schema) -> list[Any] | None:
    """The values that the schema lists, other keywords not looked at; None where it lists none."""
    if isinstance(schema, dict):
        if "const" in schema:
            return [schema["const"]]
        if isinstance(schema.get("enum"), list):
            return list(schema["enum"])
    return None


def holds(schema: Schema, value: Any, reader: Reader, depth: int = 0) -> bool:
    """Whether a JSON value satisfies a schema. Raises CannotTell, naming the keyword."""
    if not isinstance(schema, dict):
        return bool(schema)
    if depth > _MAX_DEPTH:
        raise CannotTell("$ref")
    for word in _UNKNOWN:
        if word in schema:
            raise CannotTell(word)

    def good(part: Schema, of: Any) -> bool:
        return holds(part, of, reader, depth + 1)

    if "$ref" in schema and not good(reader.resolve(schema["$ref"], "")[0], value):
        return False
    if "type" in schema or "enum" in schema or "const" in schema:
        kind = type_of(value)
        types = schema.get("type", kind)
        types = [types] if isinstance(types, str) else types
        null = kind == "null" and schema.get("nullable") is True
        if kind not in types and not null and not (kind == "integer" and "number" in types):
            return False
        for word, values in (("enum", schema.get("enum")), ("const", [schema.get("const")])):
            if word in schema and not any(equal(value, one) for one in values or ()):
                return False
    if not _combined(schema, value, good):
        return False
    if isinstance(value, str):
        return _string(schema, value, reader)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(schema, value)
    if isinstance(value, dict):
        return _object(schema, value, reader, good)
    return not isinstance(value, list) or _array(schema, value, good)


_Good = Callable[[Schema, Any], bool]


def _combined(schema: dict[str, Any], value: Any, good: _Good) -> bool:
    if not all(good(member, value) for member in schema.get("allOf", ())):
        return False
    if "anyOf" in schema and not any(good(member, value) for member in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(good(member, value) for member in schema["oneOf"]) != 1:
        return False
    if "not" in schema and good(schema["not"], value):
        return False
    if any(good(negated.schema, value) for negated in schema.get(NOT, ())):
        return False
    if "if" in schema:
        return good(schema.get("then" if good(schema["if"], value) else "else", True), value)
    return True


def _string(schema: dict[str, Any], value: str, reader: Reader) -> bool:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
        return False
    given = schema.get("pattern", [])
    texts: list[Any] = list(given) if isinstance(given, list) else [given]
    if "format" in schema:
        texts.append(Text("format", schema["format"]))
    written = json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")
    for text in texts:
        text = text if isinstance(text, Text) else Text("pattern", text)
        try:
            fsm = reader.text_fsm(text)
        except EmptyLanguage:
            if text.wanted:
                return False
            continue
        if fsm is not None and fsm.matches(written) != text.wanted:
            return False
    return True


def _number(schema: dict[str, Any], value: int | float) -> bool:
    exact = Fraction(repr(value)) if isinstance(value, float) else Fraction(value)

    def bound(word: str) -> Fraction | None:
        given = schema.get(word)
        if given is None or isinstance(given, bool):
            return None
        return Fraction(repr(given)) if isinstance(given, float) else Fraction(given)

    low, high = bound("minimum"), bound("maximum")
    above, below = bound("exclusiveMinimum"), bound("exclusiveMaximum")
    if schema.get("exclusiveMinimum") is True:  # draft 4: a flag beside the bound
        low, above = None, low
    if schema.get("exclusiveMaximum") is True:
        high, below = None, high
    if (low is not None and exact < low) or (high is not None and exact > high):
        return False
    if (above is not None and exact <= above) or (below is not None and exact >= below):
        return False
    factors = schema.get("multipleOf", [])
    for factor in factors if isinstance(factors, list) else [factors]:
        factor = factor if isinstance(factor, Factor) else Factor(factor)
        of = Fraction(repr(factor.value)) if isinstance(factor.value, float) else Fraction(factor.value)
        if ((exact / of).denominator == 1) != factor.wanted:
            return False
    return True


def _object(schema: dict[str, Any], value: dict[str, Any], reader: Reader, good: _Good) -> bool:
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", math.inf):
        return False
    if any(name not in value for name in schema.get("required", ())):
        return False
    if "propertyNames" in schema and not all(good(schema["propertyNames"], name) for name in value):
        return False
    old = schema.get("dependencies", {})
    needed = {**schema.get("dependentRequired", {}), **{k: v for k, v in old.items() if isinstance(v, list)}}
    if any(name in value and any(other not in value for other in others) for name, others in needed.items()):
        return False
    asked = {**schema.get("dependentSchemas", {}), **{k: v for k, v in old.items() if not isinstance(v, list)}}
    if any(name in value and not good(member, value) for name, member in asked.items()):
        return False
    for one in (schema, *(schema[MORE].conditions if MORE in schema else ())):
        for name, member in value.items():
            found = False
            if name in one.get("properties", {}):
                found = True
                if not good(one["properties"][name], member):
                    return False
            for pattern, of in one.get("patternProperties", {}).items():
                if _string({"pattern": pattern}, name, reader):
                    found = True
                    if not good(of, member):
                        return False
            if not found and not good(one.get("additionalProperties", True), member):
                return False
    return True


def _array(schema: dict[str, Any], value: list[Any], good: _Good) -> bool:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
        return False
    prefix, rest = items_of(schema)
    if not all(good(prefix[i] if i < len(prefix) else rest, item) for i, item in enumerate(value)):
        return False
    if schema.get("uniqueItems") and any(equal(value[i], value[j]) for i in range(len(value)) for j in range(i)):
        return False
    for one in containments(schema):
        count = sum(good(one.schema, item) for item in value[one.start :])
        if count < one.low or (one.high is not None and count > one.high):
            return False
    return True
