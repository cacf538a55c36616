"""The trade-off as one HTML page that needs nothing else, and as a table for papers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval.curves import (
    RELATIVE_TIME,
    Axis,
    Curve,
    Example,
    Point,
    check_measures,
    estimate_text,
    figure_text,
    measure_names,
    worst_first,
)
from eval.picture import GUIDE, TIMES, inline_svg

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
CSS = """
:root { color-scheme: light dark;
  --ink: #1a1a1a; --grey: #5f5f5f; --line: #d8d8d8; --page: #fff; --soft: #f5f5f5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --grey: #a8a8a8; --line: #444; --page: #181818; --soft: #242424; }
}
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: var(--ink); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
.picture { background: #fff; border-radius: 6px; padding: .75rem; margin: 1.5rem 0; overflow-x: auto; }
.picture svg { display: block; width: 100%; min-width: 40rem; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
caption { text-align: left; color: var(--grey); padding-bottom: .5rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0;
  border-top: 1px solid var(--line); }
thead th { border-top: 0; vertical-align: bottom; } tbody th { font-weight: 600; }
td { white-space: nowrap; } .settings td { white-space: pre-wrap; overflow-wrap: anywhere; }
small { display: block; color: var(--grey); }
details { border-top: 1px solid var(--line); padding: .4rem 0; } summary { cursor: pointer; }
ol { list-style: none; margin: .5rem 0; padding: 0; }
li { display: flex; gap: 1rem; padding: .4rem .6rem; margin: .25rem 0;
  background: var(--soft); border-radius: 4px; }
.score { flex: 0 0 5.5rem; color: var(--grey); font-variant-numeric: tabular-nums; font-size: .875rem; }
bdi { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 0; } .prompt { color: var(--grey); }
""".strip()


def html_report(
    title: str,
    curves: Sequence[Curve],
    attributes: Sequence[Axis],
    fluency: Axis,
    settings: Mapping[str, Any],
) -> str:
    """Return one HTML page: how to read it, the picture, every point, the settings, the worst examples.

    settings: anything that str shows; mappings and lists inside are spelt out. Nothing is loaded from
    elsewhere and nothing runs; whatever the models wrote is text. Raises UserError as `draw` does.
    """
    check_measures(curves, [axis.measure for axis in (*attributes, fluency)])
    parts = [
        f"<h1>{_safe(title)}</h1>",
        f"<p>{_how_to_read(attributes, fluency)}</p>",
        _picture(curves, attributes, fluency),
        "<h2>Every point</h2>",
        _points_table(curves, attributes, fluency),
        "<h2>Settings</h2>",
        _settings_table(settings),
        "<h2>Examples, worst first</h2>",
        "<p>Prompts are grey; what follows them was generated. What the judge did not score comes last.</p>",
        *[_curve_examples(curve, attributes) for curve in curves],
    ]
    return PAGE.format(title=_safe(title), css=CSS, body="\n".join(parts))


def markdown_table(curves: Sequence[Curve], measures: Sequence[str]) -> str:
    """Return a pipe table, a row a point: value [low, high] of each measure, a dash if not scored.

    Raises UserError for a measure that no point has.
    """
    check_measures(curves, measures)
    rows = [["method", "point", *measures], ["---", "---", *["---:"] * len(measures)]]
    for curve in curves:
        for point in _ordered(curve):
            rows.append(
                [curve.name, point.label, *[estimate_text(point.estimate(name)) for name in measures]]
            )
    return "".join(f"| {' | '.join(_piped(cell) for cell in row)} |\n" for row in rows)


def _piped(cell: str) -> str:
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split())


def _safe(text: object) -> str:
    """Return the text escaped; control characters and lone surrogates, which no page may hold, are marked."""
    shown = (c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in str(text))
    return escape("".join(shown))


def _ordered(curve: Curve) -> list[Point]:
    return sorted(curve.points, key=lambda point: point.beta)


def _how_to_read(attributes: Sequence[Axis], fluency: Axis) -> str:
    """Return the paragraph above the picture."""
    sides = {"higher": ("right", "up"), "lower": ("left", "down")}
    goals = " or ".join(
        f"further {sides[each.better][0]} ({each.better} {each.label})" for each in attributes
    )
    guide = f" and the dashed line {GUIDE:.2f} {TIMES} its height" if fluency.better == "lower" else ""
    return _safe(
        f"Each line is a method, each point on it a strength of steering. Better is {goals}, and further "
        f"{sides[fluency.better][1]} ({fluency.better} {fluency.label}): of two methods, the better one gets "
        f"further at the same height. The star is the model without steering{guide}. Crosses and pale "
        "bands are 95 % bootstrap intervals over prompts: where bands overlap widely, the figures do not "
        "tell the methods apart. Time is per token, as a multiple of the unsteered model's."
    )


def _picture(curves: Sequence[Curve], attributes: Sequence[Axis], fluency: Axis) -> str:
    alt = (
        f"{', '.join(axis.label for axis in attributes)} against {fluency.label}, one curve for each of: "
        f"{', '.join(curve.name for curve in curves)}. The table below holds every point."
    )
    svg = inline_svg(curves, attributes, fluency)
    return f'<div class="picture" role="img" aria-label="{_safe(alt)}">\n{svg}</div>'


def _points_table(curves: Sequence[Curve], attributes: Sequence[Axis], fluency: Axis) -> str:
    drawn = {axis.measure: axis for axis in (*attributes, fluency)}
    measures = list(dict.fromkeys([*drawn, *measure_names(curves)]))
    costs = list(dict.fromkeys(name for curve in curves for point in curve.points for name in point.cost))
    heads = ["method", "point", *[_headed(name, drawn) for name in measures], *costs]
    cells = "".join(f'<th scope="col">{_safe(head)}</th>' for head in heads)
    bodies = "\n".join(_curve_rows(curve, measures, costs) for curve in curves)
    caption = (
        "Each figure with its 95 % bootstrap interval; n is the number of prompts behind it. "
        f"{RELATIVE_TIME.capitalize()} is time per token as a multiple of the unsteered model's."
    )
    return (
        f'<div class="wide" role="region" aria-label="Every point" tabindex="0">\n<table>\n<caption>{caption}'
        f"</caption>\n<thead><tr>{cells}</tr></thead>\n{bodies}\n</table>\n</div>"
    )


def _headed(measure: str, drawn: Mapping[str, Axis]) -> str:
    return f"{measure} ({drawn[measure].better} is better)" if measure in drawn else measure


def _curve_rows(curve: Curve, measures: Sequence[str], costs: Sequence[str]) -> str:
    name = f'<th scope="rowgroup" rowspan="{len(curve.points)}">{_safe(curve.name)}</th>'
    rows = []
    for index, point in enumerate(_ordered(curve)):
        cells = [_measure_cell(point, measure) for measure in measures]
        cells += [f"<td>{figure_text(point.cost.get(cost, math.nan))}</td>" for cost in costs]
        label = f'<th scope="row">{_safe(point.label)}</th>'
        rows.append(f"<tr>{'' if index else name}{label}{''.join(cells)}</tr>")
    return "<tbody>\n" + "\n".join(rows) + "\n</tbody>"


def _measure_cell(point: Point, measure: str) -> str:
    found = point.estimate(measure)
    if math.isnan(found.value):
        return "<td>not scored</td>"
    return f"<td>{estimate_text(found)}<small>n {found.n}</small></td>"


def _settings_table(settings: Mapping[str, Any]) -> str:
    rows = [f'<tr><th scope="row">{_safe(key)}</th><td>{_value(v)}</td></tr>' for key, v in settings.items()]
    caption = "<caption>What these figures were made with.</caption>"
    return f'<table class="settings">\n{caption}\n<tbody>\n' + "\n".join(rows) + "\n</tbody>\n</table>"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{_safe(key)}: {_value(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_value(each) for each in value)
    return _safe(value)


def _curve_examples(curve: Curve, attributes: Sequence[Axis]) -> str:
    found = [_point_examples(curve, point, attributes) for point in _ordered(curve) if point.examples]
    return f"<h3>{_safe(curve.name)}</h3>\n" + ("\n".join(found) or "<p>No examples were kept.</p>")


def _point_examples(curve: Curve, point: Point, attributes: Sequence[Axis]) -> str:
    """Return one <details>: the point's examples by each measure, worst first where its axis is known."""
    first, known = attributes[0].measure, {axis.measure: axis for axis in attributes}
    lists = []
    for measure in dict.fromkeys(each.measure or first for each in point.examples):
        chosen = [each for each in point.examples if (each.measure or first) == measure]
        said = f"By {measure}"
        if measure in known:
            chosen, said = (
                worst_first(chosen, known[measure].better),
                f"{said}, {known[measure].better} is better",
            )
        items = "\n".join(_item(each) for each in chosen)
        lists.append(f"<p>{_safe(said)}.</p>\n<ol>\n{items}\n</ol>")
    summary = f"{_safe(curve.name)}, {_safe(point.label)}: {len(point.examples)} examples"
    return f"<details>\n<summary>{summary}</summary>\n" + "\n".join(lists) + "\n</details>"


def _item(example: Example) -> str:
    score = "not scored" if math.isnan(example.score) else figure_text(example.score)
    prompt = f'<span class="prompt">{_safe(example.prompt)}</span>'
    return f'<li><span class="score">{score}</span><bdi>{prompt}{_safe(example.text)}</bdi></li>'
