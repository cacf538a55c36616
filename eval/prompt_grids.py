"""Rows of many prompts as grids (P, K), and what one grid says of a score: exact, and all prompts at once.

Prompts with as many rows share a grid, so that ragged data cost one pass a size rather than one a prompt.
Everything here takes finite scores and golden rewards (P, K) float64 and returns one number a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decoder.contracts import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SLAB = 512  # rows of one prompt that are compared with all others at once


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Scores and golden rewards by prompt, prompts in the order of their first row.

    scores, golden: (M,) float64. rows: (M,) int64, row numbers sorted by prompt. starts, sizes: (P,) int64,
    where each prompt begins in `rows` and how many it has.
    """

    scores: Floats
    golden: Floats
    rows: Ints
    starts: Ints
    sizes: Ints

    @classmethod
    def of(cls, scores: ArrayLike, golden: ArrayLike, groups: ArrayLike) -> PromptRows:
        """Return the rows by prompt; groups (M,), the prompt of each row, need not stand together.

        Raises UserError for no row, other shapes and numbers that are not finite.
        """
        values, gold, prompt = np.asarray(scores, float), np.asarray(golden, float), np.asarray(groups)
        if values.ndim != 1 or not values.shape == gold.shape == prompt.shape or not len(values):
            raise UserError(
                f"scores of shape {values.shape}, golden rewards of {gold.shape}, groups of {prompt.shape}; "
                "give one of each a row, (M,), and at least one row"
            )
        _check_finite("score", values)
        _check_finite("golden reward", gold)
        _, first, member, sizes = np.unique(
            prompt, return_index=True, return_inverse=True, return_counts=True
        )
        order = np.argsort(first)  # np.unique sorts prompts; reports want them as they came
        sizes = sizes[order]
        rows = np.argsort(np.argsort(order)[member], kind="stable")
        return cls(values, gold, rows, sizes.cumsum() - sizes, sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def grids(self) -> Iterator[tuple[Ints, Floats, Floats]]:
        """Yield (prompts (p,), scores (p, k), golden (p, k)) for each number of rows k."""
        for size in np.unique(self.sizes):
            prompts = np.flatnonzero(self.sizes == size)
            rows = self.rows[self.starts[prompts][:, None] + np.arange(size)]  # (p, k)
            yield prompts, self.scores[rows], self.golden[rows]


def average_ranks(values: ArrayLike) -> Floats:
    """Return the ranks (P, K) within each row, 1 the lowest; ties share the mean of their ranks."""
    table = np.asarray(values, dtype=float)
    order = table.argsort(axis=1)
    first, last = _runs(np.take_along_axis(table, order, axis=1))
    ranks = np.empty_like(table)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=1)
    return ranks


def spearman(scores: Floats, golden: Floats) -> Floats:
    """Return the rank correlation of each prompt, (P,); NaN where all scores or all golden are equal."""
    middle = (scores.shape[1] + 1) / 2
    one, other = average_ranks(scores) - middle, average_ranks(golden) - middle
    spread = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.divide((one * other).sum(axis=1), spread, out=np.full(len(spread), np.nan), where=spread > 0)


def pairwise_accuracy(scores: Floats, golden: Floats) -> Floats:
    """Return the share of each prompt's pairs that the scores order as the golden rewards do, (P,).

    Equal scores count half, pairs of equal golden rewards are left out; NaN where no pair is left.
    """
    small = np.min_scalar_type(2 * scores.shape[1])  # ranks of a byte or two compare many times as fast
    one, other = ((2 * average_ranks(table)).astype(small) for table in (scores, golden))
    return np.array([_accuracy(*prompt) for prompt in zip(one, other, strict=True)])


def quantiles(golden: Floats) -> Floats:
    """Return (P, K): 0 for a prompt's lowest, 1 for its highest, by rank; ties share, a lone row is NaN."""
    if golden.shape[1] == 1:
        return np.full_like(golden, np.nan)
    return (average_ranks(golden) - 1) / (golden.shape[1] - 1)


def best_of(scores: Floats, values: Floats, ns: Sequence[int]) -> Floats:
    """Return (P, len(ns)): the mean value of the row that the scores rank first among n of K.

    Exact over all subsets, ties sharing their places, as `eval.stats.expected_best_of`; NaN where n > K.
    """
    order = scores.argsort(axis=1)
    first, last = _runs(np.take_along_axis(scores, order, axis=1))
    ordered = np.take_along_axis(values, order, axis=1)
    sums = np.pad(ordered.cumsum(axis=1), ((0, 0), (1, 0)))
    tied = np.take_along_axis(sums, last + 1, axis=1) - np.take_along_axis(sums, first, axis=1)
    level = np.where(first == last, ordered, tied / (last - first + 1))  # what each place is worth
    return np.asarray(level @ _chances(scores.shape[1], ns))


def _chances(k: int, ns: Sequence[int]) -> Floats:
    """Return (K, len(ns)): the chance C(i - 1, n - 1) / C(K, n) that the i-th lowest is the best of n drawn.

    From the top down, where it is n / K, each is the one above times (i - n) / (i - 1) (Nakano et al. 2021,
    appendix I).
    """
    above, wanted = np.arange(k, 1, -1)[:, None], np.asarray(ns, dtype=np.int64)
    ratios = np.maximum(above - wanted, 0) / (above - 1)
    falling = np.concatenate([np.broadcast_to(wanted / k, (1, len(wanted))), ratios]).cumprod(axis=0)
    return np.where(wanted <= k, falling[::-1], np.nan)


def _runs(ordered: Floats) -> tuple[Ints, Ints]:
    """Return (P, K): the first and the last place of the run of equal values that each place is in."""
    places = np.arange(ordered.shape[1])
    begins = np.diff(ordered, axis=1, prepend=-np.inf) > 0
    ends = np.pad(begins[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    last = np.minimum.accumulate(np.where(ends, places, places[-1])[:, ::-1], axis=1)[:, ::-1]
    return first, last


def _accuracy(scores: NDArray[Any], golden: NDArray[Any]) -> float:
    pairs = right = wrong = 0
    for start in range(0, len(scores), SLAB):
        at = slice(start, start + SLAB)
        better = golden[at, None] > golden
        pairs += int(np.count_nonzero(better))
        right += int(np.count_nonzero(better & (scores[at, None] > scores)))
        wrong += int(np.count_nonzero(better & (scores[at, None] < scores)))
    return (right + (pairs - right - wrong) / 2) / pairs if pairs else np.nan


def _check_finite(what: str, values: Floats) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UserError(f"the {what} of row {bad[0]} is {values[bad[0]]}; mend it or leave the row out")
