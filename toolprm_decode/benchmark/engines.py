"""Grammar engines under one interface: ours, xgrammar, llguidance and outlines_core, with the same white space."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolprm_decode.benchmark.libraries import LLGUIDANCE_OPTIONS, XGRAMMAR_OPTIONS, library
from toolprm_decode.grammar import CallGrammar
from toolprm_decode.grammar.vocabulary import vocabulary
from toolprm_decode.tools import Tool


@dataclass(slots=True)
class Walker:
    """One text on its way through a compiled grammar."""

    fill: Callable[[], Any]  # writes the mask into the engine's row
    fork: Callable[[], Any] | None  # None: the engine has no forks
    accept: Callable[[int], bool]


class Ours:
    """This package."""

    name = "toolprm_decode"

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        vocabulary(tokenizer)  # once a tokenizer, as the others'
        self.row = np.zeros((len(tokenizer) + 31) // 32, np.int32)

    def compile(self, schema: Mapping[str, Any]) -> Any:
        return CallGrammar.for_schema(dict(schema), self.tokenizer)

    def compile_calls(self, tools: Sequence[Tool]) -> Any:
        return CallGrammar(list(tools), self.tokenizer, "json-list")

    def start(self, compiled: Any) -> Walker:
        matcher, row = compiled.matcher(), self.row
        return Walker(lambda: matcher.fill_mask(row), matcher.fork, lambda t: matcher.try_accept(t) is not None)


class XGrammar:
    """xgrammar, with its cache of rules that other grammars have too."""

    name = "xgrammar"

    def __init__(self, tokenizer: Any):
        self.lib = library("xgrammar")
        info = self.lib.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
        self.compiler = self.lib.GrammarCompiler(info, max_threads=1, cache_enabled=True)
        self.row = self.lib.allocate_token_bitmask(1, len(tokenizer))

    def compile(self, schema: Mapping[str, Any]) -> Any:
        return self.compiler.compile_json_schema(json.dumps(schema), **XGRAMMAR_OPTIONS)

    def compile_calls(self, tools: Sequence[Tool]) -> Any:
        return self.compile(calls_schema(tools))

    def start(self, compiled: Any) -> Walker:
        matcher, row = self.lib.GrammarMatcher(compiled), self.row
        return Walker(lambda: matcher.fill_next_token_bitmask(row), matcher.fork, matcher.accept_token)


class LLGuidance:
    """llguidance."""

    name = "llguidance"

    def __init__(self, tokenizer: Any):
        self.lib = library("llguidance")
        self.numpy = library("llguidance.numpy")
        self.tokenizer = library("llguidance.hf").from_tokenizer(tokenizer, n_vocab=len(tokenizer))
        self.row = self.numpy.allocate_token_bitmask(1, len(tokenizer))

    def compile(self, schema: Mapping[str, Any]) -> Any:
        grammar = self.lib.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=LLGUIDANCE_OPTIONS)
        matcher = self.lib.LLMatcher(self.tokenizer, grammar)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def compile_calls(self, tools: Sequence[Tool]) -> Any:
        return self.compile(calls_schema(tools))

    def start(self, compiled: Any) -> Walker:
        compiled.reset()
        fill, row = self.numpy.fill_next_token_bitmask, self.row
        return Walker(lambda: fill(compiled, row), compiled.deep_copy, compiled.consume_token)


class OutlinesCore:
    """outlines_core: one index over the whole vocabulary a schema."""

    name = "outlines_core"

    def __init__(self, tokenizer: Any):
        self.lib = library("outlines_core")
        self.schema = library("outlines_core.json_schema")
        texts = vocabulary(tokenizer)
        tokens: dict[bytes, list[int]] = {}
        for token in range(len(texts)):
            if text := texts.token(token):
                tokens.setdefault(text, []).append(token)
        self.vocabulary = self.lib.Vocabulary(tokenizer.eos_token_id, tokens)
        self.row = np.zeros((len(tokenizer) + 31) // 32, np.int32)

    def compile(self, schema: Mapping[str, Any]) -> Any:
        regex = self.schema.build_regex_from_schema(json.dumps(schema), r"[ ]?")
        return self.lib.Index(regex, self.vocabulary)

    def compile_calls(self, tools: Sequence[Tool]) -> Any:
        return self.compile(calls_schema(tools))

    def start(self, compiled: Any) -> Walker:
        guide, row = self.lib.Guide(compiled), self.row
        address, words, size = row.ctypes.data, row.size, row.itemsize

        def accept(token: int) -> bool:
            try:
                guide.advance(token, False)
            except ValueError:
                return False
            return True

        return Walker(lambda: guide.write_mask_into(address, words, size), None, accept)


ENGINES: tuple[type[Ours | XGrammar | LLGuidance | OutlinesCore], ...] = (Ours, XGrammar, LLGuidance, OutlinesCore)


def calls_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """The calls of a tool set, as the JSON list format writes them, for engines that know schemas only."""
    options = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                "arguments": {"additionalProperties": False, "type": "object", "properties": {}, **tool.parameters},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return {"type": "array", "items": {"anyOf": options}}
