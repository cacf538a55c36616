"""The drawing of different whole numbers, and the numbering of pairs, against all of them written out."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rewards.pair_draws import Layout, draw_distinct, even_quotas, triangle


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8), share=st.floats(0, 1))
def test_even_quotas_share_as_equally_as_they_can(sizes: list[int], share: float) -> None:
    n = round(share * sum(sizes))
    quotas = even_quotas(np.array(sizes), n, rng())
    assert quotas.sum() == n
    assert (quotas <= sizes).all()
    most = quotas.max()
    assert all(quota in (most, most - 1) or quota == size for quota, size in zip(quotas, sizes, strict=True))


def test_triangle_numbers_all_pairs() -> None:
    i, j = triangle(np.arange(45))
    assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == list(combinations(range(10), 2))


@pytest.mark.parametrize("j", [3, 10**6, 94_906_267, 3 * 10**9])
def test_triangle_of_large_numbers(j: int) -> None:
    """Where a float64 root cannot tell neighbours."""
    first, last = j * (j - 1) // 2, j * (j + 1) // 2 - 1
    i, found = triangle(np.array([first - 1, first, last, last + 1]))
    assert found.tolist() == [j - 1, j, j, j + 1]
    assert i.tolist() == [j - 2, 0, j - 1, 0]


def test_draw_distinct_draws_what_each_owner_owes() -> None:
    sizes, quotas = np.array([0, 5, 3, 0, 1000, 7, 0]), np.array([0, 2, 3, 0, 40, 6, 0])
    owner, number = draw_distinct(quotas, sizes, rng())
    assert np.bincount(owner, minlength=7).tolist() == quotas.tolist()
    assert (number >= 0).all()
    assert (number < sizes[owner]).all()
    assert len(set(zip(owner.tolist(), number.tolist(), strict=True))) == quotas.sum()


@pytest.mark.parametrize(("quota", "size"), [(2, 5), (3, 5), (1, 9)])
def test_every_subset_is_as_likely(quota: int, size: int) -> None:
    """Whether drawn until enough differ or from all of them shuffled."""
    drawn = (draw_distinct(np.array([quota]), np.array([size]), rng(seed))[1] for seed in range(2000))
    counts = Counter(tuple(sorted(numbers.tolist())) for numbers in drawn)
    assert len(counts) == math.comb(size, quota)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_a_layout_keeps_rows_with_their_prompt() -> None:
    groups = np.array([2, 0, 2, 1, 0, 2])
    layout = Layout.of(groups, rng())
    parts = np.split(layout.rows, layout.starts[1:])
    assert [set(part.tolist()) for part in parts] == [{1, 4}, {3}, {0, 2, 5}]
    assert layout.n_within().sum() + layout.n_across().sum() == 6 * 5 // 2
