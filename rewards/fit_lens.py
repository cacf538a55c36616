"""Fit the autoencoder of LENS on preference pairs, stopped on others, and look at its latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.augment_options import LensOptions
from rewards.fit_vae import MEASURED_PAIRS, Best, VaeFigures, fit_model, new_vae, vae_figures
from rewards.lens_vae import LensVae, Posterior, lens_loss, w2
from rewards.pair_rows import PairRows, read_some

TOO_APART = 1.5  # distance of a pair's posteriors in units of that of two texts of one side
TOO_WIDE = 4.0  # mean square of latents, 1 under the prior


@dataclass(frozen=True, slots=True)
class LensFigures:
    """What a fit found: vae, and of posteriors, on held-out pairs:

    w2, w2_train: mean distance of a pair's. separation: that over the mean distance of two chosen texts'.
    """

    vae: VaeFigures
    w2: float
    w2_train: float
    separation: float

    def warnings(self) -> list[str]:
        """Return a sentence for collapsed latents, and for sides that were driven too far apart."""
        found = self.vae.warnings()
        if self.separation > TOO_APART or self.vae.second_moment > TOO_WIDE:
            found.append(
                f"over-separation: a pair's posteriors are {self.separation:.2f} times as far apart as two "
                f"texts, the latents' mean square is {self.vae.second_moment:.2f}; lower gamma or raise beta"
            )
        return found


def fit_lens(
    pairs: PairRows, held_out: PairRows, options: LensOptions, seed: int
) -> tuple[LensVae, LensFigures]:
    """Return the autoencoder where the loss of the held-out pairs was lowest, and its figures.

    Raises UserError for embeddings that are not finite and for a loss that is not.
    """

    def loss(vae: LensVae, values: Tensor, noise: Tensor) -> Tensor:
        return lens_loss(vae, values, noise, options)

    vae = new_vae(pairs, options.latent, options.hidden, seed)
    best = fit_model(vae, loss, pairs, held_out, options, seed, f", or gamma, now {options.gamma:g}")
    return best.model, _figures(best, pairs, held_out)


@torch.no_grad()
def _figures(best: Best[LensVae], pairs: PairRows, held_out: PairRows) -> LensFigures:
    sides = [best.model.units.standardised(read_some(side, MEASURED_PAIRS)) for side in (held_out, pairs)]
    found, other = (best.model.encode(side) for side in sides)
    decoded = [best.model.decode(posterior.mean) for posterior in (found, other)]
    plain = vae_figures(best, (sides[0], decoded[0], found), (sides[1], decoded[1], other))
    return LensFigures(
        plain,
        w2=float(_apart(found).mean()),
        w2_train=float(_apart(other).mean()),
        separation=_separation(found),
    )


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
