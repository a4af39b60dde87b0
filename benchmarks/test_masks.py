"""Compile, mask, accept and fork: this grammar beside xgrammar and llguidance, one vocabulary, one set of calls.

    pytest benchmarks/test_masks.py

The numbers of one run compare with each other and with nothing else: machines differ, and so do their loads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolprm_decode import CallGrammar
from toolprm_decode.tools import read_tools

TOOL_SETS = 40
# Beside ours, engines get the arguments' schema alone: they have no grammar of calls.
Walk = Callable[[], None]


class Case:
    """One tool with a call of it: the schema of its arguments, and their text in tokens."""

    def __init__(self, tokenizer: Any, tool: Any, arguments: dict[str, Any]):
        self.schema = {**tool.parameters, "additionalProperties": False}
        self.text = json.dumps(arguments)
        self.ids: list[int] = tokenizer(self.text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def cases(data_dir: Path, qwen_tokenizer: Any) -> list[Case]:
    """Tools and answers of BFCL whose arguments stand in the order of the schema, which xgrammar insists on."""
    folder = data_dir / "bfcl"
    answers = {}
    for line in (folder / "possible_answer" / "BFCL_v4_simple_python.json").read_text().splitlines():
        entry = json.loads(line)
        answers[entry["id"]] = entry["ground_truth"][0]
    found: list[Case] = []
    for line in (folder / "BFCL_v4_simple_python.json").read_text().splitlines():
        entry = json.loads(line)
        tool = read_tools(entry["function"])[0]
        allowed = answers[entry["id"]][tool.name]
        order = tool.parameters["properties"]
        arguments = {k: allowed[k][0] for k in order if k in allowed and allowed[k][0] != ""}
        if any(isinstance(value, dict) for value in arguments.values()):
            continue
        case = Case(qwen_tokenizer, tool, arguments)
        if CallGrammar.for_schema(case.schema, qwen_tokenizer).accepts(case.text):
            found.append(case)
        if len(found) == TOOL_SETS:
            break
    return found


class Ours:
    name = "toolprm_decode"

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.row = np.zeros((len(tokenizer) + 31) // 32, np.int32)

    def compile(self, case: Case) -> Any:
        return CallGrammar.for_schema(case.schema, self.tokenizer)

    def walk(self, compiled: Any, case: Case) -> Walk:
        def run() -> None:
            matcher = compiled.matcher()
            for token in case.ids:
                matcher.fill_mask(self.row)
                assert matcher.accept(token) is not None

        return run

    def fork(self, compiled: Any, case: Case) -> Walk:
        matcher = compiled.matcher()
        for token in case.ids[:-1]:
            matcher.accept(token)
        return matcher.fork


class XGrammar:
    name = "xgrammar"

    def __init__(self, tokenizer: Any):
        self.lib = pytest.importorskip("xgrammar")
        info = self.lib.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
        self.compiler = self.lib.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.row = self.lib.allocate_token_bitmask(1, len(tokenizer))

    def compile(self, case: Case) -> Any:
        return self.compiler.compile_json_schema(
            json.dumps(case.schema), any_whitespace=False, separators=(", ", ": "), strict_mode=True
        )

    def walk(self, compiled: Any, case: Case) -> Walk:
        def run() -> None:
            matcher = self.lib.GrammarMatcher(compiled)
            for token in case.ids:
                matcher.fill_next_token_bitmask(self.row)
                assert matcher.accept_token(token)

        return run

    def fork(self, compiled: Any, case: Case) -> Walk:
        matcher = self.lib.GrammarMatcher(compiled)
        for token in case.ids[:-1]:
            matcher.accept_token(token)
        return matcher.fork


class LLGuidance:
    name = "llguidance"

    def __init__(self, tokenizer: Any):
        self.lib = pytest.importorskip("llguidance")
        hf = pytest.importorskip("llguidance.hf")
        self.numpy = pytest.importorskip("llguidance.numpy")
        self.tokenizer = hf.from_tokenizer(tokenizer, n_vocab=len(tokenizer))
        self.row = self.numpy.allocate_token_bitmask(1, len(tokenizer))

    def compile(self, case: Case) -> Any:
        options = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
        grammar = self.lib.LLMatcher.grammar_from_json_schema(json.dumps(case.schema), defaults=options)
        return self.lib.LLMatcher(self.tokenizer, grammar)

    def walk(self, compiled: Any, case: Case) -> Walk:
        def run() -> None:
            compiled.reset()
            for token in case.ids:
                self.numpy.fill_next_token_bitmask(compiled, self.row)
                assert compiled.consume_token(token)

        return run

    def fork(self, compiled: Any, case: Case) -> Walk:
        compiled.reset()
        for token in case.ids[:-1]:
            compiled.consume_token(token)
        return compiled.deep_copy


@pytest.fixture(scope="module", params=[Ours, XGrammar, LLGuidance], ids=lambda engine: engine.name)
def engine(request: pytest.FixtureRequest, qwen_tokenizer: Any) -> Any:
    return request.param(qwen_tokenizer)


@pytest.mark.benchmark(group=f"compile {TOOL_SETS} schemas, process warm")
def test_compile(benchmark: Any, engine: Any, cases: list[Case]) -> None:
    benchmark(lambda: [engine.compile(case) for case in cases])


@pytest.mark.benchmark(group=f"mask and accept along {TOOL_SETS} answers, masks seen before")
def test_walk(benchmark: Any, engine: Any, cases: list[Case]) -> None:
    walks = [engine.walk(engine.compile(case), case) for case in cases]
    benchmark.extra_info["masks"] = sum(len(case.ids) for case in cases)
    benchmark(lambda: [walk() for walk in walks])


@pytest.mark.benchmark(group="fork")
def test_fork(benchmark: Any, engine: Any, cases: list[Case]) -> None:
    case = cases[0]
    benchmark(engine.fork(engine.compile(case), case))
