"""What a steering method reaches at a perplexity budget; every interval from the same drawn prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from eval.curves import Better
from eval.metric import Measure
from eval.stats import Difference, Estimate, difference, estimate, picks

Floats = NDArray[np.float64]
LIMIT_SLACK = 1e-9  # of a log ratio: rounding must not turn "ends at the budget" into "ends before it"


@dataclass(frozen=True, slots=True)
class Strength:
    """A method at one beta, 0 for unsteered: what it costs and what it reaches, over the same prompts."""

    beta: float
    fluency: Measure
    attribute: Measure

    def scored(self) -> NDArray[np.bool_]:
        """Return (P,), True where both measures have a unit."""
        units = [each.units.reshape(len(each.units), -1) for each in (self.fluency, self.attribute)]
        whole: NDArray[np.bool_] = ~np.isnan(np.concatenate(units, axis=1)).any(axis=1)
        return whole

    def kept(self, rows: NDArray[np.bool_]) -> Strength:
        """Return the same over the prompts that `rows`, (P,), marks."""
        fluency, attribute = (replace(m, units=m.units[rows]) for m in (self.fluency, self.attribute))
        return Strength(self.beta, fluency, attribute)


@dataclass(frozen=True, slots=True)
class Sweep:
    """A method's points in order of |beta|, the unsteered one first: m points in S = 1 + RESAMPLES versions.

    betas: (m,), 0 first, the others of one sign. log_ratios: (S, m) natural log of perplexity over unsteered.
    values: (S, m) the attribute. Row 0 is measured; row i of every sweep comes from the same drawn prompts.
    """

    betas: Floats
    log_ratios: Floats
    values: Floats


@dataclass(frozen=True, slots=True)
class AtBudget:
    """The best attribute within a budget.

    values: (S,), row 0 measured. beta: where the measured one lies. reached: (S,), whether the sweep goes on
    to the budget; if not, the value is a bound, which larger betas might pass.
    """

    values: Floats
    beta: float
    reached: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A method at a budget of `ratio` times the unsteered perplexity.

    change: from unsteered. against: from the reference; None without one, and for the reference itself.
    beta: where the value lies. reached: False if the value is a bound, because the sweep ends before the
    budget. reached_share: the share of resamples that get there; where it is low, the interval is of a bound.
    largest_beta, largest_ratio: where the sweep ends.
    """

    method: str
    ratio: float
    value: Estimate
    change: Difference
    against: Difference | None
    beta: float
    reached: bool
    reached_share: float
    largest_beta: float
    largest_ratio: float

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values; "difference" is the one from the reference."""
        return {
            "ratio": self.ratio,
            "method": self.method,
            "value": self.value.value,
            "interval": self.value.interval,
            "n": self.value.n,
            **_difference_json("change", self.change),
            **_difference_json("difference", self.against),
            "beta": self.beta,
            "reached": self.reached,
            "reached share": self.reached_share,
            "largest beta": self.largest_beta,
            "ratio at largest beta": self.largest_ratio,
        }


def _difference_json(name: str, found: Difference | None) -> dict[str, Any]:
    values = (None, None, None) if found is None else (found.value, found.interval, found.p)
    return dict(zip((name, f"{name} interval", f"{name} p"), values, strict=True))


def steering_betas(betas: Sequence[float]) -> list[float]:
    """Return the betas of one direction from weak to strong: the positive ones, or if none the negative."""
    positive = sorted(beta for beta in betas if beta > 0)
    return positive or sorted((beta for beta in betas if beta < 0), reverse=True)


def resampling_weights(n: int, *, seed: int = 0) -> Floats:
    """Return (1 + RESAMPLES, n): how often each prompt counts, once in row 0, then as drawn with replacement.

    The draws are those of `eval.stats.bootstrap` with this seed. Raises ValueError for no prompt.
    """
    return np.array([np.ones(n), *(np.bincount(pick, minlength=n) for pick in picks(n, seed))])


def _mean(units: Floats, weights: Floats) -> Floats:
    return weights @ units / len(units)


def _exp_ratio(units: Floats, weights: Floats) -> Floats:
    above, below = np.ascontiguousarray(units.T)
    return np.exp((weights @ above) / (weights @ below))


# The same statistics as `eval.stats.STATISTICS`, of weighted units: (n, ...), (S, n) -> (S,).
WEIGHTED: dict[str, Callable[[Floats, Floats], Floats]] = {"mean": _mean, "exp_ratio": _exp_ratio}


def make_sweep(strengths: Sequence[Strength], weights: Floats) -> Sweep:
    """Return the sweep of a method's strengths, in order and unsteered first; no unit is NaN.

    weights: (S, n) of `resampling_weights`, n prompts in the order of the units.
    """
    sides = [[each.fluency for each in strengths], [each.attribute for each in strengths]]
    spent, values = (
        np.stack([WEIGHTED[each.statistic](each.units, weights) for each in side], axis=1) for side in sides
    )  # (S, m)
    betas = np.array([each.beta for each in strengths], dtype=float)
    return Sweep(betas, np.log(spent / spent[:, :1]), values)


def at_budget(sweep: Sweep, ratio: float, better: Better) -> AtBudget:
    """Return the best attribute on the sweep where perplexity is at most `ratio` >= 1 times the unsteered.

    Between neighbouring points log perplexity and attribute change linearly, and beta with them. The best
    over a piece within the budget lies at one of its ends: at a point, or where the line crosses the budget.
    """
    limit, sign = math.log(ratio), 1.0 if better == "higher" else -1.0
    spent, values = sweep.log_ratios, sweep.values
    inside = spent <= limit  # (S, m)
    crossing = inside[:, 1:] != inside[:, :-1]  # (S, m - 1)
    step = np.diff(spent)
    share = np.divide(limit - spent[:, :-1], step, out=np.zeros_like(step), where=crossing)
    betas = np.broadcast_to(sweep.betas, spent.shape)
    places = [np.concatenate([y, y[:, :-1] + share * np.diff(y)], axis=1) for y in (values, betas)]
    allowed = np.concatenate([inside, crossing], axis=1)  # (S, 2m - 1)
    best = np.argmax(np.where(allowed, sign * places[0], -np.inf), axis=1)
    rows = np.arange(len(best))
    reached = spent[:, -1] >= limit - LIMIT_SLACK
    return AtBudget(places[0][rows, best], float(places[1][0, best[0]]), reached)


def estimate_of(drawn: Floats, n: int) -> Estimate:
    """Return drawn[0] with the interval of the others, over n prompts."""
    return estimate(float(drawn[0]), drawn[1:], n)


def difference_of(after: Floats, before: Floats, n: int) -> Difference:
    """Return after - before, paired row by row: row 0 measured, the others from the same resamples."""
    found = after - before
    return difference(float(found[0]), found[1:], n)


def compare(
    unsteered: Strength,
    methods: Mapping[str, Mapping[float, Strength]],
    ratios: Sequence[float],
    better: Better,
    reference: str | None = None,
) -> tuple[list[Outcome], Estimate]:
    """Return an outcome a ratio and method, in order, and the unsteered attribute.

    methods: name -> beta -> strength, without 0. Everything is over the prompts that are scored at every
    point used, and resampled together. Raises UserError if there is none.
    """
    paths = {
        name: [unsteered, *(points[beta] for beta in steering_betas(list(points)))]
        for name, points in methods.items()
    }
    rows = _scored_everywhere(paths)
    n = int(rows.sum())
    weights = resampling_weights(n)
    sweeps = {name: make_sweep([each.kept(rows) for each in path], weights) for name, path in paths.items()}
    plain = unsteered.kept(rows).attribute
    before = WEIGHTED[plain.statistic](plain.units, weights)
    found = [each for ratio in ratios for each in _outcomes(sweeps, before, ratio, better, reference, n)]
    return found, estimate_of(before, n)


def _scored_everywhere(paths: Mapping[str, Sequence[Strength]]) -> NDArray[np.bool_]:
    """Return (P,), True for prompts scored at every point; UserError naming the emptiest where none is."""
    scored = {(name, each.beta): each.scored() for name, path in paths.items() for each in path}
    rows: NDArray[np.bool_] = np.logical_and.reduce(list(scored.values()))
    if not rows.any():
        (name, beta), least = min(scored.items(), key=lambda item: int(item[1].sum()))
        raise UserError(
            f"no prompt is scored at every point: {name!r} at beta {beta:g} has {int(least.sum())} of "
            f"{len(least)}; run eval.tradeoff without that beta"
        )
    return rows


def _outcomes(
    sweeps: Mapping[str, Sweep], before: Floats, ratio: float, better: Better, reference: str | None, n: int
) -> list[Outcome]:
    """Return every method's outcome at one ratio over n prompts; before: (S,) the unsteered attribute."""
    at = {name: at_budget(sweep, ratio, better) for name, sweep in sweeps.items()}
    against = None if reference is None else at[reference].values
    return [
        Outcome(
            name,
            ratio,
            estimate_of(at[name].values, n),
            difference_of(at[name].values, before, n),
            None if against is None or name == reference else difference_of(at[name].values, against, n),
            at[name].beta,
            bool(at[name].reached[0]),
            float(at[name].reached[1:].mean()),
            float(sweep.betas[-1]),
            float(np.exp(sweep.log_ratios[0, -1])),
        )
        for name, sweep in sweeps.items()
    ]
