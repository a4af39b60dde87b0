"""The text that a model reads before it writes calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from toolprm_decode.errors import RequestError
from toolprm_decode.formats import Format
from toolprm_decode.tools import Tool

Message = dict[str, Any]

_EXAMPLE = [{"name": "function_name", "arguments": {"parameter": "value"}}]


def to_messages(prompt: Any) -> list[Message]:
    """Chat messages of a prompt: text is one user message. Raises RequestError for anything else that is no chat."""
    if isinstance(prompt, str):
        messages: list[Message] = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, Sequence) and not isinstance(prompt, bytes) and prompt:
        messages = []
        for index, message in enumerate(prompt):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise RequestError(f"message {index} of the prompt must be a dict with role and content")
            messages.append(dict(message))
    else:
        raise RequestError(f"the prompt must be text or a list of chat messages, not {prompt!r:.60}")
    try:
        json.dumps(messages, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the prompt is not valid Unicode: {error}") from error
    except (TypeError, ValueError) as error:
        raise RequestError(f"the prompt is not made of plain values: {error}") from error
    return messages


def render(tokenizer: Any, tools: Sequence[Tool], messages: Sequence[Message], format: Format) -> tuple[str, bool]:
    """The prompt's text, and whether it came from a chat template (which writes its own special tokens).

    A chat template that knows tools gets them; else they go into the system message, with the call format.
    Raises RequestError where the template refuses the messages.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return _plain(tools, _with_calls(messages, format), format), False
    source = template if isinstance(template, str) else " ".join(map(str, template.values()))
    knows_tools = "tools" in source
    given = list(messages) if "tool_calls" in source else _with_calls(messages, format)
    options: dict[str, Any] = {}
    if knows_tools:
        options["tools"] = [tool.to_openai() for tool in tools] or None
    else:
        given = _with_instructions(given, instructions(tools, format))
    try:
        text = tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True, **options)
    except Exception as error:  # a template is a program: it may raise anything
        raise RequestError(f"the chat template cannot render the messages: {error}") from error
    return str(text), True


def instructions(tools: Sequence[Tool], format: Format) -> str:
    """What a model without a template for tools is told of them."""
    listed = "\n".join(json.dumps(tool.to_openai()["function"], ensure_ascii=False) for tool in tools)
    empty = format.render([])
    return (
        "You can call these functions, one JSON schema a line:\n"
        f"{listed}\n"
        "Answer with the calls that the request asks for and nothing else, written like this:\n"
        f"{format.render(_EXAMPLE)}\n" + (f"When no function fits, answer {empty}\n" if empty else "")
    )


def _with_instructions(messages: list[Message], text: str) -> list[Message]:
    first = messages[0]
    if first["role"] in ("system", "user") and isinstance(first.get("content"), str):
        merged = {**first, "content": f"{text}\n{first['content']}"}
        return [merged, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _with_calls(messages: Sequence[Message], format: Format) -> list[Message]:
    """Calls of earlier turns as their text, for a template that would leave them out."""
    return [_with_calls_of(message, format) if message.get("tool_calls") else message for message in messages]


def _with_calls_of(message: Message, format: Format) -> Message:
    try:
        calls = [_call(one.get("function", one)) for one in message["tool_calls"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RequestError(f"a message's tool_calls cannot be read: {error!r}") from error
    content = message.get("content")
    if content and not isinstance(content, str):
        raise RequestError("the chat template has no place for tool_calls beside a list of content parts")
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join([*([content] if content else []), format.render(calls)])}


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments") or {}
    return {"name": function["name"], "arguments": json.loads(arguments) if isinstance(arguments, str) else arguments}


def _plain(tools: Sequence[Tool], messages: Sequence[Message], format: Format) -> str:
    lines = [instructions(tools, format)]
    lines += [f"{message['role']}: {message.get('content') or ''}" for message in messages]
    return "\n".join([*lines, "assistant: "])
