"""The conditional autoencoder: what it is told, what it draws, and that it keeps what the sides differ by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment_options import ConditionalOptions
from rewards.lens_conditional import Conditional
from rewards.lens_noise import noisy
from rewards.pair_rows import PairRows, pairs_of
from tests.test_lens_vae import factors, posterior

QUICK = ConditionalOptions(latent=4, hidden=16, steps=300, batch_pairs=64)
SHORT = replace(QUICK, steps=30)
PAIRS, HELD_OUT = factors(300), factors(60, seed=1)
MIXED = np.array([5, 0, 5, 59, 17, 0, 5])


def conditional(base: ConditionalOptions = SHORT, **options: Any) -> Conditional:
    return Conditional(replace(base, **options)).fit(PAIRS, HELD_OUT, 0)


def draw(found: Conditional, seed: int = 0) -> Tensor:
    return found.draw(MIXED, np.random.default_rng(seed))


def shared(n: int, seed: int) -> PairRows:
    """Pairs whose texts have much in common, and are apart in one direction."""
    rng = np.random.default_rng(seed)
    common, own = rng.standard_normal((n, 1, 24)), rng.standard_normal((n, 2, 24))
    found = 2 * common + own
    found[:, 0, 3] += 3
    return pairs_of(found[:, 0], found[:, 1], np.arange(n))


@pytest.mark.parametrize("condition", ["pair", "side"])
def test_what_is_drawn_by_hand(condition: str) -> None:
    """rho * other + g(mu + noise, side), with the noise of the posterior of e - rho * other."""
    found = conditional(condition=condition, residual=False, variance=0.25)
    vae = found.vae_
    assert vae is not None
    values = vae.units.standardised(PAIRS.read(MIXED))
    noise = torch.from_numpy(np.random.default_rng(2).standard_normal((7, 2, 4), dtype=np.float32))
    assert (found.rho_ == 0) == (condition == "side")
    drawn = draw(found, 2)
    for i in range(7):
        for side, sign in ((0, 1.0), (1, -1.0)):
            own, told = values[i, side] - found.rho_ * values[i, 1 - side], torch.tensor([sign])
            told_posterior = vae.encode(own, told)
            z = told_posterior.mean + 0.5 * told_posterior.deviation * noise[i, side]
            expected = found.rho_ * values[i, 1 - side] + vae.decode(z, told)
            assert torch.allclose(drawn[i, side], vae.units.restored(expected), atol=1e-3)


def test_no_noise_in_the_residual_form_gives_the_embeddings() -> None:
    assert torch.allclose(draw(conditional(variance=0.0)), PAIRS.read(MIXED), atol=1e-3)
    plain = draw(conditional(variance=0.0, residual=False))
    assert (plain - PAIRS.read(MIXED)).abs().max() > 0.1


def test_the_residual_form_adds_what_noise_changes() -> None:
    plain, residual = conditional(residual=False), conditional()
    clean = draw(conditional(residual=False, variance=0.0), 3)
    assert torch.allclose(draw(residual, 3), PAIRS.read(MIXED) + draw(plain, 3) - clean, atol=1e-3)


def test_draws_repeat_and_differ() -> None:
    found = conditional()
    assert torch.equal(draw(found, 1), draw(found, 1))
    assert not torch.equal(draw(found, 1), draw(found, 2))
    assert not torch.equal(draw(found)[0], draw(found)[2])  # of one source


def test_rho_is_the_correlation_of_the_sides() -> None:
    """Four parts of five are common, so that the correlation is 0.8; without anything in common it is 0."""
    found = Conditional(SHORT).fit(shared(2000, 0), shared(60, 1), 0)
    assert found.rho_ == pytest.approx(0.8, abs=0.03)
    rng = np.random.default_rng(0)
    alone = pairs_of(*rng.standard_normal((2, 2000, 24)), np.arange(2000))
    assert Conditional(SHORT).fit(alone, shared(60, 1), 0).rho_ == pytest.approx(0, abs=0.03)


def test_it_keeps_what_the_sides_differ_by_in_latents_too_narrow_for_it() -> None:
    """One latent for 24 numbers; told the other side, the decoder moves along the direction of preference."""
    found = Conditional(replace(QUICK, latent=1)).fit(shared(1000, 0), shared(100, 1), 0)
    vae = found.vae_
    assert vae is not None
    told = torch.ones(50, 1)
    moved = (vae.decode(torch.zeros(50, 1), told) - vae.decode(torch.zeros(50, 1), -told)).mean(0)
    assert int(moved.abs().argmax()) == 3
    assert moved[3] > 0.5
    assert float(moved[3] ** 2 / (moved**2).sum()) > 0.8
    assert not [said for said in found.warnings() if "other side" in said]


def test_collapse_and_a_side_that_says_nothing_are_told() -> None:
    """Sides that are coin tosses, beside sides that are not."""
    rng = np.random.default_rng(0)
    tossed = [pairs_of(*rng.standard_normal((2, n, 24)), np.arange(n)) for n in (8000, 1000)]
    options = replace(QUICK, beta=100.0, steps=1000, lr=0.03)
    said = Conditional(options).fit(*tossed, 0).warnings()
    assert "posterior collapse: 0 of 4" in said[0]
    assert "told the other side: it learnt nothing" in said[-1]
    said = Conditional(options).fit(shared(1000, 0), shared(100, 1), 0).warnings()
    assert len(said) == 1
    assert "posterior collapse" in said[0]


def test_figures_by_hand() -> None:
    found = conditional(QUICK)
    vae, figures = found.vae_, found.figures()
    assert vae is not None
    values = vae.units.standardised(HELD_OUT.read(np.arange(60)))
    told = torch.tensor([[1.0], [-1.0]]).expand(60, 2, 1)
    own = values - found.rho_ * values.flip(1)
    mean = vae.encode(own, told).mean
    decoded = vae.decode(mean, told)
    assert figures["r2"] == pytest.approx(1 - float(((own - decoded) ** 2).sum() / (own**2).sum()), rel=1e-4)
    assert figures["r2"] > 0.8
    moved = (vae.decode(mean, -told) - decoded).norm(dim=-1).mean()
    apart = (values[:, 0] - values[:, 1]).norm(dim=-1).mean()
    assert figures["side"] == pytest.approx(float(moved / apart), rel=1e-4)
    assert all(isinstance(value, int | float) for value in figures.values())


@pytest.mark.parametrize("kind", ["isotropic", "posterior", "prior"])
def test_noise_by_kind(kind: Any) -> None:
    own = posterior(20_000)
    found = noisy(own, kind, 0.25, np.random.default_rng(0))
    standard = {
        "isotropic": (found - own.mean) / 0.5,
        "posterior": (found - own.mean) / own.deviation / 0.5,
        "prior": found,
    }[kind]
    assert float(standard.std()) == pytest.approx(1, abs=0.01)
    assert abs(float((standard * own.mean).mean())) < 0.02  # apart from what the text says
    assert float(standard.mean()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"condition": "both"}, "condition 'both'"),
        ({"noise": "none"}, "noise 'none'"),
        ({"variance": -1}, "variance -1"),
        ({"latent": 0}, "latent 0"),
        ({"lr": 0}, "lr 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ConditionalOptions(**options)


def test_what_was_not_fitted_cannot_draw() -> None:
    with pytest.raises(UserError, match="synthesiser was not fitted"):
        draw(Conditional(QUICK))
