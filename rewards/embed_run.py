"""Texts through an encoder into a store: in batches by length, going on where an earlier run stopped.

Batches are planned from all texts asked for, in windows, in order; those already in the store are skipped,
and one that is there in part is read whole. So a run that was killed, started again as it was, ends with
the rows of one that was not, bit for bit and in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from decoder.contracts import UserError
from decoder.records import process_peak
from decoder.replay import batches_by_length
from rewards.embed_rows import TextRow
from rewards.encoder import TextEncoder
from rewards.features import progress_bar
from rewards.paper_arrays import PaperArrays
from rewards.store import Store, open_store
from rewards.store_manifest import DType, Manifest
from rewards.store_writer import Writer, open_writer

WINDOW = 2048  # texts sorted by length together: a longer one pads less, and scatters a prompt's samples
CHECKED = 8192  # rows whose texts are compared at a time


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How rows go into a store.

    labels: the names of the label columns. batch_tokens: padded positions that are read together.
    shard_rows: as in `open_writer`.
    """

    dtype: DType = "float16"
    labels: tuple[str, ...] = ()
    batch_tokens: int = 2048
    shard_rows: int | None = None


@dataclass(slots=True)
class Tally:
    """What a run did: rows added, rows that were there, texts without a token, texts cut, tokens read."""

    added: int = 0
    there: int = 0
    empty: int = 0
    cut: int = 0
    tokens: int = 0
    seconds: float = 0.0


def embed_rows(
    rows: Sequence[TextRow], encoder: TextEncoder, folder: Path | str, options: StoreOptions = StoreOptions()
) -> Tally:
    """Return what was done to bring the texts' embeddings into the store, which is made if there is none.

    What was embedded is committed however this ends, also by Ctrl-C. Raises UserError for a store of other
    embeddings or labels, and for a row that is there with another text or other labels.
    """
    tally, begin = Tally(), time.perf_counter()
    manifest = encoder.manifest(options.dtype, options.labels)
    with closing(open_writer(folder, manifest, shard_rows=options.shard_rows)) as writer:
        missing = [row for row in rows if not writer.has(*row.key)]
        tally.there = len(rows) - len(missing)
        if tally.there:
            require_same(open_store(folder), rows)
        with progress_bar() as progress:
            task = progress.add_task(f"embedding {len(missing)} texts", total=sum(map(_weight, missing)))
            for first in range(0, len(rows), WINDOW):
                window = rows[first : first + WINDOW]
                if not all(writer.has(*row.key) for row in window):
                    _embed_window(
                        window,
                        encoder,
                        writer,
                        options.batch_tokens,
                        tally,
                        lambda n: progress.advance(task, n),
                    )
    tally.seconds = time.perf_counter() - begin
    return tally


def _embed_window(
    window: Sequence[TextRow],
    encoder: TextEncoder,
    writer: Writer,
    batch_tokens: int,
    tally: Tally,
    advance: Callable[[int], object],
) -> None:
    """Bring what is missing of some texts into the store, batch by batch."""
    tokenised = zip(window, encoder.tokenise(window), strict=True)
    found = [(row, read) for row, read in tokenised if read is not None]
    tally.empty += len(window) - len(found)
    for batch in batches_by_length([len(read.ids) for _, read in found], batch_tokens):
        new = [place for place, i in enumerate(batch) if not writer.has(*found[i][0].key)]
        if not new:
            continue
        embeddings = encoder.embed([found[i][1] for i in batch])
        append(writer, [found[batch[place]][0] for place in new], embeddings[new])
        for row, read in (found[batch[place]] for place in new):
            tally.added, tally.cut = tally.added + 1, tally.cut + read.is_cut
            tally.tokens += len(read.ids)
            advance(_weight(row))


def append(writer: Writer, rows: Sequence[TextRow], embeddings: Tensor) -> None:
    """Append texts (n,) with their embeddings (n, D). Raises UserError as `Writer.append` does."""
    names = writer.manifest.labels
    columns = {name: [row.labels[i] for row in rows] for i, name in enumerate(names)}
    keys = [row.key for row in rows]
    writer.append([k[0] for k in keys], [k[1] for k in keys], [row.text for row in rows], columns, embeddings)


def require_same(store: Store, rows: Sequence[TextRow]) -> None:
    """Raise UserError if a row of the store is one of these by id and sample, but says something else."""
    asked = {row.key: row for row in rows}
    ids, samples = store.prompt_ids(), store.sample_indices()
    labels = [store.column(name) for name in store.manifest.labels]
    for first in range(0, store.n_rows, CHECKED):
        numbers = np.arange(first, min(first + CHECKED, store.n_rows))
        for number, text in zip(numbers.tolist(), store.texts(numbers), strict=True):
            row = asked.get((ids[number], int(samples[number])))
            if row is None:
                continue
            there = [float(column[number]) for column in labels]
            same = np.array_equal(there, row.labels, equal_nan=True)
            if text != row.text or not same:
                told = (
                    f"text {text!r:.60}, here {row.text!r:.60}"
                    if same
                    else f"labels {there}, here {list(row.labels)}"
                )
                raise UserError(
                    f"{row.source}: prompt {row.prompt_id!r}, sample {row.sample_index} is in store "
                    f"{store.folder} with another content ({told}): give these prompts ids of their own with "
                    "--id-prefix, or another store"
                )


def copy_arrays(
    arrays: PaperArrays, manifest: Manifest, folder: Path | str, *, shard_rows: int | None = None
) -> Tally:
    """Return what was done to bring the paper's arrays into a store; the manifest has one label, the reward.

    Interrupted and started again, it goes on. Raises UserError as `open_writer` and `Writer.append` do.
    """
    tally, begin = Tally(), time.perf_counter()
    with closing(open_writer(folder, manifest, shard_rows=shard_rows)) as writer, progress_bar() as progress:
        task = progress.add_task("copying", total=arrays.rewards.size)
        (label,) = manifest.labels
        tally.added = arrays.copy_to(writer, label=label, advance=lambda n: progress.advance(task, n))
    tally.there = arrays.rewards.size - tally.added
    tally.seconds = time.perf_counter() - begin
    return tally


def report(folder: Path, tally: Tally, max_tokens: int | None = None) -> None:
    """Print on stdout what a run did and cost, what the store holds now, and what comes next."""
    store, console = open_store(folder), Console(highlight=False)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    seconds = max(tally.seconds, 1e-9)
    table = Table(show_header=False, box=None)
    table.add_row("rows", f"{store.n_rows} ({tally.added} added, {tally.there} asked for were there)")
    table.add_row("embeddings", f"{store.manifest.dimension} numbers each, {store.manifest.dtype}")
    table.add_row("labels", ", ".join(store.manifest.labels) or "none")
    rates = [f"{tally.added / seconds:.1f} texts/s"] if tally.added else []
    rates += [f"{tally.tokens / seconds:.0f} tokens/s"] if tally.tokens else []
    table.add_row("time", ", ".join([f"{tally.seconds:.1f} s", *rates]))
    table.add_row("on disk", f"{size / 1e6:.1f} MB")
    table.add_row("peak memory", _peak())
    if tally.cut:
        table.add_row("cut", f"{tally.cut} of {tally.added} texts were longer than {max_tokens} tokens")
    if tally.empty:
        table.add_row("left out", f"{tally.empty} texts without a token")
    console.print(table)
    console.print("Train a reward head on it:")
    console.print(f"  python -m rewards.train_head {folder} --output HEAD", soft_wrap=True)


def _peak() -> str:
    held = f"{process_peak() / 1e6:.0f} MB"
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return held
    return f"{held}, on the device {torch.cuda.max_memory_allocated() / 1e6:.0f} MB"


def _weight(row: TextRow) -> int:
    """Return what a text counts for in the time left: its characters, with those of a prompt."""
    return 1 + len(row.text) + len((row.prompt.text or "") if row.prompt else "")
