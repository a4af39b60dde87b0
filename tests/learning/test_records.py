"""Labelled data sets: the rows, splits by question, shards that survive a break, and a card that tells the counts."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from toolprm_decode.errors import DataError, RequestError
from toolprm_decode.grammar import Step
from toolprm_decode.learning import records
from toolprm_decode.learning.records import (
    DatasetWriter,
    LabelledAnswer,
    locate,
    read_steps,
    read_trajectories,
    split_of,
    step_rows,
    trajectory_rows,
)
from toolprm_decode.questions.samples import Sample, gold_call

NAME, VALUE = '[{"name": "f"', ', "arguments": {"a": 1'


def sample(id: str, **meta: Any) -> Sample:
    tools = [{"name": "f", "parameters": {"a": {"type": "int"}}}]
    return Sample(id, tools, [{"role": "user", "content": f"1 ü {id}"}], [gold_call("f", {"a": 1})], meta=meta)


def answer(value: int = 1, count: int = 1) -> LabelledAnswer:
    texts = [NAME, f', "arguments": {{"a": {value}', "}", "}", "]"]
    kinds = ["FUNC_NAME", "ARG_VALUE", "PARAM_FINISH", "FUNC_FINISH", "TOTAL_FINISH"]
    paths = ["/0/name", "/0/arguments/a", "/0/arguments", "/0", ""]
    steps = [Step(kind, text, 0, 0, path) for kind, text, path in zip(kinds, texts, paths, strict=True)]
    return LabelledAnswer("".join(texts), steps, [True, *[value == 1] * 4], count, -0.5)


def test_rows() -> None:
    asked, answers = sample("q"), [answer(1, 3), answer(2, 1)]
    right, wrong = trajectory_rows(asked, "json-list", answers)
    assert json.loads(right["tools"]) == asked.tools and json.loads(right["gold"]) == asked.gold
    assert json.loads(right["messages"]) == asked.messages and "ü" in right["messages"]
    assert (right["id"], right["format"], right["count"], right["label"]) == ("q", "json-list", 3, "+")
    assert wrong["label"] == "-" and [step["label"] for step in wrong["steps"]] == ["+", "-", "-", "-", "-"]
    assert "".join(step["text"] for step in wrong["steps"]) == wrong["text"]

    rows = step_rows(asked, "json-list", answers)
    assert len(rows) == 9  # the name is shared
    assert rows[0] == {
        **{key: right[key] for key in ("id", "tools", "messages", "format")},
        "state": "",
        "kind": "FUNC_NAME",
        "path": "/0/name",
        "step": NAME,
        "label": "+",
        "count": 4,
    }
    assert rows[1]["state"] == NAME and (rows[1]["step"], rows[1]["count"]) == (VALUE, 3)
    texts = {right["text"], wrong["text"]}
    assert all(any(text.startswith(row["state"] + row["step"]) for text in texts) for row in rows)


def test_answers_that_disagree_on_a_step_leave_a_row_each() -> None:
    one = answer(1, 2)
    other = LabelledAnswer(one.text, one.steps, [False] * 5, 1)
    rows = step_rows(sample("q"), "json-list", [one, other])
    assert Counter((row["kind"], row["label"], row["count"]) for row in rows) == Counter(
        {(step.kind, label, count): 1 for step in one.steps for label, count in (("+", 2), ("-", 1))}
    )


def test_copies_of_a_question_share_its_split() -> None:
    fractions = {"train": 0.6, "validation": 0.2, "test": 0.2}
    counts: Counter[str] = Counter()
    for index in range(2000):
        split = split_of(f"q{index}", fractions)
        counts[split] += 1
        assert split == split_of(f"q{index}#2", fractions) == split_of(sample(f"q{index}#1"), fractions)
        assert split == split_of(sample("other", origin=f"q{index}"), fractions)
    for name, part in fractions.items():
        assert abs(counts[name] / 2000 - part) < 0.05
    assert {split_of(str(index), {"train": 1.0, "test": 0.0}) for index in range(50)} == {"train"}
    for wrong in ({"train": 0.5}, {}, {"train": 1.5, "test": -0.5}):
        with pytest.raises(RequestError, match="add up to 1"):
            split_of("q", wrong)


def write(folder: Path, queries: int = 30, **options: Any) -> None:
    about = {"Sources": ["made up"], "Seed": 0, "Command": "toolprm annotate x"}
    with DatasetWriter(folder, "json-list", **{"shard_size": 4, "about": about, **options}) as writer:
        for index in range(queries):
            writer.add(sample(f"q{index}"), [answer(1, 3), answer(2, 1)])
            writer.add(sample(f"q{index}#1"), [answer(2, 2)])


def break_off(folder: Path) -> None:
    with DatasetWriter(folder, "json-list", shard_size=4) as writer:
        for index in range(12):
            writer.add(sample(f"q{index}"), [answer(1, 3), answer(2, 1)])
            writer.add(sample(f"q{index}#1"), [answer(2, 2)])
        raise KeyboardInterrupt


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("parquet", [False, True])
def test_what_is_written_is_read_again(parquet: bool, tmp_path: Path) -> None:
    if parquet:
        pytest.importorskip("pyarrow")
    write(tmp_path, parquet=parquet)
    found: Counter[str] = Counter()
    for split in ("train", "validation", "test"):
        rows = list(read_trajectories(tmp_path, split))
        ids = [row["id"] for row in rows]
        assert ids == sorted(ids, key=ids.index), "the rows of a query stand together"
        assert all(split_of(one) == split for one in ids)
        found.update(ids)
        by_id = {one: [row for row in rows if row["id"] == one] for one in ids}
        for one, its in by_id.items():
            expected = [answer(1, 3), answer(2, 1)] if "#" not in one else [answer(2, 2)]
            assert its == trajectory_rows(sample(one), "json-list", expected)
        steps = [row for row in read_steps(tmp_path, split) if row["id"] == ids[0]]
        assert steps == step_rows(sample(ids[0]), "json-list", [answer(1, 3), answer(2, 1)])
    assert sum(found.values()) == 90
    suffix = ".parquet" if parquet else ".jsonl"
    assert (tmp_path / "trajectories" / f"train-00000{suffix}").is_file()
    per_shard = {row["id"] for row in records.read_rows(tmp_path / "trajectories" / f"train-00001{suffix}")}
    assert len(per_shard) == 4


@pytest.mark.parametrize("parquet", [False, True])
def test_datasets_loads_both_tables(parquet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    write(folder, parquet=parquet)
    for table, read in (("trajectories", read_trajectories), ("steps", read_steps)):
        loaded = datasets.load_dataset(str(folder), table, cache_dir=str(tmp_path / "cache"))
        assert set(loaded) == {"train", "validation", "test"}
        for split in loaded:
            assert loaded[split].to_list() == list(read(folder, split))


def test_the_card_tells_the_counts(tmp_path: Path) -> None:
    write(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    rows = list(read_trajectories(tmp_path, "train"))
    right = sum(row["label"] == "+" for row in rows)
    wrong = len(rows) - right
    queries = len({row["id"] for row in rows})
    share = 100 * 3 / 6  # of a question and its copy, 3 of 6 rollouts are wrong
    line = f"| trajectory | train | {queries} | {right} ({3 * right}) | {wrong} ({wrong // 2 * 3}) | {share:.1f} % |"
    assert line in card
    assert f"| FUNC_NAME | train | {queries} ({right * 6}) | 0 (0) | 0.0 % |" in card
    assert "- **Sources**: made up" in card and "- **Command**: toolprm annotate x" in card


def test_a_run_goes_on_after_a_break_and_keeps_what_was_finished(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write(whole)
    with pytest.raises(KeyboardInterrupt):
        break_off(broken)
    kept = files(broken)
    assert kept and all(files(whole)[name] == data for name, data in kept.items())
    stamps = {name: (broken / name).stat().st_mtime_ns for name in kept}
    (broken / "steps" / ".train-00009.jsonl.1.part").write_text("{half")
    write(broken)
    assert files(broken) == files(whole)
    assert {name: (broken / name).stat().st_mtime_ns for name in kept} == stamps


def test_another_run_does_not_write_over_a_data_set(tmp_path: Path) -> None:
    write(tmp_path)
    before = files(tmp_path)
    with pytest.raises(DataError, match=r"train-00000\.jsonl: there is another shard"):
        write(tmp_path, shard_size=5)
    with pytest.raises(DataError, match="of another run"):
        write(tmp_path, queries=4)
    assert {name: data for name, data in files(tmp_path).items() if name != "README.md"} == {
        name: data for name, data in before.items() if name != "README.md"
    }


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"jsonl: cannot be written \(No space left on device\).*nothing .* lost"):
        write(tmp_path / "broken")
    monkeypatch.undo()
    write(tmp_path / "whole")
    whole, kept = files(tmp_path / "whole"), files(tmp_path / "broken")
    assert kept and all(whole[name] == data for name, data in kept.items())
    write(tmp_path / "broken")
    assert files(tmp_path / "broken") == whole


def test_a_kill_leaves_no_half_record(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from toolprm_decode.files import write_whole\n"
        "write_whole(Path(sys.argv[1]) / 'one', b'whole')\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), 9)\n"
        "write_whole(Path(sys.argv[1]) / 'one', b'half')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert ended.returncode == -9
    assert (tmp_path / "one").read_bytes() == b"whole"
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {"one"}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no labelled data set"):
        read_trajectories(tmp_path, "train")
    write(tmp_path)
    with pytest.raises(DataError, match="no steps of the split 'dev': there are train, validation, test"):
        read_steps(tmp_path, "dev")
    path = tmp_path / "trajectories" / "train-00001.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:40]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"train-00001\.jsonl, line 3: malformed or truncated"):
        list(read_trajectories(tmp_path, "train"))
    first = len((tmp_path / "trajectories" / "train-00000.jsonl").read_text(encoding="utf-8").splitlines())
    assert locate(tmp_path, "trajectories", "train", first) == f"{path.with_name('train-00000.jsonl')}, line {first}"
    assert locate(tmp_path, "trajectories", "train", first + 2) == f"{path}, line 2"


def test_a_query_is_added_once(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path, "json-list")
    writer.add(sample("q"), [answer()])
    with pytest.raises(RequestError, match="'q' was added before"):
        writer.add(sample("q"), [answer()])
    with pytest.raises(RequestError, match="shard_size"):
        DatasetWriter(tmp_path, "json-list", shard_size=0)
