"""Byte automata: the language of a regex exactly, in its one minimal form, and never at any price."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolprm_decode.errors import BudgetExceeded
from toolprm_decode.grammar.fsm import ByteFSM, EmptyLanguage, byte_fsm, difference, from_strings, intersect, union


def words(alphabet: str, longest: int) -> Iterator[str]:
    for length in range(longest + 1):
        yield from map("".join, itertools.product(alphabet, repeat=length))


def language(fsm: ByteFSM, alphabet: str, longest: int) -> set[str]:
    return {word for word in words(alphabet, longest) if fsm.matches(word.encode())}


def is_minimal(fsm: ByteFSM) -> bool:
    """Whether no two states accept the same texts, by marking pairs until nothing changes; and all can accept."""
    table = np.where(fsm.transitions < 0, fsm.states, fsm.transitions)
    table = np.vstack([table, np.full((1, 256), fsm.states)])
    accepting = np.append(fsm.accepting, False)
    apart = accepting[:, None] != accepting[None, :]
    while True:
        further = apart.copy()
        for column in np.unique(table, axis=1).T:
            further |= apart[np.ix_(column, column)]
        if np.array_equal(further, apart):
            break
        apart = further
    return bool((apart | np.eye(len(apart), dtype=bool)).all())  # the sink, too, differs from every state


regexes = st.recursive(
    st.sampled_from(["a", "b", "é", "[ab]", "[^a]", ".", "", "😀"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "{0}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)


class TestByteFsm:
    @pytest.mark.parametrize(
        "regex",
        [
            r"a(bc)?",
            r"[0-9]+(\.[0-9]+)?",
            r"(a|ab)(c|bcd)?",
            r"a*",
            r"",
            r"(a|b)*abb",
            r"(?:a?){3}a{3}",
            r"a{2,4}?b",
            r"[^a]",
            r".b",
            r"(?:)|a",
            r"[a\-\]\\^b]+",
            r"\.\*\(",
            r"\d\w\s\D\W\S",
            r"a{0}b",
            r"(a+a+)+b",
        ],
    )
    def test_accepts_what_the_regex_fully_matches(self, regex: str) -> None:
        fsm = byte_fsm(regex)
        for word in words("ab.1\n", 5):
            assert fsm.matches(word.encode()) == (re.fullmatch(regex, word, re.ASCII) is not None), word

    @settings(max_examples=150)
    @given(regexes)
    def test_random_regexes(self, regex: str) -> None:
        expected = {word for word in words("abé\n😀", 4) if re.fullmatch(regex, word)}
        try:
            fsm = byte_fsm(regex)
        except EmptyLanguage:
            assert not expected
            return
        assert language(fsm, "abé\n😀", 4) == expected
        assert is_minimal(fsm)

    @pytest.mark.parametrize(
        ("regex", "same"),
        [
            ("a|b", "[ab]"),
            ("aa*", "a+"),
            ("(a*b*)*", "(?:b|a)*"),
            ("a{1,3}", "a|aa|aaa"),
            ("(?:abc|xbc)", "[ax]bc"),
            ("a.|ab", "a."),
            ("[a-zé]{0,40}", "(?:[a-z]?|é){40}"),
        ],
    )
    def test_equal_languages_are_equal_automata(self, regex: str, same: str) -> None:
        assert byte_fsm(regex) == byte_fsm(same)
        assert hash(byte_fsm(regex)) == hash(byte_fsm(same))
        assert byte_fsm(regex) != byte_fsm("somethingelse")

    def test_only_well_formed_utf8(self) -> None:
        fsm = byte_fsm("[^x]")
        for code_point in [1, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]:
            assert fsm.matches(chr(code_point).encode())
        for malformed in [
            b"\x80",
            b"\xc0\x80",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xc3",
            b"\xff",
        ]:
            assert not fsm.matches(malformed)

    def test_nul_never_matches(self) -> None:
        assert not byte_fsm("[^a]").matches(b"\0")
        assert not byte_fsm(".*").matches(b"a\0b")
        assert byte_fsm(r"a|\0").matches(b"a")
        with pytest.raises(EmptyLanguage):
            byte_fsm(r"a\0")

    def test_layout(self) -> None:
        fsm = byte_fsm("ab|c")
        assert fsm.transitions.dtype == np.int32 and fsm.transitions.shape == (fsm.states, 256)
        assert fsm.accepting.dtype == np.bool_ and fsm.accepting.shape == (fsm.states,)
        assert fsm.transitions[0, ord("a")] == 1 and fsm.transitions[0, ord("c")] == 2  # breadth-first, by byte
        with pytest.raises(ValueError, match="read-only"):
            fsm.transitions[0, 0] = 1

    def test_empty_language(self) -> None:
        with pytest.raises(EmptyLanguage):
            byte_fsm(r"[^\x00-\U0010ffff]")

    @pytest.mark.parametrize("regex", ["a**", "(a", r"(a)\1", "(?=a)b", "(?<!a)b", "^a", "a$", r"\ba", "(?i)a"])
    def test_what_no_automaton_expresses_is_an_error(self, regex: str) -> None:
        with pytest.raises(ValueError, match="regex"):
            byte_fsm(regex)

    def test_compiles_what_an_unanchored_search_would_blow_up_on(self) -> None:
        fsm = byte_fsm(r'"(?:[a-zé]|\\["bt]|\\u00){0,300}"')
        assert fsm.matches(('"' + "a\\u00\\té" * 75 + '"').encode())
        assert not fsm.matches(('"' + "a" * 301 + '"').encode())

    def test_threads_share(self) -> None:
        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(byte_fsm, ["(?:ab|c){3}d?"] * 16))) == 1


class TestBudget:
    @pytest.mark.parametrize(
        "regex",
        [
            "(a{1000}){1000}",
            "((a?){1000}){1000}",
            "(?:.*)a.{30}",
            "(.*a.{0,200})",
            "(((a{30}){30}){30}){30}",
            "a{4000000000}",
            "(?:[ab]{0,60}a[ab]{0,60}){40}",
            "(" * 5000 + "a" + ")" * 5000,
        ],
    )
    def test_runaway_regexes_are_refused(self, regex: str) -> None:
        with pytest.raises(BudgetExceeded):
            byte_fsm(regex)

    def test_budget_is_on_the_states_of_the_result(self) -> None:
        assert byte_fsm("a{99}", budget=100).states == 100
        with pytest.raises(BudgetExceeded, match="99"):
            byte_fsm("a{99}", budget=99)
        with pytest.raises(BudgetExceeded):
            from_strings([b"a" * 100], budget=100)
        with pytest.raises(BudgetExceeded):
            intersect(byte_fsm("(?:a{7})*"), byte_fsm("(?:a{11})*"), budget=70)

    def test_many_states_within_the_budget(self) -> None:
        fsm = byte_fsm(".{0,1500}x*")
        assert fsm.matches(b"x" * 5000)
        assert fsm.matches("é".encode() * 1500)
        assert not fsm.matches("é".encode() * 1501)


class TestAlgebra:
    @settings(max_examples=80)
    @given(regexes, regexes)
    def test_random_pairs(self, left: str, right: str) -> None:
        try:
            a, b = byte_fsm(left), byte_fsm(right)
        except EmptyLanguage:
            return
        of_a, of_b = language(a, "abé", 4), language(b, "abé", 4)
        for combine, expected in ((union, of_a | of_b), (intersect, of_a & of_b), (difference, of_a - of_b)):
            try:
                result = combine(a, b)
            except EmptyLanguage:
                assert not expected
                continue
            assert language(result, "abé", 4) == expected
            assert is_minimal(result)

    def test_identities(self) -> None:
        a = byte_fsm(r"(?:[a-c]{2}|é)*x")
        assert intersect(a, a) == a == union(a, a)
        assert union(difference(a, byte_fsm("abx|x")), intersect(a, byte_fsm("x|abx|y"))) == a
        with pytest.raises(EmptyLanguage):
            difference(a, a)
        with pytest.raises(EmptyLanguage):
            intersect(byte_fsm("a+"), byte_fsm("b+"))

    @given(st.lists(st.binary(max_size=4), min_size=1, max_size=12))
    def test_from_strings(self, strings: list[bytes]) -> None:
        fsm = from_strings(strings)
        assert is_minimal(fsm)
        tails = {string[:n] + extra for string in strings for n in range(5) for extra in (b"", b"a", b"\0", b"\xff")}
        for text in tails:
            assert fsm.matches(text) == (text in strings)

    @given(st.lists(st.text("ab\x7f", max_size=6), min_size=1, max_size=12))
    def test_strings_have_the_automaton_of_their_regex(self, strings: list[str]) -> None:
        assert from_strings([string.encode() for string in strings]) == byte_fsm("|".join(map(re.escape, strings)))

    def test_from_no_strings(self) -> None:
        with pytest.raises(EmptyLanguage):
            from_strings([])
        assert from_strings([b""]).states == 1
