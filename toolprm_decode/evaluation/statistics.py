"""Intervals of accuracies and of their differences, by resampling the prompts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with the bounds of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: np.ndarray, *, draws: int = 4000, seed: int = 0) -> Interval:
    """Mean of values [n] with the 2.5th and 97.5th percentiles of means over prompts drawn with replacement.

    The difference of two strategies on the same prompts is `bootstrap(a - b)`: it is paired, so that what makes a
    prompt hard for both cancels out.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    # Counts of a multinomial draw are the same as resampled indices, and take no [draws, n] memory of them.
    rng = np.random.default_rng(seed)
    share = np.full(len(values), 1 / len(values))
    means = np.array([rng.multinomial(len(values), share) @ values for _ in range(draws)]) / len(values)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))
