"""Labels as a noisy annotator gives them: how often they contradict the golden reward, and by what beta.

The annotator of the papers (arXiv 2502.04357, 2411.04991; Bradley and Terry 1952) says that a beats b with
probability sigma(beta * (r_a - r_b) / scale). beta = inf has no noise, beta = 0 tosses a coin. A label is
flipped where it names the one with the lower golden reward; two equal rewards count as half a flip.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decoder.contracts import UserError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

STD = "std"  # the scale that the data give
CONVERGED = 1e-12  # relative step of beta
REACH = 40.0  # sigma(-40) is 4e-18
WIDEST = 10.0  # standard deviations; beyond them the normal density holds 2e-23
NODES = 200


def reward_scale(rewards: ArrayLike, scale: float | str = STD) -> float:
    """Return what golden differences are divided by: the standard deviation of `rewards` (M,), or a number.

    scale: "std" for the deviation of all golden rewards (arXiv 2502.04357), or a number above 0, such as
    the 6.0 and 1.0 of arXiv 2411.04991. Raises UserError for another scale and for rewards all equal.
    """
    if isinstance(scale, str):
        if scale != STD:
            raise UserError(f"the scale {scale!r} is not known; give {STD!r} or a number above 0")
        golden = _finite(rewards, "reward")
        if not len(golden) or np.ptp(golden) == 0:  # their computed deviation need not be exactly 0
            raise UserError("all golden rewards are equal, so they give no scale; give a number")
        return float(golden.std())
    _check_scale(scale)
    return float(scale)


def win_probability(differences: ArrayLike, beta: float, scale: float) -> Floats:
    """Return (n,) float64: P(the label names the first of each pair) = sigma(beta * difference / scale).

    differences: (n,) golden reward of the first minus that of the second; 1/2 for 0, whatever beta.
    Raises UserError for a beta below 0, a scale that is not above 0 and a difference that is not finite.
    """
    strength = _strength(_finite(differences, "difference"), beta, scale)
    return np.asarray(np.exp(-np.logaddexp(0, -strength)), dtype=float)


def annotate(differences: ArrayLike, beta: float, scale: float, rng: np.random.Generator) -> Bools:
    """Return (n,) bool, True where the annotator names the first of the pair; see `win_probability`."""
    chance = win_probability(differences, beta, scale)
    return np.asarray(rng.random(len(chance)) < chance)


def measured_flip_rate(differences: ArrayLike, first_wins: ArrayLike) -> float:
    """Return the share of labels (n,) bool that contradict the golden differences (n,); equal ones count 1/2.

    Raises UserError for no pair, a difference that is not finite and labels of other pairs.
    """
    gaps, says = _pairs(differences), np.asarray(first_wins, dtype=bool)
    if gaps.shape != says.shape:
        raise UserError(f"{len(gaps)} golden differences and {says.size} labels; give one label a pair")
    return float(np.where(gaps == 0, 0.5, says != (gaps > 0)).mean())


def expected_flip_rate(differences: ArrayLike, beta: float, scale: float) -> float:
    """Return the exact mean over the pairs (n,) of 1 - sigma(beta * |difference| / scale).

    Raises UserError as `win_probability` does, and for no pair.
    """
    return float(win_probability(-np.abs(_pairs(differences)), beta, scale).mean())


def normal_flip_rate(beta: float, std: float = 1.0) -> float:
    """Return the flip rate over pairs whose scaled difference is normal with mean 0 and this deviation.

    std: in units of the scale; sqrt(2) for two independent rewards scaled by their own deviation. The
    integral 2 * int_0^inf phi(z) sigma(-beta * std * z) dz by Gauss-Legendre quadrature: the half line alone,
    because |z| has a kink at 0 that no Gauss-Hermite rule can follow. Absolute error below 1e-12.
    """
    _check_beta(beta)
    _check_scale(std)
    slope = beta * std
    if math.isinf(slope):
        return 0.0
    end = min(WIDEST, REACH / slope) if slope else WIDEST
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    z = end * (nodes + 1) / 2
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return float(end * (weights @ (density * np.exp(-np.logaddexp(0, slope * z)))))


def calibrate(differences: ArrayLike, flip_rate: float, scale: float) -> float:
    """Return the beta whose `expected_flip_rate` over these pairs (n,) is `flip_rate`.

    Newton's method from beta = 0: the rate is convex and falls in beta, so that it closes in from below.
    Raises UserError for a rate outside (0, 0.5), and for one that pairs with equal rewards put out of reach.
    """
    if not 0 < flip_rate < 0.5:
        raise UserError(
            f"the flip rate {flip_rate} is not between 0 and 0.5; beta inf has no noise, 0 tosses coins"
        )
    _check_scale(scale)
    gaps = np.abs(_pairs(differences))
    apart = gaps[gaps > 0]
    floor = (len(gaps) - len(apart)) / (2 * len(gaps))
    if not flip_rate > floor:
        raise UserError(
            f"the flip rate {flip_rate} is out of reach: {2 * floor:.1%} of the pairs have equal golden "
            f"rewards, which alone flip {floor:.4f}; ask for more or leave these pairs out"
        )
    wanted = (flip_rate - floor) * len(gaps) / len(apart)
    largest = float(apart.max())
    return _solve(apart / largest, wanted) / largest * scale


def beta_of(differences: ArrayLike, flip_rate: float, scale: float) -> float:
    """Return the beta of a flip rate in [0, 0.5]: inf at 0, 0 at 0.5, else as `calibrate`."""
    ends = {0.0: np.inf, 0.5: 0.0}
    return ends[flip_rate] if flip_rate in ends else calibrate(differences, flip_rate, scale)


def _solve(gaps: Floats, wanted: float) -> float:
    """Return the x at which the mean of sigma(-x * gaps) is `wanted`."""
    x = 0.0
    while True:
        flips = np.exp(-np.logaddexp(0, x * gaps))
        slope = float((gaps * flips * (1 - flips)).mean())
        step = (float(flips.mean()) - wanted) / slope
        x += step
        if not step > CONVERGED * x:  # it comes from below: a step back is rounding
            return x


def _strength(differences: Floats, beta: float, scale: float) -> Floats:
    """Return beta * differences / scale, where equal rewards give 0 for an infinite beta too."""
    _check_beta(beta)
    _check_scale(scale)
    strength = np.zeros_like(differences)
    return np.multiply(differences, beta / scale, out=strength, where=differences != 0)


def _pairs(differences: ArrayLike) -> Floats:
    gaps = _finite(differences, "difference")
    if not len(gaps):
        raise UserError("no pair to measure flips on (n = 0); give at least one")
    return gaps


def _finite(values: ArrayLike, what: str) -> Floats:
    """Return (n,) float64; UserError that names the first number that is not finite."""
    found = np.asarray(values, dtype=float)
    if found.ndim != 1:
        raise UserError(f"{what}s of shape {found.shape}; give one number each, (n,)")
    if not np.isfinite(found).all():
        bad = int(np.flatnonzero(~np.isfinite(found))[0])
        raise UserError(f"golden {what} {bad} is {found[bad]}; give a finite number or leave it out")
    return found


def _check_beta(beta: float) -> None:
    if not beta >= 0:
        raise UserError(f"the annotator's beta is {beta}; give 0 (coin tosses) or more, inf for no noise")


def _check_scale(scale: float) -> None:
    if not 0 < scale < math.inf:
        raise UserError(f"the scale is {scale}; give a finite number above 0")
