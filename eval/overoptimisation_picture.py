"""The picture of overoptimisation: what choosing among more samples gains, by golden reward and by proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from decoder.contracts import UserError
from eval.latency_picture import check_target
from eval.legend import add_legend
from eval.picture import GREY, INK, STYLE, WIDTH, Look, look_of, style
from eval.selection import kl_bound
from eval.selection_picture import UNDATED
from eval.stats import Estimate

if TYPE_CHECKING:  # loaded when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 3.5  # inches, of a row of panels
APART = 0.014  # of the axis: how far rules stand beside each other, so that their intervals can be told apart
BASELINE = Look(INK, "o", "-", False)
LABELS = {
    "golden": "golden reward gained  (better \N{RIGHTWARDS ARROW})",
    "difference": "golden, minus {baseline}",
    "proxy": "score gained, deviations",
}


@dataclass(frozen=True, slots=True)
class GainCurve:
    """What choosing by one score gains over one random sample, at each of n samples that compete.

    ns: rising. golden: golden reward. difference: the same less that of the baseline, () for the baseline
    itself. proxy: the score, in deviations of its own. One estimate an n.
    """

    ns: tuple[int, ...]
    golden: tuple[Estimate, ...]
    difference: tuple[Estimate, ...]
    proxy: tuple[Estimate, ...]

    @property
    def best(self) -> int:
        """Return the place of the largest golden reward, the first of equal ones."""
        return max(range(len(self.ns)), key=lambda place: self.golden[place].value)


Panels = Mapping[str, Mapping[str, GainCurve]]  # title -> rule -> curve


def draw_overoptimisation(
    panels: Panels, target: Path | str | IO[bytes], *, file_format: str | None = None
) -> None:
    """Write golden reward, its difference to the baseline's, and score over KL, a row of panels a title.

    A line a rule, with 95 % intervals. KL is the bound log n - (n - 1) / n, in nats; n stands above. Each
    line's best n wears a ring. target: a path ending in .svg, .png or .pdf, or a binary stream, which gets
    `file_format` (SVG by default). Equal figures give equal bytes. Raises UserError for another ending,
    nothing to draw, other than one baseline, and a missing matplotlib.
    """
    if not panels or not all(curves and all(c.ns for c in curves.values()) for curves in panels.values()):
        raise UserError("no curve to draw; give at least one title, one rule and one n")
    bare = {rule for curves in panels.values() for rule, curve in curves.items() if not curve.difference}
    if len(bare) != 1:
        raise UserError(
            f"{len(bare)} rules have no difference to a baseline; leave it out for the baseline alone"
        )
    kind = check_target(target, file_format)
    with style().context(["default", STYLE]):
        _figure(panels, bare.pop()).savefig(target, format=kind, dpi=192, metadata=UNDATED[kind])


def _figure(panels: Panels, baseline: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 0.6 + HEIGHT * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 3, sharex=True, sharey="col", squeeze=False)
    looks = _looks(panels, baseline)
    ns = sorted({n for curves in panels.values() for curve in curves.values() for n in curve.ns})
    for row, (title, curves) in zip(axes, panels.items(), strict=True):
        for panel, (kind, label) in zip(row, LABELS.items(), strict=True):
            _draw_panel(panel, curves, kind, looks, kl_bound(ns[-1]))
            _frame(panel, ns)
            panel.set_ylabel(label.format(baseline=baseline), parse_math=False)
        row[0].set_title(title, fontsize=10.5, color=INK, loc="left", parse_math=False)
    add_legend(figure, looks, "ring: the best n; upright bars: 95 % intervals over prompts", 5.5)
    return figure


def _draw_panel(
    panel: Axes, curves: Mapping[str, GainCurve], kind: str, looks: Mapping[str, Look], reach: float
) -> None:
    """Draw each rule's joined points with their intervals; differences a little beside each other."""
    apart = APART * reach if kind == "difference" else 0.0
    middle = (len(looks) - 1) / 2
    for place, (rule, look) in enumerate(looks.items()):
        if rule not in curves:
            continue
        curve = curves[rule]
        found = {"golden": curve.golden, "difference": curve.difference, "proxy": curve.proxy}[kind]
        if not found:
            panel.axhline(0, color=look.colour, linestyle=look.dashes, linewidth=1.6, zorder=2)
            continue
        xs = [kl_bound(n) + (place - middle) * apart for n in curve.ns]
        values = [each.value for each in found]
        marker: dict[str, Any] = {"marker": look.marker, "ms": 5.5, "mec": "white", "mew": 0.7}
        panel.plot(xs, values, color=look.colour, linestyle=look.dashes, linewidth=1.6, zorder=3, **marker)
        for x, each in zip(xs, found, strict=True):
            panel.plot([x, x], each.interval, color=look.colour, linewidth=1.1, alpha=0.6, zorder=2)
        if kind == "golden":
            ring: dict[str, Any] = {"ms": 10, "mfc": "none", "mec": look.colour, "mew": 1.3, "zorder": 4}
            panel.plot(xs[curve.best], values[curve.best], "o", **ring)


def _frame(panel: Axes, ns: Sequence[int]) -> None:
    """Name the x axis, which all panels share, and mark the n above it."""
    from matplotlib.ticker import FixedLocator, NullLocator

    panel.grid(color="#EEEEEE", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.set_xlabel("KL from sampling, at most, nats")
    panel.xaxis.set_tick_params(labelbottom=True)
    panel.yaxis.set_tick_params(labelleft=True)
    above = panel.secondary_xaxis("top")
    above.spines["top"].set_visible(False)
    above.xaxis.set_major_locator(FixedLocator([kl_bound(n) for n in ns]))
    above.xaxis.set_minor_locator(NullLocator())
    above.set_xticklabels([str(n) for n in ns])
    above.tick_params(length=2, labelsize=8, colors=GREY)
    above.set_xlabel("n, samples that compete", fontsize=8.5, color=GREY)


def _looks(panels: Panels, baseline: str) -> dict[str, Look]:
    """Return each rule's look, the same in every panel; the baseline is black."""
    rules = dict.fromkeys(rule for curves in panels.values() for rule in curves)
    others = [rule for rule in rules if rule != baseline]
    looks = {rule: look_of(others.index(rule)) for rule in others}
    return {rule: looks.get(rule, BASELINE) for rule in rules}
