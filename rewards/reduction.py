"""Fewer numbers a tap to fit on: principal directions of each layer's states, and the way back.

A probe over all layers has tens of thousands of weights, a few hundred prompts to learn from, and states
that share most of their variance. Fitting in each layer's leading directions is faster and overfits less,
and nothing of it is left in the saved probe: the weights are mapped back to the states themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.elhsr import Norm, scale

SAMPLE = 40_000  # tokens that the directions are found on
CHUNK = 16_384  # tokens read at a time
# Of log p among hundreds of features, whose weight a fit of a few hundred steps would else leave small.
EMPHASIS = 10.0


@dataclass(frozen=True, slots=True)
class Reduction:
    """How states become fit features: z = (h - mean) basis for each tap.

    means: (L, d) float32. bases: (L, d, c) float32, the leading directions over their standard deviations.
    """

    means: Tensor
    bases: Tensor

    def apply(self, taps: Mapping[int, Tensor], layers: tuple[int, ...], norm: Norm, rows: Tensor) -> Tensor:
        """Return features (n, L * c) float32 of the tokens `rows` (n,) of states (N, d) a layer."""
        width = self.bases.shape[2]
        features = torch.empty(len(rows), len(layers) * width)
        for i, layer in enumerate(layers):
            shift, columns = self.means[i] @ self.bases[i], slice(i * width, (i + 1) * width)
            for chosen in torch.arange(len(rows)).split(CHUNK):
                h = taps[layer][rows[chosen]].float()
                features[chosen, columns] = (h @ self.bases[i]) * scale(h, norm) - shift
        return features

    def fold_back(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight (L, d, 2) and bias (2,) on states, from weight (L * c, 2), bias (2,) on features."""
        per_tap = weight.double().reshape(len(self.bases), -1, 2)
        folded = self.bases.double() @ per_tap  # (L, d, 2)
        shift = torch.einsum("ld,ldk->k", self.means.double(), folded)
        return folded.float(), (bias.double() - shift).float()


@dataclass(frozen=True, slots=True)
class LikelihoodScale:
    """How log p becomes a fit feature: (log p - mean) * factor."""

    mean: float
    factor: float

    @classmethod
    def of(cls, log_p: Tensor) -> LikelihoodScale:
        """Return the scale that gives log p (N,) mean 0 and standard deviation EMPHASIS."""
        return cls(float(log_p.mean()), EMPHASIS / max(float(log_p.std()), 1e-6))

    def apply(self, log_p: Tensor) -> Tensor:
        """Return features (n, 1) of log p (n,)."""
        return (log_p[:, None] - self.mean) * self.factor

    def fold_back(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias (2,) on log p, from weight and bias (2,) on the feature."""
        return weight * self.factor, bias - weight * self.factor * self.mean


def find_reduction(
    taps: Mapping[int, Tensor], rows: Tensor, layers: tuple[int, ...], norm: Norm, components: int
) -> Reduction:
    """Return the reduction to `components` directions a layer, at most d, found on the tokens `rows`.

    Directions are scaled to unit variance, so that weight decay asks the same of all of them.
    """
    if len(rows) > SAMPLE:
        rows = rows[torch.linspace(0, len(rows) - 1, SAMPLE).long()]
    states = (taps[layer][rows].float() for layer in layers)
    found = [_leading(h * scale(h, norm), components) for h in states]
    return Reduction(torch.stack([mean for mean, _ in found]), torch.stack([basis for _, basis in found]))


def _leading(h: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Return mean (d,) and basis (d, c) of states (n, d)."""
    mean = h.mean(0)
    centred = h - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(h))  # ascending
    kept = slice(-min(components, h.shape[1]), None)
    floor = variances[-1] * 1e-6  # a direction without variance says nothing, and must not be blown up
    scales = variances[kept].clamp(min=floor.clamp(min=1e-12)).rsqrt()
    return mean, directions[:, kept] * scales
