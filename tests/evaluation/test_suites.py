"""Suites: what they are drawn or read from, how they are cut short, and what they say of what cannot be used."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from toolprm_decode.errors import DataError, RequestError
from toolprm_decode.evaluation.scoring import judge
from toolprm_decode.evaluation.suites import SUITES, Suite, load_suite
from toolprm_decode.learning.world.lexicon import MASKS
from toolprm_decode.learning.world.world import part_of
from toolprm_decode.questions.labels import gold_calls
from toolprm_decode.tools import read_tools

TOOL = {
    "name": "f",
    "description": "",
    "parameters": {"type": "dict", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}
CALL = {"name": "f", "arguments": {"x": 1}}
USER = [{"role": "user", "content": "?"}]


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def bfcl(folder: Path, categories: dict[str, int]) -> None:
    """Files of so many questions a category, in the leaderboard's shape."""
    for category, count in categories.items():
        ids = [f"{category}_{index}" for index in range(count)]
        write(folder / f"BFCL_v4_{category}.json", [{"id": id, "question": [USER], "function": [TOOL]} for id in ids])
        if "relevance" not in category:
            answers = [{"id": id, "ground_truth": [{"f": {"x": [1]}}]} for id in ids]
            write(folder / "possible_answer" / f"BFCL_v4_{category}.json", answers)


def sizes(suite: Suite) -> Counter[str]:
    assert len(suite.groups) == len(suite.samples) == len({sample.id for sample in suite.samples})
    return Counter(suite.groups)


class TestBuiltIn:
    @pytest.mark.parametrize(
        ("name", "limit", "seed", "split", "digest"),
        [
            ("built-in", None, 0, "test", "75032a092ffd8e99"),
            ("built-in-values", 100, 3, "validation", "332116c0cc24589d"),
            ("built-in-tools", 101, 1, "test", "bdbcca6952807ab2"),
        ],
    )
    def test_figures_of_earlier_versions_are_of_the_same_questions(
        self, name: str, limit: int | None, seed: int, split: str, digest: str
    ) -> None:
        suite = load_suite(name, limit=limit, seed=seed, split=split)
        asked = [[sample.id, sample.tools, sample.messages, sample.gold] for sample in suite.samples]
        assert len(asked) == (limit or 1000)
        assert hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16] == digest

    def test_it_is_drawn_by_the_seed_from_what_was_never_trained_on(self) -> None:
        suite = load_suite("built-in", limit=30)
        assert suite == load_suite("built-in", limit=30) and suite.headline == "accuracy"
        assert suite.samples != load_suite("built-in", limit=30, seed=1).samples
        sizes(suite)
        for name, split in (("built-in-tools", "test"), ("built-in-values", "train")):
            samples = load_suite(name, limit=40).samples
            words = {tool["function"]["description"] for sample in samples for tool in sample.tools}
            assert {part_of(word) for word in words} == {split, "train"}

    def test_groups_say_what_is_unseen_and_whether_names_are_masked(self) -> None:
        suite = load_suite("built-in", limit=400)
        found = sizes(suite)
        assert set(found) == {
            f"unseen {what}, {names} names" for what in ("values", "tools") for names in ("masked", "natural")
        }
        for sample, group in zip(suite.samples, suite.groups, strict=True):
            tools = read_tools(sample.tools)
            assert {tool.name in MASKS for tool in tools} == {"masked" in group}
            kinds = {tool.name: part_of(tool.description) for tool in tools}
            assert all(kinds[call["name"]] == "test" for call in sample.gold[:1]) or "values" in group
            assert set(kinds.values()) == {"train"} or "tools" in group

    @pytest.mark.parametrize("names", ["masked", "natural"])
    def test_all_names_can_be_masked_or_none(self, names: str) -> None:
        suite = load_suite(f"built-in-{names}", limit=200)
        assert set(sizes(suite)) == {f"unseen values, {names} names", f"unseen tools, {names} names"}
        for sample in suite.samples:
            for tool in read_tools(sample.tools):
                assert {one in MASKS for one in (tool.name, *tool.parameters["properties"])} == {names == "masked"}
        usual = load_suite("built-in", limit=200)
        assert not {sample.id for sample in suite.samples} & {sample.id for sample in usual.samples}


class TestNames:
    def test_each_has_a_line_of_help(self) -> None:
        assert {"built-in", "built-in-masked", "bfcl", "toolalpaca", "seal-tools", "api-bank"} <= set(SUITES)
        assert all(about and "\n" not in about for about in SUITES.values())

    @pytest.mark.parametrize(
        ("name", "options", "said"),
        [
            ("bfcl-v9", {}, "unknown suite 'bfcl-v9': use one of built-in, .*, bfcl, .* or a file or folder"),
            ("x" * 5000, {}, "unknown suite"),
            ("built-in:values", {}, "unknown suite"),
            ("built-in", {"limit": 0}, "the limit must be 1 or more, not 0"),
            ("built-in", {"split": "train"}, "unknown split 'train': suites have validation or test"),
            ("bfcl", {"split": "validation"}, "'bfcl' has no validation split"),
            ("bfcl:simple,parallel", {}, "unknown category 'simple' of 'bfcl': use some of simple_python, .*, live$"),
            ("seal-tools:in-domain", {"split": "validation"}, "unknown category 'in-domain' .* use some of dev$"),
        ],
    )
    def test_what_there_is_not_is_refused(self, name: str, options: dict[str, Any], said: str) -> None:
        with pytest.raises(RequestError, match=said):
            load_suite(name, **options)


class TestFiles:
    def test_missing_ones_are_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TOOLPRM_DATA", raising=False)
        with pytest.raises(
            RequestError, match="'toolalpaca' is read from files: name the folder that holds hammer/tool"
        ):
            load_suite("toolalpaca")
        with pytest.raises(RequestError, match=r"there is no folder .*/none: name the folder"):
            load_suite("toolalpaca", data=tmp_path / "none")
        with pytest.raises(RequestError, match=r"'api-bank' lacks .*apibank_l1\.json and 1 more: name the folder that"):
            load_suite("api-bank", data=tmp_path)
        bfcl(tmp_path / "bfcl", {"multiple": 2, "live_simple": 1})
        with pytest.raises(RequestError, match=r"and 10 more: .* to go without, ask for bfcl:multiple,live_simple$"):
            load_suite("bfcl", data=tmp_path)
        monkeypatch.setenv("TOOLPRM_DATA", str(tmp_path))
        assert sizes(load_suite("bfcl:live_simple,multiple")) == {"live_simple": 1, "multiple": 2}

    def test_they_may_lie_in_the_folder_itself(self, tmp_path: Path) -> None:
        bfcl(tmp_path, {"parallel": 2})
        suite = load_suite("bfcl:parallel", data=str(tmp_path))
        assert sizes(suite) == {"parallel": 2} and suite.headline == "bfcl-ast"

    def test_categories_decide_what_is_right_and_what_is_counted(self, tmp_path: Path) -> None:
        bfcl(tmp_path, {"live_simple": 2, "live_relevance": 1, "live_irrelevance": 1})
        suite = load_suite("bfcl:live_relevance,live_simple,live_irrelevance", data=tmp_path)
        assert suite.groups == ["live_relevance", "live_simple", "live_simple", "live_irrelevance"]
        assert suite.headline == "accuracy"  # there is nothing of the leaderboard's non-live AST score
        right = [[judge(sample, calls).right for calls in ([], [CALL])] for sample in suite.samples]
        assert right == [[False, True], [False, True], [False, True], [True, False]]

    def test_rows_that_cannot_be_used_are_listed(self, tmp_path: Path) -> None:
        bfcl(tmp_path, {"multiple": 3, "parallel": 1})
        path = tmp_path / "BFCL_v4_multiple.json"
        rows = path.read_text().splitlines()
        no_answer = rows[0].replace("multiple_0", "multiple_9")
        path.write_text("\n".join([*rows, rows[1], no_answer, rows[2][:40]]))
        suite = load_suite("bfcl:multiple,parallel", data=tmp_path)
        assert sizes(suite) == {"multiple": 3, "parallel": 1}
        assert [(skip.file, skip.line) for skip in suite.skipped] == [(str(path), line) for line in (4, 5, 6)]
        for skip, said in zip(suite.skipped, ("two questions have the id", "no answer", "truncated JSON"), strict=True):
            assert said in skip.reason
        path.write_text(rows[0][:30])
        with pytest.raises(DataError, match=r"holds no question that can be used: .*multiple\.json, line 1: malformed"):
            load_suite("bfcl:multiple", data=tmp_path)
        write(tmp_path / "BFCL_v4_parallel.json", rows)
        write(path, rows)
        (tmp_path / "possible_answer" / "BFCL_v4_parallel.json").unlink()
        with pytest.raises(DataError, match=r"parallel\.json: its answers are missing, there is no .*possible_answer"):
            load_suite("bfcl:multiple,parallel", data=tmp_path)
        bfcl(tmp_path, {"parallel": 1})
        write(tmp_path / "BFCL_v4_parallel.json", rows[:1])
        write(tmp_path / "possible_answer" / "BFCL_v4_parallel.json", [{"id": "multiple_0", "ground_truth": []}])
        with pytest.raises(
            DataError, match=r"parallel\.json: a question has the id 'multiple_0', as one of .*multiple"
        ):
            load_suite("bfcl:multiple,parallel", data=tmp_path)

    def test_questions_whose_gold_no_answer_can_be_count_and_are_named(self, tmp_path: Path) -> None:
        bfcl(tmp_path, {"multiple": 2})
        answers = [{"id": f"multiple_{index}", "ground_truth": [{"f": {"x": [one]}}]} for index, one in enumerate("1 ")]
        write(tmp_path / "possible_answer" / "BFCL_v4_multiple.json", answers)
        suite = load_suite("bfcl:multiple", data=tmp_path)
        assert len(suite.samples) == 2 and not suite.skipped
        assert set(suite.misfits) == {"multiple_0", "multiple_1"}
        assert all("the gold breaks the schema of 'f' at /x" in why for why in suite.misfits.values())
        assert len(load_suite("bfcl:multiple", data=tmp_path, limit=1).misfits) == 1

    def test_a_limit_is_shared_by_the_categories(self, tmp_path: Path) -> None:
        bfcl(tmp_path, {"simple_python": 50, "multiple": 20, "parallel": 2})
        name = "bfcl:simple_python,multiple,parallel"
        whole = load_suite(name, data=tmp_path)
        before: set[str] = set()
        for limit, expected in (
            (3, (1, 1, 1)),
            (4, (2, 1, 1)),
            (22, (10, 10, 2)),
            (60, (38, 20, 2)),
            (99, (50, 20, 2)),
        ):
            suite = load_suite(name, data=tmp_path, limit=limit, seed=5)
            found = sizes(suite)
            assert (found["simple_python"], found["multiple"], found["parallel"]) == expected
            ids = {sample.id for sample in suite.samples}
            assert before <= ids
            before = ids
            assert suite.samples == [sample for sample in whole.samples if sample.id in ids]
        once, again, other = (load_suite(name, data=tmp_path, limit=20, seed=seed) for seed in (0, 0, 1))
        assert once == again != other

    @pytest.mark.parametrize("name", ["own.jsonl", "own.json"])
    def test_files_of_ones_own(self, name: str, tmp_path: Path) -> None:
        rows = [
            {"id": "a", "tools": [TOOL], "question": "?", "gold": [CALL]},
            {"tools": [TOOL], "query": "?", "answers": [], "category": "none fits"},
            {"id": "c", "tools": [TOOL], "question": "?", "gold": [{"name": "g", "arguments": {}}]},
        ]
        path = write(tmp_path / name, rows)
        suite = load_suite(str(path))
        assert suite.groups == ["own", "none fits"] and suite.headline == "accuracy"
        assert [judge(sample, calls).right for sample, calls in zip(suite.samples, ([CALL], []), strict=True)] == [
            True
        ] * 2
        assert [skip.line for skip in suite.skipped] == [3] and "none of the tools" in suite.skipped[0].reason
        with pytest.raises(RequestError, match="files are taken whole"):
            load_suite(str(path), split="validation")
        with pytest.raises(DataError, match=r"no question that can be used: .*line 1: no known shape"):
            load_suite(str(write(tmp_path / name, [{"text": "?"}])))
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="there is no file with questions"):
            load_suite(str(tmp_path / "empty"))

    def test_a_folder_of_bfcl_has_its_score(self, tmp_path: Path) -> None:
        bfcl(tmp_path, {"multiple": 1, "irrelevance": 1})
        suite = load_suite(str(tmp_path))
        assert sizes(suite) == {"multiple": 1, "irrelevance": 1} and suite.headline == "bfcl-ast"


def having(data_dir: Path, folder: str) -> Path:
    """The folder of the data sets, where it has that of one."""
    if not (data_dir / folder).is_dir():
        pytest.skip(f"there is no {folder} in {data_dir}")
    return data_dir


class TestPublished:
    """On the data sets themselves."""

    def test_bfcl(self, data_dir: Path) -> None:
        suite = load_suite("bfcl", data=having(data_dir, "bfcl"))
        rows = {
            path.stem.removeprefix("BFCL_v4_"): len(path.read_text(encoding="utf-8").splitlines())
            for path in (data_dir / "bfcl").glob("BFCL_v4_*.json")
        }
        found = sizes(suite)
        lost = Counter(Path(skip.file).stem.removeprefix("BFCL_v4_") for skip in suite.skipped)
        assert found + lost == {name: count for name, count in rows.items() if not name.startswith("multi_turn")}
        assert {skip.reason for skip in suite.skipped} <= {"a query without tools"}
        assert suite.headline == "bfcl-ast" and set(suite.misfits) <= {sample.id for sample in suite.samples}
        live = load_suite("bfcl:live", data=data_dir, limit=12)
        assert set(sizes(live).values()) == {2} and all(group.startswith("live_") for group in live.groups)

    @pytest.mark.parametrize(
        ("name", "needs", "groups", "headline"),
        [
            ("toolalpaca", "hammer", {"real": 114}, "f1"),
            ("toolalpaca:simulated", "toolalpaca", {"simulated": 69}, "f1"),
            ("api-bank", "hammer", {"level-1": 399, "level-2": 127}, "f1"),
            ("seal-tools", "seal_tools", {"in-domain": 670, "out-domain": 627}, "f1"),
        ],
    )
    def test_others(self, name: str, needs: str, groups: dict[str, int], headline: str, data_dir: Path) -> None:
        suite = load_suite(name, data=having(data_dir, needs))
        assert sizes(suite) == groups and suite.headline == headline
        verdicts = [judge(sample, gold_calls(sample)) for sample in suite.samples[::3]]
        assert all(verdict.right for verdict in verdicts)
        for counts in ([verdict.names for verdict in verdicts], [verdict.parameters for verdict in verdicts]):
            assert all(matched == predicted == gold for matched, predicted, gold in counts)

    def test_the_validation_split_of_seal_tools_is_another(self, data_dir: Path) -> None:
        suite = load_suite("seal-tools", data=having(data_dir, "seal_tools"), split="validation", limit=30)
        assert sizes(suite) == {"dev": 30} and suite.samples[0].id.startswith("dev")

    def test_toolalpaca_is_also_read_from_its_own_files(self, data_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "toolalpaca").symlink_to(having(data_dir, "toolalpaca") / "toolalpaca")
        suite = load_suite("toolalpaca", data=tmp_path)
        assert sizes(suite)["real"] + len(suite.skipped) == 114
