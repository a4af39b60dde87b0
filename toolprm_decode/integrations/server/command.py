"""The command `toolprm serve`."""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolprm_decode.errors import RequestError
from toolprm_decode.search import Search

if TYPE_CHECKING:
    from toolprm_decode.decoding import Decoder
    from toolprm_decode.integrations.server.gate import Limits

API_KEY = "TOOLPRM_API_KEY"


def add_parser(commands: Any) -> None:
    """Adds the command to the subparsers of the command line."""
    parser = commands.add_parser(
        "serve",
        help="answer OpenAI's chat completions over HTTP",
        description="An OpenAI-compatible server. Without --model it serves the small models of the package.",
    )
    parser.add_argument("--model", metavar="PATH", help="policy: a transformers folder or hub id")
    parser.add_argument("--prm", metavar="PATH", help="reward model: a folder or hub id (default: log-probability)")
    parser.add_argument("--name", help="what clients call the model (default: the last part of its path)")
    parser.add_argument("--format", default="auto", help="how the policy writes calls (default: by its chat template)")
    parser.add_argument(
        "--search", metavar="JSON", help='search of requests that say nothing else: \'{"beams": 2, "width": 8}\''
    )
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine only")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default 8000)")
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"ask for this key (default: ${API_KEY}, which others cannot see)"
    )
    # The defaults are those of Limits, which is not imported before it is needed.
    limits: list[tuple[str, type, str]] = [
        ("--max-running", int, "requests decoded at the same time (default 64)"),
        ("--max-queue", int, "requests that wait; more are refused with 429 (default 256)"),
        ("--max-request-bytes", int, "of a body; more is refused with 413 (default 4194304)"),
        ("--max-candidates", int, "beams times width of a request (default 256)"),
        ("--timeout", float, "seconds a request may take, its wait included (default 120)"),
        ("--drain", float, "seconds for requests in flight once told to stop (default 30)"),
    ]
    for name, kind, text in limits:
        parser.add_argument(name, type=kind, default=argparse.SUPPRESS, metavar="N", help=text)
    parser.add_argument(
        "--kv-memory", metavar="BYTES", help="for keys and values, such as 8G (default: half of what is free)"
    )
    parser.add_argument(
        "--lenient",
        action="store_true",
        help="leave out what the tools' schemas ask and no grammar can enforce; answers say so in usage.toolprm",
    )
    parser.add_argument("--access-log", action="store_true", help="a line on stderr for each request")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Serves until SIGINT or SIGTERM, then answers what is in flight. Raises ToolprmError."""
    limits = _limits(options)
    key = options.api_key if options.api_key is not None else os.environ.get(API_KEY)
    if key is not None and (not key or not key.isascii() or not key.isprintable()):
        raise RequestError("the API key must be printable ASCII, and not empty")
    memory = None if options.kv_memory is None else _bytes(options.kv_memory)
    listener = _listen(options.host, options.port)  # before the models, which take long to load
    with listener:
        decoder, name = _decoder(options, memory)
        from toolprm_decode.integrations.server.run import serve

        serve(
            decoder,
            listener,
            model=options.name or name,
            api_key=key,
            limits=limits,
            access_log=options.access_log,
            ready=_say,
        )


def _say(url: str, model: str) -> None:
    print(f"toolprm: {model} at {url}", file=sys.stderr, flush=True)


def _limits(options: argparse.Namespace) -> Limits:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise RequestError(f"the server needs more packages ({error}): pip install 'toolprm_decode[serve]'") from error
    from toolprm_decode.integrations.server.gate import Limits

    names = {
        "max_running": "running",
        "max_queue": "queue",
        "max_request_bytes": "request_bytes",
        "max_candidates": "candidates",
        "timeout": "timeout",
        "drain": "drain",
    }
    given = {field: getattr(options, name) for name, field in names.items() if hasattr(options, name)}
    for name, field in names.items():
        least = 0 if field in ("queue", "drain") else 1
        if field in given and not least <= given[field] < 1e9:  # NaN is not either
            raise RequestError(f"--{name.replace('_', '-')} must be {least} or more, not {given[field]}")
    return Limits(**given)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise RequestError(f"--kv-memory must be a number of bytes such as 8G, not {text!r:.60}")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; it listens when the server begins."""
    if not 0 <= port < 1 << 16:
        raise RequestError(f"--port must be between 0 and {(1 << 16) - 1}, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"cannot listen at {host} port {port}: {reason}") from error
    return listener


def _decoder(options: argparse.Namespace, memory: int | None) -> tuple[Decoder, str]:
    """The decoder, and a name for its policy."""
    import json
    from dataclasses import replace

    try:
        given = json.loads(options.search or "{}")
        if not isinstance(given, dict):
            raise TypeError("not a JSON object")
        search = replace(Search(), **given)
    except (TypeError, ValueError) as error:
        raise RequestError(f"--search: {error}") from error
    from toolprm_decode.decoding import Decoder

    strict = not options.lenient
    if options.model is not None:
        decoder = Decoder(
            options.model, options.prm, format=options.format, search=search, kv_memory=memory, strict=strict
        )
        return decoder, Path(options.model).resolve().name
    if options.prm is not None:
        raise RequestError("--prm goes with --model")
    from toolprm_decode.demo import load_demo, one_thread

    one_thread()
    demo = load_demo()
    decoder = Decoder(
        demo.model,
        demo.prm,
        tokenizer=demo.tokenizer,
        format=options.format,
        search=replace(demo.search, **given),
        kv_memory=memory,
        strict=strict,
    )
    return decoder, "toolprm-demo"
