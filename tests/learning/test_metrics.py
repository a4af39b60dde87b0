"""The metrics are what their definitions say, weights counting as copies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolprm_decode.learning.metrics import Judged, auc, calibration_error, fit_temperature, measure
from toolprm_decode.rewards import STEP_KINDS


@st.composite
def judgements(draw: st.DrawFn) -> Judged:
    margins, labels, kinds, numbers, weights = [], [], [], [], []
    for number in range(draw(st.integers(1, 6))):
        weight = draw(st.integers(1, 3))
        for _ in range(draw(st.integers(1, 5))):
            margins.append(draw(st.sampled_from([-3.0, -1.0, -0.25, 0.0, 0.5, 1.0, 4.0])))
            labels.append(draw(st.booleans()))
            kinds.append(draw(st.integers(0, 4)))
            numbers.append(number)
            weights.append(float(weight))
    return Judged(
        np.array(margins), np.array(labels, bool), np.array(kinds), np.array(numbers), np.array(weights, np.float64)
    )


def copies(judged: Judged) -> list[tuple[float, bool, int]]:
    """(margin, label, kind) of every step, once for each time its trajectory was drawn."""
    return [
        (float(judged.margins[i]), bool(judged.labels[i]), int(judged.kinds[i]))
        for i in range(len(judged))
        for _ in range(int(judged.weights[i]))
    ]


def close(found: float, expected: float | None) -> bool:
    return math.isnan(found) if expected is None else found == pytest.approx(expected, abs=1e-9)


def check(found: dict[str, float], steps: list[tuple[float, bool, int]], temperature: float) -> None:
    score = {margin: 1 / (1 + math.exp(-margin / temperature)) for margin, _, _ in steps}
    assert found["steps"] == len(steps)
    assert close(found["wrong"], sum(not label for _, label, _ in steps) / len(steps))
    likely = [-math.log(score[m] if label else 1 - score[m]) for m, label, _ in steps]
    assert close(found["loss"], sum(likely) / len(steps))
    assert close(found["accuracy"], sum((score[m] >= 0.5) == label for m, label, _ in steps) / len(steps))
    right, wrong = [m for m, label, _ in steps if label], [m for m, label, _ in steps if not label]
    pairs = [(r > w) + (r == w) / 2 for r in right for w in wrong]
    assert close(found["auc"], sum(pairs) / len(pairs) if pairs else None)
    assert close(found["wrong_recall"], sum(score[m] < 0.5 for m in wrong) / len(wrong) if wrong else None)
    error = 0.0
    for index in range(15):
        inside = [(score[m], label) for m, label, _ in steps if min(int(score[m] * 15), 14) == index]
        if inside:
            gap = sum(s for s, _ in inside) / len(inside) - sum(label for _, label in inside) / len(inside)
            error += len(inside) / len(steps) * abs(gap)
    assert close(found["ece"], error)


@given(judgements(), st.sampled_from([0.5, 1.0, 3.0]))
def test_metrics_follow_their_definitions(judged: Judged, temperature: float) -> None:
    found, steps = measure(judged, temperature), copies(judged)
    check(found["all"], steps, temperature)
    assert set(found) == {"all", *(STEP_KINDS[kind] for _, _, kind in steps)}
    for index, kind in enumerate(STEP_KINDS):
        if kind in found:
            check(found[kind], [step for step in steps if step[2] == index], temperature)


@given(judgements())
def test_a_trajectory_is_judged_by_its_last_step_and_by_all(judged: Judged) -> None:
    found, last, every, total = measure(judged)["all"], 0.0, 0.0, 0.0
    for number in set(judged.trajectories.tolist()):
        at = np.flatnonzero(judged.trajectories == number)
        right = [(judged.margins[i] >= 0) == judged.labels[i] for i in at]
        weight = judged.weights[at[0]]
        total, last, every = total + weight, last + weight * right[-1], every + weight * all(right)
    assert found["trajectories"] == total
    assert found["trajectory_accuracy"] == pytest.approx(last / total)
    assert found["trajectory_all_steps"] == pytest.approx(every / total)


def test_what_is_not_defined_is_nan() -> None:
    one = np.ones(2, bool)
    assert math.isnan(auc(np.array([0.0, 1.0]), one))
    assert math.isnan(calibration_error(np.array([]), np.array([])))
    nothing = Judged(*(np.array([], kind) for kind in (float, bool, int, int, float)))
    assert math.isnan(measure(nothing)["all"]["trajectory_accuracy"])
    assert fit_temperature(nothing) == 1.0


@given(judgements())
def test_no_other_temperature_is_likelier(judged: Judged) -> None:
    def loss(temperature: float) -> float:
        return float((judged.loss(temperature) * judged.weights).sum())

    best = fit_temperature(judged)
    others = [loss(t) for t in np.geomspace(0.05, 100, 200)]
    assert loss(best) <= min(others) + 1e-6


def test_the_temperature_of_the_labels_is_found() -> None:
    random = np.random.default_rng(0)
    margins = random.normal(0, 6, 40_000)
    labels = random.random(40_000) < 1 / (1 + np.exp(-margins / 3))
    at = np.arange(40_000)
    judged = Judged(margins, labels, at % 5, at, np.ones(40_000))
    assert fit_temperature(judged) == pytest.approx(3, rel=0.05)
    assert calibration_error(judged.scores(3.0), labels) < 0.02 < calibration_error(judged.scores(), labels)
