"""Labels in a picture, placed so that they cover neither lines nor each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.curves import Spot

if TYPE_CHECKING:  # loaded when something is drawn
    from matplotlib.axes import Axes

GAPS = (7.0, 11.0, 16.0, 23.0, 32.0, 44.0)  # pixels from an anchor to its label
LEADS = 12.0  # a gap from which a line leads to the label
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

    def place(self, places: Places, size: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        """Return gap and centre (2,) where a label of this size (2,) covers least; that room is taken now."""
        half = size / 2
        centres = places.anchors + places.directions * (half + places.gaps[:, None])
        boxes = np.hstack([centres - half, centres + half])
        best = int(np.argmin(self._cost(boxes) + places.gaps / 5))
        self.taken.append(boxes[best])
        return float(places.gaps[best]), centres[best]

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


class Labels:
    """Writes the labels of one panel, whose limits and size must not change afterwards."""

    def __init__(self, panel: Axes, drawn: Sequence[Sequence[Spot]]) -> None:
        """drawn: the curves that the labels should leave visible."""
        covered = [self._covered(panel, curve) for curve in drawn if curve]
        self.panel = panel
        self.room = Room(np.array(panel.bbox.extents), np.vstack([*covered, np.empty((0, 2))]))

    def beside(self, at: tuple[float, float], text: str, colour: Any) -> None:
        """Write beside a point, given as data; a thin line leads to a label that had to go far."""
        anchor = self.panel.transData.transform(at)
        turns = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
        directions = np.stack([np.cos(turns), np.sin(turns)], axis=-1)
        every = np.repeat(GAPS, DIRECTIONS)
        places = Places(np.tile(anchor, (len(every), 1)), np.tile(directions, (len(GAPS), 1)), every)
        gap, end = self._write(text, colour, places)
        if gap > LEADS:
            axes = self.panel.transAxes
            (x, y), (x_end, y_end) = axes.inverted().transform([anchor, end])
            line = {"color": colour, "linewidth": 0.6, "alpha": 0.6, "zorder": 3.4, "transform": axes}
            self.panel.plot([x, x_end], [y, y_end], **line)

    def along(self, level: float, text: str, colour: Any) -> None:
        """Write just above or below a level line, given as data; other labels leave it visible."""
        y = self.panel.transData.transform((self.panel.get_xlim()[0], level))[1]
        xs = np.linspace(self.panel.bbox.x0 + 64, self.panel.bbox.x1 - 64, 9)
        anchors = np.stack([xs, np.full(9, y)], axis=-1)
        up = np.tile([0.0, 1.0], (9, 1))
        self._write(text, colour, Places(np.tile(anchors, (2, 1)), np.vstack([up, -up]), np.ones(18)))
        self.room = replace(self.room, drawn=np.vstack([self.room.drawn, lines(anchors, 8.0)]))

    def _write(self, text: str, colour: Any, places: Places) -> tuple[float, NDArray[Any]]:
        """Write the text; return its gap and its centre (2,) in pixels."""
        pale = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.6}
        note = self.panel.text(
            0.5, 0.5, text, color=colour, fontsize=9, parse_math=False, zorder=3.5, bbox=pale
        )
        note.set(transform=self.panel.transAxes, ha="center", va="center")
        gap, centre = self.room.place(places, np.array(note.get_window_extent().size))
        x, y = self.panel.transAxes.inverted().transform(centre)
        note.set_position((float(x), float(y)))
        return gap, centre

    @staticmethod
    def _covered(panel: Axes, curve: Sequence[Spot]) -> NDArray[Any]:
        """Return samples (N, 2) of a curve's line, markers and, fewer, intervals."""
        middle = panel.transData.transform([spot.at for spot in curve])
        ends = [panel.transData.transform(spot.corners()) for spot in curve]
        bars = [lines(pair, 8.0) for four in ends for pair in (four[:2], four[2:])]
        return np.vstack([lines(middle), markers(middle), *bars])


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
