"""An embedding store at size: written, opened, learnt from, and crashed; each in a process of its own.

Memory is the child's peak as the system counts it, mapped pages of the store that it touched included. Linux
lets that count begin with the peak of the process that starts the child, so nothing large may happen here.
"""

from __future__ import annotations

import json
import math
import select
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from resource import struct_rusage
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from decoder.contracts import UserError
from decoder.terminal import progress
from eval.stats import bootstrap
from eval.store_crash import BLOCK, Crash, call, child, crash_often, finish
from eval.synthetic_embeddings import make_synthetic
from rewards.head_options import TEST_SHARE, HeadOptions, PairOptions
from rewards.store import open_store
from rewards.store_rows import arrow
from rewards.store_shards import LOG, read_log

if TYPE_CHECKING:
    from eval.report import Target

SECONDS = 1.0  # that an opening may take
MIB = 2048  # that a training may hold
COLUMN_BYTES = 40  # of a row beside its embedding; measured: 7, and 19 where appended in small shards
BLOCKS_A_CRASH = 64  # room for them on the disk; a child is killed after a dozen


@dataclass(frozen=True, slots=True)
class StorePlan:
    """The size of the store, `samples` rows a prompt, what is trained on it, and how often what is done."""

    rows: int = 1_000_000
    dimension: int = 2048
    samples: int = 10
    pairs: int = 100_000
    head: str = "bt-mlp"
    crashes: int = 10
    rounds: int = 5
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for what cannot be, before gigabytes are written for it."""
        if self.rows % self.samples:
            raise UserError(
                f"{self.rows} rows are no whole number of prompts of {self.samples} samples: give a multiple"
            )
        HeadOptions(head=self.head).check()
        PairOptions(pairs=self.pairs).check()
        prompts = round((1 - TEST_SHARE) * (self.rows // self.samples))
        most = prompts * math.comb(self.samples, 2)
        if self.pairs > most:
            raise UserError(
                f"{self.pairs} pairs asked for, and the {prompts} prompts to train on have {most}: give "
                "fewer --pairs, or more --rows"
            )

    def n_bytes(self, rows: int) -> int:
        """Return what so many rows take on the disk, at most."""
        return rows * (2 * self.dimension + COLUMN_BYTES)


def bench_store(
    folder: Path | None, plan: StorePlan
) -> tuple[list[dict[str, Any]], dict[str, Target], dict[str, Any]]:
    """Return a row for each part (write, open, train, crash), checks and settings.

    folder: where the synthetic store is kept, in `store`, and found again; None for a temporary one. Raises
    UserError for a plan that cannot be, a folder with another store, too small a disk, and a failed child.
    """
    plan.check()
    arrow()
    with _place(folder) as place:
        store = place / "store"
        written = _write(store, plan)
        openings = _open(store, plan.rounds)
        trained = _train(store, plan)
        crashes, verifying = crash_often(store, plan.crashes, plan.seed)
    seconds = bootstrap(openings, np.median)
    rows = [
        written,
        {"part": "open", "seconds": seconds.value, "interval": seconds.interval},
        trained,
        _crash_row(crashes, verifying),
    ]
    return rows, _checks(openings, trained["peak_mib"], crashes), asdict(plan)


def shown(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows for people, a figure a line; without those that were not measured."""
    return [
        {"part": row["part"], "figure": name.replace("_", " "), "value": value}
        for row in rows
        for name, value in row.items()
        if name != "part" and value not in (None, "")
    ]


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with TemporaryDirectory() as name:
            yield Path(name)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make --folder {folder} ({error.strerror}): give another") from None
    yield folder


def _write(store: Path, plan: StorePlan) -> dict[str, Any]:
    """Write the store, or find it; return its size, and the seconds of writing if it was written."""
    found, seconds = _is_there(store, plan), None
    extra = plan.n_bytes(plan.crashes * BLOCKS_A_CRASH * BLOCK)
    _require_room(store.parent, extra + (0 if found else plan.n_bytes(plan.rows)))
    if not found:
        seconds = _write_in_child(store, plan)
    return {
        "part": "write",
        "seconds": seconds,
        "rows_per_second": seconds and plan.rows / seconds,
        "mib": sum(path.stat().st_size for path in store.iterdir()) / 2**20,
        "shards": len(read_log(store)[0]),
    }


def _is_there(store: Path, plan: StorePlan) -> bool:
    """Return whether the planned store is there. UserError if it is another, or half of it."""
    if not store.exists():
        return False
    there = open_store(store)
    about, samples = there.manifest, int(there.sample_indices().max(initial=-1)) + 1
    theirs = f"{len(there)} x {about.dimension} {about.dtype} of {about.encoder.name}, {samples} a prompt"
    ours = f"{plan.rows} x {plan.dimension} float16 of synthetic-{plan.seed}, {plan.samples} a prompt"
    if theirs != ours:
        raise UserError(
            f"{store} holds {theirs}, and {ours} was asked for: delete it, or give another --folder"
        )
    return True


def _require_room(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise UserError(
            f"the store takes {n_bytes / 1e9:.2f} GB with its crashes and {folder} has {free / 1e9:.2f} GB "
            "free: give another --folder, or fewer --rows"
        )


def _write_in_child(store: Path, plan: StorePlan) -> float:
    """Return the seconds of making and writing the rows."""
    sizes = plan.rows // plan.samples, plan.samples
    with (
        child(call(write_store, str(store), *sizes, plan.dimension, plan.seed)) as process,
        progress("rows", plan.rows) as advance,
    ):
        done = 0
        assert process.stdout is not None
        while not select.select([process.stdout], [], [], 0.2)[0]:  # it prints at its end
            now = sum(shard.rows for shard in read_log(store)[0]) if (store / LOG).exists() else 0
            advance(now - done)
            done = now
        return float(finish(process, "writing the store")[0])


def write_store(folder: str, n_prompts: int, samples: int, dimension: int, seed: int) -> None:
    """Write the store and print the seconds: a child's work."""
    begin = time.perf_counter()
    make_synthetic(Path(folder), [samples] * n_prompts, dimension, seed)
    print(time.perf_counter() - begin)


def _open(store: Path, rounds: int) -> list[float]:
    """Return the seconds of opening the store, each time in a new process."""
    seconds = []
    with progress("openings", rounds) as advance:
        for _ in range(rounds):
            with child(call(time_opening, str(store))) as process:
                seconds.append(float(finish(process, "opening the store")[0]))
            advance()
    return seconds


def time_opening(folder: str) -> None:
    """Open the store and print the seconds, those of importing left out: a child's work."""
    arrow()
    begin = time.perf_counter()
    open_store(folder)
    print(time.perf_counter() - begin)


def _train(store: Path, plan: StorePlan) -> dict[str, Any]:
    """Return seconds and peak memory of `rewards.train_head`, and what its head is worth."""
    with TemporaryDirectory() as folder:
        head = Path(folder) / "head"
        command = ["-m", "rewards.train_head", str(store), "--output", str(head)]
        command += ["--head", plan.head, "--pairs", str(plan.pairs), "--seed", str(plan.seed)]
        begin = time.perf_counter()
        with child(command) as process:
            _, usage = finish(process, "training the head")
        seconds = time.perf_counter() - begin
        about = json.loads((head / "config.json").read_text(encoding="utf-8"))
    spearman = about["metrics"]["spearman"]
    return {
        "part": "train",
        "seconds": seconds,
        "fit_seconds": about["training"]["seconds"]["fit"],
        "peak_mib": peak_mib(usage),
        "spearman": spearman["value"],
        "spearman_interval": [spearman["low"], spearman["high"]],
        "test_prompts": spearman["n"],
    }


def peak_mib(usage: struct_rusage) -> float:
    """Return the most memory a child has held; the system counts in KiB, but on a Mac in bytes."""
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _crash_row(crashes: Sequence[Crash], verifying: float) -> dict[str, Any]:
    recovered = [crash.seconds for crash in crashes if math.isfinite(crash.seconds)]
    return {
        "part": "crash",
        "crashes": len(crashes),
        "survived": sum(crash.survived for crash in crashes),
        "committed_rows_lost": sum(max(0, crash.committed - crash.found) for crash in crashes),
        "rows_compared": max(crash.compared for crash in crashes),
        "seconds_to_recover": float(np.median(recovered)) if recovered else None,
        "seconds_to_verify_all": verifying,
        "fault": crashes[-1].fault,  # the series ends with it
    }


def _checks(openings: Sequence[float], peak: float, crashes: Sequence[Crash]) -> dict[str, Target]:
    """Return the checks; a training happens once, so its interval is a point."""
    from eval.report import Target  # loads transformers, for which the children would wait

    return {
        "seconds to spare of 1 to open the store": Target(
            bootstrap(SECONDS - np.array(openings), np.median), 0.0
        ),
        "MiB to spare of 2048 to train a head": Target(bootstrap([MIB - peak]), 0.0),
        "rows found less rows committed, after the worst crash": Target(
            bootstrap([crash.found - crash.committed for crash in crashes], np.min), 0.0
        ),
        "share of crashes after which every row was as written": Target(
            bootstrap([float(crash.survived) for crash in crashes]), 1.0
        ),
    }
