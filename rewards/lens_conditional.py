"""A conditional autoencoder of preference pairs: each text by what its side and the other text leave open.

    e = rho * other + g(z; side, other),  z ~ q(z | e; side, other)

Why: the 16 latents of LENS must say all of a text, most of which is its prompt's, and lose first what makes
it the better one, a small part; and decoding forgets which side it decodes. Two texts of one pair share the
prompt. Given the other, latents are left with what differs, and given the side, the decoder keeps what the
sides differ by on average however narrow the latents are. Of the two readings of "conditional", the side
alone (`condition="side"`) and the whole pair (the default), the second contains the first.

Source: conditional variational autoencoders, Sohn, Lee and Yan (NeurIPS 2015); the latent, the noise and the
residual form are those of LENS (arXiv 2509.26074). rho is ours: the correlation of the two texts of a pair,
the best guess of one from the other by one number, so that networks need not learn to copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.augment_options import ConditionalOptions
from rewards.fit_vae import MEASURED_PAIRS, Best, VaeFigures, fit_model, new_vae, vae_figures
from rewards.heads import fitted
from rewards.lens_noise import noisy
from rewards.lens_vae import LensVae, Posterior, vae_loss
from rewards.pair_draws import Ints
from rewards.pair_rows import PairRows, read_some

UNHEARD = 0.01  # of `side` below which the decoder does not hear its side


@dataclass(frozen=True, slots=True)
class ConditionalFigures(VaeFigures):
    """As `VaeFigures`, of embeddings less rho times the other's; and:

    rho: see above, 0 where the side alone is a condition. side: how far g moves when it is told the other
    side, over how far a pair's texts are apart.
    """

    rho: float
    side: float

    def warnings(self) -> list[str]:
        """Return a sentence for collapsed latents, and for a side that is not heard."""
        found = VaeFigures.warnings(self)
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
        condition = 1 if options.condition == "side" else 1 + pairs.dimension
        vae = new_vae(pairs, options.latent, options.hidden, seed, condition)
        train = vae.standardised(read_some(pairs, MEASURED_PAIRS))
        self.rho_ = _correlation(train) if options.condition == "pair" else 0.0

        def loss(vae: LensVae, values: Tensor, noise: Tensor) -> Tensor:
            found, _ = vae_loss(vae, self._left_open(values), noise, options, self._condition(values))
            return found.sum(1).mean()

        best = fit_model(vae, loss, pairs, held_out, options, seed)
        self._pairs, self.vae_ = pairs, best.model
        sides = best.model.standardised(read_some(held_out, MEASURED_PAIRS)), train
        self.figures_ = self._measure(best, *sides)
        return self

    @torch.no_grad()
    def draw(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return (n, 2, D) float32: of the pairs `sources` (n,) each text drawn anew beside the other one.

        g(z) + rho * other, or in the residual form e + g(z) - g(mu): no noise gives the embeddings.
        """
        vae = fitted(self.vae_, "synthesiser")
        values = vae.standardised(fitted(self._pairs, "synthesiser").read(sources))
        condition, posterior = self._condition(values), self._posterior(values)
        latents = noisy(posterior, self.options.noise, self.options.variance, rng)
        start = self._partner(values)
        if self.options.residual:
            start = values - vae.decode(posterior.mean, condition)
        return vae.restored(start + vae.decode(latents, condition))

    def figures(self) -> dict[str, Any]:
        """Return the figures of the fit by name."""
        return fitted(self.figures_, "synthesiser").as_json()

    def warnings(self) -> list[str]:
        """Return what is wrong with the latents."""
        return fitted(self.figures_, "synthesiser").warnings()

    def _condition(self, values: Tensor) -> Tensor:
        """Return what encoder and decoder see (n, 2, C) beside standardised pairs (n, 2, D)."""
        side = torch.tensor([[1.0], [-1.0]]).expand(len(values), 2, 1)
        return side if self.options.condition == "side" else torch.cat([values.flip(1), side], -1)

    def _partner(self, values: Tensor) -> Tensor:
        return self.rho_ * values.flip(1)

    def _left_open(self, values: Tensor) -> Tensor:
        """Return what the autoencoder models of pairs (n, 2, D)."""
        return values - self._partner(values)

    def _posterior(self, values: Tensor) -> Posterior:
        return fitted(self.vae_, "synthesiser").encode(self._left_open(values), self._condition(values))

    @torch.no_grad()
    def _measure(self, best: Best[LensVae], held_out: Tensor, train: Tensor) -> ConditionalFigures:
        vae, sides = best.model, []
        for values in (held_out, train):
            posterior = self._posterior(values)
            decoded = vae.decode(posterior.mean, self._condition(values))
            sides.append((self._left_open(values), decoded, posterior))
        told = self._condition(held_out)
        other = torch.cat([told[..., :-1], -told[..., -1:]], -1)
        moved = (vae.decode(sides[0][2].mean, other) - sides[0][1]).norm(dim=-1).mean()
        apart = (held_out[:, 0] - held_out[:, 1]).norm(dim=-1).mean()
        plain = vae_figures(best, sides[0], sides[1])
        return ConditionalFigures(**plain.as_json(), rho=self.rho_, side=float(moved / apart))


def _correlation(values: Tensor) -> float:
    """Return the correlation of standardised chosen and rejected embeddings (n, 2, D), over all numbers."""
    return float((values[:, 0] * values[:, 1]).sum() * 2 / (values**2).sum())
