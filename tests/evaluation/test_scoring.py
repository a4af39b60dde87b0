"""Verdicts and figures are those of slow computations, written apart from the code."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolprm_decode.errors import RequestError
from toolprm_decode.evaluation.scoring import HEADLINES, Verdict, headline, headline_groups, judge
from toolprm_decode.evaluation.suites import load_suite
from toolprm_decode.questions.labels import gold_calls, trajectory_right
from toolprm_decode.questions.samples import Sample, gold_call
from toolprm_decode.tools import read_tools

from ..questions.bfcl_cases import calls_of, mutated, official, official_checker

TOOLS = [
    {"name": name, "description": "", "parameters": {"a": {"type": "string"}, "b": {"type": "integer"}}}
    for name in ("f", "g")
]
USER = [{"role": "user", "content": "?"}]


def sample(gold: list[dict[str, Any]], match: str = "exact", tools: list[Any] = TOOLS, **meta: Any) -> Sample:
    return Sample("x", tools, USER, gold, match, meta)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


class TestJudge:
    def test_a_right_answer_matches_all(self) -> None:
        gold = [gold_call("f", {"a": "x", "b": 2}), gold_call("g", {})]
        assert judge(sample(gold), [call("g"), call("f", b=2, a="x")]) == Verdict(True, (2, 2, 2), (2, 2, 2))

    @pytest.mark.parametrize(
        ("calls", "names", "parameters"),
        [
            ([], (0, 0, 2), (0, 0, 3)),
            ([call("f", a="x")], (1, 1, 2), (1, 1, 3)),
            ([call("f", a="x"), call("f", a="x"), call("f", a="y", b=1)], (2, 3, 2), (2, 4, 3)),
            ([call("f", a="x", b="2"), call("f", a="")], (2, 2, 2), (2, 2, 3)),  # str(2) is "2", "" is nothing
            ([call("g", a="x", b=2)], (0, 1, 2), (0, 2, 3)),
        ],
    )
    def test_what_f1_counts(
        self, calls: list[dict[str, Any]], names: tuple[int, int, int], parameters: tuple[int, int, int]
    ) -> None:
        gold = [gold_call("f", {"a": "x", "b": 2}), gold_call("f", {"a": "x", "b": ""})]
        assert judge(sample(gold), calls) == Verdict(False, names, parameters)

    def test_any_allowed_value_matches_and_what_may_be_left_out_is_not_missed(self) -> None:
        gold = [{"name": "f", "arguments": {"a": ["x", "y"], "b": [1, ""]}, "optional": ["b"]}]
        assert judge(sample(gold), [call("f", a="y")]) == Verdict(True, (1, 1, 1), (1, 1, 1))
        assert judge(sample(gold), [call("f", a="y", b=1)]) == Verdict(True, (1, 1, 1), (2, 2, 2))
        assert judge(sample(gold), [call("f", a="z", b=2)]) == Verdict(False, (1, 1, 1), (0, 2, 1))

    def test_where_no_tool_fits_nothing_may_be_called(self) -> None:
        for match in ("exact", "bfcl"):
            assert judge(sample([], match), []).right
            assert judge(sample([], match), [call("f")]) == Verdict(False, (0, 1, 0), (0, 0, 0))

    def test_where_something_fits_anything_may_be_called(self) -> None:
        question = sample([], "any-call")
        assert not judge(question, []).right and not trajectory_right(question, [])
        assert judge(question, [call("f")]).right and judge(question, [call("g", a="x"), call("f")]).right
        with pytest.raises(RequestError, match="no step can be judged"):
            gold_calls(question)

    def test_bfcl_is_the_leaderboards_verdict_where_answers_overlap(self) -> None:
        """It takes the first call that fits an answer; labels look for a pairing."""
        tool = {"name": "f", "description": "", "parameters": {"type": "dict", "properties": {"a": {"type": "string"}}}}
        answers = [{"a": ["x", "y"]}, {"a": ["x"]}]
        gold = [{"name": "f", "arguments": one, "optional": []} for one in answers]
        question = sample(gold, "bfcl", [tool], language="python")
        for values, right in ((("x", "y"), False), (("y", "x"), True)):
            calls = [call("f", a=value) for value in values]
            assert judge(question, calls).right == right
            assert trajectory_right(question, calls)


def test_right_is_the_leaderboards_verdict_in_every_category(data_dir: Path) -> None:
    check = official_checker()
    if not (data_dir / "bfcl").is_dir():
        pytest.skip(f"there is no bfcl in {data_dir}")
    suite = load_suite("bfcl", data=data_dir)
    rng = random.Random(3)
    verdicts: dict[str, Counter[bool]] = {}
    for question, category in zip(suite.samples, suite.groups, strict=True):
        language, tools = question.meta["language"], read_tools(question.tools)
        answers = [{gold["name"]: gold["arguments"]} for gold in question.gold]
        for turn in range(4):
            calls = calls_of(answers, rng, language)
            if not answers:
                calls = [call(rng.choice(tools).name, x=1)] * rng.choice([0, 0, 1, 2])
            elif turn:
                calls = mutated(calls, rng, language, question.tools)
            expected = check(category, language, question.tools, answers, calls)
            if expected is not None:
                assert judge(question, calls, tools).right == expected, (question.id, calls)
                verdicts.setdefault(category, Counter())[expected] += 1
    assert set(verdicts) == set(suite.groups)
    assert all(min(counts[True], counts[False]) >= 5 for counts in verdicts.values()), verdicts
    assert sum(verdicts.values(), Counter()).total() > 5000


def slow_f1(pairs: list[tuple[list[Any], list[Any]]]) -> float:
    """Micro F1 of predictions and gold, crossing out each gold item that is found."""
    found = predicted = wanted = 0
    for given, gold in pairs:
        left = list(gold)
        for item in given:
            predicted += 1
            if item in left:
                left.remove(item)
                found += 1
        wanted += len(gold)
    precision, recall = found / predicted, found / wanted
    return 2 * precision * recall / (precision + recall)


def test_f1_of_toolalpaca_is_that_of_an_independent_computation(data_dir: Path) -> None:
    if not (data_dir / "hammer").is_dir() and not (data_dir / "toolalpaca").is_dir():
        pytest.skip(f"there is no ToolAlpaca in {data_dir}")
    suite = load_suite("toolalpaca", data=data_dir)
    rng = random.Random(0)
    names, parameters, verdicts = [], [], []
    for question in suite.samples:
        gold = [
            {"name": one["name"], "arguments": {k: v[0] for k, v in one["arguments"].items()}} for one in question.gold
        ]
        calls = [{"name": one["name"], "arguments": dict(one["arguments"])} for one in gold]
        for one in calls:
            for key in list(one["arguments"]):
                chance = rng.random()
                if chance < 0.1:
                    del one["arguments"][key]
                elif chance < 0.3:
                    one["arguments"][key] = rng.choice(["", "other", 7, str(one["arguments"][key])])
            if rng.random() < 0.1:
                one["name"] = rng.choice(question.tools)["name"]
        if rng.random() < 0.2:
            calls.append(rng.choice(calls))
        if rng.random() < 0.1:
            calls.pop(0)
        names.append(([one["name"] for one in calls], [one["name"] for one in gold]))
        flat = [
            [(one["name"], k, str(v)) for one in side for k, v in one["arguments"].items() if str(v)]
            for side in (calls, gold)
        ]
        parameters.append((flat[0], flat[1]))
        verdicts.append(judge(question, calls))
    expected = (slow_f1(names) + slow_f1(parameters)) / 2
    counts = (np.array([v.names for v in verdicts]), np.array([v.parameters for v in verdicts]))
    found = headline(suite.headline, np.array([v.right for v in verdicts]), *counts, suite.groups)
    assert suite.headline == "f1" and 0.5 < expected < 0.95
    assert found == pytest.approx(expected, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Figures

CATEGORIES = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "live_simple",
    "live_multiple",
    "irrelevance",
    "live_irrelevance",
    "live_relevance",
)
Verdicts = tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]


def verdicts(n: int, seed: int, categories: tuple[str, ...] = CATEGORIES) -> Verdicts:
    rng = np.random.default_rng(seed)
    counts = np.sort(rng.integers(0, 4, (2, n, 3)), axis=2)
    return rng.random(n) < 0.6, counts[0], counts[1], [str(one) for one in rng.choice(categories, n)]


def mean(values: list[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else math.nan


def slow(kind: str, rows: list[tuple[bool, Any, Any, str]]) -> float:
    """The figure over rows, one for each time that a question was drawn."""

    def share(*categories: str) -> float:
        return mean([float(right) for right, _, _, group in rows if group in categories])

    if kind == "accuracy":
        return mean([float(right) for right, *_ in rows])
    if kind == "bfcl-ast":
        simple = mean([share(f"simple_{language}") for language in ("python", "java", "javascript")])
        return mean([simple, share("multiple"), share("parallel"), share("parallel_multiple")])
    both = []
    for place in (1, 2):
        matched, predicted, gold = (sum(row[place][at] for row in rows) for at in range(3))
        both.append(2 * matched / (predicted + gold) if predicted + gold else math.nan)
    return mean(both)


def drawn(found: Verdicts, weights: np.ndarray) -> list[tuple[bool, Any, Any, str]]:
    return [row for row, times in zip(zip(*found, strict=True), weights, strict=True) for _ in range(int(times))]


@pytest.mark.parametrize("kind", HEADLINES)
@pytest.mark.parametrize("n", [1, 7, 90])
def test_headlines_are_those_of_the_questions_drawn(kind: str, n: int) -> None:
    found = verdicts(n, n)
    weights = np.random.default_rng(1).multinomial(n, np.full(n, 1 / n), 25)
    weights[0] = 0
    many = headline(kind, *found, weights)
    assert many.shape == (25,) and math.isnan(many[0])
    for row, figure in zip(weights, many, strict=True):
        assert figure == pytest.approx(slow(kind, drawn(found, row)), abs=1e-12, nan_ok=True)
        assert float(headline(kind, *found, row)) == pytest.approx(float(figure), abs=1e-12, nan_ok=True)
    once = headline(kind, *found)
    assert isinstance(once, float)
    assert once == pytest.approx(slow(kind, drawn(found, np.ones(n))), abs=1e-12, nan_ok=True)


def test_groups_have_their_own_figures_and_bfcl_its_sums() -> None:
    right, names, parameters, groups = found = verdicts(300, 3)
    by_group = headline_groups("bfcl-ast", *found)
    rows = drawn(found, np.ones(300))
    assert set(by_group) == {*CATEGORIES, "non-live AST", "live AST", "irrelevance overall"}
    for group in CATEGORIES:
        assert by_group[group] == pytest.approx(slow("accuracy", [row for row in rows if row[3] == group]))
    assert by_group["non-live AST"] == headline("bfcl-ast", *found)
    live = [row for row in rows if row[3] in ("live_simple", "live_multiple")]
    assert by_group["live AST"] == pytest.approx(slow("accuracy", live))
    assert by_group["irrelevance overall"] == pytest.approx(
        (by_group["irrelevance"] + by_group["live_irrelevance"]) / 2
    )
    f1 = headline_groups("f1", *found)
    assert list(f1) == list(dict.fromkeys(groups))
    for group, figure in f1.items():
        assert figure == pytest.approx(slow("f1", [row for row in rows if row[3] == group]))
    weights = np.random.default_rng(0).multinomial(300, np.full(300, 1 / 300), 4)
    for group, figures in headline_groups("bfcl-ast", right, names, parameters, groups, weights).items():
        one = [headline_groups("bfcl-ast", *found, row)[group] for row in weights]
        assert figures == pytest.approx(np.array(one))


@pytest.mark.parametrize("seed", range(5))
def test_sums_are_those_of_the_leaderboard(seed: int) -> None:
    (helper,) = official("eval_checker.eval_runner_helper")
    found = verdicts(200, seed)
    rows = drawn(found, np.ones(200))

    def counted(category: str) -> dict[str, Any]:
        own = [float(row[0]) for row in rows if row[3] == category]
        return {"accuracy": sum(own) / len(own), "total_count": len(own), "display_accuracy": sum(own) / len(own)}

    def unweighted(parts: list[dict[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = helper.calculate_unweighted_accuracy(parts)
        return result

    simple = unweighted([counted(f"simple_{language}") for language in ("python", "java", "javascript")])
    ast = unweighted([simple, *map(counted, ("multiple", "parallel", "parallel_multiple"))])
    live = helper.calculate_weighted_accuracy([counted("live_simple"), counted("live_multiple")])
    irrelevance = unweighted([counted("irrelevance"), counted("live_irrelevance")])
    by_group = headline_groups("bfcl-ast", *found)
    assert headline("bfcl-ast", *found) == by_group["non-live AST"] == pytest.approx(ast["accuracy"])
    assert by_group["live AST"] == pytest.approx(live["accuracy"])
    assert by_group["irrelevance overall"] == pytest.approx(irrelevance["accuracy"])


def test_what_is_absent_is_left_out() -> None:
    found = verdicts(60, 5, ("simple_java", "parallel"))
    rows = drawn(found, np.ones(60))
    shares = [slow("accuracy", [row for row in rows if row[3] == group]) for group in ("simple_java", "parallel")]
    assert headline("bfcl-ast", *found) == pytest.approx(sum(shares) / 2)
    assert math.isnan(headline("bfcl-ast", *verdicts(5, 0, ("live_simple",))))
    nothing = np.zeros((0, 3))
    assert all(math.isnan(headline(kind, np.zeros(0), nothing, nothing, [])) for kind in HEADLINES)
    assert headline_groups("accuracy", np.zeros(0), nothing, nothing, []) == {}
    # No argument anywhere: F1 over names alone.
    names, none = np.array([[1, 1, 1]]), np.zeros((1, 3), int)
    assert headline("f1", np.array([True]), names, none, ["a"]) == 1


def test_figures_that_cannot_be_are_refused() -> None:
    right, names, parameters, groups = verdicts(4, 0)
    with pytest.raises(RequestError, match="unknown figure 'mean': use one of accuracy, bfcl-ast, f1"):
        headline("mean", right, names, parameters, groups)
    with pytest.raises(RequestError, match="4 questions need verdicts"):
        headline("accuracy", right[:3], names, parameters, groups)
    with pytest.raises(RequestError, match="4 questions need verdicts"):
        headline("accuracy", right, names, parameters, groups, np.ones((2, 3)))
