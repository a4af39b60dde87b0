"""Arrays: their first items and all others, how many there are, which of them a schema must hold for, and uniqueness.

Plain ones are one node of the core. `contains` and `uniqueItems` need an automaton over items, whose states are rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, NamedTuple

from toolprm_decode.errors import UnsupportedSchemaError
from toolprm_decode.grammar.checking import CannotTell, constants, holds, types_of
from toolprm_decode.grammar.merging import CONTAINS, NOT, Contains, Negated, Schema, containments, equal, items_of

if TYPE_CHECKING:
    from toolprm_decode.grammar.schema import SchemaCompiler

__all__ = ["read_array"]

MAX_STATES = 1_200
"""Most states of the automaton over items."""
MAX_LISTED = 1_000  # values of an item, where they are listed
MAX_ROW = 128  # items told apart by their place: each is a frame of the core's stack


def read_array(c: SchemaCompiler, schema: dict[str, Any], pointer: str) -> int:
    """The node of the arrays of a schema without unions. Raises as SchemaCompiler.value()."""
    low, high = c.bounds(schema, "minItems", "maxItems", pointer)
    prefix, rest = items_of(schema)
    if not isinstance(prefix, list):
        c.fail(pointer, "prefixItems", f"must be a list of schemas, not {prefix!r:.60}")
    if high is not None:
        prefix = prefix[:high]
    if rest is False:
        high = len(prefix) if high is None else min(high, len(prefix))
    contains = _contains(c, schema, pointer) if "contains" in schema or CONTAINS in schema else []
    row = _Row(prefix, rest, low, high, "prefixItems" if "prefixItems" in schema else "items")
    if schema.get("uniqueItems") and (high is None or high > 1) and not _differ(c, row, pointer):
        return _unique(c, row, contains, pointer)
    if contains:
        return _containing(c, row, contains, pointer)
    firsts: list[int] = []
    item = -1
    try:
        for index, first in enumerate(prefix):
            firsts.append(c.value(first, f"{pointer}/{row.word}/{index}"))
        if rest is not False and (high is None or high > len(prefix)):
            item = c.value(rest, f"{pointer}/items")
    except c.Impossible:
        if low > len(firsts):
            raise
    if item < 0 and low > len(firsts):
        c.impossible("more items are asked for than are possible", pointer, "minItems")
    return c.builder.array(*c.brackets("[", "]"), firsts, item, min=low, max=high)


class _Row(NamedTuple):
    """What the items of an array are, by their place."""

    prefix: list[Schema]
    rest: Schema
    low: int
    high: int | None
    word: str

    def at(self, index: int) -> Schema:
        return self.prefix[index] if index < len(self.prefix) else self.rest


def _contains(c: SchemaCompiler, schema: dict[str, Any], pointer: str) -> list[Contains]:
    """What is asked of the items as a whole."""
    if "contains" in schema:
        c.bounds({"minContains": 1, **schema}, "minContains", "maxContains", pointer)
    return [one for one in containments(schema) if one.low > 0 or one.high is not None]


def _differ(c: SchemaCompiler, row: _Row, pointer: str) -> bool:
    """Whether no two items can be equal, by what they are."""
    if row.high is None or row.high > len(row.prefix) or row.high > 10:
        return False
    flat = [c.flat(item, pointer) for item in row.prefix]
    return all(not types_of(a) & types_of(b) for a, b in combinations(flat, 2))


# ---------------------------------------------------------------- automata over items

_State = tuple[Any, ...]
_Move = tuple[int, _State]
"""The node of an item, and the state behind it."""


class _Machine:
    """Rules of what may follow in an array, one a state: the rest of the items and the closing bracket.

    A state's first member is the number of items so far. Loops of items that change nothing are arrays of the core,
    not recursion, which would take a frame an item.
    """

    def __init__(self, c: SchemaCompiler, pointer: str, keyword: str):
        self.c, self.pointer, self.keyword = c, pointer, keyword
        self.open, self.separator, self.close = c.brackets("[", "]")

    def build(self, start: _State, moves: Any, complete: Any, loop: Any) -> int:
        """moves(state) -> list of _Move; complete(state): the array may end; loop(state): node of items or None."""
        b = self.c.builder
        rules = {start: b.declare_rule(self.pointer)}
        open_ = [start]
        nothing = b.sequence([])
        for state in open_:
            options: list[int] = [self.close] if complete(state) else []
            for item, after in moves(state):
                if after not in rules:
                    if len(rules) >= MAX_STATES:
                        raise self.c.over_budget(f"needs more than {MAX_STATES} states", self.keyword, self.pointer)
                    rules[after] = b.declare_rule(self.pointer)
                    open_.append(after)
                separator = [self.separator] if state[0] else []
                options.append(b.sequence([*separator, item, rules[after]]))
            body = options[0] if len(options) == 1 else b.choice(options)
            item = loop(state)
            if item is not None:
                more = b.sequence([self.separator, item])
                body = b.sequence([b.array(nothing, nothing, nothing, [], more), body])
            b.define_rule(rules[state], body)
        return b.sequence([self.open, rules[start]])


def _containing(c: SchemaCompiler, row: _Row, contains: list[Contains], pointer: str) -> int:
    """An array of which enough items, and not too many, satisfy further schemas."""
    caps = [one.low if one.high is None else one.high for one in contains]
    # from this place on all places are alike, as long as their number does not matter
    alike = max(row.low, len(row.prefix), 1, *(one.start for one in contains))
    last = row.high if row.high is not None else alike
    if last > MAX_ROW or sum(caps) > MAX_ROW:
        raise c.over_budget(f"is counted among more than {MAX_ROW} items", "contains", pointer)
    nodes: dict[tuple[Any, ...], int | None] = {}

    def item(index: int, inside: tuple[bool | None, ...]) -> int | None:
        """An item at a place that satisfies those contained schemas that are True, and none that is False."""
        key = (min(index, len(row.prefix)), inside)
        if key not in nodes:
            parts: list[Schema] = [row.at(index)]
            for one, wanted in zip(contains, inside, strict=True):
                if wanted:
                    parts.append(one.schema)
                elif wanted is False:
                    parts.append({NOT: (Negated(one.schema, "contains", pointer),)})
            nodes[key] = c.possible({"allOf": parts} if len(parts) > 1 else parts[0], f"{pointer}/contains")
        return nodes[key]

    def choices(state: _State) -> Iterator[tuple[tuple[bool | None, ...], tuple[int, ...]]]:
        """What an item may be to each contained schema, and the counts behind it; None: either."""
        options: list[list[tuple[bool | None, int]]] = []
        for one, cap, count in zip(contains, caps, state[1], strict=True):
            if state[0] < one.start:
                options.append([(None, count)])
            elif one.high is not None:
                options.append([(False, count), *([(True, count + 1)] if count < one.high else [])])
            else:
                options.append([(None, count), *([(True, count + 1)] if count < cap else [])])
        for combination in product(*options):
            yield tuple(wanted for wanted, _ in combination), tuple(count for _, count in combination)

    def moves(state: _State) -> Iterator[_Move]:
        if row.high is not None and state[0] >= row.high:
            return
        after = min(state[0] + 1, last)
        for inside, counts in choices(state):
            if (after, counts) != state and (node := item(state[0], inside)) is not None:
                yield node, (after, counts)

    def loop(state: _State) -> int | None:
        if row.high is not None or state[0] < last:
            return None
        return next((item(state[0], inside) for inside, counts in choices(state) if counts == state[1]), None)

    def complete(state: _State) -> bool:
        enough = all(count >= one.low for one, count in zip(contains, state[1], strict=True))
        return bool(state[0] >= row.low and enough)

    return _Machine(c, pointer, "contains").build((0, (0,) * len(contains)), moves, complete, loop)


def _unique(c: SchemaCompiler, row: _Row, contains: list[Contains], pointer: str) -> int:
    """An array without two equal items, each of which is one of finitely many values."""
    values: list[Any] = []
    sets: list[list[int]] = []
    places = len(row.prefix) if row.high is not None and row.high <= len(row.prefix) else len(row.prefix) + 1
    for index in range(places):
        at = f"{pointer}/{row.word}/{index}" if index < len(row.prefix) else f"{pointer}/items"
        listed = _listed(c, row.at(index), at)
        if listed is None:
            raise UnsupportedSchemaError(
                "unique items can be enforced only where they are listed (enum, const, booleans) or one at most",
                tool=c.tool,
                pointer=pointer,
                keyword="uniqueItems",
            )
        sets.append([])
        for value in listed:
            known = next((n for n, other in enumerate(values) if equal(value, other)), len(values))
            if known == len(values):
                values.append(value)
            if known not in sets[-1]:
                sets[-1].append(known)
    if not row.prefix and not contains and all(value is None or isinstance(value, (str, bool)) for value in values):
        # An object's machine with the items for keys and no values: no key comes twice.
        nothing = c.builder.sequence([])
        items = [(sorted(c.written(value, "uniqueItems", pointer)), nothing, False) for value in values]
        if row.low > len(items):
            c.impossible("more unique items are asked for than there are", pointer, "minItems")
        return c.builder.object(*c.brackets("[", "]"), items, min=row.low, max=row.high)
    nodes = [c.value({"const": value}, pointer) for value in values]
    inside = [[holds(one.schema, value, c) for one in contains] for value in values]

    def moves(state: _State) -> Iterator[_Move]:
        index, used, counts = state
        if row.high is not None and index >= row.high:
            return
        for number in sets[min(index, places - 1)]:
            if number not in used:
                after = tuple(
                    count + (found and index >= one.start)
                    for count, found, one in zip(counts, inside[number], contains, strict=True)
                )
                if all(one.high is None or count <= one.high for one, count in zip(contains, after, strict=True)):
                    yield nodes[number], (index + 1, used | {number}, after)

    def complete(state: _State) -> bool:
        enough = all(count >= one.low for one, count in zip(contains, state[2], strict=True))
        return bool(state[0] >= row.low and enough)

    start = (0, frozenset[int](), (0,) * len(contains))
    return _Machine(c, pointer, "uniqueItems").build(start, moves, complete, lambda state: None)


def _listed(c: SchemaCompiler, schema: Schema, pointer: str) -> list[Any] | None:
    """All values of a schema where they are few and can be told; None otherwise."""
    flat = c.flat(schema, pointer)
    if not isinstance(flat, dict):
        return None if flat else []
    values = constants(flat)
    if values is None:
        for word in ("anyOf", "oneOf"):
            if word in flat and isinstance(flat[word], list):
                parts = [_listed(c, member, pointer) for member in flat[word]]
                if all(part is not None for part in parts):
                    values = [value for part in parts for value in part or ()]
                    break
    if values is None and "type" in flat:
        given = flat["type"]
        values = []
        for name in [given] if isinstance(given, str) else given:
            low, high = flat.get("minimum"), flat.get("maximum")
            if name == "boolean":
                values += [True, False]
            elif name == "null":
                values.append(None)
            elif name == "integer" and isinstance(low, int) and isinstance(high, int) and high - low <= MAX_LISTED:
                values += range(low, high + 1)
            else:
                return None
    if values is None:
        return None
    try:
        return [value for value in values if holds(flat, value, c)]
    except CannotTell:
        return None
