"""How many pairs an augmentation makes of how many: the one place that defines the ratio."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decoder.contracts import UserError
from rewards.pair_draws import Ints


@dataclass(frozen=True, slots=True)
class Plan:
    """How many pairs of what: n_original given ones, n_pairs to learn from, n_synthetic that are made."""

    n_original: int
    n_pairs: int
    n_synthetic: int

    @property
    def ratio(self) -> float:
        """Return the augmentation ratio: pairs to learn from over original pairs."""
        return self.n_pairs / self.n_original

    @property
    def sources(self) -> Ints:
        """Return (n_synthetic,) ascending: the pairs that synthetic ones are made from, evenly."""
        return np.arange(self.n_synthetic) * self.n_original // max(self.n_synthetic, 1)


def plan(
    method: str, n_original: int, ratio: float, combine: str, copies: float | None, *, synthesises: bool
) -> Plan:
    """Return how many pairs there will be.

    method: its name, or "". copies: synthetic pairs an original one; None, and combined "own": as many as
    are added. synthesises: whether it makes embeddings. UserError for a ratio or copies that cannot be.
    """
    if not 1 <= ratio < np.inf:
        raise UserError(f"ratio {ratio} must be 1 or more: pairs to learn from over original pairs")
    n_pairs = round(ratio * n_original)
    added = n_pairs - n_original
    if method == "none" and added:
        raise UserError(f"method none adds no pairs, and ratio {ratio:g} asks for {added}: give ratio 1")
    if not synthesises:
        if copies is not None:
            raise UserError(f"copies {copies:g} of a method that makes no embeddings: leave it out")
        return Plan(n_original, n_pairs, 0)
    if copies is None or combine == "own":
        return Plan(n_original, n_pairs, added)
    if not 0 < copies < np.inf:
        raise UserError(f"copies {copies:g} must be above 0: synthetic pairs an original pair")
    return Plan(n_original, n_pairs, round(copies * n_original) if added else 0)
