"""Show on stdout what the training of a probe found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SHOWN = ("chosen", "single", "best", "gap_closed", "auc", "within_auc")


def report(folder: Path, about: Mapping[str, Any]) -> None:
    """Print the data, the measures of every fit, the seconds, and where the probe went.

    Several fits of one size are told by their mean, lowest and highest.
    """
    console, training = Console(), about["training"]
    reading = sum(training["seconds_reading_states"].values())
    n_prompts, n_samples = training["n_prompts"]["training"], training["n_completions"]["training"]
    console.print(
        f"{n_prompts} prompts, {n_samples} completions, {training['n_tokens']['training']} tokens; "
        f"{about['recipe']['form']}, {about['n_parameters']} parameters; loss {about['recipe']['loss']}, "
        f"epoch {about['epoch']} kept; states read in {reading:.0f} s, "
        f"fitted in {about['fits'][-1]['seconds']:.0f} s",
        highlight=False,
    )
    for name in about["metrics"]:
        console.print(_table(name, about["fits"]))
    console.print("Choose with it:", highlight=False)
    console.print(f"  python -m decoder.best_of_n --scorer {folder}", highlight=False, soft_wrap=True)


def _table(name: str, fits: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=f"{name}: {fits[-1][name]['n_prompts']} prompts", title_justify="left")
    for column in ("trained on", "fits", *SHOWN):
        table.add_column(column.replace("_", " "), justify="right")
    for size in dict.fromkeys(each["prompts"] for each in fits):
        found = [each[name] for each in fits if each["prompts"] == size]
        table.add_row(str(size), str(len(found)), *(_cell([each[key] for each in found]) for key in SHOWN))
    return table


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{sum(known) / len(known):.3f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.3f} to {max(known):.3f})"
