"""How calls are written, and where their steps end: written down again, apart from the package, as an oracle."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Span = tuple[str, int, int, str]
"""Kind, first byte, end and path of a step."""

# begin, separator, close of the list, end; before the name, before the arguments, after them, after the call
JSON_FORMATS: dict[str, tuple[str, str, str, str, str, str, str, str]] = {
    "json-list": ("[", ", ", "]", "", '{"name": ', ', "arguments": ', "}", ""),
    "hammer": ("```\n[", ", ", "]", "\n```", '{"name": ', ', "arguments": ', "}", ""),
    "hermes": ("", "\n", "", "", '<tool_call>\n{"name": ', ', "arguments": ', "}", "\n</tool_call>"),
    "llama-json": ("", "; ", "", "", '{"name": ', ', "parameters": ', "}", ""),
}


def write(calls: Sequence[dict[str, Any]], format: str, dumps: Callable[[Any], str]) -> str:
    """The text of calls; dumps writes names and values."""
    if format == "pythonic":
        return "[" + ", ".join(
            f"{call['name']}({', '.join(f'{key}={dumps(value)}' for key, value in call['arguments'].items())})"
            for call in calls
        ) + "]"  # fmt: skip
    begin, separator, close, end, name, arguments, call_close, call_end = JSON_FORMATS[format]
    return begin + separator.join(
        name + dumps(call["name"]) + arguments + dumps(call["arguments"]) + call_close + call_end for call in calls
    ) + close + end  # fmt: skip


def dumps_of(format: str) -> list[Callable[[Any], str]]:
    """The ways in which values may be written."""
    found: list[Callable[[Any], str]] = [json.dumps, lambda value: json.dumps(value, ensure_ascii=False)]
    return [*found, repr] if format == "pythonic" else found


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)
_ATOM = re.compile(rb"[-+.\w]+")
_SPACE = re.compile(rb"[ \t\r\n]*")


class Reader:
    """Reads values at byte positions; checks nothing."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def space(self) -> None:
        match = _SPACE.match(self.data, self.at)
        assert match
        self.at = match.end()

    def expect(self, text: str) -> None:
        """Passes over a literal, with any white space between its words and around them."""
        for word in re.findall(r"\w+|[^\w\s]", text):
            self.space()
            assert self.data.startswith(word.encode(), self.at), (word, self.data[self.at :])
            self.at += len(word.encode())

    def comes(self, text: str) -> bool:
        self.space()
        return self.data.startswith(text.encode(), self.at)

    def string(self) -> str:
        self.space()
        match = _STRING.match(self.data, self.at)
        assert match, self.data[self.at :]
        self.at = match.end()
        text = match.group().decode()
        return str(json.loads(text) if text[0] == '"' else eval(text))

    def value(self) -> None:
        self.space()
        for opening, closing in ("{}", "[]", "()"):
            if self.comes(opening):
                self.expect(opening)
                while not self.comes(closing):
                    if self.comes(",") or self.comes(":"):
                        self.at += 1
                    else:
                        self.value()
                self.expect(closing)
                return
        if self.comes('"') or self.comes("'"):
            self.string()
            return
        match = _ATOM.match(self.data, self.at)
        assert match, self.data[self.at :]
        self.at = match.end()

    def members(self) -> Iterator[tuple[str, int]]:
        """Keys of an object, and where their values end; ends after the brace."""
        self.expect("{")
        while not self.comes("}"):
            if self.comes(","):
                self.expect(",")
            key = self.string()
            self.expect(":")
            self.value()
            yield key, self.at
        self.expect("}")

    def keywords(self, names: Sequence[str]) -> Iterator[tuple[str, int]]:
        """The same of `(key=value)`; names: the keys that there may be."""
        self.expect("(")
        while not self.comes(")"):
            if self.comes(","):
                self.expect(",")
            self.space()
            key = next(n for n in sorted(names, key=len, reverse=True) if self.comes(f"{n}="))
            self.at += len(f"{key}=".encode())
            self.value()
            yield key, self.at
        self.expect(")")


def escaped(key: str) -> str:
    """A token of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def steps_of(text: str, format: str, calls: Sequence[dict[str, Any]]) -> list[Span]:
    """The steps of a legal text of these calls."""
    reader = Reader(text.encode())
    ends: list[tuple[str, int, str]] = []
    begin, separator, close, end, name_open, arguments_open, call_close, call_end = JSON_FORMATS.get(
        format, ("[", ",", "]", "", "", "", "", "")
    )
    reader.expect(begin)
    for index, call in enumerate(calls):
        if index:
            reader.expect(separator)
        if format == "pythonic":
            reader.space()
            reader.at += len(call["name"].encode())
        else:
            reader.expect(name_open)
            assert reader.string() == call["name"]
        ends.append(("FUNC_NAME", reader.at, f"/{index}/name"))
        reader.expect(arguments_open)
        members = reader.keywords(list(call["arguments"])) if format == "pythonic" else reader.members()
        ends += [("ARG_VALUE", at, f"/{index}/arguments/{escaped(key)}") for key, at in members]
        ends.append(("PARAM_FINISH", reader.at, f"/{index}/arguments"))
        reader.expect(call_close)
        ends.append(("FUNC_FINISH", reader.at, f"/{index}"))
        reader.expect(call_end)
    reader.expect(close)
    ends.append(("TOTAL_FINISH", reader.at if close else len(reader.data), ""))
    reader.expect(end)
    reader.space()
    assert reader.at == len(reader.data), "the oracle did not reach the end"
    starts = [0, *(at for _, at, _ in ends)]
    return [(kind, start, at, path) for start, (kind, at, path) in zip(starts, ends, strict=False)]


_LONGEST = 12  # bytes of a token: enough for all kinds of them


def random_tokens(data: bytes, ids: dict[bytes, int], rng: random.Random) -> list[int]:
    """Tokens that spell the bytes, at random; ids: token ids by their bytes."""
    at, tokens = 0, []
    while at < len(data):
        lengths = [n for n in range(1, min(_LONGEST, len(data) - at) + 1) if data[at : at + n] in ids]
        length = rng.choice(lengths if rng.random() < 0.5 else lengths[-1:])
        tokens.append(ids[data[at : at + length]])
        at += length
    return tokens
