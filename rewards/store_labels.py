"""Labels that came after the embeddings: a copy of a store with more label columns, its embeddings shared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from rewards.durable import share
from rewards.embed_rows import Columns, read_labels
from rewards.output_folder import require_new, write_folder
from rewards.store import Store, open_store
from rewards.store_manifest import Manifest, write_manifest
from rewards.store_shards import EMBEDDINGS, LOG, Shard, rewrite_columns

Key = tuple[str, int]  # prompt id and sample index
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Labelled:
    """What became of the labels: rows of the store, those with a new label, labels of rows it lacks."""

    n_rows: int
    n_labelled: int
    n_elsewhere: int


def relabel(folder: Path, data: Sequence[str], columns: Columns, output: Path) -> Labelled:
    """Write a store of the same rows with these labels too; one of a name that is there takes its place.

    data: files with the labels, by prompt id and sample index: generations or tables, texts or not. The
    embeddings are hard links where the file system has them, so they cost no room; neither store is ever
    written over. A row without the label has NaN. Raises UserError for a store or file that cannot be read,
    a row that is labelled twice, no row labelled at all, and an output that holds anything.
    """
    require_new(output)
    store = open_store(folder)
    found = _read(data, columns)
    keys = list(zip(store.prompt_ids().tolist(), store.sample_indices().tolist(), strict=True))
    known = [found.get(key) for key in keys]
    n_labelled = sum(each is not None for each in known)
    if not n_labelled:
        first = f"prompt {keys[0][0]!r}, sample {keys[0][1]}" if keys else "none"
        raise UserError(
            f"{', '.join(data)}: no label is of a row of {folder} (its first of {len(keys)}: {first}): "
            "name rows by the ids and indices that were embedded"
        )
    names = columns.label_names
    blank = (math.nan,) * len(names)
    table = np.array([blank if each is None else each for each in known], dtype=np.float64)
    values = {name: table[:, place] for place, name in enumerate(names)}
    write_folder(output, lambda half: _write(store, values, half))
    return Labelled(len(keys), n_labelled, len(found.keys() - set(keys)))


def _read(data: Sequence[str], columns: Columns) -> dict[Key, tuple[float, ...]]:
    found: dict[Key, tuple[float, ...]] = {}
    for name in data:
        for key, values, where in read_labels(name, columns):
            if key in found:
                raise UserError(
                    f"{where}: prompt {key[0]!r}, sample {key[1]} is labelled twice: leave one out"
                )
            found[key] = values
    return found


def _write(store: Store, values: Mapping[str, Values], folder: Path) -> None:
    """Fill the folder: links to the embeddings, columns with the labels, the log and the manifest."""
    kept = tuple(name for name in store.manifest.labels if name not in values)
    manifest: Manifest = replace(store.manifest, labels=(*kept, *values))
    lines = []
    for shard, rows in _shards(store):
        share(store.folder / (shard.name + EMBEDDINGS), folder / (shard.name + EMBEDDINGS))
        columns = {name: values[name][rows] for name in values}
        lines.append(rewrite_columns(store.folder, shard, columns, folder).line())
    (folder / LOG).write_bytes(b"".join(lines))
    write_manifest(folder, manifest)


def _shards(store: Store) -> Iterator[tuple[Shard, slice]]:
    first = 0
    for shard in store.shards:
        yield shard, slice(first, first + shard.rows)
        first += shard.rows
