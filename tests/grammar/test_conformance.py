"""The ratchet of public suites: no case that was once right may come out worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolprm_decode.benchmark import conformance
from toolprm_decode.benchmark.conformance import COMMAND, Category, changes, judge, record, run
from toolprm_decode.benchmark.schema_engines import Compiled, Ours, Refused, Unsatisfiable
from toolprm_decode.benchmark.suites import SUITES, Group, Instance, Suite, read_suite
from toolprm_decode.errors import DataError


@pytest.mark.parametrize("name", SUITES)
def test_no_case_got_worse(name: str, data_dir: Path) -> None:
    try:
        suite = read_suite(name, data_dir)
    except DataError as error:
        pytest.skip(str(error))
    results = run(Ours(), suite)
    changed = changes(results)
    worse = [str(change) for change in changed if change.worse]
    assert not worse, "\n".join([f"{len(worse)} cases got worse:", *worse])
    better = [str(change) for change in changed]
    assert not better, "\n".join(
        [f"{len(better)} cases got better: record it with `{COMMAND} --record --suite {name}`", *better]
    )


def test_the_letters_add_up() -> None:
    """What a file says of its own counts is what its letters say."""
    for name in SUITES:
        content = json.loads((conformance.RECORDS / f"{name}.json").read_text())
        letters = "".join("".join(rows) for rows in content["cases"].values()).replace(" ", "")
        for category in Category:
            assert letters.count(category.value) == content["counts"][category.name.lower()], (name, category)


class Fake:
    """An engine that does what its schemas say."""

    name, version = "fake", "0"

    def compile(self, schema: Any) -> Compiled:
        if schema == "refuse":
            raise Refused("no")
        if schema == "impossible":
            raise Unsatisfiable("none")
        return Compiled(lambda text: text in schema["accepts"], schema.get("warnings", ()))


def _suite(*schemas: Any) -> Suite:
    tests = (Instance("one", 1, True), Instance("two", 2, False))
    groups = [Group("file", i, f"group {i}", schema, tests, False) for i, schema in enumerate(schemas)]
    return Suite("draft7", tuple(groups), "digest")


@pytest.mark.parametrize(
    ("schema", "letters"),
    [
        ({"accepts": ["1"]}, ".."),
        ({"accepts": ["1", "2"]}, ".p"),
        ({"accepts": ["1", "2"], "warnings": ["of something"]}, ".w"),
        ({"accepts": []}, "n."),
        ("impossible", "n."),
        ("refuse", "rr"),
    ],
)
def test_categories(schema: Any, letters: str) -> None:
    outcome = judge(Fake(), _suite(schema).groups[0])
    assert "".join(category.value for category in outcome.categories) == letters


def test_what_needs_other_documents_is_refused_for_all() -> None:
    group = Group("file", 0, "", {"accepts": ["1"]}, (Instance("one", 1, True),), True)
    assert judge(Fake(), group).categories == (Category.REFUSED,)


def test_only_improvements_are_recorded(tmp_path: Path) -> None:
    right, wrong = {"accepts": ["1"]}, {"accepts": ["1", "2"]}
    with pytest.raises(DataError, match="--record"):
        changes(run(Fake(), _suite("refuse")), tmp_path)
    assert record(run(Fake(), _suite(right, "refuse")), tmp_path) == []
    assert changes(run(Fake(), _suite(right, "refuse")), tmp_path) == []
    for worse in (_suite(wrong, "refuse"), _suite(right, wrong), _suite(right, "impossible")):
        assert any(change.worse for change in changes(run(Fake(), worse), tmp_path))
        with pytest.raises(DataError, match="got worse"):
            record(run(Fake(), worse), tmp_path)
    better = run(Fake(), _suite(right, right))
    assert [(c.worse, c.before, c.after) for c in changes(better, tmp_path)] == [
        (False, Category.REFUSED, Category.RIGHT)
    ] * 2
    assert len(record(better, tmp_path)) == 2
    assert changes(better, tmp_path) == []
    with pytest.raises(DataError, match="does not fit"):
        changes(run(Fake(), _suite(right, right, right)), tmp_path)
