"""Combining scorers: every rule by hand, on ties, constants, NaN and one sample."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from decoder.contracts import UserError
from rewards.combine import RULES, combine, rank_sum, ranking, scaling, shared_ranks, winner, zscore
from tests.source import ROOT

NAN = float("nan")


# The rules.


def test_ranking_takes_the_worst_rank() -> None:
    """Sample 1 is nobody's favourite and nobody's last: it wins, as in the official rule."""
    scores = [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]
    assert ranking(scores).tolist() == [-3, -2, -3]
    assert winner(ranking(scores)) == 1


def test_ranking_is_not_a_rank_sum() -> None:
    scores = [[4.0, 2.0, 3.0, 1.0], [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]]
    assert ranking(scores).tolist() == [-4, -3, -3, -4]
    assert (3 * rank_sum(scores)).round(9).tolist() == [-6, -8, -7, -9]
    assert (winner(ranking(scores)), winner(rank_sum(scores))) == (1, 0)


def test_ranking_breaks_ties_by_order_and_rank_sum_shares_them() -> None:
    scores = [[5.0, 5.0, 1.0, 5.0]]
    assert ranking(scores).tolist() == [-1, -2, -4, -3]
    assert rank_sum(scores).tolist() == [-2, -2, -4, -2]


def test_ranking_is_the_official_rule_on_random_scores() -> None:
    """Sort twice, stable and descending; keep the larger rank; the first of the smallest wins."""
    random = np.random.default_rng(0)
    for _ in range(50):
        first, second = random.integers(4, size=(2, 6)).astype(float).tolist()
        by_first = sorted(range(6), key=lambda i: first[i], reverse=True)
        by_second = sorted(range(6), key=lambda i: second[i], reverse=True)
        worst = [max(by_first.index(i), by_second.index(i)) for i in range(6)]
        assert ranking([first, second]).tolist() == [-1 - rank for rank in worst]
        assert winner(ranking([first, second])) == worst.index(min(worst))


def test_scaling_by_hand() -> None:
    found = scaling([[0.0, 5.0, 10.0], [-1.0, 3.0, -1.0]])
    assert found.tolist() == [0.0, 0.75, 0.5]
    assert scaling([[0.0, 5.0, 10.0], [-1.0, 3.0, -1.0]], [3, 1]).tolist() == [0.0, 0.625, 0.75]


def test_a_constant_scorer_counts_one_in_scaling_and_nothing_in_zscore() -> None:
    scores = [[0.1, 0.1, 0.1], [1.0, 2.0, 3.0]]  # the mean of three 0.1 is not 0.1
    assert scaling(scores).tolist() == [0.5, 0.75, 1.0]
    assert zscore(scores[:1]).tolist() == [0, 0, 0]
    np.testing.assert_allclose(zscore(scores), stats.zscore([1, 2, 3]) / 2)


def test_zscore_is_scipys_and_takes_weights() -> None:
    scores = np.random.default_rng(1).normal(size=(3, 7)) * [[1], [100], [1e-6]]
    weights = np.array([0.5, 2.0, 1.5])
    np.testing.assert_allclose(zscore(scores, weights), weights @ stats.zscore(scores, axis=1) / 4)
    assert np.isfinite(zscore([[1e300, -1e300, 0.0]])).all()


def test_rank_sum_is_scipys() -> None:
    scores = np.random.default_rng(2).integers(5, size=(3, 9)).astype(float)
    ranks = stats.rankdata(-scores, axis=1)
    np.testing.assert_allclose(rank_sum(scores), -ranks.mean(axis=0))
    np.testing.assert_allclose(rank_sum(scores, [1, 0, 3]), -(ranks[0] + 3 * ranks[2]) / 4)
    np.testing.assert_allclose(shared_ranks(scores[0]), stats.rankdata(scores[0]))


@pytest.mark.parametrize("rule", RULES)
def test_one_scorer_keeps_its_order(rule: str) -> None:
    scores = np.random.default_rng(3).normal(size=8)
    assert np.argsort(combine(rule, [scores])).tolist() == np.argsort(scores).tolist()


@pytest.mark.parametrize("rule", RULES)
def test_nan_takes_no_part(rule: str) -> None:
    """The others are combined as if the sample were not there."""
    scores = np.array([[9.0, 1.0, 2.0, NAN], [NAN, 3.0, 7.0, 9.0]])
    found = combine(rule, scores)
    assert np.isnan(found).tolist() == [True, False, False, True]
    assert found[1:3].tolist() == combine(rule, scores[:, 1:3]).tolist()
    assert winner(found) == 2


@pytest.mark.parametrize("rule", RULES)
def test_small_groups(rule: str) -> None:
    assert combine(rule, [[2.0], [5.0]]).shape == (1,)
    assert winner(combine(rule, [[2.0], [5.0]])) == 0
    assert combine(rule, np.empty((2, 0))).shape == (0,)
    assert np.isnan(combine(rule, [[NAN, 1.0], [1.0, NAN]])).all()


# The winner.


def test_winner() -> None:
    assert winner([NAN, 1.0, 3.0, 3.0, NAN]) == 2
    assert winner([-np.inf, NAN]) == 0
    assert winner([np.inf, 1.0]) == 0


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([], r"no sample to choose from \(N = 0\); generate at least one"),
        ([NAN, NAN], "all 2 scores are NaN, so no sample can win; check the scorer"),
    ],
)
def test_nobody_wins(scores: list[float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        winner(scores)


# Bad input.


def test_an_unknown_rule_is_refused_with_the_names() -> None:
    with pytest.raises(
        UserError, match="no rule is called 'mean'; use one of: ranking, rank_sum, scaling, zscore"
    ):
        combine("mean", [[1.0]])


def test_ranking_refuses_weights() -> None:
    with pytest.raises(UserError, match=r"no use for weights \[1, 2\]; use rank_sum, scaling or zscore"):
        combine("ranking", [[1.0], [2.0]], [1, 2])


@pytest.mark.parametrize("rule", ["rank_sum", "scaling", "zscore"])
@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0], r"weights \[1.0\] for 2 scorers; give one number a scorer"),
        ([1.0, -1.0], r"weights \[1.0, -1.0\] must be numbers of 0 or more"),
        ([0.0, 0.0], "not all of them 0"),
        ([1.0, NAN], r"weights \[1.0, nan\]"),
    ],
)
def test_bad_weights_are_refused(rule: str, weights: list[float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        combine(rule, [[1.0, 2.0], [3.0, 4.0]], weights)


@pytest.mark.parametrize("rule", ["scaling", "zscore"])
def test_infinite_scores_have_no_scale(rule: str) -> None:
    with pytest.raises(UserError, match=f"{rule} cannot scale the score -inf that scorer 2 gave sample 1"):
        combine(rule, [[1.0, 2.0], [3.0, -np.inf]])
    assert winner(ranking([[1.0, 2.0], [3.0, -np.inf]])) == 0


@pytest.mark.parametrize("rule", RULES)
def test_no_scorer_is_refused(rule: str) -> None:
    with pytest.raises(UserError, match="no scorer to combine; name at least one"):
        combine(rule, np.empty((0, 3)))
    with pytest.raises(ValueError, match=r"shape \(scorers, samples\), not \(3,\)"):
        combine(rule, [1.0, 2.0, 3.0])


def test_importing_is_light() -> None:
    code = "import sys, rewards.combine; print('torch' in sys.modules, 'scipy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False", "False"]
