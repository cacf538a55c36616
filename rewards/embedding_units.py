"""The units that models of embeddings work in: each number less its mean, over its deviation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rewards.fit_embedding_head import standardisation


class Units(nn.Module):
    """Buffers mean and scale (D,): of the embeddings that a model was trained on."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dimension: int) -> None:
        """Change nothing yet."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("scale", torch.ones(dimension))

    @classmethod
    def of(cls, embeddings: Tensor) -> Units:
        """Return those in which embeddings (..., D) have mean 0 and deviation 1."""
        found = cls(embeddings.shape[-1])
        found.mean, found.scale = standardisation(embeddings.reshape(-1, embeddings.shape[-1]))
        return found

    def standardised(self, embeddings: Tensor) -> Tensor:
        """Return embeddings (..., D) in these units."""
        return (embeddings - self.mean) / self.scale

    def differences(self, pairs: Tensor) -> Tensor:
        """Return differences (n, D), of pairs (n, 2, D) the first less the second, in these units."""
        return (pairs[:, 0] - pairs[:, 1]) / self.scale

    def restored(self, values: Tensor) -> Tensor:
        """Return what `standardised` turns into these values (..., D)."""
        return values * self.scale + self.mean
