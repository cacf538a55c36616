"""The cells of the benchmark of LENS: pairs augmented, a head fitted on them, what it chooses.

A result is a function of the material and the cell; cells of one fit share it, and end as they would alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from decoder.contracts import UserError
from eval.head_measures import head_measures
from eval.lens_material import LensMaterial, seed_pairs
from eval.lens_plan import NONE, REAL, Arm, Cell
from rewards.augment import Augmented, augment
from rewards.augment_methods import Synthesiser, make_synthesiser, method_options
from rewards.heads import make_head
from rewards.lens_synthesis import Lens
from rewards.pair_draws import Ints
from rewards.pair_rows import PairRows

PATIENCE = 10**6  # every head makes all of its updates; the best of its measurements is kept


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a cell.

    reward, spearman: one a prompt that is judged on: the golden reward of the best of n, and the rank
    correlation, None where it is not defined. seconds: of the processor, "fit" of the synthesiser, which
    cells of one fit share, "synthesis" and "head". figures: of the fit. error: why there is no result.
    """

    key: str
    reward: tuple[float, ...] = ()
    spearman: tuple[float | None, ...] = ()
    seconds: Mapping[str, float] | None = None
    figures: Mapping[str, Any] | None = None
    error: str | None = None


class Refit:
    """A fitted synthesiser that `augment` cannot fit again."""

    def __init__(self, synthesiser: Synthesiser) -> None:
        """Take it."""
        self.synthesiser = synthesiser

    def fit(self, pairs: PairRows, held_out: PairRows, seed: int) -> Refit:
        """Return itself."""
        return self

    def draw(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return what the synthesiser draws."""
        return self.synthesiser.draw(sources, rng)

    def figures(self) -> dict[str, Any]:
        """Return those of the fit."""
        return self.synthesiser.figures()

    def warnings(self) -> list[str]:
        """Return those of the fit."""
        return self.synthesiser.warnings()


def run_group(material: LensMaterial, cells: Sequence[Cell]) -> list[Result]:
    """Return the results of cells that share a fit, in order; what cannot be is a result with an error."""
    fits: dict[str, tuple[Lens, float]] = {}
    found = []
    for cell in cells:
        try:
            found.append(_run(material, cell, fits))
        except UserError as error:
            found.append(Result(cell.key, error=" ".join(str(error).split())))
    return found


def augmented(
    material: LensMaterial, cell: Cell, fits: dict[str, tuple[Lens, float]]
) -> tuple[Augmented, dict[str, float]]:
    """Return a cell's training pairs, and the seconds of the processor that they took.

    fits: of LENS, by `Cell.fit`; what is missing is fitted and kept there. UserError for what cannot be.
    """
    arm, began = cell.arm, time.process_time()
    times = cell.ratio if arm.method == REAL else 1
    seeds, stop = seed_pairs(material, cell.n_pairs, cell.seed, times)
    if arm.method in (REAL, NONE):
        return augment(NONE, seeds, stop, 1), {"fit": 0.0, "synthesis": 0.0}
    chosen: dict[str, Any] = {"combine": arm.combine, "seed": cell.seed}
    if not arm.is_lens:
        found = augment(arm.method, seeds, stop, cell.ratio, **chosen, **arm.values)
        return found, {"fit": 0.0, "synthesis": time.process_time() - began}
    lens, fit_seconds = _lens(arm, cell, seeds, stop, fits)
    began = time.process_time()
    found = augment(Refit(lens), seeds, stop, cell.ratio, **chosen)
    return found, {"fit": fit_seconds, "synthesis": time.process_time() - began}


def _run(material: LensMaterial, cell: Cell, fits: dict[str, tuple[Lens, float]]) -> Result:
    made, seconds = augmented(material, cell, fits)
    began = time.process_time()
    plan = material.plan
    head = make_head(plan.head, steps=plan.steps, patience=PATIENCE, seed=cell.seed)
    head.fit(made.embeddings, made.targets)
    seconds["head"] = time.process_time() - began
    judged = material.judged
    scores = head.predict(material.judged_embeddings())
    measures = {m.name: m.units for m in head_measures(scores, judged.golden, judged.prompts, (plan.n,))}
    spearman = [None if np.isnan(value) else float(value) for value in measures["spearman"]]
    figures = made.synthesiser.figures() if made.synthesiser is not None else {}
    return Result(cell.key, tuple(measures[f"best_of_{plan.n}"].tolist()), tuple(spearman), seconds, figures)


def _lens(
    arm: Arm, cell: Cell, seeds: PairRows, stop: PairRows, fits: dict[str, tuple[Lens, float]]
) -> tuple[Lens, float]:
    """Return the arm's LENS, fitted once for all cells that may share it, and the seconds of that fit."""
    if cell.fit not in fits:
        began = time.process_time()
        lens = make_synthesiser(arm.method, **arm.values)
        assert isinstance(lens, Lens)
        lens.fit(seeds, stop, cell.seed)
        fits[cell.fit] = lens, time.process_time() - began
    fitted, seconds = fits[cell.fit]
    return fitted.drawing(method_options(arm.method, arm.values)), seconds
