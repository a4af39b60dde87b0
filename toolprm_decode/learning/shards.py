"""Rollouts of a data set as files, a shard each: on this machine or on Ray, and to be gone on with after a break."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from toolprm_decode.decoding import Decoder
from toolprm_decode.errors import DataError, RequestError
from toolprm_decode.files import write_whole
from toolprm_decode.learning.rollouts import Rollout, RolloutSettings, roll_out
from toolprm_decode.learning.served import ServedPolicy
from toolprm_decode.questions.samples import Sample, digest
from toolprm_decode.workers import import_ray, map_on_ray

_VERSION = 1
MANIFEST = "manifest.json"

# Called with the number of queries that are done since the last call.
Progress = Callable[[int], None]


@dataclass
class ShardStats:
    """What lies in a folder of rollouts after a run.

    Attributes:
        paths: the shards, in order.
        queries: queries in them that were answered. made: of these, in this run.
        policy_tokens: tokens run through the policy for all of them.
        skipped: (sample id, reason) of the queries that could not be asked.
        dropped: answers of a server that could not be used.
        stopped: the token budget ended the run before the last query.
    """

    paths: list[Path] = field(default_factory=list)
    queries: int = 0
    made: int = 0
    policy_tokens: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    dropped: int = 0
    stopped: bool = False


def make_shards(
    samples: Iterable[Sample],
    folder: str | os.PathLike[str],
    settings: RolloutSettings,
    *,
    decoder: Decoder | ServedPolicy | None = None,
    shard_size: int = 256,
    max_total_tokens: int | None = None,
    workers: int = 0,
    manifest: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> ShardStats:
    """Rolls out all samples into FOLDER/shard-00000.jsonl and so on; shards that are there already are kept.

    Args:
        decoder: asks the policy; None for the one that the settings name.
        shard_size: queries a shard.
        max_total_tokens: no further shard is begun once the policy has run so many tokens, earlier runs included.
        workers: Ray actors with a decoder each; 0 for this process. The shards are the same, byte for byte.
        manifest: what else the rollouts depend on. A folder that was begun otherwise is refused.
        progress: told of queries that are done.

    Raises:
        DataError: the folder cannot be written, or was made with other settings or from other queries.
        RequestError: a number is out of range, or Ray is missing.
    """
    for name, value, least in (("shard_size", shard_size, 1), ("workers", workers, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RequestError(f"{name} must be a whole number of {least} or more, not {value!r:.60}")
    if max_total_tokens is not None and max_total_tokens < 1:
        raise RequestError(f"max_total_tokens must be 1 or more, not {max_total_tokens!r:.60}")
    if workers and decoder is not None:
        raise RequestError("actors load models of their own: name the policy by its path instead of a decoder")
    if workers:
        import_ray()
    folder = Path(folder)
    asked = {"version": _VERSION, "shard_size": shard_size, **_asked(settings), **(manifest or {})}
    asked = json.loads(json.dumps(asked))
    new = _is_new(folder, asked)
    _sweep(folder)
    stats, report = ShardStats(), progress or (lambda queries: None)

    def spent() -> bool:
        return max_total_tokens is not None and stats.policy_tokens >= max_total_tokens

    missing = _missing(_cut(samples, shard_size), folder, stats, report, spent)
    made = _on_ray(missing, settings, workers, report) if workers else _here(missing, settings, decoder, report)
    for index, text in made:
        if spent():  # made ahead, on Ray: dropped, as if it had never been begun
            stats.stopped = True
            break
        if new:  # not before: a policy that cannot be loaded is no setting to insist on
            write_whole(folder / MANIFEST, (json.dumps(asked, indent=2) + "\n").encode())
            new = False
        path = shard_path(folder, index)
        write_whole(path, text.encode("utf-8", "surrogatepass"))
        stats.made += _count(path, stats)["queries"]
    stats.paths.sort()
    return stats


def shard_path(folder: Path, index: int) -> Path:
    """Where the shard of this number lies."""
    return folder / f"shard-{index:05d}.jsonl"


def read_shard(path: Path) -> Iterator[tuple[Sample, list[Rollout]]]:
    """The samples of a shard with their rollouts. Raises DataError, with file and line, where it is damaged."""
    head, number = read_head(path), 0
    for number, row in _rows(path):
        if number == 1:
            continue
        try:
            pair = Sample.from_json(row["sample"]), [Rollout.from_json(rollout) for rollout in row["rollouts"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}, line {number}: no rollouts ({error!r}): {_REMAKE}") from error
        yield pair
    if number - 1 != head["queries"]:
        raise DataError(f"{path}, line {number}: the end of {head['queries']} queries is missing here: {_REMAKE}")


def read_head(path: Path) -> dict[str, Any]:
    """What the first line of a shard says: samples (their digest), queries, policy_tokens, format, skipped.

    Of a server's rollouts: dropped, too.
    """
    for _, row in _rows(path):
        if isinstance(row, dict) and row.keys() >= _HEAD:
            return row
        break
    raise DataError(f"{path}, line 1: not the head of a shard of rollouts: {_REMAKE}")


_HEAD = {"samples", "queries", "policy_tokens", "format", "skipped"}
_REMAKE = "remove the file, and the same command makes it again"
_Shard = tuple[int, list[Sample]]


def _asked(settings: RolloutSettings) -> dict[str, Any]:
    """The settings that the rollouts depend on: batches change nothing, and paths may be moved."""
    names = ["samples", "temperature", "seed", "format", "max_tokens", "strategy"]
    asked = {name: getattr(settings, name) for name in [*names, *(["beams"] if settings.strategy == "search" else [])]}
    if settings.server is not None:  # which machine it is does not matter
        server = settings.server
        asked["server"] = {"model": server.model, "constrained": server.constrained, "options": dict(server.options)}
    return asked


def _is_new(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Whether no run has begun here yet; one that was begun with other settings is refused."""
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        known = dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: not a manifest of rollouts ({error})") from error
    for name in dict.fromkeys([*asked, *known]):
        if known.get(name) != asked.get(name):
            raise DataError(
                f"{folder} was begun with {name}={known.get(name)!r}, and now it is {asked.get(name)!r}: "
                "go on with the same settings, or write to another folder"
            )
    return False


def _sweep(folder: Path) -> None:
    """Makes the folder, and removes what a killed run left half written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob(".*.part"):
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _cut(samples: Iterable[Sample], size: int) -> Iterator[_Shard]:
    waiting = iter(samples)
    for index in itertools.count():
        if not (shard := list(itertools.islice(waiting, size))):
            return
        yield index, shard


def _missing(
    shards: Iterable[_Shard], folder: Path, stats: ShardStats, report: Progress, spent: Callable[[], bool]
) -> Iterator[_Shard]:
    """The shards that are to be made; those that are there already go into the stats."""
    for index, samples in shards:
        path = shard_path(folder, index)
        if path.exists():
            if _count(path, stats)["samples"] != digest(samples):
                raise DataError(f"{path} was made from other queries than are given now: write to another folder")
            report(len(samples))
        elif spent():
            stats.stopped = True
        else:
            yield index, samples


def _count(path: Path, stats: ShardStats) -> dict[str, Any]:
    """Adds a finished shard to the stats; its head."""
    head = read_head(path)
    stats.paths.append(path)
    stats.queries += head["queries"]
    stats.policy_tokens += head["policy_tokens"]
    stats.skipped += [(name, reason) for name, reason in head["skipped"]]
    stats.dropped += head.get("dropped", 0)
    return head


def _here(
    shards: Iterable[_Shard],
    settings: RolloutSettings,
    decoder: Decoder | ServedPolicy | None,
    report: Progress,
) -> Iterator[tuple[int, str]]:
    for index, samples in shards:
        decoder = decoder or settings.decoder()
        yield index, _shard_text(samples, decoder, settings, report)


def _on_ray(
    shards: Iterable[_Shard], settings: RolloutSettings, workers: int, report: Progress
) -> Iterator[tuple[int, str]]:
    """The same from Ray actors."""
    waiting = list(shards)
    texts = (_line([sample.to_json() for sample in samples]) for _, samples in waiting)
    made = map_on_ray(partial(_Worker, settings), texts, workers)
    for (index, samples), text in zip(waiting, made, strict=True):
        report(len(samples))
        yield index, text


class _Worker:
    """Rolls out one shard after the other with a decoder of its own."""

    def __init__(self, settings: RolloutSettings):
        self.settings = settings
        self.decoder = settings.decoder()

    def __call__(self, text: str) -> str:
        samples = [Sample.from_json(value) for value in json.loads(text)]
        return _shard_text(samples, self.decoder, self.settings, lambda queries: None)


def _shard_text(
    samples: Sequence[Sample], decoder: Decoder | ServedPolicy, settings: RolloutSettings, report: Progress
) -> str:
    """A whole shard: a line that says what it holds, then a line a query."""
    rolled, lines, before = roll_out(samples, decoder, settings), [], 0
    for sample, rollouts in rolled:
        lines.append(_line({"sample": sample.to_json(), "rollouts": [r.to_json() for r in rollouts]}))
        report(1 + len(rolled.skipped) - before)
        before = len(rolled.skipped)
    report(len(rolled.skipped) - before)
    head = {
        "samples": digest(samples),
        "queries": len(lines),
        "policy_tokens": rolled.policy_tokens,
        "format": rolled.format,
        "skipped": rolled.skipped,
        **({"dropped": rolled.dropped} if settings.server else {}),
    }
    return "".join([_line(head), *lines])


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, json.loads(line.decode("utf-8", "surrogatepass"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error}): {_REMAKE}") from error
