"""What does not satisfy a schema, as alternatives; and the keywords that need it, in terms of simpler ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from typing import Any

from toolprm_decode.grammar.checking import TYPES
from toolprm_decode.grammar.merging import (
    CONTAINS,
    MORE,
    NOT,
    CannotMerge,
    Contains,
    Factor,
    Negated,
    Schema,
    Text,
    containments,
    items_of,
)

__all__ = ["REWRITTEN", "negate", "rewritten"]

REWRITTEN = frozenset({"not", NOT, "if", "dependentRequired", "dependentSchemas", "dependencies"})
"""The keywords that rewritten() takes away."""

_MAX_SUBSETS = 4  # properties whose every subset is an alternative


Resolve = Callable[[Any, str], tuple[Schema, str]]
"""What a reference, found at a pointer, leads to, and the pointer of that."""


def rewritten(schema: dict[str, Any], pointer: str, annotating: frozenset[str], resolve: Resolve) -> Schema:
    """The schema with the keywords of REWRITTEN as unions under allOf. Raises CannotMerge for what has no negation.

    annotating: formats that ask for nothing. resolve: as SchemaCompiler.resolve().
    """
    kept = {word: value for word, value in schema.items() if word not in REWRITTEN and word not in ("then", "else")}
    parts: list[Schema] = list(kept.pop("allOf", ()))
    negated = [*(_negated_of(schema)), *([Negated(schema["not"], "not", pointer)] if "not" in schema else [])]
    for one in negated:
        try:
            options = list(negate(one, annotating, resolve))
        except CannotMerge as error:
            message = f"the opposite of {error.keyword} cannot be enforced"
            message += "" if one.keyword == "not" else f", which {one.keyword} needs"
            raise CannotMerge(message, one.keyword, one.pointer) from error
        parts.append({"anyOf": options} if options else False)
    if "if" in schema and ("then" in schema or "else" in schema):
        condition = schema["if"]
        options = [
            {"allOf": [condition, schema.get("then", True)]},
            {"allOf": [{NOT: (Negated(condition, "if", pointer),)}, schema.get("else", True)]},
        ]
        parts.append({"anyOf": options})
    for word in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, asked in _mapping(schema, word).items():
            asks: Schema = {"required": [name, *asked]} if isinstance(asked, list) else asked
            if asks not in (True, {}):
                present: Schema = {"required": [name]}
                with_it: list[Schema] = [asks] if isinstance(asked, list) else [present, asks]
                parts.append({"anyOf": [{"properties": {name: False}}, {"allOf": with_it}]})
    return {**kept, "allOf": parts} if parts else kept


def _negated_of(schema: dict[str, Any]) -> list[Negated]:
    found = schema.get(NOT, ())
    return [one for one in found if isinstance(one, Negated)] if isinstance(found, tuple) else []


def _mapping(schema: dict[str, Any], word: str) -> dict[str, Any]:
    found = schema.get(word, {})
    if not isinstance(found, dict):
        raise TypeError(f"{word} must be an object, not {found!r:.60}")
    return found


def negate(what: Negated, annotating: frozenset[str], resolve: Resolve) -> Iterator[Schema]:
    """Schemas that together hold exactly where the given one does not.

    One level only: what lies inside it is negated when it is read. Raises CannotMerge, naming the keyword.
    """
    schema = what.schema
    if not isinstance(schema, dict):
        if not schema:
            yield True
        return

    def no(part: Schema) -> Schema:
        return {NOT: (Negated(part, what.keyword, what.pointer),)}

    if "$ref" in schema:
        yield no(resolve(schema["$ref"], what.pointer)[0])
    for member in schema.get("allOf", ()):
        yield no(member)
    if "anyOf" in schema:
        yield {"allOf": [no(member) for member in schema["anyOf"]]}
    if "oneOf" in schema:
        yield {"allOf": [no(member) for member in schema["oneOf"]]}
        for a, b in combinations(schema["oneOf"], 2):
            yield {"allOf": [a, b]}
    if "not" in schema:
        yield schema["not"]
    for one in _negated_of(schema):
        yield one.schema
    if "if" in schema:
        if "then" in schema:
            yield {"allOf": [schema["if"], no(schema["then"])]}
        if "else" in schema:
            yield {"allOf": [no(schema["if"]), no(schema["else"])]}
    for word in ("unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef"):
        if word in schema and schema[word] not in (True, {}):
            raise CannotMerge(f"the opposite of {word} cannot be enforced", word)
    yield from _other_type(schema)
    yield from _other_value(schema, no)
    yield from _other_number(schema)
    yield from _other_string(schema, annotating)
    yield from _other_array(schema, no)
    yield from _other_object(schema, no)


def _other_type(schema: dict[str, Any]) -> Iterator[Schema]:
    if "type" not in schema:
        return
    given = schema["type"]
    types = {given} if isinstance(given, str) else set(given)
    others = [name for name in TYPES if name not in types and name != "integer"]
    if others:
        yield {"type": others}
    if "integer" in types and "number" not in types:
        others.remove("number")
        yield {"type": "number", "multipleOf": [Factor(1, False)]}
        if others:
            yield {"type": others}


def _other_value(schema: dict[str, Any], no: Any) -> Iterator[Schema]:
    for word, values in (("enum", schema.get("enum")), ("const", [schema.get("const")])):
        if word not in schema:
            continue
        if not isinstance(values, list):
            raise TypeError(f"enum must be a list of values, not {values!r:.60}")
        numbers = sorted({v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)})
        strings = tuple(v for v in values if isinstance(v, str))
        if strings:
            yield {"type": "string", "pattern": [Text("one of", strings, False)]}
        else:
            yield {"type": "string"}
        words = [v for v in (True, False, None) if not any(v is w for w in values)]
        if words:
            yield {"enum": words}
        edges = [None, *numbers, None]
        for low, high in pairwise(edges):
            bounds = {"exclusiveMinimum": low, "exclusiveMaximum": high}
            yield {"type": "number", **{k: v for k, v in bounds.items() if v is not None}}
        arrays = [v for v in values if isinstance(v, list)]
        objects = [v for v in values if isinstance(v, dict)]
        for name, found in (("array", arrays), ("object", objects)):
            if len(found) != 1:
                yield {"type": name, "allOf": [no({"const": v}) for v in found]} if found else {"type": name}
        if len(arrays) == 1:
            yield from _unlike_array(arrays[0])
        if len(objects) == 1:
            yield from _unlike_object(objects[0])


def _unlike_array(value: list[Any]) -> Iterator[Schema]:
    if value:
        yield {"type": "array", "maxItems": len(value) - 1}
    yield {"type": "array", "minItems": len(value) + 1}
    for index, item in enumerate(value):
        other = {"not": {"const": item}}
        yield {"type": "array", "minItems": index + 1, "prefixItems": [True] * index + [other]}


def _unlike_object(value: dict[str, Any]) -> Iterator[Schema]:
    for name, member in value.items():
        yield {"type": "object", "properties": {name: False}}
        yield {"type": "object", "properties": {name: {"not": {"const": member}}}, "required": [name]}
    # with all of them declared, no other key is among those counted twice
    yield {
        "type": "object",
        "properties": dict.fromkeys(value, True),
        "required": list(value),
        "minProperties": len(value) + 1,
    }


def _other_number(schema: dict[str, Any]) -> Iterator[Schema]:
    for word, opposite in (
        ("minimum", "exclusiveMaximum"),
        ("maximum", "exclusiveMinimum"),
        ("exclusiveMinimum", "maximum"),
        ("exclusiveMaximum", "minimum"),
    ):
        if isinstance(schema.get(word), bool):
            raise CannotMerge(f"the opposite of {word} as a flag cannot be enforced", word)
        if word in schema:
            yield {"type": "number", opposite: schema[word]}
    factors = schema.get("multipleOf", [])
    for factor in factors if isinstance(factors, list) else [factors]:
        factor = factor if isinstance(factor, Factor) else Factor(factor)
        yield {"type": "number", "multipleOf": [Factor(factor.value, not factor.wanted)]}


def _other_string(schema: dict[str, Any], annotating: frozenset[str]) -> Iterator[Schema]:
    if schema.get("minLength", 0) > 0:
        yield {"type": "string", "maxLength": schema["minLength"] - 1}
    if "maxLength" in schema:
        yield {"type": "string", "minLength": schema["maxLength"] + 1}
    given = schema.get("pattern", [])
    texts: list[Any] = list(given) if isinstance(given, list) else [given]
    if "format" in schema and schema["format"] not in annotating:
        texts.append(Text("format", schema["format"]))
    for text in texts:
        text = text if isinstance(text, Text) else Text("pattern", text)
        yield {"type": "string", "pattern": [Text(text.kind, text.value, not text.wanted)]}


def _other_array(schema: dict[str, Any], no: Any) -> Iterator[Schema]:
    if schema.get("minItems", 0) > 0:
        yield {"type": "array", "maxItems": schema["minItems"] - 1}
    if "maxItems" in schema:
        yield {"type": "array", "minItems": schema["maxItems"] + 1}
    if schema.get("uniqueItems"):
        raise CannotMerge("items that are not unique cannot be enforced", "uniqueItems")
    prefix, rest = items_of(schema)
    for index, first in enumerate(prefix):
        if first not in (True, {}):
            yield {"type": "array", "minItems": index + 1, "prefixItems": [True] * index + [no(first)]}
    if rest is False:
        yield {"type": "array", "minItems": len(prefix) + 1}
    elif rest not in (True, {}):
        yield {"type": "array", CONTAINS: (Contains(no(rest), 1, None, len(prefix)),)}
    for one in containments(schema):
        if one.low > 0:
            yield {"type": "array", CONTAINS: (Contains(one.schema, 0, one.low - 1, one.start),)}
        if one.high is not None:
            yield {"type": "array", CONTAINS: (Contains(one.schema, one.high + 1, None, one.start),)}


def _other_object(schema: dict[str, Any], no: Any) -> Iterator[Schema]:
    if schema.get("minProperties", 0) > 0:
        yield {"type": "object", "maxProperties": schema["minProperties"] - 1}
    if "maxProperties" in schema:
        yield {"type": "object", "minProperties": schema["maxProperties"] + 1}
    for name in schema.get("required", ()):
        yield {"type": "object", "properties": {name: False}}
    declared = schema.get("properties", {})
    for name, member in declared.items():
        if member is False:
            yield {"type": "object", "required": [name]}
        elif member not in (True, {}):
            yield {"type": "object", "required": [name], "properties": {name: no(member)}}
    for word in ("patternProperties", "propertyNames", MORE):
        if schema.get(word, True) not in (True, {}):
            raise CannotMerge(f"the opposite of {word} cannot be enforced", word)
    if schema.get("additionalProperties", True) not in (True, {}):
        if schema["additionalProperties"] is not False or len(declared) > _MAX_SUBSETS:
            raise CannotMerge("the opposite of additionalProperties cannot be enforced", "additionalProperties")
        for size in range(len(declared) + 1):
            for there in combinations(declared, size):  # one member more than there are of the declared ones
                properties = {name: name in there for name in declared}
                some = {"properties": properties, "required": list(there), "minProperties": size + 1}
                yield {"type": "object", **some}
    for word in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, asked in _mapping(schema, word).items():
            if isinstance(asked, list):
                for other in asked:
                    yield {"type": "object", "required": [name], "properties": {other: False}}
            else:
                yield {"allOf": [{"type": "object", "required": [name]}, no(asked)]}
