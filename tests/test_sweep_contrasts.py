"""Differences between two values of an axis, paired over rounds; the deviation over seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from eval.stats import bootstrap, paired_difference
from eval.sweep_contrasts import all_contrasts, contrast_rows, seed_rows
from eval.sweep_report import page
from eval.sweep_summary import Sweep, read_sweep
from rewards.sweep_grid import Cell, Grid
from rewards.sweep_results import Result, SweepResults, failure, measure_names
from tests.sweeps import grid

AXES: dict[str, Any] = {
    "heads": ("bt-mlp", "lgb-clf", "clf-mlp"), "pairing": ("cross", "within"), "n_pairs": (50, 200),
    "seeds": (0, 1, 2), "splits": 2, "noise": (1.0, math.inf), "best_of": (2, 4),
}  # fmt: skip
SPREAD = {"bt-mlp": 0.02, "lgb-clf": 0.01, "clf-mlp": 0.06}


def quality(cell: Cell) -> float:
    """Heads differ by the noise, rounds by chance of their own, seeds by the head's spread."""
    luck = np.random.default_rng((cell.split, cell.seed)).normal(0, 0.05)
    noisy = not math.isinf(cell.noise)
    better = {"bt-mlp": 0.0, "lgb-clf": 0.1 if noisy else -0.1, "clf-mlp": 0.03}[cell.head]
    return 0.4 + luck + better + SPREAD[cell.head] * (cell.seed - 1) + 0.01 * (cell.pairing == "cross")


def sweep_of(folder: Path, axes: Grid, failing: frozenset[int] = frozenset()) -> Sweep:
    def result(cell: Cell) -> Result:
        if cell.number in failing:
            return failure(cell, "it broke", 1.0)
        figures = dict.fromkeys(measure_names(axes.best_of), quality(cell))
        return Result(cell.number, cell.noise, 0.1, figures, None, 1.0)

    with SweepResults.open(folder, axes, ["digest"], {}) as results:
        results.add([result(cell) for cell in axes.cells()])
        results.write_tables()
    return read_sweep(folder)


def naive(
    axes: Grid, first: str, second: str, noise: float, left_out: frozenset[int]
) -> tuple[list[float], ...]:
    """The means of rounds under either head, over the cells that both of them have."""
    cells = {(c.head, c.split, c.seed, c.pairing, c.n_pairs, c.noise): c for c in axes.cells()}
    sides: tuple[list[float], list[float]] = ([], [])
    for split in range(2):
        for seed in range(3):
            both = [
                (cells[(first, *rest)], cells[(second, *rest)])
                for rest in [(split, seed, p, n, noise) for p in ("cross", "within") for n in (50, 200)]
                if cells[(first, *rest)].number not in left_out
                and cells[(second, *rest)].number not in left_out
            ]
            if both:
                sides[0].append(float(np.mean([quality(a) for a, _ in both])))
                sides[1].append(float(np.mean([quality(b) for _, b in both])))
    return sides


@pytest.mark.parametrize("failing", [frozenset(), frozenset({0, 3, 50, 60, 61, 62, 63})])
def test_heads_are_compared_noise_by_noise_over_rounds(tmp_path: Path, failing: frozenset[int]) -> None:
    axes = grid(**AXES)
    rows = contrast_rows(sweep_of(tmp_path, axes, failing), "head", "noise")
    assert [(row["noise"], row["compared"]) for row in rows] == [
        (noise, f"{second} minus {first}")
        for noise in (1.0, math.inf)
        for first, second in (("bt-mlp", "lgb-clf"), ("bt-mlp", "clf-mlp"), ("lgb-clf", "clf-mlp"))
    ]
    for row in rows:
        second, first = row["compared"].split(" minus ")
        before, after = naive(axes, first, second, row["noise"], failing)
        assert row["the latter"] == bootstrap(before)
        assert row["the former"].value == pytest.approx(np.mean(after))
        expected = paired_difference(after, before)
        assert row["difference"].value == pytest.approx(expected.value)
        assert row["difference"].interval == pytest.approx(expected.interval)
    if not failing:  # what all rounds share has cancelled out
        assert rows[0]["difference"].value == pytest.approx(0.1)
        assert rows[3]["difference"].value == pytest.approx(-0.1)


def test_the_deviation_over_seeds_is_pooled_over_settings(tmp_path: Path) -> None:
    axes = grid(**AXES)
    rows = seed_rows(sweep_of(tmp_path, axes))
    assert [row["head"] for row in rows] == list(AXES["heads"])
    found = {}
    for head in AXES["heads"]:
        variances = []
        for cell in axes.cells():
            if cell.head == head and cell.seed == 0:
                alike = [
                    quality(other) for other in axes.cells()
                    if (other.head, other.split, other.pairing, other.n_pairs, other.noise)
                    == (cell.head, cell.split, cell.pairing, cell.n_pairs, cell.noise)
                ]  # fmt: skip
                assert len(alike) == 3
                variances.append(np.var(alike, ddof=1))
        found[head] = float(np.sqrt(np.mean(variances)))
    for row in rows:
        assert row["settings"] == 16
        assert row["deviation"].value == pytest.approx(found[row["head"]])
        assert row["over bt-mlp"].value == pytest.approx(found[row["head"]] / found["bt-mlp"])
    assert rows[0]["over bt-mlp"].interval == [1.0, 1.0]


def test_only_what_the_axes_allow_is_compared(tmp_path: Path) -> None:
    alone = grid(**{**AXES, "heads": ("bt-mlp",), "pairing": ("cross",), "seeds": (0,)})
    assert dict(all_contrasts(sweep_of(tmp_path / "alone", alone))) == {}
    titles = [title for title, _ in all_contrasts(sweep_of(tmp_path / "all", grid(**AXES)))]
    assert titles == [
        "head by noise",
        "head by pairing",
        "head by n_pairs",
        "pairing by head",
        "deviation over seeds",
    ]
    text = page(read_sweep(tmp_path / "all"))
    assert "### head by noise" in text
    assert "| 1 | lgb-clf minus bt-mlp |" in text


def test_a_head_without_figures_is_left_out(tmp_path: Path) -> None:
    axes = grid(**AXES)
    failing = frozenset(cell.number for cell in axes.cells() if cell.head == "lgb-clf")
    sweep = sweep_of(tmp_path, axes, failing)
    assert {row["compared"] for row in contrast_rows(sweep, "head", "noise")} == {"clf-mlp minus bt-mlp"}
    assert seed_rows(sweep) == []
