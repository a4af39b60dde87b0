"""Masks of random schemas equal those found by reading every token of real vocabularies; batches equal single masks."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from toolprm_decode.errors import BudgetExceeded, ToolSchemaError
from toolprm_decode.grammar import CallGrammar, Matcher, fill_masks

from .cases import small_tokenizer
from .test_fuzz_schemas import schemas

DEEPER = os.environ.get("TOOLPRM_FUZZ_EXAMPLES")
EXAMPLES = int(DEEPER or 20)
WALK_TOKENS = 10


def legal_ids(matcher: Matcher, size: int) -> np.ndarray:
    row = np.zeros((size + 31) // 32, np.int32)
    matcher.fill_mask(row)
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))


def walk(grammar: CallGrammar, rng: random.Random) -> None:
    """Some tokens along the mask; at each the fast mask is the plain one."""
    matcher = grammar.matcher()
    for _ in range(WALK_TOKENS):
        legal = legal_ids(matcher, grammar.vocabulary_size)
        np.testing.assert_array_equal(legal, matcher.plain_mask(), err_msg=f"after {matcher.text_bytes!r}")
        if not len(legal):
            return
        # Half of the time a token of the shortest end: values are to end too, and others to begin.
        end = matcher.closing()
        token = grammar._vocabulary.tokenize(end)[0] if end and rng.random() < 0.5 else int(rng.choice(list(legal)))
        if matcher.try_accept(token) is None or matcher.is_stopped:
            return


@pytest.mark.parametrize("name", ["qwen_tokenizer", "gpt2_tokenizer", "phi3_tokenizer"])
def test_masks_of_random_schemas_equal_the_plain_walk(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)

    @given(schemas(), st.randoms())
    @settings(
        max_examples=EXAMPLES,
        derandomize=not DEEPER,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
    )
    def check(schema: Any, rng: random.Random) -> None:
        try:
            grammar = CallGrammar.for_schema(schema, tokenizer, max_instructions=100_000)
            note(f"{schema!r}")
            walk(grammar, rng)
        except (ToolSchemaError, BudgetExceeded):
            return

    check()


# What the random schemas come to seldom, with texts that lead into it.
STATES: dict[str, tuple[Any, list[str]]] = {
    "counted": ({"type": "string", "minLength": 2, "maxLength": 5}, ["", '"', '"a', '"ab', '"abcd', '"abcde', '"a\\']),
    "long": ({"type": "string", "maxLength": 100}, ['"', '"' + "a" * 90, '"' + "a" * 99, '"' + "é" * 99]),
    "beside declared keys": (
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "names": {"type": "array", "items": {"type": "string"}}},
        },
        ["{", '{"', '{"na', '{"name', '{"names', '{"name": "x", ', '{"name": "x", "', '{"name": "x", "nam'],
    ),
    "open objects with different keys": (
        {
            "anyOf": [
                {"type": "object", "properties": {"ab": {"type": "integer"}}, "required": ["ab"]},
                {"type": "object", "properties": {"abc": {"type": "string"}, "x": {}}, "required": ["x"]},
            ]
        },
        ["{", '{"', '{"a', '{"ab', '{"abc', '{"ab": 1, "', '{"abc": "y", "a'],
    ),
    "keys by pattern": (
        {
            "type": "object",
            "patternProperties": {"^n_": {"type": "integer"}, "^s_": {"type": "string"}},
            "additionalProperties": False,
        },
        ["{", '{"', '{"n', '{"s_a', '{"s_a": "b', '{"n_": 12'],
    ),
    "anything": ({}, ["", "[", '{"a": ', '{"a": [1, ', '"\\u00', '"\\ud83d', "-", "1.", "1e", "tr"]),
}


@pytest.mark.parametrize("tokenizer_name", ["qwen_tokenizer", "gpt2_tokenizer", "phi3_tokenizer"])
@pytest.mark.parametrize("name", STATES)
def test_masks_of_chosen_states_equal_the_plain_walk(
    name: str, tokenizer_name: str, request: pytest.FixtureRequest
) -> None:
    schema, texts = STATES[name]
    grammar = CallGrammar.for_schema(schema, request.getfixturevalue(tokenizer_name))
    for text in texts:
        matcher = grammar.matcher()
        assert matcher.accept_bytes(text.encode()) is not None, text
        legal = legal_ids(matcher, grammar.vocabulary_size)
        np.testing.assert_array_equal(legal, matcher.plain_mask(), err_msg=f"after {text!r}")
        assert len(legal)


def random_matchers(seed: int, count: int) -> tuple[list[Matcher], int]:
    rng = random.Random(seed)
    grammar = CallGrammar.for_schema(
        {"type": "object", "properties": {"a": {"type": "string", "maxLength": 7}, "b": {}}}, small_tokenizer()
    )
    matchers = []
    for _ in range(count):
        matcher = grammar.matcher()
        for _ in range(rng.randrange(12)):
            legal = [i for i in legal_ids(matcher, grammar.vocabulary_size) if i not in grammar._vocabulary.stop_ids]
            if not legal:
                break
            matcher.accept(int(rng.choice(legal)))
        matchers.append(matcher)
    return matchers, grammar.vocabulary_size


@pytest.mark.parametrize("threads", [None, 1, 2, 7])
def test_a_batch_of_masks_is_that_of_each(threads: int | None) -> None:
    known, size = random_matchers(3, 200)
    fresh, _ = random_matchers(3, 200)  # another grammar: its masks were asked for on the way alone
    words = (size + 31) // 32
    rows = np.full((201, words + 2), -1, np.int32)
    fill_masks(fresh, rows, threads=threads)
    assert (rows[200] == -1).all(), "rows beyond the matchers stay"
    assert not rows[:200, words:].any()
    for row, matcher in zip(rows, known, strict=False):
        bits = np.unpackbits(row.view(np.uint8), bitorder="little")
        np.testing.assert_array_equal(np.flatnonzero(bits), legal_ids(matcher, size))
    fill_masks([], rows)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((1, 9), np.int32),
        np.zeros((2, 1), np.int32),
        np.zeros((2, 99), np.int64),
        np.zeros(99, np.int32),
        np.zeros((99, 4), np.int32).T,
    ],
    ids=["few rows", "narrow", "int64", "one dimension", "not contiguous"],
)
def test_rows_that_do_not_fit_a_batch_are_refused(rows: Any) -> None:
    matchers, size = random_matchers(0, 2)
    if rows.shape == (1, 9):
        rows = np.zeros((1, (size + 31) // 32), np.int32)
    with pytest.raises(ValueError, match="row"):
        fill_masks(matchers, rows)
