"""Show on stdout what a training run of a reward with its own backbone found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rewards.backbone import BackboneConfig

NUMBERS = ("auc", "accuracy", "balanced_accuracy", "calibration_error")


def report(folder: Path, config: BackboneConfig, about: Mapping[str, Any]) -> None:
    """Print the data, the fit, the measures by prefix, the seconds and where the reward went."""
    console, training, fit = Console(), about["training"], about["fit"]
    n_texts = training["n_texts"]
    shares = ", ".join(f"{share:.1%} {name}" for name, share in training["positive_share"].items())
    lines = [
        f"{n_texts['train']} training and {n_texts['validation']} validation texts, {training['n_tokens']} "
        f"tokens, {shares}; left out {training['n_rows_empty']} empty and {training['n_rows_repeated']} "
        "repeated rows",
        f"backbone {config.backbone.name}, {config.adaptation}, link {config.link}, output {config.output}: "
        f"step {fit['step_kept']} of {fit['steps']} kept, validation loss {fit['validation_loss']:.4f}",
    ]
    for line in lines:
        console.print(line, highlight=False)
    for column, sets in about["metrics"].items():
        for name, rows in sets.items():
            console.print(_table(f"{column}, {name}", rows))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in training["seconds"].items())
    speed = f"{fit['tokens_per_second']:.0f} tokens/s in the fit, {training['peak_memory_mib']} MiB at most"
    console.print(f"{seconds}; {speed}; saved {size:.1f} MB. Steer with it:", highlight=False)
    console.print(f"  python -m decoder.generate --reward {folder}", highlight=False, soft_wrap=True)


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("text read")
    for column in ("texts", "AUC", "accuracy", "balanced", "calibration error"):
        table.add_column(column, justify="right")
    for row in rows:
        shown = ("-" if row[name] is None else f"{row[name]:.3f}" for name in NUMBERS)
        table.add_row(row["prefix"], str(row["n_texts"]), *shown)
    return table
