"""Labelled data sets: rows of trajectories and steps, in shards that are whole or not there, with a card of counts."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from toolprm_decode.errors import DataError, RequestError
from toolprm_decode.files import write_whole
from toolprm_decode.grammar.call_grammar import Step
from toolprm_decode.questions.samples import Sample
from toolprm_decode.rewards import STEP_KINDS

Row = dict[str, Any]

SPLITS = ("train", "validation", "test")
TABLES = ("trajectories", "steps")
FRACTIONS: Mapping[str, float] = {"train": 0.9, "validation": 0.05, "test": 0.05}
CARD = "README.md"


@dataclass(frozen=True)
class LabelledAnswer:
    """A distinct answer to a query, or the first steps of one.

    Attributes:
        text: what was written.
        steps: its decisions.
        labels: which of them are right, one each.
        count: how many rollouts were this text.
        logprob: natural log-probability under the policy, None where it is not known.
    """

    text: str
    steps: Sequence[Step]
    labels: Sequence[bool]
    count: int = 1
    logprob: float | None = 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def trajectory_rows(sample: Sample, format: str, answers: Iterable[LabelledAnswer]) -> list[Row]:
    """A row for each answer: {"id", "tools", "messages", "gold", "format", "text", "count", "logprob", "label",
    "steps": [{"kind", "text", "path", "label"}]}. Tools, messages and gold are JSON texts, labels "+" or "-"; an answer
    is right where all its steps are.
    """
    return [
        {
            **_asked(sample),
            "gold": _text(sample.gold),
            "format": format,
            "text": answer.text,
            "count": answer.count,
            "logprob": None if answer.logprob is None else float(answer.logprob),
            "label": _sign(all(answer.labels)),
            "steps": [
                {"kind": step.kind, "text": step.text, "path": step.path, "label": _sign(right)}
                for step, right in zip(answer.steps, answer.labels, strict=True)
            ],
        }
        for answer in answers
    ]


def step_rows(sample: Sample, format: str, answers: Iterable[LabelledAnswer]) -> list[Row]:
    """A row for each step in its state, merged over the query's answers: {"id", "tools", "messages", "format",
    "state": text before the step, "kind", "path", "step": its text, "label", "count"}.

    Where the whole answers disagree on a step (see `labels.label_steps`), each label has a row with its count.
    """
    counts: Counter[tuple[str, str, str, str, bool]] = Counter()
    for answer in answers:
        state = ""
        for step, right in zip(answer.steps, answer.labels, strict=True):
            counts[state, step.kind, step.path, step.text, right] += answer.count
            state += step.text
    return [
        {
            **_asked(sample),
            "format": format,
            "state": state,
            "kind": kind,
            "path": path,
            "step": text,
            "label": _sign(right),
            "count": count,
        }
        for (state, kind, path, text, right), count in counts.items()
    ]


def split_of(query: Sample | str, fractions: Mapping[str, float] = FRACTIONS) -> str:
    """The split of a query: by the hash of the question that it was made from, so that copies stay together.

    Args:
        query: a sample, whose meta["origin"] names that question, or an id; what follows a "#" names a copy.
        fractions: {split: part}, adding up to 1.

    Raises:
        RequestError: parts below 0, or that do not add up to 1.
    """
    if not fractions or any(part < 0 for part in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise RequestError(f"the parts of the splits must be 0 or more and add up to 1, but they are {dict(fractions)}")
    origin = query if isinstance(query, str) else str(query.meta.get("origin", query.id))
    digest = hashlib.sha256(origin.partition("#")[0].encode("utf-8", "surrogatepass")).digest()
    point, passed = int.from_bytes(digest[:8], "big") / 2**64, 0.0
    for name, part in fractions.items():
        passed += part
        if point < passed:
            return name
    return next(name for name, part in reversed(list(fractions.items())) if part)


def _asked(sample: Sample) -> Row:
    return {"id": sample.id, "tools": _text(sample.tools), "messages": _text(sample.messages)}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _sign(right: bool) -> str:
    return "+" if right else "-"


# ---------------------------------------------------------------------------------------------------------------------
# Writing


class DatasetWriter:
    """Writes a labelled data set: DIR/trajectories and DIR/steps, a shard of each for so many queries of a split.

    Use it as a context manager: leaving it writes the last shards and the card, unless by an exception. A shard that is
    there already is kept, and must be what would be written: the same run again, after a break, goes on from there.

    Args:
        folder: DIR.
        format: the call format of all answers.
        parquet: Parquet instead of JSON lines.
        shard_size: queries a shard.
        fractions: of the splits, as for `split_of`.
        about: what the card says of the data: sources, seeds, command and the like, as {title: text}.

    Raises:
        DataError: a shard cannot be written, or another one is there.
        RequestError: a size out of range, or Parquet without pyarrow.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        format: str,
        *,
        parquet: bool = False,
        shard_size: int = 1000,
        fractions: Mapping[str, float] = FRACTIONS,
        about: Mapping[str, Any] | None = None,
    ):
        if shard_size < 1:
            raise RequestError(f"shard_size must be 1 or more, not {shard_size}")
        split_of("", fractions)
        if parquet:
            _pyarrow()
        self.folder, self.format, self.shard_size = Path(folder), format, shard_size
        self.suffix = ".parquet" if parquet else ".jsonl"
        self.fractions, self.about = dict(fractions), dict(about or {})
        self._waiting: dict[str, list[tuple[list[Row], list[Row]]]] = {}
        self._written: dict[str, int] = {}
        self._seen: set[str] = set()
        self._sweep()

    def _sweep(self) -> None:
        """Removes what a killed run left half written."""
        try:
            for part in [part for table in TABLES for part in (self.folder / table).glob(".*.part")]:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be written ({error.strerror or error})") from error

    def add(self, sample: Sample, answers: Sequence[LabelledAnswer]) -> None:
        """Adds a query with its distinct answers. Raises RequestError for a query that was added before."""
        if sample.id in self._seen:
            raise RequestError(f"the query {sample.id!r} was added before")
        self._seen.add(sample.id)
        if not answers:
            return
        waiting = self._waiting.setdefault(split_of(sample, self.fractions), [])
        waiting.append((trajectory_rows(sample, self.format, answers), step_rows(sample, self.format, answers)))
        for split, queries in self._waiting.items():
            if len(queries) >= self.shard_size:
                self._write(split)

    def close(self) -> None:
        """Writes what is left, and the card."""
        for split, queries in self._waiting.items():
            if queries:
                self._write(split)
        for table in TABLES:
            own = {self._path(table, split, i) for split, count in self._written.items() for i in range(count)}
            for path in sorted((self.folder / table).glob("*")) if (self.folder / table).is_dir() else []:
                if path not in own and not path.name.startswith("."):
                    raise DataError(f"{path}: this shard is of another run: use another folder, or remove it")
        write_card(self.folder, self.about)

    def _write(self, split: str) -> None:
        queries, self._waiting[split] = self._waiting[split], []
        index = self._written.get(split, 0)
        for number, table in enumerate(TABLES):
            rows = [row for query in queries for row in query[number]]
            path = self._path(table, split, index)
            if path.exists():
                if not _same_rows(read_rows(path), rows):
                    raise DataError(
                        f"{path}: there is another shard of this name already: use another folder, or remove it"
                    )
                continue
            write_whole(path, _parquet(rows, table) if path.suffix == ".parquet" else _json_lines(rows))
        self._written[split] = index + 1

    def _path(self, table: str, split: str, index: int) -> Path:
        return self.folder / table / f"{split}-{index:05d}{self.suffix}"

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()


def _same_rows(found: Iterator[Row], wanted: Sequence[Row]) -> bool:
    return json.dumps(list(found), sort_keys=True) == json.dumps(wanted, sort_keys=True)


def _json_lines(rows: Sequence[Row]) -> bytes:
    # A lone surrogate cannot be written as UTF-8, and stays an escape.
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    return "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace")


def _parquet(rows: Sequence[Row], table: str) -> bytes:
    pyarrow = _pyarrow()
    text = {name: pyarrow.string() for name in ("id", "tools", "messages")}
    step = pyarrow.struct([(name, pyarrow.string()) for name in ("kind", "text", "path", "label")])
    columns: dict[str, dict[str, Any]] = {
        "trajectories": {
            **text,
            **{name: pyarrow.string() for name in ("gold", "format", "text")},
            "count": pyarrow.int64(),
            "logprob": pyarrow.float64(),
            "label": pyarrow.string(),
            "steps": pyarrow.list_(step),
        },
        "steps": {
            **text,
            **{name: pyarrow.string() for name in ("format", "state", "kind", "path", "step", "label")},
            "count": pyarrow.int64(),
        },
    }
    file = io.BytesIO()
    schema = pyarrow.schema(list(columns[table].items()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), file, compression="zstd")
    return file.getvalue()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RequestError(f"Parquet needs pyarrow ({error}): pip install toolprm_decode[train]") from error
    return pyarrow


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_trajectories(folder: str | os.PathLike[str], split: str) -> Iterator[Row]:
    """The rows of a split's trajectories, in order. Raises DataError where there are none, or one is damaged."""
    return _read(Path(folder), "trajectories", split)


def read_steps(folder: str | os.PathLike[str], split: str) -> Iterator[Row]:
    """The rows of a split's steps, in order. Raises DataError where there are none, or one is damaged."""
    return _read(Path(folder), "steps", split)


def locate(folder: str | os.PathLike[str], table: str, split: str, number: int) -> str:
    """File and line of a row by its number in the split, 1 for the first; of Parquet the row."""
    for path in _shards(Path(folder), table).get(split, []):
        line = 0  # of an empty shard
        for line, _ in enumerate(read_rows(path), 1):
            if line == number:
                return f"{path}, {'row' if path.suffix == '.parquet' else 'line'} {line}"
        number -= line
    raise IndexError(f"{folder}: {split} has {number} rows less")


def _read(folder: Path, table: str, split: str) -> Iterator[Row]:
    shards = _shards(folder, table)
    if split not in shards:
        there = f"there are {', '.join(shards)}" if shards else "this is no labelled data set"
        raise DataError(f"{folder}: no {table} of the split {split!r}: {there}")
    return (row for path in shards[split] for row in read_rows(path))


def _shards(folder: Path, table: str) -> dict[str, list[Path]]:
    """The shards of each split, in order."""
    found: dict[str, list[Path]] = {}
    try:
        paths = sorted((folder / table).iterdir()) if (folder / table).is_dir() else []
    except OSError as error:
        raise DataError(f"{folder / table}: cannot be read ({error.strerror or error})") from error
    for path in paths:
        if shard := _SHARD.fullmatch(path.name):
            found.setdefault(shard[1], []).append(path)
    return {split: found[split] for split in sorted(found, key=lambda one: (*SPLITS, one).index(one))}


_SHARD = re.compile(r"([^.].*)-\d{5,}\.(?:jsonl|parquet)")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a shard. Raises DataError, with the line of a row that is damaged."""
    if path.suffix == ".parquet":
        pyarrow = _pyarrow()
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=512):
                    yield from batch.to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({error})") from error
        return
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}, line {number}: malformed or truncated JSON ({error})") from error
                if not isinstance(row, dict):
                    raise DataError(f"{path}, line {number}: a row must be an object")
                yield row
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


# ---------------------------------------------------------------------------------------------------------------------
# The card


def write_card(folder: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> None:
    """Writes DIR/README.md: what `datasets.load_dataset(DIR, "trajectories" or "steps")` needs to find the splits, and
    the counts of right and wrong trajectories and steps, by split and by kind.

    Args:
        folder: DIR, with its shards.
        about: what else to say of the data: {title: text, or a list of texts}.
    """
    folder = Path(folder)
    counts, queries = _counts(folder)
    head = ["---", "configs:"]
    for table in TABLES:
        shards = _shards(folder, table)
        if not shards:
            continue
        head += [f"- config_name: {table}", *(["  default: true"] if table == TABLES[0] else []), "  data_files:"]
        for split, paths in shards.items():
            head += [f"  - split: {split}", f"    path: {table}/{split}-*{paths[0].suffix}"]
    head += ["tags:", "- function-calling", "- process-reward-model", "---"]
    lines = [*head, "", "# Labelled function calls", ""]
    lines += [
        "Answers to requests with tools, and every step of them marked + where it is right and - where it is not: the "
        "function's name (FUNC_NAME), each argument (ARG_VALUE), the arguments (PARAM_FINISH), the call (FUNC_FINISH) "
        "and the list of calls (TOTAL_FINISH), after arXiv 2510.14703.",
        "",
    ]
    for title, text in (about or {}).items():
        said = [str(one) for one in text] if isinstance(text, list | tuple) else [str(text)]
        lines += [f"- **{title}**: {'; '.join(' '.join(one.split()) for one in said)}"]
    lines += ["", "## Counts", ""]
    lines += ["Distinct answers, and steps in distinct states; in brackets with the number of rollouts of each.", ""]
    lines += _table(["level", "split", "queries", "+", "-", "- of all"], _levels(counts, queries))
    lines += ["", "## Steps by kind", ""]
    lines += _table(["kind", "split", "+", "-", "- of all"], _kinds(counts))
    lines += ["", "## Fields", "", "`tools`, `messages` and `gold` are JSON texts.", ""]
    write_whole(folder / CARD, "\n".join(lines).encode("utf-8", "backslashreplace"))


# {(table, split, kind, label): [rows, rollouts]}; the kind of a trajectory is "".
_Counts = dict[tuple[str, str, str, str], list[int]]


def _counts(folder: Path) -> tuple[_Counts, dict[str, int]]:
    counts: _Counts = {}
    queries: dict[str, int] = {}
    for table in TABLES:
        for split, paths in _shards(folder, table).items():
            seen: set[str] = set()
            for path in paths:
                for row in read_rows(path):
                    try:
                        key = (table, split, row.get("kind", ""), row["label"])
                        found = counts.setdefault(key, [0, 0])
                        found[0] += 1
                        found[1] += row["count"]
                        seen.add(row["id"])
                    except (KeyError, TypeError) as error:
                        raise DataError(f"{path}: a row is not of a labelled data set ({error!r})") from error
            queries[split] = max(queries.get(split, 0), len(seen))
    return counts, queries


def _levels(counts: _Counts, queries: Mapping[str, int]) -> Iterator[list[str]]:
    for table, level in (("steps", "step"), ("trajectories", "trajectory")):
        for split, asked in queries.items():
            yield [level, split, f"{asked:,}", *_cells(counts, table, split, None)]


def _kinds(counts: _Counts) -> Iterator[list[str]]:
    there = {(split, kind) for table, split, kind, _ in counts if table == "steps"}
    for kind in STEP_KINDS:
        for split in sorted({split for split, one in there if one == kind}):
            yield [kind, split, *_cells(counts, "steps", split, kind)]


def _cells(counts: _Counts, table: str, split: str, kind: str | None) -> list[str]:
    sums = {"+": [0, 0], "-": [0, 0]}
    for (one, other, its, label), found in counts.items():
        if (one, other) == (table, split) and kind in (None, its):
            sums[label] = [a + b for a, b in zip(sums[label], found, strict=True)]
    cells = [f"{rows:,} ({rollouts:,})" for rows, rollouts in sums.values()]
    wrong, of_all = sums["-"][1], sums["-"][1] + sums["+"][1]
    return [*cells, f"{100 * wrong / of_all:.1f} %" if of_all else ""]


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
