"""Show on stdout what the training of a head found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def report(folder: Path, store: Path, encoder: str, about: Mapping[str, Any]) -> None:
    """Print the pairs, the figures with their intervals, the seconds, and what to run next.

    encoder: the model that made the embeddings, whose samples the head can choose among if it generates.
    """
    console, training = Console(), about["training"]
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in training["seconds"].items())
    console.print(f"{about['head']}: {_pairs(training)}; {seconds}", highlight=False)
    if about["metrics"]:
        console.print(_table(about["metrics"], training["test"]))
    else:
        console.print("No held-out row has a golden reward or a preference: nothing was measured.")
    console.print(f"Score with it, or choose among samples of {encoder}, if it generates:", highlight=False)
    for command in (
        f"rewards.score {store} --head {folder} --output scores.jsonl",
        f"decoder.best_of_n --model {encoder} --scorer {folder}",
    ):
        console.print(f"  python -m {command}", highlight=False, soft_wrap=True)


def _pairs(training: Mapping[str, Any]) -> str:
    """Return how many pairs there were, and how they were labelled."""
    if "pairs_file" in training:
        return (
            f"{training['n_pairs']} of {training['n_pairs_given']} pairs of {training['pairs_file']}, "
            f"{training['test']['n_pairs']} held out, {training['n_pairs_left_out']} across both"
            f"{_augmentation(training.get('augmentation'))}"
        )
    return (
        f"{training['n_pairs']} {training['pairing']} pairs by {training['reward_column']}, "
        f"{training['flip_rate']:.1%} of the labels flipped (expected {training['expected_flip_rate']:.1%}, "
        f"beta {_number(training['beta'])}); {training['rows_without_reward']} rows have no reward"
    )


def _augmentation(found: Mapping[str, Any] | None) -> str:
    """Return by how much and how the pairs were augmented, after a semicolon; "" if they were not."""
    if not found:
        return ""
    told = f"{found['ratio']:g} x {found['n_original']}, {found['method']}, combined {found['combine']}"
    return f"; augmentation ratio {told}"


def _table(metrics: Mapping[str, Mapping[str, Any]], test: Mapping[str, Any]) -> Table:
    title = f"{test['store']}: {test['n_prompts']} held-out prompts, {test['n_rows']} rows"
    table = Table(title=title, title_justify="left")
    for column in ("", "value", "95 % interval", "prompts"):
        table.add_column(column, justify="left" if not column else "right")
    for name, found in metrics.items():
        shown = ("-", "-") if found["value"] is None else (f"{found['value']:.4f}", _interval(found))
        table.add_row(name, *shown, f"{found['scored']}/{found['total']}")
    return table


def _interval(found: Mapping[str, Any]) -> str:
    return f"{found['low']:.4f} to {found['high']:.4f}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
