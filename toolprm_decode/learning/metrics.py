"""How well a reward model judges steps: numbers of scores, labels and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from toolprm_decode.rewards import STEP_KINDS

ECE_BINS = 15


@dataclass(frozen=True)
class Judged:
    """What a reward model said of the judged steps of trajectories, one entry a step of a trajectory, in order.

    Attributes:
        margins: float64 [S], the plus label's logit minus the minus label's.
        labels: bool [S], whether the step is right.
        kinds: int [S], indices into STEP_KINDS.
        trajectories: int [S], which trajectory the step is of; the steps of one stand together.
        weights: float64 [S], how often the trajectory was drawn.
    """

    margins: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    trajectories: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.margins)

    def scores(self, temperature: float = 1.0) -> np.ndarray:
        """Probabilities of the plus label, float64 [S]."""
        return np.exp(-np.logaddexp(0.0, -self.margins / temperature))

    def loss(self, temperature: float = 1.0) -> np.ndarray:
        """Negative log-likelihoods of the labels in nats, float64 [S]."""
        return np.logaddexp(0.0, np.where(self.labels, -self.margins, self.margins) / temperature)

    def pick(self, chosen: np.ndarray) -> Judged:
        """The steps that a bool [S] chooses."""
        return Judged(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The probability that a right step scores above a wrong one, ties counting half; nan where one is missing."""
    labels = np.asarray(labels, bool)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    _, place = np.unique(scores, return_inverse=True)
    right = np.bincount(place, weights * labels)
    wrong = np.bincount(place, weights * ~labels)
    pairs = right.sum() * wrong.sum()
    if not pairs:
        return math.nan
    below = np.cumsum(wrong) - wrong
    return float((right * (below + wrong / 2)).sum() / pairs)


def calibration_error(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Expected calibration error over equal-width bins: the mean gap between score and share of right steps."""
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    if not weights.sum():
        return math.nan
    bins = np.minimum((np.asarray(scores) * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.bincount(bins, weights * (scores - np.asarray(labels, np.float64)), ECE_BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def measure(judged: Judged, temperature: float = 1.0) -> dict[str, dict[str, float]]:
    """All numbers, of all steps ("all") and of the steps of each kind that occurs.

    Every group has `steps` (their weight), `wrong` (the share of steps labelled wrong), `loss` (mean negative
    log-likelihood in nats), `accuracy` (at 0.5), `auc`, `wrong_recall` (the share of the wrong steps that score below
    0.5) and `ece`. The group "all" has besides `trajectories` (their weight), `trajectory_accuracy` (of the last
    judged step, which decides over the whole) and `trajectory_all_steps` (the share with every step judged rightly).
    What is not defined, for want of right or wrong steps, is nan.
    """
    result = {"all": {**_of_steps(judged, temperature), **_of_trajectories(judged)}}
    for index, kind in enumerate(STEP_KINDS):
        chosen = judged.kinds == index
        if chosen.any():
            result[kind] = _of_steps(judged.pick(chosen), temperature)
    return result


def fit_temperature(judged: Judged, low: float = 0.05, high: float = 100.0) -> float:
    """The temperature in low..high under which the labels are likeliest (Guo et al., arXiv 1706.04599).

    The likelihood is concave in the inverse temperature, so its slope is halved down to the one zero it has. 1.0 where
    there is nothing to fit.
    """
    margins, targets = judged.margins, judged.labels.astype(np.float64)

    def slope(inverse: float) -> float:
        scores = np.exp(-np.logaddexp(0.0, -margins * inverse))
        return float((judged.weights * (targets - scores) * margins).sum())

    if not len(judged) or not judged.weights.sum() or not np.any(margins):
        return 1.0
    least, most = 1 / high, 1 / low
    if slope(least) <= 0:
        return high
    if slope(most) >= 0:
        return low
    for _ in range(100):
        middle = math.sqrt(least * most)
        least, most = (middle, most) if slope(middle) > 0 else (least, middle)
    return 1 / math.sqrt(least * most)


def _of_steps(judged: Judged, temperature: float) -> dict[str, float]:
    labels, weights = judged.labels, judged.weights
    scores = judged.scores(temperature)
    plus = judged.margins >= 0
    wrong = weights * ~labels
    return {
        "steps": float(weights.sum()),
        "wrong": _mean(~labels, weights),
        "loss": _mean(judged.loss(temperature), weights),
        "accuracy": _mean(plus == labels, weights),
        "auc": auc(judged.margins, labels, weights),
        "wrong_recall": _mean(~plus, wrong),
        "ece": calibration_error(scores, labels, weights),
    }


def _of_trajectories(judged: Judged) -> dict[str, float]:
    if not len(judged):
        return {"trajectories": 0.0, "trajectory_accuracy": math.nan, "trajectory_all_steps": math.nan}
    right = (judged.margins >= 0) == judged.labels
    first = np.flatnonzero(np.diff(judged.trajectories, prepend=judged.trajectories[0] - 1))
    last = np.append(first[1:], len(judged)) - 1
    weights = judged.weights[last]
    return {
        "trajectories": float(weights.sum()),
        "trajectory_accuracy": _mean(right[last], weights),
        "trajectory_all_steps": _mean(np.logical_and.reduceat(right, first), weights),
    }


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = weights.sum()
    return float((values * weights).sum() / total) if total else math.nan
