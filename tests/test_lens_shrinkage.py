"""Differences under a shrunk covariance: their moments, where a draw lies, and what becomes of a head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment import augment
from rewards.augment_methods import make_synthesiser
from rewards.augment_options import ShrinkageOptions
from rewards.heads import make_head
from rewards.lens_shrinkage import Shrinkage
from rewards.pair_rows import PairRows, hold_out, pairs_of

DIMENSION = 6
DIRECTION = np.array([1.0, -0.5, 0.0, 0.0, 0.0, 0.0])


def made(n: int, seed: int) -> PairRows:
    """Pairs at a mean difference, under correlated noise; the numbers of an embedding are of other scales."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(DIMENSION, DIMENSION))
    shared = 3 * rng.normal(size=(n, DIMENSION))
    sides = [shared + sign * DIRECTION / 2 + rng.normal(size=(n, DIMENSION)) @ mixing for sign in (1, -1)]
    scale = np.arange(1, DIMENSION + 1)
    return pairs_of(sides[0] * scale, sides[1] * scale, np.arange(n))


PAIRS, HELD_OUT = made(3000, 0), made(300, 1)
ALL = np.arange(3000)


def fit(**options: Any) -> Shrinkage:
    found = make_synthesiser("lens-shrinkage", **options)
    assert isinstance(found, Shrinkage)
    return found.fit(PAIRS, HELD_OUT, 0)


def draw(found: Shrinkage, copies: int = 1, seed: int = 3) -> Tensor:
    return found.draw(np.repeat(ALL, copies), np.random.default_rng(seed))


def difference(pairs: Tensor) -> Tensor:
    return pairs[:, 0] - pairs[:, 1]


@pytest.mark.parametrize("shrinkage", [0.3, 0.9, 1.0])
def test_differences_have_the_mean_and_the_shrunk_covariance(shrinkage: float) -> None:
    """In the embeddings' own units, by their definition."""
    own, drawn = (difference(each).double() for each in (PAIRS.read(ALL), draw(fit(shrinkage=shrinkage), 20)))
    wide = own.std(0, correction=0)
    assert ((drawn.mean(0) - own.mean(0)).abs() < 0.03 * wide).all()
    covariance = torch.cov(own.T, correction=0)
    expected = (1 - shrinkage) * covariance + shrinkage * torch.diag(covariance.diag())
    units = wide[:, None] * wide
    assert ((torch.cov(drawn.T) - expected) / units).abs().max() < 0.03


def test_no_shrinkage_gives_the_pairs() -> None:
    assert torch.allclose(draw(fit(shrinkage=0.0)), PAIRS.read(ALL), atol=1e-4)


@pytest.mark.parametrize("anchor", ["rejected", "chosen", "middle"])
def test_the_anchor_stays(anchor: str) -> None:
    own, drawn = PAIRS.read(ALL), draw(fit(anchor=anchor))
    kept = {"rejected": lambda p: p[:, 1], "chosen": lambda p: p[:, 0], "middle": lambda p: p.mean(1)}[anchor]
    assert torch.allclose(kept(drawn), kept(own), atol=1e-4)
    assert not torch.allclose(difference(drawn), difference(own), atol=0.1)


def test_the_figures_by_hand() -> None:
    found = fit()
    scale = PAIRS.read(ALL).flatten(0, 1).std(0, correction=0)
    own, held = (difference(p.read(np.arange(len(p)))) / scale for p in (PAIRS, HELD_OUT))
    mean, figures = own.mean(0), found.figures()
    assert figures["n_parameters"] == 2 * DIMENSION
    assert figures["length"] == pytest.approx(float(mean.norm() / (own**2).sum(1).mean().sqrt()), rel=1e-3)
    assert figures["agreed"] == pytest.approx(float((held @ mean > 0).float().mean()), abs=0.004)
    assert not found.warnings()
    turned = replace(HELD_OUT, pairs=HELD_OUT.pairs[:, ::-1].copy())
    assert "along the mean difference" in found.fit(PAIRS, turned, 0).warnings()[0]


def test_a_linear_head_of_many_draws_is_discriminant_analysis() -> None:
    """Its weights are near those in closed form, and nearer than the weights of the pairs alone."""
    few, stop = hold_out(made(170, 4))
    rows = few.read(np.arange(len(few)))
    own = difference(rows).double()
    covariance = torch.cov(own.T)
    shrunk = 0.1 * covariance + 0.9 * torch.diag(covariance.diag())
    expected = torch.linalg.solve(shrunk, own.mean(0))
    spread = rows.flatten(0, 1).std(0).double()

    def likeness(method: str, ratio: float, **options: Any) -> float:
        found = augment(method, few, stop, ratio, **options)
        head = make_head("bt-linear", steps=400).fit(found.embeddings, found.targets)
        unit = np.eye(DIMENSION, dtype=np.float32)
        weights = torch.from_numpy(head.predict(unit) - head.predict(0 * unit)).double()
        return float(torch.cosine_similarity(weights * spread, expected * spread, dim=0))

    found = likeness("lens-shrinkage", 60, shrinkage=0.9)
    assert found > 0.97
    assert found > likeness("none", 1)


@pytest.mark.parametrize(
    ("options", "said"), [({"shrinkage": 1.1}, "between 0 and 1"), ({"anchor": "both"}, "anchor 'both'")]
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ShrinkageOptions(**options)
