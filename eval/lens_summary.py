"""What the results of the benchmark of LENS say: means, paired differences and the settings to choose.

Intervals resample seeds and prompts, both with replacement and independently (`eval.stats.crossed_means`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.bench_lens import LensBench
from eval.lens_cells import Result
from eval.lens_plan import FORMS, LENS, NONE, PAIRING, RIVALS, Arm
from eval.report import Target
from eval.stats import Difference, Estimate, crossed_difference, crossed_estimate, crossed_means, estimate

Floats = NDArray[np.float64]
AGAINST = (NONE, PAIRING)
ORDER = (("perturbation", "gaussian"),)  # the rest of the paper's ordering, beside LENS against RIVALS


@dataclass(frozen=True, slots=True)
class Line:
    """One arm at one ratio and size, over seeds and prompts.

    reward: golden, of the best of n. share: of the way from a random sample to the best of n, 0 to 1.
    spearman: the mean. seconds: of the processor a cell, by part. differences: arm -> reward less that arm's.
    error: why there are no figures.
    """

    arm: Arm
    ratio: float
    n_pairs: int
    reward: Estimate
    share: Estimate
    spearman: float
    seconds: Mapping[str, float]
    differences: Mapping[str, Difference]
    error: str = ""

    @property
    def place(self) -> tuple[str, float, int]:
        """Return the arm's name, ratio and size."""
        return self.arm.name, self.ratio, self.n_pairs


class Tables:
    """Rewards (S, P) of every arm, ratio and size; arms that add nothing stand at every ratio."""

    def __init__(self, bench: LensBench) -> None:
        """Take the results that there are."""
        self.bench = bench
        self.found: dict[tuple[str, float, int], list[Result]] = {}
        for cell in bench.cells:
            place = cell.arm.name, float(cell.ratio), cell.n_pairs
            self.found.setdefault(place, []).append(bench.results[cell.key])

    def results(self, name: str, ratio: float, n_pairs: int) -> list[Result]:
        """Return the results of an arm, a seed each; those of method none at any ratio."""
        return self.found.get((name, 1.0 if name == NONE else float(ratio), n_pairs), [])

    def rewards(self, name: str, ratio: float, n_pairs: int) -> Floats | None:
        """Return the rewards (S, P), or None where a seed has no result."""
        results = self.results(name, ratio, n_pairs)
        if not results or any(result.error for result in results):
            return None
        return np.array([result.reward for result in results])

    def over_sizes(self, name: str, ratio: float) -> Floats | None:
        """Return the rewards (S, P), a mean over the sizes, or None where one has no result."""
        found = [self.rewards(name, ratio, n_pairs) for n_pairs in self.bench.plan.sizes]
        there = [rewards for rewards in found if rewards is not None]
        return np.mean(there, 0) if len(there) == len(found) else None

    def minus(self, name: str, other: str, ratio: float, n_pairs: int) -> Difference | None:
        """Return the first arm's reward less the other's, paired over seeds and prompts."""
        sides = [self.rewards(each, ratio, n_pairs) for each in (name, other)]
        if sides[0] is None or sides[1] is None:
            return None
        return crossed_difference(sides[0], sides[1])

    def names(self, ratio: float, n_pairs: int) -> list[str]:
        """Return the arms that have results there, in order."""
        return [arm.name for arm in self.bench.arms if self.results(arm.name, ratio, n_pairs)]


def summarise(bench: LensBench) -> list[Line]:
    """Return every arm by size, then ratio; method none once a size, with ratio 1."""
    tables, bounds = Tables(bench), bench.material.bounds()
    lines = []
    for n_pairs in bench.plan.sizes:
        for ratio in (1.0, *bench.plan.ratios):
            for arm in bench.arms:
                results = tables.found.get((arm.name, float(ratio), n_pairs))
                if results:
                    lines.append(_line(tables, arm, ratio, n_pairs, bounds))
    return lines


def summarise_sizes(bench: LensBench) -> dict[tuple[str, float], dict[str, Estimate]]:
    """Return (arm, ratio) -> means over all sizes: "golden", and "minus ARM" for the arms of AGAINST."""
    tables, found = Tables(bench), {}
    for ratio in bench.plan.ratios:
        rivals = {name: tables.over_sizes(name, ratio) for name in AGAINST}
        for arm in bench.arms:
            rewards = tables.over_sizes(arm.name, ratio)
            if rewards is not None:
                minus = {
                    f"minus {name}": crossed_difference(rewards, rival)
                    for name, rival in rivals.items()
                    if rival is not None and name != arm.name
                }
                found[arm.name, ratio] = {"golden": crossed_estimate(rewards), **minus}
    return found


def checks(bench: LensBench) -> dict[str, Target]:
    """Return the paper's claims by ratio and size: LENS less each rival, and the rest of its ordering."""
    tables, found = Tables(bench), {}
    lens = [arm.name for arm in bench.arms if arm.method in (*LENS, *FORMS)]
    pairs = [(name, rival) for name in lens for rival in RIVALS] + list(ORDER)
    for one, other in pairs:
        for ratio in bench.plan.ratios:
            for n_pairs in bench.plan.sizes:
                measured = tables.minus(one, other, ratio, n_pairs)
                if measured is not None:  # a report takes ratio and size from before the colon
                    found[f"{ratio:g}x of {n_pairs}: {one} minus {other}"] = Target(measured, 0.0)
    return found


def chosen_arms(bench: LensBench) -> dict[str, Arm]:
    """Return method -> the arm with the highest reward, the mean over sizes, ratios, seeds and prompts.

    An arm without a result somewhere is not chosen; of equal ones the first is.
    """
    tables = Tables(bench)
    best: dict[str, tuple[float, Arm]] = {}
    for arm in bench.arms:
        places = [(arm.name, ratio, n) for ratio in bench.plan.ratios for n in bench.plan.sizes]
        means = [np.mean(found) for found in (tables.rewards(*p) for p in places) if found is not None]
        if len(means) < len(places) or arm.method == NONE:
            continue
        mean = float(np.mean(means))
        if arm.method not in best or mean > best[arm.method][0]:
            best[arm.method] = mean, arm
    return {method: arm for method, (_, arm) in best.items()}


def _line(tables: Tables, arm: Arm, ratio: float, n_pairs: int, bounds: tuple[Floats, Floats]) -> Line:
    results = tables.results(arm.name, ratio, n_pairs)
    rewards = tables.rewards(arm.name, ratio, n_pairs)
    if rewards is None:
        nothing = Estimate(np.nan, np.nan, np.nan, 0)
        error = next(result.error for result in results if result.error)
        return Line(arm, ratio, n_pairs, nothing, nothing, np.nan, {}, {}, error)
    ranks = [value for result in results for value in result.spearman if value is not None]
    differences = {
        other: found
        for other in AGAINST
        if other != arm.name and (found := tables.minus(arm.name, other, ratio, n_pairs)) is not None
    }
    return Line(
        arm, ratio, n_pairs, crossed_estimate(rewards), _share(rewards, *bounds),
        float(np.mean(ranks)) if ranks else np.nan, _seconds(results), differences,
    )  # fmt: skip


def _share(rewards: Floats, random: Floats, best: Floats) -> Estimate:
    """Return (rewards - random) / (best - random), each a mean over the same prompts of a resample."""
    drawn, low, high = (crossed_means(np.atleast_2d(table)) for table in (rewards, random, best))
    value = (rewards.mean() - random.mean()) / (best.mean() - random.mean())
    return estimate(float(value), (drawn - low) / (high - low), rewards.shape[1])


def _seconds(results: Sequence[Result]) -> dict[str, float]:
    """Return the median seconds of each part."""
    parts = [result.seconds for result in results if result.seconds is not None]
    return {name: float(np.median([part[name] for part in parts])) for name in parts[0]}
