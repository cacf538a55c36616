"""Thousands of reward heads from one store of embeddings: heads x noise x pairs x pairing x seeds.

    python -m rewards.sweep small --store STORE --output sweep
    python -m rewards.sweep findings --store STORE --golden harmless --output sweep --workers 4
    python -m rewards.sweep paper --store STORE --output sweep --dry-run
    python -m rewards.sweep GRID.yaml --store STORE --output sweep --ray local
    python -m rewards.sweep GRID.yaml --store STORE --output sweep --retry-failed

GRID is a YAML file whose lists are multiplied out (`rewards/grids/paper.yaml` says how), or the name of a
packaged one: findings, paper, small. What is finished is kept: the same command goes on after any
interruption, and ends with the same results.parquet. A cell that fails is recorded with its error and does
not end the sweep.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decoder.cli import make_app, run

if TYPE_CHECKING:
    from rewards.sweep_grid import Grid

GridName = Annotated[
    str, typer.Argument(metavar="GRID", help="YAML file, or a packaged grid: findings, paper, small.")
]
StoreFolder = Annotated[Path, typer.Option(help="Embedding store with golden rewards as a label.")]
TestFolder = Annotated[Path | None, typer.Option("--test", help="Store of the test prompts. [part of STORE]")]
Output = Annotated[Path, typer.Option(help="Folder for results.parquet, timings.parquet and the journal.")]
Golden = Annotated[
    list[str] | None,
    typer.Option(help="Labels that are the golden reward, instead of the grid's; several times."),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes of one thread; 0 works in this one. [the number of cores]", min=0),
]
RayAddress = Annotated[str, typer.Option("--ray", help="A Ray cluster's address; local starts one here.")]
DryRun = Annotated[
    bool, typer.Option(help="Check everything and tell cells and estimated time; run nothing.")
]
RetryFailed = Annotated[bool, typer.Option(help="Run cells that failed before once more.")]
Overwrite = Annotated[bool, typer.Option(help="Start over instead of going on.")]
PACKAGES = ("tiller-lm", "numpy", "torch", "lightgbm", "pyarrow", "ray")


def sweep(
    grid: GridName,
    store: StoreFolder,
    output: Output,
    test: TestFolder = None,
    golden: Golden = None,
    workers: Workers = None,
    ray: RayAddress = "",
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit and measure every cell of a grid, thousands a day on a laptop, and tell what was found."""
    from eval.head_measures import head_measures
    from eval.sweep_summary import read_sweep, tell
    from rewards.store import open_store
    from rewards.sweep_cells import Bench
    from rewards.sweep_run import check, run_sweep
    from rewards.sweep_yaml import find_grid, read_grid

    path, n_workers = find_grid(grid), cores() if workers is None else workers
    axes = read_grid(path)
    axes = replace(axes, golden=tuple(dict.fromkeys(golden))) if golden else axes
    settings = {"grid": str(path), "store": str(store), "output": str(output)}
    tested = None if test is None else open_store(test.resolve())
    bench = Bench(open_store(store.resolve()), axes, head_measures, tested)
    if dry_run:
        check(bench)
        _tell_cost(bench.grid, bench.store.manifest.dimension, settings, max(1, n_workers))
        return
    run_sweep(
        bench,
        output,
        workers=n_workers,
        ray=ray,
        about={"command": sys.argv, "versions": _versions()},
        retry_failed=retry_failed,
        overwrite=overwrite,
    )
    tell(read_sweep(output), settings)


def cores() -> int:
    """Return how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _tell_cost(grid: Grid, dimension: int, settings: Mapping[str, Any], processes: int) -> None:
    """Print cells, groups and estimated time by head: a table for people, one JSON line for programs."""
    from eval.sweep_summary import show
    from rewards.sweep_cost import estimated_seconds
    from rewards.sweep_progress import clock

    groups = grid.groups()
    rows: list[dict[str, Any]] = []
    for head in grid.heads:
        mine = [group for group in groups if group[0].head == head]
        seconds = sum(estimated_seconds(grid, cell, dimension) for group in mine for cell in group)
        counts = {"cells": sum(map(len, mine)), "groups": len(mine)}
        rows.append({"head": head, **counts, "estimated seconds": seconds / processes})
    rows.append({"head": "all", **{key: sum(row[key] for row in rows) for key in list(rows[0])[1:]}})
    shown = [{**row, "estimated seconds": clock(row["estimated seconds"])} for row in rows]
    show(
        f"dry run with --workers {processes}",
        [{key.replace("seconds", "time"): str(value) for key, value in row.items()} for row in shown],
    )
    print(json.dumps({"dry_run": {**settings, "processes": processes}, "heads": rows}))


def _versions() -> dict[str, str | None]:
    """Return the versions that a result may depend on, without loading what they are of."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


app = make_app(sweep)

if __name__ == "__main__":
    run(app)
