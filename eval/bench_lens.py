"""LENS against what it is said to beat: golden reward of the best of n over seed pairs and ratio.

The question of arXiv 2509.26074, with the controls that it lacks: as many updates for every head, the pairing
of real embeddings alone, a tuned noise on the embeddings, and more real pairs. A seed draws pairs, labels,
fits and heads anew; a size's pairs are part of a larger one's, and all arms of a seed learn from the same.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decoder.append_file import write_failures
from decoder.contracts import UserError
from decoder.terminal import progress
from eval.lens_cells import Result, run_group
from eval.lens_journal import Journal
from eval.lens_material import LensMaterial, open_material
from eval.lens_plan import Arm, Cell, LensPlan, cells_of, groups_of

TUNED = "tuned.json"
PROBED = 300  # seed pairs of the cells that an estimate times
_material: LensMaterial | None = None  # of a process that runs groups


@dataclass(frozen=True, slots=True)
class LensBench:
    """What was measured: every cell's result, in the order of the cells; settings, as JSON values."""

    plan: LensPlan
    arms: Sequence[Arm]
    cells: Sequence[Cell]
    results: Mapping[str, Result]
    material: LensMaterial
    settings: Mapping[str, Any]


def bench_lens(
    folder: Path, plan: LensPlan, arms: Sequence[Arm], output: Path | None, workers: int = 0
) -> LensBench:
    """Return the result of every cell; those that the output's journal has are not run again.

    folder: the store. workers: processes of one thread; 0 runs all in this one. Raises UserError for a store
    or plan that cannot be used, a journal of other settings, and a process that died.
    """
    material = open_material(folder, plan)
    settings = settings_of(material)
    cells = cells_of(arms, plan)
    with Journal(output / f"{plan.part}.jsonl", settings) if output else nullcontext(None) as journal:
        done = dict(journal.done) if journal else {}
        missing = groups_of([cell for cell in cells if cell.key not in done])
        with progress(f"cells, {plan.part}", len(cells), len(cells) - sum(map(len, missing))) as advance:
            for found in run_groups(material, missing, workers):
                if journal:
                    journal.add(found)
                done |= {result.key: result for result in found}
                advance(len(found))
    axes = {"ratios": list(plan.ratios), "sizes": list(plan.sizes), "seeds": plan.seeds}
    told = {**settings, **axes, "arms": [_told(arm) for arm in arms]}
    return LensBench(plan, arms, cells, {cell.key: done[cell.key] for cell in cells}, material, told)


def settings_of(material: LensMaterial) -> dict[str, Any]:
    """Return what changes the result of a cell, as JSON values."""
    train, judged = material.train, material.judged
    return {
        **material.plan.settings(), "store_digest": material.store.digest,
        "dimension": material.store.manifest.dimension,
        "n_train_prompts": len(np.unique(train.prompts)), "n_train_rows": len(train.rows),
        "n_judged_prompts": len(np.unique(judged.prompts)), "n_judged_rows": len(judged.rows),
    }  # fmt: skip


def estimate_seconds(folder: Path, plan: LensPlan, arms: Sequence[Arm], workers: int) -> dict[str, float]:
    """Return how many cells there are and how long they would take: from one LENS cell, run in this process.

    Every fit of an autoencoder is taken to cost as much as this one, and every other cell as much as its
    head and the synthesis at the largest ratio.
    """
    material = open_material(folder, plan)
    cells = cells_of(arms, plan)
    lens = next((arm for arm in arms if arm.is_lens), Arm("lens", "lens"))
    size = min(plan.sizes, key=lambda n: abs(n - PROBED))
    with _single_thread():
        found = run_group(material, [Cell(lens, plan.ratios[-1], size, 0)])[0]
    if found.seconds is None:
        raise UserError(f"the cell that is timed cannot be: {found.error}")
    fits = len({cell.fit for cell in cells if cell.arm.is_lens})
    each = found.seconds["head"] + found.seconds["synthesis"]
    total = fits * found.seconds["fit"] + len(cells) * each
    return {"cells": len(cells), "fits": fits, **found.seconds, "minutes": total / max(workers, 1) / 60}


def run_groups(
    material: LensMaterial, groups: Sequence[Sequence[Cell]], workers: int
) -> Iterator[list[Result]]:
    """Yield the results of each group as they come. Raises UserError where a process died."""
    if not workers or not groups:
        with _single_thread():
            yield from (run_group(material, group) for group in groups)
        return
    with _pool(material, workers) as pool:
        try:
            for future in as_completed([pool.submit(_run_in_process, group) for group in groups]):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "a process of the benchmark died: was memory short? Finished cells are kept with --output; "
                "run the same command again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def write_tuned(output: Path, chosen: Mapping[str, Arm]) -> None:
    """Write method -> arm for the table to read. Raises UserError where that cannot be."""
    told = {method: {"combine": arm.combine, "options": arm.values} for method, arm in chosen.items()}
    with write_failures(output / TUNED, "give another --output"):
        (output / TUNED).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def read_tuned(output: Path | None) -> dict[str, Arm]:
    """Return method -> arm that the ablations in this folder have chosen; nothing where there are none."""
    if output is None or not (output / TUNED).exists():
        return {}
    try:
        found = json.loads((output / TUNED).read_text(encoding="utf-8"))
        return {
            method: Arm(method, method, each["combine"], tuple(each["options"].items()))
            for method, each in found.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{output / TUNED} is broken: delete it, or run the ablations again") from None


def _told(arm: Arm) -> dict[str, Any]:
    return {**asdict(arm), "options": arm.values}


@contextmanager
def _single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pool(material: LensMaterial, workers: int) -> Executor:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes, which are started anew
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _begin_process, (material,))


def _begin_process(material: LensMaterial) -> None:
    global _material
    torch.set_num_threads(1)
    _material = material


def _run_in_process(cells: Sequence[Cell]) -> list[Result]:
    assert _material is not None, "the pool begins every process with the material"
    return run_group(_material, cells)
