"""What a client is told of a request that failed: a status and OpenAI's error body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolprm_decode.errors import (
    BudgetExceeded,
    ContextExceeded,
    DeadlineExceeded,
    MemoryExceeded,
    ModelNotSupported,
    ToolprmError,
    ToolSchemaError,
)

# What nginx logs for a client that left; nothing is sent.
CLIENT_LEFT = 499

# OpenAI's clients repeat a request that ran out of time, which would only run out of it again.
_NO_RETRY = {"x-should-retry": "false"}


class Failure(Exception):
    """A request ends with this status and body.

    Attributes:
        status: of HTTP. message: in one line. param: the field at fault, in dots (`search.beams`), or None.
        code: a word for programs, or None. headers: to send along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, " ".join(message.split()), param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI writes errors."""
        error = {"message": self.message, "type": _kind(self.status), "param": self.param, "code": self.code}
        return {"error": error}


class ClientLeft(Exception):
    """The client closed the connection, or stopped reading."""


def refuse(param: str, message: str) -> Failure:
    """A field that cannot be used."""
    return Failure(400, message, param=param)


def too_late(message: str) -> Failure:
    """A request whose time was up."""
    return Failure(504, message, code="timeout", headers=_NO_RETRY)


def failure_of(error: BaseException) -> Failure:
    """What the client is told of an error of the decoder."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, DeadlineExceeded):
        return too_late(str(error))
    if isinstance(error, ToolSchemaError):
        return Failure(400, str(error), param="tools", code="invalid_tool")
    if isinstance(error, ContextExceeded):
        return Failure(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, MemoryExceeded):
        return Failure(400, str(error), code="memory_exceeded")
    if isinstance(error, BudgetExceeded):
        return Failure(400, str(error), code="budget_exceeded")
    if isinstance(error, RecursionError):  # nothing but a request brings such depths
        return Failure(400, "the request is nested too deeply")
    if isinstance(error, ToolprmError) and not isinstance(error, ModelNotSupported):
        return Failure(400, str(error))
    return Failure(500, "the server failed at this request; its log says why", code="internal_error")


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    if status == 401:
        return "authentication_error"
    if status in (503, 504):
        return "service_unavailable_error" if status == 503 else "timeout_error"
    return "server_error" if status >= 500 else "invalid_request_error"
