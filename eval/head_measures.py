"""How good a reward head is: its scores of test rows against golden rewards, prompt by prompt.

Every figure is a `Measure` with one unit a prompt, so that intervals and differences resample prompts. The
figures are those of arXiv 2411.04991 and 2502.04357; the expectation over all subsets takes the place of
their 100 permutations of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decoder.contracts import UserError
from eval.metric import Measure
from eval.prompt_grids import PromptRows, best_of, pairwise_accuracy, quantiles, spearman
from eval.selection import kl_bound

Floats = NDArray[np.float64]

NS = (2, 5, 10, 30, 50, 100, 300, 500)  # of arXiv 2411.04991


@dataclass(frozen=True, slots=True)
class Overoptimisation:
    """What choosing by a score buys as more samples compete: by itself, and by the golden reward.

    ns: samples that compete. kl: log n - (n - 1) / n, the nats from the sampling distribution that best-of-n
    does not pass. proxy: the chosen one's score, standardised over all rows. golden: its golden reward. One
    measure an n; a prompt with fewer than n samples is not scored there.
    """

    ns: tuple[int, ...]
    kl: tuple[float, ...]
    proxy: tuple[Measure, ...]
    golden: tuple[Measure, ...]


def head_measures(
    scores: ArrayLike, golden: ArrayLike, groups: ArrayLike, ns: Sequence[int]
) -> list[Measure]:
    """Return the figures of a head's scores (M,) against golden rewards (M,); groups (M,), each row's prompt.

    "spearman": rank correlation within a prompt, not scored where all scores or all golden are equal;
    "pairwise_accuracy": of a prompt's pairs, equal scores counting half, equal golden left out; and for an n
    "best_of_n": the golden reward of the chosen among n, exact over all subsets (n = 1: the mean);
    "improvement_at_n": that minus the prompt's mean; "quantile_at_n": the chosen one's place among the
    prompt's golden rewards, 0 the lowest and 1 the highest. A prompt with fewer than n rows is not scored.
    Units: (P,), prompts in the order of their first row; scored and total count prompts. Raises UserError
    for rows that do not match, numbers that are not finite, an n below 1 and an n that no prompt reaches.
    """
    rows = PromptRows.of(scores, golden, groups)
    _check_ns(ns, rows)
    chosen = _units(rows, lambda score, gold: best_of(score, gold, ns), len(ns))
    mean = _units(rows, lambda _, gold: gold.mean(axis=1, keepdims=True), 1)
    place = _units(rows, lambda score, gold: best_of(score, quantiles(gold), ns), len(ns))
    return [
        _measure("spearman", _units(rows, lambda score, gold: spearman(score, gold)[:, None], 1)[:, 0]),
        _measure("pairwise_accuracy", _units(rows, lambda s, g: pairwise_accuracy(s, g)[:, None], 1)[:, 0]),
        *_measures("best_of_", chosen, ns),
        *_measures("improvement_at_", chosen - mean, ns),
        *_measures("quantile_at_", place, ns),
    ]


def overoptimisation(
    scores: ArrayLike, golden: ArrayLike, groups: ArrayLike, ns: Sequence[int]
) -> Overoptimisation:
    """Return the proxy and the golden reward of the expected best-of-n over n (Gao et al. 2023, 2210.10760).

    scores, golden, groups: (M,), as for `head_measures`. Where golden falls while proxy rises, the score is
    overoptimised. Raises UserError as `head_measures` does, and where all scores are equal.
    """
    rows = PromptRows.of(scores, golden, groups)
    _check_ns(ns, rows)
    if np.ptp(rows.scores) == 0:
        raise UserError(f"all {len(rows.scores)} scores are {rows.scores[0]}, so they cannot be standardised")
    raw = _units(rows, lambda score, _: best_of(score, score, ns), len(ns))
    chosen = _units(rows, lambda score, gold: best_of(score, gold, ns), len(ns))
    proxy = (raw - rows.scores.mean()) / rows.scores.std()
    return Overoptimisation(
        tuple(ns),
        tuple(kl_bound(n) for n in ns),
        tuple(_measures("proxy_at_", proxy, ns)),
        tuple(_measures("golden_at_", chosen, ns)),
    )


def over_splits(measure: Measure, n_splits: int, seed: int = 0) -> list[Measure]:
    """Return the measure of each of n_splits equal parts of its prompts, dealt at random by the seed.

    The spread of their values is the papers' error over five splits; the interval of `measure` uses all.
    Raises UserError for fewer prompts than splits.
    """
    n_prompts = len(measure.units)
    if not 1 <= n_splits <= n_prompts:
        raise UserError(
            f"{n_prompts} prompts cannot be dealt into {n_splits} splits; ask for 1 to {n_prompts}"
        )
    parts = np.array_split(np.random.default_rng(seed).permutation(n_prompts), n_splits)
    return [_of_prompts(measure, np.sort(part)) for part in parts]


def _units(rows: PromptRows, figure: Callable[[Floats, Floats], Floats], width: int) -> Floats:
    """Return (P, width): a figure of (p, k) scores and golden rewards that is (p, width), over all sizes."""
    units = np.full((len(rows), width), np.nan)
    for prompts, scores, golden in rows.grids():
        units[prompts] = figure(scores, golden)
    return units


def _measure(name: str, units: Floats) -> Measure:
    return Measure(name, units, int((~np.isnan(units)).sum()), len(units), better="higher")


def _measures(prefix: str, units: Floats, ns: Sequence[int]) -> list[Measure]:
    return [_measure(f"{prefix}{n}", units[:, column]) for column, n in enumerate(ns)]


def _of_prompts(measure: Measure, prompts: NDArray[np.int64]) -> Measure:
    units = measure.units[prompts]
    scored = ~np.isnan(units.reshape(len(units), -1)).any(axis=1)
    return replace(measure, units=units, scored=int(scored.sum()), total=len(units))


def _check_ns(ns: Sequence[int], rows: PromptRows) -> None:
    largest = int(rows.sizes.max())
    for n in ns:
        if n < 1:
            raise UserError(f"cannot choose the best of {n} samples; give 1 or more")
        if n > largest:
            raise UserError(
                f"best of {n} asked for, but no prompt has more than {largest} rows; ask for less"
            )
