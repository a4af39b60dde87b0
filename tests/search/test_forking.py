"""Draws that share a row until they differ follow the distribution of independent draws."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from toolprm_decode import Decoder, Search, _core

from .models import policy, tokenizer
from .oracle import Oracle, Written

DRAWS = 4096


def quantile(p: float, degrees: int) -> float:
    """Of the chi-square distribution (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + NormalDist().inv_cdf(p) * math.sqrt(spread)) ** 3


def assert_fits(observed: Counter[Any], expected: dict[Any, float]) -> None:
    """observed: counts; expected: chances. What is expected fewer than five times goes into one bin."""
    print(expected, observed)
    total = sum(observed.values())
    common = [text for text, chance in expected.items() if chance * total >= 5]
    bins = [(observed[text], expected[text] * total) for text in common]
    rest = total - sum(count for count, _ in bins), total - sum(mean for _, mean in bins)
    if rest[1] >= 5:
        bins.append(rest)
    statistic = sum((count - mean) ** 2 / mean for count, mean in bins)
    assert len(bins) > 5, "the distribution says nothing"
    assert statistic < quantile(0.999, len(bins) - 1), (statistic, len(bins))


def distribution(oracle: Oracle, written: Written, chance: float = 1.0) -> dict[Any, float]:
    """The chance of each decision, by going through all texts (but for those of less than one in 10^4)."""
    if chance < 1e-4:
        return {}
    if written.finished:
        return {decision(oracle.matcher(written.tokens).text): chance}
    legal = oracle.legal(written.tokens)
    logits = oracle.logits(written.tokens)[legal] / oracle.search.temperature
    chances = np.exp(logits - logits.max())
    found: dict[Any, float] = {}
    for token, part in zip(legal, (chances / chances.sum()).tolist(), strict=True):
        if chance * part >= 1e-4:
            for decided, p in distribution(oracle, oracle.write(written, token, 0.0), chance * part).items():
                found[decided] = found.get(decided, 0.0) + p
    return found


def decision(text: str) -> str:
    """Two orders of the same arguments decide the same."""
    return json.dumps(json.loads(text), sort_keys=True)


@pytest.mark.parametrize("temperature", [0.8, 1.5])
def test_draws_fit_the_policys_own_distribution(temperature: float) -> None:
    tool = {"name": "a", "parameters": {"properties": {"b": {"type": "boolean"}, "c": {"enum": ["x", "y"]}}}}
    search = Search("sample", width=DRAWS, temperature=temperature, max_calls=1, max_tokens=60)
    decoder = Decoder(policy(), None, tokenizer=tokenizer())
    oracle = Oracle(policy(), tokenizer(), decoder.grammar([tool], search), "Draw", search, None)
    expected = distribution(oracle, oracle.force(Written()))
    assert sum(expected.values()) > 0.95
    decoded = decoder.decode([tool], "Draw", search)
    assert_fits(Counter({decision(answer.text): answer.multiplicity for answer in decoded.finished}), expected)


@pytest.mark.parametrize("key", ["seed", "candidate", "position", "round"])
def test_random_numbers_are_uniform_and_unrelated_along_each_part_of_their_key(key: str) -> None:
    base = {"seed": 12345, "candidate": 3, "position": 17, "round": 2}
    numbers = [_core.uniform(**{**base, key: i}) for i in range(DRAWS + 1)]
    assert all(0 <= number < 1 for number in numbers)
    pairs = Counter(f"{int(a * 8)}{int(b * 8)}" for a, b in pairwise(numbers))
    assert_fits(pairs, {f"{i}{j}": 1 / 64 for i in range(8) for j in range(8)})
