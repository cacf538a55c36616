"""Noise on latents: as wide as is said, as wide as the text's own posterior, or the prior's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rewards.augment_options import AnyNoise
from rewards.lens_vae import Posterior


def noisy(
    own: Posterior, noise: AnyNoise, variance: float, rng: np.random.Generator, *, shared: bool = False
) -> Tensor:
    """Return latents (n, ..., L) drawn for posteriors (n, ..., L).

    noise: "isotropic", mu plus noise of this variance; "posterior", plus sigma times it; "prior", N(0, 1),
    of no text. shared: one draw for all of the second axis.
    """
    shape = (len(own.mean), 1, *own.mean.shape[2:]) if shared else own.mean.shape
    drawn: Tensor = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    if noise == "prior":
        return drawn.expand(own.mean.shape)
    wide: Tensor = drawn * variance**0.5
    return own.mean + (wide if noise == "isotropic" else wide * own.deviation)
