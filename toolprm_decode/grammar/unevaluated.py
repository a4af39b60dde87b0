"""unevaluatedProperties and unevaluatedItems, written as additionalProperties and items.

Which members are evaluated depends on which subschemas hold. Each way in which they can is an alternative of its own,
in which the members that nothing in it evaluates are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any

from toolprm_decode.grammar.merging import NOT, CannotMerge, Negated, Schema, containments, items_of

__all__ = ["UNEVALUATED", "evaluated"]

UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")
_MAX_WAYS = 256
_MAX_SUBSETS = 6  # alternatives that may hold together
_MAX_DEPTH = 40
_APPLIED = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "then", "else", "dependentSchemas"})
_DEFINITIONS = ("$defs", "definitions")

Resolve = Callable[[Any], Schema]
"""What a `$ref` leads to."""


@dataclass(frozen=True)
class _Way:
    """One way for a schema to hold: what has to, and which members that evaluates."""

    asked: tuple[Schema, ...] = ()
    names: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    every_member: bool = False
    items: int = 0
    every_item: bool = False
    contained: tuple[Any, ...] = ()

    def __and__(self, other: _Way) -> _Way:
        return _Way(
            (*self.asked, *other.asked),
            self.names | other.names,
            self.patterns | other.patterns,
            self.every_member or other.every_member,
            max(self.items, other.items),
            self.every_item or other.every_item,
            (*self.contained, *other.contained),
        )

    @property
    def evaluates(self) -> bool:
        return self != _Way(self.asked)


@dataclass(frozen=True)
class _Asker:
    """The keyword that asks, and where."""

    keyword: str
    pointer: str

    def no(self, schema: Schema) -> Schema:
        """The opposite of a schema."""
        return {NOT: (Negated(schema, self.keyword, self.pointer),)}


def evaluated(schema: dict[str, Any], pointer: str, resolve: Resolve) -> Schema:
    """The schema without the words of UNEVALUATED. Raises CannotMerge, naming one, where the ways are too many."""
    word = next(word for word in UNEVALUATED if word in schema)
    inner = {name: value for name, value in schema.items() if name not in UNEVALUATED}
    options: list[Schema] = []
    for way in _ways(inner, _Asker(word, pointer), resolve, 0):
        parts = list(way.asked)
        if "unevaluatedProperties" in schema and not way.every_member:
            others: dict[str, Any] = {"additionalProperties": schema["unevaluatedProperties"]}
            if way.names:
                others["properties"] = dict.fromkeys(sorted(way.names), True)
            if way.patterns:
                others["patternProperties"] = dict.fromkeys(sorted(way.patterns), True)
            parts.append(others)
        if "unevaluatedItems" in schema and not way.every_item:
            rest = schema["unevaluatedItems"]
            if way.contained:
                rest = {"anyOf": [rest, *way.contained]}
            parts.append({"prefixItems": [True] * way.items, "items": rest})
        options.append({"allOf": parts} if len(parts) > 1 else parts[0])
    return options[0] if len(options) == 1 else {"anyOf": options}


def _ways(schema: Schema, asker: _Asker, resolve: Resolve, depth: int) -> list[_Way]:
    word = asker.keyword
    if not isinstance(schema, dict):
        return [_Way((schema,))]
    if depth > _MAX_DEPTH:
        raise CannotMerge(f"{word} goes round in a circle of references", word)
    own = {name: value for name, value in schema.items() if name not in _APPLIED and name not in _DEFINITIONS}
    ways = [_own(own)]

    def inside(member: Schema) -> list[_Way]:
        return _ways(member, asker, resolve, depth + 1)

    def meet(others: list[_Way]) -> None:
        nonlocal ways
        if len(ways) * len(others) > _MAX_WAYS:
            raise CannotMerge(f"{word} depends on more than {_MAX_WAYS} ways to hold", word)
        ways = [a & b for a in ways for b in others]

    if "$ref" in schema:
        meet(inside(resolve(schema["$ref"])))
    for member in schema.get("allOf", ()):
        meet(inside(member))
    if "anyOf" in schema:
        meet(_any_of(schema["anyOf"], inside, word))
    if "oneOf" in schema:
        meet(_one_of(schema["oneOf"], inside, asker))
    if "if" in schema:
        condition = schema["if"]
        no = asker.no(condition)
        holds = [a & b for a in inside(condition) for b in inside(schema.get("then", True))]
        meet([*holds, *(_Way((no,)) & way for way in inside(schema.get("else", True)))])
    for name, member in schema.get("dependentSchemas", {}).items():
        with_it = [_Way(({"type": "object", "required": [name]},)) & way for way in inside(member)]
        meet([_Way(({"properties": {name: False}},)), *with_it])
    return ways


def _own(schema: dict[str, Any]) -> _Way:
    """What a schema's own keywords evaluate."""
    prefix, _ = items_of(schema)
    every_item = "items" in schema and not isinstance(schema["items"], list)
    return _Way(
        (schema,) if schema else (),
        frozenset(schema.get("properties", ())),
        frozenset(schema.get("patternProperties", ())),
        "additionalProperties" in schema or "unevaluatedProperties" in schema,
        len(prefix),
        every_item or "additionalItems" in schema or "unevaluatedItems" in schema,
        tuple(one.schema for one in containments(schema)),
    )


def _any_of(members: list[Schema], inside: Callable[[Schema], list[_Way]], word: str) -> list[_Way]:
    """Every set of alternatives that hold together: more of them evaluate more, so none has to be known not to."""
    known = [(member, inside(member)) for member in members]
    silent = [member for member, ways in known if not any(way.evaluates for way in ways)]
    telling = [ways for member, ways in known if any(way.evaluates for way in ways)]
    if len(telling) > _MAX_SUBSETS:
        raise CannotMerge(f"{word} depends on more than {_MAX_SUBSETS} alternatives", word)
    found: list[_Way] = [_Way(({"anyOf": silent},))] if silent else []
    for some in chain.from_iterable(combinations(telling, size) for size in range(1, len(telling) + 1)):
        found += _products(some)
    return found


def _products(some: tuple[list[_Way], ...]) -> Iterator[_Way]:
    ways = [_Way()]
    for others in some:
        ways = [a & b for a in ways for b in others]
    return iter(ways)


def _one_of(members: list[Schema], inside: Callable[[Schema], list[_Way]], asker: _Asker) -> list[_Way]:
    known = [inside(member) for member in members]
    if not any(way.evaluates for ways in known for way in ways):
        return [_Way(({"oneOf": members},))]
    found: list[_Way] = []
    for index, ways in enumerate(known):
        others = [member for n, member in enumerate(members) if n != index]
        no = tuple(map(asker.no, others))
        found += [replace(way, asked=(*way.asked, *no)) for way in ways]
    return found
