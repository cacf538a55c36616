"""One score out of several scorers' for the samples of a prompt, and the sample that wins.

Every rule takes (S, N), S scorers' scores of one prompt's N samples, higher better, and returns (N,).
A sample that any scorer gave NaN gets NaN, takes no part in the others' ranks or scales, and never wins.
The result speaks about this group of N: another group gives the same sample another combined score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decoder.contracts import UserError

Floats = NDArray[np.float64]
Rule = Callable[[ArrayLike, ArrayLike | None], Floats]


def ranking(scores: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return minus each sample's worst rank over the scorers, (N,); rank 1 is the best.

    Samples that tie do not share a rank: the earlier one is better, as in ELHSR's bon_eval.py
    (arXiv 2505.12225). Raises UserError for weights, which a maximum cannot use.
    """
    if weights is not None:
        shown = _shown(weights)
        raise UserError(f"ranking has no use for weights {shown}; use rank_sum, scaling or zscore with them")
    return _over_scored(scores, lambda table: -np.stack([_ranks(row) for row in table]).max(axis=0))


def rank_sum(scores: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return minus the weighted mean over the scorers of each sample's rank, (N,); rank 1 is the best.

    Samples that tie share the mean of their ranks. weights: (S,), equal if None. Source: Borda's count.
    """
    return _weighted(scores, weights, lambda row: -shared_ranks(-row))


def scaling(scores: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return the weighted mean over the scorers of (score - min) / (max - min) over the group, (N,).

    A scorer that gives every sample the same counts as 1 for all. weights: (S,), equal if None. Source:
    ELHSR's bon_eval.py (arXiv 2505.12225). Raises UserError for an infinite score.
    """
    return _weighted(_finite(scores, "scaling"), weights, _min_max)


def zscore(scores: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return the weighted mean over the scorers of (score - mean) / standard deviation over the group, (N,).

    A scorer that gives every sample the same counts as 0 for all. weights: (S,), equal if None. Raises
    UserError for an infinite score.
    """
    return _weighted(_finite(scores, "zscore"), weights, _standard)


RULES: Mapping[str, Rule] = {
    "ranking": ranking,
    "rank_sum": rank_sum,
    "scaling": scaling,
    "zscore": zscore,
}


def combine(rule: str, scores: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return the combined scores (N,) by the rule of that name; UserError listing the names for another."""
    if rule not in RULES:
        raise UserError(f"no rule is called {rule!r}; use one of: {', '.join(RULES)}")
    return RULES[rule](scores, weights)


def winner(scores: ArrayLike) -> int:
    """Return the index of the best of (N,) scores, NaN left out, ties to the lowest index.

    Raises UserError where there is no sample, or none with a score.
    """
    found = np.asarray(scores, dtype=float)
    if found.ndim != 1:
        raise ValueError(f"one prompt's scores have shape (N,), not {found.shape}")
    if not len(found):
        raise UserError("no sample to choose from (N = 0); generate at least one")
    if np.isnan(found).all():
        raise UserError(
            f"all {len(found)} scores are NaN, so no sample can win; "
            "check the scorer on these texts or use another one"
        )
    return int(np.nanargmax(found))


def shared_ranks(values: ArrayLike) -> Floats:
    """Return the ranks (N,) of (N,) values without NaN, 1 the lowest; ties share the mean of their ranks."""
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[places], dtype=float)


def _ranks(row: Floats) -> Floats:
    """Return the ranks, 1 the highest; of a tie the earlier comes first."""
    ranks = np.empty(len(row))
    ranks[np.argsort(-row, kind="stable")] = np.arange(1, len(row) + 1)
    return ranks


def _min_max(row: Floats) -> Floats:
    span = np.ptp(row)
    return (row - row.min()) / span if span > 0 else np.ones(len(row))


def _standard(row: Floats) -> Floats:
    if np.ptp(row) == 0:  # its computed deviation need not be exactly 0
        return np.zeros(len(row))
    centred = row / np.abs(row).max()  # so that squares neither overflow nor vanish
    centred = centred - centred.mean()
    return np.asarray(centred / centred.std(), dtype=float)


def _weighted(scores: ArrayLike, weights: ArrayLike | None, normalise: Callable[[Floats], Floats]) -> Floats:
    """Return the weighted mean over the scorers of what `normalise` makes of each one's scores."""
    table = _table(scores)
    shares = _shares(weights, len(table))
    return _over_scored(table, lambda kept: shares @ np.stack([normalise(row) for row in kept]))


def _over_scored(scores: ArrayLike, rule: Callable[[Floats], Floats]) -> Floats:
    """Return what the rule makes of the samples that every scorer scored; NaN for the others."""
    table = _table(scores)
    scored = ~np.isnan(table).any(axis=0)
    combined = np.full(table.shape[1], np.nan)
    if scored.any():
        combined[scored] = rule(table[:, scored])
    return combined


def _table(scores: ArrayLike) -> Floats:
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2:
        raise ValueError(f"scores have shape (scorers, samples), not {table.shape}")
    if not len(table):
        raise UserError("no scorer to combine; name at least one")
    return table


def _finite(scores: ArrayLike, rule: str) -> Floats:
    table = _table(scores)
    if np.isinf(table).any():
        row, sample = np.argwhere(np.isinf(table))[0]
        raise UserError(
            f"{rule} cannot scale the score {table[row, sample]} that scorer {row + 1} gave sample {sample}; "
            "use ranking or rank_sum, or correct the scorer"
        )
    return table


def _shares(weights: ArrayLike | None, scorers: int) -> Floats:
    """Return the weights (S,), summing to 1."""
    found = np.ones(scorers) if weights is None else np.asarray(weights, dtype=float)
    if found.shape != (scorers,):
        raise UserError(f"weights {_shown(weights)} for {scorers} scorers; give one number a scorer")
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise UserError(f"weights {_shown(weights)} must be numbers of 0 or more, not all of them 0")
    return np.asarray(found / found.sum(), dtype=float)


def _shown(weights: Any) -> str:
    return str(np.asarray(weights).tolist())
