"""What the benchmark of LENS compares: arms, their cells, and which of them share a fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any, get_args

from decoder.contracts import UserError
from rewards.augment_methods import COMBINATIONS, find_method, method_options
from rewards.augment_options import DRAWING, Divergence, Filter
from rewards.heads import make_head, nearest

REAL = "real"  # more pairs that were labelled, in place of made ones: what augmentation could reach at most
NONE, PAIRING = "none", "pairing"
PARTS = ("table", "ablations")
RIVALS = (NONE, PAIRING, "perturbation", "gaussian")  # what the paper claims that LENS beats, and pairing
LENS = ("lens", "lens-residual")  # of the paper's autoencoder
FORMS = ("lens-conditional", "lens-difference", "lens-shrinkage", "lens-flow", "lens-consistent")  # of others
METHODS = (NONE, PAIRING, "mixup", "perturbation", "gaussian", *LENS, *FORMS, REAL)
GAMMAS, VARIANCES, LATENTS = (0.0, 0.01, 0.1, 0.5, 1.0), (0.001, 0.01, 0.1, 1.0), (4, 16, 64)
Values = tuple[tuple[str, Any], ...]


def _each(**axes: Sequence[Any]) -> list[Values]:
    """Return one option at a time, each at all of its values."""
    return [((name, value),) for name, values in axes.items() for value in values]


OF_LENS = [
    *_each(gamma=GAMMAS, variance=VARIANCES, latent=LATENTS, divergence=get_args(Divergence)),
    *_each(filter=get_args(Filter)),
    (("noise", "posterior"), ("variance", 1.0)),  # noise matched to the posterior
]
SETTINGS: Mapping[str, Sequence[Values]] = {  # what is tried of each method, beside its defaults
    "mixup": _each(alpha=(0.1, 0.4, 1.0)),
    "perturbation": _each(variance=VARIANCES),
    "gaussian": _each(diagonal=(False, True)),
    **dict.fromkeys(LENS, OF_LENS),
    "lens-conditional": _each(condition=("pair", "side"), variance=(0.1, 1.0)),
    "lens-difference": [
        *_each(model=("gaussian", "vae"), anchor=("rejected", "chosen", "middle"), latent=LATENTS),
        *_each(variance=(0.1, 1.0), noise=("posterior", "prior")),
    ],
    "lens-shrinkage": _each(shrinkage=(0.5, 0.8, 0.9, 1.0), anchor=("rejected", "chosen", "middle")),
    "lens-flow": _each(variance=(0.01, 0.1, 1.0)),
    "lens-consistent": _each(inner=("lens-residual", "lens-conditional"), keep=("confident", "best")),
}


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to augment. name: in tables. combine: of COMBINATIONS. options: the method's, that were set."""

    name: str
    method: str
    combine: str = "cartesian"
    options: Values = ()

    def __post_init__(self) -> None:
        if self.combine not in COMBINATIONS:
            raise UserError(
                f"no combination is called {self.combine!r}: {nearest(self.combine, COMBINATIONS)}"
            )
        if self.method != REAL:
            method_options(self.method, dict(self.options))

    @property
    def values(self) -> dict[str, Any]:
        """Return option -> value of what was set."""
        return dict(self.options)

    @property
    def all_values(self) -> dict[str, Any]:
        """Return option -> value of all that the method has, set or not."""
        return {} if self.method == REAL else asdict(method_options(self.method, self.values))

    @property
    def is_lens(self) -> bool:
        """Return whether it is LENS with the paper's autoencoder, in either form."""
        return self.method in LENS


@dataclass(frozen=True, slots=True)
class Cell:
    """An arm that makes `ratio` times as many pairs of n_pairs seed pairs, drawn by the seed."""

    arm: Arm
    ratio: float
    n_pairs: int
    seed: int

    @property
    def key(self) -> str:
        """Return what tells its result from others: all that changes it, options that were not set too."""
        arm = {"method": self.arm.method, "combine": self.arm.combine, "options": self.arm.all_values}
        return json.dumps([arm, float(self.ratio), self.n_pairs, self.seed])

    @property
    def fit(self) -> str:
        """Return what cells that share a synthesiser's fit have in common."""
        if not self.arm.is_lens:
            return self.key
        learnt = {name: value for name, value in self.arm.all_values.items() if name not in DRAWING}
        return json.dumps([learnt, self.n_pairs, self.seed])


@dataclass(frozen=True, slots=True)
class LensPlan:
    """What is fitted and measured. Raises UserError for values that cannot be.

    part: "table", of arms on the test prompts, or "ablations", on prompts held out of those to train on.
    golden: the label that is the golden reward. flip_rate: the share of wrong labels. ratios: training pairs
    over seed pairs; 1 is method none. sizes: seed pairs to learn from; a tenth as many more to stop on.
    seeds: of pairs, labels, fits and heads. steps: updates of every head. n: samples that compete; those
    prompts are tested that have as many, and where the store has no other, `test_samples`.
    """

    part: str = "table"
    golden: str = "golden"
    head: str = "bt-mlp"
    flip_rate: float = 0.1
    ratios: tuple[float, ...] = (4, 8)
    sizes: tuple[int, ...] = (100, 300, 1000, 3000)
    seeds: int = 5
    steps: int = 400
    n: int = 16
    test_samples: int = 16

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise UserError(f"no part is called {self.part!r}: {nearest(self.part, PARTS)}")
        if not 0 <= self.flip_rate <= 0.5:
            raise UserError(f"the flip rate {self.flip_rate} is not between 0 and 0.5; 0.5 tosses coins")
        for name, least in (("seeds", 1), ("steps", 1), ("n", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)}: give {least} or more")
        if not self.ratios or min(self.ratios) <= 1 or not self.sizes or min(self.sizes) < 20:
            raise UserError(f"ratios {self.ratios} must be above 1, and sizes {self.sizes} 20 or more")
        make_head(self.head, steps=self.steps)  # a head without steps is refused: updates would not be equal

    def settings(self) -> dict[str, Any]:
        """Return what changes the result of a cell, and which cells there are does not."""
        axes = ("ratios", "sizes", "seeds")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in axes}


def cells_of(arms: Sequence[Arm], plan: LensPlan) -> list[Cell]:
    """Return every cell: at ratio 1 of the arms that add nothing, at all others of the rest."""
    found = []
    for seed, n_pairs, arm in product(range(plan.seeds), plan.sizes, arms):
        ratios = (1.0,) if arm.method == NONE else plan.ratios
        found += [Cell(arm, ratio, n_pairs, seed) for ratio in ratios]
    return found


def groups_of(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Return the cells by shared fits, in order."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.fit, []).append(cell)
    return [tuple(group) for group in found.values()]


def table_arms(tuned: Mapping[str, Arm], methods: Sequence[str] = METHODS) -> list[Arm]:
    """Return the arms of the table: each method as it was tuned, or as it comes, and LENS as published.

    tuned: method -> arm. Raises UserError for a name that is no method.
    """
    found = []
    for method in dict.fromkeys((NONE, PAIRING, *methods)):
        usual = Arm(method, method) if method == REAL else Arm(method, method, find_method(method).combine)
        arm = tuned.get(method, usual)
        arm = Arm(method, method, arm.combine, arm.options)
        published = Arm(f"{method}, published", method)
        if method == "lens" and (arm.combine, arm.options) != (published.combine, published.options):
            found.append(published)
        found.append(arm)
    return found


def ablation_arms(methods: Sequence[str] = METHODS) -> list[Arm]:
    """Return the arms to choose from: every setting that is tried, under two combinations."""
    found = []
    for method in dict.fromkeys((NONE, PAIRING, *methods)):
        if method in (NONE, REAL):
            found += [Arm(method, method)] if method == NONE else []
        elif method == PAIRING:
            found += [_arm(method, combine) for combine in ("cartesian", "cross")]
        else:
            found += [_arm(method, c, o) for c, o in product(("cartesian", "own"), _options(method))]
            found += [_arm(method, combine) for combine in ("cross", "within")]
    return found


def _options(method: str) -> list[Values]:
    """Return the settings of a method that are tried, the default first."""
    default = method_options(method, {})
    tried = SETTINGS.get(method, ())
    return [(), *(s for s in tried if any(value != getattr(default, name) for name, value in s))]


def _arm(method: str, combine: str, options: Values = ()) -> Arm:
    return Arm(", ".join([method, combine, *map(_told, options)]), method, combine, options)


def _told(option: tuple[str, Any]) -> str:
    name, value = option
    return name if value is True else f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
