"""Readers: samples from the files and data sets that people have, whatever shape their rows are in."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
import referencing

from toolprm_decode.errors import DataError, RequestError, ToolSchemaError
from toolprm_decode.questions.labels import ANY_CALL, gold_calls
from toolprm_decode.questions.samples import GoldCall, Sample, gold_call
from toolprm_decode.tools import Tool, read_tools

log = logging.getLogger(__name__)

SHAPES = ("xlam", "hammer", "bfcl", "seal-tools", "toolalpaca", "openai")
ON_ERROR = ("raise", "skip")

_SEAL_TOOLS = 5  # tools of a question, as the retrieved ones in Hammer's copy of the data
_BFCL_NO_CALL = "irrelevance"
_BFCL_ANY_CALL = "relevance"
_BFCL_LEFT_OUT = ("multi_turn", "relevance", "memory", "web_search", "format_sensitivity")  # without gold calls


@dataclass(frozen=True)
class Skipped:
    """A row that gave no sample.

    Attributes:
        file: its file, or the name of its data set.
        line: where it begins, 1 for the first; of a data set the row.
        reason: what is wrong with it.
    """

    file: str
    line: int
    reason: str


class Samples:
    """The samples of a source, read again each time they are iterated.

    Attributes:
        source: what they are read from.
        shape: the shape of the rows; None before the first row was recognised.
        skipped: rows without a sample, of the iteration that began last.
    """

    def __init__(self, source: Any, shape: str | None, rows: Callable[[Samples], Iterator[Sample]]):
        self.source, self.shape = source, shape
        self.skipped: list[Skipped] = []
        self._rows = rows

    def __iter__(self) -> Iterator[Sample]:
        self.skipped = []
        return self._rows(self)


def read_samples(
    source: Any,
    shape: str = "auto",
    *,
    on_error: str = "raise",
    split: str | None = None,
    limit: int | None = None,
    check_gold: bool = True,
) -> Samples:
    """Reads questions with their gold calls.

    Shapes, of rows as JSON lines, a JSON list or Parquet:
        xlam: {"query", "tools", "answers"}, tools and answers as JSON or as JSON text; no answers: no tool fits. Files
            of one's own may say "question" and "gold" instead, and name a "category", which goes into meta.
        hammer: the same, with chats for queries (API-Bank) or {"tool", "parameters"} for answers (Seal-Tools), or
            whole prompts {"instruction", "input", "output"}.
        bfcl: questions, with a file of the same name under possible_answer/; matched by the leaderboard's rule. Files
            named irrelevance ask for no call, those named relevance for any. A folder gives all its single-turn
            categories but relevance.
        seal-tools: {"id", "query", "calling"}, with tool.jsonl beside it; a question gets the tools of its calls and
            others of the same field, five in all.
        toolalpaca: the evaluation files, each API with its instructions and golden answers.
        openai: chat fine-tuning lines {"messages", "tools"}; asked are the messages before the first turn that calls.

    A question whose gold needs the result of another call (Seal-Tools' "API_call_0", ToolAlpaca's "${...}") cannot be
    answered in one turn: it is skipped and counted, and no error.

    Args:
        source: a file, a folder, the id of a Hugging Face data set, or a loaded `datasets.Dataset`.
        shape: one of SHAPES; "auto" recognises it by the fields of the rows, and logs it.
        on_error: "raise" stops at a row that cannot be used, "skip" counts it in `skipped` and goes on.
        split: of a data set (default: train), or the file of a folder by the end of its name ("dev").
        limit: samples at most.
        check_gold: gold calls that break their tools' schemas are errors.

    Raises:
        DataError: while iterating, with file and line: a row is truncated or malformed, a tool has no name or that of
            another, there is no tool, the gold breaks its schema, two rows have one id. At once: no such source.
        RequestError: an unknown shape, or a package that is missing.
    """
    if shape != "auto" and shape not in SHAPES:
        raise RequestError(f"unknown shape {shape!r:.60}: use auto or one of {', '.join(SHAPES)}")
    if on_error not in ON_ERROR:
        raise RequestError(f"on_error must be raise or skip, not {on_error!r:.60}")
    if limit is not None and limit < 0:
        raise RequestError(f"limit must be 0 or more, not {limit}")
    tables = _tables(source, shape, split)

    def rows(samples: Samples) -> Iterator[Sample]:
        seen: set[str] = set()
        given = 0
        for table in tables:
            reader = _TableReader(table, shape, samples)
            for line, found in reader:
                if limit is not None and given >= limit:
                    return
                try:
                    if isinstance(found, Exception):
                        raise found
                    _check(found, check_gold)
                    if found.id in seen:
                        raise _BadRow(f"two questions have the id {found.id!r}")
                except _OneTurn as reason:
                    samples.skipped.append(Skipped(table.name, line, str(reason)))
                except (_BadRow, ToolSchemaError) as error:
                    if on_error == "raise":
                        raise DataError(f"{table.name}, line {line}: {error}") from error
                    samples.skipped.append(Skipped(table.name, line, str(error)))
                else:
                    seen.add(found.id)
                    given += 1
                    yield found

    return Samples(source, None if shape == "auto" else shape, rows)


def without_gold_tool(sample: Sample) -> Sample | None:
    """The question without the tools that answer it, so that no call does; None where no tool would be left."""
    wanted = {call["name"] for call in sample.gold}
    names = [tool.name for tool in read_tools(sample.tools)]
    kept = [tool for tool, name in zip(sample.tools, names, strict=True) if name not in wanted]
    if not wanted or not kept:
        return None
    meta = {**sample.meta, "origin": sample.meta.get("origin", sample.id)}
    return replace(sample, id=f"{sample.id}#irrelevant", tools=kept, gold=[], meta=meta)


def gold_misfit(sample: Sample, tools: Sequence[Tool] | None = None) -> str | None:
    """Why the gold calls, with the first allowed values, break their tools' schemas; None where they do not.

    The grammar cannot write calls that do.

    tools: the sample's tools, where they are read already.
    """
    if not sample.gold:
        return None
    tools = read_tools(sample.tools) if tools is None else tools
    known = {tool.name: tool for tool in tools}
    for call in gold_calls(sample, tools):
        if call["name"] not in known:
            return f"the gold calls {call['name']!r:.80}, which is none of the tools"
        try:
            validator = _validator(json.dumps(known[call["name"]].parameters))
            error = next(validator.iter_errors(call["arguments"]), None)
        except Exception as fault:  # jsonschema takes schemas on trust: what one that is none leads to may be anything
            reason = f"{type(fault).__name__}: {fault}".partition("\n")[0]
            return f"the gold cannot be checked by the schema of {call['name']!r:.80} ({reason:.160})"
        if error is not None:
            where = "/".join(map(str, error.absolute_path))
            return f"the gold breaks the schema of {call['name']!r:.80} at /{where}: {error.message:.160}"
    return None


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong with rows


class _BadRow(Exception):
    """A row that cannot be used; the reader adds file and line."""


class _OneTurn(Exception):
    """A row that is well, but cannot be answered in one turn."""


def _check(sample: Sample, check_gold: bool) -> None:
    if not any(isinstance(message.get("content"), str) and message["content"].strip() for message in sample.messages):
        raise _BadRow("the query is empty")
    tools = read_tools(sample.tools)
    if not tools:
        raise _BadRow("a query without tools")
    if check_gold and (misfit := gold_misfit(sample, tools)) is not None:
        raise _BadRow(misfit)


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    # With a registry of its own it fetches nothing from the addresses that a schema names.
    return jsonschema.Draft202012Validator(_closed(json.loads(schema), root=True), registry=referencing.Registry())


def _closed(node: Any, *, root: bool = False) -> Any:
    """The schema by the grammar's rule: an object that declares properties takes no others, unless it says so."""
    if not isinstance(node, dict):
        return node
    node = dict(node)
    declares = bool(node.get("properties")) or (root and "properties" in node)
    if declares and not node.keys() & {"additionalProperties", "patternProperties", "unevaluatedProperties"}:
        node["additionalProperties"] = False
    for word in ("properties", "$defs", "definitions"):
        if isinstance(node.get(word), dict):
            node[word] = {name: _closed(member) for name, member in node[word].items()}
    for word in ("items", "additionalProperties"):
        if word in node:
            node[word] = _closed(node[word])
    for word in ("anyOf", "oneOf", "prefixItems"):  # what allOf describes together is closed by none of its parts
        if isinstance(node.get(word), list):
            node[word] = [_closed(member) for member in node[word]]
    return node


# ---------------------------------------------------------------------------------------------------------------------
# Where rows come from


@dataclass(frozen=True)
class _Table:
    """Rows of one file or data set.

    Attributes:
        name: for messages, and with `stem` for the ids of rows that have none.
        rows: gives (line, row or _BadRow) from the start each time.
        path: the file, or None.
    """

    name: str
    stem: str
    rows: Callable[[], Iterator[tuple[int, Any]]]
    path: Path | None = None


def _tables(source: Any, shape: str, split: str | None) -> list[_Table]:
    if not isinstance(source, str | os.PathLike):
        return [_loaded(source, split)]
    path = Path(source)
    try:
        there, is_file = path.exists(), path.is_file()
        inside = [one for one in path.iterdir() if one.is_file()] if path.is_dir() else []
    except OSError as error:
        raise DataError(f"{source!s:.200}: cannot be read ({error.strerror or error})") from error
    if is_file:
        return [_file(path)]
    if not there:
        if isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            return [_loaded(_download(source, split), split, source)]
        raise DataError(f"{source}: there is no such file or folder, and it is no id of a data set (owner/name)")
    files = sorted(one for one in inside if one.suffix in _FORMATS)
    if any(one.name.startswith("BFCL_") for one in files) or shape == "bfcl":
        files = [one for one in files if "_v" in one.name and not _bfcl_left_out(one)]
    files = [one for one in files if one.name != _SEAL_FILE]
    if split is not None:
        files = [one for one in files if one.stem == split or re.search(rf"[-_.]{re.escape(split)}(-\d.*)?$", one.stem)]
    if not files:
        wanted = f" of the split {split!r}" if split else ""
        raise DataError(f"{path}: there is no file with questions{wanted} (.json, .jsonl or .parquet) in this folder")
    return [_file(one) for one in files]


def _file(path: Path) -> _Table:
    read = _FORMATS.get(path.suffix)
    if read is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}: use one of {', '.join(_FORMATS)}")
    return _Table(str(path), path.stem, lambda: read(path), path)


def _open(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # the mark that some editors begin UTF-8 with
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _parse(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """A JSON list, or JSON lines under that name, as BFCL has them."""
    data = _open(path)
    if not data.lstrip().startswith(b"["):
        yield from _lines(data)
        return
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        yield data.count(b"\n", 0, error.start) + 1, _BadRow(f"no UTF-8 text ({error.reason})")
        return
    space = re.compile(r"[\s,]*")
    at, line, counted = text.index("[") + 1, 1, 0
    while True:
        at = space.match(text, at).end()  # type: ignore[union-attr]  # it matches the empty text as well
        line, counted = line + text.count("\n", counted, at), at
        if text.startswith("]", at):
            return
        if at == len(text):
            yield line, _BadRow("the list is truncated")
            return
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            # Where the next item begins cannot be known, so the rest of the list is lost.
            reason = f"{error}" if isinstance(error, ValueError) else "nested too deep"
            yield line, _BadRow(f"malformed or truncated JSON ({reason}); what follows in the list cannot be read")
            return
        yield line, value


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    return _lines(_open(path))


def _lines(data: bytes) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, _parse(line.decode())
        except UnicodeDecodeError as error:
            yield number, _BadRow(f"no UTF-8 text ({error.reason})")
        except ValueError as error:
            yield number, _BadRow(f"malformed or truncated JSON ({error})")


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RequestError(f"Parquet needs pyarrow ({error}): pip install toolprm_decode[train]") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _without_nulls(row)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error


_FORMATS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".json": _read_json,
    ".jsonl": _read_lines,
    ".parquet": _read_parquet,
}


def _download(name: str, split: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise RequestError(f"data sets need datasets ({error}): pip install toolprm_decode[train]") from error
    try:
        return datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # the library raises what its many back ends raise
        raise DataError(f"{name}: the data set cannot be loaded ({error})") from error


def _loaded(source: Any, split: str | None, name: str | None = None) -> _Table:
    if isinstance(source, Mapping):  # a DatasetDict
        wanted = split or "train"
        if wanted not in source:
            raise DataError(f"the data set has no split {wanted!r}: it has {', '.join(map(str, source))}")
        source = source[wanted]
    if not hasattr(source, "__iter__") or isinstance(source, bytes):
        raise RequestError(f"a source is a path, the id of a data set or a datasets.Dataset, not {source!r:.60}")
    name = name or str(getattr(getattr(source, "info", None), "dataset_name", None) or "dataset")
    return _Table(name, name.rpartition("/")[2], lambda: enumerate(map(_without_nulls, source), 1))


# ---------------------------------------------------------------------------------------------------------------------
# Shapes of rows


class _TableReader:
    """Iterates (line, sample or what is wrong) over a table, in the shape of its first row that tells one."""

    def __init__(self, table: _Table, shape: str, samples: Samples):
        self.table, self.samples = table, samples
        self.shape = None if shape == "auto" else shape

    def __iter__(self) -> Iterator[tuple[int, Sample | Exception]]:
        beside: Any = None
        for line, row in self.table.rows():
            if isinstance(row, Exception):
                yield line, row
                continue
            try:
                if not isinstance(row, Mapping):
                    raise _BadRow(f"a row must be an object, but this is {_kind(row)}")
                if self.shape is None:
                    self.shape = self.samples.shape = _recognise(row)
                    log.info("%s: rows of the shape %s", self.table.name, self.shape)
                if beside is None:
                    beside = _BESIDE.get(self.shape, lambda table: {})(self.table)
                found = list(_READERS[self.shape](_Row(row, self.table, line), beside))
            except (_BadRow, _OneTurn, ToolSchemaError) as error:
                yield line, error
                continue
            for one in found:
                yield line, one


def _recognise(row: Mapping[str, Any]) -> str:
    """The shape of a row, by its fields."""
    fields = row.keys()
    if {"question", "function"} <= fields:
        return "bfcl"
    if {"Instructions", "Golden_Answers"} <= fields:
        return "toolalpaca"
    if {"query", "calling"} <= fields:
        return "seal-tools"
    if {"instruction", "output"} <= fields:
        return "hammer"
    if "messages" in fields:
        return "openai"
    if "tools" in fields and fields & {"query", "question"} and fields & {"answers", "gold"}:
        return "hammer" if {"query", "answers"} <= fields and not isinstance(row["tools"], str) else "xlam"
    if {"id", "ground_truth"} <= fields:
        raise _BadRow("these are BFCL's answers: read the file with the questions, one folder up")
    raise _BadRow(f"no known shape has the fields {', '.join(sorted(map(str, fields)))[:200]}")


@dataclass(frozen=True)
class _Row:
    """A row, and where it stands."""

    fields: Mapping[str, Any]
    table: _Table
    line: int

    def get(self, name: str) -> Any:
        """A field. Raises _BadRow where it is missing."""
        if self.fields.get(name) is None:
            raise _BadRow(f"the row has no {name!r}")
        return self.fields[name]

    def json(self, name: str, kind: type) -> Any:
        """A field that is JSON, or JSON text."""
        value = _unpacked(self.get(name), name)
        if not isinstance(value, kind):
            wanted = "a list" if kind is list else "an object"
            raise _BadRow(f"{name!r} must be {wanted}, but it is {_kind(value)}")
        return value

    @property
    def id(self) -> str:
        own = self.fields.get("id")
        if isinstance(own, str) and own:
            return own
        return f"{self.table.stem}-{self.line if own is None else own}"

    def sample(self, tools: Any, messages: Any, gold: list[GoldCall], **more: Any) -> Sample:
        return Sample(more.pop("id", self.id), tools, messages, gold, **more)


def _unpacked(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return _parse(value)
    except ValueError as error:
        raise _BadRow(f"{name!r} is malformed or truncated JSON ({error})") from error


def _without_nulls(value: Any) -> Any:
    """Without the nulls that Arrow puts where a row lacks a field that another has."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list | tuple) else value


def _gold(calls: Any, name: str) -> list[GoldCall]:
    if not isinstance(calls, list):
        raise _BadRow(f"{name!r} must be a list of calls, but it is {_kind(calls)}")
    found = []
    for index, call in enumerate(calls):
        if not isinstance(call, Mapping):
            raise _BadRow(f"call {index} of {name!r} must be an object, but it is {_kind(call)}")
        called = call.get("name", call.get("tool", call.get("api")))
        arguments = call.get("arguments", call.get("parameters"))
        if not isinstance(called, str) or not called:
            raise _BadRow(f"call {index} of {name!r} has no name")
        arguments = _unpacked({} if arguments is None else arguments, f"arguments of call {index}")
        if not isinstance(arguments, Mapping):
            raise _BadRow(f"the arguments of call {index} of {name!r} must be an object, not {_kind(arguments)}")
        found.append(gold_call(called, arguments))
    return found


def _messages(query: Any) -> list[dict[str, Any]]:
    """Chat messages of a query: text, or messages, in which API-Bank calls the assistant's words an agent's."""
    if isinstance(query, str):
        return [{"role": "user", "content": query}]
    if not isinstance(query, list) or not query:
        raise _BadRow(f"the query must be text or a list of messages, but it is {_kind(query)}")
    found = []
    for index, message in enumerate(query):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise _BadRow(f"message {index} must be an object with role and content")
        role = {"agent": "assistant"}.get(message["role"], message["role"])
        found.append({**{key: value for key, value in message.items() if value is not None}, "role": role})
    return found


def _tools(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _BadRow(f"the tools must be a list, but they are {_kind(value)}")
    return value


def _from_xlam(row: _Row, beside: Any) -> Iterator[Sample]:
    query, name = (own if own in row.fields else usual for own, usual in (("question", "query"), ("gold", "answers")))
    gold = _gold(_unpacked(row.get(name), name), name)
    category = row.fields.get("category")
    meta = {"category": category} if isinstance(category, str) else {}
    yield row.sample(_tools(_unpacked(row.get("tools"), "tools")), _messages(row.get(query)), gold, meta=meta)


_PROMPT = re.compile(
    r"\[BEGIN OF AVAILABLE TOOLS\](.*?)\[END OF AVAILABLE TOOLS\].*\[BEGIN OF QUERY\](.*?)\[END OF QUERY\]", re.DOTALL
)
_FENCE = re.compile(r"\A\s*(?:```(?:json)?)?(.*?)(?:```)?\s*\Z", re.DOTALL)


def _from_hammer(row: _Row, beside: Any) -> Iterator[Sample]:
    if "instruction" not in row.fields:
        yield from _from_xlam(row, beside)
        return
    parts = _PROMPT.search(str(row.get("instruction")))
    fenced = _FENCE.match(str(row.get("output")))
    if parts is None or fenced is None:
        raise _BadRow("the instruction has no section of tools, or none with the query")
    answers = _unpacked(fenced[1].strip(), "output")
    yield row.sample(
        _tools(_unpacked(parts[1].strip(), "tools")), _messages(parts[2].strip()), _gold(answers, "output")
    )


def _bfcl_left_out(path: Path) -> bool:
    category = re.sub(r"^(BFCL_v\d+_)?(live_)?", "", path.stem)
    return category.startswith(_BFCL_LEFT_OUT)


def _bfcl_answers(table: _Table) -> dict[str, Any]:
    """{id: ground truth} of a file with questions; without the file that should be there, why it is missing."""
    if table.path is None or _is_bfcl_no_call(table) or _is_bfcl_any_call(table):
        return {}
    path = table.path.parent / "possible_answer" / table.path.name
    if not path.is_file():
        raise DataError(f"{table.path}: its answers are missing, there is no {path}")
    found = {}
    for line, row in _read_json(path):
        if isinstance(row, Exception) or not isinstance(row, Mapping) or not {"id", "ground_truth"} <= row.keys():
            raise DataError(f"{path}, line {line}: {row if isinstance(row, Exception) else 'no id and ground_truth'}")
        if not isinstance(row["id"], str):
            raise DataError(f"{path}, line {line}: the id is no text but {row['id']!r:.80}")
        if row["id"] in found:
            raise DataError(f"{path}, line {line}: two answers have the id {row['id']!r:.80}")
        found[row["id"]] = row["ground_truth"]
    return found


def _is_bfcl_no_call(table: _Table) -> bool:
    return _BFCL_NO_CALL in table.stem


def _is_bfcl_any_call(table: _Table) -> bool:
    return _BFCL_ANY_CALL in table.stem and not _is_bfcl_no_call(table)


def _from_bfcl(row: _Row, beside: dict[str, Any]) -> Iterator[Sample]:
    turns = row.get("question")
    if not isinstance(turns, list) or len(turns) != 1:
        raise _OneTurn("the question has several turns")
    if _is_bfcl_no_call(row.table) or _is_bfcl_any_call(row.table):
        answers = []
    elif "ground_truth" in row.fields or row.id in beside:
        answers = row.fields.get("ground_truth", beside.get(row.id))
    else:
        raise _BadRow(f"there is no answer to {row.id!r} in possible_answer")
    if not isinstance(answers, list):
        raise _BadRow(f"the ground truth must be a list of answers, but it is {_kind(answers)}")
    gold = []
    for answer in answers:
        if not isinstance(answer, Mapping) or not all(isinstance(said, Mapping) for said in answer.values()):
            raise _BadRow("an answer must be {name: {parameter: [allowed values]}}")
        for name, arguments in answer.items():
            allowed = {key: list(values) if isinstance(values, list) else [values] for key, values in arguments.items()}
            optional = [key for key, values in allowed.items() if "" in values]
            gold.append({"name": name, "arguments": allowed, "optional": optional})
    language = next((word for word in ("javascript", "java") if word in row.table.stem), "python")
    category = re.sub(r"^BFCL_v\d+_", "", row.table.stem)
    meta = {"language": language, "category": category}
    match = ANY_CALL if _is_bfcl_any_call(row.table) else "bfcl"
    yield row.sample(_tools(row.get("function")), _messages(turns[0]), gold, match=match, meta=meta)


_SEAL_FILE = "tool.jsonl"


def _seal_tools(table: _Table) -> dict[str, Any]:
    """{"tools": {name: tool}, "fields": {field: [name]}} of the file that lies beside the questions."""
    if table.path is None:
        raise DataError(f"{table.name}: Seal-Tools keeps its tools in {_SEAL_FILE}, so it is read from files")
    path = table.path.parent / _SEAL_FILE
    if not path.is_file():
        raise DataError(f"{table.path}: its tools are missing, there is no {path}")
    tools: dict[str, Any] = {}
    fields: dict[str, list[str]] = {}
    for line, row in _read_lines(path):
        if isinstance(row, Exception) or not isinstance(row, Mapping) or not isinstance(row.get("api_name"), str):
            raise DataError(f"{path}, line {line}: {row if isinstance(row, Exception) else 'a tool without api_name'}")
        tools[row["api_name"]] = row
        fields.setdefault(str(row.get("field")), []).append(row["api_name"])
    return {"tools": tools, "fields": fields}


def _from_seal(row: _Row, beside: dict[str, Any]) -> Iterator[Sample]:
    tools, calling = beside["tools"], row.get("calling")
    gold = _gold(calling, "calling")
    if re.search(r"\"API_call_\d+\"", json.dumps([call["arguments"] for call in gold])):
        raise _OneTurn("a call needs the result of another one")
    wanted = list(dict.fromkeys(call["name"] for call in gold))
    missing = [name for name in wanted if name not in tools]
    if missing:
        raise _BadRow(f"the gold calls {missing[0]!r:.80}, which is not in {_SEAL_FILE}")

    def order(name: str) -> bytes:
        return hashlib.sha256(f"{row.id}/{name}".encode()).digest()

    near = {name for one in wanted for name in beside["fields"][str(tools[one].get("field"))]}.difference(wanted)
    room = max(0, _SEAL_TOOLS - len(wanted))
    others = sorted(near, key=order)[:room]
    if len(others) < room:
        others += sorted(tools.keys() - near - set(wanted), key=order)[: room - len(others)]
    chosen = sorted([*wanted, *others], key=order)
    yield row.sample([tools[name] for name in chosen], _messages(row.get("query")), gold)


_ALPACA_TYPES = ("string", "integer", "number", "boolean", "array", "object")
_ALPACA_PARAMETERS = re.compile(r"(?:\A|\n)Parameters: (\{.*?\})\n(?:Output:|\Z)", re.DOTALL)


def _from_toolalpaca(row: _Row, beside: Any) -> Iterator[Sample | Exception]:
    tools = []
    for name, text in row.json("Function_Description", dict).items():
        if name == "components":  # what the answers of the others look like
            continue
        found = _ALPACA_PARAMETERS.search(f"{text}\n")
        if found is None:
            raise _BadRow(f"the description of {name!r:.80} has no parameters")
        said = _unpacked(found[1], f"parameters of {name}")
        parameters = {key: _alpaca_parameter(str(one)) for key, one in said.items()}
        tools.append({"name": name, "description": text[: found.start()], "parameters": parameters})
    queries, answers = row.json("Instructions", list), row.json("Golden_Answers", list)
    if len(queries) != len(answers):
        raise _BadRow(f"there are {len(queries)} instructions and {len(answers)} golden answers")
    own = re.sub(r"\W+", "-", str(row.fields.get("Name", row.line)))
    for index, (query, calls) in enumerate(zip(queries, answers, strict=True)):
        try:
            gold = _alpaca_gold(calls)
        except (_BadRow, _OneTurn) as error:
            yield error  # the next question may be well
            continue
        yield row.sample(tools, _messages(query), gold, id=f"{row.table.stem}-{own}-{index}")


def _alpaca_parameter(text: str) -> dict[str, Any]:
    """A parameter of "Required. string. What it is." """
    required, text = text.startswith("Required. "), text.removeprefix("Required. ")
    written, _, description = text.partition(".")
    kind = re.split(r"\W", written.strip(), maxsplit=1)[0].lower()
    said: dict[str, Any] = {"description": description.strip() if kind in _ALPACA_TYPES else text}
    if kind in _ALPACA_TYPES:
        said["type"] = kind
    return {**said, "required": True} if required else said


def _alpaca_gold(calls: Any) -> list[GoldCall]:
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise _BadRow("a golden answer must be a list of actions")
    if "${" in json.dumps(calls):
        raise _OneTurn("a call needs the result of another one")
    renamed = [{"name": call.get("Action"), "arguments": call.get("Action_Input")} for call in calls]
    return _gold(renamed, "Golden_Answers")


def _from_openai(row: _Row, beside: Any) -> Iterator[Sample]:
    messages = _messages(_unpacked(row.get("messages"), "messages"))
    tools = row.fields.get("tools") or row.fields.get("functions") or []
    gold: list[GoldCall] = []
    asked = len(messages)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = index  # without any turn that calls, the last one is the answer that no tool was needed for
        calls = message.get("tool_calls") or [call for call in [message.get("function_call")] if call is not None]
        if not isinstance(calls, list):
            raise _BadRow(f"'tool_calls' must be a list of calls, but it is {_kind(calls)}")
        if calls:
            functions = [call.get("function", call) if isinstance(call, Mapping) else call for call in calls]
            gold = _gold(functions, "tool_calls")
            break
    if asked == len(messages):
        raise _BadRow("no message of the assistant says what the answer is")
    if not asked:
        raise _BadRow("the assistant has the first word, so there is no query")
    yield row.sample(_tools(_unpacked(tools, "tools")), messages[:asked], gold)


_READERS: dict[str, Callable[[_Row, Any], Iterator[Sample | Exception]]] = {
    "xlam": _from_xlam,
    "hammer": _from_hammer,
    "bfcl": _from_bfcl,
    "seal-tools": _from_seal,
    "toolalpaca": _from_toolalpaca,
    "openai": _from_openai,
}
_BESIDE: dict[str, Callable[[_Table], Any]] = {"bfcl": _bfcl_answers, "seal-tools": _seal_tools}


def _kind(value: Any) -> str:
    names = ((bool, "a boolean"), (str, "text"), ((int, float), "a number"), (Mapping, "an object"), (list, "a list"))
    return "null" if value is None else next((name for kind, name in names if isinstance(value, kind)), "no JSON")
