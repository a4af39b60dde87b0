"""Random schemas of all keywords, and the small values that tell them apart."""

from __future__ import annotations

import random
from itertools import combinations, product
from typing import Any

SCALARS: list[Any] = [None, True, False, 0, 1, 2, 3, -1, 1.5, 4.0, "", "a", "b", "ab", "aa", "é", "abc"]
_FEW: list[Any] = [None, True, 1, 2, "a", "ab", 1.5]
_NAMES = ["a", "b", "ab", "é"]
_PATTERNS = ["^a", "b$", "^a+$", "^[^a]", "é", "^.{2}$", "."]


def values() -> list[Any]:
    """Scalars, arrays of up to three items and objects of up to three members, some of them nested."""
    found: list[Any] = list(SCALARS)
    for length in range(3):
        found += [list(items) for items in product(_FEW, repeat=length)]
    found += [
        ["a", "b", "a"],
        [1, 2, 3],
        [1, 1, 2],
        ["a", "ab", "abc"],
        [[1]],
        [[]],
        [{}],
        [{"a": 1}, "a"],
        [1, "a", None],
    ]
    for size in range(4):
        for names in combinations(_NAMES, size):
            for members in product(_FEW[:6] if size < 2 else [1, "a", "ab"] if size < 3 else [1, "a"], repeat=size):
                found.append(dict(zip(names, members, strict=True)))
    return [*found, {"a": {"a": 1}}, {"a": {}, "b": []}, {"a": {"b": "a"}, "b": 1}, {"ab": [1, 2]}]


def schema(rng: random.Random, depth: int = 3) -> Any:
    """A random schema; the deeper, the more of the words that combine schemas."""
    if rng.random() < 0.08:
        return rng.choice([True, False, {}])
    made: dict[str, Any] = {}
    if rng.random() < 0.6:
        types = ["object", "array", "string", "number", "integer", "boolean", "null"]
        made["type"] = rng.choice(types[:5]) if rng.random() < 0.8 else rng.sample(types, 2)

    def inner() -> Any:
        return schema(rng, depth - 1)

    def some() -> list[Any]:
        return [inner() for _ in range(rng.randint(1, 3))]

    flat: dict[str, Any] = {
        "enum": lambda: rng.sample([*SCALARS, ["a", "b"], {"a": 1}, {}, []], rng.randint(1, 4)),
        "const": lambda: rng.choice([*SCALARS, ["a"], {"a": 1}]),
        "minimum": lambda: rng.choice([0, 1, 1.5]),
        "exclusiveMaximum": lambda: rng.choice([1, 2, 3.5]),
        "multipleOf": lambda: rng.choice([1, 2, 0.5]),
        "minLength": lambda: rng.randint(0, 2),
        "maxLength": lambda: rng.randint(0, 2),
        "pattern": lambda: rng.choice(_PATTERNS),
        "minItems": lambda: rng.randint(0, 2),
        "maxItems": lambda: rng.randint(0, 2),
        "required": lambda: rng.sample(_NAMES, rng.randint(1, 2)),
        "minProperties": lambda: rng.randint(0, 2),
        "maxProperties": lambda: rng.randint(0, 2),
        "dependentRequired": lambda: {rng.choice(_NAMES): rng.sample(_NAMES, rng.randint(1, 2))},
    }
    nested: dict[str, Any] = {
        "properties": lambda: {name: inner() for name in rng.sample(_NAMES, rng.randint(1, 2))},
        "patternProperties": lambda: {rng.choice(_PATTERNS): inner() for _ in range(rng.randint(1, 2))},
        "additionalProperties": inner,
        "propertyNames": lambda: {rng.choice(["maxLength", "minLength"]): 1, **rng.choice([{}, {"pattern": "a"}])},
        "dependentSchemas": lambda: {rng.choice(_NAMES): inner()},
        "prefixItems": some,
        "items": inner,
        "contains": inner,
        "minContains": lambda: rng.randint(0, 2),
        "maxContains": lambda: rng.randint(1, 2),
        "uniqueItems": lambda: rng.random() < 0.5,
        "unevaluatedProperties": lambda: rng.choice([False, inner()]),
        "unevaluatedItems": lambda: rng.choice([False, inner()]),
        "allOf": some,
        "anyOf": some,
        "oneOf": some,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
        "$ref": lambda: "#/$defs/d",
    }
    for _ in range(rng.randint(1, 3)):
        word = rng.choice(list(flat) if depth <= 0 or rng.random() < 0.4 else list(nested))
        if word == "$ref" and depth < 1:
            continue
        made[word] = (flat | nested)[word]()
    if "if" in made and "then" not in made:
        made["then"] = inner() if depth > 0 else True
    return made


def document(rng: random.Random) -> Any:
    """A schema, with the definition that its references name."""
    made = schema(rng)
    return {**made, "$defs": {"d": schema(rng, 0)}} if isinstance(made, dict) else made
