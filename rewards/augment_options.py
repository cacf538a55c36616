"""Hyper-parameters of the methods that augment preference pairs, each method's with its checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from decoder.contracts import UserError
from rewards.heads import nearest

Divergence = Literal["w2", "w2-squared"]
Reconstruction = Literal["sum", "mean"]
Noise = Literal["isotropic", "posterior"]
Filter = Literal["none", "posterior", "aggregated", "elbo"]


@dataclass(frozen=True, slots=True)
class LensOptions:
    """Hyper-parameters of LENS (arXiv 2509.26074, section 3). Raises UserError for values that cannot be.

    latent: numbers z of an embedding, the paper's 16. hidden: width of the one hidden layer of encoder and
    decoder; with 64, 531,616 parameters at D = 4,096, the paper's "0.5 M". reconstruction: squared error of
    standardised embeddings, "sum" over D halved, with which beta = 1 is the ELBO under a Gaussian of unit
    variance, or "mean" over D. beta, gamma: of KL and divergence. divergence: "w2" or its square, which with
    gamma > beta / 4 knows no bound. noise: "isotropic", of this variance (the paper's 0.01), or "posterior":
    of the text's own posterior's, times this variance. shared_noise: one draw for both sides of a pair.
    filter: the likelihood by which of `oversample` draws one is kept: its own posterior's, that of all texts
    of its side, or the ELBO of the embedding read again. residual: e + g(z + noise) - g(z) in place of
    g(z + noise). steps, batch_pairs: of Adam. lr: for a layer of one
    input; with n inputs lr n^-0.5, falling to 0.
    """

    latent: int = 16
    hidden: int = 64
    beta: float = 1.0
    gamma: float = 0.1
    divergence: Divergence = "w2"
    reconstruction: Reconstruction = "sum"
    noise: Noise = "isotropic"
    variance: float = 0.01
    shared_noise: bool = False
    filter: Filter = "elbo"
    oversample: int = 2
    residual: bool = False
    steps: int = 600
    batch_pairs: int = 128
    lr: float = 0.1

    def __post_init__(self) -> None:
        for name, kind in (
            ("divergence", Divergence), ("reconstruction", Reconstruction), ("noise", Noise),
            ("filter", Filter),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(kind):
                raise UserError(
                    f"{name} {getattr(self, name)!r}: {nearest(getattr(self, name), get_args(kind))}"
                )
        _above(self, 1, ("latent", "hidden", "oversample", "steps", "batch_pairs"))
        _above(self, 0, ("beta", "gamma", "variance"))
        if not 0 < self.lr < math.inf:
            raise UserError(f"lr {self.lr} must be a number above 0")
        if self.gamma and not self.beta:
            raise UserError(
                f"gamma {self.gamma:g} with beta 0: nothing would bound the divergence; give beta above 0"
            )


@dataclass(frozen=True, slots=True)
class PerturbationOptions:
    """variance: of the noise on each number of an embedding, in units of that number's own variance."""

    variance: float = 0.01

    def __post_init__(self) -> None:
        _above(self, 0, ("variance",))


@dataclass(frozen=True, slots=True)
class GaussianOptions:
    """diagonal: whether the numbers of an embedding are drawn independently, not with their covariance."""

    diagonal: bool = False


@dataclass(frozen=True, slots=True)
class MixupOptions:
    """alpha: of Beta(alpha, alpha), which says how two pairs are mixed; 0.2 to 0.4 in arXiv 1710.09412."""

    alpha: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise UserError(f"alpha {self.alpha} must be a number above 0")


@dataclass(frozen=True, slots=True)
class NoOptions:
    """Of methods that make no embeddings."""


def _above(options: Any, least: int, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(options, name)
        if not least <= value < math.inf:
            raise UserError(f"{name} {value} must be a number of {least} or more")
