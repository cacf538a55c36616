"""Differences of pairs, modelled: which text stays, what the other becomes, the Gaussian in closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment_options import DifferenceOptions
from rewards.lens_difference import Components, Difference
from rewards.pair_rows import pairs_of
from rewards.principal import principal
from tests.test_lens_vae import factors, normal

N = 300
PAIRS, HELD_OUT = factors(N), factors(60, seed=1)
GAUSSIAN = DifferenceOptions(latent=4)
MODELS = {"gaussian": GAUSSIAN, "vae": replace(GAUSSIAN, model="vae", hidden=16, steps=300)}
MIXED = np.array([5, 0, 5, 59, 17, 0, 5])


def difference(model: str = "gaussian", **options: Any) -> Difference:
    return Difference(replace(MODELS[model], **options)).fit(PAIRS, HELD_OUT, 0)


def draw(found: Difference, seed: int = 0) -> Tensor:
    return found.draw(MIXED, np.random.default_rng(seed))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("residual", [True, False])
def test_one_text_stays_and_the_other_is_at_the_same_difference(model: str, residual: bool) -> None:
    originals = PAIRS.read(MIXED)
    drawn = {
        anchor: draw(difference(model, anchor=anchor, residual=residual))
        for anchor in ("rejected", "chosen", "middle")
    }
    assert torch.equal(drawn["rejected"][:, 1], originals[:, 1])
    assert torch.equal(drawn["chosen"][:, 0], originals[:, 0])
    assert torch.allclose(drawn["middle"].mean(1), originals.mean(1), atol=1e-3)
    differences = [pair[:, 0] - pair[:, 1] for pair in drawn.values()]
    for other in differences[1:]:
        assert torch.allclose(differences[0], other, atol=1e-3)
    assert (differences[0] - (originals[:, 0] - originals[:, 1])).abs().max() > 0.5


@pytest.mark.parametrize("model", MODELS)
def test_what_is_drawn_by_hand(model: str) -> None:
    noise = torch.from_numpy(np.random.default_rng(2).standard_normal((7, 4), dtype=np.float32))
    plain, residual = (
        difference(model, noise="isotropic", variance=0.25, residual=kind) for kind in (False, True)
    )
    fitted: Any = plain.model_
    originals = PAIRS.read(MIXED)
    own = (originals[:, 0] - originals[:, 1]) / fitted.units.scale
    mean = fitted.encode(own).mean
    decoded = fitted.decode(mean + 0.5 * noise)
    expected = originals[:, 1] + decoded * fitted.units.scale
    assert torch.allclose(draw(plain, 2)[:, 0], expected, atol=1e-3)
    expected = originals[:, 0] + (decoded - fitted.decode(mean)) * fitted.units.scale
    assert torch.allclose(draw(residual, 2)[:, 0], expected, atol=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_no_noise_in_the_residual_form_gives_the_embeddings(model: str) -> None:
    assert torch.allclose(draw(difference(model, variance=0.0)), PAIRS.read(MIXED), atol=1e-4)


def test_drawn_from_the_prior_differences_have_the_mean_and_covariance_of_the_pairs() -> None:
    found = difference(noise="prior", residual=False)
    drawn = found.draw(np.zeros(40_000, dtype=np.int64), np.random.default_rng(0))
    differences = (drawn[:, 0] - drawn[:, 1]).numpy()
    originals = PAIRS.read(np.arange(N))
    real = (originals[:, 0] - originals[:, 1]).numpy()
    expected = np.cov(real.T, bias=True)  # 4 factors, so that what is outside the components is noise
    assert np.allclose(differences.mean(0), real.mean(0), atol=0.3)
    assert np.abs(np.cov(differences.T) - expected).max() < 0.05 * np.abs(expected).max()


def test_the_posterior_is_that_of_the_joint_gaussian() -> None:
    """z given d by the rule for any Gaussian: cov(z, d) cov(d)^-1 (d - mean)."""
    model = Components(PAIRS, 3)
    W = model.directions * (model.spread - model.rest).sqrt()
    covariance = W @ W.T + model.rest * torch.eye(24)
    values = normal(5, 24)
    gain = W.T @ torch.linalg.inv(covariance)
    found = model.encode(values)
    assert torch.allclose(found.mean, (values - model.centre) @ gain.T, atol=1e-3)
    within = torch.eye(3) - gain @ W
    assert torch.allclose(torch.diag_embed(found.deviation**2)[0], within, atol=1e-4)
    assert torch.allclose(model.decode(found.mean), model.centre + found.mean @ W.T, atol=1e-4)


def test_the_gaussian_is_the_likeliest() -> None:
    """Of rank 3 and noise: no nearby one gives the differences of the pairs a higher density."""
    model = Components(PAIRS, 3)
    rows = PAIRS.read(np.arange(N))
    values = ((rows[:, 0] - rows[:, 1]) / model.units.scale).double()

    def density(W: Tensor, rest: Tensor, centre: Tensor) -> float:
        covariance = (W @ W.T + rest * torch.eye(24)).double()
        gaussian = torch.distributions.MultivariateNormal(centre.double(), covariance)
        return float(gaussian.log_prob(values).sum())

    W = model.directions * (model.spread - model.rest).sqrt()
    best = density(W, model.rest, model.centre)
    for other in (
        density(W * 1.03, model.rest, model.centre),
        density(W * 0.97, model.rest, model.centre),
        density(W + 0.02 * normal(24, 3), model.rest, model.centre),
        density(W, model.rest * 1.05, model.centre),
        density(W, model.rest * 0.95, model.centre),
        density(W, model.rest, model.centre + 0.05),
    ):
        assert other < best


@pytest.mark.parametrize("n", [12, 200])  # fewer rows than numbers, and more
def test_principal_directions(n: int) -> None:
    values = normal(n, 30) * torch.linspace(0.5, 3, 30)
    directions, variance = principal(values, 5)
    _, spread, expected = torch.linalg.svd(values, full_matrices=False)
    assert torch.allclose(variance.flip(0), spread[:5] ** 2 / n, rtol=1e-3)
    assert torch.allclose(directions.T @ directions, torch.eye(5), atol=1e-4)
    assert torch.allclose((directions.flip(1) * expected[:5].T).sum(0).abs(), torch.ones(5), atol=1e-3)


def test_figures_by_hand() -> None:
    found = difference()
    model: Any = found.model_
    rows, train = HELD_OUT.read(np.arange(60)), PAIRS.read(np.arange(N))
    values = (rows[:, 0] - rows[:, 1]) / model.units.scale
    errors = values - model.decode(model.encode(values).mean)
    figures = found.figures()
    assert figures["r2"] == pytest.approx(1 - float((errors**2).sum() / (values**2).sum()), rel=1e-4)
    assert figures["r2"] > 0.9
    mean = ((train[:, 0] - train[:, 1]) / model.units.scale).mean(0)
    unit = mean / mean.norm()
    expected = float(((values @ unit) ** 2).sum() / (values**2).sum())
    assert figures["direction"] == pytest.approx(expected, rel=1e-3)
    assert figures["n_parameters"] == 24 + 24 * 4 + 1
    assert not found.warnings()
    assert all(isinstance(value, int | float) for value in figures.values())


def test_a_worthless_model_is_told() -> None:
    rng = np.random.default_rng(0)
    pairs = [pairs_of(*rng.standard_normal((2, n, 60)), np.arange(n)) for n in (20, 50)]
    options = replace(MODELS["vae"], beta=0.01, steps=600)
    said = Difference(options).fit(pairs[0], pairs[0], 0)
    assert not any("worse than the mean" in warning for warning in said.warnings())
    collapsed = Difference(replace(MODELS["vae"], beta=100.0)).fit(*pairs, 0)
    assert "posterior collapse" in collapsed.warnings()[0]


def test_draws_repeat_and_differ() -> None:
    found = difference()
    assert torch.equal(draw(found, 1), draw(found, 1))
    assert not torch.equal(draw(found, 1), draw(found, 2))
    assert not torch.equal(draw(found)[0], draw(found)[2])  # of one source


def test_what_cannot_be() -> None:
    for options, said in (
        ({"anchor": "both"}, "anchor 'both'"),
        ({"model": "flow"}, "model 'flow'"),
        ({"noise": "none"}, "noise 'none'"),
        ({"latent": 0}, "latent 0"),
    ):
        with pytest.raises(UserError, match=said):
            DifferenceOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"latent 40: 300 differences of 24 numbers .* give at most 23"):
        Difference(DifferenceOptions(latent=40)).fit(PAIRS, HELD_OUT, 0)
    with pytest.raises(UserError, match="synthesiser was not fitted"):
        draw(Difference(GAUSSIAN))
