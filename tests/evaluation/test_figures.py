"""What is said of outcomes: differences, grids, curves, claims, failures and search trees, on outcomes made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolprm_decode import Search, load_demo
from toolprm_decode.decoding import Decoder
from toolprm_decode.evaluation.evaluate import Models, Outcome, evaluate
from toolprm_decode.evaluation.figures import axes, claims, curves, make_figures, right_nodes, tree_pages
from toolprm_decode.evaluation.report import write_report
from toolprm_decode.evaluation.strategies import read_strategies
from toolprm_decode.evaluation.suites import Suite, load_suite
from toolprm_decode.models import MODELS
from toolprm_decode.questions.labels import trajectory_right
from toolprm_decode.questions.samples import Sample, gold_call

N = 200
SUITE = Suite(
    "made up",
    [
        Sample(f"q{i}", [{"name": "f"}], [{"role": "user", "content": f"question {i}"}], [gold_call("f", {"x": i})])
        for i in range(N)
    ],
    ["even" if i % 2 == 0 else "odd" for i in range(N)],
    "accuracy",
    [],
)
SEARCH = Search(beams=2, width=8, aggregate="min", policy_weight=0.15)
REWARDS = ["toolprm", "orm"]


def outcome(name: str, right: Sequence[bool] | np.ndarray, tokens: int, prm: int = 0, prompts: int = 80) -> Outcome:
    (strategy,) = read_strategies(name, SEARCH, REWARDS)
    rows = [
        {
            "id": sample.id,
            "right": bool(flag),
            "names": [1, 1, 1],
            "parameters": [int(flag), 1, 1],
            "calls": [{"name": "f", "arguments": {"x": i if flag else -1}}],
            "score": (i % 10) / 10,
            "logprob": -1.0,
            "policy_tokens": tokens,
            "prm_tokens": prm,
            "prompt_tokens": prompts * (2 if prm else 1),
            "any_right": bool(flag),
            "closed": False,
            "refused": None,
        }
        for i, (sample, flag) in enumerate(zip(SUITE.samples, right, strict=True))
    ]
    return Outcome(SUITE, strategy, (0,), [rows])


def first(count: int) -> np.ndarray:
    return np.arange(N) < count


def claim(found: Sequence[dict[str, Any]], word: str) -> dict[str, Any]:
    (one,) = [c for c in found if word in c["claim"]]
    return one


class TestClaims:
    def test_a_rival_of_the_same_budget_is_beaten_where_the_interval_excludes_zero(self) -> None:
        outcomes = [
            outcome("greedy", first(100), 100),
            outcome("majority-vote:4", first(119), 200),  # the better one, but it spends less
            outcome("majority-vote:64", first(118), 400),
            outcome("weighted-vote:16/orm", first(139), 200, 150),
            outcome("step-beam", first(140), 130, 170),
        ]
        found = claims(outcomes)
        assert claim(found, "greedy")["holds"] is True and "+20.0 points" in claim(found, "greedy")["why"]
        votes = claim(found, "majority")
        assert votes["holds"] is True and "majority-vote:64" in votes["why"] and "300 " in votes["why"]
        weighted = claim(found, "votes weighted by orm")  # half a point: the interval reaches zero
        assert weighted["holds"] is None and "[+0.0, +1.5]" in weighted["why"]
        worse = claims([outcome("greedy", first(100), 100), outcome("step-beam", first(80), 130, 170)])
        assert claim(worse, "greedy")["holds"] is False

    def test_it_stays_open_where_no_rival_spends_as_much(self) -> None:
        found = claims([outcome("step-beam", first(140), 130, 170), outcome("majority-vote:4", first(100), 200)])
        assert claim(found, "majority")["holds"] is None and "no size of it" in claim(found, "majority")["why"]

    def test_exploring_is_compared_with_its_mirror_image(self) -> None:
        cells = {(1, 1): 100, (1, 4): 130, (4, 1): 110, (4, 4): 131}
        outcomes = [outcome(f"step-beam:{n}x{m}", first(k), 100 * n, 10 * m) for (n, m), k in cells.items()]
        found = claims(outcomes)
        wide = claim(found, "explore more")
        assert wide["holds"] is True and wide["why"].startswith("+10.0 points") and "for the 1 grids" in wide["why"]
        assert claim(found, "more width helps at N = 4, M from 1 to 4")["why"].startswith("+10.5 points")
        assert claim(found, "more beams helps at M = 4, N from 1 to 4")["holds"] is None  # +0.5

    @pytest.mark.parametrize(("right", "tokens", "holds"), [(130, 100, True), (130, 240, False), (60, 100, False)])
    def test_adaptive_is_held_to_the_best_cell(self, right: int, tokens: int, holds: bool) -> None:
        cells = {(1, 1): 100, (1, 4): 132, (4, 1): 110, (4, 4): 131}
        outcomes = [outcome(f"step-beam:{n}x{m}", first(k), 160, 200) for (n, m), k in cells.items()]
        outcomes.append(outcome("adaptive:1x16", first(right), tokens, 50))
        found = claim(claims(outcomes), "adaptive")
        assert found["holds"] is holds
        share, own = (tokens + 50) / 360, (tokens + 50 - 160) / 200
        assert f"{100 * share:.0f} % of its" in found["why"] and f"{100 * own:.0f} % without" in found["why"]
        assert "66.0 %" in found["why"] and "step-beam:1x4" in found["why"]

    def test_judges_are_ordered_by_either_figure(self) -> None:
        def rows(trajectory: Sequence[float], auc: Sequence[float]) -> list[dict[str, Any]]:
            found = []
            for name, a, u in zip(("orm", "c-prm", "toolprm"), trajectory, auc, strict=True):
                found += [{"model": name, "kind": kind, "trajectory_accuracy": a, "auc": u} for kind in KINDS]
            return found

        KINDS = ("all", "TOTAL_FINISH")
        for trajectory, auc, holds in (
            ((0.90, 0.91, 0.92), (0.9, 0.9, 0.9), True),
            ((0.92, 0.91, 0.93), (0.97, 0.98, 0.99), True),
            ((0.92, 0.91, 0.93), (0.99, 0.98, 0.97), False),
        ):
            found = claims([outcome("greedy", first(3), 1)], rows(trajectory, auc))
            assert claim(found, "toolprm > c-prm > orm")["holds"] is holds

    def test_nothing_is_claimed_of_what_was_not_measured(self) -> None:
        assert claims([outcome("greedy", first(100), 100), outcome("sample", first(80), 100)]) == []


class TestFamilies:
    def test_curves_hold_what_differs_in_size_alone(self) -> None:
        names = ["best-of-n:4", "best-of-n:2", "best-of-n:2/orm", "step-beam:1x2", "step-beam:1x4", "step-beam:8x2"]
        names += ["adaptive:1x4", "adaptive:1x4+c0.5", "greedy"]
        found = curves([outcome(name, first(50), 10 * i + 1) for i, name in enumerate(names)])
        assert {c["name"]: [p["strategy"] for p in c["points"]] for c in found} == {
            "best-of-n, toolprm": ["best-of-n:4", "best-of-n:2"],
            "step-beam N=1, toolprm": ["step-beam:1x2", "step-beam:1x4"],
            "adaptive, toolprm": ["adaptive:1x4", "adaptive:1x4+c0.5"],
        }

    def test_axes_hold_what_differs_in_one_setting(self) -> None:
        names = ["step-beam", "step-beam+t0.5", "step-beam+last", "step-beam:1x2+t0.5", "step-beam/orm"]
        found = axes([outcome(name, first(50), 1) for name in names])
        assert {a["axis"]: [p["x"] for p in a["curves"][0]["points"]] for a in found} == {
            "temperature": [0.5, 0.8],
            "aggregate": ["min", "last"],
        }


class TestFigures:
    def test_all_of_it_is_plain_json_that_a_report_shows(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        outcomes = [outcome("greedy", first(100), 100), outcome("step-beam", first(140), 130, 170)]
        figures = make_figures(outcomes, about={"split": "test", "seeds": [0]})
        assert json.loads(json.dumps(figures)) == figures
        greedy, beam = figures["rows"]
        assert greedy["groups"]["even"]["n"] == 100 and greedy["groups"]["even"]["accuracy"] == 0.5
        assert (beam["tokens"], beam["answer_tokens"], beam["difference"]) == (300, 140, pytest.approx(0.2))
        (difference,) = figures["differences"]
        assert (difference["strategy"], difference["against"]) == ("greedy", "step-beam")
        assert difference["difference"] == pytest.approx(-0.2)
        # Of the wrong answers (from 140 on) the one with the highest score, 0.9, and the lowest number.
        worst = figures["failures"][0]
        assert worst["id"] == "q149" and worst["gold"] == ['f({"x": 149})']
        assert [a["right"] for a in worst["answers"]] == [False, False]
        write_report(figures, tmp_path)
        assert "question 149" in (tmp_path / "report.md").read_text()

    def test_no_strategy_with_steps_leaves_the_rest(self) -> None:
        figures = make_figures([outcome("greedy", first(100), 100)])
        assert figures["differences"] == figures["failures"] == figures["curves"] == [] and figures["sweep"] is None

    def test_answers_that_are_all_wrong_are_honest_rows(self) -> None:
        names = ["greedy", "step-beam", "step-beam:1x1", "step-beam:1x2", "step-beam:2x1", "adaptive"]
        figures = make_figures([outcome(name, first(0), 0, 0, 0) for name in names])
        for row in figures["rows"]:
            assert (row["accuracy"], row["low"], row["high"], row["tokens"]) == (0, 0, 0, 0)


class TestTrees:
    def test_nodes_are_right_as_far_as_their_steps_are(self) -> None:
        demo = load_demo()
        decoder = Decoder(demo.model, demo.prm, tokenizer=demo.tokenizer)
        seen = {True: 0, False: 0}
        for sample in load_suite("built-in", limit=6).samples:
            decoded = decoder.decode(sample.tools, sample.messages, demo.search)
            grammar = decoder.grammar(sample.tools, demo.search)
            flags = right_nodes(decoded.tree, sample, grammar)
            for index, node in enumerate(decoded.tree.nodes):
                flag = flags[index]
                assert flag is not None
                seen[flag] += 1
                if node.parent is not None and flag:
                    assert flags[node.parent]
            assert decoded.tree.best is not None
            assert flags[decoded.tree.best] == trajectory_right(sample, decoded.calls)
        assert min(seen.values()) > 5

    def test_pages_are_written_for_telling_questions(self, tmp_path: Path) -> None:
        models = Models(MODELS / "policy", {"toolprm": MODELS / "toolprm"})
        suite = load_suite("built-in", limit=16)
        outcomes = evaluate(suite, read_strategies("greedy,step-beam", load_demo().search, ["toolprm"]), models)
        pages = tree_pages(outcomes, models, tmp_path, 3)
        assert 1 <= len(pages) <= 3 and len({page["id"] for page in pages}) == len(pages)
        for page in pages:
            text = (tmp_path / page["page"]).read_text()
            assert page["note"] in text and "Asked for" in text
        assert tree_pages(outcomes[:1], models, tmp_path, 3) == []
