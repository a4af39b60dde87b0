"""The members of an object: declared properties, and the other keys, which patterns sort into kinds.

The kinds of the other keys become one automaton over keys, each of whose accepting states knows the kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from toolprm_decode import _core
from toolprm_decode.errors import BudgetExceeded
from toolprm_decode.grammar.fsm import (
    STATE_BUDGET,
    ByteFSM,
    EmptyLanguage,
    difference,
    from_strings,
    intersect,
)
from toolprm_decode.grammar.merging import MORE, Schema

__all__ = [
    "MAX_KINDS",
    "NOTHING",
    "Member",
    "Members",
    "Names",
    "OtherKeys",
    "classified",
    "conditions",
    "declared_names",
]
__all__ += ["escaped", "kinds_of_keys", "without"]

MAX_KINDS = 32
"""Most kinds of keys that the patterns of one object may make."""
_MOST_STATES = 3_000  # of the automata of all kinds together: every pattern goes through all of them


NOTHING = ByteFSM(np.full((1, 256), -1, dtype=np.int32), np.zeros(1, dtype=np.bool_))
"""An automaton that accepts no text: the only one that is not trimmed."""


class Member(NamedTuple):
    """A declared property: its name, the node of its value, and whether it is required."""

    name: str
    value: int
    required: bool


class OtherKeys(NamedTuple):
    """Keys that are not declared: their automaton, the nodes of the values that follow, and which follows where.

    kinds: by state of the automaton the index into values, -1 where it does not accept; () where there is one value.
    """

    keys: _core.Dfa
    values: tuple[int, ...]
    kinds: tuple[int, ...] = ()


@dataclass
class Members:
    """What an object holds: properties, the other keys if any, fewest and most members."""

    properties: list[Member]
    others: OtherKeys | None
    low: int = 0
    high: int | None = None


def conditions(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What an object's keywords say of its members: all of these hold, each with its own idea of the other keys."""
    return [schema, *(schema[MORE].conditions if MORE in schema else ())]


def declared_names(schema: dict[str, Any]) -> Iterator[str]:
    """The names that any of the conditions declares, in their order."""
    return iter(dict.fromkeys(name for one in conditions(schema) for name in one.get("properties", {})))


@dataclass
class Names:
    """Tells which patterns a name matches, and keeps the automata."""

    pattern: Callable[[str], ByteFSM]
    known: dict[str, ByteFSM] = field(default_factory=dict)

    def fsm(self, pattern: str) -> ByteFSM:
        """The automaton of the keys that match."""
        if pattern not in self.known:
            self.known[pattern] = self.pattern(pattern)
        return self.known[pattern]

    def matches(self, pattern: str, name: str) -> bool:
        """Whether a declared name matches."""
        return self.fsm(pattern).matches(json.dumps(name, ensure_ascii=False).encode())

    def asked(self, name: str, schema: dict[str, Any]) -> list[tuple[str, Schema]]:
        """What the value of a declared name has to satisfy: all of these schemas, each with its pointer."""
        asked: list[tuple[str, Schema]] = []
        for one in conditions(schema):
            found = len(asked)
            if name in one.get("properties", {}):
                asked.append((f"/properties/{escaped(name)}", one["properties"][name]))
            for pattern, member in one.get("patternProperties", {}).items():
                if self.matches(pattern, name):
                    asked.append((f"/patternProperties/{escaped(pattern)}", member))
            if found == len(asked) and "additionalProperties" in one:
                asked.append(("/additionalProperties", one["additionalProperties"]))
        return asked


def escaped(part: str) -> str:
    """A part of a JSON pointer."""
    return part.replace("~", "~0").replace("/", "~1")


def unescaped(part: str) -> str:
    """What a part of a JSON pointer names, in a URI's fragment too."""
    return unquote(part).replace("~1", "/").replace("~0", "~")


def kinds_of_keys(
    keys: ByteFSM, schema: dict[str, Any], names: Names
) -> list[tuple[ByteFSM, list[tuple[str, Schema]]]]:
    """The other keys, sorted by what their values have to satisfy.

    keys: the automaton of all of them. Raises BudgetExceeded where patterns make too many kinds.
    """
    patterns = dict.fromkeys(p for one in conditions(schema) for p in one.get("patternProperties", {}))
    sorted_: list[tuple[ByteFSM, frozenset[str]]] = [(keys, frozenset())]
    for pattern in patterns:
        fsm = names.fsm(pattern)
        split: list[tuple[ByteFSM, frozenset[str]]] = []
        for kind, matched in sorted_:
            for combine, also in ((intersect, matched | {pattern}), (difference, matched)):
                try:
                    split.append((combine(kind, fsm, budget=_MOST_STATES), also))
                except EmptyLanguage:
                    continue
        if len(split) > MAX_KINDS:
            raise BudgetExceeded(f"the patterns make more than {MAX_KINDS} kinds of keys; use fewer of them")
        if sum(kind.states for kind, _ in split) > _MOST_STATES:
            raise BudgetExceeded(f"the patterns of keys need more than {_MOST_STATES} states; simplify them")
        sorted_ = split
    return [(kind, _asked_of(matched, schema)) for kind, matched in sorted_]


def _asked_of(matched: frozenset[str], schema: dict[str, Any]) -> list[tuple[str, Schema]]:
    asked: list[tuple[str, Schema]] = []
    for one in conditions(schema):
        found = len(asked)
        for pattern, member in one.get("patternProperties", {}).items():
            if pattern in matched:
                asked.append((f"/patternProperties/{escaped(pattern)}", member))
        if found == len(asked) and "additionalProperties" in one:
            asked.append(("/additionalProperties", one["additionalProperties"]))
    return asked


def without(keys: ByteFSM, spellings: Iterable[bytes]) -> ByteFSM | None:
    """The keys that are none of these; None where no key is left."""
    taken = list(spellings)
    try:
        return difference(keys, from_strings(taken)) if taken else keys
    except EmptyLanguage:
        return None


@lru_cache(maxsize=256)
def classified(kinds: tuple[ByteFSM, ...]) -> tuple[_core.Dfa, tuple[int, ...]]:
    """One automaton for disjoint ones, and which of them each of its states accepts for (-1: none).

    Raises BudgetExceeded over STATE_BUDGET states.
    """
    columns, classes = np.unique(
        np.vstack([kind.transitions for kind in kinds]).T, axis=0, return_index=False, return_inverse=True
    )
    classes = classes.reshape(-1)
    bounds = np.cumsum([0, *(kind.states for kind in kinds)])
    # by kind: [states + 1, classes], the last state being the sink
    steps = [_sunk(columns[:, a:b].T) for a, b in pairwise(bounds)]
    sinks = tuple(kind.states for kind in kinds)
    ids: dict[tuple[int, ...], int] = {(0,) * len(kinds): 0}
    rows: list[npt.NDArray[np.int32]] = []
    open_: list[tuple[int, ...]] = list(ids)
    for state in open_:
        after = np.stack([step[at] for step, at in zip(steps, state, strict=True)], axis=1)
        row = np.empty(len(after), dtype=np.int32)
        for column, target in enumerate(map(tuple, after.tolist())):
            if target == sinks:
                row[column] = -1
                continue
            if target not in ids:
                if len(ids) >= STATE_BUDGET:
                    raise BudgetExceeded(f"the patterns of keys need more than {STATE_BUDGET} states; simplify them")
                ids[target] = len(ids)
                open_.append(target)
            row[column] = ids[target]
        rows.append(row)
    accepts = [np.append(kind.accepting, False) for kind in kinds]
    outcome = [
        next((n for n, at in enumerate(state) if accepts[n][at]), -1)  # disjoint: one at most
        for state in open_
    ]
    dfa = _core.Dfa(np.ascontiguousarray(np.vstack(rows)[:, classes]), np.array(outcome) >= 0)
    return dfa, tuple(outcome)


def _sunk(steps: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    sink = len(steps)
    return np.vstack([np.where(steps < 0, sink, steps), np.full((1, steps.shape[1]), sink, dtype=np.int32)])
