"""Strategies on a suite: names, picks, budgets and intervals."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from toolprm_decode import Decoder, Search, ToolPRM
from toolprm_decode.cli import main
from toolprm_decode.decoding import Request
from toolprm_decode.errors import RequestError
from toolprm_decode.evaluation.evaluate import evaluate
from toolprm_decode.evaluation.statistics import bootstrap
from toolprm_decode.evaluation.strategies import read_strategies
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
def decoders(folder: Path) -> tuple[Decoder, Decoder]:
    return Decoder(folder / "policy"), Decoder(folder / "policy", folder / "prm")


class TestBootstrap:
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
            "greedy,sample, step-beam:4x8@0.5,best-of-n:4,weighted-vote,logprob-best-of-n:16,majority-vote:2,step-beam"
        )
        found = {one.name: one for one in read_strategies(names, SEARCH)}
        kinds = {name: (one.search.strategy, one.rewarded, one.votes) for name, one in found.items()}
        assert kinds == {
            "greedy": ("greedy", False, None),
            "sample": ("sample", False, None),
            "step-beam:4x8@0.5": ("step-beam", True, None),
            "best-of-n:4": ("sample", True, None),
            "weighted-vote": ("sample", True, "scored"),
            "logprob-best-of-n:16": ("sample", False, None),
            "majority-vote:2": ("sample", False, "plain"),
            "step-beam": ("step-beam", True, None),
        }
        beam = found["step-beam:4x8@0.5"].search
        assert (beam.beams, beam.width, beam.policy_weight) == (4, 8, 0.5)
        assert found["step-beam"].search == SEARCH
        assert (found["best-of-n:4"].search.width, found["best-of-n:4"].search.policy_weight) == (4, 0.0)

    @pytest.mark.parametrize(
        "name", ["", "beam", "greedy:3", "step-beam:4", "best-of-n:4x2", "sample:2", "best-of-n:0", "step-beam:2x8@-1"]
    )
    def test_others_are_refused(self, name: str) -> None:
        with pytest.raises(RequestError):
            read_strategies(name, SEARCH)


class TestEvaluate:
    def test_what_is_counted_is_what_the_decoder_gives(self, decoders: tuple[Decoder, Decoder]) -> None:
        samples = load_suite("built-in", limit=6).samples
        strategies = read_strategies("greedy,step-beam,best-of-n:3,majority-vote:5", SEARCH)
        outcomes = evaluate(samples, strategies, *decoders, batch=4)
        for strategy, outcome in zip(strategies, outcomes, strict=True):
            assert len(outcome.right) == len(outcome.policy_tokens) == 6
            assert (outcome.prm_tokens > 0).all() == strategy.rewarded
        greedy = outcomes[0]
        for index, sample in enumerate(samples):
            alone = decoders[0].decode(sample.tools, sample.messages, strategies[0].search)
            assert greedy.right[index] == trajectory_right(sample, alone.calls)
            assert greedy.policy_tokens[index] == alone.stats.policy_tokens + alone.stats.cached_tokens

    def test_the_batch_changes_nothing(self, decoders: tuple[Decoder, Decoder]) -> None:
        samples = load_suite("built-in", limit=5).samples
        strategies = read_strategies("step-beam,weighted-vote:4", SEARCH)
        one, other = (evaluate(samples, strategies, *decoders, batch=batch) for batch in (1, 5))
        for a, b in zip(one, other, strict=True):
            assert (a.right == b.right).all() and (a.prm_tokens == b.prm_tokens).all()

    def test_votes_go_to_the_answer_drawn_most_often(self, decoders: tuple[Decoder, Decoder]) -> None:
        (plain,) = read_strategies("majority-vote:24", SEARCH)
        (sample,) = load_suite("built-in", limit=1).samples
        decoded = decoders[0].decode_batch([Request(sample.tools, sample.messages, plain.search)])[0]
        most = max(answer.multiplicity for answer in decoded.finished)
        assert plain.pick(decoded) in [a.calls for a in decoded.finished if a.multiplicity == most]

    def test_a_reward_model_is_asked_for(self, decoders: tuple[Decoder, Decoder]) -> None:
        with pytest.raises(RequestError, match="needs a reward model"):
            evaluate(load_suite("built-in", limit=1).samples, read_strategies("step-beam", SEARCH), decoders[0], None)


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
        assert greedy["prm_tokens"] == 0 < beam["prm_tokens"]
        assert beam["against"] == "greedy" and beam["difference"] == beam["accuracy"] - greedy["accuracy"]
        assert "step-beam:1x2" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "options",
        [
            ["--suite", "nothing"],
            ["--strategies", "guess"],
            ["--limit", "0"],
            ["--batch", "0"],
            ["--temperature", "-1"],
            ["--json", "/no/such/folder/x.json"],
            ["--model", "/no/such/model", "--strategies", "greedy"],
        ],
        ids=lambda options: options[0],
    )
    def test_bad_input_is_one_line(self, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["evaluate", *options]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
