"""Whatever a body says, it is read or refused as a body."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from toolprm_decode import Search
from toolprm_decode.integrations.server.failures import Failure
from toolprm_decode.integrations.server.reading import read_chat

from .servers import MESSAGES, TOOLS

CALL = {"id": "1", "type": "function", "function": {"name": "swap", "arguments": "{}"}}
CALLED = [
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "done"}]},
]
WHOLE: dict[str, Any] = {
    "model": "tiny",
    "messages": [*MESSAGES, *CALLED],
    "tools": TOOLS,
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOLS[0]]}},
    "parallel_tool_calls": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "search": {"strategy": "sample", "width": 3, "beams": 1, "aggregate": "min", "confidence": None},
    "seed": 5,
    "temperature": 0.5,
    "max_tokens": 5,
    "n": 2,
    "timeout": 3.5,
    "stop": None,
}
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["auto", "none", "function"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in places(one, (*at, key)))]


def with_odd(value: Any, place: tuple[Any, ...], odd: Any) -> Any:
    if not place:
        return odd
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[place[0]] = with_odd(value[place[0]], place[1:], odd)
    return copied


def test_the_whole_is_read() -> None:
    asked = read_chat(json.dumps(WHOLE).encode(), Search(), 64)
    assert asked.search == Search("sample", beams=1, width=3, aggregate="min", seed=5, temperature=0.5, max_tokens=5)
    assert (asked.model, asked.choices, asked.stream, asked.include_usage, asked.timeout) == (
        "tiny",
        2,
        True,
        True,
        3.5,
    )
    assert asked.tools == TOOLS[:1] and [m["role"] for m in asked.messages] == ["user", "assistant", "tool"]


@settings(max_examples=200)
@given(place=st.sampled_from(places(WHOLE)), odd=ODD)
def test_anything_is_read_or_refused(place: tuple[Any, ...], odd: Any) -> None:
    refused = None
    try:
        read_chat(json.dumps(with_odd(WHOLE, place, odd)).encode(), Search(), 64)
    except Failure as failure:
        refused = failure
    assert refused is None or (refused.status == 400 and 0 < len(refused.message) < 600)
