"""Tokens that the generator might have said, and what teachers hold of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Candidates:
    """K candidates at P places in each of M texts; a place may repeat.

    places: (M, P) int64, which state of its text a candidate comes after, from 0. token_ids: (M, P, K) int64.
    shares: (M, P, K) float32, the generator's probabilities, summing to one over K.
    """

    places: Tensor
    token_ids: Tensor
    shares: Tensor


@dataclass(frozen=True, slots=True)
class CandidateValues:
    """Candidates and, in soft (M, P, K, L) float32, P(attribute) of the text that ends with each."""

    candidates: Candidates
    soft: Tensor

    def label(self, number: int) -> CandidateValues:
        """Return the same of one label, soft (M, P, K)."""
        return replace(self, soft=self.soft[..., number])
