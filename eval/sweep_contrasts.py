"""What a sweep says of its axes two values at a time: differences paired over rounds, and luck over seeds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.stats import bootstrap, paired_difference
from eval.sweep_summary import AXES, ROUND, SETTING, Sweep

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
COMPARED = (("head", "noise"), ("head", "pairing"), ("head", "n_pairs"), ("pairing", "head"))


def contrast_rows(sweep: Sweep, axis: str, by: str, measure: str = "spearman") -> list[dict[str, Any]]:
    """Return a row for each value of `by` and two values of `axis`: their figures and the difference.

    The unit is a round, one split and seed, its mean over all other axes; only cells whose counterpart has
    the figure too are counted. Two values without a common round give no row.
    """
    rows = []
    for value in sweep.values(by):
        for first, second in combinations(sweep.values(axis), 2):
            pair = _paired(sweep, measure, axis, (second, first), by, value)
            if pair is None:
                continue
            after, before = pair
            shown = {by: value, "compared": f"{second} minus {first}"}
            means = {"the former": bootstrap(after), "the latter": bootstrap(before)}
            rows.append({**shown, **means, "difference": paired_difference(after, before)})
    return rows


def seed_rows(sweep: Sweep, measure: str = "spearman") -> list[dict[str, Any]]:
    """Return a row a head: the standard deviation over seeds, and its ratio to the first head's.

    The unit is a setting (split, pairing, number of pairs, noise, golden reward): its deviation over seeds,
    which draw pairs, labels, weights and batches anew. Pooled as the root of the mean variance. Settings
    that not every head has with two seeds or more are left out; no rows without any.
    """
    heads = sweep.values("head")
    variances = {head: _variances(sweep, measure, head) for head in heads}
    common = sorted(set.intersection(*(set(found) for found in variances.values())), key=repr)
    if not common:
        return []
    columns = np.array([[variances[head][setting] for head in heads] for setting in common])  # (S, H)
    rows = []
    for place, head in enumerate(heads):
        ratio = bootstrap(columns[:, [place, 0]], _deviation_ratio)
        row = {"head": head, "settings": len(common), "deviation": bootstrap(columns[:, place], _deviation)}
        rows.append({**row, f"over {heads[0]}": ratio})
    return rows


def _paired(
    sweep: Sweep, measure: str, axis: str, values: tuple[Any, Any], by: str, at: Any
) -> tuple[Floats, Floats] | None:
    """Return the means (R,) of the rounds under either value, over cells that both have; None for none."""
    sides = [dict(_cells(sweep, measure, sweep.where(**{axis: value, by: at}), axis)) for value in values]
    common = sides[0].keys() & sides[1].keys()
    rounds = sorted({key[0] for key in common})
    if not rounds:
        return None
    means = [
        np.array([np.mean([side[key] for key in common if key[0] == each]) for each in rounds])
        for side in sides
    ]
    return means[0], means[1]


def _cells(sweep: Sweep, measure: str, cells: Bools, axis: str) -> Iterator[tuple[Any, float]]:
    """Yield ((round, other axes), figure) of these cells, those without the figure left out."""
    rest = [name for name in SETTING if name != axis]
    for place in np.flatnonzero(cells & ~np.isnan(sweep.columns[measure])):
        key = (
            tuple(sweep.columns[name][place] for name in ROUND),
            tuple(sweep.columns[name][place] for name in rest),
        )
        yield key, float(sweep.columns[measure][place])


def _variances(sweep: Sweep, measure: str, head: str) -> dict[Any, float]:
    """Return setting -> the unbiased variance over its seeds."""
    found: dict[Any, list[float]] = {}
    others = [name for name in AXES if name not in ("head", "seed")]
    for place in np.flatnonzero(sweep.where(head=head) & ~np.isnan(sweep.columns[measure])):
        key = tuple(sweep.columns[name][place] for name in others)
        found.setdefault(key, []).append(float(sweep.columns[measure][place]))
    return {key: float(np.var(figures, ddof=1)) for key, figures in found.items() if len(figures) > 1}


def _deviation(variances: Floats) -> float:
    return float(np.sqrt(variances.mean()))


def _deviation_ratio(variances: Floats) -> float:
    return _deviation(variances[:, 0]) / _deviation(variances[:, 1])


def all_contrasts(sweep: Sweep) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield (title, rows) of every comparison that the sweep's axes allow."""
    for axis, by in COMPARED:
        if len(sweep.values(axis)) > 1:
            yield f"{axis} by {by}", contrast_rows(sweep, axis, by)
    if len(sweep.values("seed")) > 1:
        yield "deviation over seeds", seed_rows(sweep)
