"""Reward heads on embeddings by name, and the hyper-parameters each kind takes.

A head is fitted on embeddings (N, D) and on pairs (n, 2) of row numbers, the winner first, and gives scores
(M,) float32 for embeddings (M, D), higher better. `get_params`, `set_params` and constructors follow
scikit-learn, whose `clone` works on them; a fitted head keeps what it learnt in attributes that end in _.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decoder.contracts import UserError

if TYPE_CHECKING:  # commands read the names before they know whether they need torch
    from torch import Tensor

Loss = Literal["bt", "clf"]
Precision = Literal["float32", "bfloat16"]
Objective = Literal["binary", "lambdarank"]
Rule = Literal["mean", "min", "mean-var", "mean-std"]  # how members of an ensemble become one score
RULES: tuple[str, ...] = get_args(Rule)
Scores = NDArray[np.float32]
Embeddings = ArrayLike | Callable[[NDArray[np.int64]], "Tensor"]  # (N, D), or rows (m,) -> (m, D)
Options = TypeVar("Options", "MlpOptions", "LightgbmOptions")
Learnt = TypeVar("Learnt")


@dataclass(frozen=True, slots=True)
class MlpOptions:
    """Hyper-parameters of an MLP. Raises UserError for values that cannot be.

    loss: "bt" for -log sigma(s1 - s2) of a pair, "clf" for binary cross-entropy of each response, winner 1
    and loser 0. widths: of the hidden ReLU layers; () is linear, (256, 256) the paper's text, (1024, 512)
    its released code. lr, weight_decay: AdamW's for a layer of one input; with n inputs, whose weights are of
    size n^-0.5, lr n^-0.5 and weight_decay n^0.5. batch_pairs: pairs a step, or twice as many responses.
    epochs: at most; where they are fewer than 400 steps, those. steps: at most, however many pairs there are,
    so that heads on few and many pairs make as many; 0 for `epochs`. patience: half epochs without a better
    held-out loss. held_out: the share of pairs to stop on. precision: of matrix products in training;
    bfloat16 is fast where the processor has instructions for it. seed: of weights, batches and split.
    """

    loss: Loss = "bt"
    widths: tuple[int, ...] = (256, 256)
    lr: float = 0.015
    weight_decay: float = 0.3
    batch_pairs: int = 128
    epochs: int = 8
    steps: int = 0
    patience: int = 4
    held_out: float = 0.05
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("loss", self.loss, get_args(Loss))
        _one_of("precision", self.precision, get_args(Precision))
        _positive(self, ("lr", "batch_pairs", "epochs", "patience"))
        _at_least_zero(self, ("weight_decay", "steps", "seed"))
        _share(self.held_out)
        if any(width < 1 for width in self.widths):
            raise UserError(f"widths {list(self.widths)}: each hidden layer needs 1 unit or more")


@dataclass(frozen=True, slots=True)
class LightgbmOptions:
    """Hyper-parameters of boosted trees: LightGBM's own defaults. Raises UserError for values that cannot be.

    objective: "binary" on each response, winner 1 and loser 0, or "lambdarank" with a pair as a query of two.
    trees: at most. patience: trees without a better held-out loss; noisy labels need dozens. held_out: the
    share of pairs to stop on.
    """

    objective: Objective = "binary"
    trees: int = 100
    lr: float = 0.1
    leaves: int = 31
    min_leaf_rows: int = 20
    patience: int = 50
    held_out: float = 0.05
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("objective", self.objective, get_args(Objective))
        _positive(self, ("trees", "lr", "min_leaf_rows", "patience", "threads"))
        _at_least_zero(self, ("seed",))
        _share(self.held_out)
        if self.leaves < 2:
            raise UserError(f"leaves {self.leaves}: a tree needs 2 or more")


@runtime_checkable
class Head(Protocol):
    """A reward head: fitted once on pairs of embeddings, then asked for scores."""

    def fit(self, X: Embeddings, y: Any, groups: ArrayLike | None = None) -> Any:
        """Learn from embeddings (N, D), pairs (n, 2) of rows and each pair's group (n,); return itself."""
        ...

    def predict(self, X: ArrayLike) -> Scores:
        """Return scores (M,) of embeddings (M, D); higher is better."""
        ...

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        ...

    def set_params(self, **changes: Any) -> Any:
        """Change hyper-parameters and return itself; what was learnt is forgotten at the next `fit`."""
        ...

    def save_pretrained(
        self,
        directory: str | Path,
        encoder: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the fitted head; `encoder` says what made the embeddings, `about` where labels came from."""
        ...

    @property
    def digest(self) -> str:
        """What tells what was learnt from other heads."""
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a named head is made: "module:Class", and the options that the name stands for."""

    made_by: str
    options: Mapping[str, Any]


_MLP, _LIGHTGBM = "rewards.mlp_head:MlpHead", "rewards.lightgbm_head:LightgbmHead"
HEADS: Mapping[str, Recipe] = {
    "bt-linear": Recipe(_MLP, {"loss": "bt", "widths": (), "lr": 0.1, "weight_decay": 0.02}),
    "bt-mlp": Recipe(_MLP, {"loss": "bt"}),
    "clf-mlp": Recipe(_MLP, {"loss": "clf"}),
    "lgb-clf": Recipe(_LIGHTGBM, {"objective": "binary"}),
    "lgb-rank": Recipe(_LIGHTGBM, {"objective": "lambdarank"}),
}
KINDS: Mapping[str, str] = {
    "head_mlp": _MLP,
    "head_lightgbm": _LIGHTGBM,
    "head_ensemble": "rewards.head_ensemble:HeadEnsemble",
}


def make_head(name: str, **options: Any) -> Head:
    """Return an unfitted head by its name in HEADS, with options of its kind instead of the defaults.

    Raises UserError for an unknown name or option, with the nearest ones, and for values that cannot be.
    """
    options_of(name)  # an unknown name is refused
    recipe = HEADS[name]
    head: Head = _class(recipe.made_by)(**{**recipe.options, **options})
    return head


def options_of(name: str) -> type[MlpOptions] | type[LightgbmOptions]:
    """Return the record of a named head's hyper-parameters. Raises UserError as `make_head` does."""
    if name not in HEADS:
        raise UserError(f"unknown head {name!r}: {nearest(name, HEADS)}")
    return MlpOptions if HEADS[name].made_by == _MLP else LightgbmOptions


def load_head(
    directory: str | Path, dimension: int | None = None, encoder: Mapping[str, Any] | None = None
) -> Head:
    """Return the fitted head saved in a folder. Raises UserError as each kind's `from_pretrained` does."""
    from rewards import artefact

    kind = artefact.read_config(Path(directory))["kind"]
    if kind not in KINDS:
        raise UserError(
            f"{directory} is of kind {kind!r}, no head on embeddings: give one of {', '.join(KINDS)}"
        )
    head: Head = _class(KINDS[kind]).from_pretrained(directory, dimension, encoder)
    return head


def make_options(kind: type[Options], chosen: Mapping[str, Any]) -> Options:
    """Return hyper-parameters with these values. Raises UserError for a name that the kind does not have."""
    _known(kind, chosen)
    return kind(**chosen)


def change_options(options: Options, changes: Mapping[str, Any]) -> Options:
    """Return the hyper-parameters with some changed. Raises UserError as `make_options` does."""
    _known(type(options), changes)
    return replace(options, **changes)


def options_record(options: MlpOptions | LightgbmOptions) -> dict[str, Any]:
    """Return name -> value, each the very object that was given, as scikit-learn's `clone` asks for."""
    return {field.name: getattr(options, field.name) for field in fields(options)}


def check_rule(rule: str, kappa: float) -> None:
    """Raise UserError for a rule of ensembles that does not exist or a kappa that cannot be."""
    if rule not in RULES:
        raise UserError(f"unknown rule {rule!r}: {nearest(rule, RULES)}")
    if not (math.isfinite(kappa) and kappa >= 0):
        raise UserError(f"kappa {kappa} must be a number of 0 or more")


def fitted(learnt: Learnt | None, what: str = "head") -> Learnt:
    """Return what a head has learnt. Raises UserError where that is nothing yet."""
    if not learnt:
        raise UserError(f"this {what} was not fitted yet: call fit, or load one with from_pretrained")
    return learnt


def stack_key(options: MlpOptions) -> str:
    """Return what heads that are trained in one stack must agree on: all options but the seed."""
    return repr(sorted((name, value) for name, value in asdict(options).items() if name != "seed"))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the ones like it, and all."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}there are {', '.join(names)}"


def _known(kind: type[Any], chosen: Mapping[str, Any]) -> None:
    names = [field.name for field in fields(kind)]
    for name in chosen:
        if name not in names:
            raise UserError(f"unknown option {name!r}: {nearest(name, names)}")


def _class(made_by: str) -> Any:
    module, name = made_by.split(":")
    return getattr(importlib.import_module(module), name)


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} {value!r} is not known: choose one of {', '.join(allowed)}")


def _positive(options: Any, names: Iterable[str]) -> None:
    for name in names:
        if not (math.isfinite(getattr(options, name)) and getattr(options, name) > 0):
            raise UserError(f"{name} {getattr(options, name)} must be a number above 0")


def _at_least_zero(options: Any, names: Iterable[str]) -> None:
    for name in names:
        if not (math.isfinite(getattr(options, name)) and getattr(options, name) >= 0):
            raise UserError(f"{name} {getattr(options, name)} must be a number of 0 or more")


def _share(held_out: float) -> None:
    if not 0 < held_out < 1:
        raise UserError(f"held_out {held_out} must be a share between 0 and 1, such as 0.05")
