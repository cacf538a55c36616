"""Fit any model of preference pairs by a loss, stopped on held-out ones, and look at its latents."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from decoder.contracts import UserError
from rewards.embedding_units import Units
from rewards.lens_vae import LensVae, Posterior, kl_to_prior
from rewards.pair_rows import PairRows, read_some

STATISTICS_PAIRS = 4096  # whose mean and deviation embeddings are standardised by
MEASURED_PAIRS = 2048  # of either side, for the loss that stops and for the figures
MEASURES = 20  # of the held-out loss in a fit
WARM_UP = 20  # steps
ACTIVE = 0.01  # variance of a latent's mean over texts below which it says nothing (arXiv 1509.00519)


class FitOptions(Protocol):
    """What a fit is told: numbers of a latent, steps of Adam, pairs a step, lr of `LensOptions`."""

    @property
    def latent(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch_pairs(self) -> int: ...
    @property
    def lr(self) -> float: ...


class PairModel(Protocol):
    """A module with parameters to learn, and the units of its embeddings."""

    units: Units

    def modules(self) -> Iterator[nn.Module]: ...
    def requires_grad_(self, requires_grad: bool = ...) -> Any: ...


Model = TypeVar("Model", bound=PairModel)
Loss = Callable[[Model, Tensor, Tensor], Tensor]  # standardised (n, 2, D), normal noise (n, 2, L) -> ()


@dataclass(frozen=True, slots=True)
class Best(Generic[Model]):
    """The model where the held-out loss was lowest, that loss, and the step."""

    model: Model
    loss: float
    step: int


@dataclass(frozen=True, slots=True)
class VaeFigures:
    """What a fit found, on held-out pairs where not said otherwise.

    r2, r2_train: share of the squares of what is modelled that g(mu) explains. kl: nats a latent vector.
    active: latents whose mean varies. second_moment: mean of mu^2 + sigma^2, 1 under the prior. deviation:
    the median posterior sigma. loss: a pair. step: where it was lowest.
    """

    n_parameters: int
    latent: int
    step: int
    loss: float
    r2: float
    r2_train: float
    kl: float
    active: int
    second_moment: float
    deviation: float

    def warnings(self) -> list[str]:
        """Return a sentence for collapsed latents, and for a model that is worse than none."""
        found = []
        if self.active < self.latent / 2:
            found.append(
                f"posterior collapse: {self.active} of {self.latent} latents say anything about a text; "
                "lower beta or latent"
            )
        if self.r2 < 0:
            found.append(f"held-out R2 is {self.r2:.2f}: worse than the mean; give more pairs or fewer steps")
        return found


def flat(figures: Any) -> dict[str, Any]:
    """Return figures by name, those of its `vae` among them."""
    found = asdict(figures)
    return {**found.pop("vae"), **found}


def new_vae(pairs: PairRows, latent: int, hidden: int, seed: int, condition: int = 0) -> LensVae:
    """Return an autoencoder with random weights, which standardises as these pairs ask for."""
    generator = torch.Generator().manual_seed(seed)
    vae = LensVae(pairs.dimension, latent, hidden, generator, condition)
    vae.units = Units.of(read_some(pairs, STATISTICS_PAIRS))
    return vae


def fit_model(
    model: Model,
    loss: Loss[Model],
    pairs: PairRows,
    held_out: PairRows,
    options: FitOptions,
    seed: int,
    advice: str = "",
) -> Best[Model]:
    """Return the model where the loss of the held-out pairs was lowest; the one given is changed.

    advice: what else than lr to lower. Raises UserError for embeddings and for a loss that are not finite.
    """
    rng = np.random.default_rng((seed, 21))
    stop = _Stop(model, loss, read_some(held_out, MEASURED_PAIRS), options)
    optimiser = _optimiser(model, options.lr)
    order = np.empty(0, dtype=np.int64)
    for step in range(1, options.steps + 1):
        while len(order) < options.batch_pairs:
            order = np.concatenate([order, rng.permutation(len(pairs))])
        batch, order = order[: options.batch_pairs], order[options.batch_pairs :]
        for group in optimiser.param_groups:
            group["lr"] = group["full_lr"] * min(step / WARM_UP, 1 - (step - 1) / options.steps)
        values = model.units.standardised(pairs.read(batch))
        noise = torch.from_numpy(rng.standard_normal((len(batch), 2, options.latent), dtype=np.float32))
        optimiser.zero_grad()
        loss(model, values, noise).backward()
        optimiser.step()
        if step % max(1, options.steps // MEASURES) == 0 or step == options.steps:
            stop.measure(step, f"lower lr, now {options.lr:g}{advice}")
    return stop.best


class _Stop(Generic[Model]):
    """The held-out loss, with the same noise each time, and the weights where it was lowest."""

    def __init__(self, model: Model, loss: Loss[Model], pairs: Tensor, options: FitOptions) -> None:
        self._model, self._loss, self._values = model, loss, model.units.standardised(pairs)
        drawn = np.random.default_rng(22).standard_normal((*pairs.shape[:2], options.latent), np.float32)
        self._noise = torch.from_numpy(drawn)
        self.best = Best(model, math.inf, 0)

    @torch.no_grad()
    def measure(self, step: int, remedy: str) -> None:
        loss = float(self._loss(self._model, self._values, self._noise))
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {step}: {remedy}")
        if loss < self.best.loss:
            self.best = Best(copy.deepcopy(self._model).requires_grad_(False), loss, step)


def _optimiser(model: PairModel, lr: float) -> torch.optim.Adam:
    """Return Adam with rates in units of a layer's weights, n^-0.5 for n inputs: one lr for any dimension."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return torch.optim.Adam(
        [{"params": linear.parameters(), "full_lr": lr * linear.in_features**-0.5} for linear in linears]
    )


def vae_figures(
    best: Best[Any], held_out: tuple[Tensor, Tensor, Posterior], train: tuple[Tensor, Tensor, Posterior]
) -> VaeFigures:
    """Return the figures of two sides, each: values (..., D), what g(mu) makes of them, and posteriors."""
    found, other = held_out[2], train[2]
    return VaeFigures(
        n_parameters=best.model.n_parameters,
        latent=found.mean.shape[-1],
        step=best.step,
        loss=best.loss,
        r2=r2(*held_out[:2]),
        r2_train=r2(*train[:2]),
        kl=float(kl_to_prior(found).mean()),
        active=n_active(other.mean),
        second_moment=float((found.mean**2 + found.deviation**2).mean()),
        deviation=float(found.deviation.median()),
    )


def n_active(means: Tensor) -> int:
    """Return how many latents' means (..., L) vary."""
    return int((means.flatten(0, -2).var(0, correction=0) > ACTIVE).sum())


def r2(values: Tensor, decoded: Tensor) -> float:
    """Return 1 - squared error of what was decoded over the squares of values: of standardised ones, R2."""
    return float(1 - ((values - decoded) ** 2).sum() / (values**2).sum())
