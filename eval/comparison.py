"""Two saved evaluations, paired prompt by prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decoder.contracts import UserError
from eval.metric import Measure


@dataclass(frozen=True, slots=True)
class SavedReport:
    """report.json, and units.jsonl by prompt id."""

    folder: Path
    report: Mapping[str, Any]
    units: Mapping[str, Mapping[str, Any]]

    def figures(self) -> dict[str, Mapping[str, Any]]:
        """Return the report's figures by name."""
        return {figure["name"]: figure for figure in self.report["measures"]}

    def measure(self, name: str, ids: list[str]) -> Measure:
        """Return a figure over these prompts, in this order."""
        found = [self.units[each][name] for each in ids]
        width = next((len(unit) for unit in found if isinstance(unit, list)), 1)
        filled = [[np.nan] * width if unit is None else unit for unit in found]
        rows = np.array(filled, dtype=float).reshape(len(ids), -1)
        units = rows[:, 0] if width == 1 else rows
        return Measure(name, units, len(ids), len(ids), "", str(self.figures()[name]["statistic"]))


def read_report(folder: Path) -> SavedReport:
    """Return the evaluation in a folder. Raises UserError if it is missing, unfinished or broken."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        lines = (folder / "units.jsonl").read_text(encoding="utf-8").splitlines()
        units = {str(row["prompt_id"]): row for row in map(json.loads, lines)}
        names = [figure["name"] for figure in report["measures"]]
    except OSError as error:
        raise UserError(
            f"{folder} holds no finished evaluation ({Path(str(error.filename)).name}: {error.strerror}): "
            f"make one with python -m eval.run GENERATIONS.jsonl --output {folder}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: report.json or units.jsonl is broken; run eval.run again") from None
    absent = [name for name in names if any(name not in row for row in units.values())]
    if absent:
        raise UserError(
            f"{folder}: units.jsonl lacks {absent[0]!r}, which report.json has; run eval.run again"
        )
    return SavedReport(folder, report, units)


def compare_reports(a: SavedReport, b: SavedReport) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row a figure that both have and the settings. Raises UserError where nothing pairs."""
    ids = [each for each in a.units if each in b.units]
    if not ids:
        raise UserError(
            f"{a.folder} and {b.folder} share no prompt: the first begins with {next(iter(a.units))!r}, "
            f"the second with {next(iter(b.units))!r}; compare generations for the same prompts"
        )
    names = [name for name in a.figures() if name in b.figures()]
    judged_alike = [name for name in names if _scorer(a, name) == _scorer(b, name)]
    if not judged_alike:
        why = f"{_scorer(a, names[0])} and {_scorer(b, names[0])}" if names else "no figure in common"
        raise UserError(f"{a.folder} and {b.folder} were not measured alike ({why}): run eval.run alike")
    settings = {
        "a": str(a.folder), "b": str(b.folder), "prompts": len(ids),
        "only in a": len(a.units) - len(ids), "only in b": len(b.units) - len(ids),
        "measured otherwise": [name for name in names if name not in judged_alike],
    }  # fmt: skip
    return [_row(a.measure(name, ids), b.measure(name, ids)) for name in judged_alike], settings


def _scorer(report: SavedReport, name: str) -> Any:
    return report.report["metrics"][report.figures()[name]["metric"]]


def _row(a: Measure, b: Measure) -> dict[str, Any]:
    found = b.minus(a)
    return {
        "figure": a.name,
        "a": a.estimate().value,
        "b": b.estimate().value,
        "b - a": found.value,
        "interval": found.interval,
        "p": found.p,
        "n": found.n,
    }
