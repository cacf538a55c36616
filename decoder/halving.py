"""Which samples of a prompt keep competing while they are drawn: rules on running scores alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError


def survivors(scores: NDArray[Any], alive: NDArray[np.bool_], keep: float) -> NDArray[np.bool_]:
    """Return (N,) bool: the best ceil(keep * n) of the n samples alive, ties to the lowest index.

    scores: (N,) running scores, higher better, NaN below every number; a finished sample's final one.
    alive: (N,) bool, who competed so far. keep: above 0, at most 1. Raises UserError for another keep.
    """
    if not 0 < keep <= 1:
        raise UserError(f"cannot keep a share of {keep:g} of the samples; give one above 0, at most 1")
    count = math.ceil(keep * int(alive.sum()) - 1e-9)  # 0.28 * 25 is more than 7 in floats
    order = np.argsort(-scores, kind="stable")  # NaN goes last
    kept = np.zeros(len(scores), dtype=bool)
    kept[order[alive[order]][:count]] = True
    return kept


def is_decided(scores: NDArray[Any], alive: NDArray[np.bool_], margin: float) -> bool:
    """Return whether the leader of the samples alive is ahead of the second by `margin` or more.

    True for one sample alone, unless its score is NaN. False while any score alive is NaN: what has
    no score yet may still win. Raises UserError for a margin that is negative or no number.
    """
    if not margin >= 0:
        raise UserError(f"the leader cannot be ahead by {margin:g}; give a margin of 0 or more")
    ranked = np.sort(scores[alive])[::-1]
    if not len(ranked) or np.isnan(ranked).any():
        return False
    if len(ranked) == 1:
        return True
    first, second = float(ranked[0]), float(ranked[1])
    return (0.0 if first == second else first - second) >= margin  # inf - inf would be NaN
