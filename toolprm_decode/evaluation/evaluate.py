"""Runs strategies over a suite of questions; a run that broke off goes on where it stopped."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from toolprm_decode.decoding import Decoder, Request
from toolprm_decode.engine import Engine
from toolprm_decode.errors import DataError, MemoryExceeded, RequestError, ToolprmError
from toolprm_decode.evaluation.scoring import headline, judge
from toolprm_decode.evaluation.statistics import bootstrap, interval, resamples
from toolprm_decode.evaluation.strategies import Strategy, describe
from toolprm_decode.evaluation.suites import Suite
from toolprm_decode.files import fingerprint, write_whole
from toolprm_decode.learning.rollouts import decode_each
from toolprm_decode.questions.samples import Sample, digest
from toolprm_decode.search import Search
from toolprm_decode.tools import read_tools
from toolprm_decode.workers import map_on_ray

_VERSION = 1
MANIFEST = "run.json"
BATCH = 32

# Told of a strategy's name and of questions that it has done since the last call.
Progress = Callable[[str, int], None]


@dataclass
class Models:
    """The models of a run.

    Attributes:
        policy: what Decoder takes as its model. With Ray a path or a hub id.
        rewards: reward models by the names that strategies call them; what Decoder takes as prm.
        format: how the policy writes calls.
    """

    policy: Any
    rewards: Mapping[str, Any] = field(default_factory=dict)
    format: str = "auto"
    _policy: Any = field(default=None, repr=False)
    _decoder: tuple[str | None, Decoder] | None = field(default=None, repr=False)

    def decoder(self, reward: str | None) -> Decoder:
        """A decoder under a reward model, or without one; the one before is dropped, with its memory. It keeps no
        prompts: what was asked before must change nothing, not even last digits."""
        if self._policy is None:
            known = isinstance(self.policy, str | os.PathLike)
            self._policy = Engine.from_pretrained(os.fspath(self.policy)) if known else self.policy
        if self._decoder is None or self._decoder[0] != reward:
            self._decoder = None
            prm = None if reward is None else self.rewards[reward]
            self._decoder = reward, Decoder(self._policy, prm, format=self.format, prefix_memory=0)
        return self._decoder[1]

    @property
    def named(self) -> dict[str, Any]:
        """Policy and reward models as they were given, by their roles."""
        return {"policy": self.policy, **self.rewards}

    def unloaded(self) -> Models:
        """The same without anything loaded. Raises RequestError where a model is no path or hub id."""
        for role, model in self.named.items():
            if not isinstance(model, str | os.PathLike):
                raise RequestError(f"on Ray each worker loads its models: name the {role} by its path")
        return Models(self.policy, dict(self.rewards), self.format)

    def fingerprints(self, roles: Sequence[str]) -> dict[str, str]:
        """What tells these models from others, by role; those that are no path are not compared.

        Raises RequestError for a path that is neither a folder nor the id of a hub.
        """
        found = {}
        for role in roles:
            model = self.named[role]
            if not isinstance(model, str | os.PathLike):
                found[role] = "in memory"
                continue
            if not Path(model).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", os.fspath(model)):
                raise RequestError(f"{model}: there is no such folder ({role})")
            found[role] = fingerprint(model)
        return found


@dataclass(frozen=True)
class Outcome:
    """What a strategy did on each question of a suite, with each seed.

    Attributes:
        seeds: of the search.
        rows: by seed and question, plain dicts: "id", "right", "names" and "parameters" (counts, see scoring.Verdict),
            "calls", "score", "logprob", "policy_tokens" and "prm_tokens" (prompts included), "prompt_tokens" (of both),
            "preemptions" (how often tokens were read again, for want of memory), "any_right" (of all finished answers),
            "closed" (cut by max_tokens), and "refused", the reason where there is no answer (a prompt that is too long,
            say), which counts as wrong.
    """

    suite: Suite
    strategy: Strategy
    seeds: tuple[int, ...]
    rows: list[list[dict[str, Any]]]

    def values(self, name: str) -> np.ndarray:
        """Means over the seeds, float64: [n], or [n, 3] of counts."""
        return np.asarray([[row[name] for row in rows] for rows in self.rows], np.float64).mean(axis=0)

    @cached_property
    def right(self) -> np.ndarray:
        """How often each question was answered right, float64 [n]."""
        return self.values("right")

    @cached_property
    def tokens(self) -> float:
        """Mean forward tokens a question, of policy and reward model."""
        return float((self.values("policy_tokens") + self.values("prm_tokens")).mean())

    @property
    def answer_tokens(self) -> float:
        """The same without prompts, which every strategy reads once."""
        return self.tokens - float(self.values("prompt_tokens").mean())

    def headline(self, weights: np.ndarray | None = None) -> Any:
        """The suite's own figure; weights [draws, n]: one for each draw of a bootstrap."""
        counts = (self.values("names"), self.values("parameters"))
        return headline(self.suite.headline, self.right, *counts, self.suite.groups, weights)

    def part(self, questions: Sequence[int]) -> Outcome:
        """The same of some questions, by their numbers."""
        samples, groups = self.suite.samples, self.suite.groups
        suite = replace(self.suite, samples=[samples[i] for i in questions], groups=[groups[i] for i in questions])
        return replace(self, suite=suite, rows=[[rows[i] for i in questions] for rows in self.rows])

    def summary(self, against: Outcome | None = None) -> dict[str, Any]:
        """Accuracy with its 95 % bootstrap interval over the questions, and mean tokens a question.

        against: the paired difference to it is given too.
        """
        accuracy = bootstrap(self.right)
        own = interval(float(self.headline()), self.headline(resamples(len(self.right))))
        everyone = [row for rows in self.rows for row in rows]
        row: dict[str, Any] = {
            "strategy": self.strategy.name,
            "n": len(self.right),
            "seeds": len(self.rows),
            "refused": sum(row["refused"] is not None for row in self.rows[0]),
            "closed": float(np.mean([row["closed"] for row in everyone])),
            "accuracy": accuracy.mean,
            "low": accuracy.low,
            "high": accuracy.high,
            "headline": own.mean,
            "headline_low": own.low,
            "headline_high": own.high,
            "any_right": float(self.values("any_right").mean()),
            "policy_tokens": float(self.values("policy_tokens").mean()),
            "prm_tokens": float(self.values("prm_tokens").mean()),
            "tokens": self.tokens,
            "answer_tokens": self.answer_tokens,
        }
        if against is not None:
            gain = bootstrap(self.right - against.right)
            row |= {
                "against": against.strategy.name,
                "difference": gain.mean,
                "difference_low": gain.low,
                "difference_high": gain.high,
            }
        return row


def evaluate(
    suite: Suite,
    strategies: Sequence[Strategy],
    models: Models,
    *,
    seeds: Sequence[int] = (0,),
    folder: str | os.PathLike[str] | None = None,
    batch: int = BATCH,
    workers: int = 0,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Runs each strategy over the questions, once with each seed.

    Args:
        seeds: of the search; strategies without chance are run with the first alone.
        folder: answers are written to FOLDER/runs as they come, and those that are there are not asked for again. None
            to keep them in memory alone.
        batch: questions decoded together.
        workers: Ray actors that answer batches, each with its own models; 0 for this process. The answers are the same.
        progress: told of questions that are done.

    Raises:
        RequestError: a number out of range, or Ray is missing. DataError: the folder was begun otherwise.
    """
    for name, value, least in (("batch", batch, 1), ("workers", workers, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RequestError(f"{name} must be a whole number of {least} or more, not {value!r:.60}")
    report = progress or (lambda name, done: None)
    runs = _Runs(suite, strategies, seeds, batch)
    if folder is not None:
        roles = ["policy", *dict.fromkeys(s.reward for s in strategies if s.reward is not None)]
        _claim(Path(folder), suite, models, models.fingerprints(roles), batch)
        for name, done in runs.load(Path(folder) / "runs"):
            report(name, done)
    waiting = list(runs.missing())
    texts = (json.dumps(job) for job in waiting)
    if workers:
        made = map_on_ray(partial(_Worker, models.unloaded(), tuple(strategies), suite.samples), texts, workers)
    else:
        made = map(_Worker(models, tuple(strategies), suite.samples), texts)
    for job, text in zip(waiting, made, strict=True):
        for index, rows in zip(job["strategies"], json.loads(text), strict=True):
            runs.add(index, job["seed"], rows)
            report(strategies[index].name, len(rows))
    return runs.outcomes()


@dataclass
class _Worker:
    """Answers a batch of questions, as the JSON of {"strategies", "seed", "start", "stop"} names it.

    The strategies are those of one search, which differ in what they pick of its answers.
    """

    models: Models
    strategies: Sequence[Strategy]
    samples: Sequence[Sample]

    def __call__(self, text: str) -> str:
        job = json.loads(text)
        strategies = [self.strategies[index] for index in job["strategies"]]
        samples = self.samples[job["start"] : job["stop"]]
        decoder = self.models.decoder(strategies[0].reward)
        requests = [Request(s.tools, s.messages, own_search(strategies[0], job["seed"], s)) for s in samples]
        answers = decode_each(decoder, requests)
        for answer in answers:
            if isinstance(answer, MemoryExceeded):
                raise RequestError(
                    f"a question does not fit into the memory that is free: {answer}; or lower the batch"
                )
        return json.dumps([[_row(one, s, a) for s, a in zip(samples, answers, strict=True)] for one in strategies])


def _row(strategy: Strategy, sample: Sample, decoded: Any) -> dict[str, Any]:
    refused = isinstance(decoded, ToolprmError)
    answer = None if refused else strategy.pick(decoded)
    tools = None if refused else read_tools(sample.tools)
    verdict = judge(sample, [] if answer is None else answer.calls, tools)
    stats = None if refused else decoded.stats
    read_by_prm = stats is not None and stats.prm_tokens + stats.prm_cached_tokens > 0
    return {
        "id": sample.id,
        "right": verdict.right and not refused,
        "names": verdict.names,
        "parameters": verdict.parameters,
        "calls": None if answer is None else answer.calls,
        # Further digits depend on what else ran in the same passes.
        "score": None if answer is None or answer.score is None else round(answer.score, 4),
        "logprob": None if answer is None else round(answer.logprob, 4),
        # Prompts count in full: what a question costs must not depend on what was asked before it.
        "policy_tokens": 0 if stats is None else stats.policy_tokens + stats.cached_tokens,
        "prm_tokens": 0 if stats is None else stats.prm_tokens + stats.prm_cached_tokens,
        "prompt_tokens": 0 if stats is None else stats.prompt_tokens + stats.prm_prompt_tokens * read_by_prm,
        "preemptions": 0 if stats is None else stats.preemptions,
        "any_right": False if refused else any(judge(sample, a.calls, tools).right for a in decoded.finished),
        "closed": answer is not None and answer.closed,
        "refused": " ".join(str(decoded).split()) if refused else None,
    }


def own_search(strategy: Strategy, seed: int, sample: Sample) -> Search:
    """The search of a question, with a seed of its own: with one for all, chance would favour the same draws
    everywhere."""
    own = zlib.crc32(sample.id.encode("utf-8", "surrogatepass"))
    return replace(strategy.search, seed=(seed << 32 | own) % 2**64)


# -------------------------------------------------------------------- what was done already


class _Runs:
    """The answers of all strategies with all seeds, batch by batch."""

    def __init__(self, suite: Suite, strategies: Sequence[Strategy], seeds: Sequence[int], batch: int):
        if not seeds or len({*seeds}) < len(seeds):
            raise RequestError("at least one seed is needed, and none twice")
        if len({strategy.name for strategy in strategies}) < len(strategies):
            raise RequestError("two strategies have the same name")
        self.suite, self.strategies, self.batch = suite, strategies, batch
        self.seeds = [list(seeds[:1] if strategy.chosen else seeds) for strategy in strategies]
        self.rows: dict[tuple[int, int], list[dict[str, Any]]] = {
            (index, seed): [] for index, own in enumerate(self.seeds) for seed in own
        }
        self.folder: Path | None = None

    def load(self, folder: Path) -> Iterator[tuple[str, int]]:
        """Takes what lies in a folder, and writes there from now on; (strategy, questions) that are done."""
        self.folder = folder
        for (index, seed), rows in self.rows.items():
            path = self._path(index, seed)
            head, known = self._head(index, seed), list(_whole_lines(path))
            if known and known[0] != head:
                raise DataError(f"{path}: was begun as {known[0]}, and now it is {head}: report to another folder")
            for found in known[1:]:
                expected = [s.id for s in self.suite.samples[len(rows) : len(rows) + self.batch]]
                if not isinstance(found, list) or [_id(row) for row in found] != expected:
                    break  # not whole, by a fault of the disk: from here on it is done again
                rows += found
            batches = [rows[at : at + self.batch] for at in range(0, len(rows), self.batch)]
            write_whole(path, b"".join(_line(line) for line in [head, *batches]))
            yield self.strategies[index].name, len(rows)

    def missing(self) -> Iterator[dict[str, Any]]:
        """The batches that are to be answered. Strategies that pick from the same answers come together."""
        n = len(self.suite.samples)
        together: dict[Any, list[tuple[int, int]]] = {}
        for index, seed in self.rows:
            strategy = self.strategies[index]
            together.setdefault((strategy.search, strategy.reward, seed), []).append((index, seed))
        # One reward model after the other, since their decoders hold memory.
        order = list(dict.fromkeys(reward for _, reward, _ in together))
        for _, keys in sorted(together.items(), key=lambda item: order.index(item[0][1])):
            seed = keys[0][1]
            for start in range(0, n, self.batch):
                lacking = [index for index, _ in keys if len(self.rows[index, seed]) <= start]
                if lacking:
                    yield {"strategies": lacking, "seed": seed, "start": start, "stop": min(start + self.batch, n)}

    def add(self, index: int, seed: int, rows: list[dict[str, Any]]) -> None:
        self.rows[index, seed] += rows
        if self.folder is not None:
            path = self._path(index, seed)
            try:
                with path.open("ab") as file:
                    file.write(_line(rows))
            except OSError as error:
                raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error

    def outcomes(self) -> list[Outcome]:
        return [
            Outcome(self.suite, strategy, tuple(own), [self.rows[index, seed] for seed in own])
            for index, (strategy, own) in enumerate(zip(self.strategies, self.seeds, strict=True))
        ]

    def _path(self, index: int, seed: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{quote(self.strategies[index].name, safe='')}.{seed}.jsonl"

    def _head(self, index: int, seed: int) -> dict[str, Any]:
        strategy = self.strategies[index]
        return {"strategy": strategy.name, "seed": seed, "settings": describe(strategy)}


_ROW = {
    *("id", "right", "names", "parameters", "calls", "score", "logprob", "policy_tokens", "prm_tokens"),
    *("prompt_tokens", "preemptions", "any_right", "closed", "refused"),
}


def _id(row: Any) -> Any:
    return row.get("id") if isinstance(row, dict) and row.keys() == _ROW else None


def _line(value: Any) -> bytes:
    return (json.dumps(value, separators=(",", ":")) + "\n").encode()


def _whole_lines(path: Path) -> Iterator[Any]:
    """The lines that were written whole: a run that was killed may have left half of the last one."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    for line in lines[:-1]:
        try:
            yield json.loads(line)
        except ValueError:
            return


def _claim(folder: Path, suite: Suite, models: Models, fingerprints: Mapping[str, str], batch: int) -> None:
    """Marks a folder as that of this run, or checks that it is."""
    asked: dict[str, Any] = {
        "version": _VERSION,
        "suite": suite.name,
        "questions": digest(suite.samples),
        "batch": batch,
        "format": models.format,
        "models": dict(fingerprints),
    }
    path = folder / MANIFEST
    if path.exists():
        try:
            known = dict(json.loads(path.read_bytes()))
            known["models"] = dict(known["models"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: not the record of a run ({error})") from error
        for name in asked:
            before, now = known.get(name), asked[name]
            if name == "models":  # others may come, but those that were there must be the same
                before = {role: known["models"].get(role, mark) for role, mark in now.items()}
            if before != now:
                raise DataError(
                    f"{folder} was begun with {name}={before!r}, and now it is {now!r}: go on with the same settings, "
                    "or report to another folder"
                )
        asked["models"] = known["models"] | asked["models"]
    elif _is_used(folder):
        raise DataError(f"{folder} exists and is no report: name another folder, or remove it")
    write_whole(path, (json.dumps(asked, indent=2) + "\n").encode())


def _is_used(folder: Path) -> bool:
    try:
        return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from error
