"""Two pictures of choosing among samples: BoN@k over k, and what early dropping saves and keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from eval.curves import Point, Spot, figure_text
from eval.dropping_curve import DroppingPoint
from eval.legend import add_legend
from eval.picture import COLOURS, DASHES, GREY, MARKERS, PALE, STYLE, WIDTH, Look, style
from eval.picture_labels import Labels
from eval.selection import BestOfCurve
from eval.stats import Estimate

if TYPE_CHECKING:  # loaded when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from decoder.dropping import DropSchedule

BANDS = 3  # curves whose intervals can be told apart
TARGET = (0.55, 0.95)  # at most this share of the tokens, at least this share of the gain
REACH = 0.3  # of the gain: how far a long interval may stretch the axis beyond the points
HEIGHT = 5.2  # inches
LINE = 1.35  # from one label to the next, in font sizes
FORMATS = ("svg", "png", "pdf")
UNDATED = {
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
    "png": {},
}
Target = Path | str | IO[bytes]
Label = tuple[str, float, float, Any]  # text, x and y of what it names, colour


def draw_best_of(
    curves: Mapping[str, BestOfCurve],
    oracle: BestOfCurve,
    target: Target,
    *,
    gold: str = "accuracy",
    bands: int = BANDS,
    file_format: str | None = None,
) -> None:
    """Write BoN@k over k, one line a scorer, between the oracle and BoN@1, named at their ends.

    curves: scorer -> its curve; the first `bands` get a 95 % band. oracle: the curve of gold itself, whose
    k = 1, where it has one, is drawn as BoN@1. gold: what the y axis says of the chosen sample. target: a
    path ending in .svg, .png or .pdf, or a binary stream, which gets `file_format` (SVG by default). Equal
    curves give equal bytes. Raises UserError for another ending, no curve and a missing matplotlib.
    """
    if not curves:
        raise UserError("no scorer to draw; give at least one curve")
    _save(lambda: _best_of(curves, oracle, gold, bands), target, file_format)


def draw_dropping(
    series: Mapping[str, Sequence[DroppingPoint]], target: Target, *, file_format: str | None = None
) -> None:
    """Write gain kept over tokens used, a point a schedule with both 95 % intervals, and the target corner.

    series: name -> points, joined from few tokens to many. The full run is the star at 100 %. A point
    without a gain is left out. target, errors: as `draw_best_of`.
    """
    if not any(series.values()):
        raise UserError("no schedule to draw; give at least one point")
    _save(lambda: _dropping(series), target, file_format)


def _save(build: Callable[[], Figure], target: Target, file_format: str | None) -> None:
    kind = file_format or (Path(target).suffix[1:].lower() if isinstance(target, Path | str) else "svg")
    if kind not in FORMATS:
        raise UserError(f"cannot draw {str(target)!r} as {kind!r}; end its name in .svg, .png or .pdf")
    with style().context(["default", STYLE]):
        build().savefig(target, format=kind, dpi=192, metadata=UNDATED[kind])


# BoN@k over k.


def _best_of(curves: Mapping[str, BestOfCurve], oracle: BestOfCurve, gold: str, bands: int) -> Figure:
    figure, panel = _panel()
    found: list[Label] = []
    start = dict(zip(oracle.ks, oracle.estimates, strict=True)).get(1)
    if start and math.isfinite(start.value):
        panel.axhline(start.value, color=PALE, linewidth=1.2, dashes=(6, 3), zorder=1.5)
        found.append((f"BoN@1  {figure_text(start.value)}", max(oracle.ks), start.value, GREY))
    drawn = [(name, curve, _look(i), i < bands) for i, (name, curve) in enumerate(curves.items())]
    missing = [name for name, curve, *_ in drawn if not _known(curve)]
    for name, curve, look, band in [*drawn, ("oracle", oracle, Look("#000000", "*", "-", False), False)]:
        found += _draw_line(panel, name, curve, look, band)
    _label_axes(panel, curves, oracle, gold, missing)
    _label_ends(figure, panel, found)
    return figure


def _draw_line(panel: Axes, name: str, curve: BestOfCurve, look: Look, band: bool) -> list[Label]:
    """Draw the points that are known; return the label of the last."""
    known = _known(curve)
    if not known:
        return []
    ks, values = [k for k, _ in known], [estimate.value for _, estimate in known]
    marker: dict[str, Any] = {"marker": look.marker, "ms": 9 if look.marker == "*" else 5.5, "mec": "white"}
    panel.plot(
        ks, values, color=look.colour, linestyle=look.dashes, linewidth=1.8, mew=0.6, zorder=3, **marker
    )
    if band:
        low, high = zip(*(estimate.interval for _, estimate in known), strict=True)
        panel.fill_between(ks, low, high, color=look.colour, alpha=0.13, linewidth=0, zorder=1)
    return [(f"{name}  {figure_text(values[-1])}", ks[-1], values[-1], look.ink)]


def _label_axes(
    panel: Axes, curves: Mapping[str, BestOfCurve], oracle: BestOfCurve, gold: str, missing: Sequence[str]
) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    largest = max(k for curve in (*curves.values(), oracle) for k in curve.ks)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator([2**i for i in range(largest.bit_length())]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    note = f"\nnot scored: {', '.join(missing)}" if missing else ""
    shaded = " (shaded: 95 % intervals over prompts)" if panel.collections else ""
    panel.set_xlabel(f"k samples to choose from{shaded}{note}", parse_math=False)
    panel.set_ylabel(f"{gold} of the chosen sample  (better →)", parse_math=False)


def _label_ends(figure: Figure, panel: Axes, labels: Sequence[Label]) -> None:
    """Write the labels in one column right of the panel, each level with its line's end where it can be."""
    frame: dict[str, Any] = {"transform": panel.transAxes, "clip_on": False}
    notes = [
        panel.text(1.045, 0.5, text, color=ink, fontsize=9, va="center", parse_math=False, **frame)
        for text, _, _, ink in labels
    ]
    figure.draw_without_rendering()  # settles where everything lies
    figure.set_layout_engine("none")
    to_axes = panel.transAxes.inverted()
    ends = to_axes.transform(panel.transData.transform([(x, y) for _, x, y, _ in labels]))
    line = LINE * 9 / 72 / (panel.bbox.height / figure.dpi)  # of the panel's height
    for (_, _, _, ink), note, (x, y), level in zip(
        labels, notes, ends, spread(ends[:, 1], line), strict=True
    ):
        note.set_y(float(level))
        panel.plot([x + 0.008, 1.02, 1.04], [y, level, level], color=ink, linewidth=0.6, alpha=0.6, **frame)


def spread(levels: NDArray[Any], gap: float) -> NDArray[Any]:
    """Return (N,) places as near as can be to the levels in [0, 1], in their order, at least `gap` apart.

    Least squares by the min-max formula of isotonic regression (Robertson, Wright and Dykstra 1988, chapter
    1). Places leave [0, 1] only where it has no room for all.
    """
    n = len(levels)
    order = np.argsort(levels, kind="stable")
    wanted = levels[order] - gap * np.arange(n)
    fitted = [max(min(wanted[a : b + 1].mean() for b in range(i, n)) for a in range(i + 1)) for i in range(n)]
    places = np.empty(n)
    places[order] = np.clip(fitted, 0, max(0.0, 1 - gap * (n - 1))) + gap * np.arange(n)
    return places


def _known(curve: BestOfCurve) -> list[tuple[int, Estimate]]:
    pairs = zip(curve.ks, curve.estimates, strict=True)
    return [(k, estimate) for k, estimate in pairs if math.isfinite(estimate.value)]


# Early dropping.


def _dropping(series: Mapping[str, Sequence[DroppingPoint]]) -> Figure:
    from matplotlib.ticker import PercentFormatter

    figure, panel = _panel()
    spots = [_spots(points) for points in series.values()]
    _frame_dropping(panel, [spot for found in spots for spot in found])
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for i, found in enumerate(spots):
        _draw_points(panel, found, _look(i))
    panel.plot(1, 1, "*", ms=11, mfc="black", mec="white", mew=0.8, zorder=6)
    panel.set_xlabel("(← better)  tokens, share of the full run")
    panel.set_ylabel("gain over BoN@1 kept, share of the full run's  (better →)")
    add_legend(figure, {name: _look(place) for place, name in enumerate(series)}, marker_size=7)
    figure.draw_without_rendering()  # settles where everything lies
    figure.set_layout_engine("none")
    _label_points(panel, spots)
    return figure


def _spots(points: Sequence[DroppingPoint]) -> list[Spot]:
    found = [Spot(Point(_short(p.schedule), 0.0, {}, {}), p.tokens, p.gain) for p in points]
    return sorted((spot for spot in found if math.isfinite(spot.y.value)), key=lambda spot: spot.at)


def _short(schedule: DropSchedule) -> str:
    """Return the token counts and the margin, as "16, 32" or "lead 0.2"."""
    counts = ", ".join(map(str, schedule.at))
    said = [counts if schedule.keep == 0.5 else f"{100 * schedule.keep:g} % at {counts}"] if counts else []
    if schedule.margin is not None:
        said.append(f"lead {schedule.margin:g}")
    return " + ".join(said) or "drop nothing"


def _frame_dropping(panel: Axes, spots: Sequence[Spot]) -> None:
    """Show every point, its interval as far as `REACH`, the full run and the target corner; mark that."""
    from matplotlib.patches import Rectangle

    corners = np.array([corner for spot in spots for corner in spot.corners()] + [TARGET, (1.0, 1.0)])
    gains = [spot.y.value for spot in spots] + [1.0]
    left = max(0.0, corners[:, 0].min() - 0.1)
    bottom = min(max(corners[:, 1].min(), min(gains) - REACH) - 0.04, 0.88)
    top = min(corners[:, 1].max(), max(gains) + REACH) + 0.04
    panel.set_xlim(left, 1.06)
    panel.set_ylim(bottom, top)
    tokens, gain = TARGET
    panel.add_patch(
        Rectangle((left, gain), tokens - left, top - gain, color="#EFEFEF", linewidth=0, zorder=0)
    )
    panel.plot(
        [left, tokens, tokens], [gain, gain, top], color=GREY, linewidth=1.0, dashes=(6, 3), zorder=1.5
    )
    panel.axhline(1.0, color=PALE, linewidth=0.8, zorder=1)


def _draw_points(panel: Axes, spots: Sequence[Spot], look: Look) -> None:
    xs, ys = [spot.x.value for spot in spots], [spot.y.value for spot in spots]
    marker: dict[str, Any] = {"marker": look.marker, "ms": 7, "mec": "white", "mew": 0.8}
    panel.plot(xs, ys, color=look.colour, linestyle=look.dashes, linewidth=1.4, zorder=4, **marker)
    for spot in spots:
        for ends in (spot.corners()[:2], spot.corners()[2:]):
            panel.plot(*zip(*ends, strict=True), color=look.colour, linewidth=1.0, alpha=0.5, zorder=2)


def _label_points(panel: Axes, spots: Sequence[Sequence[Spot]]) -> None:
    tokens, gain = TARGET
    corner: dict[str, Any] = {"fontsize": 9, "va": "top", "transform": panel.transAxes, "zorder": 1}
    aim = f"target: {gain:.0%} of the gain\nfor {tokens:.0%} of the tokens"
    labels = Labels(panel, spots)
    note = panel.text(0.01, 0.985, aim, color=GREY, **corner)
    labels.room.taken.append(np.array(note.get_window_extent().extents))
    labels.beside((1.0, 1.0), "full run", "black")
    for i, found in enumerate(spots):
        for spot in found:
            labels.beside(spot.at, spot.point.label, _look(i).ink)
    if not any(spots):
        panel.text(0.5, 0.5, "no gain to keep", ha="center", color=GREY, transform=panel.transAxes)


# Both.


def _panel() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    panel = figure.subplots()
    panel.grid(color="#EEEEEE", linewidth=0.8)
    panel.set_axisbelow(True)
    return figure, panel


def _look(index: int) -> Look:
    """Return what tells a curve from the others; colour and dashes are not paired twice the same."""
    turn = index // len(COLOURS)
    dashes = DASHES[(index + turn) % len(DASHES)]
    return Look(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], dashes, False)
