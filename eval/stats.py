"""Error bars: bootstrap intervals, paired differences, exact Best-of-N. Nothing else computes one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
Statistic = Callable[[NDArray[Any]], float]


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


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """A paired difference; p is its two-sided bootstrap probability under no difference."""

    p: float


def bootstrap(units: ArrayLike, statistic: Statistic = np.mean, *, seed: int = 0) -> Estimate:
    """Return a statistic of independent units with its 95 % percentile bootstrap interval.

    units: (n,) or (n, ...); rows are drawn with replacement, so give one row a prompt, a pair or a
    round, not one a sample. Source: Efron and Tibshirani 1993, chapter 13. Raises ValueError for no unit.
    """
    rows = np.asarray(units, dtype=float)
    drawn = np.array([statistic(rows[pick]) for pick in picks(len(rows), seed)])
    return estimate(statistic_of(rows, statistic), drawn, len(rows))


def paired_difference(
    after: ArrayLike, before: ArrayLike, statistic: Statistic = np.mean, *, seed: int = 0
) -> Difference:
    """Return statistic(after) - statistic(before) over paired units (n,) or (n, ...), resampled together.

    Raises ValueError for no unit.
    """
    new, old = np.asarray(after, dtype=float), np.asarray(before, dtype=float)
    if new.shape != old.shape:
        raise ValueError(f"units do not pair: {new.shape} and {old.shape}")
    drawn = np.array([statistic(new[pick]) - statistic(old[pick]) for pick in picks(len(new), seed)])
    return difference(statistic_of(new, statistic) - statistic_of(old, statistic), drawn, len(new))


def crossed_means(table: ArrayLike, *, seed: int = 0) -> NDArray[Any]:
    """Return the means (RESAMPLES,) of a table (S, P) whose rows and columns were both drawn anew.

    Rows and, independently of them, columns are drawn with replacement, and a cell counts as often as its row
    times as often as its column: the bootstrap of two crossed factors, such as seeds and prompts (Owen 2007,
    "The pigeonhole bootstrap"), whose intervals are too wide rather than too narrow where the two interact.
    Tables with as many rows or columns draw the same ones. Raises ValueError for an empty table.
    """
    cells = np.asarray(table, dtype=float)
    rows, columns = (_counts(n, seed + place) for place, n in enumerate(cells.shape))
    found: NDArray[Any] = ((rows @ cells) * columns).sum(1) / cells.size
    return found


def crossed_estimate(table: ArrayLike, *, seed: int = 0) -> Estimate:
    """Return the mean of a table (S, P) with the interval of `crossed_means`; n counts columns."""
    cells = np.asarray(table, dtype=float)
    return estimate(float(cells.mean()), crossed_means(cells, seed=seed), cells.shape[1])


def crossed_difference(after: ArrayLike, before: ArrayLike, *, seed: int = 0) -> Difference:
    """Return the mean of `after` less that of `before`, (S, P) each, paired cell by cell, as `crossed_means`.

    Raises ValueError for tables of other shapes or an empty one.
    """
    new, old = np.asarray(after, dtype=float), np.asarray(before, dtype=float)
    if new.shape != old.shape:
        raise ValueError(f"units do not pair: {new.shape} and {old.shape}")
    cells = new - old
    return difference(float(cells.mean()), crossed_means(cells, seed=seed), cells.shape[1])


def estimate(value: float, drawn: NDArray[Any], n: int) -> Estimate:
    """Return a value over n units with the 95 % percentile interval of its resamples, (RESAMPLES,)."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), n)


def difference(value: float, drawn: NDArray[Any], n: int) -> Difference:
    """Return a difference over n paired units with its interval and p, from its resamples (RESAMPLES,).

    p counts resampled differences at least as far from the measured one as that is from 0, the
    measured one included (Efron and Tibshirani 1993, chapter 16).
    """
    found = estimate(value, drawn, n)
    slack = 1e-12 * max(1.0, abs(value))  # equal differences must count whatever their last bit
    p = (1 + int((np.abs(drawn - value) >= abs(value) - slack).sum())) / (len(drawn) + 1)
    return Difference(value, found.low, found.high, n, p)


def expected_best_of(proxy: ArrayLike, gold: ArrayLike, n: int) -> float:
    """Return the mean gold score of the one that `proxy` ranks first among n drawn without replacement.

    proxy, gold: (N,) scores of one prompt's N samples, 1 <= n <= N. Exact over all N-choose-n subsets:
    the i-th lowest is first in C(i - 1, n - 1) of them (Nakano et al. 2021, appendix I). Samples
    that tie share their places, as random tie-breaking does on average.
    """
    order, scores = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    if not 1 <= n <= len(order) or order.shape != scores.shape:
        raise ValueError(f"best of {n} among {order.shape} proxy and {scores.shape} gold scores")
    places = np.unique(order, return_inverse=True)[1]
    tied = np.bincount(places)
    level = np.bincount(places, weights=scores) / tied  # mean gold of each proxy value
    subsets = [0, *(math.comb(int(count), n) for count in np.cumsum(tied))]  # that hold no better sample
    wins = [upper - lower for lower, upper in pairwise(subsets)]  # of those whose best has this value
    return sum(won * float(mean) for won, mean in zip(wins, level, strict=True)) / subsets[-1]


def exp_ratio(units: NDArray[Any]) -> float:
    """Return exp(sum of column 0 / sum of column 1): a perplexity from log-likelihoods and token counts."""
    total = units.sum(axis=0)
    return float(np.exp(total[0] / total[1]))


STATISTICS: dict[str, Statistic] = {"mean": np.mean, "exp_ratio": exp_ratio}  # as reports name them


def statistic_of(rows: NDArray[Any], statistic: Statistic) -> float:
    """Return the statistic as a plain float."""
    return float(statistic(rows))


def picks(n: int, seed: int = 0) -> NDArray[Any]:
    """Return the units of every resample, (RESAMPLES, n) int64, drawn with replacement.

    Raises ValueError for no unit.
    """
    if not n:
        raise ValueError("no units to resample")
    return np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))


def _counts(n: int, seed: int) -> NDArray[Any]:
    """Return how often each of n units stands in every resample, (RESAMPLES, n)."""
    drawn = picks(n, seed) + n * np.arange(RESAMPLES)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * RESAMPLES).reshape(RESAMPLES, n)
