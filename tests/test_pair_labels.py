"""Labelled pairs, whose flips are known, and splits that no prompt is on two sides of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder.contracts import UserError
from rewards.pairs import Pairs, label, make_pairs, split_prompts


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows(sizes: list[int], seed: int = 0) -> tuple[Any, Any]:
    """Rewards with ties and groups that do not stand together, of prompts of these sizes."""
    groups = rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 7 - 3, sizes))
    return rng(seed).normal(size=len(groups)).round(1), groups


# Labels.


def test_labels_name_the_better_without_noise() -> None:
    rewards, groups = rows([10] * 30)
    pairs = make_pairs("within", rewards, groups, 300, rng())
    labelled = label(pairs, rewards, math.inf, "std", rng())
    assert len(labelled) == 300
    assert (rewards[labelled.winner] >= rewards[labelled.loser]).all()
    assert not labelled.flipped.any()
    given_rows = np.sort(np.stack([pairs.first, pairs.second]), axis=0)
    np.testing.assert_array_equal(np.sort(np.stack([labelled.winner, labelled.loser]), axis=0), given_rows)


def test_flips_are_known() -> None:
    rewards, groups = rows([10] * 300)
    pairs = make_pairs("cross", rewards, groups, 20_000, rng())
    labelled = label(pairs, rewards, 1.0, "std", rng(1))
    np.testing.assert_array_equal(labelled.flipped, rewards[labelled.winner] < rewards[labelled.loser])
    differences = np.abs(pairs.differences(rewards)) / rewards.std()
    chance = np.where(differences > 0, 1 / (1 + np.exp(differences)), 0)
    error = math.sqrt((chance * (1 - chance)).sum()) / len(pairs)
    assert labelled.flipped.mean() == pytest.approx(chance.mean(), abs=4 * error)


def test_the_scale_may_be_a_number() -> None:
    rewards, groups = rows([10] * 30)
    pairs = make_pairs("within", rewards, groups, 300, rng())
    by_std, by_number = (label(pairs, rewards, 1.0, scale, rng()) for scale in ("std", rewards.std()))
    np.testing.assert_array_equal(by_std.winner, by_number.winner)
    assert label(pairs, rewards, 1.0, 1e-9, rng()).flipped.sum() == 0


# Splits.


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 5), min_size=10, max_size=40), seed=st.integers(0, 9))
def test_splits_share_no_prompt(sizes: list[int], seed: int) -> None:
    _, groups = rows(sizes, seed)
    masks = split_prompts(groups, (0.8, 0.1, 0.1), seed)
    np.testing.assert_array_equal(np.sum(masks, axis=0), 1)
    prompts = [set(groups[mask].tolist()) for mask in masks]
    assert sum(map(len, prompts)) == len(sizes)
    for part, share in zip(prompts, (0.8, 0.1, 0.1), strict=True):
        assert abs(len(part) - share * len(sizes)) <= 1
    for mask, again in zip(masks, split_prompts(groups, (0.8, 0.1, 0.1), seed), strict=True):
        np.testing.assert_array_equal(mask, again)


def test_splits_change_with_the_seed_and_may_be_empty() -> None:
    groups = np.arange(100)
    train, validation, test = split_prompts(groups, (0.5, 0.0, 0.5), 0)
    assert (train.sum(), validation.sum(), test.sum()) == (50, 0, 50)
    assert (train != split_prompts(groups, (0.5, 0.0, 0.5), 1)[0]).any()


# Bad input.


@pytest.mark.parametrize("shares", [(0.8, 0.1), (1.1, -0.1), (math.nan, 1.0), ()])
def test_bad_shares_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="sum to 1"):
        split_prompts(np.arange(20), shares, 0)


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(UserError, match="2 prompts are too few"):
        split_prompts([0, 0, 1], (0.8, 0.1, 0.1), 0)


def test_labels_need_usable_rewards() -> None:
    pairs = Pairs(np.array([0]), np.array([1]))
    with pytest.raises(UserError, match="golden difference 0 is nan"):
        label(pairs, [math.nan, 1.0], 1.0, 1.0, rng())
    with pytest.raises(UserError, match="all golden rewards are equal"):
        label(pairs, [1.0, 1.0], 1.0, "std", rng())
    with pytest.raises(UserError, match="beta is -1"):
        label(pairs, [0.0, 1.0], -1.0, "std", rng())
