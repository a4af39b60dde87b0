"""Shards of rollouts: whole or not there, the same however often a run breaks off, here and on Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toolprm_decode import files
from toolprm_decode.errors import DataError, RequestError
from toolprm_decode.learning.rollouts import RolloutSettings, roll_out
from toolprm_decode.learning.shards import ShardStats, make_shards, read_shard
from toolprm_decode.questions.samples import Sample

from ..search.models import small

SWITCH = {
    "name": "switch",
    "parameters": {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "room": {"enum": ["hall", "attic"]}},
        "required": ["on"],
    },
}
IMPOSSIBLE = {"name": "never", "parameters": {"type": "object", "properties": {"a": False}, "required": ["a"]}}
SAMPLES = [
    Sample(f"q{i}", [IMPOSSIBLE if i == 4 else SWITCH], [{"role": "user", "content": f"Licht {i} für Zürich"}], [])
    for i in range(11)
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RolloutSettings:
    folder = tmp_path_factory.mktemp("policy")
    demo = small()
    demo.model.save_pretrained(folder)
    demo.tokenizer.save_pretrained(folder)
    return RolloutSettings(samples=3, max_tokens=24, seed=5, batch_size=2, policy=str(folder))


@pytest.fixture(scope="module")
def whole(settings: RolloutSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of a run that nothing broke."""
    folder = tmp_path_factory.mktemp("whole")
    make(folder, settings)
    return folder


def make(folder: Path, settings: RolloutSettings, samples: Any = SAMPLES, **options: Any) -> ShardStats:
    return make_shards(samples, folder, settings, **{"shard_size": 3, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_hold_the_rollouts(whole: Path, settings: RolloutSettings) -> None:
    expected = list(roll_out(SAMPLES, settings.decoder(), settings))
    found = [pair for path in sorted(whole.glob("shard-*.jsonl")) for pair in read_shard(path)]
    assert [s for s, _ in found] == [s for s, _ in expected] == SAMPLES[:4] + SAMPLES[5:]
    for (_, rollouts), (_, other) in zip(found, expected, strict=True):
        assert [(r.text, r.tokens, r.calls, r.count) for r in rollouts] == [
            (r.text, r.tokens, r.calls, r.count) for r in other
        ]
    assert sorted(contents(whole)) == ["manifest.json", *(f"shard-{i:05d}.jsonl" for i in range(4))]


def test_a_second_run_keeps_what_is_there(whole: Path, settings: RolloutSettings) -> None:
    before, stamps = contents(whole), [path.stat().st_mtime_ns for path in sorted(whole.iterdir())]
    told: list[int] = []
    stats = make(whole, settings, progress=told.append)
    assert (stats.queries, stats.made, sum(told)) == (10, 0, 11)
    assert [name for name, _ in stats.skipped] == ["q4"]
    assert contents(whole) == before
    assert [path.stat().st_mtime_ns for path in sorted(whole.iterdir())] == stamps


def test_a_missing_shard_is_made_again_the_same(whole: Path, settings: RolloutSettings) -> None:
    before = contents(whole)
    (whole / "shard-00001.jsonl").unlink()
    told: list[int] = []
    stats = make(whole, settings, progress=told.append)
    assert (stats.queries, stats.made, sum(told)) == (10, 2, 11)
    assert stats.paths == sorted(stats.paths) and len(stats.paths) == 4
    assert contents(whole) == before


@pytest.mark.parametrize("when", ["query", "write", "rename"])
def test_a_kill_leaves_no_half_shard(tmp_path: Path, whole: Path, settings: RolloutSettings, when: str) -> None:
    data = {"samples": [s.to_json() for s in SAMPLES], "settings": dataclasses.asdict(settings), "when": when}
    (tmp_path / "data.json").write_text(json.dumps(data))
    out = tmp_path / "out"
    run = subprocess.run([sys.executable, "-c", _VICTIM, str(tmp_path / "data.json"), str(out)], check=False)
    assert run.returncode == -signal.SIGKILL
    left = {name: text for name, text in contents(out).items() if not name.endswith(".part")}
    assert "manifest.json" in left and 0 < len(left) < 5
    assert (when == "query") or any(name.endswith(".part") for name in contents(out))
    expected = contents(whole)
    assert all(expected[name] == text for name, text in left.items())
    make(out, settings)
    assert contents(out) == expected


_VICTIM = """
import json, os, signal, sys
import torch
from toolprm_decode import files
from toolprm_decode.learning.rollouts import RolloutSettings
from toolprm_decode.questions.samples import Sample
from toolprm_decode.learning.shards import make_shards

torch.set_num_threads(1)
data = json.load(open(sys.argv[1]))
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
queries, synced = [], []

def progress(count):
    queries.append(count)
    if data["when"] == "query" and len(queries) == 8:
        die()

fsync = os.fsync

def dying_fsync(file):
    synced.append(file)  # a file and its folder a time, the manifest first
    if len(synced) == 5 and data["when"] == "write":
        os.ftruncate(file, 100)
        die()
    fsync(file)
    if len(synced) == 5 and data["when"] == "rename":
        die()

os.fsync = dying_fsync
make_shards([Sample.from_json(s) for s in data["samples"]], sys.argv[2], RolloutSettings(**data["settings"]),
            shard_size=3, progress=progress)
"""


@pytest.mark.parametrize(
    ("changed", "options", "words"),
    [
        ({"samples": 4}, {}, "samples=3, and now it is 4"),
        ({"temperature": 0.5}, {}, "temperature=1.0, and now it is 0.5"),
        ({"seed": 6}, {}, "seed=5"),
        ({"strategy": "search"}, {}, "strategy='sample'"),
        ({}, {"shard_size": 4}, "shard_size=3"),
        ({}, {"manifest": {"source": "elsewhere"}}, "source=None, and now it is 'elsewhere'"),
    ],
    ids=str,
)
def test_other_settings_are_refused(
    whole: Path, settings: RolloutSettings, changed: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    before = contents(whole)
    with pytest.raises(DataError, match="another folder") as caught:
        make(whole, dataclasses.replace(settings, **changed), **options)
    assert words in str(caught.value)
    assert contents(whole) == before


def test_other_queries_are_refused(whole: Path, settings: RolloutSettings) -> None:
    other = [*SAMPLES[:-1], dataclasses.replace(SAMPLES[-1], messages=[{"role": "user", "content": "Light"}])]
    with pytest.raises(DataError, match=r"shard-00003\.jsonl was made from other queries"):
        make(whole, settings, other)


def test_batches_may_change_between_runs(tmp_path: Path, whole: Path, settings: RolloutSettings) -> None:
    make(tmp_path, settings, SAMPLES[:6])
    make(tmp_path, dataclasses.replace(settings, batch_size=7))
    assert contents(tmp_path).keys() == contents(whole).keys()
    for shard in sorted(whole.glob("shard-*")):
        for (one, found), (other, expected) in zip(read_shard(tmp_path / shard.name), read_shard(shard), strict=True):
            assert one == other
            for left, right in zip(found, expected, strict=True):  # but for what rounds otherwise in other batches
                assert (left.text, left.count, left.calls) == (right.text, right.count, right.calls)
                assert left.logprob == pytest.approx(right.logprob, abs=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_budget_ends_a_run_after_the_shard_that_passes_it(
    tmp_path: Path, whole: Path, settings: RolloutSettings, workers: int
) -> None:
    if workers:
        pytest.importorskip("ray", reason="Ray is not installed")
    first = json.loads((whole / "shard-00000.jsonl").read_text().splitlines()[0])["policy_tokens"]
    stats = make(tmp_path, settings, max_total_tokens=first + 1, workers=workers)
    assert stats.stopped and len(stats.paths) == 2 and stats.policy_tokens > first + 1
    again = make(tmp_path, settings, max_total_tokens=first + 1, workers=workers)
    assert again.stopped and again.made == 0 and again.paths == stats.paths
    assert not make(tmp_path, settings, workers=workers).stopped
    assert contents(tmp_path) == contents(whole)
    assert not make(tmp_path, settings, max_total_tokens=1, workers=workers).stopped, "all was there already"


@pytest.fixture(scope="module", autouse=True)
def ray_ends() -> Iterator[None]:
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def test_two_ray_workers_make_the_same_shards(tmp_path: Path, whole: Path, settings: RolloutSettings) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    told: list[int] = []
    stats = make(tmp_path, settings, workers=2, progress=told.append)
    assert (stats.queries, stats.made, sum(told)) == (10, 10, 11)
    assert contents(tmp_path) == contents(whole)
    assert make(tmp_path, settings, workers=2).made == 0


def test_what_is_wrong_in_an_actor_is_said_plainly(tmp_path: Path, settings: RolloutSettings) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(RequestError, match="there is no folder '/nowhere/at/all'"):
        make(tmp_path, dataclasses.replace(settings, policy="/nowhere/at/all"), workers=2)


def test_a_missing_ray_is_said_with_what_to_install(
    tmp_path: Path, settings: RolloutSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"pip install toolprm_decode\[ray\]"):
        make(tmp_path / "out", settings, workers=2)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_loses_nothing(
    tmp_path: Path, whole: Path, settings: RolloutSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DataError, match=r"shard-00002.jsonl: cannot be written \(No space left on device\)"):
        make(tmp_path, settings)
    expected = contents(whole)
    assert contents(tmp_path) == {name: expected[name] for name in sorted(expected)[:3]}
    make(tmp_path, settings)
    assert contents(tmp_path) == expected


def test_damaged_files_are_named(tmp_path: Path, settings: RolloutSettings) -> None:
    make(tmp_path, settings, SAMPLES[:3])
    shard = tmp_path / "shard-00000.jsonl"
    text = shard.read_text()
    shard.write_text(text[:-20])
    with pytest.raises(DataError, match=r"shard-00000.jsonl, line 4: not JSON"):
        list(read_shard(shard))
    shard.write_text(text + '{"sample": {}}\n')
    with pytest.raises(DataError, match=r"shard-00000.jsonl, line 5: no rollouts"):
        list(read_shard(shard))
    shard.write_text("".join(text.splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"shard-00000.jsonl, line 3: the end of 3 queries is missing"):
        list(read_shard(shard))
    for head in ("", "[]\n", '{"samples": "x"}\n'):
        shard.write_text(head)
        with pytest.raises(DataError, match=r"shard-00000.jsonl, line 1: not the head"):
            make(tmp_path, settings, SAMPLES[:3])
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json: not a manifest"):
        make(tmp_path, settings, SAMPLES[:3])
    with pytest.raises(DataError):
        make(shard, settings)


@pytest.mark.parametrize("wrong", [{"shard_size": 0}, {"workers": -1}, {"max_total_tokens": 0}], ids=str)
def test_numbers_out_of_range_are_refused(tmp_path: Path, settings: RolloutSettings, wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        make(tmp_path, settings, **wrong)
