"""The augmentation ratio: how many pairs are made of how many, and of which."""

from __future__ import annotations

import numpy as np

from rewards.augment_plan import plan


def test_a_plan_says_what_the_ratio_is() -> None:
    found = plan("lens", 1000, 4, "cartesian", None, synthesises=True)
    assert (found.n_pairs, found.n_synthetic, found.ratio) == (4000, 3000, 4)
    assert np.bincount(found.sources).tolist() == [3] * 1000
    assert plan("lens", 10, 1.5, "own", None, synthesises=True).sources.tolist() == [0, 2, 4, 6, 8]
