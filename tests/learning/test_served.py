"""Rollouts from a server: what is kept of its answers, and how its failures are borne."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from toolprm_decode import Decoder, Request, cli
from toolprm_decode.errors import DataError, RequestError, ServerError
from toolprm_decode.learning.annotate import annotate
from toolprm_decode.learning.records import read_trajectories
from toolprm_decode.learning.rollouts import Rollout, RolloutSettings, roll_out
from toolprm_decode.learning.served import KEY, ServedPolicy, Server
from toolprm_decode.learning.shards import read_shard
from toolprm_decode.questions.samples import Sample, gold_call

from ..search.models import policy, tokenizer

TOOL = {
    "name": "switch",
    "parameters": {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "room": {"enum": ["hall", "attic"]}},
        "required": ["on"],
    },
}
RIGHT = '[{"name": "switch", "arguments": {"on": true, "room": "hall"}}]'
WRONG = '[{"name": "switch", "arguments": {"on": false}}]'
SETTINGS = RolloutSettings(samples=4, max_tokens=50, temperature=0.7, seed=3, format="json-list", batch_size=4)


def sample(number: int, tools: list[Any] | None = None) -> Sample:
    content = f"Switch number {number} on in the hall"
    gold = [gold_call("switch", {"on": True, "room": "hall"})]
    return Sample(f"q{number}", tools or [TOOL], [{"role": "user", "content": content}], gold)


SAMPLES = [sample(number) for number in range(9)]


def choice(text: str, reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {"text": text, "finish_reason": reason, **more}


class Fake:
    """A server of completions. `answer` makes (status, headers, body) of a request and its number."""

    def __init__(self, answer: Callable[[dict[str, Any], int], tuple[int, dict[str, str], Any]]):
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most = self._inside = 0
        self._guard = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._send(200, {}, {"data": [{"id": "first"}, {"id": "second"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake._guard:
                    number = len(fake.requests)
                    fake.requests.append(body)
                    fake.keys.append(self.headers.get("Authorization"))
                    fake._inside += 1
                    fake.most = max(fake.most, fake._inside)
                try:
                    assert self.path == "/v1/completions"
                    sent = answer(body, number)
                finally:
                    with fake._guard:
                        fake._inside -= 1
                self._send(*sent)

            def _send(self, status: int, headers: dict[str, str], body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Any]) -> Iterator[Fake]:
    fake = Fake(answer)
    try:
        yield fake
    finally:
        fake.close()


def choices(*found: dict[str, Any]) -> Callable[[dict[str, Any], int], Any]:
    return lambda body, number: (200, {}, {"choices": list(found)})


def rolled(fake: Fake, samples: list[Sample] = SAMPLES, settings: RolloutSettings = SETTINGS, **options: Any) -> Any:
    policy = ServedPolicy(Server(fake.url, **{"retries": 2, **options}), tokenizer(), settings.format)
    rollouts = roll_out(samples, policy, settings)
    return rollouts, list(rollouts)


def test_legal_answers_are_kept_and_counted() -> None:
    answers = choices(
        choice(RIGHT, logprobs={"token_logprobs": [-1.0, -0.5]}, token_ids=[5, 6]),
        choice(WRONG),
        choice(RIGHT),
        choice("I switched it on."),
        choice(RIGHT[:-1]),
        choice(RIGHT, "length"),
        choice('[{"name": "switch", "arguments": {"on": "yes"}}]'),
    )
    with serving(answers) as fake:
        rollouts, found = rolled(fake)
    assert [one for one, _ in found] == SAMPLES and not rollouts.skipped
    assert rollouts.dropped == 4 * len(SAMPLES) and rollouts.format == "json-list"
    for _, (right, wrong) in found:
        assert (right.text, right.count, right.logprob, right.tokens) == (RIGHT, 2, -1.5, [5, 6])
        assert (wrong.text, wrong.count, wrong.logprob, wrong.tokens) == (WRONG, 1, None, [])
        assert right.calls == json.loads(RIGHT) and right.finished
        assert "".join(step.text for step in right.steps) == RIGHT
        assert Rollout.from_json(json.loads(json.dumps(wrong.to_json()))) == wrong


def test_a_request_says_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    with serving(choices(choice(RIGHT))) as fake:
        rolled(fake, options={"top_p": 0.9}, constrained=True)
        rolled(fake, SAMPLES[:1], model="second")
    body = next(body for body in fake.requests if "number 3 " in tokenizer().decode(body["prompt"]))
    assert body["model"] == "first" and fake.requests[-1]["model"] == "second"
    assert (body["n"], body["max_tokens"], body["temperature"], body["top_p"]) == (4, 50, 0.7, 0.9)
    assert len({body["seed"] for body in fake.requests[:-1]}) == len(SAMPLES)
    wish = json.loads(body["vllm_xargs"]["toolprm"])
    assert wish["format"] == "json-list" and wish["tools"][0]["function"]["name"] == "switch"
    assert "vllm_xargs" not in fake.requests[-1] and set(fake.keys) == {"Bearer secret"}


def test_the_prompt_is_the_decoder_s() -> None:
    decoder = Decoder(policy(), tokenizer=tokenizer(), format="json-list")
    with serving(choices(choice(RIGHT))) as fake:
        rolled(fake, SAMPLES[:1])
    assert fake.requests[0]["prompt"] == decoder._prepare(Request([TOOL], SAMPLES[0].messages)).prompt


def test_requests_run_beside_each_other_within_bounds() -> None:
    together = threading.Barrier(3)

    def answer(body: dict[str, Any], number: int) -> Any:
        together.wait(20)  # breaks unless three are inside at once
        time.sleep(0.05)
        return choices(choice(RIGHT))(body, number)

    with serving(answer) as fake:
        _, found = rolled(fake, concurrency=3, settings=RolloutSettings(**{**vars(SETTINGS), "batch_size": 9}))
    assert len(found) == 9 and fake.most == 3


@pytest.mark.parametrize(
    "failure", [(429, {"Retry-After": "0"}, {"error": "busy"}), (503, {"Retry-After": "0"}, b"<html>")]
)
def test_what_passes_is_asked_again(failure: tuple[int, dict[str, str], Any]) -> None:
    with serving(lambda body, number: choices(choice(RIGHT))(body, number) if number % 2 else failure) as fake:
        rollouts, found = rolled(fake, SAMPLES[:1])
        assert len(found) == 1 and len(fake.requests) == 2 and not rollouts.skipped


def test_a_server_that_hangs_or_breaks_off_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("toolprm_decode.learning.served.time.sleep", waits.append)
    hung = threading.Event()

    def answer(body: dict[str, Any], number: int) -> Any:
        if number == 0:
            hung.wait(20)
        if number == 1:
            return 200, {"Content-Length": "9999"}, b'{"choices": ['
        return choices(choice(RIGHT))(body, number)

    with serving(answer) as fake:
        try:
            _, found = rolled(fake, SAMPLES[:1], timeout=0.5)
        finally:
            hung.set()
    assert len(found) == 1 and waits == [1.0, 2.0]


def test_a_server_that_stays_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("toolprm_decode.learning.served.time.sleep", waits.append)
    with serving(lambda body, number: (500, {}, {"error": {"message": "out of\nmemory"}})) as fake:
        with pytest.raises(
            ServerError, match=r"status 500: out of memory, after 3 tries: the same command goes on later"
        ):
            rolled(fake, SAMPLES[:1])
        assert len(fake.requests) == 3
    with pytest.raises(ServerError, match="after 3 tries"):
        ServedPolicy(Server(fake.url, retries=2), tokenizer())


@pytest.mark.parametrize(("status", "kind"), [(401, ServerError), (404, ServerError)])
def test_what_no_retry_mends_is_an_error_at_once(status: int, kind: type[Exception]) -> None:
    with serving(lambda body, number: (status, {}, {"error": {"message": "no"}})) as fake:
        with pytest.raises(kind, match=f"status {status}: no"):
            rolled(fake, SAMPLES[:1])
        assert len(fake.requests) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices": 3}', b'{"choices": [{"message": {}}]}'])
def test_what_is_no_completion_is_an_error(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolprm_decode.learning.served.time.sleep", lambda _: None)
    with serving(lambda *_: (200, {}, body)) as fake, pytest.raises(ServerError):
        rolled(fake, SAMPLES[:1])


def test_queries_that_cannot_be_asked_are_skipped() -> None:
    impossible = {"name": "never", "parameters": {"type": "object", "properties": {"a": False}, "required": ["a"]}}
    samples = [SAMPLES[0], sample(100, [impossible]), SAMPLES[1], SAMPLES[2]]

    def answer(body: dict[str, Any], number: int) -> Any:
        text = tokenizer().decode(body["prompt"])
        if "number 1 " in text:
            return 400, {}, {"object": "error", "message": "the prompt is too long"}
        cut = choices(choice("Sorry."), choice(RIGHT, "length"))
        return (cut if "number 2 " in text else choices(choice(RIGHT)))(body, number)

    with serving(answer) as fake:
        rollouts, found = rolled(fake, samples)
    assert [one.id for one, _ in found] == ["q0"]
    skipped = dict(rollouts.skipped)
    assert "never" in skipped["q100"] and "the prompt is too long" in skipped["q1"]
    assert skipped["q2"] == "no answer of the server can be used: 1 not legal, 1 cut off at max_tokens"
    assert rollouts.dropped == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"url": "localhost:8000"}, "http://"),
        ({"concurrency": 0}, "concurrency"),
        ({"retries": -1}, "retries"),
        ({"timeout": 0}, "timeout"),
        ({"options": {"n": 3}}, "options"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Server(**{"url": "http://127.0.0.1/v1", **wrong})


def test_a_server_draws_samples_only() -> None:
    with pytest.raises(RequestError, match="a server draws samples"):
        RolloutSettings(strategy="search", server=Server("http://127.0.0.1/v1"))


# ---------------------------------------------------------------------------------------------------------------------
# In the pipeline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy's folder without weights."""
    tokenizer().save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def made(fake: Fake, folder: Path, out: Path, **options: Any) -> Any:
    settings = RolloutSettings(**{**vars(SETTINGS), "server": Server(fake.url, retries=0, **options)})
    return annotate(SAMPLES, folder, out, settings=settings, masked_copies=0, irrelevance=0, shard_size=2)


def test_annotate_labels_what_a_server_writes(folder: Path, tmp_path: Path) -> None:
    with serving(choices(choice(RIGHT), choice(RIGHT), choice(WRONG), choice("no"))) as fake:
        done = made(fake, folder, tmp_path / "out")
    assert done.queries == 9 and done.dropped == 9 == done.to_json()["dropped"]
    assert done.trajectories == {"+": 9, "-": 9}
    rows = list(read_trajectories(tmp_path / "out", "train"))
    assert rows and all(row["logprob"] is None for row in rows)
    assert "9 answers could not be used" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_that_broke_off_goes_on_and_asks_only_what_is_missing(folder: Path, tmp_path: Path) -> None:
    good = choices(choice(RIGHT), choice(WRONG))
    broken = serving(lambda body, number: good(body, number) if number < 5 else (500, {}, {}))
    with broken as fake, pytest.raises(ServerError):
        made(fake, folder, tmp_path / "out")
    with serving(good) as fake:
        assert made(fake, folder, tmp_path / "out").queries == 9
        assert len(fake.requests) == 5  # two shards of two were there
        made(fake, folder, tmp_path / "whole")
        with pytest.raises(DataError, match="server"):
            made(fake, folder, tmp_path / "out", constrained=True)
    for path in sorted((tmp_path / "whole" / "rollouts").glob("shard-*")):
        assert path.read_bytes() == (tmp_path / "out" / "rollouts" / path.name).read_bytes()
        assert all(one.text in (RIGHT, WRONG) for _, found in read_shard(path) for one in found)


def test_the_command_rolls_out_on_a_server(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "questions.jsonl"
    rows = [{"tools": [TOOL], "question": f"Light {i} on", "gold": json.loads(RIGHT)} for i in range(3)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["annotate", str(source), "--policy", str(folder), "--out", str(tmp_path / "out"), "--format", "json-list"]
    words += ["--masked-copies", "0", "--irrelevance", "0", "--samples", "2"]
    with serving(choices(choice(RIGHT), choice("no"))) as fake:
        more = ["--server", fake.url, "--server-model", "mine", "--server-options", '{"top_k": 5}', "--constrained"]
        assert cli.main([*words, *more]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["dropped"] == 3 and "3 answers of the server were not legal" in said.err
    assert all(body["model"] == "mine" and body["top_k"] == 5 and body["vllm_xargs"] for body in fake.requests)
    for wrong in (["--constrained"], ["--server", "localhost"], ["--server", "http://x/v1", "--server-options", "{"]):
        assert cli.main([*words, *wrong]) == 2
