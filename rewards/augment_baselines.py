"""What LENS is compared with: noise on the embedding itself, a Gaussian of all embeddings, mixtures of pairs.

arXiv 2509.26074 names "direct perturbation" and "Gaussian sampling" and defines neither; what stands here is
the plainest reading. Mixup is that of arXiv 1710.09412, on pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment_options import GaussianOptions, MixupOptions, PerturbationOptions
from rewards.fit_embedding_head import standardisation
from rewards.heads import fitted
from rewards.pair_draws import Ints
from rewards.pair_rows import PairRows, read_some

STATISTICS_PAIRS = 4096
GAUSSIAN_PAIRS = 2048  # whose covariance is drawn from; more would cost more memory than they tell


class Perturbation:
    """Each embedding plus independent noise, as wide as a share of each number's own spread."""

    def __init__(self, options: PerturbationOptions) -> None:
        """Take the options."""
        self.options = options
        self._pairs: PairRows | None = None

    def fit(self, pairs: PairRows, held_out: PairRows, seed: int) -> Perturbation:
        """Measure the spread of each number, and return itself."""
        self._pairs = pairs
        _, self._scale = standardisation(read_some(pairs, STATISTICS_PAIRS).flatten(0, 1))
        return self

    def draw(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return (n, 2, D) float32: the pairs `sources` (n,) and noise on both sides."""
        originals = fitted(self._pairs, "synthesiser").read(sources)
        noise: Tensor = self.options.variance**0.5 * self._scale * _normal(originals.shape, rng)
        return originals + noise

    def figures(self) -> dict[str, Any]:
        """Return nothing: nothing is estimated but a scale."""
        return {}

    def warnings(self) -> list[str]:
        """Return nothing."""
        return []


class GaussianSampling:
    """Draws from the Gaussians of all chosen and of all rejected embeddings; tied to no original pair.

    With the whole covariance a draw is mean + sum_i w_i (e_i - mean) / sqrt(N - 1), w normal: the same
    Gaussian as by its D x D covariance, which is never made.
    """

    def __init__(self, options: GaussianOptions) -> None:
        """Take the options."""
        self.options = options
        self._rows: Tensor | None = None  # (N, 2, D), centred, over sqrt(N - 1)

    def fit(self, pairs: PairRows, held_out: PairRows, seed: int) -> GaussianSampling:
        """Measure means and covariances, and return itself. Raises UserError for a single pair."""
        if len(pairs) < 2:
            raise UserError("one pair has no covariance: give 2 or more")
        rows = read_some(pairs, GAUSSIAN_PAIRS)
        self._mean = rows.mean(0)
        self._rows = (rows - self._mean) / (len(rows) - 1) ** 0.5
        return self

    def draw(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return (n, 2, D) float32; of `sources` (n,) only their number matters."""
        rows = fitted_rows(self._rows)
        if self.options.diagonal:
            deviation = (rows**2).sum(0).sqrt()  # (2, D)
            return self._mean + deviation * _normal((len(sources), *deviation.shape), rng)
        weights = _normal((2, len(sources), len(rows)), rng)
        return self._mean + torch.bmm(weights, rows.transpose(0, 1)).transpose(0, 1)

    def figures(self) -> dict[str, Any]:
        """Return the rank that the covariance has at most."""
        return {"rank": len(fitted_rows(self._rows)) - 1}

    def warnings(self) -> list[str]:
        """Return nothing."""
        return []


class Mixup:
    """A pair mixed with another: both chosen embeddings, and both rejected ones, by the same weight."""

    def __init__(self, options: MixupOptions) -> None:
        """Take the options."""
        self.options = options
        self._pairs: PairRows | None = None

    def fit(self, pairs: PairRows, held_out: PairRows, seed: int) -> Mixup:
        """Keep the pairs, and return itself."""
        self._pairs = pairs
        return self

    def draw(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return (n, 2, D) float32: of pair `sources[i]` the larger part, of another one the rest."""
        pairs = fitted(self._pairs, "synthesiser")
        others = (sources + rng.integers(1, max(len(pairs), 2), len(sources))) % len(pairs)
        weight = rng.beta(self.options.alpha, self.options.alpha, len(sources))
        larger = torch.from_numpy(np.maximum(weight, 1 - weight).astype(np.float32))[:, None, None]
        return larger * pairs.read(sources) + (1 - larger) * pairs.read(others)

    def figures(self) -> dict[str, Any]:
        """Return nothing: nothing is estimated."""
        return {}

    def warnings(self) -> list[str]:
        """Return nothing."""
        return []


def fitted_rows(rows: Tensor | None) -> Tensor:
    """Return the rows that were kept. Raises UserError where nothing was fitted."""
    return fitted(None if rows is None else [rows], "synthesiser")[0]


def _normal(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
