"""Serialised grammars: what they allow and where their steps end is the same in the process that reads them."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from toolprm_decode import _core
from toolprm_decode.formats import get_format
from toolprm_decode.grammar import CallGrammar
from toolprm_decode.grammar.vocabulary import vocabulary
from toolprm_decode.learning.world.pretraining import answer_of
from toolprm_decode.learning.world.tokenizer import build_tokenizer
from toolprm_decode.learning.world.world import LEVELS, World

from .bfcl import answered
from .cases import FORMATS
from .texts import dumps_of, write

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serving"


def read(grammar: CallGrammar | bytes, tokenizer: Any) -> _core.Matcher:
    """A matcher at the start of what the bytes hold."""
    data = grammar if isinstance(grammar, bytes) else grammar.serialize()
    return _core.Matcher(_core.Grammar.deserialize(data), vocabulary(tokenizer))


def check_alike(one: _core.Matcher, other: _core.Matcher, tokens: list[int], words: int) -> None:
    """Both go the same way along the tokens, as far as they are legal."""
    row, same = np.zeros(words, np.int32), np.zeros(words, np.int32)
    for token in tokens:
        one.fill_mask(row)
        other.fill_mask(same)
        assert np.array_equal(row, same), one.text
        if not row[token // 32] >> (token % 32) & 1:
            with pytest.raises(ValueError, match="not legal"):
                other.accept(token)
            return
        assert one.accept(token) == other.accept(token)
        assert one.is_complete == other.is_complete
    assert one.steps == other.steps


def test_gold_calls_read_alike(data_dir: Path, qwen_tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    words = (len(vocabulary(qwen_tokenizer)) + 31) // 32
    for entry in answered(data_dir):
        if rng.random() < 0.75:
            continue
        format = rng.choice(FORMATS)
        grammar = CallGrammar(entry.tools, qwen_tokenizer, format)
        text = write(entry.calls, format, rng.choice(list(dumps_of(format))))
        tokens = qwen_tokenizer(text, add_special_tokens=False).input_ids
        check_alike(grammar.matcher(), read(grammar, qwen_tokenizer), [*tokens, qwen_tokenizer.eos_token_id], words)


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_tools_of_the_built_in_world_read_alike(level: int) -> None:
    tokenizer = build_tokenizer()
    words = (len(vocabulary(tokenizer)) + 31) // 32
    for sample in World(5, level).samples(20):
        grammar = CallGrammar(sample.tools, tokenizer, get_format("json-list", None))
        tokens = tokenizer(answer_of(sample), add_special_tokens=False).input_ids
        check_alike(grammar.matcher(), read(grammar, tokenizer), [*tokens, tokenizer.eos_token_id], words)


def test_a_recursive_schema_reads_alike() -> None:
    tokenizer = build_tokenizer()
    schema = {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "children": {"items": {"$ref": "#/$defs/tree"}}},
                "patternProperties": {"^x-": {"type": "integer"}},
                "additionalProperties": {"type": "boolean"},
            }
        },
    }
    grammar = CallGrammar.for_schema(schema, tokenizer, flexible_whitespace=True)
    text = '{"children": [{"x-a": 3, "b": true}, { } ], "name": "n\\u00e9"}'
    assert grammar.accepts(text)
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    check_alike(grammar.matcher(), read(grammar, tokenizer), tokens, (len(vocabulary(tokenizer)) + 31) // 32)


def test_what_is_no_grammar_is_a_value_error() -> None:
    data = CallGrammar.for_schema({"type": "integer"}, build_tokenizer()).serialize()
    for broken in (b"", data[:-1], data + b"\0", b"{}", data[:-1] + bytes([data[-1] ^ 1])):
        with pytest.raises(ValueError, match="serialised grammar"):
            _core.Grammar.deserialize(broken)


def test_the_grammars_of_the_example_are_those_of_its_tools() -> None:
    """Files of an earlier release are still read, too. Write them anew by tools.py where the tools change."""
    spec = importlib.util.spec_from_file_location("example_tools", EXAMPLE / "tools.py")
    assert spec is not None and spec.loader is not None
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    tokenizer = tools.any_tokenizer()
    words = (len(vocabulary(tokenizer)) + 31) // 32
    rng = random.Random(1)
    for name in tools.TOOLS:
        grammar = tools.compile_tools(name, tokenizer)
        for _ in range(20):
            walk, row, tokens = grammar.matcher(), np.zeros(words, np.int32), []
            while not walk.is_stopped and len(tokens) < 200:
                walk.fill_mask(row)
                legal = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
                tokens.append(int(rng.choice(legal)))
                walk.accept(tokens[-1])
            stored = (EXAMPLE / "tools" / f"{name}.grammar").read_bytes()
            check_alike(grammar.matcher(), read(stored, tokenizer), tokens, words)
