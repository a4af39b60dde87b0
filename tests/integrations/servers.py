"""A server on a free port of this machine, in a thread, over a decoder whose passes can be held up."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai

from toolprm_decode import Decoder
from toolprm_decode.integrations.server.app import create_app
from toolprm_decode.integrations.server.gate import Limits
from toolprm_decode.integrations.server.job import Service
from toolprm_decode.integrations.server.run import Server

from ..search.models import SWAP, SWITCH, held

KEY = "a key"
MODEL = "tiny"
TOOLS: list[Any] = [{"type": "function", "function": tool} for tool in (SWITCH, SWAP)]
MESSAGES: list[Any] = [{"role": "user", "content": "Light in the hall"}]
# Long enough that nothing but a defect uses it up.
PATIENCE = 120.0


class Running:
    """A server that runs."""

    def __init__(self, decoder: Decoder, limits: Limits):
        app = create_app(decoder, model=MODEL, api_key=KEY, limits=limits)
        self.decoder, self.service = decoder, app.state.service
        assert isinstance(self.service, Service)
        self._server = Server(app, limits)
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.root = f"http://127.0.0.1:{self.address[1]}"
        ready = threading.Event()
        self._server.on_ready = ready.set
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._listener])))
        self._thread.start()
        assert ready.wait(PATIENCE)

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.root}/v1", **{"api_key": KEY, "max_retries": 0, **options})

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.root}/v1", api_key=KEY, max_retries=0)

    def post(self, content: Any = None, **fields: Any) -> httpx.Response:
        body = json.dumps({"model": MODEL, "messages": MESSAGES, "tools": TOOLS, **fields})
        headers = {"authorization": f"Bearer {KEY}"}
        url = f"{self.root}/v1/chat/completions"
        return httpx.post(url, content=body if content is None else content, headers=headers, timeout=PATIENCE)

    def metric(self, line: str) -> float:
        """A value of /metrics by name and labels, 0 where it is not there."""
        text = httpx.get(f"{self.root}/metrics").text
        return next((float(row.split()[-1]) for row in text.splitlines() if row.startswith(line + " ")), 0.0)

    def wait_until_idle(self) -> None:
        gate = self.service.gate
        wait_for(lambda: held(self.decoder) == (0, 0) and not self.decoder._scheduler._running)
        wait_for(lambda: (gate.inside, gate.waiting, gate.running) == (0, 0, 0))

    def tell_to_stop(self) -> None:
        """As a signal does; twice for at once."""
        self._server.handle_exit(signal.SIGTERM, None)

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        self.tell_to_stop()
        self.join()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


class Hold:
    """Passes of the policy that wait until they are let go."""

    def __init__(self, decoder: Decoder, after: int = 0):
        self.waiting, self._go = threading.Event(), threading.Event()
        self._engine, self._forward, self._left = decoder._policy, decoder._policy.forward, after
        self._engine.forward = self._held  # type: ignore[method-assign]

    def _held(self, *arguments: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            self.waiting.set()
            assert self._go.wait(PATIENCE)
        return self._forward(*arguments)

    def let_go(self) -> None:
        self._go.set()
        self._engine.forward = self._forward  # type: ignore[method-assign]


@contextmanager
def hold(decoder: Decoder, after: int = 0) -> Iterator[Hold]:
    """Holds up passes, all but the first few."""
    held_up = Hold(decoder, after)
    try:
        yield held_up
    finally:
        held_up.let_go()


def gathered(chunks: Any) -> dict[int, dict[str, Any]]:
    """The messages of a stream's pieces by the index of their choice, put together as clients do."""
    messages: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            message = messages.setdefault(choice.index, {"content": None, "calls": [], "reason": None})
            assert message["reason"] is None, "nothing comes after the reason to finish"
            message["reason"] = choice.finish_reason
            if choice.delta.role is not None:
                message["role"] = choice.delta.role
            if choice.delta.content is not None:
                message["content"] = (message["content"] or "") + choice.delta.content
            for piece in choice.delta.tool_calls or ():
                if piece.id is not None:
                    assert piece.index == len(message["calls"]) and piece.type == "function"
                    message["calls"].append({"id": piece.id, "name": piece.function.name, "arguments": ""})
                message["calls"][piece.index]["arguments"] += piece.function.arguments
            if choice.model_extra and "toolprm" in choice.model_extra:
                message["toolprm"] = choice.model_extra["toolprm"]
    return messages
