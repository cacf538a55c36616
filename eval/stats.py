"""Error bars: means with bootstrap intervals. Nothing else in the project computes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the ends of its interval, and the number of independent units behind it."""

    value: float
    low: float
    high: float
    n: int

    @property
    def interval(self) -> list[float]:
        """Return [low, high]."""
        return [self.low, self.high]


def bootstrap(
    units: ArrayLike,
    statistic: Callable[..., float] = np.mean,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Return a statistic of independent units with its percentile bootstrap interval.

    units: (n,) or (n, ...); rows are drawn with replacement, so give one row a prompt, a pair or a
    round, not one a sample. Source: Efron and Tibshirani 1993, chapter 13. Raises ValueError for no unit.
    """
    rows = np.asarray(units, dtype=float)
    if not len(rows):
        raise ValueError("no units to resample")
    picks = np.random.default_rng(seed).integers(len(rows), size=(RESAMPLES, len(rows)))
    drawn = [statistic(rows[pick]) for pick in picks]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(statistic(rows)), float(low), float(high), len(rows))


def paired_difference(after: ArrayLike, before: ArrayLike, *, seed: int = 0) -> Estimate:
    """Return mean(after - before) over paired units (n,) with its bootstrap interval."""
    return bootstrap(np.asarray(after, dtype=float) - np.asarray(before, dtype=float), seed=seed)
