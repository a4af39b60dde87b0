"""The conjunction of two JSON schemas as one schema, for allOf and for keywords beside a union or a reference."""

from __future__ import annotations

import math
from typing import Any

Schema = dict[str, Any] | bool


class CannotMerge(ValueError):
    """Two schemas whose conjunction this module cannot write as one schema."""

    def __init__(self, message: str, keyword: str):
        super().__init__(message)
        self.keyword = keyword


_LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "$comment", "$id", "$schema"}
)
_OBJECT_WORDS = frozenset({"properties", "additionalProperties", "required"})
_ARRAY_WORDS = frozenset({"prefixItems", "items", "additionalItems"})


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
    if "$ref" in a and "$ref" in b and a["$ref"] != b["$ref"]:
        return {"allOf": [a, b]}  # whoever reads it follows the references first
    merged: dict[str, Any] = {}
    for word in {**a, **b}:
        if word in _OBJECT_WORDS | _ARRAY_WORDS:
            continue
        if word not in a or word not in b:
            merged[word] = a.get(word, b.get(word))
        elif equal(a[word], b[word]):
            merged[word] = a[word]
        else:
            merged[word] = _both(word, a[word], b[word], closed)
            if merged[word] is _NOTHING:
                return False
    _merge_objects(a, b, merged, closed)
    _merge_arrays(a, b, merged, closed)
    return merged


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
    if word == "multipleOf" and isinstance(x, int) and isinstance(y, int):
        return math.lcm(x, y)
    if word == "pattern":
        return [*_listed(x), *_listed(y)]
    if word == "uniqueItems":
        return x or y
    if word in ("anyOf", "oneOf") and len(x) * len(y) <= 256:
        # Exactly one of each list: the products are as disjoint as the lists themselves.
        return [merge(p, q, closed=closed) for p in x for q in y]
    if word in ("$defs", "definitions"):
        return {**x, **y}
    if word == "allOf":
        return [*x, *y]
    if word in _ANNOTATIONS:
        return x
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
    required = list(dict.fromkeys([*a.get("required", []), *b.get("required", [])]))
    if required:
        merged["required"] = required
    ours, theirs = a.get("properties", {}), b.get("properties", {})
    if ours or theirs or "properties" in a or "properties" in b:
        properties: dict[str, Any] = {}
        for name in {**ours, **theirs}:
            x = ours.get(name, a.get("additionalProperties", True))
            y = theirs.get(name, b.get("additionalProperties", True))
            both = merge(x, y, closed=closed)
            if both is not False or name in required:
                properties[name] = both
        merged["properties"] = properties
    if "additionalProperties" in a or "additionalProperties" in b:
        merged["additionalProperties"] = merge(
            a.get("additionalProperties", True), b.get("additionalProperties", True), closed=closed
        )


def _merge_arrays(a: dict[str, Any], b: dict[str, Any], merged: dict[str, Any], closed: bool) -> None:
    if not _ARRAY_WORDS & {*a, *b}:
        return
    (ours, our_rest), (theirs, their_rest) = _items(a), _items(b)
    length = max(len(ours), len(theirs))
    ours, theirs = ours + [our_rest] * (length - len(ours)), theirs + [their_rest] * (length - len(theirs))
    prefix = [merge(x, y, closed=closed) for x, y in zip(ours, theirs, strict=True)]
    if prefix:
        merged["prefixItems"] = prefix
    merged["items"] = merge(our_rest, their_rest, closed=closed)


def _items(schema: dict[str, Any]) -> tuple[list[Schema], Schema]:
    """What the first items are, and all others; before 2020-12 a list under `items` was the former."""
    items = schema.get("items", True)
    if isinstance(items, list):
        return items, schema.get("additionalItems", True)
    return schema.get("prefixItems", []), items
