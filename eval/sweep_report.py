"""The report of a sweep: tables with intervals in Markdown, and quality against noise, pairs and cost.

    python -m eval.sweep_report sweep

Writes report.md, noise.png, pairs.png and cost.png into the folder that `rewards.sweep` wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decoder.cli import make_app, run

if TYPE_CHECKING:
    from eval.sweep_summary import Sweep

REPORT = "report.md"
PICTURES = {
    "noise": ("noise.png", "Quality against the share of labels that are flipped."),
    "n_pairs": ("pairs.png", "Quality against the number of labelled pairs."),
    "cost": (
        "cost.png",
        "Quality against processor seconds a cell; a point a number of pairs, joined as they grow.",
    ),
}
INTERVALS = (
    "Intervals are 95 % bootstrap intervals over rounds: a round is one split and seed, which draw test "
    "prompts, pairs, labels and weights anew. Rounds on one split share its test prompts."
)


CONTRASTS = (
    "Differences are paired over rounds. The deviation over seeds is of one setting (split, pairing, pairs, "
    "noise, golden reward), pooled over settings, which are its units."
)
Folder = Annotated[Path, typer.Argument(help="Output folder of a finished rewards.sweep.")]


def sweep_report(folder: Folder) -> None:
    """Write the tables and pictures of a sweep beside its results."""
    from eval.sweep_summary import read_sweep

    path = write_report(folder, read_sweep(folder))
    print(json.dumps({"sweep_report": str(path), "pictures": [name for name, _ in PICTURES.values()]}))


def write_report(folder: Path, sweep: Sweep) -> Path:
    """Return the path of the Markdown page, written with its pictures. UserError without matplotlib."""
    from eval.sweep_picture import draw_sweep

    for against, (name, _) in PICTURES.items():
        draw_sweep(sweep, against, folder / name)
    (folder / REPORT).write_text(page(sweep), encoding="utf-8")
    return folder / REPORT


def page(sweep: Sweep) -> str:
    """Return the report as Markdown."""
    from eval.sweep_contrasts import all_contrasts
    from eval.sweep_summary import axis_rows, best_rows, errors, readable

    n_failed, hours = int(sweep.failed.sum()), sweep.columns["seconds"].sum() / 3600
    parts = [
        "# Sweep",
        f"{len(sweep):,} cells, {n_failed:,} failed, {hours:.2f} processor hours.",
        _settings(sweep.settings),
        INTERVALS,
        "## Best configurations of each head",
        table(readable(best_rows(sweep))),
        "## Mean over the axes",
        table(readable(axis_rows(sweep))),
        "## What choosing among n samples gains",
        "Golden reward of the expected best of n less the prompt's mean.",
        table(readable(gain_rows(sweep))),
        "## Two at a time",
        CONTRASTS,
        *[f"### {title}\n\n{table(readable(rows))}" for title, rows in all_contrasts(sweep) if rows],
        *[f"## {caption}\n\n![{caption}]({name})" for name, caption in PICTURES.values()],
    ]
    if n_failed:
        told = [{"cells": f"{count:,}", "error": error} for error, count in errors(sweep).items()]
        parts += ["## Errors", table(told)]
    return "\n\n".join(parts) + "\n"


def gain_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Return a row a head and golden reward: its gain at each n, over all cells."""
    names = {name.replace("improvement_at_", "n = "): name for name in sweep.columns if "improvement" in name}
    rows = []
    for head in sweep.values("head"):
        for golden in sweep.values("golden"):
            cells = sweep.where(head=head, golden=golden)
            gains = {shown: sweep.estimate(name, cells) for shown, name in names.items()}
            rows.append({"head": head, "golden": golden, **gains})
    return rows


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows as a Markdown table."""
    if not rows:
        return "(nothing)"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *[list(row.values()) for row in rows]]
    return "\n".join(f"| {' | '.join(each.replace('|', '/') for each in line)} |" for line in lines)


def _settings(settings: Mapping[str, Any]) -> str:
    told = [{"setting": key, "value": json.dumps(value)} for key, value in settings["grid"].items()]
    return table([*told, {"setting": "stores", "value": ", ".join(settings["stores"])}])


app = make_app(sweep_report)

if __name__ == "__main__":
    run(app)
