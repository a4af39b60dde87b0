"""The pieces of streamed calls, whatever the format that the model writes."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from toolprm_decode import CallGrammar
from toolprm_decode.decoding import read_calls
from toolprm_decode.formats import FORMATS, Format
from toolprm_decode.integrations.server.writing import CallPieces
from toolprm_decode.tools import read_tools

from ..search.models import SWAP, SWITCH, tokenizer

NESTED = {
    "name": "plan",
    "parameters": {
        "type": "object",
        "properties": {
            "where": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "tag": {"type": "string", "maxLength": 3}},
                "required": ["x"],
            },
            "times": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        },
        "required": ["where"],
    },
}
TOOLS = [SWITCH, SWAP, NESTED, {"name": 'say "hé"', "parameters": {"type": "object", "properties": {}}}]


def some_call(random: Random, names: list[str]) -> dict[str, Any]:
    values: dict[str, dict[str, list[Any]]] = {
        "switch": {"on": [True, False], "room": ["hall", "attic"], "level": [0, -7, 2.0, 10**20]},
        "swap": {"tag": ["", "a", "né", '"\\', "\U0001f600", "}, {"]},
        "plan": {"where": [{"x": 1.5}, {"x": 2, "tag": "[]"}], "times": [[], [1], [2.0, 3]]},
    }
    name = random.choice(names)
    arguments = {key: random.choice(few) for key, few in values.get(name, {}).items()}
    for key in set(arguments) - {"on", "where"}:
        if random.random() < 0.4:
            del arguments[key]
    order = random.sample(list(arguments), len(arguments))
    return {"name": name, "arguments": {key: arguments[key] for key in order}}


@pytest.mark.parametrize("ascii", [False, True], ids=["unicode", "ascii"])
@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda format: format.name)
def test_pieces_make_the_calls(format: Format, ascii: bool) -> None:
    tools = [tool for tool in read_tools(TOOLS) if not format.pythonic or tool.name.isidentifier()]
    grammar = CallGrammar(tools, tokenizer(), format)
    for seed in range(200):
        random = Random(seed)
        calls = [some_call(random, [tool.name for tool in tools]) for _ in range(random.randrange(4))]
        text = format.render(calls, ensure_ascii=ascii)
        pieces = CallPieces(format, tools)
        told: list[dict[str, Any]] = []
        for step in grammar.steps(text):
            for piece in pieces.read(step):
                if "id" in piece:
                    assert piece["index"] == len(told)
                    told.append({"name": piece["function"]["name"], "arguments": ""})
                told[piece["index"]]["arguments"] += piece["function"]["arguments"]
        assert told == [
            {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
            for call in read_calls(text, format, tools)
        ], f"seed {seed}: {text}"
        assert [{"name": one["name"], "arguments": json.loads(one["arguments"])} for one in told] == calls
