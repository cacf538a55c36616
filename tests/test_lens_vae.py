"""The autoencoder of LENS and its losses, each against a slow or obvious form of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment_options import LensOptions
from rewards.fit_lens import fit_lens
from rewards.lens_vae import LensVae, Posterior, kl_to_prior, lens_loss, vae_loss, w2, w2_squared
from rewards.pair_rows import PairRows, pairs_of

QUICK = LensOptions(latent=4, hidden=16, steps=300, batch_pairs=64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def posterior(n: int, latent: int = 3, seed: int = 0) -> Posterior:
    return Posterior(normal(n, latent, seed=seed), normal(n, latent, seed=seed + 1))


def new_vae(dimension: int = 10, latent: int = 4, seed: int = 0) -> LensVae:
    return LensVae(dimension, latent, 8, torch.Generator().manual_seed(seed))


def factors(n: int = 500, dimension: int = 24, seed: int = 0) -> PairRows:
    """Pairs of embeddings of four factors, the first larger in the chosen one, and a little noise."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, 2, 4))
    latent[:, 0, 0] += 0.7
    mapping = np.random.default_rng(99).standard_normal((4, dimension))
    found = (latent @ mapping + 0.1 * rng.standard_normal((n, 2, dimension))) * 3 + 5
    return pairs_of(found[:, 0], found[:, 1], np.arange(n))


def test_w2_is_the_integral_over_quantiles() -> None:
    """In one number, W2^2 is the integral of the squared difference of quantile functions; numbers add up."""
    one, other = posterior(6), posterior(6, seed=7)
    normal_quantiles = torch.special.ndtri((torch.arange(200_000).double() + 0.5) / 200_000)
    for i in range(6):
        squared = 0.0
        for j in range(3):
            sides = [q.mean[i, j] + q.deviation[i, j] * normal_quantiles for q in (one, other)]
            squared += float(((sides[0] - sides[1]) ** 2).mean())
        assert float(w2_squared(one, other)[i]) == pytest.approx(squared, rel=1e-3)
        assert float(w2(one, other)[i]) == pytest.approx(squared**0.5, rel=1e-3)


def test_w2_has_a_gradient_where_two_are_the_same() -> None:
    same = Posterior(normal(2, 3).requires_grad_(), torch.zeros(2, 3).requires_grad_())
    distance = w2(same, posterior(2))
    assert (distance > 0).all()
    zero = w2(same, Posterior(same.mean.detach().clone(), torch.zeros(2, 3)))
    assert zero.tolist() == [0, 0]
    gradients = torch.autograd.grad(zero.sum(), (same.mean, same.log_variance))
    assert all((gradient == 0).all() for gradient in gradients)


def test_w2_has_the_root_s_gradient_elsewhere() -> None:
    mean = torch.tensor([[3.0, 4.0]], requires_grad=True)
    w2(Posterior(mean, torch.zeros(1, 2)), Posterior(torch.zeros(1, 2), torch.zeros(1, 2))).sum().backward()
    assert mean.grad is not None
    assert mean.grad.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


def test_kl_is_the_integral_and_zero_only_at_the_prior() -> None:
    found = posterior(5)
    grid = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    prior = torch.distributions.Normal(0.0, 1.0)
    for i in range(5):
        integral = 0.0
        for j in range(3):
            one = torch.distributions.Normal(found.mean[i, j].double(), found.deviation[i, j].double())
            density = one.log_prob(grid)
            integral += float((density.exp() * (density - prior.log_prob(grid))).sum() * (grid[1] - grid[0]))
        assert float(kl_to_prior(found)[i]) == pytest.approx(integral, rel=1e-4)
    assert float(kl_to_prior(Posterior(torch.zeros(3), torch.zeros(3)))) == 0
    for step in (-0.1, -1e-3, 1e-3, 0.1):
        assert float(kl_to_prior(Posterior(torch.tensor([0, step, 0]), torch.zeros(3)))) > 0
        assert float(kl_to_prior(Posterior(torch.zeros(3), torch.tensor([0, 0, step])))) > 0


def test_without_gamma_it_is_a_plain_vae() -> None:
    """The loss by hand; who is paired with whom is the same to it, and with a gamma it is not."""
    vae, values, noise = new_vae(), normal(6, 2, 10), normal(6, 2, 4, seed=5)
    plain = replace(QUICK, gamma=0.0, beta=0.7)
    found = vae.encode(values)
    decoded = vae.decode(found.mean + found.deviation * noise)
    by_hand = ((values - decoded) ** 2).sum(-1) / 2 + 0.7 * kl_to_prior(found)
    assert torch.allclose(lens_loss(vae, values, noise, plain), by_hand.sum(1).mean())

    order = torch.tensor([3, 0, 5, 1, 2, 4])
    dealt, other = values.clone(), noise.clone()
    dealt[:, 1], other[:, 1] = values[order, 1], noise[order, 1]
    assert torch.allclose(lens_loss(vae, values, noise, plain), lens_loss(vae, dealt, other, plain))
    full = replace(plain, gamma=0.1)
    apart = lens_loss(vae, values, noise, full) - lens_loss(vae, dealt, other, full)
    assert apart.abs() > 1e-4


@pytest.mark.parametrize("divergence", ["w2", "w2-squared"])
def test_gamma_pays_for_distance(divergence: str) -> None:
    vae, values, noise = new_vae(), normal(6, 2, 10), normal(6, 2, 4, seed=5)
    plain, full = (LensOptions(latent=4, gamma=gamma, divergence=divergence) for gamma in (0.0, 0.3))  # type: ignore[arg-type]
    found = vae.encode(values)
    sides = [Posterior(found.mean[:, i], found.log_variance[:, i]) for i in (0, 1)]
    distance = (w2 if divergence == "w2" else w2_squared)(*sides).mean()
    difference = lens_loss(vae, values, noise, plain) - lens_loss(vae, values, noise, full)
    assert torch.allclose(difference, 0.3 * distance, rtol=1e-3)


def test_the_mean_and_the_sum_of_squares() -> None:
    vae, values, noise = new_vae(), normal(5, 10), normal(5, 4, seed=5)
    sums, means = (
        vae_loss(vae, values, noise, replace(QUICK, beta=0.0, gamma=0.0, reconstruction=kind))[0]  # type: ignore[arg-type]
        for kind in ("sum", "mean")
    )
    assert torch.allclose(sums, means * 10 / 2)


def test_it_has_the_paper_s_size() -> None:
    options = LensOptions()
    vae = LensVae(4096, options.latent, options.hidden, torch.Generator())
    assert options.latent == 16
    assert vae.n_parameters == 531_616  # "0.5 M"


def test_standardising_can_be_undone() -> None:
    vae, values = new_vae(), normal(5, 10)
    vae.units.mean, vae.units.scale = normal(10, seed=3), normal(10, seed=4).abs() + 0.1
    assert torch.allclose(vae.units.restored(vae.units.standardised(values)), values, atol=1e-5)


def test_it_finds_four_factors_and_is_the_same_again() -> None:
    pairs, held_out = factors(), factors(100, seed=1)
    vae, found = fit_lens(pairs, held_out, QUICK, seed=3)
    assert found.vae.r2 > 0.9
    assert found.vae.r2_train > 0.9
    assert found.vae.active == 4
    assert not found.warnings()
    values = vae.units.standardised(held_out.read(np.arange(100)))
    errors = values - vae.decode(vae.encode(values).mean)
    by_hand = 1 - float((errors**2).sum() / (values**2).sum())
    assert found.vae.r2 == pytest.approx(by_hand, rel=1e-4)
    short = replace(QUICK, steps=20)
    vae, again, other = (fit_lens(pairs, held_out, short, seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(vae.decoder[1].weight, again.decoder[1].weight)  # type: ignore[arg-type]
    assert not torch.equal(vae.decoder[1].weight, other.decoder[1].weight)  # type: ignore[arg-type]


def test_collapse_and_over_separation_are_told() -> None:
    pairs, held_out = factors(), factors(100, seed=1)
    collapsed = fit_lens(pairs, held_out, replace(QUICK, beta=100.0), seed=0)[1]
    assert collapsed.vae.active < 2
    assert "posterior collapse: " in collapsed.warnings()[0]
    driven = fit_lens(pairs, held_out, replace(QUICK, gamma=20.0), seed=0)[1]
    calm = fit_lens(pairs, held_out, QUICK, seed=0)[1]
    assert driven.w2_train > 2 * calm.w2_train
    assert any("over-separation" in warning for warning in driven.warnings())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latent": 0}, "latent 0"),
        ({"beta": -1}, "beta -1"),
        ({"beta": 0.0}, "give beta above 0"),
        ({"divergence": "kl"}, "divergence 'kl'"),
        ({"noise": "none"}, "noise 'none'"),
        ({"filter": "posteriors"}, "did you mean posterior"),
        ({"variance": float("nan")}, "variance nan"),
        ({"lr": 0}, "lr 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LensOptions(**options)  # type: ignore[arg-type]


def test_a_divergence_without_bound_ends_with_advice() -> None:
    options = replace(QUICK, divergence="w2-squared", lr=1e30)
    with pytest.raises(UserError, match=r"lower lr, now 1e\+30, or gamma, now 0.1"):
        fit_lens(factors(100), factors(20, seed=1), options, seed=0)
