"""Runs the application with uvicorn until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from toolprm_decode.decoding import Decoder
from toolprm_decode.errors import RequestError
from toolprm_decode.integrations.server.app import create_app
from toolprm_decode.integrations.server.gate import Limits
from toolprm_decode.integrations.server.job import Service

# Seconds for the last words of requests that had to be sent away.
_LAST_WORDS = 5


def serve(
    decoder: Decoder,
    listener: socket.socket,
    *,
    model: str,
    api_key: str | None = None,
    limits: Limits | None = None,
    access_log: bool = False,
    ready: Callable[[str, str], None] = lambda url, model: None,
) -> None:
    """Serves at a bound socket until SIGINT or SIGTERM.

    Requests in flight have limits.drain seconds from then on; those left are told so, as are all at a second signal.

    ready: called with the URL and the model's name when requests are taken.
    Raises RequestError where the socket cannot listen.
    """
    limits = limits or Limits()
    server = Server(create_app(decoder, model=model, api_key=api_key, limits=limits), limits, access_log)
    server.on_ready = lambda: ready(_url(listener), model)
    try:
        asyncio.run(server.serve([listener]))
    except OSError as error:
        raise RequestError(f"cannot listen at {_url(listener)}: {error.strerror or error}") from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


class Server(uvicorn.Server):
    """uvicorn's, which tells the gate when it is to stop, and ends well when it was asked to.

    Attributes:
        on_ready: called once connections are taken.
    """

    def __init__(self, app: Any, limits: Limits, access_log: bool = False):
        super().__init__(
            uvicorn.Config(
                app,
                log_level="info" if access_log else "warning",
                access_log=access_log,
                server_header=False,
                # Longer than clients keep theirs: who closes first must not be the server, in whose face a request
                # may just be on its way.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=int(limits.drain) + _LAST_WORDS + 1,
            )
        )
        self._service: Service = app.state.service
        self._drain = limits.drain
        self._loop: asyncio.AbstractEventLoop | None = None
        self.on_ready: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes connections."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started:
            self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server when all is answered, the second soon, the third as it stands."""
        gate = self._service.gate
        if not self.should_exit:
            self.should_exit = True
        elif not gate.stopped.is_set() and self._loop is not None:
            self._loop.call_soon_threadsafe(gate.stop)
        else:
            self.force_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more requests, and answers those in flight while there is time."""
        gate = self._service.gate
        gate.drain()
        end = asyncio.get_running_loop().call_later(self._drain, gate.stop)
        await super().shutdown(sockets)
        end.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends by itself on signals. uvicorn raises them again when all is done, which would look like a crash."""
        try:
            before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread, which alone is told of signals
            before = {}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)
