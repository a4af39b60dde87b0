"""Temperatures are found by measures that have closed forms where a step is one draw."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from toolprm_decode import CallGrammar
from toolprm_decode.benchmark.calibration import calibrate, expected_distinct, mean_entropy, target_distinct
from toolprm_decode.benchmark.models import MADE_TOKENS, Shape, make_tokenizer, random_model
from toolprm_decode.benchmark.workload import QUICK_TOOLS


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def test_the_targets_are_those_of_a_trained_policy() -> None:
    assert [round(target_distinct(width), 6) for width in (1, 4, 8, 16)] == [1.0, 1.3, 1.6, 2.1]
    assert 1.6 < target_distinct(12) < 2.1


@pytest.mark.parametrize(("options", "draws"), [(2, 4), (5, 8), (40, 16)])
def test_distinct_draws_of_one_decision(options: int, draws: int) -> None:
    steps = [[np.zeros(options)]] * 30
    expected = options * (1 - (1 - 1 / options) ** draws)
    assert math.isclose(expected_distinct(steps, 1.0, draws), expected, rel_tol=0.03)


def test_draws_part_at_every_token_of_a_step() -> None:
    steps = [[np.zeros(1000)] * 3]
    assert expected_distinct(steps, 1.0, 1) == 1
    assert 7.5 < expected_distinct(steps, 1.0, 8) <= 8
    assert expected_distinct([[np.array([9.0, 0.0])] * 3], 0.1, 8) == 1


def test_entropy_is_in_nats_a_drawn_token() -> None:
    logits = np.log(np.array([0.7, 0.2, 0.1]))
    expected = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    assert math.isclose(mean_entropy([[logits, np.zeros(1)], [logits]], 1.0), 2 / 3 * expected)


def test_temperatures_meet_their_targets(tokenizer: Any) -> None:
    model = random_model(Shape(2, 64, 128, 4, 2), len(tokenizer), 0, torch.float32)
    grammar = CallGrammar(QUICK_TOOLS, tokenizer, "json-list", max_calls=1, allow_no_call=False)
    found = calibrate(model, grammar, tokenizer("Light in the hall, please")["input_ids"], 8)
    assert math.isclose(found.distinct, 1.6, abs_tol=0.1)
    assert math.isclose(found.confident_entropy, 0.2, abs_tol=0.02)
    assert 3 < found.drawn_tokens < 60


def test_the_made_tokenizer_is_always_the_same_and_writes_any_text(tokenizer: Any) -> None:
    assert tokenizer.backend_tokenizer.to_str() == make_tokenizer().backend_tokenizer.to_str()
    assert len(tokenizer) == MADE_TOKENS + 2
    text = 'Zürich, 東京 {"days": 3}\n\tend'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tools=QUICK_TOOLS, tokenize=False, add_generation_prompt=True
    )
    assert len(tokenizer(rendered)["input_ids"]) < len(rendered) / 3
