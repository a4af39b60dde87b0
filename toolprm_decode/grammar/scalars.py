r"""Regexes over the written text of scalars: strings with patterns and formats, integers and numbers with bounds.

A pattern speaks of the characters a string decodes to; its regex here speaks of the bytes written, where one character
has several spellings (`/`, `\/`, `\u002f`). All spellings are legal, whatever an encoder chooses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from toolprm_decode.errors import BudgetExceeded
from toolprm_decode.grammar.charsets import (
    ALL,
    CodePoints,
    complement,
    contains,
    general_category,
    intersection,
    parser,
    read_class,
    same_ignoring_case,
    sre,
    union,
    write_class,
)
from toolprm_decode.grammar.fsm import STATE_BUDGET, ByteFSM, EmptyLanguage, byte_fsm, difference, intersect, reduced

__all__ = ["PY_STRING", "STRING", "STRING_CHAR", "UnsupportedPattern", "integer", "multiple_of", "number"]
__all__ += ["pattern_fsm", "string_char", "string_format", "string_pattern"]

Style = Literal["json", "python"]
Escapes = Literal["all", "needed"]
Bound = int | float | Decimal


class UnsupportedPattern(ValueError):
    """A pattern (or a multipleOf) that cannot be enforced; the message names the construct."""


# ---------------------------------------------------------------- characters and their spellings

_HEX = tuple(f"{d:x}" + (f"{d:X}" if d > 9 else "") for d in range(16))
_BMP: CodePoints = ((0, 0xFFFF),)
_ASTRAL: CodePoints = ((0x10000, 0x10FFFF),)
_PRINTABLE: CodePoints = ((0x20, 0x7E),)
_CONTROLS: CodePoints = ((0, 0x1F),)

_Place = tuple[str, tuple[str, ...]]
"""One digit of a code point in an escape: the literal before it, and the characters that write each of its values."""

_U4: tuple[_Place, ...] = (("\\\\u", _HEX), ("", _HEX), ("", _HEX), ("", _HEX))
_X2: tuple[_Place, ...] = (("\\\\x", _HEX), ("", _HEX))
_U8: tuple[_Place, ...] = (("\\\\U00", _HEX), *((("", _HEX),) * 5))
# U+10000 plus a 20-bit offset: 2 + 4 + 4 bits in the high surrogate \uD8xx-\uDBxx, as many in the low \uDCxx-\uDFxx
_PAIR: tuple[_Place, ...] = (
    *(("\\\\u[dD]", _HEX[8:12]), ("", _HEX), ("", _HEX)),
    *(("\\\\u[dD]", _HEX[12:16]), ("", _HEX), ("", _HEX)),
)

_JSON_SHORT = {'"': '"', "\\": "\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_PYTHON_SHORT = {"\\": "\\", "'": "'", '"': '"', "\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f"}


def _group(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"


@lru_cache(maxsize=4096)
def _spellings(chars: CodePoints, quote: str, style: Style, escapes: Escapes) -> str:
    """A regex of every spelling of one character of the non-empty set `chars` between `quote`s."""
    unescaped = union([*_CONTROLS, (ord(quote), ord(quote)), (ord("\\"), ord("\\"))])
    raw = intersection(chars, complement(unescaped))
    # A character that is printable ASCII needs no escape; leaving those spellings out keeps literal text forced.
    escaped = chars if escapes == "all" else intersection(chars, complement(_PRINTABLE))
    options = [write_class(raw)] if raw else []
    short = _JSON_SHORT if style == "json" else _PYTHON_SHORT
    letters = "".join(
        letter
        for char, letter in short.items()
        if contains(chars, ord(char)) and (escapes == "all" or contains(unescaped, ord(char)))
    )
    if letters:
        options.append("\\\\" + write_class(union((ord(letter), ord(letter)) for letter in letters)))
    tables: tuple[tuple[CodePoints, tuple[_Place, ...], int], ...]
    if style == "json":
        tables = ((_BMP, _U4, 0), (_ASTRAL, _PAIR, 0x10000))
    else:
        tables = ((((0, 0xFF),), _X2, 0), (_BMP, _U4, 0), (ALL, _U8, 0))
    for domain, places, offset in tables:
        options += _digits(tuple((a - offset, b - offset) for a, b in intersection(escaped, domain)), places)
    return _group(options)


def _digits(numbers: CodePoints, places: tuple[_Place, ...]) -> list[str]:
    """Alternatives that together write every number of `numbers` at `places`."""
    if not numbers:
        return []
    if not places:
        return [""]
    prefix, symbols = places[0]
    below = math.prod(len(digits) for _, digits in places[1:])
    if numbers == ((0, below * len(symbols) - 1),):
        return [_every_number(places)]
    by_tail: dict[CodePoints, list[int]] = {}
    for digit in range(len(symbols)):
        start = digit * below
        tail = tuple(
            (max(a, start) - start, min(b, start + below - 1) - start)
            for a, b in numbers
            if a < start + below and b >= start
        )
        if tail:
            by_tail.setdefault(tail, []).append(digit)
    return [
        prefix + _symbols(symbols[d] for d in digits) + _group(_digits(tail, places[1:]))
        for tail, digits in by_tail.items()
    ]


def _every_number(places: tuple[_Place, ...]) -> str:
    return "".join(prefix + _symbols(symbols) for prefix, symbols in places)


def _symbols(symbols: Iterable[str]) -> str:
    return write_class(union((ord(char), ord(char)) for symbol in symbols for char in symbol))


def string_char(quote: str, style: Style) -> str:
    """Regex of one character inside a string between `quote`s: raw UTF-8, or an escape.

    In JSON a surrogate pair is one character, and a lone surrogate is none.
    """
    return _spellings(ALL, quote, style, "all")


STRING_CHAR = string_char('"', "json")
"""Regex of one character inside a JSON string."""

STRING = f'"{STRING_CHAR}*"'
"""Regex of any JSON string with its quotes. Lone surrogates are illegal."""

PY_STRING = _group([f"{quote}{string_char(quote, 'python')}*{quote}" for quote in "\"'"])
r"""Regex of a Python string literal, in either quotes, as repr() or json.dumps() write it.

Escapes: `\\ \' \" \n \r \t \b \f \xXX \uXXXX \UXXXXXXXX`. Python does not join surrogate pairs, so they are illegal.
"""


# ---------------------------------------------------------------- patterns


@lru_cache(maxsize=4096)
def string_pattern(pattern: str, *, style: Style = "json", anchored: bool = False, escapes: Escapes = "all") -> str:
    r"""The regex of all written strings, quotes included, whose decoded value matches `pattern`.

    Semantics are ECMA-262's with the `u` flag, as JSON Schema asks: `\d`, `\w` are ASCII, `\s` is Unicode, `.` is
    anything but the line terminators (U+000A, U+000D, U+2028, U+2029), `$` is the very end. Of what only Python writes,
    inline flags i, s, x and `\A`, `\Z`, `(?P<name>...)` work as in Python.

    Args:
        pattern: searched for anywhere in the value, unless `^` or `$` say otherwise.
        style: "json", or "python" for a Python literal in either quotes.
        anchored: the whole value has to match.
        escapes: "all" spellings of each character; or "needed", without escapes for printable ASCII that can be
            written raw, so that literal text in the pattern leaves one continuation only. Both cover json.dumps (with
            and without ensure_ascii) and repr.

    Raises:
        UnsupportedPattern: lookarounds, backreferences, word boundaries, unknown syntax; names the construct.
        EmptyLanguage: nothing matches, as for `a^`.
        BudgetExceeded: counts make the regex itself too long.
    """
    try:
        tree, flags, sentinels = _parse(pattern)
        return _written(_Translator(style, escapes, sentinels), tree, flags, anchored)
    except RecursionError as error:
        raise BudgetExceeded("the pattern is nested too deeply") from error


@lru_cache(maxsize=512)
def pattern_fsm(
    pattern: str,
    *,
    style: Style = "json",
    anchored: bool = False,
    escapes: Escapes = "all",
    budget: int = STATE_BUDGET,
) -> ByteFSM:
    r"""The automaton of string_pattern(); takes lookaheads too where they stand right after a leading `^`.

    That is where passwords (`^(?=.*\d).{8,}$`) and exclusions (`^(?!\s*$)`) put them.

    Raises:
        UnsupportedPattern, EmptyLanguage, BudgetExceeded: as string_pattern() and byte_fsm().
    """
    try:
        return _pattern_fsm(pattern, style, anchored, escapes, budget)
    except BudgetExceeded as error:  # of the written regex, which would mean nothing to the pattern's author
        message = f"the pattern {pattern!r:.100} needs more than {budget} states; use smaller counts or anchors"
        raise BudgetExceeded(message) from error


def _pattern_fsm(pattern: str, style: Style, anchored: bool, escapes: Escapes, budget: int) -> ByteFSM:
    tree, flags, sentinels = _parse(pattern)
    start = next((i for i, (op, value) in enumerate(tree) if not _is_start(op, value)), len(tree))
    end = next((i for i in range(start, len(tree)) if tree[i][0] not in (sre.ASSERT, sre.ASSERT_NOT)), len(tree))
    if end == start or not (start or anchored):
        return byte_fsm(string_pattern(pattern, style=style, anchored=anchored, escapes=escapes), budget=budget)
    translator = _Translator(style, escapes, sentinels)
    fsm = byte_fsm(_written(translator, [*tree[:start], *tree[end:]], flags, anchored), budget=budget)
    every_spelling = _Translator(style, "all", sentinels)
    for op, (direction, body) in tree[start:end]:
        if direction < 0:
            raise UnsupportedPattern("lookbehind (?<=...) or (?<!...)")
        try:
            ahead = byte_fsm(_written(every_spelling, [(sre.AT, sre.AT_BEGINNING), *body], flags, False), budget=budget)
        except EmptyLanguage:
            if op is sre.ASSERT:
                raise
            continue
        fsm = (intersect if op is sre.ASSERT else difference)(fsm, ahead, budget=budget)
    return fsm


def _is_start(op: Any, value: Any) -> bool:
    return op is sre.AT and value in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING)


def _written(translator: _Translator, tree: Any, flags: int, anchored: bool) -> str:
    """The regex of the written strings that match: every quote's, with anything around an unanchored match."""
    options = []
    for quote in "\"'" if translator.style == "python" else '"':
        translator.quote = quote
        part = translator.sequence(tree, flags)
        rest = "" if anchored else string_char(quote, translator.style) + "*"
        if (False, False) in part.empty and not anchored:
            texts = [rest]  # found in every string
        else:
            texts = [
                ("" if starts else rest) + _group(alternatives) + ("" if ends else rest)
                for (starts, ends), alternatives in part.full.items()
            ]
        if texts:
            options.append(quote + _group(texts) + quote)
    if not options:
        raise EmptyLanguage("no string matches the pattern")
    return _group(options)


_PERL_CLASSES: dict[str, CodePoints] = {
    "DIGIT": ((0x30, 0x39),),
    "WORD": ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)),
    "SPACE": union(
        [(0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)]
        + [(0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]
    ),
}
_DOT = complement(((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)))


def _perl_class(category: Any) -> CodePoints:
    members = _PERL_CLASSES[str(category).rsplit("_", 1)[-1]]
    return complement(members) if "NOT" in str(category) else members


def _parse(pattern: str) -> tuple[Any, int, dict[int, CodePoints]]:
    """Python's parse of an ECMA-262 pattern, its flags, and what its sentinel characters stand for."""
    source, sentinels = _as_python(pattern)
    try:
        tree = parser.parse(source)
    except OverflowError as error:
        raise BudgetExceeded(f"the pattern cannot be compiled: {error}") from error
    except re.error as error:
        message = re.sub("[\U0010f000-\U0010fffd]", lambda sentinel: r"\p{...}", error.msg)
        raise UnsupportedPattern(f"not a regular expression that can be read: {message}") from error
    except RecursionError as error:
        raise BudgetExceeded("the pattern is nested too deeply") from error
    return tree, tree.state.flags, sentinels


_ECMA_ONLY = re.compile(
    r"""
      \\u\{(?P<braced>[0-9A-Fa-f]{1,6})\}
    | \\u(?P<high>[dD][89abAB][0-9A-Fa-f]{2})\\u(?P<low>[dD][c-fC-F][0-9A-Fa-f]{2})
    | \\(?P<negated>[pP])\{(?P<property>[^{}]*)\}
    | \\c(?P<control>[A-Za-z])
    | \\k<(?P<reference>[^>]*)>
    | \\. | \\$
    | (?P<named>\(\?<(?![=!])[^>]*>)
    | (?P<opens>\[\^?\]?)
    | \]
    | (?P<set_operator>[&|~]{2,})
    """,
    re.VERBOSE | re.DOTALL,
)


def _as_python(pattern: str) -> tuple[str, dict[int, CodePoints]]:
    r"""`pattern` with what only ECMA-262 writes put into Python's syntax.

    A class `\p{...}` becomes a sentinel, a private character that the pattern does not contain.
    """
    free = (code_point for code_point in range(0x10F000, 0x10FFFE) if chr(code_point) not in pattern)
    sentinels: dict[int, CodePoints] = {}
    in_class = False

    def translate(match: re.Match[str]) -> str:
        nonlocal in_class
        text, found = match.group(), match.groupdict()
        if found["braced"] is not None or found["high"] is not None:
            if found["braced"] is not None:
                code_point = int(found["braced"], 16)
            else:
                code_point = 0x10000 + (int(found["high"], 16) - 0xD800) * 0x400 + int(found["low"], 16) - 0xDC00
            if code_point > 0x10FFFF:
                raise UnsupportedPattern(f"{text}: beyond Unicode")
            return f"\\U{code_point:08x}"
        if found["property"] is not None:
            members = general_category(found["property"])
            if members is None:
                raise UnsupportedPattern(f"Unicode property {text}: only general categories are known")
            sentinel = next(free)
            sentinels[sentinel] = complement(members) if found["negated"] == "P" else members
            return chr(sentinel)
        if found["control"] is not None:
            return f"\\x{ord(found['control']) % 32:02x}"
        if found["reference"] is not None:
            raise UnsupportedPattern(f"backreference {text}")
        if found["named"] is not None:
            return text if in_class else "("
        if found["set_operator"] is not None:
            return "".join("\\" + char for char in text) if in_class else text
        if found["opens"] is not None:
            if in_class:  # Python warns of nested sets; in ECMA-262 the bracket is a plain character
                in_class = not text.endswith("]")
                return "\\" + text
            in_class = True
            return text
        if text == "]":
            in_class = False
        return text

    return _ECMA_ONLY.sub(translate, pattern), sentinels


_Where = tuple[bool, bool]
"""(nothing may come before, nothing may come after): what the anchors of a match ask of its surroundings."""


@dataclass
class _Part:
    """The matches of a piece of pattern, by what they ask of their surroundings.

    Attributes:
        full: alternatives that match, as written text, under each condition.
        empty: the conditions under which the empty text matches; each is in `full` too, with "" among its texts.
    """

    full: dict[_Where, list[str]]
    empty: frozenset[_Where]

    @property
    def free(self) -> bool:
        """Without anchors."""
        return not self.full or set(self.full) == {(False, False)}


_NOTHING = _Part({}, frozenset())
_EPSILON = _Part({(False, False): [""]}, frozenset({(False, False)}))
# A repetition of a piece with anchors is written out copy by copy up to this count.
_MOST_ANCHORED_COPIES = 8
# Longest regex written; well before this, byte_fsm() refuses.
_LONGEST = 4_000_000


class _Translator:
    """Writes the parse of a pattern over characters as a regex over their spellings."""

    def __init__(self, style: Style, escapes: Escapes, sentinels: dict[int, CodePoints]):
        self.style, self.escapes, self.sentinels = style, escapes, sentinels
        self.quote = '"'

    def char(self, chars: CodePoints) -> str:
        return _spellings(chars, self.quote, self.style, self.escapes)

    def one_of(self, chars: CodePoints, flags: int, *, negated: bool = False) -> _Part:
        if flags & re.IGNORECASE:
            chars = same_ignoring_case(chars)
        if negated:
            chars = complement(chars)
        return _Part({(False, False): [self.char(chars)]}, frozenset()) if chars else _NOTHING

    def sequence(self, tree: Any, flags: int) -> _Part:
        result = _EPSILON
        for op, value in tree:
            result = self.joined(result, self.node(op, value, flags))
            if sum(len(text) for texts in result.full.values() for text in texts) > _LONGEST:
                raise BudgetExceeded("the pattern is too long to compile")
        return result

    def node(self, op: Any, value: Any, flags: int) -> _Part:
        if op is sre.LITERAL or op is sre.NOT_LITERAL:
            chars = self.sentinels[value] if value in self.sentinels else union([(value, value)])
            return self.one_of(chars, flags, negated=op is sre.NOT_LITERAL)
        if op is sre.ANY:
            return self.one_of(ALL if flags & re.DOTALL else _DOT, 0)
        if op is sre.IN:
            chars = self.in_class(value)
            return self.one_of(chars, flags, negated=value[0][0] is sre.NEGATE)
        if op is sre.BRANCH:
            return self.either([self.sequence(branch, flags) for branch in value[1]])
        if op is sre.SUBPATTERN:
            _, added, removed, body = value
            return self.sequence(body, (flags | added) & ~removed)
        if op is sre.MAX_REPEAT or op is sre.MIN_REPEAT:  # lazy or greedy, the same texts match
            low, high, body = value
            return self.repeated(self.sequence(body, flags), low, None if high is sre.MAXREPEAT else high)
        if op is sre.AT:
            return self.anchor(value, flags)
        raise UnsupportedPattern(_construct(op, value))

    def in_class(self, items: Any) -> CodePoints:
        if any(op is sre.RANGE and set(value) & self.sentinels.keys() for op, value in items):
            raise UnsupportedPattern(r"a range that ends in \p{...}")
        plain = [(op, value) for op, value in items if op is not sre.LITERAL or value not in self.sentinels]
        named = [self.sentinels[value] for op, value in items if op is sre.LITERAL and value in self.sentinels]
        return union([*read_class(plain, _perl_class), *(run for members in named for run in members)])

    def anchor(self, value: Any, flags: int) -> _Part:
        if value in (sre.AT_BOUNDARY, sre.AT_NON_BOUNDARY):
            raise UnsupportedPattern(r"word boundary \b or \B")
        if flags & re.MULTILINE:
            raise UnsupportedPattern("^ or $ under the multiline flag (?m)")
        where = (True, False) if _is_start(sre.AT, value) else (False, True)
        return _Part({where: [""]}, frozenset({where}))

    def either(self, parts: Iterable[_Part]) -> _Part:
        full: dict[_Where, list[str]] = {}
        empty: set[_Where] = set()
        for part in parts:
            empty |= part.empty
            for where, texts in part.full.items():
                known = full.setdefault(where, [])
                known += [text for text in texts if text not in known]
        return _Part(full, frozenset(empty))

    def joined(self, a: _Part, b: _Part) -> _Part:
        if a.free and b.free:
            if not a.full or not b.full:
                return _NOTHING
            text = _group(a.full[False, False]) + _group(b.full[False, False])
            return _Part({(False, False): [text]}, a.empty & b.empty)
        full: dict[_Where, list[str]] = {}

        def add(where: _Where, text: str) -> None:
            texts = full.setdefault(where, [])
            if text not in texts:
                texts.append(text)

        for (a_starts, a_ends), a_texts in a.full.items():
            for (b_starts, b_ends), b_texts in b.full.items():
                if not a_ends and not b_starts:
                    add((a_starts, b_ends), _group(a_texts) + _group(b_texts))
            # where one side has to be at an end of the string, the other can only be empty
            for b_starts, b_ends in b.empty:
                if not b_starts and (a_ends or b_ends):
                    add((a_starts, True), _group(a_texts))
        for (b_starts, b_ends), b_texts in b.full.items():
            for a_starts, a_ends in a.empty:
                if not a_ends and (a_starts or b_starts):
                    add((True, b_ends), _group(b_texts))
        empty = frozenset((a1 or b1, a2 or b2) for a1, a2 in a.empty for b1, b2 in b.empty)
        for where in empty:
            add(where, "")
        return _Part(full, empty)

    def repeated(self, body: _Part, low: int, high: int | None) -> _Part:
        if high == 0:
            return _EPSILON
        if body.free:
            if not body.full:
                return _EPSILON if low == 0 else _NOTHING
            text = f"(?:{'|'.join(body.full[False, False])})" + _count(low, high)
            return _Part({(False, False): [text]}, _EPSILON.empty if low == 0 else body.empty)
        if low > _MOST_ANCHORED_COPIES:
            raise UnsupportedPattern(f"^ or $ inside a repetition of {low} times or more")
        result = _EPSILON
        for _ in range(low):
            result = self.joined(result, body)
        if high is None or high > low:
            result = self.joined(result, self.optional_copies(body, None if high is None else high - low))
        return result

    def optional_copies(self, body: _Part, most: int | None) -> _Part:
        """Up to `most` copies: only the first can be bound to the start, only the last to the end."""

        def copies(left_out: int) -> str | None:
            if most is not None and most < left_out:
                return None
            if (False, False) not in body.full:
                return ""
            return f"(?:{'|'.join(body.full[False, False])})" + _count(0, None if most is None else most - left_out)

        result: list[_Part] = [_EPSILON]
        at_start, at_end = body.full.get((True, False)), body.full.get((False, True))
        middle = copies(0)
        if middle:
            result.append(_Part({(False, False): [middle]}, _EPSILON.empty))
        one_less, two_less = copies(1) or "", copies(2)
        if at_start:
            result.append(_Part({(True, False): [_group(at_start) + one_less]}, frozenset()))
        if at_end:
            result.append(_Part({(False, True): [one_less + _group(at_end)]}, frozenset()))
        if at_start and at_end and two_less is not None:
            result.append(_Part({(True, True): [_group(at_start) + two_less + _group(at_end)]}, frozenset()))
        if (True, True) in body.full:
            result.append(_Part({(True, True): body.full[True, True]}, frozenset()))
        return self.either(result)


def _count(low: int, high: int | None) -> str:
    if high is None:
        return "*" if low == 0 else "+" if low == 1 else f"{{{low},}}"
    if (low, high) == (0, 1):
        return "?"
    return f"{{{low}}}" if low == high else f"{{{low},{high}}}"


def _construct(op: Any, value: Any) -> str:
    if op in (sre.ASSERT, sre.ASSERT_NOT):
        ahead, negative = value[0] > 0, op is sre.ASSERT_NOT
        return f"look{'ahead' if ahead else 'behind'} (?{'' if ahead else '<'}{'!' if negative else '='}...)"
    names = {"GROUPREF": "backreference", "GROUPREF_EXISTS": "conditional group (?(1)...)", "FAILURE": "lookahead (?!)"}
    names |= {"ATOMIC_GROUP": "atomic group (?>...)", "POSSESSIVE_REPEAT": "possessive quantifier"}
    return names.get(str(op), str(op).lower())


# ---------------------------------------------------------------- formats


def _hostname() -> str:
    """Host names of which a regex can tell that they are valid.

    No label has hyphens in its third and fourth places: what follows `xn--` is Punycode, whose rules are beyond a
    regex, and other letters there are reserved. No name is longer than 253: three labels of up to 63, then 61
    characters in labels of any number.
    """
    length = r"(?=[^.]+(?:\.[^.]+){0,2}$|(?:[^.]+\.){3}[^\n]{1,61}$)"
    return rf"{length}{_label('A-Za-z0-9', 63)}(?:\.{_label('A-Za-z0-9', 63)})*"


def _idn_hostname() -> str:
    """Internationalised host names of which a regex can tell that they are valid: up to three labels.

    Letters are those of scripts from left to right that need no context, without marks, in lower case. A label that
    has others than ASCII has 12 letters at most, so that its Punycode has no more than 63.
    """
    letters = r"a-z0-9\u00df-\u00f6\u00f8-\u00ff\u03ac-\u03ce\u0430-\u045f"
    letters += r"\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
    label = f"(?:{_label('A-Za-z0-9', 63)}|{_label(letters, 12)})"
    return rf"{label}(?:[.\u3002\uff0e\uff61]{label}){{0,2}}"


def _label(letters: str, most: int) -> str:
    one, any_ = f"[{letters}]", f"[{letters}-]"
    return f"(?:{one}(?:{any_}{{0,2}}{one}|{any_}(?:{one}-|{any_}{one}){any_}{{0,{most - 5}}}{one})?)"


def _formats() -> dict[str, str]:
    leap_year = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
    date = (
        r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
        rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{leap_year}-02-29)"
    )
    # a leap second is added at the end of a UTC day; under other offsets it is left out
    time = (
        r"(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
        r"|23:59:60(?:\.[0-9]+)?(?:[Zz]|[+-]00:00))"
    )
    of_time = "(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
    of_date = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
    octet = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    ipv4 = rf"{octet}(?:\.{octet}){{3}}"
    h16 = "[0-9A-Fa-f]{1,4}"
    tail = f"(?:{h16}:{h16}|{ipv4})"
    ipv6 = "|".join(
        [rf"(?:{h16}:){{6}}{tail}", rf"::(?:{h16}:){{5}}{tail}"]
        + [rf"(?:(?:{h16}:){{0,{n}}}{h16})?::(?:{h16}:){{{4 - n}}}{tail}" for n in range(5)]
        + [rf"(?:(?:{h16}:){{0,5}}{h16})?::{h16}", rf"(?:(?:{h16}:){{0,6}}{h16})?::"]
    )
    ipv6 = f"(?:{ipv6})"
    label = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    hostname = rf"{label}(?:\.{label})*"
    # labels here without their limit of 63, which would make the automata ten times larger and more
    mail_label = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
    # RFC 5890's tables are beyond a regex of this size: any non-ASCII character counts as a letter
    wide = r"[A-Za-z0-9\u00a1-\u3001\u3003-\uff0d\uff0f-\uff60\uff62-\u{10ffff}]"
    wide_label = f"{wide}(?:(?:{wide}|-)*{wide})?"
    wide_hostname = rf"{wide_label}(?:[.\u3002\uff0e\uff61]{wide_label})*"

    def email(extra: str, domain: str) -> str:
        atom = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{extra}-]+"
        quoted = rf'"(?:[ !#-\[\]-~{extra}]|\\[ -~])*"'
        return rf"(?:{atom}(?:\.{atom})*|{quoted})@(?:{domain}|\[(?:{ipv4}|IPv6:{ipv6})\])"

    def reference(extra: str, private: str) -> tuple[str, str]:
        """URI (or IRI) and reference, RFC 3986 (3987)."""
        escape = "%[0-9A-Fa-f]{2}"
        plain = rf"A-Za-z0-9._~!$&'()*+,;={extra}\-"
        char = f"(?:[{plain}:@]|{escape})"
        user = f"(?:[{plain}:]|{escape})*@"
        host = rf"(?:\[(?:{ipv6}|[vV][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+)\]|(?:[{plain}]|{escape})*)"
        authority = f"(?:{user})?{host}(?::[0-9]*)?"
        absolute = rf"/(?:{char}+(?:/{char}*)*)?"
        after = rf"(?:\?(?:[{plain}:@/?{private}]|{escape})*)?(?:#(?:[{plain}:@/?]|{escape})*)?"
        with_authority = f"//{authority}(?:/{char}*)*"
        uri = f"[A-Za-z][A-Za-z0-9+.-]*:(?:{with_authority}|{absolute}|{char}+(?:/{char}*)*)?{after}"
        no_colon = f"(?:[{plain}@]|{escape})+(?:/{char}*)*"
        return uri, f"(?:{uri}|(?:{with_authority}|{absolute}|{no_colon})?{after})"

    uri, uri_reference = reference("", "")
    planes = "".join(rf"\u{{{plane:x}0000}}-\u{{{plane:x}fffd}}" for plane in range(1, 15))
    ucschar = rf"\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef{planes}"
    iri, iri_reference = reference(ucschar, r"\ue000-\uf8ff\u{f0000}-\u{ffffd}\u{100000}-\u{10fffd}")
    pointer = "(?:/(?:[^/~]|~[01])*)*"
    name = r"(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})+(?:\.(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})+)*"
    variable = rf"{name}(?::[1-9][0-9]{{0,3}}|\*)?"
    literal = rf"""[!#$&-;=?@A-Z\[\]_a-z~{ucschar}]|%[0-9A-Fa-f]{{2}}"""
    return {
        "date": date,
        "time": time,
        "date-time": f"{date}[Tt]{time}",
        "duration": f"P(?:[0-9]+W|{of_date}(?:T{of_time})?|T{of_time})",
        "email": email("", rf"{mail_label}(?:\.{mail_label})*"),
        "idn-email": email(r"\u0080-\u{10ffff}", wide_hostname),
        "hostname": hostname,
        "idn-hostname": wide_hostname,
        "ipv4": ipv4,
        "ipv6": ipv6,
        "uuid": "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
        "uri": uri,
        "uri-reference": uri_reference,
        "iri": iri,
        "iri-reference": iri_reference,
        "uri-template": rf"(?:{literal}|\{{[+#./;?&]?{variable}(?:,{variable})*\}})*",
        "json-pointer": pointer,
        "relative-json-pointer": f"(?:0|[1-9][0-9]*)(?:#|{pointer})",
    }


_FORMATS = _formats()
_STRICTER = {"hostname": _hostname(), "idn-hostname": _idn_hostname()}


def string_format(name: str, *, wanted: bool = True) -> str | None:
    """The pattern that the whole value of a string of this `format` matches; None where a format asks nothing.

    For string_pattern(..., anchored=True). Exact for dates (days of the month, leap years), times, durations, IP
    addresses, UUIDs and JSON pointers; a little wider than their RFCs for e-mail (the lengths, and the
    letters of internationalised domains, are not checked), narrower for host names (see _hostname()) unless the format
    is not wanted, for what is taken away must not be too little. None for annotations (int32, password, binary...),
    for `regex`, whose language is not regular, and for unknown names.
    """
    return (_STRICTER.get(name) if wanted else None) or _FORMATS.get(name)


# ---------------------------------------------------------------- numbers


@dataclass(frozen=True)
class _Range:
    """Numbers between two bounds; None is no bound, `open` leaves the bound itself out."""

    low: Decimal | None
    low_open: bool
    high: Decimal | None
    high_open: bool

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None:
            if self.low > self.high or (self.low == self.high and (self.low_open or self.high_open)):
                raise EmptyLanguage(f"no number is between the bounds {self.low} and {self.high}")

    @property
    def has_zero(self) -> bool:
        above = self.low is None or self.low < 0 or (self.low == 0 and not self.low_open)
        below = self.high is None or self.high > 0 or (self.high == 0 and not self.high_open)
        return above and below

    def positive(self) -> _Range | None:
        """The part above zero, or None."""
        if self.high is not None and self.high <= 0:
            return None
        if self.low is not None and self.low > 0:
            return self
        return _Range(Decimal(0), True, self.high, self.high_open)

    def negated(self) -> _Range:
        low = None if self.high is None else self.high.copy_negate()
        high = None if self.low is None else self.low.copy_negate()
        return _Range(low, self.high_open, high, self.low_open)


# Longer bounds are nobody's; a double has at most 1,074 decimals, 309 digits before the point.
_LONGEST_BOUND = 1_100


def _exact(bound: Bound) -> Decimal | None:
    """The bound as it is written in JSON, None for an infinite one."""
    value = Decimal(repr(bound)) if isinstance(bound, float) else Decimal(bound)
    if value.is_nan():
        raise ValueError("a bound is not a number")
    if value.is_infinite():
        return None
    if len(value.as_tuple().digits) > _LONGEST_BOUND or abs(value.adjusted()) > _LONGEST_BOUND:
        raise BudgetExceeded(f"a bound has more than {_LONGEST_BOUND} digits")
    return value


def _range(
    minimum: Bound | None, maximum: Bound | None, exclusive_minimum: Bound | None, exclusive_maximum: Bound | None
) -> _Range:
    infinite = Decimal("Infinity")
    lows = [(b, is_open) for b, is_open in ((minimum, False), (exclusive_minimum, True)) if b is not None]
    highs = [(b, not is_open) for b, is_open in ((maximum, False), (exclusive_maximum, True)) if b is not None]
    if any(Decimal(bound) == infinite for bound, _ in lows) or any(Decimal(bound) == -infinite for bound, _ in highs):
        raise EmptyLanguage("no number is beyond infinity")
    finite_lows = [(value, is_open) for bound, is_open in lows if (value := _exact(bound)) is not None]
    finite_highs = [(value, closed) for bound, closed in highs if (value := _exact(bound)) is not None]
    # of two bounds of the same value the open one is the tighter: it sorts last among lows, first among highs
    low = max(finite_lows, default=None)
    high = min(finite_highs, default=None)
    return _Range(low[0] if low else None, bool(low and low[1]), high[0] if high else None, bool(high and not high[1]))


_ZERO = r"-?0(?:\.0+)?"


@lru_cache(maxsize=1024)
def integer(
    minimum: Bound | None = None,
    maximum: Bound | None = None,
    exclusive_minimum: Bound | None = None,
    exclusive_maximum: Bound | None = None,
) -> str:
    """The regex of the JSON numbers in the range that are integers; bounds may be fractions.

    A fraction of zeros (`5.0`) is an integer to JSON Schema, and so is what json.dumps writes for large floats
    (`1e+22`); other exponents are left out.

    Raises:
        EmptyLanguage: no integer is in the range.
        BudgetExceeded: a bound with more than 1,100 digits.
    """
    bounds = _range(minimum, maximum, exclusive_minimum, exclusive_maximum)
    options = [_ZERO] if bounds.has_zero else []
    for sign, side in (("", bounds.positive()), ("-", bounds.negated().positive())):
        if side is None or side.low is None:
            continue
        low = math.ceil(Fraction(side.low))
        low += side.low_open and low == side.low
        high = None
        if side.high is not None:
            high = math.floor(Fraction(side.high))
            high -= side.high_open and high == side.high
        options += [f"{sign}{natural}(?:\\.0+)?" for natural in _naturals(low, high)]
        # a double has 17 digits at most, so from 1e16 on it is an integer
        options += [rf"{sign}[1-9](?:\.[0-9]{{1,16}})?{exponent}" for exponent in _large_exponents(side, most=308)]
    if not options:
        raise EmptyLanguage(f"no integer is between the bounds {bounds.low} and {bounds.high}")
    return _group(options)


@lru_cache(maxsize=1024)
def number(
    minimum: Bound | None = None,
    maximum: Bound | None = None,
    exclusive_minimum: Bound | None = None,
    exclusive_maximum: Bound | None = None,
) -> str:
    """The regex of the JSON numbers in the range. Float bounds mean the decimal that repr() writes; -0 is 0.

    Without bounds, or bounded by zero alone, every spelling is legal. Otherwise decimal notation is, and of the
    exponents that json.dumps uses (from 1e16 on, and below 1e-4) those whose decade lies in the range.

    Raises:
        EmptyLanguage: no number is in the range.
        BudgetExceeded: a bound with more than 1,100 digits.
    """
    bounds = _range(minimum, maximum, exclusive_minimum, exclusive_maximum)
    options = []
    if bounds.has_zero:
        one_sided = bounds.low in (None, 0) and bounds.high in (None, 0) and (bounds.low is None or bounds.high is None)
        options.append(_ZERO + (_EXPONENT if one_sided else ""))
    for sign, side in (("", bounds.positive()), ("-", bounds.negated().positive())):
        if side is not None and side.low is not None:
            options += [sign + text for text in _decimals(side.low, side.low_open, side.high, side.high_open)]
            mantissa = sign + "[1-9]" + _ANY_FRACTION
            options += [mantissa + exponent for exponent in [*_large_exponents(side), *_small_exponents(side)]]
    return _group(options)


_EXPONENT = "(?:[eE][+-]?[0-9]+)?"
_ANY_FRACTION = r"(?:\.[0-9]+)?"


def _decimals(low: Decimal, low_open: bool, high: Decimal | None, high_open: bool) -> list[str]:
    """Alternatives for the decimals in a range above zero, or from zero, itself left out."""
    if low == 0 and high is None:
        return [rf"(?:0\.0*[1-9][0-9]*|[1-9][0-9]*{_ANY_FRACTION}){_EXPONENT}"]
    options = []
    first, first_digits = _split(low)
    if high is None:
        options += _with_fraction(first, _at_least(first_digits, low_open))
        return options + [natural + _ANY_FRACTION for natural in _naturals(first + 1, None)]
    last, last_digits = _split(high)
    if first == last:
        options += _with_fraction(first, _between(first_digits, low_open, last_digits, high_open))
    else:
        options += _with_fraction(first, _at_least(first_digits, low_open))
        options += [natural + _ANY_FRACTION for natural in _naturals(first + 1, last - 1)]
        options += _with_fraction(last, _at_most(last_digits, high_open))
    return options


def _first_decade(side: _Range) -> int | None:
    """The least e such that 10**e and all above it is in the range, as far as its upper bound lets; None for any e."""
    if not side.low:
        return None
    power_of_ten = side.low.scaleb(-side.low.adjusted()) == 1
    return side.low.adjusted() + (not power_of_ten or side.low_open)


def _large_exponents(side: _Range, most: int | None = None) -> list[str]:
    """Exponent parts from e16 to e`most` such that each number with one digit before its point is in `side`."""
    first = _first_decade(side)
    lasts = [last for last in (most, None if side.high is None else side.high.adjusted() - 1) if last is not None]
    exponents = _naturals(16 if first is None else max(first, 16), min(lasts, default=None))
    return [rf"[eE]\+?0*{_group(exponents)}"] if exponents else []


def _small_exponents(side: _Range) -> list[str]:
    """Exponent parts from e-5 downwards such that each number with one digit before its point is in `side`."""
    first = _first_decade(side)
    largest = -5 if side.high is None else min(-5, side.high.adjusted() - 1)
    exponents = _naturals(-largest, None if first is None else -first)
    return [f"[eE]-0*{_group(exponents)}"] if exponents else []


def _split(value: Decimal) -> tuple[int, str]:
    """Whole part and significant decimals of a value that is not negative."""
    whole, _, decimals = format(value, "f").partition(".")
    return int(whole), decimals.rstrip("0")


# In the following, a language over decimals is a list of alternatives, with "" among them where no decimals at all
# are right; each decimal text stands for 0.text.
def _with_fraction(whole: int, decimals: list[str]) -> list[str]:
    some = [text for text in decimals if text]
    options = [str(whole)] if "" in decimals else []
    return options + ([rf"{whole}\.{_group(some)}"] if some else [])


def _at_least(digits: str, is_open: bool) -> list[str]:
    if not digits:
        return ["0*[1-9][0-9]*"] if is_open else ["", "[0-9]+"]
    levels = [(_span(int(digit) + 1, 9, "[0-9]*"), digit) for digit in digits]
    return _ladder(levels, _at_least("", is_open))


def _at_most(digits: str, is_open: bool) -> list[str]:
    if not digits:
        return [] if is_open else ["", "0+"]
    levels = [(["", *_span(0, int(digit) - 1, "[0-9]*")], digit) for digit in digits]
    return _ladder(levels, _at_most("", is_open))


def _between(low: str, low_open: bool, high: str, high_open: bool) -> list[str]:
    """Decimals from `low` to `high`, both without trailing zeros, which are not an empty range."""
    width = max(len(low), len(high))
    lows, highs = low.ljust(width, "0"), high.ljust(width, "0")
    common = next((i for i in range(width) if lows[i] != highs[i]), width)

    def stop(i: int) -> list[str]:  # the text of i digits is `low` itself
        return [""] if i >= len(low) and not low_open else []

    levels = [(stop(i), digit) for i, digit in enumerate(lows[:common])]
    if common == width:
        return _ladder(levels, ["", "0+"])
    a, b = int(lows[common]), int(highs[common])
    split = _span(a + 1, b - 1, "[0-9]*")
    for digit, tail in ((a, _at_least(low[common + 1 :], low_open)), (b, _at_most(high[common + 1 :], high_open))):
        if tail:
            split.append(f"{digit}{_group(tail)}")
    return _ladder(levels, stop(common) + split)


def _span(first: int, last: int, rest: str) -> list[str]:
    """A digit from `first` to `last`, then `rest`; no alternative at all where there is no such digit."""
    if first > last:
        return []
    return [(str(first) if first == last else f"[{first}-{last}]") + rest]


def _ladder(levels: list[tuple[list[str], str]], end: list[str]) -> list[str]:
    """The language a0 | d0 (a1 | d1 (... end)) of levels (a0, d0), (a1, d1)...

    Sixteen levels a group: flat it would be quadratic in a bound's digits, and nested Rust refuses 250 of them.
    """
    tail = end
    for start in range((len(levels) - 1) // 16 * 16, -1, -16) if levels else ():
        options: list[str] = []
        prefix = ""
        for alternatives, digit in levels[start : start + 16]:
            options += [prefix + text for text in alternatives]
            prefix += digit
        if tail:
            options.append(prefix + _group(tail))
        tail = options
    return tail


def _naturals(low: int, high: int | None) -> list[str]:
    """Alternatives for the numbers from `low` to `high` (endless where None) in digits without leading zeros."""
    if high is not None and low > high:
        return []
    if low <= 0:
        return ["0", *_naturals(1, high)]
    first = str(low)
    if high is None:
        return [*_same_width(first, "9" * len(first)), f"[1-9][0-9]{{{len(first)},}}"]
    last = str(high)
    if len(first) == len(last):
        return _same_width(first, last)
    options = _same_width(first, "9" * len(first))
    if len(last) - len(first) > 1:
        options.append(f"[1-9][0-9]{{{len(first)},{len(last) - 2}}}")
    return options + _same_width("1" + "0" * (len(last) - 1), last)


def _same_width(low: str, high: str) -> list[str]:
    """Alternatives for the numbers from `low` to `high`, written in equally many digits."""
    width = len(low)
    common = next((i for i in range(width) if low[i] != high[i]), width)
    if common == width:
        return [low]

    def rest(i: int) -> str:  # any digits after the i-th
        return f"[0-9]{{{width - i - 1}}}" if width - i - 1 else ""

    # From here on every digit is free below `low`'s zeros at the end, and below `high`'s nines. To stop there keeps
    # the regex of a bound such as 1.7976931348623157e308 short.
    low_end, high_end = len(low.rstrip("0")), len(high.rstrip("9"))
    first, last = int(low[common]), int(high[common])
    options = []
    if low_end > common + 1:
        levels = [(_span(int(low[i]) + 1, 9, rest(i)), low[i]) for i in range(common + 1, low_end)]
        options.append(low[common] + _group(_ladder(levels, [rest(low_end - 1)])))
        first += 1
    if high_end > common + 1:
        levels = [(_span(0, int(high[i]) - 1, rest(i)), high[i]) for i in range(common + 1, high_end)]
        options.append(high[common] + _group(_ladder(levels, [rest(high_end - 1)])))
        last -= 1
    return [low[:common] + option for option in options + _span(first, last, rest(common))]


@lru_cache(maxsize=256)
def multiple_of(
    divisor: Bound,
    minimum: Bound | None = None,
    maximum: Bound | None = None,
    exclusive_minimum: Bound | None = None,
    exclusive_maximum: Bound | None = None,
    *,
    integers: bool = False,
    budget: int = STATE_BUDGET,
) -> ByteFSM:
    """The automaton of the JSON numbers in the range that are multiples of `divisor`, in decimal notation.

    Args:
        divisor: above zero; a float means the decimal that repr() writes.
        minimum, maximum, exclusive_minimum, exclusive_maximum: the range, as for number().
        integers: leave out multiples that are not integers.
        budget: most states.

    Raises:
        ValueError: `divisor` is not a number above zero.
        EmptyLanguage: no multiple is in the range.
        BudgetExceeded: the automaton, with about a state for each remainder and decimal, is too large.
    """
    exact = _exact(divisor)
    if exact is None or exact <= 0:
        raise ValueError(f"multipleOf has to be above zero, not {divisor}")
    base = _multiples(exact, budget)
    bounds = (minimum, maximum, exclusive_minimum, exclusive_maximum)
    if not integers and all(bound is None for bound in bounds):
        return base
    within = byte_fsm(integer(*bounds) if integers else number(*bounds), budget=budget)
    return intersect(base, within, budget=budget)


def _multiples(divisor: Decimal, budget: int) -> ByteFSM:
    """An automaton whose state is the remainder of the digits so far: x is a multiple of p / 10**k if p | x * 10**k."""
    ratio = Fraction(divisor)
    places = 0
    while (ratio * 10**places).denominator != 1:
        places += 1
    modulus = int(ratio * 10**places)
    # layers of one state a remainder: whole part, after the point, after each decimal; decimals past `places` are zeros
    layers = 2 + max(places, 1)
    if layers * modulus > budget:
        raise BudgetExceeded(f"multiples of {divisor} need more than {budget} states; use a divisor with fewer digits")
    start, minus, zero, whole = 0, 1, 2, 3
    point, first_decimal = whole + modulus, whole + 2 * modulus
    transitions = np.full((whole + layers * modulus, 256), -1, dtype=np.int32)
    accepting = np.zeros(len(transitions), dtype=np.bool_)
    remainders = np.arange(modulus)
    transitions[start, ord("-")] = minus
    for digit in range(10):
        byte = ord("0") + digit
        after = (remainders * 10 + digit) % modulus
        for state in (start, minus):
            transitions[state, byte] = zero if digit == 0 else whole + digit % modulus
        transitions[whole:point, byte] = whole + after
        for decimal in range(places):
            layer = point + decimal * modulus
            transitions[layer : layer + modulus, byte] = layer + modulus + after
    transitions[zero, ord(".")] = point
    transitions[whole:point, ord(".")] = point + remainders
    last = point + max(places, 1) * modulus
    transitions[last:, ord("0")] = last + remainders
    if places == 0:
        transitions[point:first_decimal, ord("0")] = last + remainders
    accepting[zero] = True
    accepting[whole:point] = remainders * pow(10, places, modulus) % modulus == 0
    for decimal in range(1, max(places, 1) + 1):
        layer = point + decimal * modulus
        accepting[layer : layer + modulus] = remainders * pow(10, max(places - decimal, 0), modulus) % modulus == 0
    return reduced(transitions, accepting, budget=budget)
