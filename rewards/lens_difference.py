"""The direction of preference augmented, not the points: a real text plus a noisy difference of its pair.

    chosen = rejected + d,  d of a model of e+ - e-

Why: what a Bradley-Terry head learns from a pair is the difference of its embeddings. LENS spends latents and
noise on what the two texts share, which no head sees, and its two sides are noisy apart from each other, so
that the difference, the smaller vector, gets the noise of both. Here the noise lies where differences of seed
pairs vary, and one text stays real. Combined "own" or "within", pairs differ by the modelled difference.

Sources: probabilistic principal components, Tipping and Bishop (J. R. Stat. Soc. B 1999), whose posterior is
exact, and which is what a linear variational autoencoder finds (Lucas et al., arXiv 1911.02469); for "vae"
the autoencoder of LENS (arXiv 2509.26074).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment_options import DifferenceOptions
from rewards.embedding_units import Units
from rewards.fit_vae import (
    MEASURED_PAIRS,
    STATISTICS_PAIRS,
    Best,
    VaeFigures,
    fit_model,
    flat,
    new_vae,
    vae_figures,
)
from rewards.heads import fitted
from rewards.lens_noise import noisy
from rewards.lens_vae import LOG_VARIANCE, LensVae, Posterior, vae_loss
from rewards.pair_draws import Ints
from rewards.pair_rows import PairRows, read_some
from rewards.principal import LEAST, principal

# what of a change in the difference each side takes: chosen, rejected
SHARES = {"rejected": (1.0, 0.0), "chosen": (0.0, -1.0), "middle": (0.5, -0.5)}


def shifted(pairs: Tensor, change: Tensor, anchor: str) -> Tensor:
    """Return pairs (n, 2, D) whose differences have changed by (n, D), the anchor left where it is."""
    return pairs + change[:, None] * torch.tensor(SHARES[anchor])[:, None]


class Components:
    """Gaussian differences d = centre + W z + noise, z ~ N(0, 1), in closed form; W of rank L.

    directions: (D, L), orthonormal. spread: (L,), variance along each. rest: variance along any other.
    """

    def __init__(self, pairs: PairRows, latent: int) -> None:
        """Fit pairs by maximum likelihood. Raises UserError for fewer than latent + 2 of them."""
        rows = read_some(pairs, MEASURED_PAIRS)
        most = min(len(rows) - 2, pairs.dimension - 1)
        if latent > most:
            raise UserError(
                f"latent {latent}: {len(rows)} differences of {pairs.dimension} numbers have fewer "
                f"directions; give at most {most}"
            )
        self.units = Units.of(read_some(pairs, STATISTICS_PAIRS))
        differences = self.units.differences(rows)
        self.centre = differences.mean(0)
        centred = differences - self.centre
        self.directions, self.spread = principal(centred, latent)
        left = (centred**2).sum() / len(centred) - self.spread.sum()
        self.rest = left.clamp(min=LEAST) / (pairs.dimension - latent)

    @property
    def n_parameters(self) -> int:
        """Return how many numbers were estimated."""
        return int(self.centre.numel() + self.directions.numel() + 1)

    def encode(self, values: Tensor) -> Posterior:
        """Return the exact posteriors (..., L) of differences (..., D)."""
        mean = (values - self.centre) @ self.directions * self._gain / self.spread
        log_variance = (self.rest / self.spread).log().clamp(LOG_VARIANCE[0], 0.0)
        return Posterior(mean, log_variance.expand(mean.shape))

    def decode(self, latents: Tensor) -> Tensor:
        """Return centre + W z (..., D)."""
        return self.centre + latents * self._gain @ self.directions.T

    @property
    def _gain(self) -> Tensor:
        """Return the lengths (L,) of the columns of W."""
        return (self.spread - self.rest).clamp(min=0).sqrt()


class _Model(Protocol):
    """What either model does with standardised differences (..., D) and latents (..., L)."""

    units: Units

    def encode(self, values: Tensor) -> Posterior: ...
    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DifferenceFigures:
    """What a fit found: vae, of differences, whose squares r2 is a share of; a Gaussian has no loss, no step.

    direction: share of those squares along the mean difference of the training pairs.
    """

    vae: VaeFigures
    direction: float

    def warnings(self) -> list[str]:
        """Return what is wrong with the latents."""
        return self.vae.warnings()


class Difference:
    """Draws differences anew. After `fit`: `model_` and `figures_`."""

    def __init__(self, options: DifferenceOptions) -> None:
        """Take the hyper-parameters."""
        self.options = options
        self.model_: _Model | None = None
        self.figures_: DifferenceFigures | None = None
        self._pairs: PairRows | None = None

    def fit(self, pairs: PairRows, held_out: PairRows, seed: int) -> Difference:
        """Fit the model of differences, and return itself. UserError as it or `fit_model` raises it."""
        best = self._fitted(pairs, held_out, seed)
        self._pairs, self.model_ = pairs, best.model
        self.figures_ = _measure(best, pairs, held_out)
        return self

    @torch.no_grad()
    def draw(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return (n, 2, D) float32: the pairs `sources` (n,), their difference d(z), or d + d(z) - d(mu)."""
        model, options = fitted(self.model_, "synthesiser"), self.options
        pairs = fitted(self._pairs, "synthesiser").read(sources)
        own = model.units.differences(pairs)
        posterior = model.encode(own)
        drawn = model.decode(noisy(posterior, options.noise, options.variance, rng))
        change = (drawn - (model.decode(posterior.mean) if options.residual else own)) * model.units.scale
        return shifted(pairs, change, options.anchor)

    def figures(self) -> dict[str, Any]:
        """Return the figures of the fit by name."""
        return flat(fitted(self.figures_, "synthesiser"))

    def warnings(self) -> list[str]:
        """Return what is wrong with the latents."""
        return fitted(self.figures_, "synthesiser").warnings()

    def _fitted(self, pairs: PairRows, held_out: PairRows, seed: int) -> Best[Any]:
        options = self.options
        if options.model == "gaussian":
            return Best(Components(pairs, options.latent), 0.0, 0)

        def loss(vae: LensVae, values: Tensor, noise: Tensor) -> Tensor:
            return vae_loss(vae, values[:, 0] - values[:, 1], noise[:, 0], options)[0].mean()

        vae = new_vae(pairs, options.latent, options.hidden, seed)
        return fit_model(vae, loss, pairs, held_out, options, seed)


@torch.no_grad()
def _measure(best: Best[Any], pairs: PairRows, held_out: PairRows) -> DifferenceFigures:
    model, sides = best.model, []
    for side in (held_out, pairs):
        rows = read_some(side, MEASURED_PAIRS)
        values = model.units.differences(rows)
        posterior = model.encode(values)
        sides.append((values, model.decode(posterior.mean), posterior))
    mean = sides[1][0].mean(0)
    along = (sides[0][0] @ mean) ** 2 / (mean**2).sum()
    plain = vae_figures(best, sides[0], sides[1])
    return DifferenceFigures(plain, float(along.sum() / (sides[0][0] ** 2).sum()))
