"""An evaluation for people: a table on the terminal, markdown for papers, one JSON line for programs."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from eval.evaluation import Evaluation, figure
from eval.metric import Measure

COLUMNS = ("figure", "value", "95 % interval", "n prompts", "scored/total", "by")


def emit_report(done: Evaluation, folder: Path) -> None:
    """Write report.md; print the table to standard error and one JSON line to standard output."""
    rows = [cells(measure, by(done, metric)) for metric, found in done.measures.items() for measure in found]
    table = Table(*COLUMNS, title=f"{len(done.prompts)} prompts")
    for row in rows:
        table.add_row(*row)
    Console(stderr=True).print(table)
    (folder / "report.md").write_text(markdown(rows), encoding="utf-8")
    figures = [figure(metric, each) for metric, found in done.measures.items() for each in found]
    print(json.dumps({"report": str(folder / "report.json"), "measures": figures}), flush=True)


def by(done: Evaluation, metric: str) -> str:
    """Return judge and version, or the model, of a metric."""
    about = done.about[metric]
    named = [str(about[key]) for key in ("judge", "version", "model", "reads") if key in about]
    return ", ".join(named)


def cells(measure: Measure, scorer: str) -> tuple[str, ...]:
    """Return one row of the table."""
    found = measure.estimate()
    if not found.n:
        return measure.name, "not scored", "", "0", f"{measure.scored}/{measure.total}", scorer
    interval = f"{found.low:.4g} to {found.high:.4g}"
    coverage = f"{measure.scored}/{measure.total}"
    return measure.name, f"{found.value:.4g}", interval, str(found.n), coverage, scorer


def markdown(rows: list[tuple[str, ...]]) -> str:
    """Return the table as markdown; the intervals are bootstrapped over prompts."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
