"""Steering methods at equal perplexity: the attribute each reaches at 1.10 and 1.25 times the unsteered one.

    python -m eval.equal_perplexity tradeoff
    python -m eval.equal_perplexity arm rad --reference rad --ratios 1.1 1.25 --output table

Takes folders that `python -m eval.tradeoff` wrote for the same prompts, model, numbers and seed. Between
neighbouring betas log perplexity and attribute are interpolated linearly; intervals are paired over prompts.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError
from eval.budget import Outcome, Strength, compare
from eval.comparison import SavedReport, read_report
from eval.curves import AXES, DASH, FLUENCY, Better, Point, estimate_text, figure_text
from eval.stats import Difference, Estimate
from eval.tradeoff_report import read_curves
from rewards.output_folder import safe_name

NAME = "equal_perplexity"
SAME = 1e-6  # relative difference that rounding may leave between two judgements of the same texts
NOTE = (
    "≥, or ≤ where lower is better: no beta was measured that spends so much perplexity. The value is the "
    "best up to the largest beta measured; a larger one might pass it."
)

Methods = dict[str, dict[float, SavedReport]]  # name -> beta -> evaluation, without beta 0


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """A trade-off folder.

    left_out: curves that the folder draws without holding their samples, or that steer nothing.
    """

    folder: Path
    unsteered: SavedReport
    methods: Methods
    left_out: Sequence[str]

    def reports(self) -> list[SavedReport]:
        """Return every evaluation, the unsteered one first."""
        return [self.unsteered, *(report for points in self.methods.values() for report in points.values())]


@dataclass(frozen=True, slots=True)
class Compared:
    """All methods by one measure."""

    measure: str
    better: Better
    unsteered: Estimate
    outcomes: Sequence[Outcome]


def read_tradeoff(folder: Path) -> Tradeoff:
    """Return what a trade-off folder holds. Raises UserError if it is none, or not all of one run."""
    methods: Methods = {}
    left_out = []
    for curve in read_curves(folder):
        stem = safe_name(curve.name)
        places = [(point, folder / f"{stem}_beta{point.beta:g}") for point in curve.points if point.beta]
        if any(place.is_dir() for _, place in places):
            for point, place in places:
                _add(methods, curve.name, point.beta, _read_point(place, point))
        else:  # `eval.tradeoff --also` draws curves of other folders
            left_out.append(curve.name)
    return Tradeoff(folder, read_report(folder / "unsteered"), methods, left_out)


def _read_point(place: Path, point: Point) -> SavedReport:
    """Return the evaluation behind a point; UserError if it is not the one that the report tells of."""
    if not place.is_dir():
        raise UserError(f"{place} is missing, but the report.json beside it has it: run eval.tradeoff again")
    found = read_report(place)
    for name, figure in found.figures().items():
        told, value = point.estimate(name).value, figure["value"]
        if name in point.estimates and value is not None and not math.isclose(value, told, rel_tol=SAME):
            raise UserError(
                f"{place} has {name} {figure_text(value)}, the report.json beside it {figure_text(told)}: "
                "run eval.tradeoff again"
            )
    return found


def _add(methods: Methods, name: str, beta: float, report: SavedReport) -> None:
    points = methods.setdefault(name, {})
    if beta in points:
        raise UserError(
            f"{points[beta].folder} and {report.folder} are both {name!r} at beta {beta:g}: "
            "give only one of them, or call one method otherwise"
        )
    points[beta] = report


def choose_measures(reports: Sequence[SavedReport], asked: Sequence[str]) -> list[str]:
    """Return what to compare by; UserError for a measure that some folder lacks or that has no better end."""
    figures = [report.figures() for report in reports]
    sided = [name for name, figure in figures[0].items() if figure["better"] and name != FLUENCY.measure]
    shared = [name for name in sided if all(name in each for each in figures)]
    use = f"use one of {', '.join(shared)}"
    for name in [FLUENCY.measure, *asked]:
        lacking = [report.folder for report, each in zip(reports, figures, strict=True) if name not in each]
        if lacking and len(lacking) < len(reports):
            raise UserError(f"{lacking[0]} lacks {name!r}, which others have; measure it there, or {use}")
        if lacking or (name in asked and name not in shared):
            why = "no folder has it" if lacking else "it has no better end, or is what is held equal"
            raise UserError(f"cannot compare by {name!r}, {why}; {use}")
    default = [axis.measure for axis in AXES.values() if axis.measure in shared]
    if not (asked or default):
        raise UserError(f"the folders share no attribute to compare by: give --measure, {use}")
    return list(dict.fromkeys(asked or default))


def check_alike(report: SavedReport, first: SavedReport, measures: Sequence[str]) -> None:
    """Raise UserError if two evaluations are of other prompts, or have a measure from another judge."""
    odd = sorted(set(report.units) ^ set(first.units))
    if odd:
        there = first if odd[0] in first.units else report
        raise UserError(
            f"{first.folder} and {report.folder} are of different prompts: only {there.folder} has "
            f"{odd[0]!r}; compare trade-offs of the same prompts"
        )
    for name in measures:
        ours, theirs = (_scorer(each, name) for each in (first, report))
        for key in {**ours, **theirs}:
            if ours.get(key) != theirs.get(key):
                raise UserError(
                    f"{first.folder} and {report.folder} have {name!r} from different measurements ({key}: "
                    f"{ours.get(key)!r} and {theirs.get(key)!r}); run eval.tradeoff alike"
                )


def _scorer(report: SavedReport, name: str) -> dict[str, Any]:
    figure = report.figures()[name]
    about = report.report["metrics"][figure["metric"]]
    return {**about, "statistic": figure["statistic"], "better": figure["better"]}


def check_start(report: SavedReport, first: SavedReport, measures: Sequence[str]) -> None:
    """Raise UserError if two unsteered evaluations have other figures at some prompt."""
    ids = list(first.units)
    for name in measures:
        ours, theirs = (each.measure(name, ids) for each in (first, report))
        same = (
            np.isclose(ours.units, theirs.units, rtol=SAME, equal_nan=True).reshape(len(ids), -1).all(axis=1)
        )
        if not same.all():
            told = " and ".join(figure_text(each.estimate().value) for each in (ours, theirs))
            raise UserError(
                f"{first.folder} and {report.folder} differ before any steering: {name} is {told}, other at "
                f"{int((~same).sum())} of {len(ids)} prompts; use one model, one seed and the same numbers"
            )


def join(tradeoffs: Sequence[Tradeoff], measures: Sequence[str]) -> Methods:
    """Return the methods of all folders together; UserError where they do not compare."""
    first, methods, checked = tradeoffs[0].unsteered, Methods(), [FLUENCY.measure, *measures]
    for tradeoff in tradeoffs:
        for report in tradeoff.reports():
            check_alike(report, first, checked)
        check_start(tradeoff.unsteered, first, checked)
        for name, points in tradeoff.methods.items():
            for beta, report in points.items():
                _add(methods, name, beta, report)
    if not methods:
        folders = ", ".join(str(tradeoff.folder) for tradeoff in tradeoffs)
        raise UserError(f"{folders}: no steered samples to compare; run eval.tradeoff with a beta above 0")
    return methods


def compare_by(
    measure: str, first: SavedReport, methods: Methods, ratios: Sequence[float], reference: str | None
) -> Compared:
    """Return how all methods compare by one measure; UserError if no prompt is scored at every point."""
    ids, better = list(first.units), first.figures()[measure]["better"]

    def strength(beta: float, report: SavedReport) -> Strength:
        return Strength(beta, report.measure(FLUENCY.measure, ids), report.measure(measure, ids))

    points = {name: {b: strength(b, report) for b, report in each.items()} for name, each in methods.items()}
    outcomes, unsteered = compare(strength(0.0, first), points, ratios, better, reference)
    return Compared(measure, better, unsteered, outcomes)


def lines(compared: Compared, reference: str | None) -> list[dict[str, str]]:
    """Return what people read, a line a ratio and method, unsteered first."""
    found = [_line(outcome, compared.better, reference) for outcome in compared.outcomes]
    start = {"x perplexity": "1", "method": "none", "value": estimate_text(compared.unsteered)}
    return [{**dict.fromkeys(found[0], ""), **start}, *found]


def _line(found: Outcome, better: Better, reference: str | None) -> dict[str, str]:
    bound = "" if found.reached else {"higher": "≥ ", "lower": "≤ "}[better]
    against = {} if reference is None else {f"against {reference}": _difference_text(found.against)}
    return {
        "x perplexity": f"{found.ratio:g}", "method": found.method,
        "value": bound + estimate_text(found.value), "change": _difference_text(found.change),
        **against, "beta": f"{found.beta:.3g}",
    }  # fmt: skip


def _difference_text(found: Difference | None) -> str:
    if found is None:
        return DASH
    value, low, high = (f"{'+' * (x >= 0)}{figure_text(x)}" for x in (found.value, *found.interval))
    return f"{value} [{low}, {high}], p {found.p:.2g}"


def markdown(compared: Compared, reference: str | None) -> str:
    """Return a heading and a pipe table of `lines`."""
    found = lines(compared, reference)
    table = [list(found[0]), ["---"] * len(found[0]), *(list(line.values()) for line in found)]
    rows = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in table]
    title = f"{compared.measure} ({compared.better} is better), {compared.unsteered.n} prompts"
    return f"### {title}\n\n" + "".join(f"| {row} |\n" for row in rows)


def report(
    found: Sequence[Compared], reference: str | None, settings: Mapping[str, Any], folder: Path | None
) -> None:
    """Print the table to standard error and one JSON line to standard output; with a folder, write both.

    Raises UserError if the folder cannot be written.
    """
    from decoder.records import about
    from eval.report import emit

    rows = [{"measure": each.measure, **outcome.as_json()} for each in found for outcome in each.outcomes]
    notes = [NOTE] if not all(row["reached"] for row in rows) else []
    if folder is not None:
        tables = "\n".join([*(markdown(each, reference) for each in found), *(f"{note}\n" for note in notes)])
        encoded = {"settings": dict(settings), "run": about(), "rows": rows}
        _write(folder, tables, json.dumps(encoded, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    shown = [{"by": each.measure, **line} for each in found for line in lines(each, reference)]
    emit(NAME, rows, {}, settings, shown=shown)
    notes += [f"left out: {name}, whose steered samples are not there" for name in settings["left out"]]
    print("\n".join(notes), file=sys.stderr, end="\n" * bool(notes))


def _write(folder: Path, tables: str, encoded: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{NAME}.md").write_text(tables, encoding="utf-8")
        (folder / f"{NAME}.json").write_text(encoded, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to output {folder} ({error.strerror}): give another folder") from None


Folders = Annotated[list[Path], typer.Argument(help="Folders that eval.tradeoff wrote.", metavar="FOLDER")]
Ratios = Annotated[list[float] | None, typer.Option(help="Perplexity over the unsteered one. [1.1 1.25]")]
MeasureNames = Annotated[list[str] | None, typer.Option(help="Figures to compare by. [each attribute's]")]
Reference = Annotated[str | None, typer.Option(help="Method that the others are compared with.")]
Output = Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")]


def equal_perplexity(
    folders: Folders, ratios: Ratios = None, measure: MeasureNames = None,
    reference: Reference = None, output: Output = None,
) -> None:  # fmt: skip
    """Tell what each method reaches at the same perplexity, and how they differ, paired over prompts."""
    asked = list(dict.fromkeys(ratios or [1.1, 1.25]))
    for ratio in asked:
        if not 1 <= ratio < math.inf:
            raise UserError(f"ratio {ratio:g} is no budget: give a finite number of at least 1, such as 1.1")
    tradeoffs = [read_tradeoff(folder) for folder in folders]
    reports = [report for tradeoff in tradeoffs for report in tradeoff.reports()]
    measures = choose_measures(reports, measure or [])
    methods = join(tradeoffs, measures)
    if reference is not None and reference not in methods:
        raise UserError(f"no method is called {reference!r}: choose one of {', '.join(methods)}")
    found = [compare_by(name, reports[0], methods, asked, reference) for name in measures]
    elsewhere = [f"{name} of {t.folder}" for t in tradeoffs for name in t.left_out if name not in methods]
    settings = {
        "folders": [str(folder) for folder in folders], "prompts": len(reports[0].units),
        "reference": reference, "left out": elsewhere,
        "unsteered": {each.measure: [each.unsteered.value, *each.unsteered.interval] for each in found},
    }  # fmt: skip
    report(found, reference, settings, output)


app = make_app(equal_perplexity, lists=("--ratios", "--measure"))

if __name__ == "__main__":
    run(app)
