"""Intervals over two crossed factors: what resampling rows and columns of a table says."""

from __future__ import annotations

import numpy as np
import pytest

from eval.stats import crossed_difference, crossed_estimate, crossed_means


def test_crossed_intervals_know_both_factors() -> None:
    """Effects of rows alone, of columns alone, and of both: variances add up, as of independent means."""
    rng = np.random.default_rng(0)
    rows, columns = rng.normal(size=(12, 1)), 2 * rng.normal(size=(1, 50))
    zeros = np.zeros((12, 50))
    spreads = [crossed_means(zeros + effect).std() for effect in (rows, columns, rows + columns)]
    assert spreads[0] == pytest.approx(rows.std() / 12**0.5, rel=0.1)
    assert spreads[1] == pytest.approx(columns.std() / 50**0.5, rel=0.1)
    assert spreads[2] ** 2 == pytest.approx(spreads[0] ** 2 + spreads[1] ** 2, rel=0.1)
    assert crossed_estimate(rows + columns).n == 50
    assert crossed_difference(zeros + 1, zeros).p < 0.001
    with pytest.raises(ValueError, match="do not pair"):
        crossed_difference(zeros, rows)
    with pytest.raises(ValueError, match="no units"):
        crossed_means(np.empty((0, 3)))
