"""The table of reward models says what each says of each answer alone."""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from toolprm_decode.errors import BudgetExceeded, DataError, RequestError
from toolprm_decode.evaluation.reward_models import (
    Answers,
    calibration,
    collect_answers,
    judge_answers,
    read_answers,
    reward_rows,
)
from toolprm_decode.learning.metrics import Judged
from toolprm_decode.learning.rollouts import RolloutSettings
from toolprm_decode.questions.labels import label
from toolprm_decode.questions.samples import Sample, gold_call
from toolprm_decode.rewards import DEFAULT_TAGS, STEP_KINDS, ToolPRM

from ..learning.training_cases import rows, write_dataset
from ..search.models import PROMPT, TOOLS, decoder, reward, tokenizer

QUICK = RolloutSettings(samples=8, max_tokens=32, temperature=1.3, batch_size=2)
IMPOSSIBLE = {"name": "never", "parameters": {"type": "object", "properties": {"a": False}, "required": ["a"]}}
KINDS = {
    "toolprm": STEP_KINDS,
    "c-prm": ("FUNC_NAME", "FUNC_FINISH", "TOTAL_FINISH"),
    "orm": ("TOTAL_FINISH",),
}
NAMES = tuple(KINDS)


@lru_cache
def model(name: str) -> ToolPRM:
    """Random judges of the three kinds, each with a temperature of its own."""
    tags = {kind: DEFAULT_TAGS[kind] for kind in KINDS[name]}
    return ToolPRM(reward().engine, tokenizer(), tags=tags, temperature=1.0 + NAMES.index(name))


def sample(number: int, tools: list[Any] = TOOLS, match: str = "exact") -> Sample:
    gold = [gold_call("switch", {"on": True})] if number else []
    return Sample(f"q{number}", tools, [{"role": "user", "content": f"{PROMPT} {number}"}], gold, match)


SAMPLES = [sample(0), sample(1), sample(2, [IMPOSSIBLE]), sample(3, match="bfcl")]


@lru_cache
def answers() -> Answers:
    return collect_answers(SAMPLES, decoder(), QUICK)


Step = tuple[str, float, bool]  # kind, score, whether it is right


@lru_cache(None)
def alone(name: str, number: int) -> list[Step]:
    """The judged steps of one of the answers, by a pass for it alone."""
    prm, row = model(name), answers().rows[number]
    text = prm.prompt_text(json.loads(row["tools"]), json.loads(row["messages"]), row["format"])
    scores = prm.score(text, [(step["kind"], step["text"]) for step in row["steps"]])
    found = zip(row["steps"], scores, strict=True)
    return [(step["kind"], score, step["label"] == "+") for step, score in found if not math.isnan(score)]


class TestCollected:
    def test_every_step_is_labelled_by_the_questions_own_rule(self) -> None:
        by_id = {one.id: one for one in SAMPLES}
        assert {row["id"] for row in answers()} == {"q0", "q1", "q3"}
        for row in answers():
            asked = by_id[row["id"]]
            steps, labels = label(asked, decoder().grammar(asked.tools), row["text"])
            told = [(step["kind"], step["text"], step["label"]) for step in row["steps"]]
            assert told == [(s.kind, s.text, "+" if right else "-") for s, right in zip(steps, labels, strict=True)]
            assert row["label"] == ("+" if all(labels) else "-")

    def test_every_draw_counts(self) -> None:
        for id in ("q0", "q1", "q3"):
            assert sum(row["count"] for row in answers() if row["id"] == id) == QUICK.samples
        assert len({(row["id"], row["text"]) for row in answers()}) == len(answers())

    def test_questions_that_cannot_be_asked_are_told(self) -> None:
        ((id, reason),) = answers().skipped
        assert id == "q2" and "never" in reason
        with pytest.raises(DataError, match=r"none of 1 questions.*q2.*never"):
            collect_answers([SAMPLES[2]], decoder(), QUICK)
        with pytest.raises(DataError, match="none of 0 questions"):
            collect_answers([], decoder(), QUICK)

    def test_progress_reaches_the_end(self) -> None:
        told: list[tuple[int, int]] = []
        collect_answers(SAMPLES, decoder(), QUICK, progress=lambda *now: told.append(now))
        assert told == sorted(told) and told[-1] == (4, 4)


class TestRead:
    def test_the_rows_are_those_of_the_split(self, tmp_path: Path) -> None:
        folder = write_dataset(tmp_path)
        assert list(read_answers(folder, "test")) == rows(4, 2)
        assert len(read_answers(folder, "validation")) == len(rows(6, 1))

    def test_a_missing_split_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no trajectories of the split 'test': there are train, validation"):
            read_answers(write_dataset(tmp_path, test=0), "test")
        with pytest.raises(DataError, match="this is no labelled data set"):
            read_answers(tmp_path / "nowhere", "test")

    def test_a_malformed_row_is_named_by_its_place(self, tmp_path: Path) -> None:
        file = write_dataset(tmp_path) / "trajectories" / "test-00000.jsonl"
        lines = file.read_text().splitlines()
        lines[1] = json.dumps({**json.loads(lines[1]), "count": 0})
        file.write_text("\n".join(lines))
        with pytest.raises(DataError, match=r"test-00000\.jsonl, line 2.*a count of 0"):
            judge_answers(model("orm"), read_answers(tmp_path, "test"))
        with pytest.raises(DataError, match="answer 1"):
            judge_answers(model("orm"), [{"id": "x"}])


class TestJudged:
    @pytest.mark.parametrize("name", KINDS)
    def test_steps_are_scored_as_alone(self, name: str) -> None:
        prm = model(name)
        judged = judge_answers(prm, answers())
        for number, row in enumerate(answers()):
            own = judged.pick(judged.trajectories == number)
            expected = alone(name, number)
            assert [STEP_KINDS[kind] for kind in own.kinds] == [kind for kind, _, _ in expected]
            assert own.scores(prm.temperature).tolist() == pytest.approx([s for _, s, _ in expected], abs=1e-4)
            assert own.labels.tolist() == [right for _, _, right in expected]
            assert set(own.weights.tolist()) == {float(row["count"])}

    def test_what_cannot_be_judged_is_refused(self) -> None:
        with pytest.raises(DataError, match="no answers"):
            judge_answers(model("orm"), [])
        names = ToolPRM(reward().engine, tokenizer(), tags={"FUNC_NAME": DEFAULT_TAGS["FUNC_NAME"]})
        empty = [{**row, "steps": row["steps"][-1:]} for row in answers()]
        with pytest.raises(RequestError, match="judges FUNC_NAME, and no answer"):
            judge_answers(names, empty)
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
        short = ToolPRM(GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=len(tokenizer()))).eval(), tokenizer())
        with pytest.raises(BudgetExceeded, match=f"{len(answers())} of {len(answers())} answers are longer.*64 tokens"):
            judge_answers(short, answers())

    def test_it_needs_no_trainer(self) -> None:
        # Read rather than run: a fresh interpreter takes long to load torch.
        waiting, seen = ["toolprm_decode.evaluation.reward_models"], set[str]()
        while waiting:
            if (name := waiting.pop()) in seen or (spec := importlib.util.find_spec(name)) is None:
                continue
            seen.add(name)
            for node in ast.parse(Path(spec.origin or "").read_text()).body:
                if isinstance(node, ast.ImportFrom) and node.module:
                    assert node.module != "accelerate" and not {one.name for one in node.names} & {"Trainer"}, name
                    if node.module.startswith("toolprm_decode."):
                        waiting.append(node.module)
        assert "toolprm_decode.engine.attention" in seen and "toolprm_decode.learning.training" not in seen


class TestRows:
    def test_numbers_are_those_of_each_answer_alone(self) -> None:
        table = reward_rows({name: (model(name), judge_answers(model(name), answers())) for name in KINDS})
        assert [row["model"] for row in table[:3]] == list(KINDS) and {row["kind"] for row in table[:3]} == {"all"}
        order = [(["all", *STEP_KINDS].index(row["kind"]), list(KINDS).index(row["model"])) for row in table]
        assert order == sorted(set(order))
        found = {(row["model"], row["kind"]): row for row in table}
        assert {kind for name, kind in found if name == "c-prm"} == {"all", *KINDS["c-prm"]}
        for (name, kind), row in found.items():
            assert row["judges"] == ", ".join(KINDS[name])
            # Each draw is an answer of its own.
            drawn = [alone(name, i) for i, one in enumerate(answers()) for _ in range(one["count"])]
            self.check(row, [[step for step in steps if kind in ("all", step[0])] for steps in drawn])

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize("kind", ["all", "TOTAL_FINISH"])
    def test_the_last_judged_step_decides_over_the_answer(self, name: str, kind: str) -> None:
        table = reward_rows({name: (model(name), judge_answers(model(name), answers()))})
        (found,) = [row for row in table if row["kind"] == kind]
        right, total = 0, 0
        for number, row in enumerate(answers()):
            right += row["count"] * ((alone(name, number)[-1][1] >= 0.5) == (row["label"] == "+"))
            total += row["count"]
        assert found["trajectories"] == total
        assert found["trajectory_accuracy"] == pytest.approx(right / total)
        if kind == "TOTAL_FINISH":
            assert found["accuracy"] == pytest.approx(right / total) and found["steps"] == total

    @staticmethod
    def check(row: dict[str, Any], trajectories: list[list[Step]]) -> None:
        trajectories = [steps for steps in trajectories if steps]
        steps = [(score, right) for one in trajectories for _, score, right in one]
        good, bad = [s for s, right in steps if right], [s for s, right in steps if not right]
        assert row["steps"] == len(steps) and row["wrong"] == pytest.approx(len(bad) / len(steps))
        loss = [-math.log(s if right else 1 - s) for s, right in steps]
        assert row["loss"] == pytest.approx(sum(loss) / len(loss), abs=1e-3)
        assert row["accuracy"] == pytest.approx(sum((s >= 0.5) == right for s, right in steps) / len(steps))
        assert close(row["wrong_recall"], [float(s < 0.5) for s in bad])
        pairs = [1.0 if g > b + 1e-6 else 0.5 if g > b - 1e-6 else 0.0 for g in good for b in bad]
        assert close(row["auc"], pairs, 1e-3)
        error = 0.0
        for low in range(15):
            inside = [(s, right) for s, right in steps if min(int(s * 15), 14) == low]
            error += abs(sum(s - right for s, right in inside)) / len(steps)
        assert row["ece"] == pytest.approx(error, abs=1e-3)
        decided = [[(score >= 0.5) == right for _, score, right in one] for one in trajectories]
        assert row["trajectories"] == len(trajectories)
        assert close(row["trajectory_accuracy"], [float(one[-1]) for one in decided])
        assert close(row["trajectory_all_steps"], [float(all(one)) for one in decided])

    def test_what_is_not_defined_is_nan(self) -> None:
        right = copy.deepcopy(answers().rows[:3])
        for row in right:
            row["steps"] = [{**step, "label": "+"} for step in row["steps"]]
        told = reward_rows({"orm": (model("orm"), judge_answers(model("orm"), right))})
        assert [row["kind"] for row in told] == ["all", "TOTAL_FINISH"]
        for row in told:
            assert math.isnan(row["auc"]) and math.isnan(row["wrong_recall"])
            assert row["wrong"] == 0 and 0 <= row["trajectory_accuracy"] <= 1
        nothing = Judged(*(np.array([], kind) for kind in (float, bool, int, int, float)))
        (row,) = reward_rows({"orm": (model("orm"), nothing)})
        assert row["steps"] == row["trajectories"] == 0 and math.isnan(row["accuracy"]) and math.isnan(row["loss"])
        assert reward_rows({}) == []


def close(found: float, values: list[float], tolerance: float = 1e-9) -> bool:
    return found == pytest.approx(sum(values) / len(values), abs=tolerance) if values else math.isnan(found)


class TestCalibration:
    @pytest.mark.parametrize(("temperature", "bins"), [(1.0, 10), (2.5, 10), (0.3, 1), (1.0, 7)])
    def test_bins_hold_each_draw_once(self, temperature: float, bins: int) -> None:
        random = np.random.default_rng(bins)
        margins, labels = random.normal(0, 2, 60), random.random(60) < 0.5
        margins[:3] = [0.0, 800.0, -800.0]
        weights = random.integers(1, 4, 60).astype(float)
        judged = Judged(margins, labels, np.zeros(60, int), np.arange(60), weights)
        inside: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
        for margin, right, weight in zip(margins.tolist(), labels.tolist(), weights.tolist(), strict=True):
            score = 1 / (1 + math.exp(-margin / temperature)) if margin > -700 else 0.0
            inside[min(int(score * bins), bins - 1)] += [(score, right)] * int(weight)
        expected = [bin for bin in inside if bin]
        found = calibration(judged, temperature, bins)
        assert [one["weight"] for one in found] == [len(bin) for bin in expected]
        assert [one["score"] for one in found] == pytest.approx([sum(s for s, _ in b) / len(b) for b in expected])
        assert [one["right"] for one in found] == pytest.approx([sum(r for _, r in b) / len(b) for b in expected])

    def test_no_steps_fill_no_bin(self) -> None:
        nothing = Judged(*(np.array([], kind) for kind in (float, bool, int, int, float)))
        assert calibration(nothing, 1.0) == []

    @pytest.mark.parametrize(("temperature", "bins"), [(0.0, 10), (-1.0, 10), (math.nan, 10), (math.inf, 10), (1.0, 0)])
    def test_settings_out_of_range_are_refused(self, temperature: float, bins: int) -> None:
        with pytest.raises(RequestError):
            calibration(judge_answers(model("orm"), answers()), temperature, bins)
