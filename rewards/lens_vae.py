"""The variational autoencoder of LENS, and its losses.

    L = mean_i [L_VAE(e_i+) + L_VAE(e_i-)] - gamma * mean_i W2(q(z | e_i+), q(z | e_i-))
    L_VAE(e) = reconstruction(e, g(z)) + beta * KL(q(z | e) || N(0, 1)),  z ~ q(z | e) = N(mu, sigma^2)

Source: arXiv 2509.26074, section 3. It does not say the widths, the activation, how the reconstruction is
summed, nor beta: those are ours, as `rewards.augment_options.LensOptions` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from rewards.augment_options import LensOptions, Reconstruction
from rewards.embedding_units import Units

LOG_VARIANCE = (-12.0, 8.0)  # of a posterior; past them its exponential says nothing in float32
SMALLEST = 1e-12  # of a squared distance whose root is differentiated


@dataclass(frozen=True, slots=True)
class Posterior:
    """Diagonal Gaussians q(z | e). mean, log_variance: (..., L) float32."""

    mean: Tensor
    log_variance: Tensor

    @property
    def deviation(self) -> Tensor:
        """Return sigma (..., L)."""
        return (self.log_variance / 2).exp()


class LensVae(nn.Module):
    """Encoder D - hidden - 2 L and decoder L - hidden - D, GELU between; D numbers in its `units`.

    With a condition of C numbers both see it beside their own input.
    """

    def __init__(
        self, dimension: int, latent: int, hidden: int, generator: torch.Generator, condition: int = 0
    ) -> None:
        """Make one with random weights; a new one's posteriors are near the prior."""
        super().__init__()
        self.units = Units(dimension)
        self.encoder = nn.ModuleList(
            [nn.Linear(dimension + condition, hidden), nn.Linear(hidden, 2 * latent)]
        )
        self.decoder = nn.ModuleList([nn.Linear(latent + condition, hidden), nn.Linear(hidden, dimension)])
        for linear in (*self.encoder, *self.decoder):
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)
            nn.init.zeros_(linear.bias)

    @property
    def n_parameters(self) -> int:
        """Return how many numbers are learnt."""
        return sum(parameter.numel() for parameter in self.parameters())

    def encode(self, values: Tensor, condition: Tensor | None = None) -> Posterior:
        """Return the posteriors of standardised embeddings (..., D), under conditions (..., C)."""
        hidden = functional.gelu(self.encoder[0](_beside(values, condition)))
        mean, log_variance = self.encoder[1](hidden).chunk(2, -1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE))

    def decode(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return g(z), standardised (..., D), of latents (..., L), under conditions (..., C)."""
        decoded: Tensor = self.decoder[1](functional.gelu(self.decoder[0](_beside(latents, condition))))
        return decoded


def _beside(values: Tensor, condition: Tensor | None) -> Tensor:
    return values if condition is None else torch.cat([values, condition], -1)


def kl_to_prior(posterior: Posterior) -> Tensor:
    """Return KL(q || N(0, 1)) (...) in nats: half the sum of mu^2 + sigma^2 - 1 - log sigma^2; 0 or more."""
    log_variance = posterior.log_variance
    # expm1, since near the prior the ones cancel
    return (posterior.mean**2 + torch.expm1(log_variance) - log_variance).sum(-1) / 2


def w2_squared(one: Posterior, other: Posterior) -> Tensor:
    """Return the squared 2-Wasserstein distance (...): |mu - mu'|^2 + |sigma - sigma'|^2."""
    means, deviations = one.mean - other.mean, one.deviation - other.deviation
    return (means**2).sum(-1) + (deviations**2).sum(-1)


def w2(one: Posterior, other: Posterior) -> Tensor:
    """Return the 2-Wasserstein distance (...); its gradient is 0 where the distance is, not NaN."""
    squared = w2_squared(one, other)
    apart = squared > SMALLEST
    return torch.where(apart, squared.where(apart, 1.0).sqrt(), 0.0)


class LossOptions(Protocol):
    """Of L_VAE, as `LensOptions` has them."""

    @property
    def beta(self) -> float: ...
    @property
    def reconstruction(self) -> Reconstruction: ...


def reconstruction(values: Tensor, decoded: Tensor, options: LossOptions) -> Tensor:
    """Return the reconstruction loss (...) of standardised embeddings (..., D)."""
    errors = (values - decoded) ** 2
    return errors.mean(-1) if options.reconstruction == "mean" else errors.sum(-1) / 2


def vae_loss(
    vae: LensVae, values: Tensor, noise: Tensor, options: LossOptions, condition: Tensor | None = None
) -> tuple[Tensor, Posterior]:
    """Return L_VAE (...) of standardised embeddings (..., D), and posteriors; noise: (..., L), normal."""
    posterior = vae.encode(values, condition)
    decoded = vae.decode(posterior.mean + posterior.deviation * noise, condition)
    return reconstruction(values, decoded, options) + options.beta * kl_to_prior(posterior), posterior


def lens_loss(vae: LensVae, values: Tensor, noise: Tensor, options: LensOptions) -> Tensor:
    """Return L, a scalar, of standardised pairs (n, 2, D), the chosen first; noise: (n, 2, L), normal."""
    losses, posterior = vae_loss(vae, values, noise, options)  # (n, 2)
    total = losses.sum(1).mean()
    if options.gamma == 0:
        return total
    sides = [Posterior(posterior.mean[:, i], posterior.log_variance[:, i]) for i in (0, 1)]
    distance = w2 if options.divergence == "w2" else w2_squared
    return total - options.gamma * distance(*sides).mean()
