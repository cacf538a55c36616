"""Show on stdout what an augmentation made, and how to train on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rewards.augmentation_record import PAIRS, STOP
from rewards.head_options import PairOptions


def report(folder: Path, pairs: PairOptions, about: Mapping[str, Any]) -> None:
    """Print the ratio, what the method found, the seconds and memory, warnings, and what to run next."""
    console = Console(highlight=False)
    table = Table(show_header=False, box=None)
    for name, value in _lines(about):
        table.add_row(name, value)
    console.print(table)
    for warning in about["warnings"]:
        console.print(f"warning: {warning}", style="bold", soft_wrap=True)
    console.print("Train a reward head on it:")
    console.print(f"  {_next(folder, pairs, about['seed'])}", soft_wrap=True)


def _lines(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in about["seconds"].items())
    lines = [
        ("method", f"{about['method']}, combined {about['combine']}"),
        (
            "augmentation ratio",
            f"{about['ratio']:g} = {about['n_pairs']} pairs to learn from / {about['n_original']} original",
        ),
        ("made", f"{about['n_synthetic']} synthetic pairs; {about['n_stop']} original pairs to stop on"),
    ]
    if "separation" in about["figures"]:  # of LENS itself
        lines += _autoencoder(about["figures"])
    elif about["figures"]:
        found = [f"{name.replace('_', ' ')} {value:,.4g}" for name, value in about["figures"].items()]
        lines.append(("found", ", ".join(found)))
    return [*lines, ("time", seconds), ("peak memory", f"{about['peak_memory_mib']} MiB")]


def _autoencoder(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the lines about an autoencoder; figures are of held-out pairs where not said otherwise."""
    return [
        ("autoencoder", f"{found['n_parameters']:,} parameters, best at step {found['step']}"),
        ("reconstruction R2", f"{found['r2']:.3f} held out, {found['r2_train']:.3f} in training"),
        (
            "latents",
            f"{found['active']} of {found['latent']} active, KL {found['kl']:.1f} nats a text, mean square "
            f"{found['second_moment']:.2f}, median deviation {found['deviation']:.3f}",
        ),
        (
            "chosen and rejected",
            f"W2 {found['w2']:.2f} held out, {found['w2_train']:.2f} in training; "
            f"{found['separation']:.2f} times that of two texts",
        ),
    ]


def _next(folder: Path, pairs: PairOptions, seed: int) -> str:
    """Return the command that trains on the same split."""
    said = [f"--pairs-file {folder / PAIRS}", f"--stop-pairs {folder / STOP}", f"--seed {seed}"]
    for name in ("reward_column", "test", "test_share"):
        if getattr(pairs, name) is not None:
            said.append(f"--{name.replace('_', '-')} {getattr(pairs, name)}")
    return f"python -m rewards.train_head {folder} {' '.join(said)} --output HEAD"
