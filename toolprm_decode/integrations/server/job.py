"""One request on its way through the decoder, and all of them together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from starlette.types import Receive

from toolprm_decode.decoding import Decoded, Decoder, Request
from toolprm_decode.errors import DeadlineExceeded
from toolprm_decode.grammar import CallGrammar, Step
from toolprm_decode.integrations.server.failures import ClientLeft, Failure, too_late
from toolprm_decode.integrations.server.gate import Gate, Limits, stopping
from toolprm_decode.integrations.server.metrics import Metrics
from toolprm_decode.integrations.server.reading import Asked, read_chat

T = TypeVar("T")

# What the scheduler is given to say that time is up before the server does, which knows less.
_GRACE = 2.0
_LATE = "the request's time was up before its answer was there"


class Service:
    """A decoder behind a gate. Belongs to the event loop's thread, and never makes it wait for the decoder.

    Attributes:
        model: what clients call the policy.
    """

    def __init__(self, decoder: Decoder, model: str, limits: Limits):
        self.decoder, self.model, self.limits = decoder, model, limits
        self.gate = Gate(limits)
        self.metrics = Metrics(decoder, self.gate)
        # Bodies are parsed, grammars compiled and prompts tokenised here.
        self.workers = ThreadPoolExecutor(4, thread_name_prefix="toolprm-prepare")
        # Cancelling waits for the scheduler's lock, and must not wait for a grammar as well.
        self._cancelling = ThreadPoolExecutor(1, thread_name_prefix="toolprm-cancel")
        self._open: set[Future[Decoded]] = set()

    def opened(self, pending: Future[Decoded]) -> None:
        """Remembers a request that the decoder has."""
        self._open.add(pending)

    def forget(self, pending: Future[Decoded]) -> None:
        """Drops a request where it is not answered yet."""
        self._open.discard(pending)
        if not pending.done():
            self._cancelling.submit(pending.cancel)

    def close(self) -> None:
        """Drops what is left. Waits for the threads."""
        for pending in list(self._open):
            self.forget(pending)
        self.workers.shutdown(cancel_futures=True)
        self._cancelling.shutdown()


class Job:
    """One request: a place inside, then a turn, then an answer. Close it whatever happens.

    Attributes:
        asked: what the client wants. grammar: of its tools. Both are there once it has started.
        began: on time.monotonic()'s clock.
    """

    asked: Asked
    grammar: CallGrammar

    def __init__(self, service: Service):
        service.gate.enter()
        self._service = service
        self.began = time.monotonic()
        self._deadline = self.began + service.limits.timeout
        self._turn_began: float | None = None
        self._pending: Future[Decoded] | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._steps: asyncio.Queue[list[Step] | None] = asyncio.Queue()

    @property
    def left(self) -> float:
        """Seconds until the deadline, not below 0."""
        return max(0.0, self._deadline - time.monotonic())

    async def start(self, body: bytes) -> None:
        """Reads the body, waits for a turn and hands the request to the decoder. Raises Failure, ToolprmError."""
        service = self._service
        limits = service.limits
        self.asked = await self._work(lambda: read_chat(body, service.decoder.search, limits.candidates))
        if self.asked.model != service.model:
            message = f"there is no model {self.asked.model!r:.80}: this server has {service.model!r}"
            raise Failure(404, message, param="model", code="model_not_found")
        if self.asked.timeout is not None:
            self._deadline = min(self._deadline, self.began + self.asked.timeout)
        await self._in_time(self._begin_turn())
        self.grammar, pending = await self._work(self._submit, _drop)
        self._pending = pending
        service.opened(pending)
        if pending.done() and not pending.cancelled() and (error := pending.exception()) is not None:
            raise error  # before a stream begins, which could say so only in an event

    async def next_steps(self) -> list[Step] | None:
        """Steps that are certain, None after the last, as soon as they are there. Raises Failure."""
        return await self._in_time(self._steps.get(), _GRACE)

    async def answer(self) -> Decoded:
        """The decoder's answer. Raises Failure and what the decoder raises."""
        assert self._pending is not None
        # Shielded: cancelled in the event loop it would wait there for the scheduler's lock. close() sees to it.
        answer = asyncio.shield(asyncio.wrap_future(self._pending))
        decoded = await self._in_time(answer, _GRACE)
        self._service.metrics.answered(decoded)
        self._end_turn()
        return decoded

    def close(self) -> None:
        """Drops the request where it is not answered, and gives its place to others."""
        if self._closed:
            return
        self._closed = True
        if self._pending is not None:
            self._service.forget(self._pending)
        self._end_turn()
        self._service.gate.leave()

    async def _begin_turn(self) -> None:
        await self._service.gate.turn()
        self._turn_began = time.monotonic()  # here, where no cancellation can come between

    def _end_turn(self) -> None:
        if self._turn_began is not None:
            self._service.gate.turn_over(time.monotonic() - self._turn_began)
            self._turn_began = None

    def _submit(self) -> tuple[CallGrammar, Future[Decoded]]:
        asked, decoder, loop = self.asked, self._service.decoder, self._loop
        tell: Callable[[list[Step] | None], None] | None = None
        if asked.stream:

            def tell(steps: list[Step] | None) -> None:
                with suppress(RuntimeError):  # the loop is closed: nobody listens
                    loop.call_soon_threadsafe(self._steps.put_nowait, steps)

        grammar = decoder.grammar(asked.tools, asked.search)  # first, since it may fail
        request = Request(asked.tools, asked.messages, asked.search, max(self.left, 1e-3))
        pending = decoder.submit(request, tell)
        if tell is not None:
            pending.add_done_callback(lambda _: tell(None))
        return grammar, pending

    async def _work(self, function: Callable[[], T], undo: Callable[[Future[T]], None] | None = None) -> T:
        """Runs a function in a thread. undo: what to do with its result where nobody waits for it any more."""
        work = self._service.workers.submit(function)
        try:
            return await self._in_time(asyncio.wrap_future(work))
        except BaseException:
            if undo is not None:
                work.add_done_callback(undo)
            raise

    async def _in_time(self, result: Awaitable[T], grace: float = 0.0) -> T:
        try:
            return await asyncio.wait_for(result, self.left + grace)
        except asyncio.TimeoutError as error:
            if isinstance(error, DeadlineExceeded):  # the decoder's own, which says more
                raise
            raise too_late(_LATE) from None


def _drop(work: Future[tuple[CallGrammar, Future[Decoded]]]) -> None:
    """Drops a request that came to the decoder too late to be waited for."""
    if not work.cancelled() and work.exception() is None:
        work.result()[1].cancel()


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive, gate: Gate) -> T:
    """What the work gives, unless the client leaves first (ClientLeft) or the server stops (Failure).

    receive: of ASGI, after all of the body.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    stopped = asyncio.ensure_future(gate.stopped.wait())
    tasks: list[asyncio.Future[Any]] = [working, gone, stopped]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft if gone.done() else stopping()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
