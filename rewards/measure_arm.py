"""How well a token reward tells an attribute, by how much of the text it has read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
TOKEN_COUNTS = (5, 10, 20)
N_BINS = 15
MIN_TEXTS = 20  # of a length, below which a row of the table would say nothing

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Measures:
    """One row of the table.

    prefix: how much was read. n_texts: how many texts are that long. auc, accuracy: of the label at
    threshold one half; balanced_accuracy: the mean over both classes. calibration_error: expected
    distance of probability from frequency, both classes weighing the same. None where undefined.
    """

    prefix: str
    n_texts: int
    auc: float | None
    accuracy: float
    balanced_accuracy: float | None
    calibration_error: float | None


def rank_auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the chance that a positive scores above a negative, ties counting half; NaN without both."""
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return math.nan
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def calibration_error(probabilities: Floats, weights: Floats, targets: Floats) -> float:
    """Return the weighted mean over bins of |mean probability - mean target|; all (M,)."""
    bins = np.minimum((probabilities * N_BINS).astype(int), N_BINS - 1)
    gaps = np.bincount(bins, weights * (probabilities - targets), minlength=N_BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def balance(labels: Floats, share: float) -> tuple[Floats, Floats]:
    """Return weights (M,) and targets (M,) under which both classes weigh the same.

    labels: in [0, 1]. share: their mean over the training texts. weight * BCE(p, target) is then the
    cross-entropy with 0.5 / share on the positive part of each label and 0.5 / (1 - share) on the rest.
    """
    positive, negative = labels * 0.5 / share, (1 - labels) * 0.5 / (1 - share)
    return positive + negative, positive / (positive + negative)


def measure(log_odds: Floats, lengths: Ints, labels: Floats) -> list[Measures]:
    """Return measures by prefix from the log-odds of all tokens, (N,), of M texts in order."""
    ends = lengths.cumsum()
    rows = []
    for prefix, kept, positions in _prefixes(lengths):
        if len(kept) < MIN_TEXTS and len(kept) < len(lengths):
            continue
        rows.append(_measure(prefix, log_odds[(ends - lengths)[kept] + positions], labels[kept]))
    return rows


def _prefixes(lengths: Ints) -> Iterator[tuple[str, Ints, Ints]]:
    """Yield (name, texts, position of the state that scores the prefix's last token).

    The state at position i scores token i + 1; the last one scores the end of the text.
    """
    every = np.arange(len(lengths))
    for count in TOKEN_COUNTS:
        kept = every[lengths >= count]
        yield f"{count} tokens", kept, np.full(len(kept), count - 2)
    for fraction in FRACTIONS:
        yield f"{fraction:.0%}", every, np.ceil(fraction * lengths).astype(np.int64) - 1


def _measure(prefix: str, log_odds: Floats, labels: Floats) -> Measures:
    positive = labels >= 0.5
    right = (log_odds > 0) == positive
    recalls = [float(right[group].mean()) for group in (positive, ~positive) if group.any()]
    both = len(recalls) == 2
    probabilities = 1 / (1 + np.exp(-log_odds.clip(-60, 60)))
    return Measures(
        prefix,
        len(labels),
        rank_auc(log_odds, positive) if both else None,
        float(right.mean()),
        sum(recalls) / 2 if both else None,
        calibration_error(probabilities, *balance(labels, labels.mean())) if both else None,
    )
