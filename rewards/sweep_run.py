"""One sweep from its grid to its tables: checked, resumed, run wherever there is room, and watched."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from decoder.contracts import UserError
from rewards.head_store import check_kind
from rewards.heads import HEADS
from rewards.sweep_cells import Bench
from rewards.sweep_grid import Group
from rewards.sweep_progress import watched
from rewards.sweep_results import SweepResults
from rewards.sweep_workers import InProcess, Pool, Processes, run_groups


def run_sweep(
    bench: Bench,
    folder: Path,
    *,
    workers: int = 1,
    ray: str = "",
    about: Mapping[str, Any] | None = None,
    retry_failed: bool = False,
    overwrite: bool = False,
) -> int:
    """Run every cell that the folder has no result of, write its tables, and return how many cells failed.

    workers: processes; 0 runs all in this one. ray: a cluster's address instead. retry_failed: run cells
    that failed before once more, each by itself.
    Raises UserError before anything is run for a grid that does not fit the store, a missing package and
    what `SweepResults.open` refuses.
    """
    check(bench)
    grid, stores = bench.grid, [store.digest for store in (bench.store, bench.test) if store is not None]
    with SweepResults.open(folder, grid, stores, about or {}, overwrite=overwrite) as results:
        groups = list(pending(results, retry_failed))
        if groups:
            with closing(_pool(bench, workers, ray)) as pool, watched(grid, results.done, groups) as tell:
                for found in run_groups(pool, groups):
                    results.add(found)
                    tell(found)
        results.write_tables()
        return len(results.failed())


def check(bench: Bench) -> None:
    """Raise UserError for stores, labels, splits, best-of-n or heads that cannot be, before a cell is run."""
    if bench.test is not None:
        check_kind(bench.test, bench.store.manifest)
        if bench.test.digest == bench.store.digest:
            raise UserError(f"the test store {bench.test.folder} holds the rows to train on: give another")
    needs_lightgbm = any("lightgbm" in HEADS[head].made_by for head in bench.grid.heads)
    if needs_lightgbm and importlib.util.find_spec("lightgbm") is None:
        raise UserError("LightGBM heads need lightgbm: pip install 'tiller-lm[heads]'")
    for golden in bench.grid.golden:
        for split in range(bench.grid.splits):
            _check_best_of(bench, golden, split)


def pending(results: SweepResults, retry_failed: bool) -> Iterator[Group]:
    """Yield what is left to run: whole groups, and single cells of those that were begun or have failed."""
    for group in results.grid.groups():
        missing = [cell for cell in group if cell.number not in results.done]
        if len(missing) == len(group):
            yield group
        else:  # its process died, or a cell failed
            yield from ((cell,) for cell in missing)
    if retry_failed:
        failed = {result.cell for result in results.failed()}
        yield from ((cell,) for cell in results.grid.cells() if cell.number in failed)


def _check_best_of(bench: Bench, golden: str, split: int) -> None:
    largest = max(bench.grid.best_of)
    most = int(np.bincount(bench.parts(golden, split).test_prompts).max())
    if largest > most:
        raise UserError(
            f"best_of {largest}: no prompt that split {split} tests has more than {most} samples with "
            f"{golden!r}: ask for less, or name prompts with more by test_samples"
        )


def _pool(bench: Bench, workers: int, ray: str) -> Pool:
    if ray:
        from rewards.sweep_ray import RayTasks

        return RayTasks(bench, ray)
    return Processes(bench, workers) if workers else InProcess(bench)
