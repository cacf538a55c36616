"""The flow: exact both ways, its density by the Jacobian, and where its noise moves embeddings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment_options import FlowOptions
from rewards.lens_flow import Flow, FlowModel
from rewards.pair_rows import PairRows, pairs_of
from tests.test_lens_vae import factors, normal

PAIRS, HELD_OUT = factors(300), factors(60, seed=1)
QUICK = FlowOptions(latent=5, layers=3, hidden=8, steps=60, batch_pairs=64)
MIXED = np.array([5, 0, 5, 59, 17, 0, 5])


def bent(n: int, seed: int) -> PairRows:
    """Pairs on a parabola, whose ends are the other way up on the rejected side."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((n, 2, 1))
    second = first**2 * np.array([1.0, -1.0])[:, None] + 0.1 * rng.standard_normal((n, 2, 1))
    found = np.concatenate([first, second], 2) @ np.random.default_rng(9).standard_normal((2, 6))
    return pairs_of(found[:, 0], found[:, 1], np.arange(n))


def disturbed(seed: int = 0, **options: Any) -> FlowModel:
    """A flow that is far from the identity."""
    model = FlowModel(PAIRS, replace(QUICK, **options), seed)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.5 * normal(*parameter.shape, seed=number)
    return model


def flow(**options: Any) -> Flow:
    return Flow(replace(QUICK, **options)).fit(PAIRS, HELD_OUT, 0)


def draw(found: Flow, seed: int = 0) -> Tensor:
    return found.draw(MIXED, np.random.default_rng(seed))


@torch.no_grad()
def test_it_can_be_undone() -> None:
    model, x = disturbed(), normal(20, 2, 5)
    z, _ = model.forward(x)
    assert (z - x).abs().max() > 1
    assert torch.allclose(model.inverse(z), x, atol=1e-3)


def test_its_log_determinant_is_the_jacobian_s() -> None:
    model, x = disturbed(), normal(1, 2, 5)
    _, found = model.forward(x)
    for side in (0, 1):

        def one(values: Tensor, side: int = side) -> Tensor:
            pair = x.clone()
            pair[0, side] = values
            return model.forward(pair)[0][0, side]

        jacobian = torch.autograd.functional.jacobian(one, x[0, side])
        assert found[0, side].item() == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-4)


@torch.no_grad()
def test_sides_are_told_only_if_asked_for() -> None:
    x = normal(4, 1, 5).expand(4, 2, 5)
    z, _ = disturbed().forward(x)
    assert (z[:, 0] - z[:, 1]).abs().max() > 0.1
    z, _ = disturbed(sides=False).forward(x)
    assert torch.equal(z[:, 0], z[:, 1])


@torch.no_grad()
def test_a_new_one_is_the_gaussian_of_all_embeddings() -> None:
    model = FlowModel(PAIRS, QUICK, 0)
    values = model.units.standardised(PAIRS.read(np.arange(300)))
    x = model.components(values)
    assert torch.equal(model.forward(x)[0], x)
    flat = x.flatten(0, 1)
    assert torch.allclose(flat.T @ flat / len(flat), torch.eye(5), atol=1e-3)
    expected = -torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)
    assert torch.allclose(model.surprise(values), expected, atol=1e-3)


def test_no_noise_gives_the_embeddings() -> None:
    assert torch.allclose(draw(flow(variance=0.0)), PAIRS.read(MIXED), atol=1e-3)


def test_noise_moves_components_alone() -> None:
    found = flow(variance=1.0)
    model = found.model_
    assert model is not None
    moved = (draw(found, 3) - PAIRS.read(MIXED)) / model.units.scale
    inside = moved @ model.directions @ model.directions.T
    assert torch.allclose(moved, inside, atol=1e-3)
    noise = torch.from_numpy(np.random.default_rng(3).standard_normal((7, 2, 5), dtype=np.float32))
    x = model.components(model.units.standardised(PAIRS.read(MIXED)))
    expected = (model.inverse(model.forward(x)[0] + noise) - x) * model.spread @ model.directions.T
    assert torch.allclose(moved, expected, atol=1e-3)


def test_it_learns_what_a_gaussian_cannot() -> None:
    """A parabola that opens the other way on the rejected side, which only a flow told the side knows."""
    options = FlowOptions(latent=2, hidden=32, layers=4, steps=600, lr=0.03)
    told, blind = (
        Flow(replace(options, sides=sides)).fit(bent(1000, 0), bent(200, 1), 0) for sides in (True, False)
    )
    assert told.figures()["gain"] > 0.8
    assert told.figures()["gain"] > blind.figures()["gain"] + 0.3
    assert told.figures()["explained"] == pytest.approx(1, abs=1e-3)
    assert not told.warnings()
    model = told.model_
    assert model is not None
    values = model.units.standardised(bent(200, 1).read(np.arange(200)))
    assert told.figures()["surprise"] == pytest.approx(float(model.surprise(values).mean()), rel=1e-3)


def test_learning_by_heart_is_told() -> None:
    rng = np.random.default_rng(0)
    few, others = (pairs_of(*rng.standard_normal((2, n, 24)), np.arange(n)) for n in (100, 200))
    said = Flow(replace(QUICK, lr=1.0, latent=10)).fit(few, others, 0).warnings()
    assert len(said) == 1
    assert "nats a text worse than a Gaussian" in said[0]


def test_draws_repeat_and_differ() -> None:
    found = flow()
    assert torch.equal(draw(found, 1), draw(found, 1))
    assert not torch.equal(draw(found, 1), draw(found, 2))
    assert not torch.equal(draw(found)[0], draw(found)[2])  # of one source
    assert all(isinstance(value, int | float) for value in found.figures().values())


def test_what_cannot_be() -> None:
    for options, said in (
        ({"latent": 1}, "latent 1 must be a number of 2 or more"),
        ({"layers": 0}, "layers 0"),
        ({"variance": float("inf")}, "variance inf"),
        ({"lr": -1}, "lr -1"),
    ):
        with pytest.raises(UserError, match=said):
            FlowOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="latent 30: the embeddings have 24 components"):
        flow(latent=30)
    with pytest.raises(UserError, match="synthesiser was not fitted"):
        draw(Flow(QUICK))
