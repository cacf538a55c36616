"""Figures of grids of samples against scipy, loops over pairs and permutations of the samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval.prompt_grids import PromptRows, average_ranks, best_of, pairwise_accuracy, quantiles, spearman
from eval.stats import expected_best_of

NAN = math.nan
GRIDS = st.integers(1, 6).flatmap(
    lambda k: st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=k, max_size=k),
        min_size=1,
        max_size=5,
    )
)  # (P, K) of a score and a golden reward, with many ties


def noisy(prompts: int, samples: int) -> tuple[Any, Any]:
    """Scores that know something of golden, and golden, (P, K) without ties."""
    golden, noise = np.random.default_rng(0).normal(size=(2, prompts, samples))
    return golden + noise, golden


def both(grid: list[list[tuple[int, int]]]) -> tuple[Any, Any]:
    table = np.array(grid, dtype=float)
    return table[:, :, 0], table[:, :, 1]


def by_permutations(scores: Any, golden: Any, n: int, repeats: int) -> Any:
    """The papers' evaluation: shuffle the samples, the same way for every prompt, and take the first n."""
    found = []
    for repeat in range(repeats):
        order = np.random.default_rng(repeat).permutation(scores.shape[1])[:n]
        picks = [order[int(scores[p, order].argmax())] for p in range(len(scores))]
        found.append(np.mean([golden[p, pick] for p, pick in enumerate(picks)]))
    return np.array(found)


@settings(deadline=None, max_examples=100)
@given(GRIDS)
def test_ranks_are_scipys(grid: list[list[tuple[int, int]]]) -> None:
    values, _ = both(grid)
    np.testing.assert_array_equal(average_ranks(values), stats.rankdata(values, axis=1))


@settings(deadline=None, max_examples=100)
@given(GRIDS)
def test_spearman_is_scipys(grid: list[list[tuple[int, int]]]) -> None:
    for found, score, gold in zip(spearman(*both(grid)), *both(grid), strict=True):
        if np.ptp(score) == 0 or np.ptp(gold) == 0:  # also of one sample
            assert math.isnan(found)
        else:
            assert found == pytest.approx(stats.spearmanr(score, gold).statistic, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(GRIDS)
def test_pairwise_accuracy_is_the_loop(grid: list[list[tuple[int, int]]]) -> None:
    for found, row in zip(pairwise_accuracy(*both(grid)), grid, strict=True):
        right = [
            1.0 if score > other else 0.5 if score == other else 0.0
            for score, gold in row
            for other, below in row
            if gold > below
        ]
        assert found == (pytest.approx(np.mean(right)) if right else pytest.approx(NAN, nan_ok=True))


def test_pairwise_accuracy_of_a_long_prompt() -> None:
    """Longer than a slab; without ties it is (Kendall's tau + 1) / 2."""
    scores, golden = noisy(1, 1300)
    tau = stats.kendalltau(scores[0], golden[0]).statistic
    assert pairwise_accuracy(scores, golden)[0] == pytest.approx((tau + 1) / 2)


@settings(deadline=None, max_examples=100)
@given(GRIDS)
def test_best_of_is_expected_best_of(grid: list[list[tuple[int, int]]]) -> None:
    scores, golden = both(grid)
    ns = range(1, scores.shape[1] + 1)
    expected = [[expected_best_of(s, g, n) for n in ns] for s, g in zip(scores, golden, strict=True)]
    np.testing.assert_allclose(best_of(scores, golden, ns), expected, atol=1e-12)


def test_best_of_many_is_expected_best_of() -> None:
    scores, golden = noisy(1, 500)
    ns = (1, 2, 10, 250, 499, 500)
    expected = [expected_best_of(scores[0], golden[0], n) for n in ns]
    np.testing.assert_allclose(best_of(scores, golden, (*ns, 501))[0], [*expected, NAN], rtol=1e-12)


@pytest.mark.parametrize("n", [2, 10, 50])
def test_permutations_agree(n: int) -> None:
    """100 permutations, as in the papers, are within four of their standard errors of the expectation."""
    score, gold = noisy(40, 50)
    drawn = by_permutations(score, gold, n, repeats=100)
    error = drawn.std(ddof=1) / math.sqrt(len(drawn))
    assert best_of(score, gold, (n,)).mean() == pytest.approx(drawn.mean(), abs=4 * error + 1e-9)


def test_quantiles_go_from_the_lowest_to_the_highest() -> None:
    np.testing.assert_allclose(
        quantiles(np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 9.0]])), [[1, 0, 0.5], [0.25, 0.25, 1]]
    )
    assert np.isnan(quantiles(np.array([[1.0]]))).all()


def test_rows_become_grids_by_prompt() -> None:
    """Prompts as they first appear, rows of one in their order, those of one size together."""
    groups = np.array([5, 2, 5, 9, 2, 9])
    found = PromptRows.of(np.arange(6.0), np.arange(6.0) * 10, groups)
    ((prompts, scores, golden),) = found.grids()
    assert prompts.tolist() == [0, 1, 2]
    assert scores.tolist() == [[0, 2], [1, 4], [3, 5]]
    np.testing.assert_array_equal(golden, 10 * scores)
    ragged = list(PromptRows.of(np.arange(6.0), np.arange(6.0), ["b", "a", "a", "c", "a", "b"]).grids())
    assert [part[0].tolist() for part in ragged] == [[2], [0], [1]]
    assert [part[1].tolist() for part in ragged] == [[[3]], [[0, 5]], [[1, 2, 4]]]
