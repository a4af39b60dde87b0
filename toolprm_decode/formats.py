"""How models write calls: one row per format, all as literals around names and arguments."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from toolprm_decode.errors import FormatError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """The literals of a format. A text is `begin`, the calls joined by `separator`, `end`.

    A call of a JSON format is `name_open`, the name as a JSON string, `arguments_open`, the arguments as a JSON
    object, `call_close`, `call_end`. In a Pythonic one it is the name, `(`, `name=value` pairs joined by `, `, `)`.

    The steps end (arXiv 2510.14703, section 3): FUNC_NAME after the name (and its closing quote), ARG_VALUE after each
    value, PARAM_FINISH after the arguments, FUNC_FINISH after `call_close`, TOTAL_FINISH after `list_close` or, in
    formats without a list, with the text.
    """

    name: str
    begin: str = ""
    list_close: str = ""
    end: str = ""
    separator: str = ", "
    name_open: str = '{"name": '
    arguments_open: str = ', "arguments": '
    call_close: str = "}"
    call_end: str = ""
    pythonic: bool = False

    def render(self, calls: Sequence[Mapping[str, Any]], *, ensure_ascii: bool = False) -> str:
        """Writes calls (`{"name", "arguments"}`) as a model of this format would, in the style of json.dumps."""
        return self.begin + self.separator.join(self._render_call(c, ensure_ascii) for c in calls) + self._closing

    def parse(self, text: str, names: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Reads a text back into calls. White space between the parts does not matter.

        names: names of the tools; needed only in Pythonic texts with names that are not Python identifiers.
        Raises FormatError with the character position where the text leaves the format.
        """
        return _Reader(self, text, names).calls()

    @property
    def _closing(self) -> str:
        return self.list_close + self.end

    def _render_call(self, call: Mapping[str, Any], ensure_ascii: bool) -> str:
        name, arguments = call["name"], call.get("arguments") or {}
        if self.pythonic:
            return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        quoted, values = (json.dumps(x, ensure_ascii=ensure_ascii) for x in (name, arguments))
        return f"{self.name_open}{quoted}{self.arguments_open}{values}{self.call_close}{self.call_end}"


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("json-list", begin="[", list_close="]"),
        Format("hammer", begin="```\n[", list_close="]", end="\n```"),
        Format("hermes", separator="\n", name_open='<tool_call>\n{"name": ', call_end="\n</tool_call>"),
        Format("llama-json", separator="; ", arguments_open=', "parameters": '),
        Format("pythonic", begin="[", list_close="]", pythonic=True),
    )
}

# What a chat template says of the calls that its model was trained to write; the first match wins.
_SIGNS: tuple[tuple[str, str], ...] = (
    ("hermes", r"<tool_call>\\?n?\s*\{?\\?\"name"),
    ("hermes", r"<tool_call>(?!.*<function=)"),
    ("pythonic", r"\[func_name1\(|\[\s*\{?\{?\s*function_name\s*\}?\}?\(|<\|python_start\|>"),
    ("llama-json", r"\"parameters\\?\": (dictionary|\{|')|\{\\?\"name\\?\": function name"),
    ("hammer", r"```[\s\\n]*\[[\s\\n]*\{\\?\"name"),
)


def pick_format(chat_template: str | None) -> tuple[Format, str]:
    """The format that a chat template asks for, and the reason in words. Without any sign it is the JSON list."""
    for name, sign in _SIGNS:
        if chat_template and re.search(sign, chat_template, re.DOTALL):
            return FORMATS[name], f"the chat template writes calls as {name}"
    why = "the chat template does not say how calls are written" if chat_template else "there is no chat template"
    return FORMATS["json-list"], f"{why}: json-list"


def get_format(format: str | Format, chat_template: str | None = None) -> Format:
    """A format by name; "auto" picks by the chat template and logs what it picked. Raises FormatError."""
    if isinstance(format, Format):
        return format
    if format == "auto":
        picked, why = pick_format(chat_template)
        log.info("call format %s: %s", picked.name, why)
        return picked
    if format not in FORMATS:
        raise FormatError(f"unknown call format {format!r}: use one of auto, {', '.join(FORMATS)}")
    return FORMATS[format]


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _float(text: str) -> float:
    """A number too large for a float becomes the largest there is: infinity could not be written as JSON again."""
    return max(-sys.float_info.max, min(sys.float_info.max, float(text)))


def _int(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:  # Python reads no more than 4,300 digits
        return _float(text)


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_float, parse_int=_int)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_SPACE = re.compile(r"[ \t\n\r]*")
_NAME = re.compile(r"[^\s(),\[\]]+(?=\s*\()")
_KEY = re.compile(r"[^=(),]+(?=\s*=)")
_STRING = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'", re.DOTALL)
# ast.literal_eval would warn of escapes that Python does not know, and refuse NUL.
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "\n": "", "n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "0": "\0"}


def _unescaped(match: re.Match[str]) -> str:
    return _ESCAPED.get(match[4], match[0]) if match[4] else chr(int(match[1] or match[2] or match[3], 16))


_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}


class _Reader:
    def __init__(self, format: Format, text: str, names: Sequence[str]):
        self.format, self.text, self.at = format, text, 0
        self.names = sorted(names, key=len, reverse=True)

    def calls(self) -> list[dict[str, Any]]:
        form = self.format
        self.expect(form.begin)
        found: list[dict[str, Any]] = []
        while not self.ends():
            if found:
                self.expect(form.separator)
            found.append(self.python_call() if form.pythonic else self.json_call())
        self.expect(form.list_close + form.end)
        self.space()
        if self.at != len(self.text):
            raise self.error("nothing more")
        return found

    def ends(self) -> bool:
        self.space()
        close = self.format.list_close
        return self.text.startswith(close, self.at) if close else self.at == len(self.text)

    def json_call(self) -> dict[str, Any]:
        form = self.format
        opening = form.name_open.partition("{")[0]
        self.expect(opening)
        self.space()
        key = "parameters" if "parameters" in form.arguments_open else "arguments"
        try:
            call, end = _DECODER.raw_decode(self.text, self.at)
        except (ValueError, RecursionError):
            raise self.error("a JSON object") from None
        if not isinstance(call, dict) or set(call) != {"name", key} or not isinstance(call["name"], str):
            raise self.error(f"an object with name and {key}")
        if not isinstance(call[key], dict):
            raise self.error(f"an object for {key}")
        self.at = end
        self.expect(form.call_end)
        return {"name": call["name"], "arguments": call[key]}

    def python_call(self) -> dict[str, Any]:
        self.space()
        name = next((n for n in self.names if self.text.startswith(n + "(", self.at)), None)
        if name is None:
            match = _NAME.match(self.text, self.at)
            if match is None:
                raise self.error("a function name and (")
            name = match.group()
        self.at += len(name)
        self.expect("(")
        arguments: dict[str, Any] = {}
        self.space()
        while not self.text.startswith(")", self.at):
            if arguments:
                self.expect(",")
            self.space()
            key = _KEY.match(self.text, self.at)
            if key is None:
                raise self.error("name=value")
            self.at = key.end()
            self.expect("=")
            arguments[key.group().strip()] = self.value(0)
            self.space()
        self.expect(")")
        return {"name": name, "arguments": arguments}

    def value(self, depth: int) -> Any:
        if depth > 400:
            raise self.error("fewer nested values")
        self.space()
        here = self.text[self.at : self.at + 1]
        if here in ("{", "[", "("):
            return self.container(here, depth)
        if match := _STRING.match(self.text, self.at):
            return self.string(match)
        if match := _NUMBER.match(self.text, self.at):
            self.at = match.end()
            return _DECODER.decode(match.group())
        for word, meaning in _WORDS.items():
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return meaning
        raise self.error("a value")

    def string(self, match: re.Match[str]) -> str:
        text = match.group()
        try:
            # Between double quotes JSON goes first: it may hold \/ and surrogate pairs, which Python reads otherwise.
            value = str(json.loads(text))
        except ValueError:
            try:
                value = _ESCAPE.sub(_unescaped, text[1:-1])
            except (ValueError, OverflowError):
                raise self.error("a string") from None
        self.at = match.end()
        return value

    def container(self, opening: str, depth: int) -> Any:
        closing = {"{": "}", "[": "]", "(": ")"}[opening]
        self.expect(opening)
        members: dict[str, Any] = {}
        items: list[Any] = []
        self.space()
        while not self.text.startswith(closing, self.at):
            if members or items:
                self.expect(",")
            item = self.value(depth + 1)
            if opening == "{":
                if not isinstance(item, str):
                    raise self.error("a string for a key")
                self.expect(":")
                members[item] = self.value(depth + 1)
            else:
                items.append(item)
            self.space()
        self.expect(closing)
        return members if opening == "{" else items

    def space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def expect(self, literal: str) -> None:
        for part in literal.split():
            self.space()
            if not self.text.startswith(part, self.at):
                raise self.error(repr(part))
            self.at += len(part)

    def error(self, wanted: str) -> FormatError:
        found = self.text[self.at : self.at + 20]
        where = f"at character {self.at}, {found!r}" if found else "at the end of the text"
        return FormatError(f"not a {self.format.name} text: {wanted} expected {where}")
