"""What a sweep found: means over its axes with intervals, and the best configurations of each head.

A unit of every interval is a round: one split and seed, the mean over all other axes. Rounds draw other
prompts, pairs, labels and weights, so that the intervals are of all of these; cells of one round share them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from decoder.contracts import UserError
from eval.stats import Estimate, bootstrap
from rewards.store_rows import arrow
from rewards.sweep_results import RESULTS, TIMINGS

AXES = ("head", "golden", "split", "pairing", "n_pairs", "seed", "noise")
ROUND = ("split", "seed")
SETTING = tuple(axis for axis in AXES if axis not in ROUND)
BEST = 3  # configurations of each head


@dataclass(frozen=True, slots=True)
class Sweep:
    """A finished sweep. columns: name -> (cells,), figures NaN where there are none; `seconds` among them.

    settings: as they stand in the file: the grid, and the digest of the store.
    """

    columns: Mapping[str, NDArray[Any]]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.columns["cell"])

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Return (cells,), True where a cell has an error in place of figures."""
        return np.array([error is not None for error in self.columns["error"]])

    def values(self, axis: str) -> list[Any]:
        """Return the different values of an axis, in the order of the grid."""
        return list(dict.fromkeys(self.columns[axis].tolist()))

    def where(self, **chosen: Any) -> NDArray[np.bool_]:
        """Return (cells,), True for the cells with these values of axes."""
        kept = np.ones(len(self), dtype=bool)
        for axis, value in chosen.items():
            kept &= self.columns[axis] == value
        return kept

    def estimate(self, measure: str, cells: NDArray[np.bool_]) -> Estimate:
        """Return the mean of a column over these cells, with its interval over rounds.

        Cells without the figure are left out. NaN for none, and an interval of NaN for a single round.
        """
        figures = self.columns[measure]
        kept = cells & ~np.isnan(figures)
        _, unit = np.unique(
            np.stack([self.columns[axis][kept] for axis in ROUND]), axis=1, return_inverse=True
        )
        if not len(unit):
            return Estimate(math.nan, math.nan, math.nan, 0)
        means = np.bincount(unit, weights=figures[kept]) / np.bincount(unit)
        if len(means) == 1:
            return Estimate(float(means[0]), math.nan, math.nan, 1)
        return bootstrap(means)


def read_sweep(folder: Path) -> Sweep:
    """Return the sweep in a folder of `rewards.sweep`. Raises UserError if it is not there or unfinished."""
    pyarrow = arrow()
    tables = {}
    for name in (RESULTS, TIMINGS):
        try:
            tables[name] = pyarrow.parquet.read_table(folder / name)
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(
                f"cannot read {folder / name} ({str(error).splitlines()[0]}): let rewards.sweep finish first"
            ) from None
    found = {name: _array(tables[RESULTS][name]) for name in tables[RESULTS].column_names}
    settings = (tables[RESULTS].schema.metadata or {}).get(b"tiller.sweep")
    if settings is None or not {*AXES, "spearman", "error"} <= set(found):
        raise UserError(f"{folder / RESULTS} is no table of rewards.sweep: name the folder of one")
    return Sweep({**found, "seconds": _array(tables[TIMINGS]["seconds"])}, json.loads(settings))


def axis_rows(sweep: Sweep, measure: str = "spearman") -> list[dict[str, Any]]:
    """Return a row for all cells, and one a value of each axis that has several.

    Each with cells, failures, the figure as an `Estimate`, and processor seconds a cell.
    """
    rows = [_row(sweep, {"axis": "all", "value": ""}, sweep.where(), measure)]
    for axis in AXES:
        values = sweep.values(axis)
        for value in values if len(values) > 1 else []:
            rows.append(_row(sweep, {"axis": axis, "value": value}, sweep.where(**{axis: value}), measure))
    return rows


def best_rows(sweep: Sweep, measure: str = "spearman") -> list[dict[str, Any]]:
    """Return for each head and golden reward the configurations with the best figures over all rounds."""
    rows = []
    for head, golden in product(sweep.values("head"), sweep.values("golden")):
        mine = []
        for rest in product(*(sweep.values(axis) for axis in SETTING[2:])):
            chosen = dict(zip(SETTING, (head, golden, *rest), strict=True))
            row = _row(sweep, chosen, sweep.where(**chosen), measure)
            mine += [row] if math.isfinite(row[measure].value) else []
        rows += sorted(mine, key=lambda row: -row[measure].value)[:BEST]
    return rows


def tell(sweep: Sweep, settings: Mapping[str, Any]) -> None:
    """Print the summary: tables to standard error, one JSON line to standard output."""
    best, axes, failed = best_rows(sweep), axis_rows(sweep), int(sweep.failed.sum())
    console = Console(stderr=True)
    show("best of each head", [_narrow(row, sweep) for row in readable(best)])
    show("mean over the axes", readable(axes))
    console.print(f"{len(sweep):,} cells, {failed:,} failed", highlight=False)
    for error, count in errors(sweep).items():
        console.print(f"  {count:,} x {error}", highlight=False, markup=False)
    console.print(
        f"report with pictures: python -m eval.sweep_report {settings['output']}",
        highlight=False,
        soft_wrap=True,
    )
    counts = {"cells": len(sweep), "failed": failed}
    rows = {"axes": [_numbers(row) for row in axes], "best": [_numbers(row) for row in best]}
    print(json.dumps({"sweep": {**settings, **counts}, **rows}), flush=True)


def show(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows as a table to standard error."""
    if rows:
        table = Table(*rows[0], title=title, title_justify="left")
        for row in rows:
            table.add_row(*row.values())
        Console(stderr=True).print(table)


def _narrow(row: Mapping[str, str], sweep: Sweep) -> dict[str, str]:
    """Return a row without the axes that have one value, and without counts."""
    left_out = {"cells", "failed", *(axis for axis in SETTING if len(sweep.values(axis)) == 1)} - {"head"}
    return {key: value for key, value in row.items() if key not in left_out}


def errors(sweep: Sweep) -> dict[str, int]:
    """Return error -> how many cells it ended, the commonest first."""
    told = [error for error in sweep.columns["error"] if error is not None]
    counts = {error: told.count(error) for error in dict.fromkeys(told)}
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def readable(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the rows as text, intervals in brackets."""
    return [{key: _text(value) for key, value in row.items()} for row in rows]


def estimate_text(found: Estimate) -> str:
    """Return a value with its interval, such as "0.512 [0.498, 0.527]"."""
    if math.isnan(found.low):
        return f"{found.value:.3f}"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _row(sweep: Sweep, chosen: Mapping[str, Any], cells: NDArray[np.bool_], measure: str) -> dict[str, Any]:
    return {
        **chosen,
        "cells": int(cells.sum()),
        "failed": int((cells & sweep.failed).sum()),
        measure: sweep.estimate(measure, cells),
        "CPU s a cell": float(sweep.columns["seconds"][cells].mean()) if cells.any() else math.nan,
    }


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for programs: the value and the interval of an estimate apart, null for NaN."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Estimate):
            found |= {key: value.value, f"{key} interval": value.interval}
        else:
            found[key] = value
    return {key: _no_nan(value) for key, value in found.items()}


def _no_nan(value: Any) -> Any:
    if isinstance(value, list):
        return None if any(map(math.isnan, value)) else value
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _text(value: Any) -> str:
    if isinstance(value, Estimate):
        return estimate_text(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _array(column: Any) -> NDArray[Any]:
    """Return an Arrow column as an array, nulls as NaN where it holds numbers and as None where text."""
    if column.type == arrow().string():
        return np.array(column.to_pylist(), dtype=object)
    found: NDArray[Any] = column.to_numpy()
    return found
