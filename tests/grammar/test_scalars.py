"""Scalars as written: a text is legal exactly if it parses, and its value satisfies the pattern or the bounds."""

from __future__ import annotations

import ast
import json
import math
import random
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from toolprm_decode.errors import BudgetExceeded
from toolprm_decode.grammar.fsm import ByteFSM, EmptyLanguage, byte_fsm
from toolprm_decode.grammar.scalars import (
    PY_STRING,
    STRING,
    STRING_CHAR,
    Style,
    UnsupportedPattern,
    integer,
    multiple_of,
    number,
    pattern_fsm,
    string_char,
    string_format,
    string_pattern,
)

from .test_fsm import words

# ---------------------------------------------------------------- oracles


def json_value(text: bytes) -> str | None:
    """The string that `text` writes in JSON, None where it writes none or a lone surrogate."""
    if not (text.startswith(b'"') and text.endswith(b'"') and len(text) > 1):
        return None
    try:
        value = json.loads(text.decode())
        value.encode()
    except ValueError:
        return None
    assert isinstance(value, str)
    return value


_PY_ESCAPES = re.compile(r"\\(?:[\\'\"nrtbf]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|[^\\]", re.DOTALL)


def python_value(text: bytes) -> str | None:
    """The string that `text` writes in Python with the escapes of repr() and json.dumps() alone, None for others."""
    try:
        source = text.decode()
        body = source[1:-1]
        if source[:1] not in "\"'" or source[:1] != source[-1:] or re.search("[\0-\x1f]", source):
            return None
        if "".join(_PY_ESCAPES.findall(body)) != body or source[:1] in _PY_ESCAPES.findall(body):
            return None
        value = ast.literal_eval(source)
        value.encode()
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, str) else None


VALUE_OF: dict[Style, Callable[[bytes], str | None]] = {"json": json_value, "python": python_value}
_SHORT = {"\\": "\\", '"': '"', "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}


def spelled(value: str, rng: random.Random, style: Style) -> str:
    """`value` as a string literal, each character in any spelling that `style` has for it."""
    quote = rng.choice("\"'") if style == "python" else '"'
    short = _SHORT | ({"/": "/"} if style == "json" else {"'": "'"})

    def hexed(number: int, width: int) -> str:
        return "".join(rng.choice((digit, digit.upper())) for digit in f"{number:0{width}x}")

    out = []
    for char in value:
        code = ord(char)
        choices = []
        if code >= 0x20 and char not in (quote, "\\"):
            choices += [char] * 4
        if char in short:
            choices.append("\\" + short[char])
        if code <= 0xFFFF:
            choices.append("\\u" + hexed(code, 4))
        elif style == "json":
            high, low = divmod(code - 0x10000, 0x400)
            choices.append("\\u" + hexed(0xD800 + high, 4) + "\\u" + hexed(0xDC00 + low, 4))
        if style == "python":
            choices.append("\\U" + hexed(code, 8))
            if code <= 0xFF:
                choices.append("\\x" + hexed(code, 2))
        out.append(rng.choice(choices))
    return quote + "".join(out) + quote


_BYTES = [
    *b"\"'\\/abfnrtuxU0189dDcCeE{}[] \n\t\x00\x1f\x7f",
    0x80,
    0xBF,
    0xC3,
    0xA9,
    0xED,
    0xA0,
    0xF0,
    0x9F,
    0xF4,
    0xFF,
]


def mutated(text: bytes, rng: random.Random) -> bytes:
    data = bytearray(text)
    for _ in range(rng.randint(1, 2)):
        where = rng.randrange(len(data) + 1)
        kind = rng.randrange(3)
        if kind == 0 or where == len(data):
            data.insert(where, rng.choice(_BYTES))
        elif kind == 1:
            del data[where]
        else:
            data[where] = rng.choice(_BYTES)
    return bytes(data)


characters = st.one_of(
    st.sampled_from("ab\"\\/é😀\n\t\x01 1_'\x7f\x80\ud7ff\ue000\uffff\U0010ffff"),
    st.characters(exclude_categories=["Cs"]),
)
values = st.text(characters, max_size=8)
randoms = st.randoms(use_true_random=False)
styles: st.SearchStrategy[Style] = st.sampled_from(["json", "python"])

# ---------------------------------------------------------------- strings


STRINGS: dict[Style, ByteFSM] = {"json": byte_fsm(STRING), "python": byte_fsm(PY_STRING)}


class TestStrings:
    @settings(max_examples=400)
    @given(values, styles, randoms)
    def test_every_spelling_and_nothing_else(self, value: str, style: Style, rng: random.Random) -> None:
        fsm, value_of = STRINGS[style], VALUE_OF[style]
        for _ in range(3):
            text = spelled(value, rng, style).encode()
            assert value_of(text) == value
            assert fsm.matches(text)
            for _ in range(5):
                broken = mutated(text, rng)
                assert fsm.matches(broken) == (value_of(broken) is not None), broken

    @given(values)
    def test_what_encoders_write(self, value: str) -> None:
        for ascii_only in (True, False):
            assert STRINGS["json"].matches(json.dumps(value, ensure_ascii=ascii_only).encode())
        assert STRINGS["python"].matches(json.dumps(value, ensure_ascii=False).encode())
        assert STRINGS["python"].matches(repr(value).encode())

    @pytest.mark.parametrize(
        "text",
        [r'"\ud83d"', r'"\ude00"', r'"\ud83dx"', r'"\ud83d\u0041"', r'"\ude00\ud83d"', r'"\x41"', r'"\u004"', r'"\'"']
        + ['"\n"', '"\x1f"', '"', '""""', "'a'", r'"\"', '"\\u{41}"'],
    )
    def test_illegal_json(self, text: str) -> None:
        assert not STRINGS["json"].matches(text.encode())

    @pytest.mark.parametrize(
        "text", [r"'\ud83d\ude00'", r"'\/'", r"'\0'", r"'\N{DIGIT ONE}'", r"'\U00110000'", "'a\"", "'''"]
    )
    def test_illegal_python(self, text: str) -> None:
        assert not STRINGS["python"].matches(text.encode())

    @given(characters, randoms)
    def test_a_char_is_one_character(self, char: str, rng: random.Random) -> None:
        one = byte_fsm(STRING_CHAR)
        text = spelled(char, rng, "json")[1:-1].encode()
        assert one.matches(text)
        assert not one.matches(text + text)
        assert not one.matches(b"")
        for quote in "\"'":
            assert byte_fsm(string_char(quote, "python")).matches(b"'" if quote == '"' else b'"')
            assert not byte_fsm(string_char(quote, "python")).matches(quote.encode())


# ---------------------------------------------------------------- patterns

# Python's reading differs from ECMA-262's in these alone, which is why values with them have tests of their own.
_DISPUTED = re.compile("[\r\u2028\u2029\x0b\x0c\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u202f\u205f\u3000\ufeff]")


def found(pattern: str, value: str, *, anchored: bool = False) -> bool:
    """Whether `pattern` is found in `value`, with `$` at the very end only."""
    strict = re.sub(r"(?<!\\)\$", r"\\Z", pattern)
    return (re.fullmatch if anchored else re.search)(strict, value, re.ASCII) is not None


PATTERNS = [
    "", "a", "ab", "^a", "a$", "^a$", "^$", "$^", "^^a$$", "a|b", "^a|b$", "^(a|b)$", "^(?:a|b)*$", "^[ab]{2,3}$",
    r"^\d+$", r"^\w+$", r"^\W$", r"^\D*$", r"\S\s\S", "^[^a]*$", '^[^"\\\\/]+$', r"^\\$", r'"', r"\/", "^/", "é",
    "[à-ÿ]", "^.$", "^.{2}$", ".a.", "^.*b$", "😀+", "^[^😀]$", "[\x00-\x1f]", r"[\n\t]", r"^\x01$", "^a{0}b?$",
    "(^a)?b", "(a$|b)+", "(^|a)b", "(^|/)a(/|$)", "a*?b", "(?:a(?:b|$))", "^(?:(?:a|b)/)*$", "(?:^a){1,3}",
    "(?:^|a){2}b", "(?:a|$){2}", r"[\d\-_]", "^(?P<x>a)(?:b)$", "(?s)^.$", "(?i)^aB[_c]$", r"\Aa\Z",
    "[\\u00e9-\\U0001f600]", "^[1-9]?1$", "a(?:|b$)", "(?:(?:^a|b)+$|/)", "^(?:a|^b)*$",
]  # fmt: skip
IMPOSSIBLE = ["a^", "$a", "b$a|a^b", "(?:a^)+", r"[^\s\S]", "a(?:^b|^)", "(?:$a){2}"]


class TestPatterns:
    @pytest.mark.parametrize("pattern", PATTERNS)
    @pytest.mark.parametrize("style", ["json", "python"])
    def test_accepts_exactly_the_spellings_of_what_matches(self, pattern: str, style: Style) -> None:
        rng = random.Random(pattern)
        alphabet = "ab\"\\/é😀\n\t\x01 1_'É"
        # the least text that each form has, then whatever comes
        candidates = [*words("ab/1", 3), *alphabet, "aBé", "ABÉ", "a é a"]
        candidates += ["".join(rng.choices(alphabet, k=rng.randint(1, 6))) for _ in range(100)]
        value_of = VALUE_OF[style]
        for anchored in (False, True):
            fsm = byte_fsm(string_pattern(pattern, style=style, anchored=anchored))
            for value in candidates:
                text = spelled(value, rng, style).encode()
                assert fsm.matches(text) == found(pattern, value, anchored=anchored), (pattern, value)
                broken = mutated(text, rng)
                meant = value_of(broken)
                if meant is None or not _DISPUTED.search(meant):
                    expected = meant is not None and found(pattern, meant, anchored=anchored)
                    assert fsm.matches(broken) == expected, (pattern, broken)

    @settings(max_examples=250)
    @given(
        st.recursive(
            st.sampled_from(["a", "b", "^", "$", "[^a]", "."]),
            lambda inner: st.one_of(
                st.lists(inner, min_size=2, max_size=3).map("".join),
                st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
                st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,3}"])).map(
                    lambda pair: f"(?:{pair[0]}){pair[1]}"
                ),
            ),
            max_leaves=8,
        ),
        st.booleans(),
    )
    def test_anchors_anywhere(self, pattern: str, anchored: bool) -> None:
        expected = {word for word in words("abc", 4) if found(pattern, word, anchored=anchored)}
        try:
            fsm = byte_fsm(string_pattern(pattern, anchored=anchored, escapes="needed"))
        except EmptyLanguage:
            assert not expected
            return
        assert {word for word in words("abc", 4) if fsm.matches(json.dumps(word).encode())} == expected

    @pytest.mark.parametrize("pattern", IMPOSSIBLE)
    def test_what_matches_nothing_is_an_empty_language(self, pattern: str) -> None:
        assert not any(found(pattern, word) for word in words("ab", 4))
        with pytest.raises(EmptyLanguage):
            string_pattern(pattern)

    @settings(max_examples=200)
    @given(
        values, st.sampled_from(["", "^[^a]*$", r"^\S+$", "[é-\uffff]", '^["\\\\]', "😀", r"^[\x00-\x7f]*$"]), styles
    )
    def test_escapes_where_needed_still_cover_every_encoder(self, value: str, pattern: str, style: Style) -> None:
        assume(not _DISPUTED.search(value))
        needed = byte_fsm(string_pattern(pattern, style=style, escapes="needed"))
        texts = [json.dumps(value, ensure_ascii=False)]
        texts.append(json.dumps(value) if style == "json" else repr(value))
        for text in texts:
            assert needed.matches(text.encode()) == found(pattern, value)

    def test_escapes_where_needed_leave_literal_text_one_way(self) -> None:
        fsm = byte_fsm(string_pattern('^https://"$', escapes="needed"))
        assert ((fsm.transitions >= 0).sum(axis=1) <= 1).all()
        assert fsm.matches(rb'"https://\""')

    def test_ignoring_case(self) -> None:
        fsm = byte_fsm(string_pattern("(?i)^[^ÀÉ-Í]é(?-i:b)σ$"))
        for value, expected in {
            "xéBσ": False,
            "xÉbΣ": True,
            "aÉbς": True,
            "èébσ": True,
            "àébσ": False,
            "íébσ": False,
        }.items():
            assert fsm.matches(json.dumps(value).encode()) == expected, value

    def test_ecma_262_syntax(self) -> None:
        for pattern, yes, no in [
            (r"^\p{L}+$", ["aé中", "ß"], ["1", "a1", ""]),
            (r"^\P{L}$", ["1", "😀"], ["a", "é"]),
            (r"^[\p{Lu}_-]+$", ["A-_É"], ["a"]),
            (r"^[^\p{Lu}\d]$", ["a", "٣"], ["A", "1"]),
            (r"^\p{General_Category=Decimal_Number}$", ["٣", "3"], ["a"]),
            (r"^\u{1F600}$", ["😀"], ["u{1F600}"]),
            (r"^[\ud83d\ude00-\ud83d\ude02]$", ["😁"], ["\ufffd"]),
            (r"^\cC\cj$", ["\x03\n"], ["C"]),
            (r"^(?<year>\d{4})-(?<m$>\d\d)$", ["2024-05"], ["2024"]),
            (r"^\/[[\]&&~~||]$", ["/[", "/]", "/&", "/~", "/|"], ["/a"]),
            (r"^\d$", ["7"], ["٣"]),
            (r"^\w$", ["_"], ["é"]),
            (r"^\s$", [" ", "\u00a0", "\ufeff", "\u2029", "\u3000", "\v"], ["\x85", "\x1c", "\u200b"]),
            (r"^\S$", ["\x85", "a"], ["\u00a0"]),
            (r"^.$", ["\x85", "😀"], ["\n", "\r", "\u2028", "\u2029"]),
            (r"^a$", ["a"], ["a\n"]),
            (r"^[{}]\}$", ["{}"], ["}"]),
            (r"^\x41\u0042\t\0$", ["AB\t\0"], ["AB"]),
        ]:
            fsm = byte_fsm(string_pattern(pattern))
            for value in yes + no:
                assert fsm.matches(json.dumps(value).encode()) == (value in yes), (pattern, value)
                assert fsm.matches(json.dumps(value, ensure_ascii=False).encode()) == (value in yes), (pattern, value)

    @pytest.mark.parametrize(
        ("pattern", "construct"),
        [
            (r"a(?=b)", r"lookahead \(\?="),
            (r"(?!a)b", r"lookahead \(\?!"),
            (r"(?<=a)b", r"lookbehind \(\?<="),
            (r"(?<!a)b", r"lookbehind \(\?<!"),
            (r"(a)\1", "backreference"),
            (r"(?<n>a)\k<n>", "backreference"),
            (r"\bfoo", "word boundary"),
            (r"\p{Script=Greek}", "Script=Greek"),
            (r"[\p{L}-z]", r"\\p"),
            ("(?m)^a", "multiline"),
            ("(a", "can be read"),
            ("a**", "can be read"),
            (r"\q", "can be read"),
            (r"\u{110000}", "Unicode"),
        ],
    )
    def test_unsupported_constructs_are_named(self, pattern: str, construct: str) -> None:
        for compile_it in (string_pattern, pattern_fsm):
            with pytest.raises(UnsupportedPattern, match=construct):
                compile_it(pattern)

    @pytest.mark.parametrize(
        "pattern", ["(a{1000}){1000}", "a[^b]{40}c", "a{99999999999}", "(" * 3000 + "a" + ")" * 3000]
    )
    def test_runaway_patterns_are_refused(self, pattern: str) -> None:
        with pytest.raises(BudgetExceeded):
            pattern_fsm(pattern)

    @pytest.mark.parametrize(
        "pattern",
        [
            r"^(?=.*\d)(?=.*[ab]).{2,4}$",
            r"^(?!\s*$).+",
            "^(?!a)",
            "^(?!a$)(?!b$)[ab]+$",
            "^(?=a)a|b",
            r"^(?!a^)b$",
            "^a(b|c)",
        ],
    )
    @pytest.mark.parametrize("escapes", ["all", "needed"])
    def test_lookaheads_at_the_start(self, pattern: str, escapes: str) -> None:
        if pattern == "^(?=a)a|b":  # there it belongs to one branch only
            with pytest.raises(UnsupportedPattern):
                pattern_fsm(pattern)
            return
        fsm = pattern_fsm(pattern, escapes=escapes)  # type: ignore[arg-type]
        rng = random.Random(pattern)
        for value in [*words("ab 1", 4), "\n", "é"]:
            assert fsm.matches(json.dumps(value).encode()) == found(pattern, value), value
            if escapes == "all":
                assert fsm.matches(spelled(value, rng, "json").encode()) == found(pattern, value), value

    def test_contradictory_lookahead(self) -> None:
        with pytest.raises(EmptyLanguage):
            pattern_fsm("^(?!a)a")

    def test_ecma_test_suite(self, data_dir: Path) -> None:
        checked = 0
        for path in sorted((data_dir / "json_schema_test_suite" / "tests").glob("*/**/*.json")):
            for group in json.loads(path.read_text()):
                schema = group["schema"]
                if not (isinstance(schema, dict) and set(schema) <= {"$schema", "pattern"} and "pattern" in schema):
                    continue
                if "Script" in schema["pattern"] or "property" in group["description"]:
                    continue
                fsm = byte_fsm(string_pattern(schema["pattern"]))
                for case in group["tests"]:
                    if isinstance(case["data"], str):
                        text = json.dumps(case["data"]).encode()
                        assert fsm.matches(text) == case["valid"], (path.name, schema, case)
                        checked += 1
        assert checked > 40


# ---------------------------------------------------------------- formats


# What a regex of a sensible size leaves out: totals, IDNA's tables, and leap seconds away from Greenwich.
WIDER = {"idn-hostname", "hostname", "uri-template"}
# Where a regex cannot tell, host names are refused: those of internationalised domains, mostly.
NARROWER = {"idn-hostname", "hostname"}


class TestFormats:
    def test_test_suite(self, data_dir: Path) -> None:
        checked = 0
        for path in sorted((data_dir / "json_schema_test_suite" / "tests").glob("*/optional/format/*.json")):
            for group in json.loads(path.read_text()):
                name = group["schema"].get("format") if isinstance(group["schema"], dict) else None
                if name is None or (regex := string_format(name)) is None:
                    continue
                fsm = pattern_fsm(regex, anchored=True)
                for case in group["tests"]:
                    value = case["data"]
                    if not isinstance(value, str):
                        continue
                    accepted = fsm.matches(json.dumps(value).encode())
                    checked += 1
                    if case["valid"]:
                        known = "leap second" in case["description"] or name in NARROWER
                        assert accepted or known, (name, case)
                    else:
                        assert not accepted or name in WIDER, (name, case)
        assert checked > 300

    @given(st.dates(), st.times(), st.sampled_from(["Z", "+00:00", "-09:30"]))
    def test_dates(self, date: object, time: object, offset: str) -> None:
        for name, value in (("date", f"{date}"), ("time", f"{time}{offset}"), ("date-time", f"{date}T{time}{offset}")):
            fsm = pattern_fsm(string_format(name) or "", anchored=True, escapes="needed")
            assert fsm.matches(json.dumps(value).encode())
            assert not fsm.matches(json.dumps(value + "0Z").encode())

    def test_every_day_of_a_leap_year_and_of_a_common_one(self) -> None:
        fsm = pattern_fsm(string_format("date") or "", anchored=True, escapes="needed")
        lengths = {2: 28, 4: 30, 6: 30, 9: 30, 11: 30}
        for year, leap in ((2023, 0), (2024, 1), (1900, 0), (2000, 1)):
            for month in range(14):
                last = lengths.get(month, 31) + (leap if month == 2 else 0) if 1 <= month <= 12 else 0
                for day in range(34):
                    assert fsm.matches(f'"{year}-{month:02}-{day:02}"'.encode()) == (1 <= day <= last)

    @given(st.uuids(), st.ip_addresses(v=4), st.ip_addresses(v=6), st.emails())
    def test_generated(self, uuid: object, ipv4: object, ipv6: object, email: str) -> None:
        given_values = (("uuid", str(uuid)), ("ipv4", str(ipv4)), ("ipv6", str(ipv6)), ("email", email))
        for name, value in (*given_values, ("uri", f"https://{ipv4}:80/{uuid}?x=%20#y")):
            fsm = pattern_fsm(string_format(name) or "", anchored=True, escapes="needed")
            assert fsm.matches(json.dumps(value).encode()), (name, value)
            assert not fsm.matches(json.dumps(value + " ").encode())

    @pytest.mark.parametrize("name", ["int32", "double", "password", "byte", "binary", "regex", "no-such-format"])
    def test_annotations_ask_nothing(self, name: str) -> None:
        assert string_format(name) is None


# ---------------------------------------------------------------- numbers


def bounded(low: Decimal | None, low_open: bool, high: Decimal | None, high_open: bool, value: Decimal) -> bool:
    above = low is None or (value > low if low_open else value >= low)
    return above and (high is None or (value < high if high_open else value <= high))


def keywords(low: object, low_open: bool, high: object, high_open: bool) -> dict[str, object]:
    return {"exclusive_minimum" if low_open else "minimum": low, "exclusive_maximum" if high_open else "maximum": high}


_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_INTEGER_AS_WRITTEN = re.compile(r"-?(0|[1-9][0-9]*)(\.0+)?")

bounds = st.one_of(
    st.none(),
    st.integers(-130, 130),
    st.integers(-(10**20), 10**20),
    st.decimals(-200, 200, places=3),
    st.decimals(0, 1, places=6),
    st.floats(-1e40, 1e40, allow_nan=False),
    st.sampled_from([0, 0.0, -0.0, 1, 0.5, 10, 100, 1e16, 1e-4, 1e22, 1e-7, 9.99, 99999, 10**30, -(10**30)]),
)


def as_decimal(bound: object) -> Decimal | None:
    return None if bound is None else Decimal(repr(bound)) if isinstance(bound, float) else Decimal(bound)  # type: ignore[arg-type]


def near(low: Decimal | None, high: Decimal | None, rng: random.Random) -> list[str]:
    """Texts at, about and between the bounds, in several spellings, and some that are not numbers."""
    texts = ["0", "-0", "0.0", "-0.00", "1", "-1", "12.5", "00", "-", "", ".5", "1.", "01", "+1", "1.0.0", "--1", "0x1"]
    texts += ["1e5", "1E+16", "9.5e-7", "-2.25e20", "1e-5", "1e16", "1e-400", "7e", "1e+"]
    for bound in (low, high):
        if bound is None or abs(bound.adjusted()) > 60:
            continue
        digits = max(0, -int(bound.as_tuple().exponent))
        for step in (0, 1, -1, 2, -7):
            for places in {0, max(digits - 1, 0), digits, digits + 1}:
                with_step = Decimal(int(bound.scaleb(places)) + step).scaleb(-places)
                texts.append(format(with_step, "f"))
        texts += [format(bound, "f") + "0", format(bound, "f") + ".0", format(bound, "f") + "1", format(-bound, "f")]
    scale = max((abs(b) for b in (low, high) if b is not None and abs(b.adjusted()) < 60), default=Decimal(100))
    texts += [format(Decimal(rng.uniform(-1.5, 1.5)) * scale, f".{rng.randint(0, 6)}f") for _ in range(20)]
    return texts


class TestIntegers:
    def test_small_ranges_exhaustively(self) -> None:
        texts = {n: (f"{n}", f"{n}.0", f"{n}.000") for n in range(-135, 136)}
        for low in (None, -130, -101, -99, -20, -11, -1, 0, 1, 7, 10, 19, 99, 100):
            for high in (None, -120, -100, -10, -9, 0, 5, 9, 10, 12, 99, 100, 109, 129):
                if low is not None and high is not None and low > high:
                    with pytest.raises(EmptyLanguage):
                        integer(low, high)
                    continue
                fsm = byte_fsm(integer(low, high))
                for n, written in texts.items():
                    inside = (low is None or n >= low) and (high is None or n <= high)
                    assert all(fsm.matches(text.encode()) == inside for text in written), (low, high, n)

    @settings(max_examples=300)
    @given(bounds, st.booleans(), bounds, st.booleans(), randoms)
    @example(10**30, False, 10**40, True, random.Random(0))
    @example(1.2, False, 1.8, False, random.Random(0))
    def test_ranges(self, low: object, low_open: bool, high: object, high_open: bool, rng: random.Random) -> None:
        a, b = as_decimal(low), as_decimal(high)
        try:
            fsm = byte_fsm(integer(**keywords(low, low_open, high, high_open)))  # type: ignore[arg-type]
        except EmptyLanguage:
            assert a is not None and b is not None
            first = math.ceil(a) + (low_open and a == math.ceil(a))
            assert not bounded(a, low_open, b, high_open, Decimal(first))
            return
        for text in near(a, b, rng):
            inside = bool(_JSON_NUMBER.fullmatch(text)) and bounded(a, low_open, b, high_open, Decimal(text))
            if _INTEGER_AS_WRITTEN.fullmatch(text):
                assert fsm.matches(text.encode()) == inside, text
            elif fsm.matches(text.encode()):  # an exponent
                assert inside and Decimal(text) % 1 == 0, text

    @given(st.floats(min_value=1e16, allow_nan=False, allow_infinity=False), st.sampled_from(["", "-"]))
    def test_large_floats_as_json_writes_them(self, value: float, sign: str) -> None:
        text = (sign + json.dumps(value)).encode()
        assert byte_fsm(integer()).matches(text)
        assert byte_fsm(integer(0)).matches(text) == (sign == "")
        assert byte_fsm(integer(None, 10)).matches(text) == (sign == "-")
        assert not byte_fsm(integer(-(10**9), 10**9)).matches(text)

    def test_nonsense(self) -> None:
        for arguments in (
            {"minimum": 2, "exclusive_maximum": 2},
            {"minimum": 1.1, "maximum": 1.9},
            {"minimum": math.inf},
        ):
            with pytest.raises(EmptyLanguage):
                integer(**arguments)
        with pytest.raises(ValueError, match="not a number"):
            integer(math.nan)
        with pytest.raises(BudgetExceeded):
            integer(10**2000)
        assert integer(-math.inf, math.inf) == integer()


class TestNumbers:
    @settings(max_examples=500)
    @given(bounds, st.booleans(), bounds, st.booleans(), randoms)
    @example(0, False, 1, False, random.Random(0))
    @example(0.5, True, 0.5003, False, random.Random(0))
    @example(0.25, False, 0.25, False, random.Random(0))
    @example(-0.1, True, 0.1, True, random.Random(0))
    @example(0, True, 1e-9, False, random.Random(0))
    def test_ranges(self, low: object, low_open: bool, high: object, high_open: bool, rng: random.Random) -> None:
        a, b = as_decimal(low), as_decimal(high)
        try:
            fsm = byte_fsm(number(**keywords(low, low_open, high, high_open)))  # type: ignore[arg-type]
        except EmptyLanguage:
            assert a is not None and b is not None and (a > b or (a == b and (low_open or high_open)))
            return
        for text in near(a, b, rng):
            inside = bool(_JSON_NUMBER.fullmatch(text)) and bounded(a, low_open, b, high_open, Decimal(text))
            if "e" not in text.lower():
                assert fsm.matches(text.encode()) == inside, text
            elif fsm.matches(text.encode()):
                assert inside, text
            elif (a is None or a == 0) and b is None and not (low_open and a is not None):
                assert not inside, text  # bounded by zero alone or by nothing, every exponent is legal

    @settings(max_examples=200)
    @given(st.floats(allow_nan=False, allow_infinity=False), bounds)
    def test_floats_as_json_writes_them(self, value: float, low: object) -> None:
        assert byte_fsm(number()).matches(json.dumps(value).encode())
        assert byte_fsm(number(-1.7976931348623157e308, 1.7976931348623157e308)).matches(
            json.dumps(value / 20).encode()
        )
        bound = as_decimal(low)
        if bound is None:
            return
        exact = Decimal(json.dumps(value))
        accepted = byte_fsm(number(low)).matches(json.dumps(value).encode())  # type: ignore[arg-type]
        same_decade = exact.is_zero() or bound.is_zero() or exact.adjusted() == bound.adjusted()
        assert accepted == (exact >= bound) or (same_decade and not accepted)

    def test_the_range_of_a_double(self) -> None:
        fsm = byte_fsm(number(-1.7976931348623157e308, 1.7976931348623157e308))
        assert fsm.matches(b"17976931348623157" + b"0" * 292 + b".0")
        assert not fsm.matches(b"17976931348623157" + b"0" * 292 + b".1")
        assert not fsm.matches(b"-17976931348623158" + b"0" * 292)
        assert fsm.matches(b"1e307") and not fsm.matches(b"1e308") and not fsm.matches(b"1e309")

    def test_contradictions(self) -> None:
        for arguments in ({"minimum": 2, "maximum": 1}, {"minimum": 2, "exclusive_maximum": 2}, {"maximum": -math.inf}):
            with pytest.raises(EmptyLanguage):
                number(**arguments)


class TestMultiples:
    @settings(max_examples=200)
    @given(
        st.one_of(
            st.integers(1, 60),
            st.sampled_from([0.01, 0.5, 0.1, 2.5, 0.25, 0.125, 1e-8, 0.003, 1.5, 100, 1e3]),
            st.decimals(0, 20, places=2).filter(bool),
        ),
        st.one_of(st.none(), st.integers(-50, 0), st.just(-2.5)),
        st.one_of(st.none(), st.integers(1, 90), st.just(7.25)),
        st.booleans(),
        randoms,
    )
    def test_multiples(self, divisor: object, low: object, high: object, integers: bool, rng: random.Random) -> None:
        step, a, b = as_decimal(divisor), as_decimal(low), as_decimal(high)
        assert step is not None
        fsm = multiple_of(divisor, low, high, integers=integers)  # type: ignore[arg-type]
        texts = [text for text in near(a, b, rng) if "e" not in text.lower()]
        for _ in range(30):
            product = format(step * rng.randint(-100, 100), "f")
            texts += [
                product,
                product + ("0" if "." in product else ".00"),
                product + ("1" if "." in product else ".01"),
            ]
        for text in texts:
            expected = bool(_JSON_NUMBER.fullmatch(text)) and bounded(a, False, b, False, Decimal(text))
            if expected:
                value = Decimal(text)
                expected = value % step == 0 and not (integers and value % 1 != 0)
            if integers and expected and not _INTEGER_AS_WRITTEN.fullmatch(text):
                continue
            assert fsm.matches(text.encode()) == expected, text

    def test_errors(self) -> None:
        for divisor in (0, -2, math.inf):
            with pytest.raises(ValueError, match="above zero"):
                multiple_of(divisor)
        with pytest.raises(BudgetExceeded):
            multiple_of(0.123456789)
        with pytest.raises(EmptyLanguage):
            multiple_of(7, 8, 13)
        assert multiple_of(1.0, integers=True) == multiple_of(1)
