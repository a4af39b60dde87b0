"""Sets of Unicode code points, read from Python's parse of a regex and written back as a regex class."""

from __future__ import annotations

import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants as sre  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_constants as sre
    import sre_parse as parser

__all__ = ["ALL", "CodePoints", "complement", "contains", "general_category", "intersection", "parser", "read_class"]
__all__ += ["same_ignoring_case", "sre", "union", "write_class"]

CodePoints = tuple[tuple[int, int], ...]
"""Sorted, disjoint, inclusive ranges of Unicode scalar values (surrogates are never members)."""

_LAST = 0x10FFFF
ALL: CodePoints = ((0, 0xD7FF), (0xE000, _LAST))

# What regex syntax reads as something else inside a class. `<` and `>` are absent on purpose: Rust reads `\<` as a
# word boundary.
_CLASS_META = frozenset("[]\\^-&~|")


def union(ranges: Iterable[tuple[int, int]]) -> CodePoints:
    """The set of all code points in `ranges`, which may overlap and come in any order; surrogates are dropped."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return intersection(tuple(merged), ALL)


def intersection(a: CodePoints, b: CodePoints) -> CodePoints:
    """The code points in both `a` and `b`."""
    common: list[tuple[int, int]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            common.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(common)


def complement(a: CodePoints) -> CodePoints:
    """The Unicode scalar values that are not in `a`."""
    gaps: list[tuple[int, int]] = []
    start = 0
    for low, high in a:
        if start < low:
            gaps.append((start, low - 1))
        start = high + 1
    if start <= _LAST:
        gaps.append((start, _LAST))
    return intersection(tuple(gaps), ALL)


def contains(a: CodePoints, code_point: int) -> bool:
    """Whether `code_point` is in `a`."""
    i = bisect_right(a, (code_point, _LAST + 1)) - 1
    return i >= 0 and a[i][0] <= code_point <= a[i][1]


def read_class(items: Iterable[tuple[Any, Any]], category: Callable[[Any], CodePoints]) -> CodePoints:
    """The code points of the items of an IN node; `category` gives those of a CATEGORY such as `\\d`.

    A negation is left to the caller, who may have to close the set under case first.
    """
    ranges: list[tuple[int, int]] = []
    for op, value in items:
        if op is sre.LITERAL:
            ranges.append((value, value))
        elif op is sre.RANGE:
            ranges.append(value)
        elif op is sre.CATEGORY:
            ranges.extend(category(value))
        elif op is not sre.NEGATE:
            raise ValueError(f"{op} in a character class")
    return union(ranges)


def write_class(a: CodePoints) -> str:
    """A regex that matches one raw character of the non-empty set `a`, alike in Rust's syntax and in Python's."""
    if len(a) == 1 and a[0][0] == a[0][1]:
        char = chr(a[0][0])
        return "\\" + char if char in ".*+?(){}$#" else _class_member(a[0][0])
    parts: list[str] = []
    for low, high in a:
        parts.append(_class_member(low))
        if high > low:
            parts.append(("-" if high > low + 1 else "") + _class_member(high))
    return f"[{''.join(parts)}]"


def _class_member(code_point: int) -> str:
    if code_point < 0x20 or code_point == 0x7F:
        return f"\\x{code_point:02x}"
    char = chr(code_point)
    return "\\" + char if char in _CLASS_META else char


@lru_cache(maxsize=64)
def general_category(name: str) -> CodePoints | None:
    r"""The code points of a `\p{...}` that is a general category, Any, ASCII or Assigned; None for other names.

    Long and short names, with or without `General_Category=`, as ECMA-262 and Unicode spell them.
    """
    key, _, value = name.rpartition("=")
    if key not in ("", "gc", "General_Category"):
        return None
    if value == "Any":
        return ALL
    if value == "ASCII":
        return ((0, 0x7F),)
    if value == "Assigned":
        return complement(general_category("Cn") or ())
    short = _CATEGORY_NAMES.get(value, value)
    runs = _category_runs()
    if short == "LC":
        wanted = {"Lu", "Ll", "Lt"}
    else:
        wanted = {category for category in runs if category == short or (len(short) == 1 and category[0] == short)}
    return union(run for category in wanted for run in runs[category]) if wanted else None


@lru_cache(maxsize=1)
def _category_runs() -> dict[str, list[tuple[int, int]]]:
    runs: dict[str, list[tuple[int, int]]] = {}
    start, current = 0, unicodedata.category("\0")
    for code_point in range(1, _LAST + 1):
        category = unicodedata.category(chr(code_point))
        if category != current:
            runs.setdefault(current, []).append((start, code_point - 1))
            start, current = code_point, category
    runs.setdefault(current, []).append((start, _LAST))
    return runs


_CATEGORY_NAMES = {
    "Letter": "L", "Cased_Letter": "LC", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Titlecase_Letter": "Lt",
    "Modifier_Letter": "Lm", "Other_Letter": "Lo", "Mark": "M", "Combining_Mark": "M", "Nonspacing_Mark": "Mn",
    "Spacing_Mark": "Mc", "Enclosing_Mark": "Me", "Number": "N", "Decimal_Number": "Nd", "digit": "Nd",
    "Letter_Number": "Nl", "Other_Number": "No", "Punctuation": "P", "punct": "P", "Connector_Punctuation": "Pc",
    "Dash_Punctuation": "Pd", "Open_Punctuation": "Ps", "Close_Punctuation": "Pe", "Initial_Punctuation": "Pi",
    "Final_Punctuation": "Pf", "Other_Punctuation": "Po", "Symbol": "S", "Math_Symbol": "Sm", "Currency_Symbol": "Sc",
    "Modifier_Symbol": "Sk", "Other_Symbol": "So", "Separator": "Z", "Space_Separator": "Zs", "Line_Separator": "Zl",
    "Paragraph_Separator": "Zp", "Other": "C", "Control": "Cc", "cntrl": "Cc", "Format": "Cf", "Surrogate": "Cs",
    "Private_Use": "Co", "Unassigned": "Cn",
}  # fmt: skip


def same_ignoring_case(a: CodePoints) -> CodePoints:
    """`a` and every character whose one-character lower or upper case is that of a member of `a`."""
    by_fold = _case_classes()
    more = [(other, other) for code_point, others in by_fold.items() if contains(a, code_point) for other in others]
    return union([*a, *more])


@lru_cache(maxsize=1)
def _case_classes() -> dict[int, tuple[int, ...]]:
    parent: dict[int, int] = {}

    def root(code_point: int) -> int:
        while parent.setdefault(code_point, code_point) != code_point:
            code_point = parent[code_point]
        return code_point

    for code_point in range(_LAST + 1):
        char = chr(code_point)
        for cased in (char.lower(), char.upper()):
            if cased != char and len(cased) == 1:
                parent[root(ord(cased))] = root(code_point)
    classes: dict[int, list[int]] = {}
    for code_point in parent:
        classes.setdefault(root(code_point), []).append(code_point)
    return {member: tuple(members) for members in classes.values() for member in members}
