"""The suite of masks: what each turn is given, what is kept of the turns, and what takes too long."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import pytest

from toolprm_decode.benchmark.masks import _resident, _within, measure_tools, renamed
from toolprm_decode.tools import Tool, read_tools

SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "A trip.",
    "properties": {
        "required": {"type": "string", "enum": ["yes", "no"], "default": "no"},
        "legs": {"type": "array", "items": {"type": "object", "properties": {"km": {"enum": [1, 2]}}}},
    },
    "required": ["legs"],
}


def test_nothing_that_an_engine_could_know_keeps_its_name() -> None:
    assert renamed(SCHEMA, "_1") == {
        "type": "object",
        "description": "A trip._1",
        "properties": {
            "required_1": {"type": "string", "enum": ["yes_1", "no_1"], "default": "no"},
            "legs_1": {"type": "array", "items": {"type": "object", "properties": {"km_1": {"enum": [1, 2]}}}},
        },
        "required": ["legs_1"],
    }


class Engine:
    """Cannot compile more than two tools."""

    def __init__(self, name: str):
        self.name = name
        self.given: list[list[Tool]] = []

    def compile_calls(self, tools: Sequence[Tool]) -> None:
        if len(tools) > 2:
            raise ValueError("too many")
        self.given.append(list(tools))


def test_each_turn_has_new_tools_which_all_engines_get() -> None:
    tools = read_tools([{"name": f"f{i}", "parameters": SCHEMA} for i in range(3)])
    engines: list[Any] = [Engine("a"), Engine("b")]
    found = measure_tools(engines, tools, (1, 2, 3), turns=2)
    assert found.keys() == {"a", "b"}
    for engine in engines:
        assert found[engine.name]["3"] is None
        assert [len(given) for given in engine.given] == [1, 2, 1, 2]
        assert len({tool.name for given in engine.given for tool in given}) == 6
    assert engines[0].given == engines[1].given


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are copied with fork")
def test_what_takes_too_long_is_given_up() -> None:
    assert _within(30.0, lambda: os.getpid()) not in (None, os.getpid())
    assert _within(0.1, lambda: time.sleep(60)) is None

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(RuntimeError, match="failed"):
        _within(30.0, fail)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_memory_that_was_freed_does_not_count() -> None:
    before = _resident()
    held = [bytes(1000) for _ in range(200_000)]  # some of it goes into holes that other tests left
    during = _resident()
    assert during - before > 100_000_000
    del held
    assert _resident() - before < 50_000_000
