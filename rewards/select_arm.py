"""Choose layers, rank and weight decay of a tap ARM by the validation loss."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from rewards.arm import ArmConfig
from rewards.fit_arm import Fit, Recipe, Task, fit

DEPTHS = (0.4, 0.5, 0.6, 0.7, 0.8)  # of the blocks; the ends of a model know less of a text's attributes
RANKS = (16, 64)
WEIGHT_DECAYS = (1.0, 10.0)
LAYER_RECIPE = Recipe(epochs=3)
LAYER_RANK = 16
MAX_TEXTS = 8_000  # choosing on more would cost time and change little


@dataclass(frozen=True, slots=True)
class Trial:
    """One line of the selection table; loss is on the validation texts, before calibration."""

    layers: tuple[int, ...]
    rank: int
    weight_decay: float
    epochs: int
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The head chosen, fitted on all training texts, and every trial on the way.

    fit_seconds: of the fit kept; selection_seconds: of all others.
    """

    arm: ArmConfig
    recipe: Recipe
    fit: Fit
    trials: tuple[Trial, ...]
    fit_seconds: float
    selection_seconds: float


def default_layers(num_layers: int) -> tuple[int, ...]:
    """Return the layers worth trying in a model of that many blocks."""
    return tuple(sorted({max(1, round(depth * num_layers)) for depth in DEPTHS}))


def choose(
    task: Task,
    arm: ArmConfig,
    recipe: Recipe,
    *,
    layers: Sequence[int],
    ranks: Sequence[int] = RANKS,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    fixed_layers: bool = False,
    on_fit: Callable[[], None] = lambda: None,
) -> Choice:
    """Return the best head: the best layer and the best second one beside it, then rank and weight decay.

    arm, recipe: whatever is not chosen here. fixed_layers: read all `layers` instead of choosing.
    on_fit: called after each fit.
    """
    few, start = _few(task, recipe.seed), time.perf_counter()
    trials: list[Trial] = []

    def attempt(arm: ArmConfig, recipe: Recipe) -> Fit:
        begin = time.perf_counter()
        found = fit(few, arm, recipe)
        seconds = time.perf_counter() - begin
        trials.append(Trial(arm.layers, arm.rank, recipe.weight_decay, recipe.epochs, found.loss, seconds))
        on_fit()
        return found

    chosen = tuple(layers) if fixed_layers else _choose_layers(attempt, arm, recipe.seed, layers)
    settings = [
        (replace(arm, layers=chosen, rank=rank), replace(recipe, weight_decay=decay))
        for rank, decay in itertools.product(ranks, weight_decays)
    ]
    fits = [attempt(*setting) for setting in settings]
    best = min(range(len(fits)), key=lambda index: fits[index].loss)
    found, seconds = fits[best], trials[len(trials) - len(fits) + best].seconds
    if few is not task:
        begin = time.perf_counter()
        found = fit(task, *settings[best])
        seconds = time.perf_counter() - begin
    on_fit()
    return Choice(*settings[best], found, tuple(trials), seconds, time.perf_counter() - start - seconds)


def count_fits(
    layers: Sequence[int], ranks: Sequence[int], weight_decays: Sequence[float], fixed_layers: bool
) -> int:
    """Return how often `choose` calls `on_fit`."""
    return (0 if fixed_layers else 2 * len(layers) - 1) + len(ranks) * len(weight_decays) + 1


def _choose_layers(
    attempt: Callable[[ArmConfig, Recipe], Fit], arm: ArmConfig, seed: int, layers: Sequence[int]
) -> tuple[int, ...]:
    """Return the best single layer, with a second one if any pair is better."""

    recipe = replace(LAYER_RECIPE, seed=seed)

    def losses(candidates: Iterator[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
        return {c: attempt(replace(arm, layers=c, rank=LAYER_RANK), recipe).loss for c in candidates}

    singles = losses((layer,) for layer in layers)
    first = min(singles, key=singles.__getitem__)
    pairs = losses(tuple(sorted((*first, layer))) for layer in layers if layer not in first)
    return min({first: singles[first], **pairs}.items(), key=lambda entry: entry[1])[0]


def _few(task: Task, seed: int) -> Task:
    """Return the task with at most MAX_TEXTS training texts; the task itself where it has no more."""
    if len(task.train) <= MAX_TEXTS:
        return task
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))
    return replace(task, train=task.train[order[:MAX_TEXTS]])
