"""Grammars of one JSON value behind one interface: this package's and its peers', all with json.dumps' white space."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from toolprm_decode.benchmark.libraries import LLGUIDANCE_OPTIONS, XGRAMMAR_OPTIONS, library
from toolprm_decode.errors import BudgetExceeded, ToolSchemaError
from toolprm_decode.grammar.automata import Impossible
from toolprm_decode.grammar.call_grammar import CallGrammar
from toolprm_decode.machine import package_versions

_STOP = "<|end|>"


class Refused(Exception):
    """The engine does not take the schema, or gives up on a text."""


class Unsatisfiable(Refused):
    """The engine says that no value satisfies the schema."""


@dataclass(frozen=True)
class Compiled:
    """A schema that an engine took.

    accepts: whether a text is a whole legal value; raises Refused where the engine gives up. warnings: what it will
    not enforce, in its own words.
    """

    accepts: Callable[[str], bool]
    warnings: Sequence[str] = ()


class Engine(Protocol):
    """Compiles schemas. compile() raises Refused."""

    name: str
    version: str

    def compile(self, schema: Any) -> Compiled: ...


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and one that stops: which values are legal is the same for every vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({_STOP: 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, []))
    tokenizer.add_special_tokens([_STOP])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_STOP)


def _token_ids(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return ids


class Ours:
    """CallGrammar.for_schema(). strict=False: what cannot be enforced is left out with a warning, not refused."""

    def __init__(self, *, strict: bool = True):
        self.name = "toolprm_decode" if strict else "toolprm_decode, not strict"
        self.version = _version("toolprm_decode")
        self._strict = strict

    def compile(self, schema: Any) -> Compiled:
        try:
            grammar = CallGrammar.for_schema(schema, byte_tokenizer(), strict=self._strict)
        except Impossible as error:
            raise Unsatisfiable(_first_line(error)) from error
        except (ToolSchemaError, BudgetExceeded) as error:
            raise Refused(_first_line(error)) from error

        def accepts(text: str) -> bool:
            try:
                return grammar.accepts(text)
            except BudgetExceeded as error:
                raise Refused(_first_line(error)) from error

        return Compiled(accepts, [str(warning) for warning in grammar.warnings])


class LLGuidance:
    """llguidance. lenient: what it does not know is left out with a warning, not refused."""

    def __init__(self, *, lenient: bool = False):
        self._library = library("llguidance")
        self.name = "llguidance, lenient" if lenient else "llguidance"
        self.version = _version("llguidance")
        self._tokenizer = library("llguidance.hf").from_tokenizer(byte_tokenizer(), n_vocab=len(byte_tokenizer()))
        self._options = {**LLGUIDANCE_OPTIONS, "lenient": True} if lenient else LLGUIDANCE_OPTIONS

    def compile(self, schema: Any) -> Compiled:
        library = self._library
        if isinstance(schema, bool):  # defaults are merged into an object
            schema = {"allOf": [schema]}
        try:
            grammar = library.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=self._options)
            matcher = library.LLMatcher(self._tokenizer, grammar, log_level=0)
        except Exception as error:
            raise Refused(_first_line(error)) from error
        if matcher.is_error():
            reason = _first_line(matcher.get_error())
            raise (Unsatisfiable if "nsatisfiable" in reason else Refused)(reason)

        def accepts(text: str) -> bool:
            matcher.reset()
            ids = _token_ids(text)
            read = matcher.try_consume_tokens(ids)
            return bool(read == len(ids) and matcher.is_accepting())

        return Compiled(accepts, [str(warning) for warning in matcher.get_grammar_warnings()])


class XGrammar:
    """xgrammar, by JSON Schema's own rules for additional properties. It warns of nothing that can be read."""

    def __init__(self) -> None:
        self._library = library("xgrammar")
        self.name, self.version = "xgrammar", _version("xgrammar")
        info = self._library.TokenizerInfo.from_huggingface(byte_tokenizer(), vocab_size=len(byte_tokenizer()))
        self._compiler = self._library.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, schema: Any) -> Compiled:
        try:
            grammar = self._compiler.compile_json_schema(json.dumps(schema), **XGRAMMAR_OPTIONS)
        except Exception as error:
            raise Refused(_first_line(error)) from error

        def accepts(text: str) -> bool:
            matcher = self._library.GrammarMatcher(grammar, terminate_without_stop_token=True)
            return bool(matcher.accept_string(text) and matcher.is_terminated())

        return Compiled(accepts)


def engines() -> dict[str, Callable[[], Engine]]:
    """What can be compared, by name; making one raises RequestError where its library is not installed."""
    return {
        "ours": Ours,
        "ours-not-strict": lambda: Ours(strict=False),
        "llguidance": LLGuidance,
        "llguidance-lenient": lambda: LLGuidance(lenient=True),
        "xgrammar": XGrammar,
    }


def _version(name: str) -> str:
    return package_versions(name)[name] or "unknown"


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
