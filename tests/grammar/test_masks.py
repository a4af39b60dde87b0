"""Masks and walks: what is offered is exactly what is accepted, and every answer can be brought to its end."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from toolprm_decode.grammar import CallGrammar, Matcher

from .cases import COUNTED, FORMATS, PARAMETERS, small_tokenizer, tool

CASES = {**PARAMETERS, **COUNTED}


def offered(matcher: Matcher, size: int) -> set[int]:
    """The token ids of the mask."""
    row = np.full((size + 31) // 32 + 1, -1, np.int32)
    matcher.fill_mask(row)
    assert row[-1] == 0, "words behind the vocabulary are cleared"
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    assert not bits[size:].any()
    return set(np.flatnonzero(bits).tolist())


def accepted(matcher: Matcher, tokens: Any) -> set[int]:
    """The token ids of `tokens` that a fork accepts."""
    return {token for token in tokens if matcher.fork().try_accept(token) is not None}


def check_closing(core: Matcher) -> None:
    """The shortest end is legal and as long as it was said to be, and no single byte more shortens it."""
    promised, end = core.closing_bytes, core.closing()
    assert len(end) == promised
    closed = core.fork()
    assert closed.accept_bytes(end) is not None, (core.text, end)
    assert closed.is_complete and closed.closing_bytes == 0
    assert core.is_complete == (promised == 0)


def walk(matcher: Matcher, grammar: CallGrammar, rng: random.Random, length: int, check: Any) -> None:
    """A random walk over legal tokens; now and then a token of the shortest end, so that values end too."""
    size, hurry = grammar.vocabulary_size, rng.choice([0.1, 0.4, 0.6])
    for _ in range(length):
        legal = offered(matcher, size)
        assert legal, f"no way on after {matcher.text!r}"
        check(matcher, legal)
        if matcher.is_complete and rng.random() < 0.3:
            break
        end = matcher.closing()
        if end and rng.random() < hurry:
            token = grammar._vocabulary.tokenize(end[: rng.randrange(1, 9)])[0]
            token = token if token in legal else rng.choice(sorted(legal))
        else:
            token = rng.choice(sorted(legal))
        matcher.accept(token)
        if matcher.is_stopped:
            assert offered(matcher, size) == set()
            return
    check_closing(matcher)


def grammars(name: str, tokenizer: PreTrainedTokenizerFast) -> list[CallGrammar]:
    """The grammar of one case in several formats."""
    tools = [tool(CASES[name], "get_weather"), tool({"type": "object", "properties": {}}, "get")]
    found = []
    for format in FORMATS:
        for flexible in (False, True):
            if format == "pythonic" and "additionalProperties" in CASES[name]:
                continue
            if flexible and format not in ("json-list", "pythonic"):
                continue
            found.append(
                CallGrammar(tools, tokenizer, format, flexible_whitespace=flexible, allow_no_call=False, max_calls=2)
            )
    return found


@pytest.mark.parametrize("name", CASES)
def test_masks_equal_trying_every_token(name: str) -> None:
    tokenizer = small_tokenizer()
    rng = random.Random(name)

    def check(matcher: Matcher, legal: set[int]) -> None:
        assert legal == accepted(matcher, range(grammar.vocabulary_size)), matcher.text
        check_closing(matcher)

    for grammar in grammars(name, tokenizer):
        for _ in range(4):
            walk(grammar.matcher(), grammar, rng, 60, check)


@pytest.mark.parametrize("name", CASES)
def test_masks_equal_trying_tokens_of_a_large_vocabulary(name: str, qwen_tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(name)
    format = "pythonic" if name in ("unions", "patterns", "lengths") else "json-list"
    grammar = CallGrammar([tool(CASES[name], "get_weather")], qwen_tokenizer, format, allow_no_call=False)
    size = grammar.vocabulary_size

    def check(matcher: Matcher, legal: set[int]) -> None:
        inside = rng.sample(sorted(legal), min(len(legal), 300))
        assert accepted(matcher, inside) == set(inside), matcher.text
        outside = rng.sample(range(size), 1500)
        assert accepted(matcher, outside) == legal & set(outside), matcher.text
        check_closing(matcher)

    for _ in range(3):
        walk(grammar.matcher(), grammar, rng, 25, check)


@pytest.mark.parametrize("unit", [b"[", b'{"a": ', b'[{"b": [', b'[1, {"c": null, "d": '])
def test_deep_values_can_still_be_closed(unit: bytes) -> None:
    grammar = CallGrammar.for_schema({}, small_tokenizer())
    core = grammar.matcher()
    written = 0
    while written < 2000 and core.accept_bytes(unit[:1]) is not None:
        written += 1
        unit = unit[1:] + unit[:1]
        check_closing(core)
        assert offered(core, grammar.vocabulary_size)
    assert core.text.count("[") + core.text.count("{") > 60


def test_deep_recursion_of_a_schema_can_still_be_closed() -> None:
    rng = random.Random(0)
    node = {
        "anyOf": [
            {"type": "object", "properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}}, "required": ["l", "r"]},
            {"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": 2},
            {"type": "array", "prefixItems": [{"$ref": "#"}], "items": {"$ref": "#"}, "minItems": 2, "maxItems": 3},
            {"const": "leaf"},
        ]
    }
    grammar = CallGrammar.for_schema(node, small_tokenizer())
    for _ in range(5):
        core, deepest = grammar.matcher(), 0
        for _ in range(1500):
            legal = [bytes([b]) for b in range(256) if core.fork().accept_bytes(bytes([b])) is not None]
            check_closing(core)
            assert legal or core.is_complete, core.text
            opening = [b for b in legal if b in b"[{"]
            if not legal:
                break
            core.accept_bytes(rng.choice(opening or legal))
            deepest = max(deepest, sum(core.text.count(b) for b in "[{"))
        assert deepest > 60
