"""annotate(): questions with known answers in, a labelled data set of a policy's rollouts out."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolprm_decode.decoding import Decoder
from toolprm_decode.errors import DataError, RequestError
from toolprm_decode.files import fingerprint, write_whole
from toolprm_decode.learning import masking
from toolprm_decode.learning.records import TABLES, DatasetWriter, LabelledAnswer
from toolprm_decode.learning.rollouts import Rollout, RolloutSettings
from toolprm_decode.learning.shards import make_shards, read_head, read_shard
from toolprm_decode.questions.labels import get_rule, label_steps
from toolprm_decode.questions.readers import read_samples, without_gold_tool
from toolprm_decode.questions.samples import Sample
from toolprm_decode.tools import read_tools

# Told (phase, queries done, queries in all).
Progress = Callable[[str, int, int], None]


@dataclass
class Annotated:
    """What annotate() made.

    Attributes:
        out: the labelled data set.
        queries: queries with rollouts, copies counted. made: of these, rolled out in this run.
        trajectories, steps: labels, {"+": n, "-": n}: of distinct answers of a query, and of the steps of each.
        policy_tokens: tokens run through the policy, earlier runs included.
        skipped_rows: (place, reason) of the rows of the source that could not be used.
        skipped_queries: (id, reason) of the queries that could not be asked.
        dropped: answers of a server that were not legal, or cut off.
        stopped: the token budget ended the run before the last query.
    """

    out: Path
    queries: int = 0
    made: int = 0
    trajectories: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    policy_tokens: int = 0
    skipped_rows: list[tuple[str, str]] = field(default_factory=list)
    skipped_queries: list[tuple[str, str]] = field(default_factory=list)
    dropped: int = 0
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        """The counts, as plain values."""
        return {
            "out": str(self.out),
            "queries": self.queries,
            "made": self.made,
            "trajectories": {sign: self.trajectories[sign] for sign in "+-"},
            "steps": {sign: self.steps[sign] for sign in "+-"},
            "policy_tokens": self.policy_tokens,
            "skipped_rows": len(self.skipped_rows),
            "skipped_queries": len(self.skipped_queries),
            "dropped": self.dropped,
            "stopped": self.stopped,
        }


def annotate(
    source: Any,
    policy: str | os.PathLike[str] | Decoder,
    out: str | os.PathLike[str],
    *,
    settings: RolloutSettings | None = None,
    shape: str = "auto",
    split: str | None = None,
    masked_copies: int = 3,
    irrelevance: float = 0.1,
    parquet: bool = False,
    shard_size: int = 256,
    limit: int | None = None,
    max_total_tokens: int | None = None,
    on_error: str = "raise",
    workers: int = 0,
    command: str | None = None,
    progress: Progress | None = None,
) -> Annotated:
    """Reads, masks, rolls out, labels and writes: OUT is a labelled data set, OUT/rollouts what it was made from.

    A run that broke off goes on where it stopped when it is started again. Once the rollouts are there, labelling is
    done anew at every run and always gives the same.

    Args:
        source: what `read_samples` takes, several paths or ids of it, or a sequence of samples.
        policy: its folder or hub id (with settings.server, its tokenizer is enough), or a decoder that has it. A
            decoder's weights are not compared with those of an
            earlier run; a folder's are.
        settings: how the policy is asked (arXiv 2510.14703: about ten rollouts a query).
        shape, split, limit, on_error: as for `read_samples`, of each source.
        masked_copies: copies of each question under other names, in the place of the question; 0 leaves it as it is.
        irrelevance: the part of the questions that is asked once more without the tools that answer it.
        parquet: Parquet instead of JSON lines.
        shard_size: queries a shard.
        max_total_tokens: no further shard is begun once the policy has run so many tokens.
        workers: Ray actors; 0 for this process.
        command: for the data set's card.
        progress: told how far it is.

    Raises:
        DataError: the source cannot be used, nothing is left of it, OUT cannot be written or was begun otherwise.
        RequestError: a setting out of range, no model at the policy's path, a package that is missing, or questions
            whose answers are known by no rule that judges steps.
    """
    for name, low, high, value in (("masked_copies", 0, 1000, masked_copies), ("irrelevance", 0, 1, irrelevance)):
        if isinstance(value, bool) or not low <= value <= high:
            raise RequestError(f"{name} must lie between {low} and {high}, not {value!r:.60}")
    settings = settings or RolloutSettings()
    decoder = policy if isinstance(policy, Decoder) else None
    if not isinstance(policy, Decoder):
        settings = replace(settings, policy=os.fspath(policy))
    done, report = Annotated(Path(out)), progress or (lambda phase, done, total: None)
    sources = _several(source)
    names = [_name(one) for one in sources]
    name = ", ".join(names) or "samples"
    questions: list[Sample] = [] if sources else list(source)[:limit]
    for place, one in enumerate(sources):
        read = read_samples(one, shape, on_error=on_error, split=split, limit=limit)
        own = f"{names[place]}/" if len(sources) > 1 else ""  # ids may be the same in two sources
        if names.count(names[place]) > 1:  # and their names
            own = f"{place}/{own}"
        questions += [replace(sample, id=own + sample.id) for sample in read]
        done.skipped_rows += [(f"{row.file}, line {row.line}", row.reason) for row in read.skipped]
    questions = [sample for question in questions for sample in _with_irrelevance(question, irrelevance, settings.seed)]
    if not questions:
        why = f": {done.skipped_rows[0][0]}: {done.skipped_rows[0][1]}" if done.skipped_rows else ""
        raise DataError(f"{name} holds no question that can be used{why}")

    # What follows is said here, and not after all rollouts are made.
    for match in {question.match for question in questions}:
        get_rule(match)
    for id, count in Counter(question.id for question in questions).items():
        if count > 1:
            raise DataError(f"{count} questions of {name} have the id {id!r:.80}")

    total, rolled = len(questions) * max(1, masked_copies), 0

    def queries_done(queries: int) -> None:
        nonlocal rolled
        rolled += queries
        report("rollouts", rolled, total)

    folder = done.out / "rollouts"
    made = make_shards(
        _queries(questions, masked_copies, settings.seed),
        folder,
        settings,
        decoder=decoder,
        shard_size=shard_size,
        max_total_tokens=max_total_tokens,
        workers=workers,
        manifest={
            "source": name,
            "shape": shape,
            "split": split,
            "limit": limit,
            "masked_copies": masked_copies,
            "irrelevance": irrelevance,
            "policy": settings.policy and fingerprint(settings.policy),
            "prm": settings.prm and fingerprint(settings.prm),
        },
        progress=queries_done,
    )
    done.queries, done.made, done.stopped = made.queries, made.made, made.stopped
    done.policy_tokens, done.skipped_queries, done.dropped = made.policy_tokens, made.skipped, made.dropped
    if not made.queries:
        raise DataError(f"no query of {name} could be asked: {made.skipped[0][0]}: {made.skipped[0][1]}")
    skipped = [{"where": where, "reason": reason} for where, reason in [*done.skipped_rows, *made.skipped]]
    write_whole(folder / "skipped.jsonl", "".join(json.dumps(row) + "\n" for row in skipped).encode())

    format = next(found for path in made.paths if (found := read_head(path)["format"]))
    about = _about(name, settings, masked_copies, irrelevance, done, command)
    _clear(done.out, {"shards": len(made.paths), "queries": made.queries, "parquet": parquet})
    with DatasetWriter(done.out, format, parquet=parquet, shard_size=shard_size, about=about) as writer:
        for number, (sample, rollouts) in enumerate((pair for path in made.paths for pair in read_shard(path)), 1):
            answers = label_rollouts(sample, rollouts)
            writer.add(sample, answers)
            done.trajectories.update("+" if all(answer.labels) else "-" for answer in answers)
            done.steps.update("+" if right else "-" for answer in answers for right in answer.labels)
            report("labels", number, made.queries)
    return done


def label_rollouts(sample: Sample, rollouts: Sequence[Rollout]) -> list[LabelledAnswer]:
    """The rollouts of a query with the labels of their steps."""
    tools = read_tools(sample.tools)
    return [
        LabelledAnswer(r.text, r.steps, label_steps(r.steps, r.calls, sample, tools), r.count, r.logprob)
        for r in rollouts
    ]


def _several(source: Any) -> list[Any]:
    """The sources to read: one or several, none for a sequence of samples."""
    if not isinstance(source, Sequence) or isinstance(source, str | bytes):
        return [source]
    if source and all(isinstance(one, str | os.PathLike) for one in source):
        return list(source)
    return [] if all(isinstance(sample, Sample) for sample in source) else [source]


def _name(source: Any) -> str:
    """What a source is called, wherever it lies."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            return path.resolve().name if path.exists() else str(source)
        except OSError:  # too long, or not to be looked at: the reader says so
            return str(source)
    return type(source).__name__


def _with_irrelevance(sample: Sample, part: float, seed: int) -> Iterator[Sample]:
    yield sample
    digest = hashlib.sha256(f"irrelevance:{seed}:{sample.id}".encode("utf-8", "surrogatepass")).digest()
    if int.from_bytes(digest[:8], "big") < part * 2**64 and (without := without_gold_tool(sample)) is not None:
        yield without


def _queries(questions: Sequence[Sample], copies: int, seed: int) -> Iterator[Sample]:
    for question in questions:
        if copies:
            yield from (masked for masked, _ in masking.copies(question, seed, copies))
        else:
            yield question


def _clear(out: Path, labelled: dict[str, Any]) -> None:
    """Removes the shards of an earlier labelling that had other rollouts, or another file format.

    They come from OUT/rollouts, which has all of theirs and more.
    """
    path = out / "rollouts" / "labelled.json"
    try:
        known = json.loads(path.read_bytes()) if path.exists() else None
        for table in TABLES:
            stale = list((out / table).glob(".*.part"))  # of a killed run
            for shard in stale if known in (None, labelled) else [*stale, *(out / table).glob("*-*.*")]:
                shard.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be used ({error})") from error
    if known != labelled:
        write_whole(path, json.dumps(labelled).encode())


def _about(
    name: str, settings: RolloutSettings, copies: int, irrelevance: float, done: Annotated, command: str | None
) -> dict[str, Any]:
    drawn = f"{settings.samples} answers a query"
    if settings.strategy == "search":
        drawn = f"the candidates of a step-beam search, {settings.beams} beams by {settings.samples}"
    about = {
        "source": name,
        "policy": settings.policy or "a decoder in memory",
        **({"reward model of the search": settings.prm} if settings.prm else {}),
        "rollouts": f"{drawn}, temperature {settings.temperature:g}, {done.policy_tokens:,} tokens of the policy",
        "masking": f"{copies} copies of each question, names replaced" if copies else "none",
        "irrelevance": f"{irrelevance:.0%} of the questions once more without the tools that answer them",
        "seed": settings.seed,
        "left out": f"{len(done.skipped_rows)} rows and {len(done.skipped_queries)} queries that could not be used",
    }
    if settings.server is not None:
        about["server"] = f"{settings.server.model or 'its first model'}; {done.dropped:,} answers could not be used"
    if done.stopped:
        about["stopped"] = "the token budget ended the run before the last query"
    return {**about, "command": command} if command else about
