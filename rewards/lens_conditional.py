"""A conditional autoencoder of preference pairs: each text by its side and what the other text leaves open.

    e = rho * other + g(z, side),  z ~ q(z | e - rho * other, side)

Why: the 16 latents of LENS must say all of a text, most of which is its prompt's, and lose first what makes
it the better one, a small part; and decoding forgets which side it decodes. Two texts of one pair share the
prompt. Less what the other one says of it, latents are left with what differs; and told the side, the decoder
keeps what the sides differ by on average however narrow the latents are. The other text enters by one number,
rho, the correlation of the two, and not as a second input: a network of 2 D inputs learns a few hundred pairs
by heart.

Source: conditional variational autoencoders, Sohn, Lee and Yan (NeurIPS 2015); the latent, the noise and the
residual form are those of LENS (arXiv 2509.26074); rho is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.augment_options import ConditionalOptions
from rewards.fit_vae import MEASURED_PAIRS, Best, VaeFigures, fit_model, flat, new_vae, vae_figures
from rewards.heads import fitted
from rewards.lens_noise import noisy
from rewards.lens_vae import LensVae, Posterior, vae_loss
from rewards.pair_draws import Ints
from rewards.pair_rows import PairRows, read_some

UNHEARD = 0.02  # of `side` below which the decoder does not hear its side


@dataclass(frozen=True, slots=True)
class ConditionalFigures:
    """What a fit found: vae, of embeddings less rho times the other's; and:

    rho: see above; 0 where the other text is not looked at. side: how far g moves when it is told the other
    side, over how far a pair's texts are apart.
    """

    vae: VaeFigures
    rho: float
    side: float

    def warnings(self) -> list[str]:
        """Return a sentence for collapsed latents, and for a side that is not heard."""
        found = self.vae.warnings()
        if self.side < UNHEARD:
            found.append(
                f"the decoder moves by {self.side:.3f} of a pair's distance when it is told the other side: "
                "it learnt nothing of what is preferred; give more pairs or steps"
            )
        return found


class Conditional:
    """Decodes noisy latents, told side and partner. After `fit`: `vae_`, `figures_` and `rho_`."""

    def __init__(self, options: ConditionalOptions) -> None:
        """Take the hyper-parameters."""
        self.options = options
        self.vae_: LensVae | None = None
        self.figures_: ConditionalFigures | None = None
        self.rho_ = 0.0
        self._pairs: PairRows | None = None

    def fit(self, pairs: PairRows, held_out: PairRows, seed: int) -> Conditional:
        """Fit the autoencoder, and return itself. UserError as `fit_model` raises it."""
        options = self.options
        vae = new_vae(pairs, options.latent, options.hidden, seed, condition=1)
        train = vae.units.standardised(read_some(pairs, MEASURED_PAIRS))
        self.rho_ = _correlation(train) if options.condition == "pair" else 0.0

        def loss(vae: LensVae, values: Tensor, noise: Tensor) -> Tensor:
            found, _ = vae_loss(vae, self._left_open(values), noise, options, _sides(values))
            return found.sum(1).mean()

        best = fit_model(vae, loss, pairs, held_out, options, seed)
        self._pairs, self.vae_ = pairs, best.model
        sides = best.model.units.standardised(read_some(held_out, MEASURED_PAIRS)), train
        self.figures_ = self._measure(best, *sides)
        return self

    @torch.no_grad()
    def draw(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return (n, 2, D) float32: of the pairs `sources` (n,) each text drawn anew beside the other one.

        g(z) + rho * other, or in the residual form e + g(z) - g(mu): no noise gives the embeddings.
        """
        vae = fitted(self.vae_, "synthesiser")
        values = vae.units.standardised(fitted(self._pairs, "synthesiser").read(sources))
        condition, posterior = _sides(values), self._posterior(values)
        latents = noisy(posterior, self.options.noise, self.options.variance, rng)
        start = self._partner(values)
        if self.options.residual:
            start = values - vae.decode(posterior.mean, condition)
        return vae.units.restored(start + vae.decode(latents, condition))

    def figures(self) -> dict[str, Any]:
        """Return the figures of the fit by name."""
        return flat(fitted(self.figures_, "synthesiser"))

    def warnings(self) -> list[str]:
        """Return what is wrong with the latents."""
        return fitted(self.figures_, "synthesiser").warnings()

    def _partner(self, values: Tensor) -> Tensor:
        return self.rho_ * values.flip(1)

    def _left_open(self, values: Tensor) -> Tensor:
        """Return what the autoencoder models of pairs (n, 2, D)."""
        return values - self._partner(values)

    def _posterior(self, values: Tensor) -> Posterior:
        return fitted(self.vae_, "synthesiser").encode(self._left_open(values), _sides(values))

    @torch.no_grad()
    def _measure(self, best: Best[LensVae], held_out: Tensor, train: Tensor) -> ConditionalFigures:
        vae, sides = best.model, []
        for values in (held_out, train):
            posterior = self._posterior(values)
            decoded = vae.decode(posterior.mean, _sides(values))
            sides.append((self._left_open(values), decoded, posterior))
        other = vae.decode(sides[0][2].mean, -_sides(held_out))
        moved = (other - sides[0][1]).norm(dim=-1).mean()
        apart = (held_out[:, 0] - held_out[:, 1]).norm(dim=-1).mean()
        plain = vae_figures(best, sides[0], sides[1])
        return ConditionalFigures(plain, self.rho_, float(moved / apart))


def _sides(values: Tensor) -> Tensor:
    """Return (n, 2, 1) for pairs (n, 2, D): 1 for the chosen text, -1 for the rejected."""
    return torch.tensor([[1.0], [-1.0]]).expand(len(values), 2, 1)


def _correlation(values: Tensor) -> float:
    """Return the correlation of standardised chosen and rejected embeddings (n, 2, D), over all numbers."""
    return float((values[:, 0] * values[:, 1]).sum() * 2 / (values**2).sum())
