"""Which noisy latents LENS keeps: the likeliest of a text's draws, by one of three likelihoods.

The paper (arXiv 2509.26074) keeps the top k by "likelihood" and says no more, so it has a name here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rewards.augment_options import LensOptions
from rewards.lens_vae import LensVae, Posterior, kl_to_prior, reconstruction
from rewards.pair_draws import Ints

COMPONENTS = 1024  # texts, evenly chosen, whose posteriors stand for those of all


def scores(
    vae: LensVae, latents: Tensor, sources: Ints, posterior: Posterior, options: LensOptions
) -> Tensor:
    """Return how likely drawn latents (n, 2, L) are, (n, 2) float32, in nats.

    sources: (n,), the pair each was drawn for. posterior: of all pairs, (N, 2, L). options.filter:
    "posterior": log q(z | e) of the draw's own text; "aggregated": the mean over texts of the same side;
    "elbo": minus L_VAE of g(z), encoded again.
    """
    if options.filter == "elbo":
        return _elbo(vae, latents, options)
    if options.filter == "posterior":
        own = torch.from_numpy(sources)
        return _log_density(latents, Posterior(posterior.mean[own], posterior.log_variance[own]))
    return torch.stack([_aggregated(latents[:, side], posterior, side) for side in (0, 1)], 1)


def likeliest(values: Tensor, sources: Ints, counts: int) -> Ints:
    """Return the numbers (n / counts,) of the best draws: of each source as many as it has, over `counts`.

    values: (n,). sources: (n,) ascending. The numbers ascend by source, best first.
    """
    order = np.lexsort((-values.numpy(), sources))
    owner = sources[order]
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    size = np.searchsorted(owner, owner, side="right") - np.searchsorted(owner, owner)
    return np.asarray(order[rank < size // counts])


def _elbo(vae: LensVae, latents: Tensor, options: LensOptions) -> Tensor:
    values = vae.decode(latents)
    again = vae.encode(values)
    return -reconstruction(values, vae.decode(again.mean), options) - options.beta * kl_to_prior(again)


def _log_density(latents: Tensor, posterior: Posterior) -> Tensor:
    """Return log N(z; mu, sigma^2) (...)."""
    squares = (latents - posterior.mean) ** 2 / posterior.log_variance.exp()
    return -(squares + posterior.log_variance + math.log(2 * math.pi)).sum(-1) / 2


def _aggregated(latents: Tensor, posterior: Posterior, side: int) -> Tensor:
    """Return the log density (n,) of latents (n, L) under the mean of one side's posteriors."""
    n = len(posterior.mean)
    chosen = torch.linspace(0, n - 1, min(n, COMPONENTS)).long()
    mean, log_variance = posterior.mean[chosen, side], posterior.log_variance[chosen, side]
    precision = (-log_variance).exp()
    # (z - mu)^2 / sigma^2 multiplied out: two products in place of an (n, components, L) tensor
    squares = latents**2 @ precision.T - 2 * latents @ (mean * precision).T + (mean**2 * precision).sum(-1)
    constant = (log_variance + math.log(2 * math.pi)).sum(-1)
    return torch.logsumexp(-(squares + constant) / 2, 1) - math.log(len(chosen))
