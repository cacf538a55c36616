"""Hyper-parameters of the methods that augment preference pairs, each method's with its checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from decoder.contracts import UserError
from rewards.heads import nearest, options_of

Divergence = Literal["w2", "w2-squared"]
Reconstruction = Literal["sum", "mean"]
Noise = Literal["isotropic", "posterior"]
Filter = Literal["none", "posterior", "aggregated", "elbo"]
DRAWING = ("noise", "variance", "shared_noise", "filter", "oversample", "residual")  # of LENS, not of its fit
AnyNoise = Literal["isotropic", "posterior", "prior"]
Condition = Literal["pair", "side"]
DifferenceModel = Literal["gaussian", "vae"]
Anchor = Literal["rejected", "chosen", "middle"]
Keep = Literal["confident", "best"]


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
        _one_of(self, divergence=Divergence, reconstruction=Reconstruction, noise=Noise, filter=Filter)
        _above(self, 1, ("latent", "hidden", "oversample", "steps", "batch_pairs"))
        _above(self, 0, ("beta", "gamma", "variance"))
        _positive(self, ("lr",))
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
        _positive(self, ("alpha",))


@dataclass(frozen=True, slots=True)
class ConditionalOptions:
    """Hyper-parameters of a conditional autoencoder.

    latent, hidden, beta, reconstruction, variance, residual, steps, batch_pairs, lr: as in `LensOptions`.
    noise: also "prior", z of N(0, 1) in place of what the text says, which no variance changes. condition:
    what is known of a text beforehand: "side", chosen or rejected; or "pair", the side and the embedding of
    the pair's other text.
    """

    latent: int = 16
    hidden: int = 64
    beta: float = 1.0
    reconstruction: Reconstruction = "sum"
    noise: AnyNoise = "posterior"
    variance: float = 1.0
    residual: bool = True
    steps: int = 600
    batch_pairs: int = 128
    lr: float = 0.1
    condition: Condition = "pair"

    def __post_init__(self) -> None:
        _check_vae(self)
        _one_of(self, condition=Condition)


@dataclass(frozen=True, slots=True)
class DifferenceOptions:
    """Hyper-parameters of a model of differences; those of an autoencoder as in `ConditionalOptions`.

    model: "gaussian", of a covariance of rank `latent` beside noise, in closed form, to which hidden, beta,
    reconstruction, steps, batch_pairs and lr say nothing; or "vae". anchor: which text of the original pair
    stays as it is: "rejected", "chosen", or neither, but what is in their "middle".
    """

    latent: int = 16
    hidden: int = 64
    beta: float = 1.0
    reconstruction: Reconstruction = "sum"
    noise: AnyNoise = "posterior"
    variance: float = 1.0
    residual: bool = True
    steps: int = 600
    batch_pairs: int = 128
    lr: float = 0.1
    model: DifferenceModel = "gaussian"
    anchor: Anchor = "rejected"

    def __post_init__(self) -> None:
        _check_vae(self)
        _one_of(self, model=DifferenceModel, anchor=Anchor)


@dataclass(frozen=True, slots=True)
class ShrinkageOptions:
    """Of differences under a shrunk covariance.

    shrinkage: the share of a difference's variance that is drawn anew, each number by itself; 0 gives the
    original pairs and 1 no more than their mean difference and noise. anchor: as in `DifferenceOptions`.
    """

    shrinkage: float = 1.0
    anchor: Anchor = "middle"

    def __post_init__(self) -> None:
        _one_of(self, anchor=Anchor)
        if not 0 <= self.shrinkage <= 1:
            raise UserError(f"shrinkage {self.shrinkage} must be between 0 and 1")


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """Hyper-parameters of a normalising flow.

    latent: principal components that it moves, 2 or more; what is outside them stays. layers: of coupling.
    hidden: width of a layer's network. sides: whether the networks see which side an embedding is of.
    variance: of the noise on z, 1 under the flow. steps, batch_pairs, lr: as in `LensOptions`.
    """

    latent: int = 32
    layers: int = 4
    hidden: int = 16
    sides: bool = True
    variance: float = 0.1
    steps: int = 600
    batch_pairs: int = 128
    lr: float = 0.003

    def __post_init__(self) -> None:
        _above(self, 2, ("latent",))
        _above(self, 1, ("layers", "hidden", "steps", "batch_pairs"))
        _above(self, 0, ("variance",))
        _positive(self, ("lr",))


@dataclass(frozen=True, slots=True)
class ConsistentOptions:
    """Of draws that must agree with reward heads fitted on the original pairs.

    inner: the method that draws, and inner_options: its own, as "variance=0.1 noise=posterior". head: the
    judges' kind, a name of `rewards.heads.HEADS`. folds: shares of the prompts, each judged by heads that
    learnt from the others; with 1 they judge what they have learnt. members: judges of a share. oversample:
    draws a pair that is kept. keep: the first "confident" one, or the "best" by the judges. kappa: a draw is
    as sure as the judges' mean margin less kappa times its deviation over them; confident: above 0.
    """

    inner: str = "lens-residual"
    inner_options: str = ""
    head: str = "bt-linear"
    folds: int = 3
    members: int = 3
    oversample: int = 4
    keep: Keep = "confident"
    kappa: float = 1.0

    def __post_init__(self) -> None:
        from rewards.augment_methods import find_method  # which names this record

        _one_of(self, keep=Keep)
        _above(self, 1, ("folds", "members", "oversample"))
        _above(self, 0, ("kappa",))
        options_of(self.head)  # an unknown name is refused
        if not find_method(self.inner).made_by:
            raise UserError(f"inner {self.inner!r} makes no embeddings to filter: give lens-residual, say")
        self.of_inner()

    def of_inner(self) -> dict[str, Any]:
        """Return option -> value of the inner method. Raises UserError for what cannot be."""
        from rewards.augment_methods import find_method, method_options
        from rewards.head_options import read_settings

        found = read_settings(get_type_hints(find_method(self.inner).kind), self.inner_options.split())
        method_options(self.inner, found)
        return found


@dataclass(frozen=True, slots=True)
class NoOptions:
    """Of methods that make no embeddings."""


def _above(options: Any, least: int, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(options, name)
        if not least <= value < math.inf:
            raise UserError(f"{name} {value} must be a number of {least} or more")


def _positive(options: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if not 0 < getattr(options, name) < math.inf:
            raise UserError(f"{name} {getattr(options, name)} must be a number above 0")


def _check_vae(options: Any) -> None:
    _one_of(options, reconstruction=Reconstruction, noise=AnyNoise)
    _above(options, 1, ("latent", "hidden", "steps", "batch_pairs"))
    _above(options, 0, ("beta", "variance"))
    _positive(options, ("lr",))


def _one_of(options: Any, **kinds: Any) -> None:
    for name, kind in kinds.items():
        if getattr(options, name) not in get_args(kind):
            raise UserError(
                f"{name} {getattr(options, name)!r}: {nearest(getattr(options, name), get_args(kind))}"
            )
