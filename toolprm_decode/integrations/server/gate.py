"""Who may come in, who waits, and when everybody has to go."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from toolprm_decode.integrations.server.failures import Failure


@dataclass(frozen=True)
class Limits:
    """What the server allows.

    Attributes:
        running: requests that are decoded at the same time. queue: that wait for it; more are refused.
        request_bytes: of a body.
        timeout: seconds from a request's head to the end of its answer; a request may ask for less.
        candidates: beams times width of a request.
        drain: seconds that requests in flight have once the server is told to stop.
    """

    running: int = 64
    queue: int = 256
    request_bytes: int = 4 << 20
    timeout: float = 120.0
    candidates: int = 256
    drain: float = 30.0


class Gate:
    """Counts requests. All of it belongs to the event loop's thread.

    Attributes:
        inside: requests that have come in and whose answers are not sent. waiting: of them, for their turn.
        running: of them, being decoded. draining: the server was told to stop. stopped: set when time is up for all.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._turns = asyncio.Semaphore(limits.running)
        self._mean_seconds = 1.0
        self.inside = self.waiting = self.running = 0
        self.draining = False
        self.stopped = asyncio.Event()

    def enter(self) -> None:
        """Takes a place, before anything of the request is read. Raises Failure where there is none."""
        if self.draining:
            raise stopping()
        if self.inside >= self._limits.running + self._limits.queue:
            wait = math.ceil(self._mean_seconds * (1 + self.waiting / self._limits.running))
            raise Failure(
                429,
                f"{self._limits.queue} requests wait already: try again later",
                code="queue_full",
                headers={"retry-after": str(min(max(wait, 1), 60))},
            )
        self.inside += 1

    def leave(self) -> None:
        """Gives the place back."""
        self.inside -= 1

    async def turn(self) -> None:
        """Waits for a turn to be decoded, first come, first served."""
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
        self.running += 1

    def turn_over(self, seconds: float) -> None:
        """Ends a turn that took this long."""
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        self.running -= 1
        self._turns.release()

    def drain(self) -> None:
        """Lets nobody in any more."""
        self.draining = True

    def stop(self) -> None:
        """Sends everybody away."""
        self.draining = True
        self.stopped.set()


def stopping() -> Failure:
    """What a request is told that the server has no time for."""
    return Failure(503, "the server is stopping", code="stopping", headers={"retry-after": "1"})
