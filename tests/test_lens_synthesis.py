"""What LENS draws: reconstructions without noise, noise of the size asked for, and the likeliest of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from decoder.contracts import UserError
from rewards.augment_options import LensOptions
from rewards.lens_filter import likeliest, scores
from rewards.lens_synthesis import Lens
from rewards.lens_vae import Posterior, kl_to_prior
from tests.test_lens_vae import QUICK, factors, normal

N = 60
PAIRS, HELD_OUT = factors(N), factors(20, seed=1)
PLAIN = replace(QUICK, steps=40, filter="none")
MIXED = np.array([5, 0, 5, 59, 17, 0, 5])  # sources in no order, some of them repeated

ORDERED = np.sort(MIXED)


def lens(**options: Any) -> Lens:
    return Lens(replace(PLAIN, **options)).fit(PAIRS, HELD_OUT, 0)


def drawn_latents(fitted: Lens, sources: np.ndarray[Any, Any], seed: int = 0) -> torch.Tensor:
    return fitted._latents(sources, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def plain() -> Lens:
    return lens()


@pytest.mark.parametrize("options", [{}, {"filter": "elbo"}, {"filter": "posterior"}, {"shared_noise": True}])
def test_no_noise_gives_reconstructions(options: dict[str, Any]) -> None:
    found = lens(variance=0.0, **options)
    vae = found.vae_
    assert vae is not None
    originals = PAIRS.read(MIXED)
    expected = vae.units.restored(vae.decode(vae.encode(vae.units.standardised(originals)).mean))
    drawn = found.draw(MIXED, np.random.default_rng(0))
    assert torch.allclose(drawn, expected, atol=1e-4)
    assert (drawn - originals).abs().max() > 0.1  # which are not the embeddings themselves


def test_no_noise_in_the_residual_form_gives_the_embeddings() -> None:
    found = lens(variance=0.0, residual=True)
    assert torch.allclose(found.draw(MIXED, np.random.default_rng(0)), PAIRS.read(MIXED), atol=1e-4)


def test_the_residual_form_adds_what_noise_changes() -> None:
    one, other = lens(), lens(residual=True)
    noisy, residual = (each.draw(MIXED, np.random.default_rng(3)) for each in (one, other))
    clean = lens(variance=0.0).draw(MIXED, np.random.default_rng(3))
    assert torch.allclose(residual, PAIRS.read(MIXED) + noisy - clean, atol=1e-3)


def test_noise_is_as_wide_as_asked_for() -> None:
    sources = np.repeat(np.arange(N), 200)
    for options in ({"variance": 0.04}, {"variance": 0.25, "noise": "posterior"}):
        found = lens(**options)
        own = found._posteriors(sources)
        noise = drawn_latents(found, sources) - own.mean
        if "noise" in options:
            noise = noise / own.deviation
        assert float(noise.mean()) == pytest.approx(0, abs=0.01)
        assert float(noise.std()) == pytest.approx(options["variance"] ** 0.5, rel=0.02)  # type: ignore[operator]
        sides = noise.flatten(2)
        assert float((sides[:, 0] * sides[:, 1]).mean()) == pytest.approx(0, abs=0.005)


def test_shared_noise_is_the_same_on_both_sides() -> None:
    found = lens(shared_noise=True, filter="elbo")
    noise = drawn_latents(found, ORDERED) - found._posteriors(ORDERED).mean
    assert torch.allclose(noise[:, 0], noise[:, 1], atol=1e-6)
    assert noise.abs().max() > 0.05


def test_draws_repeat_and_differ(plain: Lens) -> None:
    one, same, other = (plain.draw(MIXED, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[2])  # of one source


def test_likeliest_by_hand() -> None:
    """Of each source as many as it has slots, the best ones, best first."""
    values = torch.tensor([1.0, 3, 2, 9, 0, 4, 7, 5, 6, 8])
    sources = np.array([0, 0, 0, 0, 2, 2, 3, 3, 3, 3])
    assert likeliest(values, sources, 2).tolist() == [3, 1, 5, 9, 6]


def test_the_own_posterior_keeps_the_smallest_noise() -> None:
    found = lens(filter="posterior", oversample=8, variance=1.0)
    own = found._posteriors(ORDERED)
    kept = ((drawn_latents(found, ORDERED) - own.mean) / own.deviation).abs().mean()
    every = ((drawn_latents(lens(variance=1.0), ORDERED) - own.mean) / own.deviation).abs().mean()
    assert kept < 0.8 * every


@pytest.mark.parametrize("name", ["posterior", "aggregated", "elbo"])
def test_likelihoods_by_hand(name: str, plain: Lens) -> None:
    vae, every = plain.vae_, plain.posterior_
    assert vae is not None
    assert every is not None
    sources, latents = np.array([3, 3, 7]), normal(3, 2, 4)
    options = LensOptions(latent=4, filter=name, beta=0.5)  # type: ignore[arg-type]
    found = scores(vae, latents, sources, every, options)
    for i in range(3):
        for side in (0, 1):
            if name == "elbo":
                values = vae.decode(latents[i, side])
                again: Posterior = vae.encode(values)
                error = ((values - vae.decode(again.mean)) ** 2).sum() / 2
                expected = float(-error - 0.5 * kl_to_prior(again))
            else:
                texts = range(N) if name == "aggregated" else [int(sources[i])]
                densities = [
                    torch.distributions.Normal(every.mean[j, side], every.deviation[j, side])
                    .log_prob(latents[i, side])
                    .sum()
                    .exp()
                    .double()
                    for j in texts
                ]
                expected = float(torch.stack(densities).mean().log())
            assert float(found[i, side]) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_what_was_not_fitted_cannot_draw() -> None:
    with pytest.raises(UserError, match="synthesiser was not fitted"):
        Lens(PLAIN).draw(MIXED, np.random.default_rng(0))


def test_figures_are_json_values(plain: Lens) -> None:
    figures = plain.figures()
    assert {"r2", "r2_train", "kl", "active", "w2", "separation", "second_moment"} <= set(figures)
    assert all(isinstance(value, int | float) for value in figures.values())


def test_one_fit_draws_in_other_ways(plain: Lens) -> None:
    """As a fit of its own does; what changes the fit itself is refused."""
    options = replace(PLAIN, variance=0.5, filter="elbo", residual=True)
    alone = Lens(options).fit(PAIRS, HELD_OUT, 0)
    both = [each.draw(MIXED, np.random.default_rng(1)) for each in (plain.drawing(options), alone)]
    assert torch.equal(*both)
    assert plain.options == PLAIN
    with pytest.raises(UserError, match="fit another"):
        plain.drawing(replace(options, gamma=0.3))
    with pytest.raises(UserError, match="not fitted"):
        Lens(PLAIN).drawing(options)
