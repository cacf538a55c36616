"""Noisy annotators: against Bernoulli counts, the published tables and scipy's integral."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from decoder.contracts import UserError
from rewards.annotation import (
    annotate,
    calibrate,
    expected_flip_rate,
    measured_flip_rate,
    normal_flip_rate,
    reward_scale,
    win_probability,
)

BETAS = (0.1, 0.3, 0.5, 0.7, 1, 3, 5, 10)
SCALED = (0.480, 0.441, 0.404, 0.370, 0.325, 0.164, 0.105, 0.055)  # scaled differences of deviation 1
INDEPENDENT = (0.472, 0.418, 0.369, 0.327, 0.275, 0.122, 0.076, 0.039)  # of deviation sqrt(2)


def gaps(n: int = 20_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def test_the_probability_is_the_formula() -> None:
    found = win_probability([2.0, -1.0, 0.0], beta=3.0, scale=1.5)
    assert found == pytest.approx([1 / (1 + math.exp(-4)), 1 / (1 + math.exp(2)), 0.5])


def test_no_noise_and_all_noise() -> None:
    differences = np.array([3.0, -1e-9, 0.0, 1e300, -1e300])
    np.testing.assert_array_equal(win_probability(differences, math.inf, 1.0), [1, 0, 0.5, 1, 0])
    np.testing.assert_array_equal(win_probability(differences, 0.0, 1.0), 0.5)
    says = annotate(differences, math.inf, 1.0, np.random.default_rng(0))
    assert says[[0, 1, 3, 4]].tolist() == [True, False, True, False]


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0, math.inf])
def test_labels_flip_as_often_as_expected(beta: float) -> None:
    """The count of flips is binomial: it stays within four standard errors of the expectation."""
    differences = gaps()
    expected = expected_flip_rate(differences, beta, scale=0.8)
    says = annotate(differences, beta, 0.8, np.random.default_rng(1))
    error = math.sqrt(expected * (1 - expected) / len(differences))
    assert measured_flip_rate(differences, says) == pytest.approx(expected, abs=4 * error)


def test_a_pair_wins_as_often_as_its_probability() -> None:
    for difference in (-1.0, 0.3, 0.0):
        says = annotate(np.full(10_000, difference), 1.5, 1.0, np.random.default_rng(2))
        chance = 1 / (1 + math.exp(-1.5 * difference))
        assert stats.binomtest(int(says.sum()), len(says), chance).pvalue > 1e-4


def test_annotate_is_the_same_for_a_seed() -> None:
    first, again, other = (annotate(gaps(), 1.0, 1.0, np.random.default_rng(s)) for s in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_equal_rewards_count_half() -> None:
    assert expected_flip_rate([0.0, 5.0], math.inf, 1.0) == 0.25
    assert measured_flip_rate([0.0, 5.0, -5.0, 1.0], [True, True, True, False]) == 2.5 / 4


def test_normal_flip_rate_is_the_table() -> None:
    assert [normal_flip_rate(beta) for beta in BETAS] == pytest.approx(SCALED, abs=0.00051)
    independent = [normal_flip_rate(beta, math.sqrt(2)) for beta in BETAS]
    assert independent == pytest.approx(INDEPENDENT, abs=0.00051)


def test_normal_flip_rate_is_the_papers_accuracy() -> None:
    """The accuracies in arXiv 2411.04991 for variances 1, 2, 4, 10, simulated: the last digit is chance."""
    accuracy = [1 - normal_flip_rate(1.0, math.sqrt(variance)) for variance in (1, 2, 4, 10)]
    assert accuracy == pytest.approx([0.6749, 0.7251, 0.7781, 0.8428], abs=0.00015)


@pytest.mark.parametrize("slope", [1e-6, 0.1, 1.0, 3.9, 4.1, 30.0, 1e4])
def test_normal_flip_rate_is_the_integral(slope: float) -> None:
    def density(y: float) -> float:  # in y = slope * z below 1, where the logistic is the wide one
        width = max(slope, 1.0)
        return 2 * stats.norm.pdf(y / width) / width / (1 + math.exp(slope * y / width))

    end = 40 * max(slope, 1.0) if slope < 1 else 40.0
    breaks = [1.0, 4.0, 10.0]
    expected = integrate.quad(density, 0, end, points=breaks, epsabs=1e-13, epsrel=1e-13)[0]
    assert normal_flip_rate(slope) == pytest.approx(expected, abs=1e-12)
    assert normal_flip_rate(1.0, slope) == normal_flip_rate(slope)


def test_normal_flip_rate_at_the_ends() -> None:
    assert normal_flip_rate(0.0) == pytest.approx(0.5, abs=1e-12)
    assert normal_flip_rate(math.inf) == 0.0


def test_normal_pairs_flip_at_the_normal_rate() -> None:
    rewards = np.random.default_rng(5).normal(2.0, 3.0, size=(100_000, 2))
    differences = rewards[:, 0] - rewards[:, 1]
    found = expected_flip_rate(differences, 1.0, reward_scale(rewards.ravel(), "std"))
    assert found == pytest.approx(normal_flip_rate(1.0, math.sqrt(2)), abs=0.002)


@settings(deadline=None, max_examples=80)
@given(
    differences=st.lists(st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6), min_size=1, max_size=30),
    equal=st.integers(0, 5),
    share=st.floats(1e-9, 1 - 1e-9),
    scale=st.floats(1e-3, 1e3),
)
def test_calibrate_round_trip(differences: list[float], equal: int, share: float, scale: float) -> None:
    """Any rate between what equal rewards force and one half is met, whatever the spread of differences."""
    every = differences + [0.0] * equal
    floor = equal / (2 * len(every))
    rate = floor + share * (0.5 - floor)
    if not floor < rate < 0.5:
        return
    beta = calibrate(every, rate, scale)
    assert beta > 0
    assert expected_flip_rate(every, beta, scale) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.25, 0.38, 0.49])
def test_calibrated_labels_flip_at_the_rate(rate: float) -> None:
    differences = gaps()
    beta = calibrate(differences, rate, 2.0)
    says = annotate(differences, beta, 2.0, np.random.default_rng(6))
    assert measured_flip_rate(differences, says) == pytest.approx(rate, abs=4 * math.sqrt(rate / 20_000))


def test_calibrate_is_the_inverse_of_the_normal_rate() -> None:
    assert calibrate(gaps(400_000), normal_flip_rate(3.0), 1.0) == pytest.approx(3.0, rel=0.02)


def test_the_scale_of_rewards() -> None:
    rewards = np.array([1.0, 2.0, 4.0])
    assert reward_scale(rewards, "std") == reward_scale(rewards) == pytest.approx(np.std(rewards))
    assert reward_scale(rewards, 6.0) == 6.0
    assert reward_scale([1.0, 1.0], 2) == 2.0


def test_speed() -> None:
    """A million pairs calibrated and labelled, on a busy machine too."""
    differences = gaps(1_000_000)
    began = time.process_time()
    annotate(differences, calibrate(differences, 0.25, 1.0), 1.0, np.random.default_rng(0))
    assert time.process_time() - began < 3


@pytest.mark.parametrize("rate", [0.0, 0.5, -0.1, 0.7, math.nan])
def test_rates_outside_are_refused(rate: float) -> None:
    with pytest.raises(UserError, match=r"not between 0 and 0\.5"):
        calibrate([1.0], rate, 1.0)


def test_rates_below_what_equal_rewards_force_are_refused() -> None:
    with pytest.raises(UserError, match=r"0\.1 is out of reach: 50\.0% .* alone flip 0\.2500"):
        calibrate([0.0, 1.0], 0.1, 1.0)
    with pytest.raises(UserError, match=r"100\.0%"):
        calibrate([0.0], 0.4, 1.0)


@pytest.mark.parametrize("beta", [-1.0, math.nan])
def test_a_negative_beta_is_refused(beta: float) -> None:
    with pytest.raises(UserError, match="beta is"):
        win_probability([1.0], beta, 1.0)
    with pytest.raises(UserError, match="beta is"):
        normal_flip_rate(beta)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_unusable_scales_are_refused(scale: float) -> None:
    for call in (
        lambda: win_probability([1.0], 1.0, scale),
        lambda: calibrate([1.0], 0.2, scale),
        lambda: normal_flip_rate(1.0, scale),
        lambda: reward_scale([1.0, 2.0], scale),
    ):
        with pytest.raises(UserError, match="scale is"):
            call()


def test_scales_that_say_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="'mean' is not known"):
        reward_scale([1.0, 2.0], "mean")
    for rewards in ([3.0, 3.0], [0.1] * 3):
        with pytest.raises(UserError, match="all golden rewards are equal"):
            reward_scale(rewards)
    with pytest.raises(UserError, match="golden reward 1 is nan"):
        reward_scale([1.0, math.nan])


def test_unusable_differences_are_refused() -> None:
    with pytest.raises(UserError, match="golden difference 2 is inf"):
        expected_flip_rate([1.0, 2.0, math.inf], 1.0, 1.0)
    with pytest.raises(UserError, match=r"shape \(1, 2\)"):
        win_probability([[1.0, 2.0]], 1.0, 1.0)
    with pytest.raises(UserError, match="no pair"):
        expected_flip_rate([], 1.0, 1.0)
    with pytest.raises(UserError, match="2 golden differences and 1 labels"):
        measured_flip_rate([1.0, 2.0], [True])
