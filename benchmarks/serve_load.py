"""Many clients at one server, some of which leave: is an answer lost or another's, does memory stay, does it end well?

    python -m benchmarks.serve_load [--clients 200] [--seconds 60] [--json FILE]

Starts `toolprm serve` with small random models on a free port of this machine. Each answer, whole or streamed, is held
to that of decode() with the same tools, prompt, seed and search, which runs beforehand in this process. Fails where
one is lost, wrong or another's, where memory grows, or where requests in flight at the end are not answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

from tests.search.models import SWAP, SWITCH, policy, reward, tokenizer
from toolprm_decode import Decoder, Search
from toolprm_decode.files import write_json
from toolprm_decode.machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
RUNNING, QUEUE = 32, 100
# The random reward model cannot tell tools apart: with the policy's word no rank hangs on how floats round.
SEARCHES: list[dict[str, Any]] = [
    {"strategy": "greedy", "max_tokens": 40},
    {"beams": 1, "width": 2, "temperature": 1.0, "max_tokens": 30, "policy_weight": 0.3},
    {"beams": 2, "width": 4, "temperature": 1.2, "max_tokens": 60, "policy_weight": 0.3},
    {"beams": 4, "width": 4, "temperature": 1.0, "max_tokens": 40, "aggregate": "min", "policy_weight": 0.3},
    {"strategy": "sample", "width": 8, "temperature": 1.5, "max_tokens": 60, "policy_weight": 0.3},
]


@dataclass
class Question:
    """A request, its tools named for it alone, and the calls that decode() writes."""

    body: dict[str, Any]
    names: set[str]
    calls: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Tally:
    """What the clients saw."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Left(Exception):
    """This client has had enough."""


def make_questions(count: int, seed: int) -> list[Question]:
    draw = random.Random(seed)
    questions = []
    for index in range(count):
        tools = [
            {**tool, "name": f"{tool['name']}_{index}"} for tool in draw.choice([[SWITCH, SWAP], [SWITCH], [SWAP]])
        ]
        prompt = f"Light in room {index}" + " and the hall" * draw.choice([0, 5, 60, 300])
        body = {
            "model": "policy",
            "messages": [{"role": "user", "content": prompt}],
            "tools": [{"type": "function", "function": tool} for tool in tools],
            "tool_choice": draw.choice(["auto", "required"]),
            "stream": index % 2 == 1,
            "seed": draw.randrange(1000),
            "search": draw.choice(SEARCHES),
        }
        questions.append(Question(body, {tool["name"] for tool in tools}))
    return questions


def answer_alone(questions: list[Question]) -> None:
    decoder = Decoder(policy(), reward(), tokenizer=tokenizer(), kv_memory=64 << 20)
    for question in questions:
        body = question.body
        search = Search(**body["search"], seed=body["seed"], allow_no_call=body["tool_choice"] == "auto")
        decoded = decoder.decode(body["tools"], body["messages"], search)
        question.calls = [(c["name"], json.dumps(c["arguments"], ensure_ascii=False)) for c in decoded.calls]


# ---------------------------------------------------------------------------------------------------------------------
# Clients


async def ask(client: httpx.AsyncClient, url: str, question: Question, patience: float) -> list[tuple[str, str]]:
    """The calls that the server answers with. patience: pieces to read before the client leaves, if it does.

    Raises Left, and HTTPStatusError for another status than 200.
    """
    if not question.body["stream"]:
        response = await client.post(url, json=question.body)
        response.raise_for_status()
        message = response.json()["choices"][0]["message"]
        calls = message.get("tool_calls") or ()
        return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    found: list[list[str]] = []
    async with client.stream("POST", url, json=question.body) as response:
        response.raise_for_status()
        seen = 0
        async for line in response.aiter_lines():
            if not line:
                continue
            seen += 1
            if seen > patience:
                raise Left
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                return [(name, arguments) for name, arguments in found]
            event = json.loads(data)
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            for piece in event["choices"][0]["delta"].get("tool_calls", ()):
                if "id" in piece:
                    found.append([piece["function"]["name"], ""])
                found[piece["index"]][1] += piece["function"]["arguments"]
    raise RuntimeError("the stream ended before [DONE]")


def judge(tally: Tally, question: Question, calls: list[tuple[str, str]], seconds: float) -> None:
    if {name for name, _ in calls} - question.names:
        tally.outcomes["another's answer"] += 1
        tally.faults.append(f"asked {question.names}, got {calls}")
    elif calls != question.calls:
        tally.outcomes["wrong"] += 1
        tally.faults.append(f"expected {question.calls}, got {calls} for {question.body['search']}")
    else:
        tally.outcomes["right"] += 1
        tally.seconds.append(seconds)


async def one_request(
    client: httpx.AsyncClient, url: str, question: Question, draw: random.Random, tally: Tally
) -> None:
    leaves = draw.random() < 0.1
    patience = draw.randrange(6) if leaves and question.body["stream"] else float("inf")
    began = time.perf_counter()
    try:
        asked = ask(client, url, question, patience)
        if leaves and patience == float("inf"):
            calls = await asyncio.wait_for(asked, draw.uniform(0.0, 3.0))
        else:
            calls = await asked
        judge(tally, question, calls, time.perf_counter() - began)
    except (Left, TimeoutError, asyncio.TimeoutError):
        tally.outcomes["left"] += 1
    except httpx.HTTPStatusError as error:
        tally.outcomes[f"status {error.response.status_code}"] += 1
        if error.response.status_code != 429 or not error.response.headers.get("retry-after"):
            tally.faults.append(f"status {error.response.status_code}")
        await asyncio.sleep(draw.uniform(0.5, 1.5))  # sooner than it asks for: the queue is to be full
    except (httpx.HTTPError, RuntimeError, ValueError) as error:
        tally.outcomes["lost"] += 1
        tally.faults.append(repr(error))


async def press(url: str, questions: list[Question], clients: int, seconds: float, tally: Tally) -> None:
    end = time.monotonic() + seconds

    async def one_client(index: int, client: httpx.AsyncClient) -> None:
        draw = random.Random(index)
        while time.monotonic() < end:
            await one_request(client, url, draw.choice(questions), draw, tally)

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(limits=limits, timeout=None) as client:
        await asyncio.gather(*(one_client(index, client) for index in range(clients)))


async def end_in_flight(url: str, questions: list[Question], server: subprocess.Popen[str], tally: Tally) -> None:
    """Tells the server to stop while it has requests, all of which it must answer."""
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=None) as client:
        tasks = [asyncio.create_task(ask(client, url, question, float("inf"))) for question in questions]
        while await metric(client, url, "toolprm_requests_in_flight") < len(tasks) / 2:
            await asyncio.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        for question, result in zip(questions, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
            if isinstance(result, httpx.ConnectError):
                tally.outcomes["came too late"] += 1
            elif isinstance(result, BaseException):
                tally.outcomes["lost"] += 1
                tally.faults.append(repr(result))
            else:
                judge(tally, question, result, 0.0)


async def metric(client: httpx.AsyncClient, url: str, name: str) -> float:
    text = (await client.get(url.replace("/v1/chat/completions", "/metrics"))).text
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)


async def idle_metrics(url: str) -> dict[str, float]:
    """Gauges once nobody asks any more, and totals."""
    names = [f"toolprm_{name}" for name in ("requests_in_flight", "queue_length", "kv_blocks_policy", "kv_blocks_prm")]
    async with httpx.AsyncClient(timeout=None) as client:
        for _ in range(1000):
            gauges = {name: await metric(client, url, name) for name in names}
            if not any(gauges.values()):
                break
            await asyncio.sleep(0.02)
        return gauges | {
            "toolprm_requests_cancelled_total": await metric(client, url, "toolprm_requests_cancelled_total")
        }


# ---------------------------------------------------------------------------------------------------------------------
# The server


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    for name, model in (("policy", policy()), ("prm", reward())):
        model.save_pretrained(folder / name)
    tokenizer().save_pretrained(folder / "policy")
    options = ["--model", folder / "policy", "--prm", folder / "prm", "--port", "0", "--kv-memory", "64M"]
    options += ["--max-running", RUNNING, "--max-queue", QUEUE, "--drain", 60]
    command = [sys.executable, "-m", "toolprm_decode", "serve", *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    line = server.stderr.readline()
    if " at http" not in line:
        sys.exit(f"the server did not start: {line}{server.stderr.read()}")
    return server, f"{line.split()[-1]}/chat/completions"


async def watch(server: subprocess.Popen[str], samples: list[tuple[float, float]]) -> None:
    process, began = psutil.Process(server.pid), time.monotonic()
    with suppress(psutil.Error):
        while True:
            samples.append((time.monotonic() - began, process.memory_info().rss / 2**20))
            await asyncio.sleep(0.5)


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    questions = make_questions(options.questions, options.seed)
    answer_alone(questions)
    server, url = start(folder)
    try:
        tally, ending, samples = Tally(), Tally(), list[tuple[float, float]]()
        watcher = asyncio.create_task(watch(server, samples))
        began = time.monotonic()
        await press(url, questions, options.clients, options.seconds, tally)
        seconds = time.monotonic() - began
        gauges = await idle_metrics(url)
        watcher.cancel()
        await end_in_flight(url, questions[:60], server, ending)
        _, said = await asyncio.to_thread(server.communicate, timeout=120)
    finally:
        server.kill()
    settled = max(rss for at, rss in samples if at <= seconds / 2)
    ranked = sorted(tally.seconds)
    return {
        "clients": options.clients,
        "seconds": round(seconds, 1),
        "outcomes": dict(tally.outcomes),
        "answers_per_second": round(tally.outcomes["right"] / seconds, 2),
        "latency_seconds": {
            f"p{percent}": round(ranked[min(len(ranked) - 1, len(ranked) * percent // 100)], 2)
            for percent in (50, 95, 99)
        },
        "rss_mib": {
            "start": round(samples[0][1]),
            "most_in_first_half": round(settled),
            "most_in_second_half": round(max(rss for _, rss in samples[len(samples) // 2 :])),
            "every_tenth_sample": [round(rss) for _, rss in samples[::10]],
        },
        "when_idle": gauges,
        "ending": {"outcomes": dict(ending.outcomes), "exit_code": server.returncode, "stderr": said[-2000:]},
        "faults": (tally.faults + ending.faults)[:20],
    }


def verdict(record: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    outcomes, ending, rss = Counter(record["outcomes"]), record["ending"], record["rss_mib"]
    wrong = [f"{outcomes[name]} {name}" for name in ("another's answer", "wrong", "lost") if outcomes[name]]
    statuses = [name for name in outcomes if name.startswith("status ") and name != "status 429"]
    checks = {
        "some clients were refused": outcomes["status 429"] > 0,
        "some clients left": record["when_idle"]["toolprm_requests_cancelled_total"] > 0,
        "nothing is held once idle": not any(v for k, v in record["when_idle"].items() if not k.endswith("_total")),
        "memory stays": rss["most_in_second_half"] - rss["most_in_first_half"] < 48,
        "the end answers all in flight": set(ending["outcomes"]) <= {"right", "came too late"},
        "the end is clean": ending["exit_code"] == 0 and not ending["stderr"],
    }
    return wrong + statuses + [f"not so: {name}" for name, holds in checks.items() if not holds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--questions", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        record = asyncio.run(run(options, Path(folder)))
    record = {"machine": describe_machine(), **record}
    record["failures"] = verdict(record)
    print(json.dumps({k: v for k, v in record.items() if k != "machine"}, indent=2))
    write_json(options.json, record)
    return 1 if record["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
