"""The directions in which rows vary most."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-12  # of a variance that is divided by


def principal(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return directions (D, n), orthonormal, and the variance (n,) along each of centred rows (m, D).

    The one that varies most comes last. n: at most the rank of the rows. By eigenvectors of the smaller of
    the two products of the rows with themselves, since few long rows are the rule.
    """
    scaled = values / len(values) ** 0.5
    wide = len(values) < values.shape[1]
    found, vectors = torch.linalg.eigh(scaled @ scaled.T if wide else scaled.T @ scaled)
    variance, kept = found[-n:].clamp(min=LEAST), vectors[:, -n:]
    return (scaled.T @ kept / variance.sqrt() if wide else kept), variance
