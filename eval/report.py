"""How every benchmark reports: a table for people on standard error, one JSON line for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from decoder.models import versions
from eval.stats import Estimate


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that was measured, with its interval, beside the least it should be."""

    measured: Estimate
    at_least: float

    def as_json(self) -> dict[str, Any]:
        """Return value, interval, target and whether the value reaches it."""
        value = self.measured.value
        return {
            "value": value,
            "interval": self.measured.interval,
            "target": self.at_least,
            "ok": value >= self.at_least,
        }


def emit(
    benchmark: str,
    rows: Sequence[Mapping[str, Any]],
    checks: Mapping[str, Target],
    settings: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Print the rows and checks as tables to standard error and as one JSON line to standard output.

    shown: rows for people, where those for programs are too wide to read.
    """
    console = Console(stderr=True)
    lines = rows if shown is None else shown
    # folded, so that a narrow terminal loses no figure
    headers = [Column(str(key), overflow="fold") for key in lines[0]]
    table = Table(*headers, title=benchmark)
    for row in lines:
        table.add_row(*[_cell(value) for value in row.values()])
    console.print(table)
    found = {name: target.as_json() for name, target in checks.items()}
    for name, check in found.items():
        low, high = check["interval"]
        mark = "ok " if check["ok"] else "MISS"
        console.print(
            f"{mark} {name}: {check['value']:.3f} [{low:.3f}, {high:.3f}], target {check['target']:g}",
            highlight=False,
        )
    print(
        json.dumps(
            {
                "benchmark": benchmark,
                "versions": versions(),
                "settings": dict(settings),
                "rows": list(rows),
                "checks": found,
            }
        ),
        flush=True,
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " to ".join(_cell(item) for item in value)
    return str(value)
