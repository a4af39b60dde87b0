"""Legal texts, damaged at random: accepted exactly where parsing and JSON Schema accept them."""

from __future__ import annotations

import copy
import keyword
import random
from pathlib import Path
from typing import Any

import pytest

from toolprm_decode.errors import FormatError
from toolprm_decode.grammar import CallGrammar
from toolprm_decode.tools import Tool, read_tools

from .bfcl import answered
from .cases import COUNTED, FORMATS, PARAMETERS, small_tokenizer, tool
from .judge import judge
from .test_masks import walk
from .texts import dumps_of, write

CASES = {**PARAMETERS, **COUNTED}
_PIECES = ['"', "'", "{", "}", "[", "]", "(", ")", ",", ":", " ", "\n", "\\", "0", "1", "-", ".", "e", "a", "é", "null"]
_PIECES += ["true", "{}", "[]", ", ", ": ", '""', "\\u0041", "\\n", "😀", "\x00", "\x7f", "=", "\u2028", "1e5", "-0"]
_VALUES: list[Any] = [None, True, False, 0, 1, -1, 2, 117, 118, 1.0, 0.5, 2.5, 2.500001, 1e22, 1e-7, 10**20]
_VALUES += ["", "a", "red", "reddish", "Paris", "x/y é", "1", 'say "hi"\n', "it's", "\x00", "\x7f", "é" * 3, "😀", "\\"]
_VALUES += [[], ["a"], [1, 2], [1, 2, 3, 4], [True, 1], ["a", True], [[1, 2]], {}, {"a": 1}, {"kind": "x"}, {"key": 1}]


def edited(text: str, rng: random.Random) -> str:
    """The text with a few characters changed."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(text) + 1)
        to = min(len(text), at + rng.choice([1, 1, 1, 2, 4]))
        match rng.randrange(6):
            case 0:
                text = text[:at] + text[to:]
            case 1:
                text = text[:at] + rng.choice(_PIECES) + text[at:]
            case 2:
                text = text[:at] + rng.choice(_PIECES) + text[to:]
            case 3:
                text = text[:at] + text[at:to] * 2 + text[to:]
            case 4:
                text = text[:at] + text[at:to][::-1] + text[to:]
            case 5:  # a piece of it at another place
                piece = text[at : at + rng.randrange(30)]
                at = rng.randrange(len(text) + 1)
                text = text[:at] + piece + text[at:]
    return text


def changed(calls: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """The calls with members removed, added, renamed or exchanged for others."""
    calls = copy.deepcopy(calls)
    if not calls or rng.random() < 0.1:
        return [] if rng.random() < 0.5 else calls * 2
    call = rng.choice(calls)
    if rng.random() < 0.1:
        call["name"] = rng.choice([call["name"] + "x", call["name"][:-1], "get", ""])
    place: Any = call["arguments"]
    while rng.random() < 0.6:  # somewhere inside
        inner = [x for x in (place.values() if isinstance(place, dict) else place) if isinstance(x, dict | list) and x]
        if not inner:
            break
        place = rng.choice(inner)
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    match rng.randrange(5):
        case 0 if keys:
            place.pop(rng.choice(keys))
        case 1 if isinstance(place, dict):
            place[rng.choice(["extra", "a", "city", "key", "ccc", "kind", "é\n", ""])] = rng.choice(_VALUES)
        case 1:
            place.append(rng.choice(_VALUES))
        case 2 if isinstance(place, dict) and keys:
            key = rng.choice(keys)
            place[key + "_"] = place.pop(key)
        case 3 if isinstance(place, dict) and keys:
            members = list(place.items())
            rng.shuffle(members)
            place.clear()
            place.update(members)
        case _ if keys:
            place[rng.choice(keys)] = rng.choice(_VALUES)
    return calls


def mutant(calls: list[dict[str, Any]], text: str, format: str, rng: random.Random) -> str:
    """One damaged text."""
    kind = rng.random()
    if kind < 0.5:
        text = write(changed(calls, rng), format, rng.choice(dumps_of(format)))
    if kind > 0.4:
        text = edited(text, rng)
    return text


def check(grammar: CallGrammar, text: str, format: str, tools: list[Tool]) -> bool:
    """Compares grammar and judge on a text; returns whether it was accepted."""
    verdict = judge(text, format, tools)
    accepted = grammar.accepts(text)
    assert verdict.legal or not accepted, f"accepted: {text!r}"
    assert accepted or not (verdict.legal and verdict.plain), f"refused: {text!r}"
    return accepted


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_gold_calls(format: str, data_dir: Path) -> None:
    rng = random.Random(f"gold {format}")
    accepted = 0
    entries = answered(data_dir)
    for entry in entries:
        words = [word for one in entry.tools for word in [*one.name.split("."), *one.parameters.get("properties", {})]]
        if format == "pythonic" and not all(word.isidentifier() and not keyword.iskeyword(word) for word in words):
            continue  # the judge reads Python, the grammar takes any name
        grammar = CallGrammar(entry.tools, small_tokenizer(), format)
        text = write(entry.calls, format, rng.choice(dumps_of(format)))
        accepted += sum(check(grammar, mutant(entry.calls, text, format, rng), format, entry.tools) for _ in range(4))
    assert accepted > len(entries) / 4, "too few of the texts stayed legal to tell anything"


@pytest.mark.parametrize("name", CASES)
def test_damaged_texts_of_every_kind_of_schema(name: str) -> None:
    rng = random.Random(name)
    for format in FORMATS:
        if format == "pythonic" and "additionalProperties" in CASES[name]:
            continue
        tools = read_tools([tool(CASES[name], "get_weather"), tool({"type": "object", "properties": {}}, "get")])
        grammar = CallGrammar(tools, small_tokenizer(), format, allow_no_call=False, max_calls=2)
        for _ in range(12):
            matcher = grammar.matcher()
            walk(matcher, grammar, rng, 40, lambda matcher, legal: None)
            if not matcher.is_stopped:
                matcher.accept_bytes(matcher.closing())
            text = matcher.text
            assert judge(text, format, tools).legal, f"accepted: {text!r}"
            assert grammar.format is not None
            calls = grammar.format.parse(text)
            for _ in range(10):
                damaged = mutant(calls, text, format, rng)
                if not 1 <= len(calls_of(damaged, grammar)) <= 2:
                    continue
                check(grammar, damaged, format, tools)


def calls_of(text: str, grammar: CallGrammar) -> list[Any]:
    """The calls of a text, one more than none where it is damaged."""
    assert grammar.format is not None
    try:
        return grammar.format.parse(text)
    except FormatError:
        return [None]
