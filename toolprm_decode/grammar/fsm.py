"""Byte automata of scalars: Outlines compiles the regex, this module bounds, trims, minimises and combines them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from outlines_core import Index, Vocabulary  # type: ignore[import-untyped]

from toolprm_decode import _core
from toolprm_decode.errors import BudgetExceeded
from toolprm_decode.grammar.charsets import (
    CodePoints,
    complement,
    intersection,
    parser,
    read_class,
    sre,
    write_class,
)
from toolprm_decode.grammar.charsets import union as union_of

__all__ = ["STATE_BUDGET", "ByteFSM", "EmptyLanguage", "byte_fsm", "difference", "from_strings", "intersect"]
__all__ += ["reduced", "union"]

STATE_BUDGET = 20_000
"""Most states a scalar's automaton may have, unless the caller says otherwise."""

_Table = npt.NDArray[np.int32]
_Flags = npt.NDArray[np.bool_]

# Every regex goes to Outlines between two NULs, which are cut off again, and cannot match a NUL inside.
# The last: Index drops a transition from a final state into one that is not, so a regex whose match can end early
# loses its longer matches; with a terminator no match can end early.
# The first: Outlines determinises an unanchored search along with the anchored one. Without a first byte that restarts
# it, and occurs nowhere else, that search tracks every position at which a match might have begun:
# "(?:[a-zé]|\\["bt]|\\u00){0,16}" takes 4 s and each further repetition doubles it, against 1 ms with it.
# NUL is legal in none of the texts we write (JSON and Python literals escape it), and unlike 0xFF it is UTF-8, without
# which Outlines refuses the regex.
_NUL = "\\x00"
_BYTES = Vocabulary(256, {bytes([b]): [b] for b in range(256)})

# Before minimisation, Outlines' automaton may have this many times the budget in states (UTF-8 tails not yet shared).
_SLACK = 4
_MOST_POSITIONS = 50_000
_MOST_EDGES = 2_000_000
_MOST_STEPS = 2_000_000
_MOST_ROUNDS = 5_000


class EmptyLanguage(ValueError):
    """No text at all is legal: contradictory bounds, or a pattern that nothing matches."""


@dataclass(frozen=True, eq=False)
class ByteFSM:
    """A deterministic automaton over bytes. State 0 is the start, states are numbered breadth-first.

    Every state is reachable and can still reach an accepting one. Automata from this module are minimised, so two of
    them with the same language are equal; the exception is the very large one whose minimisation is given up.

    Attributes:
        transitions: int32 [states, 256], the next state or -1 where the byte is illegal; read-only.
        accepting: bool [states]; read-only.
    """

    transitions: _Table
    accepting: _Flags

    def __post_init__(self) -> None:
        self.transitions.flags.writeable = False
        self.accepting.flags.writeable = False

    @property
    def states(self) -> int:
        """Number of states."""
        return len(self.accepting)

    def matches(self, text: bytes) -> bool:
        """Whether the whole of `text` is accepted."""
        state = 0
        for byte in text:
            state = int(self.transitions[state, byte])
            if state < 0:
                return False
        return bool(self.accepting[state])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ByteFSM):
            return NotImplemented
        return np.array_equal(self.transitions, other.transitions) and np.array_equal(self.accepting, other.accepting)

    def __hash__(self) -> int:
        return hash((self.transitions.tobytes(), self.accepting.tobytes()))


@lru_cache(maxsize=512)
def byte_fsm(regex: str, *, budget: int = STATE_BUDGET) -> ByteFSM:
    """Compile `regex` to the automaton of the UTF-8 bytes of all texts it fully matches. Cached, thread-safe.

    Args:
        regex: in Python's syntax, read as with re.ASCII; without flags, anchors, lookarounds and backreferences.
            NUL characters never match.
        budget: most states of the result.

    Raises:
        BudgetExceeded: the automaton is too large. What would make Outlines itself run away (nested counts, an
            exponential determinisation) is found before Outlines sees it.
        EmptyLanguage: nothing matches.
        ValueError: the regex is malformed, or uses what is excluded above.
    """
    try:
        tree = parser.parse(regex)
        if tree.state.flags & ~re.UNICODE:
            raise ValueError(f"the regex {_shown(regex)} has inline flags")
        _check_size(tree, budget)
        index = Index(_NUL + _rewritten(tree) + _NUL, _BYTES)
    except re.error as error:
        raise ValueError(f"the regex {_shown(regex)} cannot be read: {error}") from error
    except (_TooMany, RecursionError, OverflowError) as error:
        raise _too_large(regex, budget) from error
    except ValueError as error:
        # Outlines reports a state without a way out, which with all 256 bytes at hand means that nothing matches.
        if "no transitions from state" in str(error):
            raise EmptyLanguage(f"nothing matches the regex {_shown(regex)}") from error
        raise ValueError(f"the regex {_shown(regex)} cannot be compiled: {error}") from error
    edges = index.get_transitions()
    if len(edges) > _SLACK * budget:
        raise _too_large(regex, budget)
    ids = np.fromiter(edges, dtype=np.int64, count=len(edges))
    targets = np.full((len(ids), 257), -1, dtype=np.int32)
    for row, out in enumerate(edges.values()):
        keys = np.fromiter(out.keys(), dtype=np.intp, count=len(out))
        targets[row, keys] = np.fromiter(out.values(), dtype=np.int32, count=len(out))
    # Outlines' ids are row offsets, so sparse but no larger than the table of its automaton
    position = np.full(int(ids.max()) + 2, -1, dtype=np.int32)
    position[ids] = np.arange(len(ids), dtype=np.int32)
    transitions = position[targets[:, :256]]
    final = np.zeros(len(ids) + 1, dtype=np.bool_)
    final[: len(ids)] = np.isin(ids, np.fromiter(index.get_final_states(), dtype=np.int64))
    start = int(transitions[position[index.get_initial_state()], 0])
    accepting = final[transitions[:, 0]]  # -1, no edge, reads the extra False at the end
    transitions[:, 0] = -1
    return reduced(transitions, accepting, start=start, budget=budget)


def from_strings(strings: Iterable[bytes], *, budget: int = STATE_BUDGET) -> ByteFSM:
    """The automaton of exactly these byte strings.

    Raises:
        EmptyLanguage: there are none.
        BudgetExceeded: their trie has more than four times `budget` states, or its minimised form more than `budget`.
    """
    given = list(strings)
    if not given:
        raise EmptyLanguage("no text is legal")
    try:
        transitions, accepting = _core.strings_table(given, _SLACK * budget)
    except _core.BudgetError as error:
        message = f"the strings need more than {budget} states; allow fewer or shorter ones"
        raise BudgetExceeded(message) from error
    if len(accepting) > budget:
        raise _too_many(len(accepting), budget)
    return ByteFSM(transitions, accepting)


def intersect(a: ByteFSM, b: ByteFSM, *, budget: int = STATE_BUDGET) -> ByteFSM:
    """The texts that both accept. Raises EmptyLanguage where there are none, BudgetExceeded over `budget` states."""
    return _product(a, b, lambda in_a, in_b: in_a & in_b, lambda in_a, in_b: in_a & in_b, budget)


def union(a: ByteFSM, b: ByteFSM, *, budget: int = STATE_BUDGET) -> ByteFSM:
    """The texts that either accepts. Raises BudgetExceeded over `budget` states."""
    return _product(a, b, lambda in_a, in_b: in_a | in_b, lambda in_a, in_b: in_a | in_b, budget)


def difference(a: ByteFSM, b: ByteFSM, *, budget: int = STATE_BUDGET) -> ByteFSM:
    """The texts that `a` accepts and `b` does not. Raises EmptyLanguage, or BudgetExceeded over `budget` states."""
    return _product(a, b, lambda in_a, in_b: in_a & ~in_b, lambda in_a, in_b: in_a, budget)


_Combine = Callable[[_Flags, _Flags], _Flags]


def _product(a: ByteFSM, b: ByteFSM, accept: _Combine, alive: _Combine, budget: int) -> ByteFSM:
    """Breadth-first product; state `states` of either side is its sink. `alive` says which pairs may still accept."""
    classes, columns = _byte_classes(np.vstack([a.transitions, b.transitions]))
    width = b.states + 1
    steps_a = _with_sink(a.transitions[:, columns]).astype(np.int64)
    steps_b = _with_sink(b.transitions[:, columns]).astype(np.int64)
    ids: dict[int, int] = {0: 0}
    frontier = np.zeros(1, dtype=np.int64)
    keys = [frontier]
    rows: list[_Table] = []
    while len(frontier):
        next_a, next_b = steps_a[frontier // width], steps_b[frontier % width]
        keep = alive(next_a < a.states, next_b < b.states)
        reached, inverse = np.unique(np.where(keep, next_a * width + next_b, -1), return_inverse=True)
        fresh = [key for key in reached.tolist() if key >= 0 and key not in ids]
        for key in fresh:
            ids[key] = len(ids)
        if len(ids) > _SLACK * budget:
            raise BudgetExceeded(f"the combined automaton needs more than {budget} states; simplify the constraint")
        numbers = np.array([ids.get(key, -1) for key in reached.tolist()], dtype=np.int32)
        rows.append(numbers[inverse.reshape(next_a.shape)])
        frontier = np.array(fresh, dtype=np.int64)
        keys.append(frontier)
    pairs = np.concatenate(keys)
    accepting = accept(np.append(a.accepting, False)[pairs // width], np.append(b.accepting, False)[pairs % width])
    return reduced(np.vstack(rows)[:, classes], accepting, budget=budget)


def reduced(transitions: _Table, accepting: _Flags, *, start: int = 0, budget: int = STATE_BUDGET) -> ByteFSM:
    """Trim, minimise and renumber any deterministic table into the canonical automaton of its language.

    Args:
        transitions: int32 [states, 256], -1 where there is no way.
        accepting: bool [states].
        start: the start state.
        budget: most states of the result.

    Raises:
        EmptyLanguage: no accepting state can be reached.
        BudgetExceeded: the result is over `budget`.
    """
    classes, columns = _byte_classes(transitions)
    steps, accepting, start = _trimmed(transitions[:, columns], accepting, start)
    steps, accepting, start = _minimised(steps, accepting, start)
    if len(accepting) > budget:
        raise _too_many(len(accepting), budget)
    order = _breadth_first(steps, start)
    rank = np.full(len(accepting) + 1, -1, dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return ByteFSM(np.ascontiguousarray(rank[steps[order]][:, classes]), accepting[order])


def _byte_classes(transitions: _Table) -> tuple[npt.NDArray[np.intp], list[int]]:
    """Bytes that no state tells apart: the class of each byte [256], and one byte of each class."""
    seen: dict[bytes, int] = {}
    classes = [seen.setdefault(column.tobytes(), len(seen)) for column in np.ascontiguousarray(transitions.T)]
    _, columns = np.unique(classes, return_index=True)
    return np.array(classes, dtype=np.intp), [int(column) for column in columns]


def _with_sink(steps: _Table) -> _Table:
    """`steps` with -1 replaced by one more state, which leads to itself."""
    sink = len(steps)
    return np.vstack([np.where(steps < 0, sink, steps), np.full((1, steps.shape[1]), sink)]).astype(np.int32)


def _breadth_first(steps: _Table, start: int) -> npt.NDArray[np.intp]:
    seen = np.zeros(len(steps), dtype=np.bool_)
    seen[start] = True
    frontier = np.array([start], dtype=np.intp)
    order = [frontier]
    while len(frontier):
        reached = steps[frontier].ravel()
        reached = reached[reached >= 0]
        reached = reached[~seen[reached]]
        values, first = np.unique(reached, return_index=True)
        frontier = values[np.argsort(first)].astype(np.intp)
        seen[frontier] = True
        order.append(frontier)
    return np.concatenate(order)


def _trimmed(steps: _Table, accepting: _Flags, start: int) -> tuple[_Table, _Flags, int]:
    """Without the states that are unreachable or can no longer accept."""
    keep = np.zeros(len(steps), dtype=np.bool_)
    keep[_breadth_first(steps, start)] = True
    keep &= _Predecessors(steps).distances(np.flatnonzero(accepting)) >= 0
    if not keep[start]:
        raise EmptyLanguage("no text is legal")
    rank = np.full(len(steps) + 1, -1, dtype=np.int32)
    rank[:-1][keep] = np.arange(int(keep.sum()), dtype=np.int32)
    return rank[steps[keep]], accepting[keep], int(rank[start])


class _Predecessors:
    """The edges of a step table, turned round."""

    def __init__(self, steps: _Table):
        source, column = np.nonzero(steps >= 0)
        target = steps[source, column].astype(np.int64)
        edges = np.unique(target * len(steps) + source)
        self.source = edges % len(steps)
        self.out_degree = np.bincount(self.source, minlength=len(steps))
        self.offset = np.searchsorted(edges // len(steps), np.arange(len(steps) + 1))

    def of(self, states: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        """Sources of all edges into `states`, one entry an edge."""
        begin, count = self.offset[states], self.offset[states + 1] - self.offset[states]
        within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        found: npt.NDArray[np.int64] = self.source[np.repeat(begin, count) + within]
        return found

    def distances(self, ends: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        """Length of the shortest way from each state into `ends`, -1 where there is none."""
        distance = np.full(len(self.offset) - 1, -1, dtype=np.int64)
        frontier, length = ends, 0
        while len(frontier):
            distance[frontier] = length
            reached = np.unique(self.of(frontier))
            frontier, length = reached[distance[reached] < 0].astype(np.intp), length + 1
        return distance

    def heights(self) -> npt.NDArray[np.int64]:
        """Length of the longest way on from each state, -1 where it is endless."""
        height = np.full(len(self.offset) - 1, -1, dtype=np.int64)
        left = self.out_degree.copy()
        frontier, length = np.flatnonzero(left == 0), 0
        while len(frontier):
            height[frontier] = length
            reached, times = np.unique(self.of(frontier), return_counts=True)
            left[reached] -= times
            frontier, length = reached[left[reached] == 0].astype(np.intp), length + 1
        return height


def _minimised(steps: _Table, accepting: _Flags, start: int) -> tuple[_Table, _Flags, int]:
    """Merge equivalent states of a trimmed automaton: Moore's refinement, of only the states it may still split.

    It starts from what equivalent states share anyhow, the lengths of the shortest and of the longest text still
    accepted: that alone splits a counted repetition into its copies, which would otherwise take a round each.
    A partition is used only if it proves to be a congruence, so neither a collision of the 64-bit hashes nor giving
    up early can merge states that differ.
    """
    predecessors = _Predecessors(steps)
    lengths = np.stack([predecessors.distances(np.flatnonzero(accepting)), predecessors.heights()])
    initial = np.unique(lengths, axis=1, return_inverse=True)[1].reshape(-1)
    size = np.bincount(initial, minlength=len(steps))
    blocks = int(initial.max()) + 1
    block: npt.NDArray[np.uint64] = np.append(initial, len(steps)).astype(np.uint64)  # the last one is the sink's
    padded = _with_sink(steps)
    weights = _mixed(np.arange(1, steps.shape[1] + 1, dtype=np.uint64)) | np.uint64(1)
    # Members of a block agree on the blocks they lead to, as they were a round ago. So only those with a successor
    # that has changed blocks since can disagree now, and they do disagree with all the others.
    unsure = np.arange(len(steps))
    for _ in range(_MOST_ROUNDS):
        hashes = _mixed(_mixed(block[padded[unsure]]) @ weights + block[unsure])
        _, first, group, count = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
        parent = block[unsure[first]].astype(np.intp)
        split = np.bincount(parent, weights=count, minlength=len(steps)).astype(np.intp)
        # a block whose members are all unsure leaves its number to the largest part
        ranked = np.lexsort((-count, parent))
        largest = ranked[np.append(True, parent[ranked][1:] != parent[ranked][:-1])]
        moves = np.ones(len(first), dtype=np.bool_)
        moves[largest] = split[parent[largest]] < size[parent[largest]]
        if not moves.any():
            break
        number = np.where(moves, blocks + np.cumsum(moves) - 1, parent)
        np.subtract.at(size, parent[moves], count[moves])
        size[number[moves]] = count[moves]
        blocks += int(moves.sum())
        block[unsure] = number[group.reshape(-1)]
        unsure = np.unique(predecessors.of(unsure[moves[group.reshape(-1)]]))
        if not len(unsure):
            break
    _, representative, merged_into = np.unique(block[:-1], return_index=True, return_inverse=True)
    merged_into = merged_into.reshape(-1)
    merged = np.append(merged_into, -1)[padded[:-1]].astype(np.int32)
    agree = np.array_equal(merged, merged[representative[merged_into]])
    if not agree or not np.array_equal(accepting, accepting[representative[merged_into]]):
        return steps, accepting, start
    return merged[representative], accepting[representative], int(merged_into[start])


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _shown(regex: str) -> str:
    return repr(regex if len(regex) <= 80 else regex[:77] + "...")


def _too_many(states: int, budget: int) -> BudgetExceeded:
    return BudgetExceeded(f"the automaton has {states} states, the limit is {budget}; simplify the schema")


def _too_large(regex: str, budget: int) -> BudgetExceeded:
    return BudgetExceeded(f"the regex {_shown(regex)} needs more than {budget} states; use smaller counts")


def _rewritten(tree: Any) -> str:
    """The parsed regex in Rust's syntax, every character class written out, and without NUL."""
    return "".join(_rewritten_node(op, value) for op, value in tree)


def _rewritten_node(op: Any, value: Any) -> str:
    if op is sre.BRANCH:
        return f"(?:{'|'.join(_rewritten(branch) for branch in value[1])})"
    if op is sre.SUBPATTERN:
        return f"(?:{_rewritten(value[3])})"
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        low, high, body = value
        return f"(?:{_rewritten(body)}){{{low},{'' if high is sre.MAXREPEAT else high}}}"
    chars = _members(op, value)
    return write_class(chars) if chars else "[a&&b]"


def _check_size(tree: Any, budget: int) -> None:
    """Bound what Outlines would build, by walking the regex's position automaton over characters.

    Determinising it here costs a few microseconds a state and stops at the budget, where Outlines has no limit.

    Raises:
        _TooMany, or ValueError for what no automaton can express.
    """
    if _count_positions(tree) > _MOST_POSITIONS:
        raise _TooMany
    positions = _Positions()
    _, first, _ = positions.build(tree)
    if positions.determinised_size(first, _SLACK * budget) > _SLACK * budget:
        raise _TooMany


def _count_positions(tree: Any) -> int:
    total = 0
    for op, value in tree:
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            low, high, body = value
            total += max(low + 1 if high is sre.MAXREPEAT else high, 1) * _count_positions(body)
        elif op is sre.SUBPATTERN:
            total += _count_positions(value[3])
        elif op is sre.BRANCH:
            total += sum(_count_positions(branch) for branch in value[1])
        else:
            total += 1
    return total


class _TooMany(Exception):
    """A bound of _check_size() was passed."""


class _Positions:
    """Glushkov's automaton: a position for each character of the regex, and those that may follow it."""

    def __init__(self) -> None:
        self.chars: list[CodePoints] = []
        self.follow: list[list[int]] = []
        self.edges = 0

    def build(self, tree: Any) -> tuple[bool, list[int], list[int]]:
        """Add a sequence; returns whether it may be empty, and its first and last positions."""
        nullable = True
        first: list[int] = []
        last: list[int] = []
        for op, value in tree:
            part_nullable, part_first, part_last = self.node(op, value)
            self.connect(last, part_first)
            first = first + part_first if nullable else first
            last = last + part_last if part_nullable else part_last
            nullable = nullable and part_nullable
        return nullable, first, last

    def node(self, op: Any, value: Any) -> tuple[bool, list[int], list[int]]:
        if op is sre.SUBPATTERN:
            return self.build(value[3])
        if op is sre.BRANCH:
            parts = [self.build(branch) for branch in value[1]]
            return any(p[0] for p in parts), [f for p in parts for f in p[1]], [q for p in parts for q in p[2]]
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return self.repeat(*value)
        return self.position(_members(op, value))

    def position(self, chars: CodePoints) -> tuple[bool, list[int], list[int]]:
        self.chars.append(chars)
        self.follow.append([])
        return False, [len(self.chars) - 1], [len(self.chars) - 1]

    def repeat(self, low: int, high: Any, body: Any) -> tuple[bool, list[int], list[int]]:
        # x{2,4} is xx(x(x)?)?. A body that may be empty counts as not empty and its repetition as optional: the
        # language is the same, and its copies do not all follow each other.
        if high == 0:
            return True, [], []
        endless = high is sre.MAXREPEAT
        first: list[int] = []
        last: list[int] = []
        ends: list[int] = []
        nullable = low == 0
        for copy in range(max(low, 1) if endless else high):
            body_nullable, body_first, body_last = self.build(body)
            nullable = nullable or body_nullable
            self.connect(last, body_first)
            if copy == 0:
                first = body_first
            last = body_last
            if nullable or copy + 1 >= low:
                ends += last
        if endless:
            self.connect(last, body_first)
        return nullable, first, ends

    def connect(self, last: list[int], first: list[int]) -> None:
        self.edges += len(last) * len(first)
        if self.edges > _MOST_EDGES:
            raise _TooMany
        for position in last:
            self.follow[position] += first

    def determinised_size(self, first: list[int], limit: int) -> int:
        """About how many byte states determinising gives; counting stops above `limit`, or when it takes too long."""
        masks, weights = self.alphabet()
        start = frozenset(first)
        seen = {start}
        stack = [start]
        size, steps = 1, 0
        while stack and size <= limit:
            subset = stack.pop()
            size += 1 + max((weights[position] for position in subset), default=0)
            groups = self.successors(subset, masks)
            steps += sum(len(self.follow[position]) for position in subset) + sum(len(targets) for targets in groups)
            if steps > _MOST_STEPS:
                return limit + 1
            for reached in map(frozenset, groups):
                if reached not in seen:
                    seen.add(reached)
                    stack.append(reached)
        return size

    def successors(self, subset: frozenset[int], masks: list[int]) -> list[set[int]]:
        """The positions that each distinguishable group of characters leads to."""
        groups: list[tuple[int, set[int]]] = []
        for position in subset:
            mask, after = masks[position], self.follow[position]
            split: list[tuple[int, set[int]]] = []
            for known, targets in groups:
                both = known & mask
                if both != known:
                    split.append((known ^ both, targets.copy() if both else targets))
                if both:
                    targets.update(after)
                    split.append((both, targets))
                    mask ^= both
            if mask:
                split.append((mask, set(after)))
            groups = split
        return [targets for _, targets in groups if targets]

    def alphabet(self) -> tuple[list[int], list[int]]:
        """Per position: its characters as a bit set of intervals that no class splits, and its UTF-8 inner states."""
        distinct = {chars: n for n, chars in enumerate(dict.fromkeys(self.chars))}
        cuts = sorted({bound for chars in distinct for low, high in chars for bound in (low, high + 1)})
        interval = {cut: n for n, cut in enumerate(cuts)}
        masks, weights = [], []
        for chars in distinct:
            mask = 0
            for low, high in chars:
                mask |= (1 << interval[high + 1]) - (1 << interval[low])
            masks.append(mask)
            # measured on \w and \p{L}: about one inner state for every two ranges outside ASCII
            weights.append(sum(1 for _, high in chars if high > 0x7F) // 2)
        order = [distinct[chars] for chars in self.chars]
        return [masks[n] for n in order], [weights[n] for n in order]


_PERL_CLASSES: dict[str, CodePoints] = {
    "DIGIT": ((0x30, 0x39),),
    "SPACE": ((0x09, 0x0D), (0x20, 0x20)),
    "WORD": ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)),
}


def _perl_class(category: Any) -> CodePoints:
    members = _PERL_CLASSES[str(category).rsplit("_", 1)[-1]]
    return complement(members) if "NOT" in str(category) else members


def _members(op: Any, value: Any) -> CodePoints:
    """The characters that a node for one character matches; never NUL."""
    if op is sre.LITERAL:
        return union_of([(value, value)] if value else [])
    if op is sre.NOT_LITERAL:
        return complement(union_of([(0, 0), (value, value)]))
    if op is sre.ANY:
        return complement(((0, 0), (10, 10)))
    if op is sre.IN:
        return _class_members(tuple(value))
    raise ValueError(f"{str(op).lower()} is beyond a finite automaton")


@lru_cache(maxsize=4096)
def _class_members(items: tuple[tuple[Any, Any], ...]) -> CodePoints:
    chars = read_class(items, _perl_class)
    return intersection(complement(chars) if items[0][0] is sre.NEGATE else chars, complement(((0, 0),)))
