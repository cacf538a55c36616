"""How well a scorer chooses among a prompt's samples: figures over prompts, each with its interval.

Scores and gold (1 or 0 for right or wrong, or a golden reward) come as one (N,) array a prompt, or as
(P, N); groups may differ in size. A score of NaN stands for a sample the scorer failed on: it is below every
other score in a choice, and left out of AUC and Spearman. A sample without gold (NaN) is left out everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decoder.contracts import UserError
from eval.curves import NOT_SCORED
from eval.stats import Difference, Estimate, bootstrap, paired_difference
from rewards.combine import shared_ranks, winner
from rewards.measure_arm import rank_auc

Floats = NDArray[np.float64]
Groups = Sequence[ArrayLike] | NDArray[Any]
Pair = tuple[Floats, Floats]  # one prompt's scores and gold


@dataclass(frozen=True, slots=True)
class BestOfCurve:
    """BoN@k for each k: the expected gold score of the sample chosen among k.

    An estimate's n counts the prompts that have k samples; it is NaN where none has.
    """

    ks: tuple[int, ...]
    estimates: tuple[Estimate, ...]

    def at(self, k: int) -> Estimate:
        """Return the estimate for one of the ks."""
        return self.estimates[self.ks.index(k)]


@dataclass(frozen=True, slots=True)
class ScorerFigures:
    """What one scorer's choice is worth.

    gap_closed: of the way from BoN@1 to the oracle, all samples of each prompt competing. pooled_auc,
    within_auc: NaN for a gold that is not 0 or 1. within_spearman: mean rank correlation in a prompt.
    """

    curve: BestOfCurve
    gap_closed: Estimate
    pooled_auc: Estimate
    within_auc: Estimate
    within_spearman: Estimate


def scorer_figures(scores: Groups, gold: Groups, ks: Sequence[int]) -> ScorerFigures:
    """Return all figures of one scorer that need no other scorer."""
    binary = is_binary(gold)
    return ScorerFigures(
        best_of_curve(scores, gold, ks),
        gap_closed(scores, gold),
        pooled_auc(scores, gold) if binary else NOT_SCORED,
        within_auc(scores, gold) if binary else NOT_SCORED,
        within_spearman(scores, gold),
    )


def best_of_curve(scores: Groups, gold: Groups, ks: Sequence[int]) -> BestOfCurve:
    """Return BoN@k for each k with bootstrap intervals over prompts; scores = gold gives the oracle.

    BoN@1 is the mean gold score, whatever the scorer. Raises UserError for groups that do not match and
    for a k below 1.
    """
    units = best_of_units(scores, gold, ks)
    return BestOfCurve(tuple(ks), tuple(_mean(units[:, i]) for i in range(len(ks))))


def best_of_units(scores: Groups, gold: Groups, ks: Sequence[int]) -> Floats:
    """Return (P, K) float64: each prompt's BoN@k, NaN where it has fewer than k samples with gold.

    Equal to `eval.stats.expected_best_of`, exact over all subsets, ties sharing their places.
    """
    if any(k < 1 for k in ks):
        raise UserError(f"cannot choose the best of {min(ks)} samples; give 1 or more")
    return np.array([_expected(pair, tuple(ks)) for pair in _pairs(scores, gold)]).reshape(-1, len(ks))


def gap_closed(scores: Groups, gold: Groups, k: int | None = None) -> Estimate:
    """Return (BoN@k - BoN@1) / (oracle@k - BoN@1), a ratio of means over prompts, with its interval.

    k: None lets all samples of each prompt compete. NaN where the oracle gains nothing.
    """
    chosen, best = _at(scores, gold, k), _at(gold, gold, k)
    units = np.stack([chosen, best_of_units(gold, gold, (1,))[:, 0], best], axis=1)
    whole = units[~np.isnan(units).any(axis=1)]
    if not len(whole) or math.isnan(share_of_gap(whole)):
        return NOT_SCORED
    return bootstrap(whole, share_of_gap)


def share_of_gap(units: NDArray[Any]) -> float:
    """Return (mean of column 0 - mean of column 1) / (mean of column 2 - mean of column 1).

    units: (P, 3): reached, start, goal. NaN where the goal is not above the start.
    """
    reached, start, goal = units.mean(axis=0)
    return float((reached - start) / (goal - start)) if goal - start > 1e-12 else math.nan


def best_of_difference(first: Groups, second: Groups, gold: Groups, k: int | None = None) -> Difference:
    """Return BoN@k by the first scorer minus that by the second, paired over prompts.

    k: None lets all samples of each prompt compete. NaN where no prompt has k samples.
    """
    after, before = _at(first, gold, k), _at(second, gold, k)
    both = ~np.isnan(after) & ~np.isnan(before)
    if not both.any():
        return Difference(math.nan, math.nan, math.nan, 0, math.nan)
    return paired_difference(after[both], before[both])


def pooled_auc(scores: Groups, gold: Groups) -> Estimate:
    """Return the AUC over all samples of all prompts, ties counting half; the interval is over prompts.

    NaN without both classes. Raises UserError for a gold that is not 0 or 1.
    """
    pairs = _scored(_binary_pairs(scores, gold))
    owner = np.repeat(np.arange(len(pairs)), [len(values) for values, _ in pairs])
    places = np.unique(np.concatenate([values for values, _ in pairs]), return_inverse=True)[1]
    positive = np.concatenate([right for _, right in pairs]) == 1

    def auc(picks: NDArray[Any]) -> float:
        times = np.bincount(picks.astype(int), minlength=len(pairs))[owner]  # each sample was drawn
        wins, losses = np.bincount(places, times * positive), np.bincount(places, times * ~positive)
        total = wins.sum() * losses.sum()
        return float(wins @ (losses.cumsum() - losses / 2) / total) if total else math.nan

    if not positive.any() or positive.all():
        return NOT_SCORED
    return bootstrap(np.arange(len(pairs)), auc)


def within_auc(scores: Groups, gold: Groups) -> Estimate:
    """Return the mean AUC inside a prompt, over the prompts that have both classes, ties counting half.

    NaN where no prompt has both. Raises UserError for a gold that is not 0 or 1.
    """
    pairs = _scored(_binary_pairs(scores, gold))
    return _mean(np.array([rank_auc(values, right == 1) for values, right in pairs]))


def within_spearman(scores: Groups, gold: Groups) -> Estimate:
    """Return the mean rank correlation inside a prompt, over the prompts in which score and gold vary."""
    return _mean(np.array([_spearman(*pair) for pair in _scored(_pairs(scores, gold))]))


def winner_agreement(first: Groups, second: Groups) -> Estimate:
    """Return the share of prompts in which both scorers choose the same sample, ties to the lowest index.

    A prompt on all of whose samples one scorer failed is left out.
    """
    pairs = [pair for pair in _matched(first, second) if not any(np.isnan(each).all() for each in pair)]
    return _mean(np.array([winner(one) == winner(other) for one, other in pairs], dtype=float))


def kl_bound(n: int) -> float:
    """Return log n - (n - 1) / n nats, which the KL divergence of best-of-n from sampling does not pass.

    Source: Beirami et al. 2024 (arXiv 2401.01879). Raises UserError for n below 1.
    """
    if n < 1:
        raise UserError(f"cannot choose the best of {n} samples; give 1 or more")
    return math.log(n) - (n - 1) / n


def is_binary(gold: Groups) -> bool:
    """Return whether every gold score is 0 or 1; NaN does not count."""
    every = np.concatenate([np.asarray(group, dtype=float) for group in gold])
    return bool(np.isin(every[~np.isnan(every)], (0, 1)).all())


def _matched(first: Groups, second: Groups) -> list[Pair]:
    """Return both scores of each prompt; UserError where they are not of the same samples."""
    if len(first) != len(second) or not len(first):
        raise UserError(
            f"scores of {len(first)} and {len(second)} prompts; give both for the same, at least 1"
        )
    pairs = [
        (np.asarray(a, dtype=float), np.asarray(b, dtype=float)) for a, b in zip(first, second, strict=True)
    ]
    for index, (one, other) in enumerate(pairs):
        if one.shape != other.shape or one.ndim != 1:
            raise UserError(
                f"prompt {index}: scores of shape {one.shape} and {other.shape}; give one number a sample"
            )
    return pairs


def _pairs(scores: Groups, gold: Groups) -> list[Pair]:
    """Return scores and gold of the samples that have gold."""
    return [(values[~np.isnan(right)], right[~np.isnan(right)]) for values, right in _matched(scores, gold)]


def _binary_pairs(scores: Groups, gold: Groups) -> list[Pair]:
    if not is_binary(gold):
        raise UserError("AUC needs a gold of 0 or 1, and this one has other values; use within_spearman")
    return _pairs(scores, gold)


def _scored(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs without the samples that the scorer failed on."""
    return [(values[~np.isnan(values)], right[~np.isnan(values)]) for values, right in pairs]


def _at(scores: Groups, gold: Groups, k: int | None) -> Floats:
    """Return (P,): BoN@k of each prompt, or of all its samples for None; NaN where it has too few."""
    if k is not None:
        return best_of_units(scores, gold, (k,))[:, 0]
    return np.array([_expected(pair, (len(pair[0]),))[0] for pair in _pairs(scores, gold)])


def _expected(pair: Pair, ks: tuple[int, ...]) -> Floats:
    """Return (K,): BoN@k of one prompt."""
    values, gold = pair
    if not len(values):
        return np.full(len(ks), np.nan)
    places = np.unique(values, return_inverse=True)[1] + 1
    places[np.isnan(values)] = 0
    level = np.bincount(places, gold) / np.maximum(np.bincount(places), 1)  # what each tie is worth
    return np.asarray(level[np.sort(places)] @ _weights(len(values), ks), dtype=float)


@lru_cache(maxsize=512)
def _weights(n: int, ks: tuple[int, ...]) -> Floats:
    """Return (n, K): the chance that the i-th lowest of n is the best of k drawn; NaN where k > n."""
    table = np.full((n, len(ks)), np.nan)
    for column, k in enumerate(ks):
        if 1 <= k <= n:
            table[:, column] = [math.comb(below, k - 1) / math.comb(n, k) for below in range(n)]
    return table


def _spearman(values: Floats, gold: Floats) -> float:
    if len(values) < 2 or np.ptp(values) == 0 or np.ptp(gold) == 0:
        return math.nan
    return float(np.corrcoef(shared_ranks(values), shared_ranks(gold))[0, 1])


def _mean(units: Floats) -> Estimate:
    """Return the mean over the prompts that are not NaN, with its interval."""
    whole = units[~np.isnan(units)]
    return bootstrap(whole) if len(whole) else NOT_SCORED
