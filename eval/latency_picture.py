"""The picture of what steering methods cost: latency a token over k, one panel a batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from decoder.contracts import UserError
from eval.curves import figure_text
from eval.legend import add_legend
from eval.picture import COLOURS, DASHES, INK, MARKERS, STYLE, WIDTH, Look, style
from eval.selection_picture import FORMATS, LINE, UNDATED, spread
from eval.stats import Estimate

if TYPE_CHECKING:  # loaded when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

HEIGHT = 3.9  # inches, of a row of panels
PANELS_A_ROW = 3
TEXT_SIZE = 9
NOTE = 0.03  # of the figure's width, from a panel to the figures at its right
UNSTEERED = Look(INK, "o", "-", False)
Latencies = Mapping[int, Estimate]  # k -> milliseconds a token


def draw_latency(
    panels: Mapping[int, Mapping[str, Latencies]],
    target: Path | str | IO[bytes],
    *,
    unsteered: str = "plain",
    file_format: str | None = None,
) -> None:
    """Write latency over k, a line a method with 95 % intervals, a panel a batch size, both axes from 0.

    panels: batch size -> method -> k -> milliseconds a token. The figure at the largest k stands beside each
    line. unsteered: the method in black. target: a path ending in .svg, .png or .pdf, or a binary stream,
    which gets `file_format` (SVG by default). Equal figures give equal bytes. Raises UserError for another
    ending, nothing to draw and a missing matplotlib.
    """
    if not panels or not all(series and all(series.values()) for series in panels.values()):
        raise UserError("no latency to draw; give at least one batch size, one method and one k")
    kind = check_target(target, file_format)
    with style().context(["default", STYLE]):
        _figure(panels, unsteered).savefig(target, format=kind, dpi=192, metadata=UNDATED[kind])


def check_target(target: Path | str | IO[bytes], file_format: str | None = None) -> str:
    """Return the format of a picture to be written there, before anything long is run for it.

    Raises UserError for an ending that is none, a folder that is not there and a missing matplotlib.
    """
    is_path = isinstance(target, Path | str)
    kind = file_format or (Path(target).suffix[1:].lower() if isinstance(target, Path | str) else "svg")
    if kind not in FORMATS:
        raise UserError(f"cannot draw {str(target)!r} as {kind!r}; end its name in .svg, .png or .pdf")
    if is_path and not Path(str(target)).parent.is_dir():
        raise UserError(f"cannot draw {str(target)!r}: its folder does not exist; make it first")
    style()
    return kind


def by_panel(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, dict[int, Estimate]]]:
    """Return what `draw_latency` takes from the rows of `eval.bench_methods`, as run or read from JSON."""
    panels: dict[int, dict[str, dict[int, Estimate]]] = {}
    for row in rows:
        low, high = row["ms_interval"]
        found = Estimate(row["ms_per_token"], low, high, row["rounds"])
        panels.setdefault(row["batch"], {}).setdefault(row["method"], {})[row["k"]] = found
    return panels


def _figure(panels: Mapping[int, Mapping[str, Latencies]], unsteered: str) -> Figure:
    from matplotlib.figure import Figure

    columns = min(len(panels), PANELS_A_ROW)
    n_rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + HEIGHT * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, columns, squeeze=False).flatten()
    looks = _looks(panels, unsteered)
    notes = []
    for panel, (size, series) in zip(axes, panels.items(), strict=False):
        panel.set_title(f"batch {size}", fontsize=10.5, color=INK)
        at = 1 + NOTE * columns
        notes.append([_draw_line(panel, found, looks[name], at) for name, found in series.items()])
        _frame(panel, series)
    for panel in axes[len(panels) :]:
        panel.remove()
    for panel in axes[: len(panels) : columns]:
        panel.set_ylabel("(← better)  milliseconds a token")
    add_legend(figure, looks, "upright bars: 95 % intervals over rounds")
    figure.draw_without_rendering()  # settles where everything lies
    figure.set_layout_engine("none")
    for panel, written, series in zip(axes, notes, panels.values(), strict=False):
        _place(figure, panel, written, series)
    return figure


def _looks(panels: Mapping[int, Mapping[str, Latencies]], unsteered: str) -> dict[str, Look]:
    """Return each method's look, the same in every panel."""
    names = dict.fromkeys(name for series in panels.values() for name in series)
    found, used = {}, 0
    for name in names:
        colour, marker, dashes = (each[used % len(each)] for each in (COLOURS, MARKERS[1:], DASHES[1:]))
        found[name] = UNSTEERED if name == unsteered else Look(colour, marker, dashes, False)
        used += name != unsteered
    return found


def _draw_line(panel: Axes, found: Latencies, look: Look, at: float) -> Text:
    """Draw the joined points with their intervals; return the figure at the largest k, not yet level."""
    ks = sorted(found)
    values = [found[k].value for k in ks]
    marker: dict[str, Any] = {"marker": look.marker, "ms": 6, "mec": "white", "mew": 0.7}
    panel.plot(ks, values, color=look.colour, linestyle=look.dashes, linewidth=1.8, zorder=3, **marker)
    for k in ks:
        panel.plot([k, k], found[k].interval, color=look.colour, linewidth=1.2, alpha=0.6, zorder=2)
    free: dict[str, Any] = {"transform": panel.transAxes, "clip_on": False, "parse_math": False}
    text = figure_text(values[-1])
    return panel.text(at, 0.5, text, color=look.ink, fontsize=TEXT_SIZE, va="center", **free)


def _frame(panel: Axes, series: Mapping[str, Latencies]) -> None:
    """Let both axes begin at 0, so that twice the height is twice the time, and mark the k that were run."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ks = sorted({k for found in series.values() for k in found})
    panel.grid(color="#EEEEEE", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.set_xlim(0, 1.04 * ks[-1])
    panel.set_ylim(0, 1.06 * max(each.high for found in series.values() for each in found.values()))
    panel.xaxis.set_major_locator(FixedLocator(ks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("k, candidates a step")


def _place(figure: Figure, panel: Axes, notes: Sequence[Text], series: Mapping[str, Latencies]) -> None:
    """Set each figure level with its line's end where it can be, none over another, and lead to it."""
    to_axes = panel.transAxes.inverted()
    last = [(max(found), found[max(found)].value) for found in series.values()]
    ends = to_axes.transform(panel.transData.transform(last))
    line = LINE * TEXT_SIZE / 72 / (panel.bbox.height / figure.dpi)  # of the panel's height
    free: dict[str, Any] = {"transform": panel.transAxes, "clip_on": False}
    for note, (x, y), level in zip(notes, ends, spread(np.asarray(ends)[:, 1], line), strict=True):
        note.set_y(float(level))
        ink, gap = note.get_color(), note.get_position()[0] - 1
        way = [x + 0.2 * gap, 1 + 0.55 * gap, 1 + 0.9 * gap]
        panel.plot(way, [y, level, level], color=ink, linewidth=0.6, alpha=0.6, **free)
