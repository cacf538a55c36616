"""LENS as a synthesiser: noise on latents, the likeliest kept, decoded (arXiv 2509.26074)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment_options import DRAWING, LensOptions
from rewards.fit_lens import LensFigures, fit_lens
from rewards.fit_vae import flat
from rewards.heads import fitted
from rewards.lens_filter import likeliest, scores
from rewards.lens_noise import noisy
from rewards.lens_vae import LensVae, Posterior
from rewards.pair_draws import Ints
from rewards.pair_rows import PairRows

ENCODED = 2048  # pairs at a time


class Lens:
    """Decodes noisy latents. After `fit`: `vae_`, `figures_` and `posterior_`, of the N pairs, (N, 2, L)."""

    def __init__(self, options: LensOptions) -> None:
        """Take the hyper-parameters."""
        self.options = options
        self.vae_: LensVae | None = None
        self.figures_: LensFigures | None = None
        self.posterior_: Posterior | None = None
        self._pairs: PairRows | None = None

    def fit(self, pairs: PairRows, held_out: PairRows, seed: int) -> Lens:
        """Fit the autoencoder, encode the pairs, and return itself. UserError as `fit_lens` raises it."""
        self.vae_, self.figures_ = fit_lens(pairs, held_out, self.options, seed)
        self._pairs, self.posterior_ = pairs, _encode(self.vae_, pairs)
        return self

    def drawing(self, options: LensOptions) -> Lens:
        """Return one of the same fit that draws by other options.

        Raises UserError for options of the fit that differ, and where nothing was fitted.
        """
        same = replace(self.options, **{name: getattr(options, name) for name in DRAWING})
        if same != options:
            raise UserError(f"a fit by {self.options} cannot draw by {options}: fit another")
        other = Lens(options)
        other.vae_, other.figures_ = fitted(self.vae_, "synthesiser"), self.figures_
        other.posterior_, other._pairs = self.posterior_, self._pairs
        return other

    @torch.no_grad()
    def draw(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return (n, 2, D) float32: g(mu + noise) of the pairs `sources` (n,), or e + g(mu + noise) - g(mu).

        With a filter, `oversample` times as many latents are drawn, and of each pair's the likeliest kept,
        each side by itself unless the sides share their noise. No noise gives reconstructions.
        """
        vae, pairs = fitted(self.vae_, "synthesiser"), fitted(self._pairs, "synthesiser")
        order = np.argsort(sources, kind="stable")
        ordered = sources[order]
        embeddings = torch.empty(len(sources), 2, pairs.dimension)
        values = vae.decode(self._latents(ordered, rng))
        if self.options.residual:
            originals = vae.units.standardised(pairs.read(ordered))
            values = originals + values - vae.decode(self._posteriors(ordered).mean)
        embeddings[torch.from_numpy(order)] = vae.units.restored(values)
        return embeddings

    def figures(self) -> dict[str, Any]:
        """Return the figures of the fit by name."""
        return flat(fitted(self.figures_, "synthesiser"))

    def warnings(self) -> list[str]:
        """Return what is wrong with the latents."""
        return fitted(self.figures_, "synthesiser").warnings()

    def _latents(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return latents (n, 2, L) drawn for pairs (n,) in ascending order, filtered."""
        options = self.options
        if options.filter == "none" or options.oversample == 1:
            return self._noisy(sources, rng)
        pool = np.repeat(sources, options.oversample)
        drawn = self._noisy(pool, rng)
        posterior = fitted(self.posterior_, "synthesiser")
        found = scores(fitted(self.vae_, "synthesiser"), drawn, pool, posterior, options)
        if options.shared_noise:
            found = found.sum(1, keepdim=True).expand(-1, 2)
        kept = [torch.from_numpy(likeliest(side, pool, options.oversample)) for side in found.unbind(1)]
        return torch.stack([drawn[numbers, side] for side, numbers in enumerate(kept)], 1)

    def _noisy(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return mu + noise (n, 2, L)."""
        options = self.options
        return noisy(
            self._posteriors(sources), options.noise, options.variance, rng, shared=options.shared_noise
        )

    def _posteriors(self, sources: Ints) -> Posterior:
        every, own = fitted(self.posterior_, "synthesiser"), torch.from_numpy(sources)
        return replace(every, mean=every.mean[own], log_variance=every.log_variance[own])


@torch.no_grad()
def _encode(vae: LensVae, pairs: PairRows) -> Posterior:
    """Return the posteriors (N, 2, L) of all pairs."""
    parts = [
        vae.encode(vae.units.standardised(pairs.read(np.arange(first, min(first + ENCODED, len(pairs))))))
        for first in range(0, len(pairs), ENCODED)
    ]
    return Posterior(torch.cat([p.mean for p in parts]), torch.cat([p.log_variance for p in parts]))
