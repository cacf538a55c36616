"""The geometry of the picture: bands around curves, and places for labels that cover nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

GAPS = (7.0, 11.0, 16.0, 23.0, 32.0, 44.0)  # pixels from an anchor to its label
DIRECTIONS = 16


@dataclass(frozen=True, slots=True)
class Places:
    """C places that a label may take: (C, 2) anchors, (C, 2) unit directions from them, (C,) gaps, pixels."""

    anchors: NDArray[Any]
    directions: NDArray[Any]
    gaps: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Room:
    """One panel, in pixels.

    frame: (4,) x0, y0, x1, y1 that labels must keep to. drawn: (N, 2) samples of what should stay
    visible. taken: (4,) boxes of the labels placed so far.
    """

    frame: NDArray[Any]
    drawn: NDArray[Any]
    taken: list[NDArray[Any]] = field(default_factory=list)

    def place(self, places: Places, size: NDArray[Any]) -> NDArray[Any]:
        """Return the centre (2,) where a label of this size (2,) covers least, and keep that room for it."""
        half = size / 2
        centres = places.anchors + places.directions * (half + places.gaps[:, None])
        boxes = np.hstack([centres - half, centres + half])
        best = int(np.argmin(self._cost(boxes) + places.gaps / 10))
        self.taken.append(boxes[best])
        centre: NDArray[Any] = centres[best]
        return centre

    def _cost(self, boxes: NDArray[Any]) -> NDArray[Any]:
        """Return (C,): what is covered, labels and the edge of the panel before lines."""
        low, high = boxes[:, None, :2], boxes[:, None, 2:]  # (C, 1, 2)
        covered = ((low < self.drawn) & (self.drawn < high)).all(-1).sum(-1)
        others = np.array(self.taken).reshape(-1, 4)
        shared = np.minimum(high, others[:, 2:]) - np.maximum(low, others[:, :2])
        overlap = np.prod(shared.clip(min=0), axis=-1).sum(-1)
        outside = (self.frame[:2] - boxes[:, :2]).clip(min=0) + (boxes[:, 2:] - self.frame[2:]).clip(min=0)
        cost: NDArray[Any] = covered + overlap + 20 * outside.sum(-1)
        return cost


def around(anchor: NDArray[Any]) -> Places:
    """Return the places all around a point (2,), the nearest first."""
    turns = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    directions = np.stack([np.cos(turns), np.sin(turns)], axis=-1)
    gaps = np.repeat(GAPS, DIRECTIONS)
    return Places(np.tile(anchor, (len(gaps), 1)), np.tile(directions, (len(GAPS), 1)), gaps)


def along(left: NDArray[Any], right: NDArray[Any]) -> Places:
    """Return the places just above and below a level line, given its ends (2,)."""
    anchors = np.linspace(left, right, 9)
    up = np.tile([0.0, 1.0], (len(anchors), 1))
    return Places(np.vstack([anchors] * 2), np.vstack([up, -up]), np.full(2 * len(anchors), 1.0))


def lines(corners: NDArray[Any], step: float = 4.0) -> NDArray[Any]:
    """Return points about `step` apart along the line through (N, 2) corners."""
    found = [corners]
    for start, end in pairwise(corners):
        count = max(2, int(np.hypot(*(end - start)) / step))
        found.append(np.linspace(start, end, count))
    return np.vstack(found)


def markers(centres: NDArray[Any], radius: float = 5.0) -> NDArray[Any]:
    """Return nine points on each marker of (N, 2) centres."""
    grid = np.stack(np.meshgrid([-radius, 0, radius], [-radius, 0, radius]), axis=-1).reshape(-1, 2)
    found: NDArray[Any] = (centres[:, None] + grid).reshape(-1, 2)
    return found


def hull(corners: NDArray[Any]) -> NDArray[Any]:
    """Return the convex hull (M, 2) of (N, 2) anticlockwise: Andrew's monotone chain, 1979."""

    def chain(points: list[Any]) -> list[Any]:
        kept: list[Any] = []
        for point in points:
            while len(kept) > 1 and np.linalg.det([kept[-1] - kept[-2], point - kept[-2]]) <= 0:
                kept.pop()
            kept.append(point)
        return kept[:-1] or kept

    order = [corners[i] for i in np.lexsort(corners.T[::-1])]
    return np.array(chain(order) + chain(order[::-1]))
