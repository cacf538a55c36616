"""Combinations of chosen and rejected rows: counted and drawn, against a list of them all."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder.contracts import UserError
from rewards.augment_methods import COMBINATIONS
from rewards.augment_pairs import draw_combinations, n_combinations


def every(combine: str, prompts: list[int], n_original: int) -> set[tuple[int, int]]:
    """List all combinations by their definition."""
    places = range(len(prompts))
    allowed = {
        "cartesian": lambda i, j: True,
        "within": lambda i, j: prompts[i] == prompts[j],
        "cross": lambda i, j: prompts[i] != prompts[j],
        "own": lambda i, j: i == j,
    }[combine]
    found = {(i, j) for i in places for j in places if allowed(i, j)}
    return found - {(i, i) for i in range(n_original)}


@given(
    combine=st.sampled_from(COMBINATIONS),
    prompts=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_all_of_them_and_each_once(combine: str, prompts: list[int], share: float, seed: int) -> None:
    n_original = 1 + int(share * (len(prompts) - 1))
    expected, numbers = every(combine, prompts, n_original), np.array(prompts)
    assert n_combinations(combine, numbers, n_original) == len(expected)
    rng = np.random.default_rng(seed)
    one, other = draw_combinations(combine, numbers, n_original, len(expected), rng)
    found = list(zip(one.tolist(), other.tolist(), strict=True))
    assert len(found) == len(expected)
    assert set(found) == expected
    if expected:
        fewer = draw_combinations(combine, numbers, n_original, (len(expected) + 1) // 2, rng)
        some = list(zip(*(side.tolist() for side in fewer), strict=True))
        assert len(set(some)) == len(some) == (len(expected) + 1) // 2
        assert set(some) <= expected
    with pytest.raises(UserError, match=f"only {len(expected)} under"):
        draw_combinations(combine, numbers, n_original, len(expected) + 1, rng)


def test_counts_by_formula() -> None:
    """Two prompts of two original pairs, one synthetic pair for each: M = 8, c = 4, r = 2."""
    prompts = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    counts = {name: n_combinations(name, prompts, 4) for name in COMBINATIONS}
    assert counts == {"cartesian": 64 - 4, "within": 2 * (16 - 2), "cross": 2 * 4 * 4, "own": 4}


def test_draws_are_even() -> None:
    """Every combination as often as another, over many draws of a few."""
    prompts, rng = np.array([0, 0, 1, 0, 1]), np.random.default_rng(0)
    counts: dict[tuple[int, int], int] = {}
    for _ in range(6000):
        one, other = draw_combinations("cartesian", prompts, 2, 2, rng)
        for pair in zip(one.tolist(), other.tolist(), strict=True):
            counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 23
    expected = 12_000 / 23
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 50  # chi-squared, 22 degrees


def test_prompts_give_as_many_as_each_other() -> None:
    prompts = np.array([0] * 10 + [1] * 3)
    one, _ = draw_combinations("within", prompts, 13, 12, np.random.default_rng(0))
    assert np.bincount(prompts[one]).tolist() == [6, 6]


def test_nothing_is_listed() -> None:
    """640 billion combinations, of which 700,000 are drawn."""
    prompts = np.tile(np.arange(100_000), 8)
    began = time.process_time()
    one, other = draw_combinations("cartesian", prompts, 100_000, 700_000, np.random.default_rng(0))
    assert time.process_time() - began < 5
    assert len(np.unique(one * 800_000 + other)) == 700_000
    assert not ((one == other) & (one < 100_000)).any()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean cartesian"):
        n_combinations("cartesien", np.zeros(3, dtype=np.int64), 1)
