"""Draws that share a row until they differ follow the distribution of independent draws."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, permutations
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from toolprm_decode import Decoder, Request, Search, Step, _core

from .models import policy, tokenizer
from .oracle import Oracle, Written

DRAWS = 4096


def quantile(p: float, degrees: int) -> float:
    """Of the chi-square distribution (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + NormalDist().inv_cdf(p) * math.sqrt(spread)) ** 3


def assert_fits(observed: Counter[Any], expected: dict[Any, float]) -> None:
    """observed: counts; expected: chances. What is expected fewer than five times goes into one bin."""
    for outcome, count in observed.most_common(30):
        print(count, expected.get(outcome, 0.0) * observed.total(), ascii(outcome))
    total = sum(observed.values())
    common = [text for text, chance in expected.items() if chance * total >= 5]
    bins = [(observed[text], expected[text] * total) for text in common]
    rest = total - sum(count for count, _ in bins), total - sum(mean for _, mean in bins)
    if rest[1] >= 5:
        bins.append(rest)
    statistic = sum((count - mean) ** 2 / mean for count, mean in bins)
    assert len(bins) > 5, "the distribution says nothing"
    assert statistic < quantile(0.999, len(bins) - 1), (statistic, len(bins))


def distribution(
    oracle: Oracle,
    written: Written,
    chance: float = 1.0,
    least: float = 1e-4,
    name: Callable[[Written], Any] | None = None,
) -> dict[Any, float]:
    """The chance of each decision, by going through all texts but those less likely than `least`.

    name: of a text that is not gone on with, None for one that is; by default a whole text's decision.
    """
    if chance < least:
        return {}
    if name is not None and (named := name(written)) is not None:
        return {named: chance}
    if written.finished:
        return {decision(oracle.matcher(written.tokens).text): chance}
    legal = oracle.legal(written.tokens)
    logits = oracle.logits(written.tokens)[legal] / oracle.search.temperature
    chances = np.exp(logits - logits.max())
    found: dict[Any, float] = {}
    for token, part in zip(legal, (chances / chances.sum()).tolist(), strict=True):
        if chance * part >= least:
            child = oracle.write(written, token, 0.0)
            for decided, p in distribution(oracle, child, chance * part, least, name).items():
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


@pytest.mark.parametrize("strategy", ["sample", "step-beam"])
def test_distinct_draws_are_samples_without_replacement(strategy: str) -> None:
    rooms = ["hall", "attic", "kitchen", "cellar", "hallway", "attics"]
    tool = {"name": "a", "parameters": {"properties": {"room": {"enum": rooms}}, "required": ["room"]}}
    # Forced text ends right before the choice, so that the first step of an argument is the whole of it.
    search = Search(strategy, beams=1, width=3, temperature=1.5, distinct=True, max_calls=1, allow_no_call=False)
    decoder = Decoder(policy(), None, tokenizer=tokenizer())
    oracle = Oracle(policy(), tokenizer(), decoder.grammar([tool], search), "Draw", search, None)

    def argument(steps: list[Step]) -> str | None:
        return next((step.text for step in steps if step.kind == "ARG_VALUE"), None)

    def name(written: Written) -> Any:
        text = argument(oracle.steps(written))
        return (text, written.tokens) if written.finished or (text and strategy == "step-beam") else None

    # Draws are rows of tokens, of which several may spell one argument: they become one candidate.
    chances = distribution(oracle, oracle.force(Written()), 1.0, 1e-5, name)
    assert sum(chances.values()) > 0.995
    expected: dict[Any, float] = {}
    for (a, p), (b, q), (c, r) in permutations(chances.items(), 3):
        texts = tuple(dict.fromkeys(text for text, _ in (a, b, c)))
        expected[texts] = expected.get(texts, 0.0) + p * q / (1 - p) * r / (1 - p - q)
    assert len({text for text, _ in chances}) == 6
    requests = [Request([tool], "Draw", replace(search, seed=seed)) for seed in range(DRAWS // 2)]
    observed: Counter[Any] = Counter()
    for decoded in decoder.decode_batch(requests):
        observed[tuple(filter(None, (argument(list(node.steps)) for node in decoded.tree.nodes)))] += 1
    assert_fits(observed, expected)


def test_all_there_are_come_when_more_are_asked_for() -> None:
    tool = {"name": "a", "parameters": {"properties": {"on": {"type": "boolean"}}, "required": ["on"]}}
    search = Search("sample", width=50, temperature=0.05, distinct=True, max_calls=1)
    decoded = Decoder(policy(), None, tokenizer=tokenizer()).decode([tool], "Draw", search)
    assert {answer.text for answer in decoded.finished} == {
        "[]",
        *(f'[{{"name": "a", "arguments": {{"on": {value}}}}}]' for value in ("true", "false")),
    }
    # Tokenisations of one text are different draws of the same decision.
    assert sum(answer.multiplicity for answer in decoded.finished) > 3


@pytest.mark.parametrize("key", ["seed", "candidate", "position", "round", "lane"])
def test_random_numbers_are_uniform_and_unrelated_along_each_part_of_their_key(key: str) -> None:
    base = {"seed": 12345, "candidate": 3, "position": 17, "round": 2, "lane": 5}
    numbers = [_core.uniform(**{**base, key: i}) for i in range(DRAWS + 1)]
    assert all(0 <= number < 1 for number in numbers)
    pairs = Counter(f"{int(a * 8)}{int(b * 8)}" for a, b in pairwise(numbers))
    assert_fits(pairs, {f"{i}{j}": 1 / 64 for i in range(8) for j in range(8)})
