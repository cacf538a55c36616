"""What is said of a sweep: means over rounds, their intervals, the best, the pictures and the page."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from decoder.contracts import UserError
from eval.stats import bootstrap
from eval.sweep_picture import draw_sweep, panels_of
from eval.sweep_report import app, page
from eval.sweep_summary import axis_rows, best_rows, errors, read_sweep, tell
from rewards.sweep_grid import Cell, Grid
from rewards.sweep_results import Result, SweepResults, failure, measure_names
from tests.sweeps import grid

AXES = {
    "heads": ("bt-linear", "lgb-clf"), "pairing": ("cross", "within"), "n_pairs": (50, 200),
    "seeds": (0, 1, 2), "splits": 2, "noise": (1.0, math.inf), "best_of": (2, 4),
}  # fmt: skip


def quality(cell: Cell) -> float:
    """A Spearman that every axis moves by an amount of its own."""
    return (
        0.2
        + 0.1 * (cell.head == "lgb-clf")
        + 0.04 * (cell.pairing == "cross")
        + 0.001 * cell.n_pairs
        + 0.05 * math.isinf(cell.noise)
        + 0.01 * cell.seed * (1 + cell.split)
    )


def written(folder: Path, axes: Grid, failing: int | None = None) -> Path:
    """Write the results of a sweep whose figures are `quality`, one cell failed if asked."""

    def result(cell: Cell) -> Result:
        if cell.number == failing:
            return failure(cell, "it | broke", 1.0)
        figures = dict.fromkeys(measure_names(axes.best_of), quality(cell))
        flips = 0.25 / min(cell.noise, 10)
        return Result(cell.number, cell.noise, flips, figures, None, cell.n_pairs / 100)

    with SweepResults.open(folder, axes, ["digest"], {}) as results:
        results.add([result(cell) for cell in axes.cells()])
        results.write_tables()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "sweep", grid(**AXES), failing=5)


def test_means_and_intervals_are_over_rounds(folder: Path) -> None:
    sweep, axes = read_sweep(folder), grid(**AXES)
    cells = [cell for cell in axes.cells() if cell.number != 5]
    rows = {(row["axis"], row["value"]): row for row in axis_rows(sweep)}
    assert set(rows) == {("all", "")} | {
        (axis, value)
        for axis, values in {
            "head": axes.heads, "pairing": axes.pairing, "n_pairs": axes.n_pairs, "seed": axes.seeds,
            "split": (0, 1), "noise": axes.noise,
        }.items()
        for value in values
    }  # fmt: skip
    for (axis, value), row in rows.items():
        kept = [cell for cell in cells if axis == "all" or getattr(cell, axis) == value]
        rounds = [
            np.mean([quality(cell) for cell in kept if (cell.split, cell.seed) == each])
            for each in itertools.product((0, 1), (0, 1, 2))
            if any((cell.split, cell.seed) == each for cell in kept)
        ]
        expected = bootstrap(rounds)
        assert row["spearman"].value == pytest.approx(np.mean(rounds))
        assert row["spearman"].interval == pytest.approx(expected.interval)
        assert row["failed"] == (1 if axis == "all" or value == getattr(axes.cells()[5], axis) else 0)
        assert row["cells"] == len(kept) + row["failed"]
    assert rows["n_pairs", 200]["CPU s a cell"] == 2


def test_one_round_has_no_interval(tmp_path: Path) -> None:
    sweep = read_sweep(written(tmp_path, grid(seeds=(0,))))
    row = axis_rows(sweep)[0]
    assert math.isfinite(row["spearman"].value)
    assert math.isnan(row["spearman"].low)
    assert row["spearman"].n == 1


def test_the_best_are_found(folder: Path) -> None:
    rows = best_rows(read_sweep(folder))
    assert [row["head"] for row in rows] == ["bt-linear"] * 3 + ["lgb-clf"] * 3
    for head in ("bt-linear", "lgb-clf"):
        mine = [row for row in rows if row["head"] == head]
        best = [(row["pairing"], row["n_pairs"], row["noise"]) for row in mine]
        assert best == [("cross", 200, math.inf), ("within", 200, math.inf), ("cross", 200, 1.0)]
        assert mine[0]["cells"] == 6


def test_errors_are_counted(folder: Path) -> None:
    sweep = read_sweep(folder)
    assert errors(sweep) == {"it | broke": 1}
    assert sweep.failed.sum() == 1
    assert len(sweep) == 96


def test_the_summary_is_a_line_of_strict_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(read_sweep(folder), {"output": "out"})
    out, told = capsys.readouterr()
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["sweep"] == {"output": "out", "cells": 96, "failed": 1}
    assert found["best"][0]["noise"] == "inf"
    assert len(found["axes"]) == 14
    assert "1 x it | broke" in told
    assert "python -m eval.sweep_report out" in told


@pytest.mark.parametrize("against", ["noise", "n_pairs", "cost"])
def test_lines_of_the_pictures(folder: Path, against: str) -> None:
    panels = panels_of(read_sweep(folder), against)
    assert {title: list(lines) for title, lines in panels.items()} == {
        "cross": ["bt-linear", "lgb-clf"],
        "within": ["bt-linear", "lgb-clf"],
    }
    line = panels["cross"]["lgb-clf"]
    expected = {"noise": [0.025, 0.25], "n_pairs": [50, 200], "cost": [0.5, 2]}
    assert [x for x, _ in line] == pytest.approx(expected[against])
    rounds = 0.2 + 0.1 + 0.04 + np.mean([0, 0.01, 0.02, 0, 0.02, 0.04])
    other = 0.001 * 125 if against == "noise" else 0.05 / 2
    moved = [0.05, 0] if against == "noise" else [0.05, 0.2]
    assert [y.value for _, y in line] == pytest.approx([rounds + other + each for each in moved])


def test_the_report_is_written(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    app([str(folder)], standalone_mode=False)
    text = (folder / "report.md").read_text()
    assert text == page(read_sweep(folder))
    for name in ("noise.png", "pairs.png", "cost.png"):
        assert f"({name})" in text
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert "| lgb-clf | golden | cross | 200 | inf | 6 | 0 |" in text
    assert "| 1 | it / broke |" in text, "a bar would be another column"
    widths = [line.count("|") for line in text.splitlines() if line.startswith("| lgb-clf")]
    assert len(widths) == 3 + 1 + 2


def test_equal_sweeps_give_equal_pictures(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        draw_sweep(read_sweep(folder), "noise", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_folders_that_are_no_finished_sweep(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*results\.parquet .*: let rewards.sweep finish first"):
        read_sweep(tmp_path)
    (folder / "results.parquet").write_bytes((folder / "timings.parquet").read_bytes())
    with pytest.raises(UserError, match=r"is no table of rewards\.sweep"):
        read_sweep(folder)
