"""Prompts say which tools there are, by the model's own template where it knows tools."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from toolprm_decode.errors import RequestError
from toolprm_decode.formats import FORMATS
from toolprm_decode.prompting import instructions, render, to_messages
from toolprm_decode.tools import read_tools

from .search.models import SWAP, SWITCH, tokenizer

TOOLS = read_tools([SWITCH, SWAP])
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Light, {{ x }} & <b>!"}]


def with_template(template: str) -> Any:
    changed = copy.deepcopy(tokenizer())
    changed.chat_template = template
    return changed


def test_text_is_one_user_message() -> None:
    assert to_messages("Hello") == [{"role": "user", "content": "Hello"}]
    given = [{"role": "user", "content": "Hello"}]
    messages = to_messages(tuple(given))
    messages[0]["content"] = "changed"
    assert given[0]["content"] == "Hello"


@pytest.mark.parametrize(
    "prompt",
    [None, 1, b"x", [], {"role": "user"}, ["x"], [{"content": "x"}], [{"role": "user", "content": {1, 2}}], "\ud800"],
)
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(RequestError):
        to_messages(prompt)


def test_a_template_that_knows_tools_gets_them(qwen_tokenizer: PreTrainedTokenizerFast) -> None:
    text, templated = render(qwen_tokenizer, TOOLS, CHAT, FORMATS["hermes"])
    assert templated
    for tool in TOOLS:
        assert json.dumps(tool.to_openai()) in text
    assert "Be brief." in text and "Light, {{ x }} & <b>!" in text
    assert text.endswith("<|im_start|>assistant\n")
    assert "You can call these functions" not in text
    without, _ = render(qwen_tokenizer, [], CHAT, FORMATS["hermes"])
    assert "<tools>" not in without


def test_a_template_that_does_not_know_tools_gets_instructions(phi3_tokenizer: PreTrainedTokenizerFast) -> None:
    format = FORMATS["json-list"]
    for chat in (CHAT, CHAT[1:]):
        text, templated = render(phi3_tokenizer, TOOLS, chat, format)
        assert templated
        assert text.count(instructions(TOOLS, format)) == 1
        assert text.index(instructions(TOOLS, format)) < text.index("Light,")
        assert text.endswith("<|assistant|>\n")
    assert chat[0]["content"].startswith("Light"), "the caller's messages stay as they were"


def test_instructions_go_before_a_first_message_that_cannot_hold_them() -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    parts = [{"role": "user", "content": [{"type": "text", "text": "Light"}]}]
    text, _ = render(with_template(template), TOOLS, parts, FORMATS["json-list"])
    assert text.startswith("[system] You can call these functions")


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda format: format.name)
def test_instructions_show_the_tools_and_the_format(format: Any) -> None:
    text = instructions(TOOLS, format)
    assert text.isascii()
    listed = [
        json.loads(line)
        for line in text.splitlines()
        if line.startswith('{"name": "sw') and '"parameters": {"type' in line
    ]
    assert listed == [tool.to_openai()["function"] for tool in TOOLS]
    assert format.render([{"name": "function_name", "arguments": {"parameter": "value"}}]) in text


def test_without_a_template_the_prompt_is_plain_text() -> None:
    text, templated = render(tokenizer(), TOOLS, CHAT, FORMATS["json-list"])
    assert not templated
    assert text.startswith(instructions(TOOLS, FORMATS["json-list"]))
    assert text.endswith("\nsystem: Be brief.\nuser: Light, {{ x }} & <b>!\nassistant: ")


CALLED = {"name": "switch", "arguments": {"on": True}}


@pytest.mark.parametrize("arguments", [CALLED["arguments"], json.dumps(CALLED["arguments"])], ids=["object", "text"])
@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda format: format.name)
def test_earlier_calls_are_written_where_no_template_does(format: Any, arguments: Any) -> None:
    calls = [{"id": "1", "type": "function", "function": {**CALLED, "arguments": arguments}}]
    chat = [*CHAT, {"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "done"}]
    plain, _ = render(tokenizer(), TOOLS, chat, format)
    assert plain.endswith(f"\nassistant: {format.render([CALLED])}\ntool: done\nassistant: ")
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    text, _ = render(with_template(template), TOOLS, chat, format)
    assert f"[assistant] {format.render([CALLED])}\n" in text
    knowing, _ = render(with_template("{{ messages[2].tool_calls | length }}{{ tools | length }}"), TOOLS, chat, format)
    assert knowing == "12"


@pytest.mark.parametrize("calls", [5, [5], [{}], [{"function": {"name": "switch", "arguments": "{"}}]])
def test_earlier_calls_that_cannot_be_read_are_refused(calls: Any) -> None:
    with pytest.raises(RequestError, match="tool_calls cannot be read"):
        render(tokenizer(), TOOLS, [{"role": "assistant", "tool_calls": calls}], FORMATS["json-list"])


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only users may speak') }}",
        "{{ messages[5].content.strip() }}",
        "{% for m in messages %}{{ m.content + 1 }}{% endfor %}",
        "{{ 1 // 0 }}",
        "{% if %}",
    ],
)
def test_a_template_that_fails_is_a_request_error(template: str) -> None:
    with pytest.raises(RequestError, match="chat template cannot render"):
        render(with_template(template), TOOLS, CHAT, FORMATS["json-list"])
