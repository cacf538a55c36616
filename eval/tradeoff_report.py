"""What `eval.tradeoff` leaves behind: report.json, report.html, table.md and the picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decoder.contracts import UserError
from eval.curves import AXES, FLUENCY, RELATIVE_TIME, Curve, curve_from_json, estimate_text

TABLE = ("positive share", "expected maximum toxicity", "toxicity probability", "perplexity", "dist3")


def read_others(also: Sequence[str]) -> list[Curve]:
    """Return the curves of other trade-off folders, `NAME=FOLDER`, each named after NAME.

    Raises UserError for an argument of another form and for a folder without a report.
    """
    found: list[Curve] = []
    for argument in also:
        name, equals, folder = argument.partition("=")
        if not (name and equals and folder):
            raise UserError(f"--also {argument!r}: write NAME=FOLDER, a folder that eval.tradeoff wrote")
        curves = read_curves(Path(folder))
        found += [Curve(name if len(curves) == 1 else f"{name} {c.name}", c.points) for c in curves]
    return found


def read_curves(folder: Path) -> list[Curve]:
    """Return the curves of a trade-off folder. Raises UserError if it has none."""
    path = folder / "report.json"
    try:
        curves = json.loads(path.read_text(encoding="utf-8"))["curves"]
    except OSError as error:
        raise UserError(
            f"{folder} holds no trade-off ({path.name}: {error.strerror}): make one with eval.tradeoff"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{path} has no "curves": it is no report of eval.tradeoff') from None
    return [curve_from_json(each, f"{path}, curve {number}") for number, each in enumerate(curves, 1)]


def write_report(
    folder: Path, curves: Sequence[Curve], attributes: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """Write every form of the report; the table goes to standard error, one JSON line to standard output."""
    from decoder.records import about
    from eval.html_report import html_report, markdown_table
    from eval.picture import draw
    from eval.report import emit

    run = about()
    told = {
        **settings,
        "command": " ".join(run["command"]),
        "versions": ", ".join(f"{name} {number}" for name, number in run["versions"].items()),
    }
    axes = [AXES[attribute] for attribute in attributes]
    report = {
        "settings": dict(settings),
        "run": run,
        "curves": [curve.as_json() for curve in curves],
    }
    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text(markdown_table(curves, _shown(curves)), encoding="utf-8")
    for suffix in ("svg", "png"):
        draw(curves, axes, FLUENCY, folder / f"picture.{suffix}")
    page = html_report("Trade-off: attribute against perplexity", curves, axes, FLUENCY, told)
    (folder / "report.html").write_text(page, encoding="utf-8")
    told = {**settings, "report": str(folder / "report.html")}
    emit("tradeoff", _rows(curves), {}, told, shown=_lines(curves))


def _shown(curves: Sequence[Curve]) -> list[str]:
    """Return those measures of the table that were taken."""
    taken = {name for curve in curves for point in curve.points for name in point.estimates}
    return [name for name in TABLE if name in taken]


def _lines(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return one line a point for the terminal, intervals in brackets."""
    shown = _shown(curves)
    return [
        {"reward": curve.name, "beta": f"{point.beta:g}"}
        | {name: estimate_text(point.estimate(name)) for name in shown}
        for curve in curves
        for point in curve.points
    ]


def _rows(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return one row a point, each attribute as a change from unsteered."""
    rows = []
    for curve in curves:
        for point in curve.points:
            row: dict[str, Any] = {"reward": curve.name, "beta": point.beta}
            for name in _shown(curves):
                found = point.estimate(name)
                row |= {name: found.value, f"{name} interval": found.interval}
            rows.append(row | {RELATIVE_TIME: point.cost.get(RELATIVE_TIME)})
    return rows
