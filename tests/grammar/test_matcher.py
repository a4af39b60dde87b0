"""A matcher's past does not matter: forks, rollbacks and refused tokens leave what reading the tokens anew gives."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from toolprm_decode.grammar import CallGrammar, Matcher

from .bfcl import answered, misfits
from .cases import COUNTED, FORMATS, PARAMETERS, small_tokenizer, tool
from .test_masks import accepted, offered, walk
from .texts import dumps_of, write

CASES = {**PARAMETERS, **COUNTED}
STOP_ID = small_tokenizer().eos_token_id


def grammar_of(name: str, format: str = "json-list", **options: Any) -> CallGrammar:
    tools = [tool(CASES[name], "get_weather"), tool(CASES["nothing"], "get")]
    return CallGrammar(tools, small_tokenizer(), format, **options)


def replayed(grammar: CallGrammar, tokens: Sequence[int]) -> Matcher:
    matcher = grammar.matcher()
    for token in tokens:
        matcher.accept(token)
    return matcher


def picture(matcher: Matcher, grammar: CallGrammar) -> tuple[Any, ...]:
    """Everything that can be asked of a matcher."""
    core = matcher
    mask = sorted(offered(matcher, grammar.vocabulary_size))
    asked = (matcher.text, matcher.tokens, matcher.steps, matcher.is_complete, matcher.is_stopped, matcher.forced())
    return (*asked, mask, core.closing_bytes, core.forced_bytes())


@pytest.mark.parametrize("name", CASES)
def test_forks_and_rollbacks_agree_with_reading_anew(name: str) -> None:
    rng = random.Random(name)
    for format in FORMATS:
        if format == "pythonic" and "additionalProperties" in CASES[name]:
            continue
        grammar = grammar_of(name, format)
        matchers = [(grammar.matcher(), list[int]())]
        for _ in range(40):
            matcher, tokens = rng.choice(matchers)
            match rng.randrange(6):
                case 0 if len(matchers) < 6:
                    matcher, tokens = matcher.fork(), list(tokens)
                    matchers.append((matcher, tokens))
                case 1:
                    back = rng.randrange(min(len(tokens), 6) + 1)
                    matcher.rollback(back)
                    del tokens[len(tokens) - back :]
                case 2:  # what is illegal changes nothing
                    outside = set(range(-2, grammar.vocabulary_size + 3)) - offered(matcher, grammar.vocabulary_size)
                    for token in rng.sample(sorted(outside), min(20, len(outside))):
                        with pytest.raises(ValueError, match=str(token)):
                            matcher.accept(token)
                case _:
                    legal = offered(matcher, grammar.vocabulary_size) - ({STOP_ID} if rng.random() < 0.8 else set())
                    if legal:
                        tokens.append(rng.choice(sorted(legal)))
                        matcher.accept(tokens[-1])
            anew = replayed(grammar, tokens)
            assert picture(matcher, grammar) == picture(anew, grammar)
            assert matcher.state_key == anew.state_key, "equal states are one"


def test_rollback_beyond_the_start_is_an_error() -> None:
    matcher = grammar_of("strings").matcher()
    matcher.accept(small_tokenizer().convert_tokens_to_ids("["))
    with pytest.raises(IndexError):
        matcher.rollback(2)
    assert matcher.text == "["
    matcher.rollback()
    assert matcher.text == "" and matcher.tokens == []


def test_a_long_text() -> None:
    grammar = CallGrammar.for_schema({"type": "string"}, small_tokenizer())
    matcher = grammar.matcher()
    quote, letter = (small_tokenizer().convert_tokens_to_ids(token) for token in '"a')
    for token in [quote, *[letter] * 50_000, quote, STOP_ID]:
        matcher.accept(token)
    assert matcher.is_stopped and [step.end for step in matcher.steps] == [50_002]
    fork = matcher.fork()
    matcher.rollback(50_002)
    assert matcher.text == '"'
    assert len(fork.tokens) == 50_003


def test_stop_tokens() -> None:
    token = small_tokenizer().convert_tokens_to_ids
    text = [token("["), token("]")]
    stops = [token("z"), STOP_ID]
    grammar = CallGrammar([tool(CASES["nothing"])], small_tokenizer(), "json-list", stop_ids=stops)
    matcher = replayed(grammar, text)
    assert matcher.is_complete and not matcher.is_stopped
    assert offered(matcher, grammar.vocabulary_size) == set(stops)
    assert [step.kind for step in matcher.steps] == ["TOTAL_FINISH"]
    assert matcher.accept(stops[0]) == []
    assert matcher.is_complete and matcher.is_stopped
    assert offered(matcher, grammar.vocabulary_size) == set() and matcher.forced() == []
    with pytest.raises(ValueError, match="not legal"):
        matcher.accept(stops[1])
    matcher.rollback()
    assert not matcher.is_stopped and matcher.tokens == text


def test_rows_of_a_mask() -> None:
    grammar = grammar_of("strings")
    words = (grammar.vocabulary_size + 31) // 32
    with pytest.raises(ValueError, match=str(words)):
        grammar.matcher().fill_mask(np.zeros(words - 1, np.int32))
    with pytest.raises((TypeError, ValueError)):
        grammar.matcher().fill_mask(np.zeros(words, np.int64))
    row = np.full((2, words), -1, np.int32)
    grammar.matcher().fill_mask(row[1])
    assert (row[0] == -1).all() and not (row[1] == -1).any() and row[1].any()


def test_threads_share_a_grammar() -> None:
    grammar = grammar_of("free")
    expected = {}
    for seed in range(8):
        matcher = grammar_of("free").matcher()
        walk(matcher, grammar, random.Random(seed), 30, lambda matcher, legal: None)
        expected[seed] = matcher.tokens
    found: dict[int, list[int]] = {}

    def run(seed: int) -> None:
        matcher = grammar.matcher()
        walk(matcher, grammar, random.Random(seed), 30, lambda matcher, legal: None)
        found[seed] = matcher.tokens

    threads = [threading.Thread(target=run, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


# ---------------------------------------------------------------- forced tokens


@pytest.mark.parametrize("name", CASES)
def test_forced_tokens_are_the_only_way_on(name: str) -> None:
    rng = random.Random(name)

    def check(matcher: Matcher, legal: set[int]) -> None:
        run, forced = matcher.forced_bytes(), matcher.forced()
        # The run itself: one byte is legal at a time, and the text cannot end before.
        ahead = matcher.fork()
        for byte in run:
            assert not ahead.is_complete
            assert [b for b in range(256) if ahead.fork().accept_bytes(bytes([b])) is not None] == [byte]
            ahead.accept_bytes(bytes([byte]))
        # The tokens: they spell its beginning, and the tokenizer would have written them.
        spelt = b"".join(grammar._vocabulary.token(token) for token in forced)
        assert run.startswith(spelt)
        try:
            own = small_tokenizer()(run.decode(), add_special_tokens=False).input_ids
        except UnicodeDecodeError:
            own = forced
        assert own[: len(forced)] == forced
        fork = matcher.fork()
        for token in forced:
            assert accepted(fork, [token])
            fork.accept(token)

    for format in ("json-list", "hermes") if "additionalProperties" in CASES[name] else ("hammer", "pythonic"):
        grammar = grammar_of(name, format, allow_no_call=False)
        for _ in range(4):
            walk(grammar.matcher(), grammar, rng, 30, check)


@pytest.mark.parametrize("tokenizer", ["qwen_tokenizer", "gpt2_tokenizer", "phi3_tokenizer"])
def test_forced_tokens_are_those_of_the_whole_text(
    tokenizer: str, data_dir: Path, request: pytest.FixtureRequest
) -> None:
    """At every place in the tokenizer's own encoding of a gold answer, what is forced is what comes next in it."""
    model: PreTrainedTokenizerFast = request.getfixturevalue(tokenizer)
    forced_tokens = tokens_read = 0
    for number, entry in enumerate(answered(data_dir)[::12]):
        if misfits(entry.calls, entry.tools):
            continue
        format = FORMATS[number % len(FORMATS)]
        grammar = CallGrammar(entry.tools, model, format)
        text = write(entry.calls, format, dumps_of(format)[number % 2])
        # SentencePiece puts a space before a text, so it is encoded behind a line break.
        skip = len(model("\n", add_special_tokens=False).input_ids) if tokenizer == "phi3_tokenizer" else 0
        ids = model(("\n" if skip else "") + text, add_special_tokens=False).input_ids[skip:]
        assert b"".join(map(grammar._vocabulary.token, ids)) == text.encode()
        matcher = grammar.matcher()
        for index, token in enumerate(ids):
            forced = matcher.forced()
            assert forced == ids[index : index + len(forced)], (entry.id, matcher.text)
            forced_tokens += bool(forced)
            tokens_read += 1
            matcher.accept(token)
    assert forced_tokens > tokens_read / 3, "little is forced at all"
