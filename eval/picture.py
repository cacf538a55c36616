"""The trade-off picture: one panel an attribute, fluency upwards, one curve a method."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from eval.curves import RELATIVE_TIME, Axis, Curve, Spot, check_measures, spots
from eval.legend import key, place_legend
from eval.picture_labels import Labels

if TYPE_CHECKING:  # loaded when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GUIDE = 1.10  # times the unsteered fluency: the price that steering should not pass
# Okabe and Ito's colours, without yellow (too pale on white) and black (the unsteered star).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colours, so that 42 curves differ
DASHES: tuple[Any, ...] = (
    "-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.6, 1.2, 1.6)), (0, (10, 2)), (0, (3, 1, 1, 1, 1, 1))
)  # fmt: skip
INK, GREY, PALE = "#222222", "#5F5F5F", "#B0B0B0"
TIMES = "\N{MULTIPLICATION SIGN}"
WIDTH, ROW_HEIGHT, PANELS_A_ROW = 9.375, 4.3, 3  # inches; 9.375 are 900 px, where 9 pt stay 9 pt
STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": 10.5,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "tiller",
}


@dataclass(frozen=True, slots=True)
class Look:
    """What tells a curve from the others, three times over; `says_cost` if its points differ in cost."""

    colour: str
    marker: str
    dashes: Any
    says_cost: bool

    @property
    def ink(self) -> tuple[float, ...]:
        """Return the colour darkened until small text of it can be read on white."""
        return tuple(int(self.colour[i : i + 2], 16) / 255 * 0.6 for i in (1, 3, 5))


def look_of(place: int) -> Look:
    """Return the look of a line by its place among others, 0 the first."""
    turn = place // len(COLOURS)  # colours and dashes are as many: they must not be paired twice the same
    dashes = DASHES[(place + 1 + turn) % len(DASHES)]
    return Look(COLOURS[place % len(COLOURS)], MARKERS[(place + 1) % len(MARKERS)], dashes, False)


def draw(
    curves: Sequence[Curve],
    attributes: Sequence[Axis],
    fluency: Axis,
    target: Path | str | IO[bytes],
    *,
    file_format: str | None = None,
) -> None:
    """Write the picture: x an attribute, y fluency, points joined in order of beta, 95 % bands.

    target: a path ending in .svg or .png, or a binary stream, which gets SVG unless `file_format` says
    "png". y is logarithmic where its values span more than a factor of 3. A point without a finite
    figure is left out. Equal curves give equal bytes. Raises UserError for another ending, no point,
    no attribute, a measure that no point has, and a missing matplotlib.
    """
    kind = file_format or (Path(target).suffix[1:].lower() if isinstance(target, Path | str) else "svg")
    if kind not in ("svg", "png"):
        raise UserError(
            f"cannot draw {str(target)!r}: the picture is SVG or PNG; end its name in .svg or .png"
        )
    if not attributes:
        raise UserError("no attribute to draw against fluency; name at least one measure")
    check_measures(curves, [axis.measure for axis in (*attributes, fluency)])
    silent = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else {}
    with style().context(["default", STYLE]):
        figure = _figure(curves, attributes, fluency)
        figure.savefig(target, format=kind, dpi=192, metadata=silent)


def inline_svg(curves: Sequence[Curve], attributes: Sequence[Axis], fluency: Axis) -> str:
    """Return the picture as an <svg> element for an HTML page, without XML head and comments."""
    buffer = io.BytesIO()
    draw(curves, attributes, fluency, buffer)
    text = buffer.getvalue().decode("utf-8")
    return re.sub(r"<!--.*?-->\s*", "", text[text.index("<svg") :], flags=re.DOTALL)


def style() -> Any:
    """Return matplotlib's style module, whose "default" is the same whatever the user's own file says."""
    try:
        from matplotlib import style
    except ImportError:
        raise UserError("the picture needs matplotlib: pip install 'tiller-lm[eval]'") from None
    return style


def _figure(curves: Sequence[Curve], attributes: Sequence[Axis], fluency: Axis) -> Figure:
    from matplotlib.figure import Figure

    columns = min(len(attributes), PANELS_A_ROW)
    rows = math.ceil(len(attributes) / columns)
    figure = Figure(figsize=(WIDTH, 0.6 + ROW_HEIGHT * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    looks = _looks(curves)
    drawn = [[spots(curve, attribute, fluency) for curve in curves] for attribute in attributes]
    _scale(panels[0], [spot for panel in drawn for found in panel for spot in found])
    for panel, attribute, found in zip(panels, attributes, drawn, strict=False):
        panel.set_xlabel(_axis_text(attribute), parse_math=False)
        _draw_panel(panel, found, looks, fluency)
    for panel in panels[len(attributes) :]:
        panel.remove()
    for panel in panels[::columns]:
        panel.set_ylabel(_axis_text(fluency), parse_math=False)
    _add_legend(figure, curves, looks)
    figure.draw_without_rendering()  # settles where everything lies
    figure.set_layout_engine("none")
    for panel, found in zip(panels, drawn, strict=False):
        _label_panel(panel, found, looks, fluency)
    return figure


def _looks(curves: Sequence[Curve]) -> list[Look]:
    """Return each curve's look; one that is never steered is a star alone and uses up none."""
    found, used = [], 0
    for curve in curves:
        times = curve.times()
        colour, marker, dashes = (each[used % len(each)] for each in (COLOURS, MARKERS, DASHES))
        found.append(Look(colour, marker, dashes, bool(times) and max(times) > 1.25 * min(times)))
        used += curve.is_steered
    return found


def _axis_text(axis: Axis) -> str:
    """Return the label with an arrow to the better end; turned upright, the left arrow points down."""
    return f"{axis.label}  (better →)" if axis.better == "higher" else f"(← better)  {axis.label}"


def _scale(panel: Axes, drawn: Sequence[Spot]) -> None:
    """Make y logarithmic where its values span much."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    values = [spot.y.value for spot in drawn]
    if not values or min(y for spot in drawn for _, y in spot.corners()) <= 0:
        return
    span = max(values) / min(values)
    if span > 3:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span > 15 else (1, 1.5, 2, 3, 4, 5, 7)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_panel(panel: Axes, drawn: Sequence[list[Spot]], looks: Sequence[Look], fluency: Axis) -> None:
    panel.grid(color="#EEEEEE", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.margins(0.09, 0.08)
    for found, look in zip(drawn, looks, strict=True):
        _draw_curve(panel, found, look)
    if not any(drawn):
        panel.text(0.5, 0.5, "not scored", ha="center", color=GREY, transform=panel.transAxes)
    for spot in _unsteered(drawn):
        panel.plot(spot.x.value, spot.y.value, "*", ms=15, mfc="black", mec="white", mew=0.8, zorder=6)
    if fluency.better == "lower":
        for spot in _unsteered(drawn)[:1]:
            panel.axhline(GUIDE * spot.y.value, color=PALE, linewidth=1.0, dashes=(6, 3), zorder=1.5)


def _draw_curve(panel: Axes, found: Sequence[Spot], look: Look) -> None:
    """Draw the band, the joined points, and the two intervals of each."""
    xs, ys = [spot.x.value for spot in found], [spot.y.value for spot in found]
    panel.plot(xs, ys, color=look.colour, linestyle=look.dashes, linewidth=1.8, zorder=3)
    _draw_band(panel, found, look.colour)
    for spot in found:
        for ends in (spot.corners()[:2], spot.corners()[2:]):
            panel.plot(*zip(*ends, strict=True), color=look.colour, linewidth=1.0, alpha=0.5, zorder=2)
        if spot.point.beta:
            marker: dict[str, Any] = {"ms": 7, "mfc": look.colour, "mec": "white", "mew": 0.8, "zorder": 4}
            panel.plot(spot.x.value, spot.y.value, look.marker, **marker)


def _draw_band(panel: Axes, found: Sequence[Spot], colour: str) -> None:
    """Fill what the intervals sweep from point to point: a band right for any slope of the curve."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    corners = [panel.transScale.transform(spot.corners()) for spot in found]  # straight also on a log axis
    pairs = [np.vstack(pair) for pair in pairwise(corners)] or corners
    hulls = [panel.transScale.inverted().transform(_hull(pair)) for pair in pairs]
    if hulls:  # one path of outlines that turn the same way, so that overlaps are not darker
        whole = Outline.make_compound_path(*[Outline([*each, each[0]], closed=True) for each in hulls])
        panel.add_patch(PathPatch(whole, facecolor=colour, alpha=0.13, linewidth=0, zorder=1))


def _hull(corners: NDArray[Any]) -> NDArray[Any]:
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


def _label_panel(panel: Axes, drawn: Sequence[list[Spot]], looks: Sequence[Look], fluency: Axis) -> None:
    """Name the unsteered points, the guide and every steered point, where it covers least."""
    labels = Labels(panel, drawn)
    stars = _unsteered(drawn)
    if stars and fluency.better == "lower":
        labels.along(GUIDE * stars[0].y.value, f"{GUIDE:.2f} {TIMES} unsteered", GREY)
    for spot in stars:
        labels.beside(spot.at, "unsteered", "black")
    for found, look in zip(drawn, looks, strict=True):
        for spot in found:
            if spot.point.beta:
                labels.beside(spot.at, spot.point.label + _point_cost(spot, look), look.ink)


def _point_cost(spot: Spot, look: Look) -> str:
    """Return what this point costs, where the points of its curve differ in it."""
    time = spot.point.cost.get(RELATIVE_TIME, math.nan)
    return f" ({TIMES}{time:.3g})" if look.says_cost and math.isfinite(time) else ""


def _unsteered(drawn: Sequence[list[Spot]]) -> list[Spot]:
    """Return the unsteered points, one of those that lie at the same place."""
    found = {spot.at: spot for curve in drawn for spot in curve if not spot.point.beta}
    return list(found.values())


def _add_legend(figure: Figure, curves: Sequence[Curve], looks: Sequence[Look]) -> None:
    from matplotlib.lines import Line2D

    keys, names = [], []
    for curve, look in zip(curves, looks, strict=True):
        if curve.is_steered:
            keys.append(key(look, 7))
            names.append(textwrap.fill(f"{curve.name}{_cost_text(curve)}", 100))
    if len(names) < len(curves) or any(not point.beta for curve in curves for point in curve.points):
        keys.append(Line2D([], [], color="black", linestyle="", marker="*", ms=13))
        names.append("unsteered")
    place_legend(figure, keys, names)


def _cost_text(curve: Curve) -> str:
    """Return what the curve's steered points cost, as " (time x1.02)"; "" if nobody measured it."""
    ends = [f"{time:.3g}" for time in (min(curve.times(), default=0), max(curve.times(), default=0))]
    if not curve.times():
        return ""
    return f" (time {TIMES}{' to '.join(dict.fromkeys(ends))})"
