"""Public tool sets compile, in every format and with every kind of tokenizer; what does not says why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from toolprm_decode.errors import ToolSchemaError
from toolprm_decode.grammar import CallGrammar

from .bfcl import lines, tool_lists
from .cases import FORMATS, small_tokenizer


def check(grammar: CallGrammar) -> None:
    """An answer can be begun, and closed with a legal text."""
    core = grammar.matcher()
    text = core.closing()
    assert grammar.accepts(text)
    kinds = [step.kind for step in grammar.steps(text)]
    assert kinds[-2:] == (["FUNC_FINISH", "TOTAL_FINISH"] if grammar.tools else ["TOTAL_FINISH"])


@pytest.mark.parametrize("format", FORMATS)
def test_bfcl_compiles_without_exception(format: str, data_dir: Path) -> None:
    for tools in tool_lists(data_dir).values():
        check(CallGrammar(tools, small_tokenizer(), format, allow_no_call=not tools))


@pytest.mark.parametrize("tokenizer", ["qwen_tokenizer", "gpt2_tokenizer", "phi3_tokenizer"])
def test_bfcl_with_real_tokenizers(tokenizer: str, data_dir: Path, request: pytest.FixtureRequest) -> None:
    model: PreTrainedTokenizerFast = request.getfixturevalue(tokenizer)
    for number, tools in enumerate(list(tool_lists(data_dir).values())[::20]):
        grammar = CallGrammar(tools, model, FORMATS[number % len(FORMATS)], allow_no_call=not tools)
        check(grammar)
        matcher = grammar.matcher()
        for token in grammar._vocabulary.tokenize(matcher.closing()):
            matcher.accept(token)
        assert matcher.is_complete


def other_sets(data_dir: Path) -> Iterator[list[Any]]:
    for path in sorted((data_dir / "hammer").glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            if tools := row.get("tools"):
                yield json.loads(tools) if isinstance(tools, str) else tools
    rows = lines(data_dir / "seal_tools" / "tool.jsonl")
    for start in range(0, len(rows), 10):
        yield rows[start : start + 10]


def test_other_tool_sets_compile_or_say_why(data_dir: Path) -> None:
    compiled, refused = 0, list[ToolSchemaError]()
    for number, tools in enumerate(other_sets(data_dir)):
        try:
            check(CallGrammar(tools, small_tokenizer(), FORMATS[number % len(FORMATS)], allow_no_call=False))
            compiled += 1
        except ToolSchemaError as error:
            refused.append(error)
    assert compiled > 100
    assert len(refused) <= compiled / 100, list(map(str, refused))
    assert all(error.tool and error.pointer and error.keyword for error in refused), list(map(str, refused))
