"""Show on stdout what a training run found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rewards.arm_training import TrainedArm
from rewards.measure_arm import Measures


def report(folder: Path, trained: TrainedArm, training: Mapping[str, Any]) -> None:
    """Print the data, the choice, the measures by prefix, the seconds and where the head went."""
    console, choice = Console(), trained.choice
    n_texts, shares = training["n_texts"], training["positive_share"]
    console.print(
        f"label {trained.column}: {n_texts['train']} training and {n_texts['validation']} validation texts, "
        f"{training['n_tokens']} tokens, {shares[trained.column]:.1%} positive; left out "
        f"{training['n_rows_empty']} empty and {training['n_rows_repeated']} repeated rows",
        highlight=False,
    )
    console.print(
        f"layers {', '.join(map(str, choice.arm.layers))}, rank {choice.arm.rank}, weight decay "
        f"{choice.recipe.weight_decay:g}, best of {len(choice.trials)} fits on validation; epoch "
        f"{choice.fit.epoch} kept, temperature {choice.fit.temperature:.2f}",
        highlight=False,
    )
    for name, rows in trained.measures.items():
        console.print(_table(name, rows))
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in training["seconds"].items())
    console.print(f"{seconds}; saved {size:.1f} MB. Steer with it:", highlight=False)
    console.print(f"  python -m decoder.generate --reward {folder}", highlight=False, soft_wrap=True)


def _table(name: str, rows: list[Measures]) -> Table:
    table = Table(title=name, title_justify="left")
    table.add_column("text read")
    for column in ("texts", "AUC", "accuracy", "balanced", "calibration error"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (row.auc, row.accuracy, row.balanced_accuracy, row.calibration_error)
        shown = ("-" if number is None else f"{number:.3f}" for number in numbers)
        table.add_row(row.prefix, str(row.n_texts), *shown)
    return table
