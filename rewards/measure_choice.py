"""How well scores choose among the completions of a prompt, as a training run tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.combine import winner
from rewards.measure_arm import rank_auc

Floats = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ChoiceMeasures:
    """Means over prompts: of the label of the chosen completion, of a random one, and of the best there is.

    auc: of labels from 0.5 on against the rest, over all completions. within_auc: the same within a
    prompt, the mean over prompts that have both. gap_closed: how far chosen is from single to best. None
    where undefined. No error bars: `python -m eval.bench best-of-n` has them.
    """

    n_prompts: int
    chosen: float
    single: float
    best: float
    gap_closed: float | None
    auc: float | None
    within_auc: float | None


def measure_choice(scores: Sequence[Floats], labels: Sequence[Floats]) -> ChoiceMeasures:
    """Return the measures of groups of scores (N,) with labels (N,), one group a prompt."""
    pairs = list(zip(scores, labels, strict=True))
    chosen = float(np.mean([label[winner(score)] for score, label in pairs]))
    single, best = float(np.mean([y.mean() for y in labels])), float(np.mean([y.max() for y in labels]))
    within = [rank_auc(score, label >= 0.5) for score, label in pairs]
    defined = [value for value in within if not np.isnan(value)]
    pooled = rank_auc(np.concatenate(scores), np.concatenate(labels) >= 0.5)
    return ChoiceMeasures(
        len(pairs),
        chosen,
        single,
        best,
        (chosen - single) / (best - single) if best > single else None,
        None if np.isnan(pooled) else pooled,
        float(np.mean(defined)) if defined else None,
    )
