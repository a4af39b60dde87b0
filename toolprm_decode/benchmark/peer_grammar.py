"""The calls of a tool set as a grammar for xgrammar, whose masks the peers use."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from toolprm_decode.benchmark.libraries import library
from toolprm_decode.errors import RequestError
from toolprm_decode.tools import Tool

# Every order of the parameters is written out: one rule for each set of those that were given.
MAX_PARAMETERS = 6
# What a pattern may be made of here: classes of ASCII without escapes, and plain characters, each with a count.
_PART = re.compile(r"(?P<what>\[[^\[\]\\^]+\]|[A-Za-z0-9 :_,-])(?P<count>\{\d+(?:,\d+)?\})?")


class PeerGrammar:
    """Masks of one call of the tools in the JSON list format.

    Args:
        tools: as read. tokenizer: a fast one of transformers.
        vocab_size: rows of the model's head.

    Raises RequestError: xgrammar is not installed, or a parameter cannot be put into its words exactly.
    """

    def __init__(self, tools: Sequence[Tool], tokenizer: Any, vocab_size: int):
        self._library = library("xgrammar")
        self._ebnf = call_ebnf(tools)
        stop = [tokenizer.eos_token_id]
        self._info = self._library.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size, stop_token_ids=stop)
        self.vocab_size = vocab_size

    def compile(self) -> Any:
        """The grammar with its masks prepared, anew at each call."""
        compiler = self._library.GrammarCompiler(self._info, max_threads=1, cache_enabled=False)
        return compiler.compile_grammar(self._ebnf)

    def matcher(self, compiled: Any) -> Any:
        """A matcher at the start of an answer."""
        return self._library.GrammarMatcher(compiled, terminate_without_stop_token=True)

    def legal(self, matcher: Any) -> np.ndarray:
        """The legal token ids, ascending, int64."""
        row = self._library.allocate_token_bitmask(1, self.vocab_size)
        # False is returned, and the row left as it was, where all tokens are legal: every bit is set from the start.
        matcher.fill_next_token_bitmask(row)
        return bits(row.numpy()[0], self.vocab_size)


def bits(row: np.ndarray, size: int) -> np.ndarray:
    """Positions of the set bits of an int32 mask row, ascending, int64, those from `size` on left out."""
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")[:size])


def call_ebnf(tools: Sequence[Tool]) -> str:
    """`[` one call `]`, as CallGrammar writes it: properties in any order, each once, the required ones all there."""
    rules = ['root ::= "[" call "]"', f"call ::= {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
    for index, tool in enumerate(tools):
        rules += _tool_rules(index, tool)
    return "\n".join(rules) + "\n"


def _tool_rules(index: int, tool: Tool) -> Iterator[str]:
    properties: Mapping[str, Any] = tool.parameters.get("properties") or {}
    required = set(tool.parameters.get("required") or ())
    names = list(properties)
    if len(names) > MAX_PARAMETERS:
        raise RequestError(
            f"tool {tool.name!r} has {len(names)} parameters: the loops to compare with write out every order of "
            f"them, and take at most {MAX_PARAMETERS}"
        )
    opening = '{"name": ' + json.dumps(tool.name, ensure_ascii=False) + ', "arguments": {'
    yield f"call_{index} ::= {_quoted(opening)} given_{index}_0 {_quoted('}')}"
    for number, name in enumerate(names):
        key = _quoted(json.dumps(name, ensure_ascii=False) + ": ")
        yield f"member_{index}_{number} ::= {key} ({_value(tool, name, properties[name])})"
    for given in itertools.product((0, 1), repeat=len(names)):
        ways = []
        for number in range(len(names)):
            if not given[number]:
                after = _bits((*given[:number], 1, *given[number + 1 :]))
                comma = _quoted(", ") + " " if any(given) else ""
                ways.append(f"{comma}member_{index}_{number} given_{index}_{after}")
        if required <= {name for name, there in zip(names, given, strict=True) if there}:
            ways.append(_quoted("}"))
        yield f"given_{index}_{_bits(given)} ::= {' | '.join(ways)}"


def _bits(given: Sequence[int]) -> int:
    return sum(there << number for number, there in enumerate(given))


def _value(tool: Tool, name: str, schema: Any) -> str:
    """The values of a parameter. Raises RequestError for schemas beyond enum, boolean and simple patterns."""
    schema = schema if isinstance(schema, Mapping) else {}
    asked = {key for key in schema if key not in ("description", "title", "default", "examples")}
    if asked <= {"type", "enum"} and all(isinstance(value, str | int) for value in schema.get("enum", [None])):
        return " | ".join(_quoted(text) for value in schema["enum"] for text in _written(value))
    if asked == {"type"} and schema["type"] == "boolean":
        return '"true" | "false"'
    if asked == {"type", "pattern"} and schema["type"] == "string":
        if (body := _pattern(str(schema["pattern"]))) is not None:
            return f"{_quoted(chr(34))} {body} {_quoted(chr(34))}"
    raise RequestError(
        f"parameter {name!r} of tool {tool.name!r}: the loops to compare with know enumerations of strings and whole "
        "numbers, booleans, and strings with a pattern of ASCII classes and counts from ^ to $: leave the loops out "
        "(--skip-plain --skip-careful), or use other tools"
    )


def _written(value: str | int) -> list[str]:
    """A constant as the call grammar lets it be written."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [str(value), f"{value}.0"]
    return sorted({json.dumps(value, ensure_ascii=False), json.dumps(value)})


def _pattern(pattern: str) -> str | None:
    """A pattern in EBNF, None where it is made of more than the parts known here."""
    if not (pattern.startswith("^") and pattern.endswith("$")):
        return None
    parts, at, end = [], 1, len(pattern) - 1
    while at < end:
        match = _PART.match(pattern, at, end)
        if match is None:
            return None
        what = match["what"]
        parts.append((what if what.startswith("[") else _quoted(what)) + (match["count"] or ""))
        at = match.end()
    return " ".join(parts) if parts else None


def _quoted(text: str) -> str:
    """A literal of xgrammar's EBNF, whose escapes are those of JSON."""
    return json.dumps(text)
