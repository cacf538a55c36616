"""Augmentation of preference pairs by name, and the contract that every method keeps.

A synthesiser learns from N pairs of embeddings and then makes new pairs out of any of them. What it makes is
combined into training pairs elsewhere (`rewards/augment.py`), the same way for all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from rewards.augment_options import (
    ConditionalOptions,
    ConsistentOptions,
    DifferenceOptions,
    FlowOptions,
    GaussianOptions,
    LensOptions,
    MixupOptions,
    NoOptions,
    PerturbationOptions,
    ShrinkageOptions,
)
from rewards.heads import nearest

if TYPE_CHECKING:  # commands read the names before they know whether they need torch
    from torch import Tensor

    from rewards.pair_rows import PairRows

COMBINATIONS = ("cartesian", "within", "cross", "own")
DEFAULT = "lens-shrinkage"  # the best in docs/benchmarks.md


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
class Method:
    """How a method is made: "module:Class" of its synthesiser, "" for none, and what its name stands for.

    combine: which rows stand side by side where nothing else is said; "cartesian" is the paper's.
    """

    made_by: str
    kind: type[Any]
    options: Mapping[str, Any]
    about: str
    combine: str = "cartesian"


_LENS = "rewards.lens_synthesis:Lens"
METHODS: Mapping[str, Method] = {
    "none": Method("", NoOptions, {}, "The original pairs alone: ratio 1."),
    "pairing": Method("", NoOptions, {}, "Real embeddings in more pairs; nothing is made."),
    "lens": Method(_LENS, LensOptions, {}, "Decoded from noisy latents of a VAE: the paper's form."),
    "lens-residual": Method(
        _LENS, LensOptions, {"residual": True}, "The embedding plus what noise in its latent changes."
    ),
    "lens-conditional": Method(
        "rewards.lens_conditional:Conditional", ConditionalOptions, {},
        "Decoded from noisy latents of a VAE that knows the side and the pair's other text.", "own",
    ),
    "lens-difference": Method(
        "rewards.lens_difference:Difference", DifferenceOptions, {},
        "One text of the pair plus a noisy difference of the two.", "own",
    ),
    "lens-shrinkage": Method(
        "rewards.lens_shrinkage:Shrinkage", ShrinkageOptions, {},
        "The pair at a difference near the mean of all, under a shrunk covariance.", "own",
    ),
    "lens-flow": Method(
        "rewards.lens_flow:Flow", FlowOptions, {}, "The embedding moved by noise behind a normalising flow."
    ),
    "lens-consistent": Method(
        "rewards.lens_consistent:Consistent", ConsistentOptions, {},
        "Those draws of another method that reward heads order as they are labelled.",
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
