"""Figures of choosing over several sampling seeds: a prompt is one unit, its seeds averaged.

Scores and gold are one list of (N,) arrays a seed, the prompts of all seeds in the same order. With one seed
every figure is that of `eval.selection` and `eval.dropping_curve`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from eval.curves import NOT_SCORED
from eval.dropping_curve import Dropped, DroppingPoint, Running, full_run, simulate
from eval.selection import (
    BestOfCurve,
    ScorerFigures,
    best_of_units,
    is_binary,
    pooled_auc,
    share_of_gap,
    within_auc,
    within_spearman,
)
from eval.stats import Difference, Estimate, bootstrap, paired_difference

if TYPE_CHECKING:  # its module loads torch
    from decoder.dropping import DropSchedule

Floats = NDArray[np.float64]
Seeds = Sequence[Sequence[Floats]]  # of each seed and prompt: (N,)


def seeded_figures(scores: Seeds, gold: Seeds, ks: Sequence[int]) -> ScorerFigures:
    """Return a scorer's figures. BoN and the gap are of each seed's own N samples, averaged in a prompt.

    AUC and Spearman compare the samples of all seeds of a prompt.
    """
    found = [best_of_units(mine, right, ks) for mine, right in zip(scores, gold, strict=True)]
    units = np.mean(found, axis=0)
    curve = BestOfCurve(tuple(ks), tuple(_estimate(column) for column in units.T))
    mine, right = _pooled(scores), _pooled(gold)
    binary = is_binary(right)
    return ScorerFigures(
        curve,
        _estimate(gap_units(scores, gold), share_of_gap),
        pooled_auc(mine, right) if binary else NOT_SCORED,
        within_auc(mine, right) if binary else NOT_SCORED,
        within_spearman(mine, right),
    )


def chosen_units(scores: Seeds, gold: Seeds) -> Floats:
    """Return (P,): the gold of the sample chosen among all N of a seed, averaged over seeds; or NaN.

    Ties share their places, as in `eval.selection.best_of_units`.
    """
    per_seed = [
        [_chosen(mine, right) for mine, right in zip(groups, truth, strict=True)]
        for groups, truth in zip(scores, gold, strict=True)
    ]
    return np.mean(per_seed, axis=0)


def gap_units(scores: Seeds, gold: Seeds) -> Floats:
    """Return (P, 3): the gold of the chosen, of a single and of the best sample, averaged over seeds."""
    single = np.mean([best_of_units(truth, truth, (1,))[:, 0] for truth in gold], axis=0)
    return np.stack([chosen_units(scores, gold), single, chosen_units(gold, gold)], axis=1)


def chosen_estimate(scores: Seeds, gold: Seeds) -> Estimate:
    """Return the mean of `chosen_units` with its interval."""
    return _estimate(chosen_units(scores, gold))


def by_seed(scores: Seeds, gold: Seeds) -> list[tuple[float, float]]:
    """Return BoN@N and the gap closed of each seed alone, without intervals."""
    found = []
    for mine, truth in zip(scores, gold, strict=True):
        units = gap_units([mine], [truth])
        whole = units[~np.isnan(units).any(axis=1)]
        known = bool(len(whole))
        found.append((float(whole[:, 0].mean()), share_of_gap(whole)) if known else (math.nan, math.nan))
    return found


def seeded_difference(first: Seeds, second: Seeds, gold: Seeds) -> Difference:
    """Return BoN@N by the first scorer minus that by the second, paired over prompts; NaN without gold."""
    after, before = chosen_units(first, gold), chosen_units(second, gold)
    both = ~np.isnan(after) & ~np.isnan(before)
    if not both.any():
        return Difference(math.nan, math.nan, math.nan, 0, math.nan)
    return paired_difference(after[both], before[both])


def seeded_dropping(
    running: Sequence[Sequence[Running]], gold: Seeds, schedules: Sequence[DropSchedule]
) -> list[DroppingPoint]:
    """Return a point for each schedule, as `eval.dropping_curve.dropping_curve`, a prompt being one unit.

    running: of each seed and prompt, the running scores of every sample.
    """
    full = _each(full_run, running)
    return [
        _point(schedule, _each(lambda runs, s=schedule: simulate(runs, s), running), full, gold)  # type: ignore[misc]
        for schedule in schedules
    ]


def _each(run: Callable[[Running], Dropped], running: Sequence[Sequence[Running]]) -> list[list[Dropped]]:
    found = []
    for groups in running:
        found.append([_named(index, run, runs) for index, runs in enumerate(groups)])
    return found


def _named(index: int, run: Callable[[Running], Dropped], runs: Running) -> Dropped:
    try:
        return run(runs)
    except UserError as error:
        raise UserError(f"prompt {index}: {error}") from None


def _point(
    schedule: DropSchedule, found: Sequence[Sequence[Dropped]], full: Sequence[Sequence[Dropped]], gold: Seeds
) -> DroppingPoint:
    rows = [
        [
            (one.tokens, whole.tokens, one.winner == whole.winner,
             truth[one.winner], truth.mean(), truth[whole.winner])
            for one, whole, truth in zip(*of_seed, strict=True)
        ]
        for of_seed in zip(found, full, gold, strict=True)
    ]  # fmt: skip
    units = np.mean(np.array(rows, dtype=float), axis=0)  # (P, 6)
    return DroppingPoint(
        schedule,
        bootstrap(units[:, :2], lambda part: float(part[:, 0].sum() / part[:, 1].sum())),
        _estimate(units[:, 3:], share_of_gap),
        bootstrap(units[:, 2]),
    )


def _chosen(scores: Floats, gold: Floats) -> float:
    known = int((~np.isnan(gold)).sum())
    return float(best_of_units([scores], [gold], (known,))[0, 0]) if known else math.nan


def _pooled(groups: Seeds) -> list[Floats]:
    """Return the samples of all seeds of each prompt."""
    return [np.concatenate(same) for same in zip(*groups, strict=True)]


def _estimate(units: Floats, statistic: Callable[[NDArray[Any]], float] = np.mean) -> Estimate:
    """Return the statistic of the prompts without NaN, with its interval; NaN where there is none."""
    whole = units[~np.isnan(units.reshape(len(units), -1)).any(axis=1)]
    if not len(whole) or math.isnan(float(statistic(whole))):
        return NOT_SCORED
    return bootstrap(whole, statistic)
