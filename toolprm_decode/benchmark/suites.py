"""Reads public suites of JSON schemas with valid and invalid instances: groups of a schema and its tests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from toolprm_decode.errors import DataError

_DRAFT7 = "http://json-schema.org/draft-07/schema#"
_REMOTE = "http://localhost:1234/"
_TESTS = "json_schema_test_suite/tests"
# Folders of the JSON-Schema-Test-Suite, whose optional parts are suites of their own; files of MaskBench.
_PLACES = {
    "draft2020-12": f"{_TESTS}/draft2020-12",
    "draft7": f"{_TESTS}/draft7",
    "draft2020-12-format": f"{_TESTS}/draft2020-12/optional/format",
    "maskbench-bfcl": "maskbench_fc/bfcl.jsonl",
    "maskbench-glaive": "maskbench_fc/glaive.jsonl",
}
SUITES = tuple(_PLACES)


@dataclass(frozen=True)
class Instance:
    """A JSON value, and whether the schema allows it."""

    description: str
    value: Any
    valid: bool

    @property
    def text(self) -> str:
        """The value as json.dumps writes it; characters are escaped only where UTF-8 cannot write them."""
        text = json.dumps(self.value, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            text = json.dumps(self.value)
        return text


@dataclass(frozen=True)
class Group:
    """A schema and its tests.

    Attributes:
        file: name of the suite's file, without its ending. index: of the group in it.
        remote: the schema refers to documents that are not in it, which no engine here is given.
    """

    file: str
    index: int
    description: str
    schema: Any
    tests: tuple[Instance, ...]
    remote: bool

    @property
    def id(self) -> str:
        return f"{self.file}[{self.index}]"


@dataclass(frozen=True)
class Suite:
    """Groups in the order of their files. digest: of all that was read: it tells versions of the data apart."""

    name: str
    groups: tuple[Group, ...]
    digest: str


def find_data(given: Path | None = None) -> Path:
    """The folder of the public data: the one given, else $TOOLPRM_DATA. Raises DataError where there is none."""
    place = given or os.environ.get("TOOLPRM_DATA")
    if not place:
        raise DataError("no data: set TOOLPRM_DATA to the folder with the data sets, unpacked, or name it with --data")
    return Path(place)


@cache
def read_suite(name: str, data: Path) -> Suite:
    """One of SUITES, from the folder of the public data. Raises DataError where the data lacks it."""
    place = data / _PLACES[name]
    files = sorted(place.glob("*.json")) if place.is_dir() else [place] if place.is_file() else []
    if not files:
        raise DataError(f"the data has no {_PLACES[name]}: {data} must be the folder with the data sets, unpacked")
    digest, groups = hashlib.sha256(), list[Group]()
    for file in files:
        content = file.read_bytes()
        digest.update(hashlib.sha256(content).digest())
        text = content.decode()
        entries = map(json.loads, text.splitlines()) if file.suffix == ".jsonl" else json.loads(text)
        groups += _groups(file.stem, entries, draft7=name == "draft7")
    return Suite(name, tuple(groups), digest.hexdigest()[:16])


def _groups(file: str, entries: Any, *, draft7: bool) -> Iterator[Group]:
    for index, entry in enumerate(entries):
        schema = entry["schema"]
        if draft7 and isinstance(schema, dict) and "$schema" not in schema:
            schema = {"$schema": _DRAFT7, **schema}  # the suite says it by the folder alone
        tests = tuple(Instance(test["description"], test["data"], test["valid"]) for test in entry["tests"])
        yield Group(file, index, entry["description"], schema, tests, _is_remote(schema, tests))


def _is_remote(schema: Any, tests: tuple[Instance, ...]) -> bool:
    """Whether a validator that fetches nothing needs a document that is not there."""
    text = json.dumps(schema)
    if f'"$schema": "{_REMOTE}' in text:
        return True
    if "$ref" not in text and "$dynamicRef" not in text:
        return False
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable

    validator = validator_for(schema, default=Draft202012Validator)(schema, registry=REGISTRY)
    try:
        for test in tests:
            validator.is_valid(test.value)
    except Unresolvable:
        return True
    return False
