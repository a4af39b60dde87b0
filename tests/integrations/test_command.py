"""`toolprm serve`: what it refuses, and a server from its start to its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from toolprm_decode.cli import main
from toolprm_decode.demo import REQUEST, TOOLS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("own_logging")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr."""
    code = main(["serve", *arguments])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.startswith("toolprm: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "/nowhere"], "/nowhere"),
        (["--prm", "/nowhere"], "--prm goes with --model"),
        (["--port", "99999"], "--port must be between 0 and 65535"),
        (["--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid"),
        (["--api-key", ""], "API key"),
        (["--api-key", "a\nb"], "API key"),
        (["--timeout", "nan"], "--timeout"),
        (["--max-running", "0"], "--max-running must be 1 or more"),
        (["--kv-memory", "much"], "--kv-memory"),
        (["--kv-memory", "1"], "kv_memory"),
        (["--search", "{"], "--search"),
        (["--search", "[1]"], "--search"),
        (["--search", '{"beam": 1}'], "beam"),
        (["--search", '{"beams": 0}'], "beams"),
        (["--format", "xml"], "xml"),
        (["now"], "now"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert words in refusal(capsys, *([] if "--port" in arguments else ["--port", "0"]), *arguments)


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}: Address already in use" in refusal(capsys, "--port", str(port))


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_missing_packages_are_named_with_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    err = refusal(capsys, "--port", "0")
    assert package in err and "pip install 'toolprm_decode[serve]'" in err


def test_the_command_line_needs_none_of_the_servers_packages() -> None:
    packages = ("fastapi", "uvicorn", "prometheus_client")
    code = f"import sys, toolprm_decode.cli as c; c._parser(); sys.exit(any(n in sys.modules for n in {packages}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_server_from_its_start_to_its_end() -> None:
    """With the models of the package, over the default search."""
    arguments: list[Any] = [sys.executable, "-m", "toolprm_decode", "serve", "--port", "0", "--kv-memory", "64M"]
    environment = {**os.environ, "TOOLPRM_API_KEY": "secret"}
    server = subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        found = re.fullmatch(r"toolprm: toolprm-demo at (http://127\.0\.0\.1:\d+/v1)\n", line)
        assert found, line
        with openai.OpenAI(base_url=found[1], api_key="secret", max_retries=0) as client:
            (model,) = client.models.list()
            tools: list[Any] = TOOLS
            got = client.chat.completions.create(
                model=model.id, messages=[{"role": "user", "content": REQUEST}], tools=tools
            )
            (call,) = got.choices[0].message.tool_calls or ()
            assert call.type == "function" and call.function.name == "find_flight"
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="guess").models.list()
        server.send_signal(signal.SIGTERM)
        _, rest = server.communicate(timeout=60)
        assert (server.returncode, rest) == (0, "")
    finally:
        server.kill()
        server.communicate()
