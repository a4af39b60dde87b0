"""Trees of trajectories in shared passes are judged as each trajectory is alone."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from toolprm_decode.errors import BudgetExceeded, ModelNotSupported, RequestError
from toolprm_decode.learning.collation import read_pieces
from toolprm_decode.learning.judging import judge
from toolprm_decode.learning.world.pretraining import Pretraining, build_model
from toolprm_decode.learning.world.tokenizer import build_tokenizer
from toolprm_decode.rewards import DEFAULT_TAGS, STEP_KINDS, ToolPRM

from ..search.models import partial_reward, random_model, reward, tokenizer
from .training_cases import many_answers, rows

ROWS = [*rows(3, 0), *many_answers(12)]


def tagged(*kinds: str) -> ToolPRM:
    return ToolPRM(reward().engine, tokenizer(), tags={kind: DEFAULT_TAGS[kind] for kind in kinds})


def windowed() -> ToolPRM:
    """A model that sees 24 tokens back: a tree mask could not tell it."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
    config = MistralConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=2, vocab_size=len(tokenizer()), sliding_window=24
    )
    return ToolPRM(MistralForCausalLM(config).eval(), tokenizer())


def of_the_world() -> ToolPRM:
    """One with another tokenizer and a chat template."""
    own = build_tokenizer()
    return ToolPRM(build_model(own, Pretraining(32, 2, 4, 48, seed=1)).eval(), own)


MODELS = {
    "toolprm": reward,
    "c-prm": lambda: tagged("FUNC_NAME", "FUNC_FINISH", "TOTAL_FINISH"),
    "orm": lambda: tagged("TOTAL_FINISH"),
    "tags-of-text": partial_reward,
    "undecided": lambda: ToolPRM(random_model(1), tokenizer()),
    "windowed": windowed,
    "of-the-world": of_the_world,
}


def alone(prm: ToolPRM, row: dict[str, Any]) -> list[float]:
    """The scores of the judged steps of one answer, by a whole pass for it."""
    text = prm.prompt_text(json.loads(row["tools"]), json.loads(row["messages"]), row["format"])
    scores = prm.score(text, [(step["kind"], step["text"]) for step in row["steps"]])
    return [score for score in scores if not np.isnan(score)]


def sequence(prm: ToolPRM, row: dict[str, Any]) -> list[int]:
    text = prm.prompt_text(json.loads(row["tools"]), json.loads(row["messages"]), row["format"])
    tokens = prm.encode_prompt(text)
    for step in row["steps"]:
        tokens += prm.encode_text(step["text"]) + (prm.tag_ids(step["kind"]) if step["kind"] in prm.tags else [])
    return tokens


@pytest.mark.parametrize("name", MODELS)
def test_steps_are_scored_as_alone(name: str) -> None:
    prm = MODELS[name]()
    judged = judge(prm, read_pieces(ROWS, prm, row_tokens=400))
    scores = judged.scores(prm.temperature)
    for number, row in enumerate(ROWS):
        at = judged.trajectories == number
        assert scores[at].tolist() == pytest.approx(alone(prm, row), abs=1e-4)
        steps = [step for step in row["steps"] if step["kind"] in prm.tags]
        assert judged.labels[at].tolist() == [step["label"] == "+" for step in steps]
        assert [STEP_KINDS[kind] for kind in judged.kinds[at]] == [step["kind"] for step in steps]
        assert set(judged.weights[at].tolist()) == {float(row["count"])}


@pytest.mark.parametrize("pass_tokens", [5, 17, 300])
@pytest.mark.parametrize("name", ["toolprm", "windowed"])
def test_how_passes_are_cut_changes_nothing(name: str, pass_tokens: int) -> None:
    prm = MODELS[name]()
    pieces = read_pieces(rows(1, 5), prm, row_tokens=10_000)
    one, other = judge(prm, pieces), judge(prm, pieces, pass_tokens=pass_tokens)
    np.testing.assert_allclose(other.margins, one.margins, rtol=0, atol=1e-4 * max(1, np.abs(one.margins).max()))


def test_what_answers_begin_with_is_run_once() -> None:
    prm, told = reward(), []
    pieces = read_pieces(ROWS, prm, row_tokens=100_000)
    before = prm.engine.forward_tokens
    judge(prm, pieces, progress=lambda *now: told.append(now))
    starts = set()
    for row in ROWS:
        tokens = tuple(sequence(prm, row))
        starts |= {(row["id"], tokens[: i + 1]) for i in range(len(tokens))}
    assert prm.engine.forward_tokens - before == len(starts)
    assert told[-1] == (len(ROWS), len(ROWS)) and told == sorted(told)


def test_nothing_is_judged_of_nothing() -> None:
    assert len(judge(reward(), read_pieces([], reward(), row_tokens=9))) == 0


def test_what_cannot_be_run_is_refused() -> None:
    prm = ToolPRM(copy.deepcopy(reward().engine.model), tokenizer())
    pieces = read_pieces(ROWS, prm, row_tokens=400)
    with pytest.raises(RequestError, match="pass_tokens"):
        judge(prm, pieces, pass_tokens=0)
    prm.engine._limit = (40, "a test says so")
    with pytest.raises(BudgetExceeded, match="limited to 40"):
        judge(prm, pieces)
    prm.engine._limit = None
    with torch.no_grad():
        prm.engine.model.get_submodule("model.norm").weight.fill_(float("nan"))
    with pytest.raises(ModelNotSupported, match="NaN"):
        judge(prm, pieces)
