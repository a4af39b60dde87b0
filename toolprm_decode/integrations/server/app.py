"""The application: routes, keys, and how a request ends."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolprm_decode.decoding import Decoder
from toolprm_decode.errors import ToolprmError
from toolprm_decode.integrations.server.failures import CLIENT_LEFT, ClientLeft, Failure, failure_of
from toolprm_decode.integrations.server.gate import Limits
from toolprm_decode.integrations.server.job import Job, Service, unless_gone
from toolprm_decode.integrations.server.metrics import COMPLETIONS
from toolprm_decode.integrations.server.writing import Chunks, completion, event, new_id, to_json

log = logging.getLogger(__name__)

_MODELS = "/v1/models"
# For those who watch the server, who need no key and are not counted.
_OPEN = ("/health", "/ready", "/metrics")
# Where a middleware finds how a request ended, where its status does not say so.
_OUTCOME = "toolprm.outcome"
# Seconds that a client has to read what was written for it before its deadline.
_LAST_WORDS = 5.0


def create_app(
    decoder: Decoder, *, model: str = "toolprm", api_key: str | None = None, limits: Limits | None = None
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        decoder: answers the requests.
        model: what clients call it.
        api_key: what requests must bring, but for /health, /ready and /metrics; None for nothing.
        limits: what is allowed; None for the defaults.

    Its `state.service` has the gate and the metrics.
    """
    service = Service(decoder, model, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.gate.stop()
        await asyncio.to_thread(service.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.add_middleware(_Front, service=service, api_key=api_key)
    app.add_exception_handler(Failure, _on_failure)
    app.add_exception_handler(ToolprmError, _on_failure)
    app.add_exception_handler(RecursionError, _on_failure)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_failure)
    created = int(time.time())
    entry = {"id": model, "object": "model", "created": created, "owned_by": "toolprm_decode"}

    @app.post(COMPLETIONS)
    async def complete(request: Request) -> Response:
        return await _complete(service, request)

    @app.get(_MODELS)
    async def list_models() -> Response:
        return _reply({"object": "list", "data": [entry]})

    @app.get(_MODELS + "/{name:path}")
    async def one_model(name: str) -> Response:
        if name != model:
            raise Failure(404, f"there is no model {name!r:.80}", param="model", code="model_not_found")
        return _reply(entry)

    @app.get("/health")
    async def health() -> Response:
        return _reply({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        draining = service.gate.draining
        return _reply({"status": "stopping" if draining else "ready"}, 503 if draining else 200)

    @app.get("/metrics")
    def metrics() -> Response:  # in a thread: it asks the decoder, which may be busy
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


async def _complete(service: Service, request: Request) -> Response:
    try:
        job = Job(service)
    except Failure as failure:
        return _fail(failure, {"connection": "close"})  # what it sends is not read
    handed_on = False
    try:
        body = await _body(request, service.limits.request_bytes, job.left)
        await unless_gone(job.start(body), request.receive, service.gate)
        if job.asked.stream:
            stream = _Stream(service, job)
            handed_on = True
            return stream
        decoded = await unless_gone(job.answer(), request.receive, service.gate)
        answers = decoded.finished[: job.asked.choices]
        return _reply(completion(new_id("chatcmpl-"), service.model, decoded, answers))
    except (ClientLeft, ClientDisconnect):
        service.metrics.cancelled.inc()
        request.scope[_OUTCOME] = CLIENT_LEFT
        return Response(status_code=CLIENT_LEFT)
    finally:
        if not handed_on:
            job.close()


async def _body(request: Request, most: int, seconds: float) -> bytes:
    """Reads the body. Raises Failure where it is too large, or does not come in time."""
    too_large = Failure(413, f"the body is larger than {most} bytes", code="request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0

    async def read() -> bytes:
        nonlocal size
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_large
            parts.append(part)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(read(), seconds)
    except asyncio.TimeoutError:
        raise Failure(408, "the body did not come in time", code="timeout") from None


class _Stream(Response):
    """An answer as server-sent events. Closes its job however it ends."""

    def __init__(self, service: Service, job: Job):
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"  # nginx would hold the events back
        self._service, self._job = service, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        job = self._job
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                left = job.left + _LAST_WORDS
                await unless_gone(asyncio.wait_for(self._write(send), left), receive, self._service.gate)
                last = b""
            except (ClientLeft, asyncio.TimeoutError) as error:
                if isinstance(error, ToolprmError):  # the decoder's DeadlineExceeded is a TimeoutError too
                    raise
                self._service.metrics.cancelled.inc()
                scope[_OUTCOME] = CLIENT_LEFT
                return
        except Exception as error:
            failure = failure_of(error)
            if failure.status == 500:
                log.exception("a stream failed")
            scope[_OUTCOME] = failure.status
            last = event(failure.body)
        finally:
            job.close()
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _write(self, send: Send) -> None:
        job = self._job
        grammar = job.grammar
        assert grammar.format is not None
        model, usage = self._service.model, job.asked.include_usage
        chunks = Chunks(new_id("chatcmpl-"), model, grammar.format, grammar.tools, usage)

        async def write(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        await write(chunks.begin())
        began = False
        while (steps := await job.next_steps()) is not None:
            if not began:
                self._service.metrics.began(time.monotonic() - job.began)
                began = True
            for data in chunks.steps(steps):
                await write(data)
        decoded = await job.answer()
        for data in chunks.end(decoded, decoded.finished[: job.asked.choices]):
            await write(data)


class _Front:
    """Asks for the key, gives each request an id, and counts how it ended."""

    def __init__(self, app: ASGIApp, service: Service, api_key: str | None):
        self._app, self._service = app, service
        self._key = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or path in _OPEN:
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 500
        id = f"req_{secrets.token_hex(12)}".encode()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id)]
            await send(message)

        try:
            if self._knows(scope):
                await self._app(scope, receive, send_with_id)
            else:
                message = "the API key is missing or wrong: send it as Authorization: Bearer KEY"
                failure = Failure(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
                await _fail(failure)(scope, receive, send_with_id)
        finally:
            known = path if path in (COMPLETIONS, _MODELS) else "other"
            self._service.metrics.ended(known, scope.get(_OUTCOME, status), time.monotonic() - began)

    def _knows(self, scope: Scope) -> bool:
        if self._key is None:
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._key)


def _reply(body: Any, status: int = 200) -> Response:
    return Response(to_json(body), status, media_type="application/json")


def _fail(failure: Failure, headers: dict[str, str] | None = None) -> Response:
    response = _reply(failure.body, failure.status)
    response.headers.update({**failure.headers, **(headers or {})})
    return response


async def _on_failure(request: Request, error: Exception) -> Response:
    return _fail(failure_of(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {404: f"there is no {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
    return _fail(Failure(error.status_code, message.get(error.status_code, str(error.detail)), headers=error.headers))
