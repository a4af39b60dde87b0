"""annotate: from questions with known answers to a labelled data set, in one go or in several."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from toolprm_decode import CallGrammar, Decoder, files
from toolprm_decode.errors import DataError, RequestError, ToolprmError
from toolprm_decode.formats import FORMATS
from toolprm_decode.learning import annotate_command
from toolprm_decode.learning.annotate import annotate
from toolprm_decode.learning.records import SPLITS, read_steps, read_trajectories
from toolprm_decode.learning.rollouts import RolloutSettings
from toolprm_decode.learning.shards import read_shard
from toolprm_decode.questions.labels import label, trajectory_right
from toolprm_decode.questions.samples import Sample, gold_call

from ..search.models import small

QUICK = RolloutSettings(samples=4, max_tokens=32, seed=2, batch_size=8, format="json-list")
TOOLS = [
    {
        "name": "switch_light",
        "description": "Switches a light.",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}, "room": {"enum": ["hall", "attic"]}},
            "required": ["on"],
        },
    },
    {"name": "ring_bell", "description": "Rings the bell.", "parameters": {"type": "object", "properties": {}}},
]


def rows(count: int) -> list[dict[str, Any]]:
    """Questions in xLAM's shape."""
    return [
        {
            "id": number,
            "query": f"Light number {number} on in the hall",
            "tools": json.dumps(TOOLS),
            "answers": json.dumps([{"name": "switch_light", "arguments": {"on": True, "room": "hall"}}]),
        }
        for number in range(count)
    ]


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Loading a model from a folder reports progress on stderr otherwise."""
    hf.logging.disable_progress_bar()
    yield
    hf.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    demo = small()
    demo.model.save_pretrained(folder)
    demo.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(12)))
    return path


@pytest.fixture(scope="module")
def whole(source: Path, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    make(source, policy, out)
    return out


def make(source: Any, policy: Any, out: Path, **options: Any) -> Any:
    given = {"settings": QUICK, "shard_size": 5, "irrelevance": 0.5, "masked_copies": 2, **options}
    return annotate(source, policy, out, **given)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def trajectories(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by query, over all splits there are."""
    found: dict[str, list[dict[str, Any]]] = {}
    for split in SPLITS:
        if list((out / "trajectories").glob(f"{split}-*")):
            for row in read_trajectories(out, split):
                found.setdefault(row["id"], []).append({**row, "split": split})
    return found


def test_rollouts_become_labelled_rows(whole: Path) -> None:
    rolled = [pair for path in sorted((whole / "rollouts").glob("shard-*")) for pair in read_shard(path)]
    found = trajectories(whole)
    assert list(Counter(s.id for s, _ in rolled)) and set(found) == {s.id for s, _ in rolled}
    assert len(rolled) > 24 and len(rolled) % 2 == 0
    tokenizer = small().tokenizer
    for sample, rollouts in rolled:
        grammar = CallGrammar(sample.tools, tokenizer, "json-list")
        mine = found[sample.id]
        assert {(row["text"], row["count"]) for row in mine} == {(r.text, r.count) for r in rollouts}
        assert sum(row["count"] for row in mine) == QUICK.samples
        for row in mine:
            steps, labels = label(sample, grammar, row["text"])
            assert row["steps"] == [
                {"kind": s.kind, "text": s.text, "path": s.path, "label": "+" if right else "-"}
                for s, right in zip(steps, labels, strict=True)
            ]
            calls = FORMATS["json-list"].parse(row["text"])
            assert (row["label"] == "+") == trajectory_right(sample, calls)
            assert json.loads(row["gold"]) == sample.gold and json.loads(row["messages"]) == sample.messages


def test_copies_of_a_question_stay_in_one_split(whole: Path) -> None:
    splits: dict[str, set[str]] = {}
    for name, mine in trajectories(whole).items():
        splits.setdefault(name.partition("#")[0], set()).update(row["split"] for row in mine)
    assert len(splits) == 12 and all(len(found) == 1 for found in splits.values())


def test_irrelevant_copies_ask_for_no_call(whole: Path) -> None:
    gold = [json.loads(mine[0]["gold"]) for mine in trajectories(whole).values()]
    without = [calls for calls in gold if not calls]
    assert 0 < len(without) < len(gold) - len(without)
    for mine in trajectories(whole).values():
        if not json.loads(mine[0]["gold"]):
            assert len(json.loads(mine[0]["tools"])) == 1
            assert all((row["label"] == "+") == (row["text"] == "[]") for row in mine)


def test_the_card_and_the_result_count_the_labels(source: Path, policy: Path, tmp_path: Path) -> None:
    made = make(source, policy, tmp_path, command="toolprm annotate there")
    found = [row for mine in trajectories(tmp_path).values() for row in mine]
    assert made.trajectories == Counter(row["label"] for row in found)
    assert made.steps == Counter(step["label"] for row in found for step in row["steps"])
    card = (tmp_path / "README.md").read_text()
    for words in ("questions.jsonl", "toolprm annotate there", "4 answers a query", "configs:"):
        assert words in card
    assert json.loads(json.dumps(made.to_json()))["queries"] == made.queries == len(trajectories(tmp_path))


def test_a_second_run_changes_nothing(whole: Path, source: Path, policy: Path) -> None:
    before = contents(whole)
    assert make(source, policy, whole).made == 0
    assert contents(whole) == before


def test_a_run_goes_on_where_the_budget_or_a_full_disk_ended_it(
    whole: Path, source: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(source, policy, tmp_path, max_total_tokens=1)
    assert first.stopped and first.queries == 5 and "token budget" in (tmp_path / "README.md").read_text()
    second = make(source, policy, tmp_path, max_total_tokens=first.policy_tokens + 1)
    assert second.stopped and (second.queries, second.made) == (10, 5)

    count, fsync = [0], files.os.fsync

    def full(file: int) -> None:
        count[0] += 1
        if count[0] == 5:
            raise OSError(28, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(DataError, match="No space left on device"):
            make(source, policy, tmp_path)
    make(source, policy, tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_parquet_holds_the_same(whole: Path, source: Path, policy: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    make(source, policy, tmp_path)
    make(source, policy, tmp_path, parquet=True)
    assert trajectories(tmp_path) == trajectories(whole)
    assert not list(tmp_path.glob("*/*-*.jsonl")) or list((tmp_path / "rollouts").glob("*.jsonl"))
    for split in SPLITS:
        if list((whole / "steps").glob(f"{split}-*")):
            assert list(read_steps(tmp_path, split)) == list(read_steps(whole, split))


def test_the_data_set_loads_with_datasets(whole: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    loaded = datasets.load_dataset(str(whole), "trajectories", cache_dir=str(whole.parent / "cache"))
    assert sum(len(part) for part in loaded.values()) == sum(len(mine) for mine in trajectories(whole).values())
    steps = datasets.load_dataset(str(whole), "steps", cache_dir=str(whole.parent / "cache"))
    assert set(steps) == set(loaded)


def test_samples_and_a_decoder_in_memory_will_do(tmp_path: Path) -> None:
    demo = small()
    decoder = Decoder(demo.model, None, tokenizer=demo.tokenizer, format="hammer")
    samples = [
        Sample(f"s{i}", TOOLS, [{"role": "user", "content": f"Ring {i}"}], [gold_call("ring_bell", {})])
        for i in range(4)
    ]
    made = make(samples, decoder, tmp_path, masked_copies=0, irrelevance=0)
    assert made.queries == 4
    assert {row["format"] for mine in trajectories(tmp_path).values() for row in mine} == {"hammer"}
    assert set(trajectories(tmp_path)) == {"s0", "s1", "s2", "s3"}


def test_several_sources_are_one_data_set(source: Path, policy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(source.read_text())
    make([source, other], policy, tmp_path / "out", limit=3, masked_copies=0, irrelevance=0.0)
    assert sorted(trajectories(tmp_path / "out")) == sorted(
        f"{name}.jsonl/{name}-{number}" for name in ("questions", "other") for number in range(3)
    )
    (tmp_path / "more").mkdir()
    (same := tmp_path / "more" / source.name).write_text(source.read_text())
    make([source, same], policy, tmp_path / "same", limit=2, masked_copies=0, irrelevance=0.0)
    assert sorted(trajectories(tmp_path / "same")) == [
        f"{place}/questions.jsonl/questions-{number}" for place in range(2) for number in range(2)
    ]
    with pytest.raises(DataError, match="2 questions of samples have the id 'twice'"):
        make([Sample("twice", TOOLS, [{"role": "user", "content": "?"}], [])] * 2, policy, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("match", ["any-call", "nearly"])
def test_questions_whose_steps_no_rule_judges_are_refused_before_they_are_asked(
    match: str, policy: Path, tmp_path: Path
) -> None:
    question = Sample("x", TOOLS, [{"role": "user", "content": "?"}], [], match)
    with pytest.raises(RequestError, match=r"no step can be judged|unknown rule 'nearly'"):
        make([question], policy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_search_s_candidates_are_labelled_too(source: Path, policy: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, strategy="search", samples=3, beams=2)
    make(source, policy, tmp_path, settings=settings)
    last = Counter(row["steps"][-1]["kind"] for mine in trajectories(tmp_path).values() for row in mine)
    assert last["TOTAL_FINISH"] and len(last) > 1, "some were given up before their end"


def test_two_ray_workers_make_the_same_data_set(whole: Path, source: Path, policy: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    try:
        make(source, policy, tmp_path, workers=2)
    finally:
        ray.shutdown()
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"masked_copies": 3}, "masked_copies=2, and now it is 3"),
        ({"irrelevance": 0.2}, "irrelevance=0.5, and now it is 0.2"),
        ({"limit": 3}, "limit=None, and now it is 3"),
        ({"shard_size": 6}, "shard_size=5, and now it is 6"),
        ({"settings": dataclasses.replace(QUICK, samples=5)}, "samples=4, and now it is 5"),
    ],
    ids=str,
)
def test_other_settings_are_refused(
    whole: Path, source: Path, policy: Path, options: dict[str, Any], words: str
) -> None:
    before = contents(whole)
    with pytest.raises(DataError, match=words):
        make(source, policy, whole, **options)
    assert contents(whole) == before


def test_another_policy_is_refused(whole: Path, source: Path, tmp_path: Path) -> None:
    other = small()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter += 0.01
    other.model.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="was begun with policy="):
        make(source, tmp_path, whole)


def test_bad_sources_and_policies_are_refused(source: Path, policy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ToolprmError):
        make(str(tmp_path / "missing.jsonl"), policy, out)
    with pytest.raises(RequestError, match=r"no config\.json"):
        make(source, tmp_path, out)
    assert not list(out.rglob("*.json*")), "the mistake is not kept as a setting"
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no question"):
        make(tmp_path / "empty.jsonl", policy, out)
    for wrong in ({"masked_copies": -1}, {"irrelevance": 1.5}):
        with pytest.raises(RequestError):
            make(source, policy, out, **wrong)
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(DataError):
        make(source, policy, taken)


def test_rows_that_cannot_be_used_are_an_error_or_counted(policy: Path, tmp_path: Path) -> None:
    source = tmp_path / "questions.jsonl"
    bad = {**rows(1)[0], "id": "long", "query": "very " * 5000}
    lines = [json.dumps(row) for row in rows(4)] + ['{"query": "cut o', json.dumps(bad)]
    source.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"questions.jsonl, line 5"):
        make(source, policy, tmp_path / "out")
    made = make(source, policy, tmp_path / "out", on_error="skip", irrelevance=0)
    assert made.queries == 8 and len(made.skipped_queries) == 2
    assert [where.rpartition("/")[2] for where, _ in made.skipped_rows] == ["questions.jsonl, line 5"]
    listed = [json.loads(line) for line in (tmp_path / "out/rollouts/skipped.jsonl").read_text().splitlines()]
    assert len(listed) == 3 and all(row["where"] and row["reason"] for row in listed)


def run(*arguments: Any) -> None:
    parser = argparse.ArgumentParser()
    annotate_command.add_parser(parser.add_subparsers(dest="command"))
    options = parser.parse_args(["annotate", *map(str, arguments)])
    options.run(options)


def test_the_command_prints_counts_as_json(
    whole: Path, source: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--samples", 4, "--max-tokens", 32, "--seed", 2, "--shard-size", 5, "--format", "json-list"]
    options += ["--irrelevance", 0.5, "--masked-copies", 2, "--out", tmp_path / "out"]
    run(source, "--policy", policy, *options)
    out, err = capsys.readouterr()
    counts = json.loads(out)
    assert counts["queries"] == len(trajectories(whole)) and not counts["stopped"]
    assert out.count("\n") == 1 and "Traceback" not in err
    assert trajectories(tmp_path / "out") == trajectories(whole)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "toolprm annotate" in card and "--samples 4" in card and "--ray" in card


def test_the_command_refuses_settings_before_it_loads_anything(source: Path, tmp_path: Path) -> None:
    before = set(sys.modules)
    with pytest.raises(RequestError, match="temperature"):
        run(source, "--policy", "nowhere", "--out", tmp_path, "--temperature", -1)
    assert not {name for name in set(sys.modules) - before if name.startswith("toolprm_decode.learning.training")}
