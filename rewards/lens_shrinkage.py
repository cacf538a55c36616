"""Differences of pairs drawn from their mean, in the direction of all labels, under a shrunk covariance.

    d' = m + (1 - s)^0.5 (d - m) + (s v)^0.5 noise,  e' = middle of the pair -+ d' / 2

d are differences e+ - e- of standardised embeddings, m and v their mean and variances, s the shrinkage: the
covariance of d' is (1 - s) S + s diag(S).

Why: a few hundred pairs say little of each direction, and part of that is wrong labels and whatever else two
texts differ by; a head believes all of it. What they say together is m. Noise in every other direction takes
the rest away: of many draws a linear head learns linear discriminant analysis under the shrunk covariance, at
s = 1 with independent numbers. Draws of a pair still lie about its own texts, and the pairs themselves are
learnt from beside them. Measured in docs/benchmarks.md: the more shrinkage the better, up to 1, the default.

Sources: regularised discriminant analysis, Friedman (J. Am. Stat. Assoc. 1989), for s; training with noise as
a penalty, Bishop (Neural Computation 1995); that the differences of a pair are what is drawn is ours, as in
`rewards.lens_difference`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.augment_options import ShrinkageOptions
from rewards.embedding_units import Units
from rewards.fit_vae import MEASURED_PAIRS, STATISTICS_PAIRS
from rewards.heads import fitted
from rewards.lens_difference import shifted
from rewards.pair_draws import Ints
from rewards.pair_rows import PairRows, read_some

READ = 2048  # pairs at a time


@dataclass(frozen=True, slots=True)
class ShrinkageFigures:
    """What a fit found.

    n_parameters: numbers that were estimated. length: of the mean difference, over that of a difference, root
    mean square. agreed: share of held-out pairs whose difference points along the mean.
    """

    n_parameters: int
    length: float
    agreed: float


@dataclass(frozen=True, slots=True)
class Moments:
    """mean, deviation: (D,), of differences of embeddings in `units`."""

    mean: Tensor
    deviation: Tensor
    units: Units


class Shrinkage:
    """Draws differences anew. After `fit`: `moments_` and `figures_`."""

    def __init__(self, options: ShrinkageOptions) -> None:
        """Take the hyper-parameters."""
        self.options = options
        self.moments_: Moments | None = None
        self.figures_: ShrinkageFigures | None = None
        self._pairs: PairRows | None = None

    def fit(self, pairs: PairRows, held_out: PairRows, seed: int) -> Shrinkage:
        """Estimate mean and variances of the differences, and return itself."""
        self._pairs, found = pairs, _moments(pairs)
        along = found.units.differences(read_some(held_out, MEASURED_PAIRS)) @ found.mean
        whole = (found.mean**2 + found.deviation**2).sum().sqrt()
        self.moments_, self.figures_ = found, ShrinkageFigures(
            2 * pairs.dimension, float(found.mean.norm() / whole), float((along > 0).float().mean())
        )  # fmt: skip
        return self

    @torch.no_grad()
    def draw(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return (n, 2, D) float32: the pairs `sources` (n,) with differences drawn as above."""
        found, s = fitted(self.moments_, "synthesiser"), self.options.shrinkage
        pairs = fitted(self._pairs, "synthesiser").read(sources)
        own = found.units.differences(pairs)
        noise = torch.from_numpy(rng.standard_normal(own.shape, dtype=np.float32))
        drawn = found.mean + (1 - s) ** 0.5 * (own - found.mean) + s**0.5 * found.deviation * noise
        change = (drawn - own) * found.units.scale
        return shifted(pairs, change, self.options.anchor)

    def figures(self) -> dict[str, Any]:
        """Return the figures of the fit by name."""
        return asdict(fitted(self.figures_, "synthesiser"))

    def warnings(self) -> list[str]:
        """Return a sentence for a mean difference that held-out pairs do not agree with."""
        agreed = fitted(self.figures_, "synthesiser").agreed
        if agreed > 0.5:
            return []
        return [
            f"{agreed:.0%} of held-out pairs point along the mean difference, no more than by chance: give "
            "more pairs, or less shrinkage"
        ]


def _moments(pairs: PairRows) -> Moments:
    """Return those of all pairs, READ at a time."""
    n, units = len(pairs), Units.of(read_some(pairs, STATISTICS_PAIRS))
    total = squares = torch.zeros(pairs.dimension, dtype=torch.float64)
    for first in range(0, n, READ):
        part = units.differences(pairs.read(np.arange(first, min(first + READ, n)))).double()
        total, squares = total + part.sum(0), squares + (part**2).sum(0)
    mean = total / n
    deviation = (squares / n - mean**2).clamp(min=0).sqrt()
    return Moments(mean.float(), deviation.float(), units)
