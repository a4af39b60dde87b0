"""The conjunction of two JSON schemas as one schema, for allOf and for keywords beside a union or a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any] | bool


class CannotMerge(ValueError):
    """Two schemas whose conjunction this module cannot write as one schema."""

    def __init__(self, message: str, keyword: str, pointer: str | None = None):
        super().__init__(message)
        self.keyword, self.pointer = keyword, pointer  # the latter where the keyword is not where the merging is


@dataclass(frozen=True)
class More:
    """Further conditions on the members of an object: of each the properties, patternProperties, additionalProperties.

    With patterns, what one side of a conjunction says of its other keys is no longer the same for all keys that the
    other side leaves open, so the sides stay apart.
    """

    conditions: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Text:
    """One condition on strings, in the list that a merged `pattern` is.

    kind: "pattern" (value: the regex), "format" (its name) or "one of" (a tuple of strings). wanted: or its opposite.
    """

    kind: str
    value: Any
    wanted: bool = True


@dataclass(frozen=True)
class Factor:
    """One condition on numbers, in the list that a merged `multipleOf` is: to be a multiple, or to be none."""

    value: Any
    wanted: bool = True


@dataclass(frozen=True)
class Contains:
    """How many of an array's items from `start` on satisfy a schema; high None: any number."""

    schema: Schema
    low: int
    high: int | None
    start: int = 0


@dataclass(frozen=True)
class Negated:
    """A schema that must not hold, and the keyword that asks for it, for errors."""

    schema: Schema
    keyword: str
    pointer: str


# Words under which merged and rewritten schemas hold the above, in lists or alone. JSON has no values of these classes,
# so what a schema itself has under such a word is an annotation.
MORE, NOT, CONTAINS = "$more", "$not", "$contains"

_LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "$comment", "$id", "$schema"}
)
_MEMBER_WORDS = ("properties", "patternProperties", "additionalProperties")
_OBJECT_WORDS = frozenset({*_MEMBER_WORDS, "required", MORE})
_CONTAINS_WORDS = ("contains", "minContains", "maxContains", CONTAINS)
# Words that mean another thing beside other keywords, or that this module would have to understand.
_APART = frozenset(
    {
        *("not", NOT, "if", "dependentRequired", "dependentSchemas", "dependencies"),
        *("unevaluatedProperties", "unevaluatedItems"),
    }
)
_ARRAY_WORDS = frozenset({"prefixItems", "items", "additionalItems", *_CONTAINS_WORDS})
_MERGED_APART = _OBJECT_WORDS | _ARRAY_WORDS | {"then", "else"}  # the latter ask for nothing without an if
_MAX_PRODUCT = 1_024  # alternatives of one list times those of another


def merge(a: Schema, b: Schema, *, closed: bool) -> Schema:
    """A schema that holds exactly where both do.

    closed: properties without a word on additional ones allow no others (see SchemaCompiler); the two sides of a
    conjunction describe one object, so it is the merged object that is closed.
    Raises CannotMerge, naming the keyword.
    """
    if a is False or b is False:
        return False
    if a is True or a == {}:
        return b
    if b is True or b == {}:
        return a
    assert isinstance(a, dict) and isinstance(b, dict)
    if not _APART.isdisjoint(a) or not _APART.isdisjoint(b) or ("$ref" in a and "$ref" in b and a["$ref"] != b["$ref"]):
        return {"allOf": [a, b]}  # whoever reads it follows the references, and rewrites these words, first
    merged: dict[str, Any] = {}
    for word in {**a, **b}:
        if word in _MERGED_APART:
            continue
        if word == "format" and word in b and not equal(a.get(word, b[word]), b[word]):
            continue  # both, see below
        if word not in a or word not in b:
            merged[word] = a.get(word, b.get(word))
        elif equal(a[word], b[word]):
            merged[word] = a[word]
        else:
            merged[word] = _both(word, a[word], b[word], closed)
            if merged[word] is _NOTHING:
                return False
    if "format" in a and "format" in b and not equal(a["format"], b["format"]):
        texts = [Text("format", side["format"]) for side in (a, b)]
        merged["pattern"] = [*_listed(merged.get("pattern", [])), *texts]
    _merge_objects(a, b, merged, closed)
    _merge_arrays(a, b, merged, closed)
    if "nullable" in merged and "type" in a and "type" in b and not (a.get("nullable") and b.get("nullable")):
        del merged["nullable"]
    if "type" in merged and ("enum" in merged or "const" in merged):
        return _of_type(merged)
    if merged.get("type") == "object" and any(member is False for member in merged.get("properties", {}).values()):
        if any(merged["properties"].get(name) is False for name in merged.get("required", ())):
            return False
    return merged


def _of_type(schema: dict[str, Any]) -> Schema:
    """Without the listed values that are of another type."""
    types = {*_listed(schema["type"])}
    types |= {"integer"} if "number" in types else set()
    types |= {"null"} if schema.get("nullable") is True else set()
    if "const" in schema:
        return schema if type_of(schema["const"]) in types else False
    if not isinstance(schema["enum"], list):
        return schema
    values = [value for value in schema["enum"] if type_of(value) in types]
    return {**schema, "enum": values} if values else False


_NOTHING: Any = object()


def _both(word: str, x: Any, y: Any, closed: bool) -> Any:
    if word == "type":
        return _types(x, y)
    if word == "enum":
        return [v for v in x if any(equal(v, w) for w in y)] or _NOTHING
    if word == "const":
        return _NOTHING
    if word in _LARGER:
        return max(x, y)
    if word in _SMALLER:
        return min(x, y)
    if word == "multipleOf":
        if isinstance(x, int) and isinstance(y, int):
            return math.lcm(x, y)
        return [one if isinstance(one, Factor) else Factor(one) for one in (*_listed(x), *_listed(y))]
    if word == "pattern":
        return [one if isinstance(one, Text) else Text("pattern", one) for one in (*_listed(x), *_listed(y))]
    if word in ("uniqueItems", "nullable"):
        return x or y
    if word in ("anyOf", "oneOf") and len(x) * len(y) <= _MAX_PRODUCT:
        # Exactly one of each list: the products are as disjoint as the lists themselves.
        return [both for p in x for q in y if (both := merge(p, q, closed=closed)) is not False] or _NOTHING
    if word == "propertyNames":
        return {"allOf": [x, y]}
    if word in ("$defs", "definitions"):
        return {**x, **y}
    if word == "allOf":
        return [*x, *y]
    if word in _ANNOTATIONS:
        return x
    if word in ("anyOf", "oneOf"):
        raise CannotMerge(f"unions that hold together have more than {_MAX_PRODUCT} combinations", word)
    raise CannotMerge(f"two different {word} keywords hold together, which cannot be enforced", word)


def _types(x: Any, y: Any) -> Any:
    ours, theirs = (set(_listed(t)) for t in (x, y))
    common = ours & theirs
    if ("number" in ours and "integer" in theirs) or ("number" in theirs and "integer" in ours):
        common |= {"integer"}
    return sorted(common) or _NOTHING


def equal(x: Any, y: Any) -> bool:
    """Whether two JSON values are the same one: 1 and 1.0 are, 1 and true are not."""
    if isinstance(x, dict) and isinstance(y, dict):
        return x.keys() == y.keys() and all(equal(x[key], y[key]) for key in x)
    if isinstance(x, list) and isinstance(y, list):
        return len(x) == len(y) and all(map(equal, x, y))
    return bool(x == y) and isinstance(x, bool) == isinstance(y, bool)


def _listed(x: Any) -> list[Any]:
    return x if isinstance(x, list) else [x]


def _merge_objects(a: dict[str, Any], b: dict[str, Any], merged: dict[str, Any], closed: bool) -> None:
    for side in (a, b):
        if not isinstance(side.get("required", []), list):
            raise TypeError(f"required must be a list of property names, not {side['required']!r:.60}")
    required = list(dict.fromkeys([*a.get("required", []), *b.get("required", [])]))
    if required:
        merged["required"] = required
    if any(word in side for side in (a, b) for word in ("patternProperties", MORE)):
        sides = [side for side in (*_conditions(a), *_conditions(b)) if side]
        merged.update(sides[0] if sides else {})
        if len(sides) > 1:
            merged[MORE] = More(tuple(sides[1:]))
        return
    ours, theirs = a.get("properties", {}), b.get("properties", {})
    if ours or theirs or "properties" in a or "properties" in b:
        properties: dict[str, Any] = {}
        for name in {**ours, **theirs}:
            x = ours.get(name, a.get("additionalProperties", True))
            y = theirs.get(name, b.get("additionalProperties", True))
            properties[name] = merge(x, y, closed=closed)
        merged["properties"] = properties
    if "additionalProperties" in a or "additionalProperties" in b:
        merged["additionalProperties"] = merge(
            a.get("additionalProperties", True), b.get("additionalProperties", True), closed=closed
        )


def _conditions(schema: dict[str, Any]) -> list[dict[str, Any]]:
    own = {word: schema[word] for word in _MEMBER_WORDS if word in schema}
    return [own, *(schema[MORE].conditions if MORE in schema else ())]


def _merge_arrays(a: dict[str, Any], b: dict[str, Any], merged: dict[str, Any], closed: bool) -> None:
    if not _ARRAY_WORDS & {*a, *b}:
        return
    found = [*containments(a), *(one for one in containments(b) if one not in containments(a))]
    if found:
        merged[CONTAINS] = tuple(found)
    if not {"prefixItems", "items", "additionalItems"} & {*a, *b}:
        return
    (ours, our_rest), (theirs, their_rest) = items_of(a), items_of(b)
    length = max(len(ours), len(theirs))
    ours, theirs = ours + [our_rest] * (length - len(ours)), theirs + [their_rest] * (length - len(theirs))
    prefix = [merge(x, y, closed=closed) for x, y in zip(ours, theirs, strict=True)]
    if prefix:
        merged["prefixItems"] = prefix
    merged["items"] = merge(our_rest, their_rest, closed=closed)


def items_of(schema: dict[str, Any]) -> tuple[list[Schema], Schema]:
    """What the first items are, and all others; before 2020-12 a list under `items` was the former."""
    items = schema.get("items", True)
    if isinstance(items, list):
        return items, schema.get("additionalItems", True)
    return schema.get("prefixItems", []), items


def containments(schema: dict[str, Any]) -> list[Contains]:
    """What `contains` and its bounds ask of an array, merged ones too."""
    found = list(schema.get(CONTAINS, ()))
    if "contains" in schema:
        found.append(Contains(schema["contains"], schema.get("minContains", 1), schema.get("maxContains")))
    return found


def type_of(value: Any) -> str:
    """The narrowest type of a JSON value: 5.0 is an integer."""
    if type(value) is str:  # most are
        return "string"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    kinds = ((str, "string"), (float, "number"), (dict, "object"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")
