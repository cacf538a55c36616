"""A normalising flow in place of the autoencoder: the embedding's components moved where texts are dense.

    e' = e + V S (f^-1(f(x) + noise) - x),  x = S^-1 V' e, the first principal components, whitened

Why: an autoencoder of 16 numbers does not return its own embeddings, and only bounds how likely they are. A
flow is exact both ways: without noise e' is e, and what lies outside its components stays as it was. It sees
the side, so that texts are moved among their like.

Source: RealNVP, affine couplings between random halves (Dinh et al., arXiv 1605.08803); it starts as the
identity on whitened components, which is the Gaussian of all embeddings.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from decoder.contracts import UserError
from rewards.augment_options import FlowOptions
from rewards.embedding_units import Units
from rewards.fit_vae import MEASURED_PAIRS, Best, fit_model
from rewards.heads import fitted
from rewards.pair_draws import Ints
from rewards.pair_rows import PairRows, read_some
from rewards.principal import principal

MOST = 1.0  # absolute log scale of a coupling
SIDES = torch.tensor([[1.0], [-1.0]])  # chosen, rejected


class Coupling(nn.Module):
    """Half of the numbers scaled and shifted by what a network says of the other half and the side."""

    def __init__(self, size: int, hidden: int, generator: torch.Generator) -> None:
        """Make one that changes nothing yet; which numbers are which half is drawn."""
        super().__init__()
        order = torch.randperm(size, generator=generator)
        self.read, self.moved = order[: size // 2], order[size // 2 :]
        self.inner = nn.Linear(len(self.read) + 1, hidden)
        self.outer = nn.Linear(hidden, 2 * len(self.moved))
        nn.init.normal_(self.inner.weight, std=self.inner.in_features**-0.5, generator=generator)
        for zero in (self.inner.bias, self.outer.weight, self.outer.bias):
            nn.init.zeros_(zero)

    def says(self, x: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """Return log scale and shift (..., moved), of the half of x (..., P) that is only read."""
        seen = torch.cat([x[..., self.read], side], -1)
        scale, shift = self.outer(functional.gelu(self.inner(seen))).chunk(2, -1)
        return MOST * torch.tanh(scale / MOST), shift

    def forward(self, x: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """Return numbers (..., P) and the log determinant (...)."""
        scale, shift = self.says(x, side)
        found = x.clone()
        found[..., self.moved] = x[..., self.moved] * scale.exp() + shift
        return found, scale.sum(-1)

    def inverse(self, z: Tensor, side: Tensor) -> Tensor:
        """Return the numbers that `forward` turns into these (..., P)."""
        scale, shift = self.says(z, side)
        found = z.clone()
        found[..., self.moved] = (z[..., self.moved] - shift) * (-scale).exp()
        return found


class FlowModel(nn.Module):
    """Couplings on whitened components. directions: (D, P), of standardised rows. spread: (P,), of each."""

    def __init__(self, pairs: PairRows, options: FlowOptions, seed: int) -> None:
        """Find the components of the pairs. Raises UserError for more than they have."""
        super().__init__()
        rows = read_some(pairs, MEASURED_PAIRS).flatten(0, 1)
        most = min(len(rows) - 1, pairs.dimension)
        if options.latent > most:
            raise UserError(f"latent {options.latent}: the embeddings have {most} components; give fewer")
        self.units = Units.of(rows)
        self.directions, variance = principal(self.units.standardised(rows), options.latent)
        self.spread = variance.sqrt()
        self.told = float(options.sides)
        generator = torch.Generator().manual_seed(seed)
        self.couplings = nn.ModuleList(
            Coupling(options.latent, options.hidden, generator) for _ in range(options.layers)
        )

    @property
    def n_parameters(self) -> int:
        """Return how many numbers were learnt or estimated."""
        learnt = sum(parameter.numel() for parameter in self.parameters())
        return learnt + self.directions.numel() + self.spread.numel()

    def components(self, values: Tensor) -> Tensor:
        """Return whitened components (..., P) of standardised embeddings (..., D)."""
        found: Tensor = values @ self.directions / self.spread
        return found

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z (n, 2, P) of the components of pairs (n, 2, P), and log determinants (n, 2)."""
        side, total = self._side(x), x.new_zeros(x.shape[:-1])
        for coupling in self.couplings:
            x, one = coupling(x, side)
            total = total + one
        return x, total

    def inverse(self, z: Tensor) -> Tensor:
        """Return the components that `forward` turns into z (n, 2, P)."""
        side = self._side(z)
        for coupling in reversed(self.couplings):
            assert isinstance(coupling, Coupling)
            z = coupling.inverse(z, side)
        return z

    def surprise(self, values: Tensor) -> Tensor:
        """Return minus log density (n, 2), in nats, of the components of standardised pairs (n, 2, D)."""
        z, log_determinant = self.forward(self.components(values))
        return gaussian_surprise(z) - log_determinant

    def _side(self, x: Tensor) -> Tensor:
        return SIDES.expand(len(x), 2, 1) * self.told


def gaussian_surprise(z: Tensor) -> Tensor:
    """Return minus log N(z; 0, 1) (...) of numbers (..., P)."""
    return (z**2 + math.log(2 * math.pi)).sum(-1) / 2


@dataclass(frozen=True, slots=True)
class FlowFigures:
    """What a fit found, on held-out pairs where not said otherwise.

    explained: share of the variance of standardised embeddings that its components hold. surprise: minus log
    density, nats a text, of whitened components. gain, gain_train: by how much that is less than under the
    Gaussian of all embeddings. step: where it was least.
    """

    n_parameters: int
    latent: int
    step: int
    explained: float
    surprise: float
    gain: float
    gain_train: float


class Flow:
    """Moves components by noise behind a flow. After `fit`: `model_` and `figures_`."""

    def __init__(self, options: FlowOptions) -> None:
        """Take the hyper-parameters."""
        self.options = options
        self.model_: FlowModel | None = None
        self.figures_: FlowFigures | None = None
        self._pairs: PairRows | None = None

    def fit(self, pairs: PairRows, held_out: PairRows, seed: int) -> Flow:
        """Fit the flow by likelihood, and return itself. UserError as the model and `fit_model` raise it."""

        def loss(model: FlowModel, values: Tensor, _: Tensor) -> Tensor:
            return model.surprise(values).sum(1).mean()

        best = fit_model(FlowModel(pairs, self.options, seed), loss, pairs, held_out, self.options, seed)
        self._pairs, self.model_, self.figures_ = pairs, best.model, _measure(best, pairs, held_out)
        return self

    @torch.no_grad()
    def draw(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return (n, 2, D) float32: the pairs `sources` (n,), their components moved by noise on z."""
        model = fitted(self.model_, "synthesiser")
        values = model.units.standardised(fitted(self._pairs, "synthesiser").read(sources))
        own = model.components(values)
        z, _ = model.forward(own)
        noise = torch.from_numpy(rng.standard_normal(z.shape, dtype=np.float32))
        moved = model.inverse(z + self.options.variance**0.5 * noise) - own
        return model.units.restored(values + moved * model.spread @ model.directions.T)

    def figures(self) -> dict[str, Any]:
        """Return the figures of the fit by name."""
        return asdict(fitted(self.figures_, "synthesiser"))

    def warnings(self) -> list[str]:
        """Return a sentence for a flow that held-out texts fit worse than a Gaussian."""
        found = fitted(self.figures_, "synthesiser")
        if found.gain >= 0:
            return []
        return [
            f"the flow is {-found.gain:.2f} nats a text worse than a Gaussian on held-out texts: give more "
            "pairs, or fewer steps or layers"
        ]


@torch.no_grad()
def _measure(best: Best[FlowModel], pairs: PairRows, held_out: PairRows) -> FlowFigures:
    model, found = best.model, []
    for side in (held_out, pairs):
        values = model.units.standardised(read_some(side, MEASURED_PAIRS))
        surprise = float(model.surprise(values).mean())
        inside = ((values @ model.directions) ** 2).sum() / (values**2).sum()
        gain = float(gaussian_surprise(model.components(values)).mean()) - surprise
        found.append((float(inside), surprise, gain))
    (explained, surprise, gain), (_, _, gain_train) = found
    return FlowFigures(
        model.n_parameters, model.spread.numel(), best.step, explained, surprise, gain, gain_train
    )
