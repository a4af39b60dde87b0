"""Strategies on a suite: names, picks, budgets and intervals."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from toolprm_decode import Search, ToolPRM
from toolprm_decode.cli import main
from toolprm_decode.decoding import Answer, Request
from toolprm_decode.errors import DataError, RequestError, ToolprmError
from toolprm_decode.evaluation.evaluate import MANIFEST, Models, evaluate, own_search
from toolprm_decode.evaluation.statistics import bootstrap, interval
from toolprm_decode.evaluation.strategies import SETS, read_strategies
from toolprm_decode.evaluation.suites import load_suite
from toolprm_decode.learning.world.pretraining import Pretraining, build_model
from toolprm_decode.learning.world.tokenizer import build_tokenizer
from toolprm_decode.questions.labels import trajectory_right

SEARCH = Search(beams=2, width=3, max_tokens=40, policy_weight=0.25)
TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random policy and reward model of the world's tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    models = [build_model(TOKENIZER, Pretraining(32, 3, 4, 48, seed=seed)).eval() for seed in range(2)]
    models[0].save_pretrained(folder / "policy")
    TOKENIZER.save_pretrained(folder / "policy")
    ToolPRM(models[1], TOKENIZER).save_pretrained(folder / "prm")
    return folder


@pytest.fixture(scope="module")
def models(folder: Path) -> Models:
    return Models(str(folder / "policy"), {"prm": str(folder / "prm")})


class TestBootstrap:
    def test_draws_without_a_number_are_left_out(self) -> None:
        found = interval(0.5, np.array([np.nan, 0.0, 1.0, np.nan]))
        assert found == (0.5, 0.025, 0.975)
        assert np.isnan(interval(np.nan, np.array([np.nan]))).all()

    def test_bounds_are_those_of_all_resamples(self) -> None:
        values = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
        means = [np.mean(draw) for draw in itertools.product(values, repeat=5)]
        found = bootstrap(values, draws=20000)
        assert found.mean == pytest.approx(0.6)
        assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-9)

    def test_what_never_varies_has_no_width(self) -> None:
        assert bootstrap(np.ones(7)) == (1.0, 1.0, 1.0)
        assert np.isnan(bootstrap(np.zeros(0))).all()


class TestNames:
    def test_names_say_what_is_run(self) -> None:
        names = (
            "greedy,sample, step-beam:4x8@0.5,best-of-n:4,weighted-vote,logprob-best-of-n:16,majority-vote:2,step-beam,"
            "token-beam:3,dvts:4x2/orm,adaptive:2x8+c0.7,step-beam+distinct+t0.5+mean,greedy"
        )
        found = {one.name: one for one in read_strategies(names, SEARCH, ["prm", "orm"])}
        kinds = {name: (one.search.strategy, one.reward, one.votes) for name, one in found.items()}
        assert kinds == {
            "greedy": ("greedy", None, None),
            "sample": ("sample", None, None),
            "step-beam:4x8@0.5": ("step-beam", "prm", None),
            "best-of-n:4": ("sample", "prm", None),
            "weighted-vote": ("sample", "prm", "scored"),
            "logprob-best-of-n:16": ("sample", None, None),
            "majority-vote:2": ("sample", None, "plain"),
            "step-beam": ("step-beam", "prm", None),
            "token-beam:3": ("token-beam", None, None),
            "dvts:4x2/orm": ("step-beam", "orm", None),
            "adaptive:2x8+c0.7": ("step-beam", "prm", None),
            "step-beam+distinct+t0.5+mean": ("step-beam", "prm", None),
        }
        beam = found["step-beam:4x8@0.5"].search
        assert (beam.beams, beam.width, beam.policy_weight) == (4, 8, 0.5)
        assert found["step-beam"].search == SEARCH
        assert (found["best-of-n:4"].search.width, found["best-of-n:4"].search.policy_weight) == (4, 0.0)
        assert found["token-beam:3"].search.beams == 3
        assert found["dvts:4x2/orm"].search == replace(SEARCH, beams=4, width=2, independent=True)
        assert found["adaptive:2x8+c0.7"].search == replace(SEARCH, beams=2, width=8, confidence=0.7)
        varied = replace(SEARCH, distinct=True, temperature=0.5, aggregate="mean")
        assert found["step-beam+distinct+t0.5+mean"].search == varied
        assert [one.name for one in found.values() if one.chosen] == ["greedy", "token-beam:3"]

    def test_a_set_has_what_can_be_run(self) -> None:
        names = {one.name for one in read_strategies("paper,grid,greedy", SEARCH, ["toolprm", "orm"])}
        assert {"greedy", "best-of-n:16/orm", "step-beam", "step-beam:16x1"} <= names
        assert not [name for name in names if "c-prm" in name]
        assert {one.reward for one in read_strategies("paper", SEARCH, [])} == {None}
        for name in SETS:
            assert read_strategies(name, SEARCH, ["toolprm", "c-prm", "orm"])

    @pytest.mark.parametrize(
        "name",
        [
            *("", "beam", "greedy:3", "step-beam:4", "best-of-n:4x2", "sample:2", "best-of-n:0", "step-beam:2x8@-1"),
            *("greedy@0.5", "sample/prm", "step-beam/orm", "step-beam+wide", "step-beam+t", "step-beam+c0.9"),
            *(
                "weighted-vote:4@0.5",
                "adaptive+c1.5",
                "adaptive+distinct",
                "dvts+distinct",
                "token-beam:2x2",
                "step-beam+t0+distinct",
            ),
        ],
    )
    def test_others_are_refused(self, name: str) -> None:
        with pytest.raises(RequestError):
            read_strategies(name, SEARCH)

    def test_a_reward_model_is_asked_for(self) -> None:
        with pytest.raises(RequestError, match="'step-beam' needs a reward model: pass --prm"):
            read_strategies("step-beam", SEARCH, [])


class TestEvaluate:
    def test_what_is_counted_is_what_the_decoder_gives(self, models: Models) -> None:
        suite = load_suite("built-in", limit=6)
        strategies = read_strategies("greedy,step-beam,best-of-n:3,majority-vote:5", SEARCH)
        outcomes = evaluate(suite, strategies, models, batch=4)
        for strategy, outcome in zip(strategies, outcomes, strict=True):
            rewarded = strategy.reward is not None
            assert len(outcome.right) == 6 and (outcome.values("prm_tokens") > 0).all() == rewarded
            decoder = models.decoder(strategy.reward)
            for row, sample in zip(outcome.rows[0], suite.samples, strict=True):
                alone = decoder.decode(sample.tools, sample.messages, own_search(strategy, 0, sample))
                picked, stats = strategy.pick(alone), alone.stats
                assert row["id"] == sample.id and row["calls"] == picked.calls
                assert row["right"] == trajectory_right(sample, picked.calls)
                assert row["any_right"] == any(trajectory_right(sample, a.calls) for a in alone.finished)
                assert row["policy_tokens"] == stats.policy_tokens + stats.cached_tokens
                assert row["prm_tokens"] == stats.prm_tokens + stats.prm_cached_tokens
                prompts = stats.prompt_tokens + (stats.prm_prompt_tokens if rewarded else 0)
                assert row["prompt_tokens"] == prompts < row["policy_tokens"] + row["prm_tokens"]

    def test_the_batch_changes_nothing(self, models: Models) -> None:
        suite = load_suite("built-in", limit=5)
        strategies = read_strategies("step-beam,weighted-vote:4", SEARCH)
        one, other = (evaluate(suite, strategies, models, batch=batch) for batch in (1, 5))
        for a, b in zip(one, other, strict=True):
            assert (a.right == b.right).all() and (a.values("prm_tokens") == b.values("prm_tokens")).all()

    def test_seeds_are_runs_of_their_own_but_for_what_chance_has_no_part_in(self, models: Models) -> None:
        suite = load_suite("built-in", limit=4)
        greedy, sample = evaluate(suite, read_strategies("greedy,sample", SEARCH), models, seeds=(3, 4, 5))
        assert greedy.seeds == (3,) and sample.seeds == (3, 4, 5)
        calls = [[row["calls"] for row in rows] for rows in sample.rows]
        assert calls[0] != calls[1] != calls[2]
        assert sample.right.tolist() == np.mean([[row["right"] for row in rows] for rows in sample.rows], 0).tolist()

    def test_every_question_has_a_seed_of_its_own(self) -> None:
        (strategy,) = read_strategies("sample", SEARCH)
        one, other = load_suite("built-in", limit=2).samples
        seeds = {own_search(strategy, seed, sample).seed for seed in (0, 1) for sample in (one, other)}
        assert len(seeds) == 4
        assert own_search(strategy, 0, replace(one, id="\ud800")).seed not in seeds

    def test_votes_weigh_draws_by_scores(self) -> None:
        def answer(score: float, multiplicity: int, rank: float) -> Answer:
            return Answer([], "", [], [], score, 0.0, rank, multiplicity, False)

        plain, scored, best = read_strategies("majority-vote:9,weighted-vote:9,best-of-n:9", SEARCH)
        rare, common, tied = answer(0.9, 2, 3.0), answer(0.2, 5, 1.0), answer(0.2, 5, 2.0)
        decoded: Any = SimpleNamespace(finished=[rare, tied, common])
        assert plain.pick(decoded) is tied and scored.pick(decoded) is rare
        assert best.pick(decoded) is decoded  # whose first answer ranks best

    def test_votes_go_to_the_answer_drawn_most_often(self, models: Models) -> None:
        (plain,) = read_strategies("majority-vote:24", SEARCH)
        (sample,) = load_suite("built-in", limit=1).samples
        decoded = models.decoder(None).decode_batch([Request(sample.tools, sample.messages, plain.search)])[0]
        most = max(answer.multiplicity for answer in decoded.finished)
        assert plain.pick(decoded) in [a for a in decoded.finished if a.multiplicity == most]

    def test_what_is_refused_counts_as_wrong(self, models: Models) -> None:
        suite = load_suite("built-in", limit=3)
        strange = {
            "name": "f",
            "parameters": {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}},
        }
        refused = replace(suite.samples[1], gold=[], tools=[strange])
        suite = replace(suite, samples=[suite.samples[0], refused, suite.samples[2]])
        (outcome,) = evaluate(suite, read_strategies("greedy", SEARCH), models)
        row = outcome.rows[0][1]
        assert row["refused"] and not row["right"] and row["calls"] is None and row["policy_tokens"] == 0
        assert outcome.summary()["refused"] == 1


class TestFolder:
    NAMES = "greedy,step-beam,best-of-n:3,weighted-vote:3"

    def run(self, models: Models, folder: Path | None, **more: Any) -> list[list[list[dict[str, Any]]]]:
        suite = load_suite("built-in", limit=10)
        strategies = read_strategies(more.pop("names", self.NAMES), SEARCH)
        outcomes = evaluate(suite, strategies, models, seeds=(0, 1), folder=folder, batch=4, **more)
        return [[[{**row, **near(row)} for row in rows] for rows in outcome.rows] for outcome in outcomes]

    def test_a_run_that_broke_off_goes_on_and_gives_the_same(self, models: Models, tmp_path: Path) -> None:
        whole = self.run(models, None)

        class Broken(Exception):
            pass

        for after in (1, 3, 7):
            done = []

            def stop(name: str, count: int, after: int = after, done: list[str] = done) -> None:
                done.append(name)
                if len([count for _ in done if count]) > after + 7:  # what is there already is told first
                    raise Broken

            with pytest.raises(Broken):
                self.run(models, tmp_path / "out", progress=stop)
        file = max((tmp_path / "out" / "runs").iterdir(), key=lambda path: path.stat().st_size)
        with file.open("ab") as half:
            half.write(b'[{"id": "half a li')
        told: list[tuple[str, int]] = []
        assert self.run(models, tmp_path / "out", progress=lambda name, count: told.append((name, count))) == whole
        assert sum(count for name, count in told if name == "step-beam") == 20
        stamps = {path: path.read_bytes() for path in (tmp_path / "out" / "runs").iterdir()}
        assert self.run(models, tmp_path / "out") == whole
        assert {path: path.read_bytes() for path in (tmp_path / "out" / "runs").iterdir()} == stamps

    def test_more_strategies_may_come(self, models: Models, tmp_path: Path) -> None:
        first = self.run(models, tmp_path / "out", names="greedy")
        assert self.run(models, tmp_path / "out", names="greedy,sample")[:1] == first

    def test_workers_give_the_same(self, models: Models, tmp_path: Path) -> None:
        pytest.importorskip("ray", reason="Ray is not installed")
        assert self.run(models, tmp_path / "out", workers=2) == self.run(models, None)

    def test_workers_need_paths(self) -> None:
        with pytest.raises(RequestError, match="name the policy by its path"):
            self.run(Models(object(), {"prm": "prm"}), None, workers=2)

    def test_a_folder_of_something_else_is_refused(self, models: Models, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(DataError, match="is no report"):
            self.run(models, tmp_path)
        assert (tmp_path / "notes.txt").read_text() == "mine"
        self.run(models, tmp_path / "out", names="greedy")
        with pytest.raises(DataError, match="begun with models"):
            self.run(Models(str(folder / "prm"), {"prm": str(folder / "prm")}), tmp_path / "out", names="greedy")
        plain, short = (read_strategies("greedy", search) for search in (SEARCH, replace(SEARCH, max_tokens=30)))
        for limit, strategies, said in ((3, plain, "begun with questions"), (10, short, "begun as")):
            suite = load_suite("built-in", limit=limit)
            with pytest.raises(DataError, match=said):
                evaluate(suite, strategies, models, folder=tmp_path / "out", batch=4)
        suite = load_suite("built-in", limit=10)
        for more, said in ((Models(models.policy, format="hermes"), "format"), (models, "batch")):
            with pytest.raises(DataError, match=f"begun with {said}"):
                evaluate(suite, plain, more, folder=tmp_path / "out", batch=4 if said == "format" else 5)
        (tmp_path / "out" / MANIFEST).write_text("[]")
        with pytest.raises(DataError, match="not the record of a run"):
            self.run(models, tmp_path / "out", names="greedy")

    def test_names_that_look_alike_have_files_of_their_own(self, models: Models, tmp_path: Path) -> None:
        self.run(models, tmp_path / "out", names="best-of-n:2,best-of-n@2")
        assert len(list((tmp_path / "out" / "runs").iterdir())) == 4

    def test_a_model_that_is_not_there_claims_nothing(self, models: Models, tmp_path: Path) -> None:
        wrong = Models(models.policy, {"prm": str(tmp_path / "nothing")})
        with pytest.raises(RequestError, match="there is no such folder"):
            self.run(wrong, tmp_path / "out")
        self.run(models, tmp_path / "out", names="greedy")

    @pytest.mark.parametrize("more", [{"batch": 0}, {"workers": -1}, {"seeds": ()}, {"seeds": (1, 1)}])
    def test_numbers_out_of_range_are_refused(self, models: Models, more: dict[str, Any]) -> None:
        with pytest.raises(ToolprmError):
            evaluate(load_suite("built-in", limit=1), read_strategies("greedy", SEARCH), models, **more)


class TestCommand:
    def test_it_writes_a_row_a_strategy(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "figures.json"
        options = ["--model", str(folder / "policy"), "--prm", str(folder / "prm"), "--limit", "4", "--json", str(file)]
        assert main(["evaluate", "--suite", "built-in", "--strategies", "greedy,step-beam:1x2", *options]) == 0
        greedy, beam = json.loads(file.read_text())
        assert (greedy["strategy"], beam["strategy"]) == ("greedy", "step-beam:1x2")
        for row in (greedy, beam):
            assert row["n"] == 4 and 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
            assert row["suite"] == "built-in" and row["policy_tokens"] > 0
            assert row["tokens"] == row["policy_tokens"] + row["prm_tokens"] > row["answer_tokens"] > 0
        assert greedy["prm_tokens"] == 0 < beam["prm_tokens"]
        assert beam["against"] == "greedy" and beam["difference"] == beam["accuracy"] - greedy["accuracy"]
        assert "step-beam:1x2" in capsys.readouterr().out

    def test_it_writes_a_report_and_goes_on_with_it(self, folder: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        out, other = tmp_path / "out", f"other={folder / 'prm'}"
        options = ["--model", str(folder / "policy"), "--prm", f"toolprm={folder / 'prm'}", "--prm", other]
        options += ["--limit", "4", "--max-tokens", "60", "--report", str(out), "--reward-answers", "3"]
        names = "greedy,step-beam:1x1,step-beam:1x2,step-beam:2x1,step-beam:2x2,best-of-n:2/other,adaptive:2x2"
        assert main(["evaluate", "--strategies", names, *options]) == 0
        figures = json.loads((out / "figures.json").read_text())
        assert [row["strategy"] for row in figures["rows"]] == names.split(",")
        assert len(figures["sweep"]["cells"]) == 4 and figures["n"] == 4
        assert {row["model"] for row in figures["rewards"]} == {"toolprm", "other"}
        for tree in figures["trees"]:
            assert "<html" in (out / tree["page"]).read_text()
        page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
        assert "best-of-n:2/other" in page and "best-of-n:2/other" in text
        assert figures["command"].startswith("toolprm evaluate --strategies greedy,step-beam:1x1")
        (out / "report.md").unlink()
        runs = {path.name: path.read_bytes() for path in (out / "runs").iterdir()}
        assert main(["evaluate", "--strategies", names, *options]) == 0
        assert {path.name: path.read_bytes() for path in (out / "runs").iterdir()} == runs
        again = json.loads((out / "figures.json").read_text())
        for key in ("rows", "differences", "sweep", "curves", "axes", "failures"):
            assert again[key] == figures[key], key
        assert (out / "report.md").exists()

    @pytest.mark.parametrize(
        "options",
        [
            ["--suite", "nothing"],
            ["--strategies", "guess"],
            ["--limit", "0"],
            ["--batch", "0"],
            ["--seeds", "0"],
            ["--workers", "-1"],
            ["--temperature", "-1"],
            ["--json", "/no/such/folder/x.json"],
            ["--model", "/no/such/model", "--strategies", "greedy"],
            ["--model", "/no/such/model", "--strategies", "step-beam"],
            ["--prm", "a=x", "--prm", "a=y"],
            ["--prm", "=x"],
            ["--prm", "policy=x"],
            ["--prm", "a b=x"],
            ["--json", "/tmp"],
            ["--report", "/proc/no-such-folder", "--strategies", "greedy", "--limit", "1"],
        ],
        ids=lambda options: " ".join(options[:2]),
    )
    def test_bad_input_is_one_line(self, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["evaluate", *options]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def near(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers whose last digits depend on what ran in the same passes."""
    return {name: pytest.approx(row[name], abs=1e-3) for name in ("score", "logprob") if row[name] is not None}
