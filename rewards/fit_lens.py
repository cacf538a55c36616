"""Fit the autoencoder of LENS on preference pairs, stopped on others, and look at its latents."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment_options import LensOptions
from rewards.fit_embedding_head import standardisation
from rewards.lens_vae import LensVae, Posterior, kl_to_prior, lens_loss, w2
from rewards.pair_rows import PairRows, read_some

STATISTICS_PAIRS = 4096  # whose mean and deviation embeddings are standardised by
MEASURED_PAIRS = 2048  # of either side, for the loss that stops and for the figures
MEASURES = 20  # of the held-out loss in a fit
WARM_UP = 20  # steps
ACTIVE = 0.01  # variance of a latent's mean over texts below which it says nothing (arXiv 1509.00519)
TOO_APART = 1.5  # distance of a pair's posteriors in units of that of two texts of one side
TOO_WIDE = 4.0  # mean square of latents, 1 under the prior


@dataclass(frozen=True, slots=True)
class LensFigures:
    """What a fit found, on held-out pairs where not said otherwise.

    r2, r2_train: share of the variance of standardised embeddings that g(mu) explains. kl: nats a text.
    active: latents whose mean varies over texts. w2, w2_train: mean distance of a pair's posteriors.
    separation: that over the mean distance of two chosen texts. second_moment: mean of mu^2 + sigma^2, 1
    under the prior. deviation: the median posterior sigma. loss: L, a pair. step: where it was lowest.
    """

    n_parameters: int
    latent: int
    step: int
    loss: float
    r2: float
    r2_train: float
    kl: float
    active: int
    w2: float
    w2_train: float
    separation: float
    second_moment: float
    deviation: float

    def as_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """Return a sentence for collapsed latents, and for sides that were driven too far apart."""
        found = []
        if self.active < self.latent / 2:
            found.append(
                f"posterior collapse: {self.active} of {self.latent} latents say anything about a text; "
                "lower beta or latent"
            )
        if self.separation > TOO_APART or self.second_moment > TOO_WIDE:
            found.append(
                f"over-separation: a pair's posteriors are {self.separation:.2f} times as far apart as two "
                f"texts, the latents' mean square is {self.second_moment:.2f}; lower gamma or raise beta"
            )
        if self.r2 < 0:
            found.append(f"held-out R2 is {self.r2:.2f}: worse than the mean; give more pairs or fewer steps")
        return found


def fit_lens(
    pairs: PairRows, held_out: PairRows, options: LensOptions, seed: int
) -> tuple[LensVae, LensFigures]:
    """Return the autoencoder where the loss of the held-out pairs was lowest, and its figures.

    Raises UserError for embeddings that are not finite and for a loss that is not.
    """
    rng = np.random.default_rng((seed, 21))
    vae = _new_vae(pairs, options, seed)
    stop = _Stop(vae, vae.standardised(read_some(held_out, MEASURED_PAIRS)), options)
    optimiser = _optimiser(vae, options.lr)
    order = np.empty(0, dtype=np.int64)
    for step in range(1, options.steps + 1):
        while len(order) < options.batch_pairs:
            order = np.concatenate([order, rng.permutation(len(pairs))])
        batch, order = order[: options.batch_pairs], order[options.batch_pairs :]
        for group in optimiser.param_groups:
            group["lr"] = group["full_lr"] * min(step / WARM_UP, 1 - (step - 1) / options.steps)
        values = vae.standardised(pairs.read(batch))
        noise = torch.from_numpy(rng.standard_normal((len(batch), 2, options.latent), dtype=np.float32))
        optimiser.zero_grad()
        lens_loss(vae, values, noise, options).backward()
        optimiser.step()
        if step % max(1, options.steps // MEASURES) == 0 or step == options.steps:
            stop.measure(step)
    return stop.best, _figures(stop, pairs, options)


class _Stop:
    """The held-out loss, with the same noise each time, and the weights where it was lowest."""

    def __init__(self, vae: LensVae, values: Tensor, options: LensOptions) -> None:
        self._vae, self.values, self._options = vae, values, options
        drawn = np.random.default_rng(22).standard_normal((*values.shape[:2], options.latent), np.float32)
        self._noise = torch.from_numpy(drawn)
        self.best, self.loss, self.step = vae, math.inf, 0

    @torch.no_grad()
    def measure(self, step: int) -> None:
        loss = float(lens_loss(self._vae, self.values, self._noise, self._options))
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {step}: lower lr, now {self._options.lr:g}, or gamma, now "
                f"{self._options.gamma:g}"
            )
        if loss < self.loss:
            self.best = copy.deepcopy(self._vae).eval().requires_grad_(False)
            self.loss, self.step = loss, step


def _new_vae(pairs: PairRows, options: LensOptions, seed: int) -> LensVae:
    generator = torch.Generator().manual_seed(seed)
    vae = LensVae(pairs.dimension, options.latent, options.hidden, generator)
    vae.mean, vae.scale = standardisation(read_some(pairs, STATISTICS_PAIRS).flatten(0, 1))
    return vae


def _optimiser(vae: LensVae, lr: float) -> torch.optim.Adam:
    """Return Adam with rates in units of a layer's weights, n^-0.5 for n inputs: one lr for any dimension."""
    groups = []
    for linear in (*vae.encoder, *vae.decoder):
        assert isinstance(linear, torch.nn.Linear)
        groups.append({"params": linear.parameters(), "full_lr": lr * linear.in_features**-0.5})
    return torch.optim.Adam(groups)


@torch.no_grad()
def _figures(stop: _Stop, pairs: PairRows, options: LensOptions) -> LensFigures:
    vae, held_out = stop.best, stop.values
    train = vae.standardised(read_some(pairs, MEASURED_PAIRS))
    found, other = vae.encode(held_out), vae.encode(train)
    return LensFigures(
        n_parameters=vae.n_parameters,
        latent=options.latent,
        step=stop.step,
        loss=stop.loss,
        r2=_r2(vae, held_out, found),
        r2_train=_r2(vae, train, other),
        kl=float(kl_to_prior(found).mean()),
        active=int((other.mean.flatten(0, 1).var(0, correction=0) > ACTIVE).sum()),
        w2=float(_apart(found).mean()),
        w2_train=float(_apart(other).mean()),
        separation=_separation(found),
        second_moment=float((found.mean**2 + found.deviation**2).mean()),
        deviation=float(found.deviation.median()),
    )


def _r2(vae: LensVae, values: Tensor, posterior: Posterior) -> float:
    """Return 1 - squared error of g(mu) over that of the training mean, which standardised is 0."""
    errors = (values - vae.decode(posterior.mean)) ** 2
    return float(1 - errors.sum() / (values**2).sum())


def _apart(posterior: Posterior) -> Tensor:
    """Return the distances (n,) of the posteriors (n, 2, L) of pairs."""
    return w2(_side(posterior, 0), _side(posterior, 1))


def _separation(posterior: Posterior) -> float:
    """Return the mean distance of a pair over that of two pairs' chosen texts; 1 for one pair."""
    chosen = _side(posterior, 0)
    rolled = Posterior(chosen.mean.roll(1, 0), chosen.log_variance.roll(1, 0))
    unrelated = float(w2(chosen, rolled).mean())
    return float(_apart(posterior).mean()) / unrelated if unrelated else 1.0


def _side(posterior: Posterior, side: int) -> Posterior:
    return Posterior(posterior.mean[:, side], posterior.log_variance[:, side])
