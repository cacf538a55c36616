"""Choose layers, rank and weight decay of a tap ARM on the validation texts.

Layers by the loss. The loss is mostly about what the prefix says, which is the same for all candidates
and cancels in the softmax; so among ranks and weight decays of nearly the same loss, the head wins whose
difference between candidates alone tells most. On SST-2 rank 16 has the loss of rank 64 and steers less.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from rewards.arm import ArmConfig, ArmHead
from rewards.fit_arm import Fit, Recipe, Task, fit, project_states
from rewards.measure_arm import rank_auc

DEPTHS = (0.4, 0.5, 0.6, 0.7, 0.8)  # of the blocks; the ends of a model know less of a text's attributes
RANKS = (16, 64)
WEIGHT_DECAYS = (1.0, 10.0)
LAYER_RECIPE = Recipe(epochs=3)
LAYER_RANK = 16
NEARLY = 1.02  # times the lowest loss
N_OTHERS = 256  # tokens that a text's own are compared with
MAX_TEXTS = 8_000  # choosing on more would cost time and change little


@dataclass(frozen=True, slots=True)
class Trial:
    """One line of the selection table, on the validation texts.

    loss: before calibration. candidate_auc: of `candidate_auc`; None while choosing layers.
    """

    layers: tuple[int, ...]
    rank: int
    weight_decay: float
    epochs: int
    loss: float
    candidate_auc: float | None
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

    def attempt(arm: ArmConfig, recipe: Recipe, last: bool = False) -> Fit:
        begin = time.perf_counter()
        found = fit(few, arm, recipe)
        seconds, auc = time.perf_counter() - begin, candidate_auc(found.head, few) if last else None
        trials.append(
            Trial(arm.layers, arm.rank, recipe.weight_decay, recipe.epochs, found.loss, auc, seconds)
        )
        on_fit()
        return found

    chosen = tuple(layers) if fixed_layers else _choose_layers(attempt, arm, recipe.seed, layers)
    settings = [
        (replace(arm, layers=chosen, rank=rank), replace(recipe, weight_decay=decay))
        for rank, decay in itertools.product(ranks, weight_decays)
    ]
    fits = [attempt(*setting, last=True) for setting in settings]
    best = _best(trials[-len(fits) :])
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


def _best(trials: Sequence[Trial]) -> int:
    """Return the trial with the highest candidate AUC among those of nearly the lowest loss."""
    lowest = min(trial.loss for trial in trials)
    near = [index for index, trial in enumerate(trials) if trial.loss <= NEARLY * lowest]
    return max(near, key=lambda index: trials[index].candidate_auc or 0.0)


@torch.no_grad()
def candidate_auc(head: ArmHead, task: Task) -> float:
    """Return how well the choice of tokens alone tells the label of the validation texts.

    A text's number is the mean over its tokens of s(token) less the mean s of 256 tokens drawn from the
    data, at the same place: what all candidates share is gone.
    """
    states, texts = task.states, task.validation
    generator = torch.Generator().manual_seed(0)
    others = states.next_ids[torch.randint(len(states.next_ids), (N_OTHERS,), generator=generator)]
    mean_other = head.vocabulary(task.embeddings[others].float()).mean(0)  # s is linear in it
    numbers = []
    for part in texts.split(256):
        e = task.embeddings[states.next_ids[states.rows_of(part)[0]]].float()
        state = project_states(head, states, part)
        difference = ArmHead.score(state, (head.vocabulary(e) - mean_other)[:, None])[:, 0] - state[:, 0]
        # The last token of a text is its end, which no choice of words brought about.
        numbers += [values[:-1].mean() for values in difference.split(states.lengths[part].tolist())]
    scores = torch.stack(numbers).double().nan_to_num(0.0).numpy()
    return rank_auc(scores, task.labels[texts.numpy()] >= 0.5)


def _few(task: Task, seed: int) -> Task:
    """Return the task with at most MAX_TEXTS training texts; the task itself where it has no more."""
    if len(task.train) <= MAX_TEXTS:
        return task
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))
    return replace(task, train=task.train[order[:MAX_TEXTS]])
