"""Augmentation of preference pairs by name, the options of each method, and the contract they keep.

A synthesiser learns from N pairs of embeddings and then makes new pairs out of any of them. What it makes is
combined into training pairs elsewhere (`rewards/augment.py`), the same way for all of them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from rewards.heads import nearest

if TYPE_CHECKING:  # commands read the names before they know whether they need torch
    from torch import Tensor

    from rewards.pair_rows import PairRows

Divergence = Literal["w2", "w2-squared"]
Reconstruction = Literal["sum", "mean"]
Noise = Literal["isotropic", "posterior"]
Filter = Literal["none", "posterior", "aggregated", "elbo"]
DRAWING = ("noise", "variance", "shared_noise", "filter", "oversample", "residual")  # of LENS, not of its fit
COMBINATIONS = ("cartesian", "within", "cross", "own")


@runtime_checkable
class Synthesiser(Protocol):
    """Makes preference pairs of embeddings out of others."""

    def fit(self, pairs: PairRows, held_out: PairRows, seed: int) -> Any:
        """Learn from the pairs, stop on pairs of other prompts where there is something to stop; itself."""
        ...

    def draw(self, sources: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Return (n, 2, D) float32, a chosen and a rejected embedding made out of pair `sources[i]`.

        sources: (n,) numbers of pairs that it was fitted on; one may stand there several times.
        """
        ...

    def figures(self) -> dict[str, Any]:
        """Return what the fit found, as JSON values."""
        ...

    def warnings(self) -> list[str]:
        """Return what is wrong with the fit, a sentence each; [] if nothing is."""
        ...


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


@dataclass(frozen=True, slots=True)
class Method:
    """How a method is made: "module:Class" of its synthesiser, "" for none, and what its name stands for."""

    made_by: str
    kind: type[Any]
    options: Mapping[str, Any]
    about: str


_LENS = "rewards.lens_synthesis:Lens"
METHODS: Mapping[str, Method] = {
    "none": Method("", NoOptions, {}, "The original pairs alone: ratio 1."),
    "pairing": Method("", NoOptions, {}, "Real embeddings in more pairs; nothing is made."),
    "lens": Method(_LENS, LensOptions, {}, "Decoded from noisy latents of a VAE: the paper's form."),
    "lens-residual": Method(
        _LENS, LensOptions, {"residual": True}, "The embedding plus what noise in its latent changes."
    ),
    "perturbation": Method(
        "rewards.augment_baselines:Perturbation", PerturbationOptions, {}, "Noise on the embedding itself."
    ),
    "gaussian": Method(
        "rewards.augment_baselines:GaussianSampling", GaussianOptions, {},
        "Drawn from a Gaussian fitted to all chosen, or all rejected, embeddings.",
    ),
    "mixup": Method("rewards.augment_baselines:Mixup", MixupOptions, {}, "Mixtures of two pairs."),
}  # fmt: skip


def find_method(name: str) -> Method:
    """Return a method by its name in METHODS. Raises UserError for another, with the nearest ones."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: {nearest(name, METHODS)}")
    return METHODS[name]


def method_options(name: str, chosen: Mapping[str, Any]) -> Any:
    """Return the options of a named method with these values. UserError for what cannot be."""
    method = find_method(name)
    known = [field.name for field in fields(method.kind)]
    for option in chosen:
        if option not in known:
            hint = nearest(option, known) if known else "it has none"
            raise UserError(f"unknown option {option!r} of {name}: {hint}")
    return method.kind(**{**method.options, **chosen})


def make_synthesiser(name: str, **options: Any) -> Synthesiser | None:
    """Return a named method's synthesiser, unfitted; None for a method that makes no embeddings.

    Raises UserError as `find_method` and `method_options` do.
    """
    values = method_options(name, options)
    made_by = find_method(name).made_by
    if not made_by:
        return None
    module, kind = made_by.split(":")
    found: Synthesiser = getattr(importlib.import_module(module), kind)(values)
    return found


def _above(options: Any, least: int, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(options, name)
        if not least <= value < math.inf:
            raise UserError(f"{name} {value} must be a number of {least} or more")
