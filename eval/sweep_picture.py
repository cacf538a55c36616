"""Pictures of a sweep: quality against label noise, number of pairs and cost, one line a head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from eval.latency_picture import check_target
from eval.legend import add_legend
from eval.picture import COLOURS, DASHES, INK, MARKERS, STYLE, WIDTH, Look, style
from eval.selection_picture import UNDATED
from eval.stats import Estimate
from eval.sweep_summary import Sweep

if TYPE_CHECKING:  # loaded when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT, PANELS_A_ROW = 3.6, 3  # inches, of a row of panels
Line = Sequence[tuple[float, Estimate]]  # x and quality, as they are joined
Panels = Mapping[str, Mapping[str, Line]]  # title -> head -> line
LABELS = {
    "noise": "labels flipped",
    "n_pairs": "labelled pairs",
    "cost": "(\N{LEFTWARDS ARROW} better)  processor seconds a cell",
}


def draw_sweep(
    sweep: Sweep, against: str, target: Path | str | IO[bytes], *, file_format: str | None = None
) -> None:
    """Write mean Spearman over one axis, a line a head with 95 % intervals over rounds, a panel a pairing.

    against: "noise", as the measured share of flipped labels; "n_pairs"; or "cost", the mean seconds of a
    cell, a point a number of pairs, joined from few to many. target: a path ending in .png, .svg or .pdf, or
    a binary stream, which gets `file_format` (SVG by default). Raises UserError for another ending and a
    missing matplotlib.
    """
    kind = check_target(target, file_format)
    with style().context(["default", STYLE]):
        _figure(panels_of(sweep, against), against).savefig(
            target, format=kind, dpi=150, metadata=UNDATED[kind]
        )


def panels_of(sweep: Sweep, against: str) -> Panels:
    """Return each panel's lines: x and mean Spearman at every value of the axis, unknown ones left out."""
    golden, pairings = sweep.values("golden"), sweep.values("pairing")
    found: dict[str, dict[str, Line]] = {}
    for label in golden:
        for pairing in pairings:
            title = f"{label}, {pairing}" if len(golden) > 1 else pairing
            chosen = {"golden": label, "pairing": pairing}
            found[title] = {
                head: _line(sweep, against, {**chosen, "head": head}) for head in sweep.values("head")
            }
    return found


def _line(sweep: Sweep, against: str, chosen: Mapping[str, Any]) -> Line:
    axis = "noise" if against == "noise" else "n_pairs"
    points = []
    for value in sweep.values(axis):
        cells = sweep.where(**chosen, **{axis: value}) & ~sweep.failed
        quality = sweep.estimate("spearman", cells)
        if math.isfinite(quality.value):
            points.append((_x(sweep, against, cells, value), quality))
    return points if against == "cost" else sorted(points, key=lambda point: point[0])


def _x(sweep: Sweep, against: str, cells: Any, value: float) -> float:
    if against == "n_pairs":
        return float(value)
    return float(np.mean(sweep.columns["flip_rate" if against == "noise" else "seconds"][cells]))


def _figure(panels: Panels, against: str) -> Figure:
    from matplotlib.figure import Figure

    columns = min(len(panels), PANELS_A_ROW)
    n_rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 0.6 + HEIGHT * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    looks = _looks(panels)
    for panel, (title, lines) in zip(axes, panels.items(), strict=False):
        panel.set_title(title, fontsize=10.5, color=INK, parse_math=False)
        _draw_panel(panel, lines, looks)
        panel.set_xlabel(LABELS[against])
        panel.xaxis.set_tick_params(labelbottom=True)
    for panel in axes[len(panels) :]:
        panel.remove()
    for panel in axes[: len(panels) : columns]:
        panel.set_ylabel("mean Spearman  (better \N{RIGHTWARDS ARROW})")
    _frame(axes[0], against, [x for lines in panels.values() for line in lines.values() for x, _ in line])
    add_legend(figure, looks)
    return figure


def _draw_panel(panel: Axes, lines: Mapping[str, Line], looks: Mapping[str, Look]) -> None:
    panel.grid(color="#EEEEEE", linewidth=0.8)
    panel.set_axisbelow(True)
    for head, line in lines.items():
        look, xs = looks[head], [x for x, _ in line]
        marker: dict[str, Any] = {"marker": look.marker, "ms": 6, "mec": "white", "mew": 0.7}
        panel.plot(
            xs, [y.value for _, y in line], color=look.colour, linestyle=look.dashes, linewidth=1.6, **marker
        )
        for x, quality in line:
            panel.plot([x, x], quality.interval, color=look.colour, linewidth=1.2, alpha=0.6, zorder=2)


def _frame(panel: Axes, against: str, xs: Sequence[float]) -> None:
    """Set the x axis, which all panels share."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, PercentFormatter

    if against == "noise":
        panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        return
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    counts = FixedLocator(sorted(set(xs)))
    panel.xaxis.set_major_locator(counts if against == "n_pairs" else LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_minor_locator(NullLocator())


def _looks(panels: Panels) -> dict[str, Look]:
    """Return each head's look, the same in every panel and picture."""
    heads = list(dict.fromkeys(head for lines in panels.values() for head in lines))
    return {
        head: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)], False)
        for i, head in enumerate(heads)
    }
