"""Embeddings with a golden reward that is known, and pairs labelled by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Golden:
    """X: (N, D) float32. reward: (N,), linear in X. pairs: (n, 2) rows, the winner first, of training rows.

    test: the rows from here on are in no pair.
    """

    X: NDArray[np.float32]
    reward: NDArray[Any]
    pairs: NDArray[np.int64]
    test: int


def golden(n: int = 1500, dimension: int = 12, flips: float = 0.0, seed: int = 0) -> Golden:
    """Return n pairs of 2 n rows, this share of them the wrong way round, and 400 rows more."""
    rng = np.random.default_rng(seed)
    X = rng.normal(3, rng.uniform(0.1, 9, dimension), (2 * n + 400, dimension)).astype(np.float32)
    reward = X @ (rng.normal(size=dimension) / X.std(0))
    pairs = rng.permutation(2 * n).reshape(n, 2)
    wins = (reward[pairs[:, 0]] > reward[pairs[:, 1]]) ^ (rng.random(n) < flips)
    return Golden(X, reward, np.where(wins[:, None], pairs, pairs[:, ::-1]), 2 * n)
