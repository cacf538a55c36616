"""The pictures of LENS: golden reward over seed pairs, a line a method; and over each option, as tuned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoder.contracts import UserError
from eval.latency_picture import check_target
from eval.legend import add_legend
from eval.lens_plan import NONE, Arm
from eval.lens_summary import Line
from eval.picture import INK, STYLE, WIDTH, Look, look_of, style
from eval.selection_picture import UNDATED
from eval.stats import Estimate
from rewards.augment_methods import method_options

if TYPE_CHECKING:  # loaded when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 3.5  # inches, of a row of panels
APART = 0.014  # of the axis: how far arms stand beside each other
BARE = Look(INK, "o", "-", False)
Points = Mapping[str, Sequence[tuple[float, Estimate]]]  # name of a line -> x and value, x rising


def draw_table(lines: Sequence[Line], target: Path) -> None:
    """Write reward, and reward less that of no augmentation, over seed pairs: a row of panels a ratio.

    target: a path ending in .svg, .png or .pdf. Raises UserError for another ending, nothing to draw and a
    missing matplotlib.
    """
    ratios = sorted({line.ratio for line in lines if line.arm.name != NONE})
    names = list(dict.fromkeys(line.arm.name for line in lines))
    looks = {name: BARE if name == NONE else look_of(place) for place, name in enumerate(names)}
    panels: list[tuple[str, Points]] = []
    for ratio in ratios:
        there = [line for line in lines if not line.error and line.ratio in (1.0, ratio)]
        reward = _points((line.arm.name, line.n_pairs, line.reward) for line in there)
        change = _points(
            (line.arm.name, line.n_pairs, line.differences[NONE])
            for line in there
            if NONE in line.differences
        )
        panels += [(f"{ratio:g}x: golden reward", reward), (f"{ratio:g}x: golden, minus none", change)]
    _save(panels, looks, target, "seed pairs", 2)


def draw_ablations(lines: Sequence[Line], target: Path) -> None:
    """Write reward less that of no augmentation over each number that was tried, a panel an option and size.

    A line a method and combination. target: as `draw_table`.
    """
    told = [(line, _swept(lines, line)) for line in lines if NONE in line.differences]
    options = list(dict.fromkeys(name for _, places in told for name, _ in places))
    sizes = sorted({line.n_pairs for line in lines})
    panels: list[tuple[str, Points]] = []
    for option in options:
        for size in sizes:
            points = _points(
                (f"{line.arm.method}, {line.arm.combine}", value, line.differences[NONE])
                for line, places in told
                for name, value in places
                if name == option and line.n_pairs == size
            )
            panels.append((f"{option}, {size} seed pairs: golden, minus none", points))
    names = list(dict.fromkeys(name for _, points in panels for name in points))
    looks = {name: look_of(place) for place, name in enumerate(names)}
    _save(panels, looks, target, "", max(len(sizes), 1))


def _swept(lines: Sequence[Line], line: Line) -> list[tuple[str, float]]:
    """Return the options in whose panels this line stands, with its value: all tried ones for a default."""
    arm = line.arm
    if arm.options:
        return _number(arm)
    rivals = [each.arm for each in lines if (each.arm.method, each.arm.combine) == (arm.method, arm.combine)]
    default = method_options(arm.method, {})
    tried = sorted({name for rival in rivals for name, _ in _number(rival)})
    return [(name, float(getattr(default, name))) for name in tried]


def _number(arm: Arm) -> list[tuple[str, float]]:
    """Return the one option that was set and its value; none for words, and for several at once."""
    if len(arm.options) != 1:
        return []
    name, value = arm.options[0]
    return [] if isinstance(value, bool | str) else [(name, float(value))]


def _points(found: Iterable[tuple[str, float, Estimate]]) -> Points:
    points: dict[str, list[tuple[float, Estimate]]] = {}
    for name, x, value in found:
        points.setdefault(name, []).append((x, value))
    return {name: sorted(each, key=lambda point: point[0]) for name, each in points.items()}


def _save(
    panels: Sequence[tuple[str, Points]], looks: Mapping[str, Look], target: Path, x: str, columns: int
) -> None:
    if not any(points for _, points in panels):
        raise UserError("no result to draw; give at least one method that could be measured")
    kind = check_target(target)
    with style().context(["default", STYLE]):
        _figure(panels, looks, x, columns).savefig(target, format=kind, dpi=192, metadata=UNDATED[kind])


def _figure(panels: Sequence[tuple[str, Points]], looks: Mapping[str, Look], x: str, columns: int) -> Figure:
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 0.8 + HEIGHT * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (title, points) in zip(axes, panels, strict=False):
        _draw(panel, points, looks)
        panel.set_title(title, fontsize=10.5, color=INK, loc="left", parse_math=False)
        panel.set_xlabel(x)
    for panel in axes[len(panels) :]:
        panel.remove()
    add_legend(figure, looks, "upright bars: 95 % intervals over seeds and prompts", 5.5)
    return figure


def _draw(panel: Axes, points: Points, looks: Mapping[str, Look]) -> None:
    """Draw each line's joined points with their intervals, a little beside each other; x by rank."""
    places = {x: place for place, x in enumerate(sorted({x for each in points.values() for x, _ in each}))}
    panel.grid(color="#EEEEEE", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.set_xticks(list(places.values()), [f"{x:g}" for x in places])
    if any(estimate.low < 0 < estimate.high for each in points.values() for _, estimate in each):
        panel.axhline(0, color=INK, linewidth=0.9, zorder=1)
    there = [(name, look) for name, look in looks.items() if name in points]
    for number, (name, look) in enumerate(there):
        apart = (number - (len(there) - 1) / 2) * APART * len(places)
        xs = [places[x] + apart for x, _ in points[name]]
        found = [estimate for _, estimate in points[name]]
        marker: dict[str, Any] = {"marker": look.marker, "ms": 5.5, "mec": "white", "mew": 0.7}
        values = [each.value for each in found]
        panel.plot(xs, values, color=look.colour, linestyle=look.dashes, linewidth=1.5, zorder=3, **marker)
        for at, each in zip(xs, found, strict=True):
            panel.plot([at, at], each.interval, color=look.colour, linewidth=1.0, alpha=0.6, zorder=2)
