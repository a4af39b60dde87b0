"""Intervals of accuracies and of their differences, by resampling the prompts."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

DRAWS = 4000


class Interval(NamedTuple):
    """A mean with the bounds of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@lru_cache(maxsize=2)
def resamples(n: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each of n prompts is drawn, drawing n with replacement: uint16 [draws, n], the same at every call."""
    # Counts of a multinomial draw are the same as resampled indices.
    rng, share = np.random.default_rng(seed), np.full(n, 1 / n)
    found = np.empty((draws, n), np.uint16)
    for row in found:
        row[:] = rng.multinomial(n, share)
    found.flags.writeable = False
    return found


def bootstrap(values: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Mean of values [n] with the 2.5th and 97.5th percentiles of means over prompts drawn with replacement.

    The difference of two strategies on the same prompts is `bootstrap(a - b)`: it is paired, so that what makes a
    prompt hard for both cancels out.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    return interval(float(values.mean()), resamples(len(values), draws, seed) @ values / len(values))


def interval(figure: float, resampled: np.ndarray) -> Interval:
    """A figure with the 2.5th and 97.5th percentiles of the same of resampled prompts [draws], of those draws in which
    it is a number; nan where there are none."""
    defined = resampled[~np.isnan(resampled)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (math.nan, math.nan)
    return Interval(figure, float(low), float(high))
