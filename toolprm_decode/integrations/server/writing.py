"""Answers as OpenAI's chat completions write them, whole or in pieces."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from toolprm_decode.decoding import Answer, Decoded, read_calls
from toolprm_decode.formats import Format
from toolprm_decode.grammar import Step
from toolprm_decode.tools import Tool


def new_id(kind: str) -> str:
    """An id that no other answer has: a client may have many of them in one conversation."""
    return f"{kind}{secrets.token_hex(12)}"


def finish_reason(answer: Answer) -> str:
    """Clients run tools where it says "tool_calls", so it does wherever there are calls that are the model's own."""
    return "length" if answer.closed else "tool_calls" if answer.calls else "stop"


def completion(id: str, model: str, decoded: Decoded, answers: Sequence[Answer]) -> dict[str, Any]:
    """The body of a whole answer."""
    choices = []
    for index, answer in enumerate(answers):
        message = answer.to_openai() | {"refusal": None}
        for call in message.get("tool_calls", ()):
            call["id"] = new_id("call_")
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": None,
                "finish_reason": finish_reason(answer),
                "toolprm": _details(answer),
            }
        )
    return {
        "id": id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage(decoded, answers),
    }


def usage(decoded: Decoded, answers: Sequence[Answer]) -> dict[str, Any]:
    """Tokens as OpenAI counts them; what the search ran, and what it did not enforce, is under `toolprm`."""
    stats = decoded.stats
    completion = sum(len(answer.tokens) for answer in answers)
    ours = asdict(stats) | {"format": decoded.format, "answers": len(decoded.finished)}
    if decoded.warnings:
        ours["warnings"] = [asdict(warning) for warning in decoded.warnings]
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": stats.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": min(stats.cached_tokens, stats.prompt_tokens)},
        "toolprm": ours,
    }


def _details(answer: Answer) -> dict[str, Any]:
    """What our answers say beyond OpenAI's. A rank of minus infinity, which JSON cannot write, is null."""
    return {
        "text": answer.text,
        "score": answer.score,
        "logprob": _finite(answer.logprob),
        "rank": _finite(answer.rank),
        "multiplicity": answer.multiplicity,
        "steps": [asdict(step) | {"logprob": _finite(step.logprob)} for step in answer.steps],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


class CallPieces:
    """The calls of one answer as pieces of OpenAI's `tool_calls`, from its steps as they become certain.

    The pieces of a call's arguments, put together, are the text that a whole answer has for them.
    """

    def __init__(self, format: Format, tools: Sequence[Tool]):
        self._format, self._tools = format, tools
        self._call = -1
        self._text = ""  # of the call under way
        self._given = 0  # arguments of it that were told

    def read(self, step: Step) -> list[dict[str, Any]]:
        """What the step adds."""
        if step.kind == "FUNC_NAME":
            before = self._format.begin if self._call < 0 else self._format.call_end + self._format.separator
            self._call, self._text, self._given = self._call + 1, step.text.removeprefix(before), 0
            name = self._read("()" if self._format.pythonic else self._format.arguments_open + "{}")["name"]
            function = {"name": name, "arguments": ""}
            return [{"index": self._call, "id": new_id("call_"), "type": "function", "function": function}]
        self._text += step.text
        if step.kind == "ARG_VALUE":
            arguments = list(self._read(")" if self._format.pythonic else "}")["arguments"].items())
            new, self._given = arguments[self._given :], len(arguments)
            written = (f"{_json(name)}: {_json(value)}" for name, value in new)
            opening = "{" if len(new) == len(arguments) else ", "
            return [self._arguments(opening + ", ".join(written))]
        if step.kind == "PARAM_FINISH":
            return [self._arguments("}" if self._given else "{}")]
        return []

    def _read(self, closing: str) -> dict[str, Any]:
        """The call under way, were it to end here."""
        form = self._format
        text = f"{form.begin}{self._text}{closing}{form.call_close}{form.call_end}{form.list_close}{form.end}"
        if form.pythonic:
            text = f"{form.begin}{self._text}{closing}{form.list_close}{form.end}"
        (call,) = read_calls(text, form, self._tools)
        return call

    def _arguments(self, piece: str) -> dict[str, Any]:
        return {"index": self._call, "function": {"arguments": piece}}


class Chunks:
    """The pieces of a streamed answer, each the data of one server-sent event."""

    def __init__(self, id: str, model: str, format: Format, tools: Sequence[Tool], include_usage: bool):
        self._head = {"id": id, "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
        self._format, self._tools, self._include_usage = format, tools, include_usage
        self._first = CallPieces(format, tools)
        self._told = 0

    def begin(self) -> bytes:
        """Says who speaks."""
        return self._chunk(0, {"role": "assistant", "content": None})

    def steps(self, steps: Sequence[Step]) -> Iterator[bytes]:
        """Steps that all answers agree on, as a part of the first."""
        self._told += len(steps)
        for step in steps:
            for piece in self._first.read(step):
                yield self._chunk(0, {"tool_calls": [piece]})

    def end(self, decoded: Decoded, answers: Sequence[Answer]) -> Iterator[bytes]:
        """What is left of the first answer, and the others."""
        yield from self.steps(answers[0].steps[self._told :])
        yield from self._finish(0, answers[0])
        for index, answer in enumerate(answers[1:], 1):
            pieces = CallPieces(self._format, self._tools)
            yield self._chunk(index, {"role": "assistant", "content": None})
            for step in answer.steps:
                for piece in pieces.read(step):
                    yield self._chunk(index, {"tool_calls": [piece]})
            yield from self._finish(index, answer)
        if self._include_usage:
            yield event({**self._head, "choices": [], "usage": usage(decoded, answers)})
        yield b"data: [DONE]\n\n"

    def _finish(self, index: int, answer: Answer) -> Iterator[bytes]:
        if not answer.calls:
            yield self._chunk(index, {"content": ""})
        yield self._chunk(index, {}, finish_reason(answer), _details(answer))

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, details: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        if details is not None:
            choice["toolprm"] = details
        usage = {"usage": None} if self._include_usage else {}
        return event({**self._head, "choices": [choice], **usage})


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(data) + b"\n\n"


def to_json(value: Any) -> bytes:
    """Compact, in ASCII: whatever a string holds, it can be sent."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
