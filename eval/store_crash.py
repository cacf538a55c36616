"""What an embedding store keeps when the process that appends to it is killed, again and again.

A child appends rows that can be computed again from their numbers, and says after each commit how many are
committed. It is killed with SIGKILL at a random moment; the next writer recovers the store, which must then
hold every row that was said to be committed, each bit for bit, and take more. What dies is a process, not the
machine: power cuts are what the writer calls fsync for, and are not tried here.

The store that suffers is a folder of hard links to the shards of the one given: all its bytes, none copied.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from decoder.contracts import UserError
from decoder.terminal import progress
from eval.synthetic_embeddings import GOLDEN
from rewards.store import Store, open_store
from rewards.store_manifest import FILE_NAME, read_manifest
from rewards.store_shards import LOG, Shard, read_log
from rewards.store_writer import Writer, open_writer

BLOCK = 256  # rows of a commit
MOST_COMMITS = 12  # that a child is left to say before the moment of its death is drawn
Shards = tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class Crash:
    """What was left after one kill.

    committed: rows that were said to be committed. found: rows there, 0 if the store cannot be opened.
    compared: appended rows, of this crash and before, that were computed again. seconds: of the recovery,
    NaN if it failed. fault: what is wrong, "" for nothing.
    """

    committed: int
    found: int
    compared: int
    seconds: float
    fault: str

    @property
    def survived(self) -> bool:
        """Return whether no committed row was lost or changed, and the store took more."""
        return not self.fault and self.found >= self.committed


@contextmanager
def child(command: Sequence[str]) -> Iterator[Popen[str]]:
    """Yield a started Python process, its standard output a pipe; it is dead when the block ends."""
    # A session of its own, so that Ctrl-C ends it through us, and it has nothing to say about that.
    with Popen([sys.executable, *command], stdout=PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def call(function: Callable[..., None], *arguments: Any) -> list[str]:
    """Return the command of a child that calls a function of a module with arguments that JSON holds."""
    where = [function.__module__, function.__name__, json.dumps(arguments)]
    return ["-c", "from eval.store_crash import main; main()", *where]


def main() -> None:
    """Call the function that the arguments name: how the children of `call` begin."""
    module, name, arguments = sys.argv[1:]
    try:
        getattr(importlib.import_module(module), name)(*json.loads(arguments))
    except UserError as error:
        sys.exit(f"error: {error}")


def finish(process: Popen[str], what: str) -> tuple[str, resource.struct_rusage]:
    """Return what a child printed, and what it used, when it has ended. UserError if it failed."""
    printed = _lines_left(process)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise failure(process, what)
    return printed, usage


def failure(process: Popen[str], what: str) -> UserError:
    """Return the error of a child that ended by itself, and should not have."""
    why = "was memory short?" if process.returncode == -signal.SIGKILL else "its own message is above"
    return UserError(f"{what} ended with exit code {process.returncode}: {why}")


def crash_often(folder: Path, n_crashes: int, seed: int) -> tuple[list[Crash], float]:
    """Return what each kill left of the store in the folder, and the seconds of checking all of it at last.

    The store itself is not changed. A fault ends the series; one of the last check is the last crash's.
    Raises UserError if the folder cannot hold hard links, and if the child ends before it is killed.
    """
    rng = np.random.default_rng((seed, 21))
    with TemporaryDirectory(dir=folder.parent, prefix="crashes-") as copy:
        base = link_store(folder, Path(copy))
        n_rows = sum(shard.rows for shard in base)
        crashes: list[Crash] = []
        with progress("crashes", n_crashes) as advance:
            while len(crashes) < n_crashes and all(not crash.fault for crash in crashes):
                n_rows = max(n_rows, kill_a_writer(Path(copy), base, seed, rng))
                crashes.append(recover(Path(copy), base, n_rows, seed))
                n_rows = crashes[-1].found + BLOCK
                advance()
        begin = time.perf_counter()
        with Console(stderr=True).status("verifying the whole store"):
            fault = damage(Path(copy))
        if fault and not crashes[-1].fault:
            crashes[-1] = replace(crashes[-1], fault=fault)
        return crashes, time.perf_counter() - begin


def link_store(source: Path, target: Path) -> Shards:
    """Return the shards of a store after linking their files into an empty folder, the log being copied."""
    shards, _ = read_log(source)
    for name in (FILE_NAME, LOG):
        shutil.copy(source / name, target / name)
    try:
        for name in (name for shard in shards for name in shard.files):
            os.link(source / name, target / name)
    except OSError as error:
        raise UserError(
            f"{target} cannot hold hard links to {source} ({error.strerror}), which the crashes need: "
            "give a --folder on another file system"
        ) from None
    return shards


def kill_a_writer(folder: Path, base: Shards, seed: int, rng: np.random.Generator) -> int:
    """Return the rows that a child said were committed when it was killed, 0 to 2 commits after a random one.

    Raises UserError if it ended by itself, as on a full disk.
    """
    with child(call(append_blocks, str(folder), sum(shard.rows for shard in base), seed)) as process:
        assert process.stdout is not None
        said = [process.stdout.readline()]
        begin, n_commits = time.perf_counter(), int(rng.integers(1, MOST_COMMITS + 1))
        said += [process.stdout.readline() for _ in range(n_commits)]
        time.sleep(rng.uniform(0, 2) * (time.perf_counter() - begin) / n_commits)
        process.kill()
        said += _lines_left(process).splitlines(keepends=True)
        if process.wait() != -signal.SIGKILL:
            raise failure(process, "appending")
    return int([line for line in said if line.endswith("\n")][-1])


def append_blocks(folder: str, n_base: int, seed: int) -> None:
    """Append blocks of rows until killed, printing the committed rows at first and after each commit."""
    with open_writer(folder, read_manifest(Path(folder))) as writer:
        while True:
            print(writer.n_rows, flush=True)  # ends the child when nobody reads any more
            append_next(writer, n_base, seed)


def append_next(writer: Writer, n_base: int, seed: int) -> None:
    """Append and commit the block after those that a store of n_base other rows has."""
    block, torn = divmod(writer.n_rows - n_base, BLOCK)
    if torn or block < 0:
        raise UserError(
            f"{writer.n_rows} rows are there, {n_base} were before any block of {BLOCK}: rows are lost"
        )
    writer.append(**rows_of(block, writer.manifest.dimension, seed))
    writer.commit()


def rows_of(block: int, dimension: int, seed: int) -> dict[str, Any]:
    """Return the BLOCK rows of that number, as `Writer.append` takes them, embeddings (BLOCK, D) float32."""
    rng = np.random.default_rng((seed, 22, block))
    numbers = range(block * BLOCK, (block + 1) * BLOCK)
    return {
        "prompt_ids": [f"appended-{block}"] * BLOCK,
        "sample_indices": list(range(BLOCK)),
        "texts": [f"row {number}" for number in numbers],
        "labels": {GOLDEN: rng.standard_normal(BLOCK)},
        "embeddings": rng.standard_normal((BLOCK, dimension), dtype=np.float32),
    }


def recover(folder: Path, base: Shards, committed: int, seed: int) -> Crash:
    """Return what is left of a store whose writer was killed, after recovering it and appending a block."""
    begin, seconds, found, compared, fault = time.perf_counter(), float("nan"), 0, 0, ""
    try:
        with open_writer(folder, read_manifest(folder)) as writer:
            seconds, found = time.perf_counter() - begin, writer.n_rows
            append_next(writer, sum(shard.rows for shard in base), seed)
        compared = compare(folder, base, seed)
        if found > committed + BLOCK:
            fault = f"{found} rows are there where {committed + BLOCK} at most can have been committed"
    except UserError as error:  # damage is what is looked for here
        fault = str(error)
    return Crash(committed, found, compared, seconds, fault)


def compare(folder: Path, base: Shards, seed: int) -> int:
    """Return the number of rows after those of the base shards, all of them as they were written.

    Raises UserError for the first that is not, for a shard with another checksum, and for other base shards.
    """
    shards, _ = read_log(folder)
    if shards[: len(base)] != base:
        raise UserError(f"{folder / LOG} does not list the shards that were there before: copy it again")
    store = Store(folder, read_manifest(folder), shards[len(base) :])
    store.verify()
    columns = {
        "prompt_ids": store.prompt_ids(),
        "sample_indices": store.sample_indices(),
        "texts": np.array(store.texts(), dtype=object),
        "golden": store.column(GOLDEN),
    }
    for first in range(0, len(store), BLOCK):
        _compare_block(store, columns, first, seed)
    return len(store)


def damage(folder: Path) -> str:
    """Return what is wrong with any byte of the store in the folder, "" for nothing; reads all of them."""
    try:
        open_store(folder).verify()
    except UserError as error:
        return str(error)
    return ""


def _compare_block(store: Store, columns: dict[str, NDArray[Any]], first: int, seed: int) -> None:
    wanted = rows_of(first // BLOCK, store.manifest.dimension, seed)
    wanted["golden"] = wanted["labels"][GOLDEN]
    rows = np.arange(first, min(first + BLOCK, len(store)))
    same = {name: values[rows] == np.array(wanted[name])[: len(rows)] for name, values in columns.items()}
    written = torch.from_numpy(wanted["embeddings"][: len(rows)]).half().float()  # the store's rounding
    same["embeddings"] = (store.embeddings(rows) == written).all(1).numpy()
    for name, equal in same.items():
        if not equal.all():
            raise UserError(
                f"store {store.folder}: {name} of appended row {first + int(equal.argmin())} are not as they "
                "were written: the writer changed them"
            )


def _lines_left(process: Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.read()
