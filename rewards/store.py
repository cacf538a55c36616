"""An embedding store: rows of prompt id, sample index, text, labels and embedding; opened, not loaded.

The format is two files a shard and a line in a log. Safetensors for the embeddings: it has bfloat16, which
Arrow lacks, and maps from disk as a tensor without a copy. Parquet for the rest: a label is read without the
texts, texts are compressed, every page has its checksum. The log makes a commit one line, and an opening
the reading of two small files: an Arrow data set would be rewritten or indexed to be appended to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoder.contracts import UserError
from rewards.store_manifest import Manifest, check_same, read_manifest
from rewards.store_rows import arrow
from rewards.store_shards import Shard, check_files, map_embeddings, read_columns, read_log, verify_files

# A smaller store stays mapped once it was read; a larger one is mapped for each reading, because what
# was read of a mapping counts as this process's memory, and the system keeps it in its cache anyway.
KEEP_MAPPED_BYTES = 512 << 20
RowNumbers = Sequence[int] | NDArray[np.integer[Any]] | Tensor


class Store:
    """The rows that were committed when it was opened, numbered from 0 in the order they came.

    May be pickled: another process opens the same rows, and all share the system's page cache. Columns are
    read when they are first asked for, then kept; do not write to them.
    """

    def __init__(self, folder: Path, manifest: Manifest, shards: tuple[Shard, ...]) -> None:
        """Take the store as `open_store` found it."""
        self.folder, self.manifest, self._shards = folder, manifest, shards
        self._starts = np.cumsum([0, *(shard.rows for shard in shards)])  # (S + 1,)
        self._stays_mapped = sum(shard.embeddings_bytes for shard in shards) <= KEEP_MAPPED_BYTES
        self._maps: dict[int, Tensor] = {}
        self._columns: dict[str, NDArray[Any]] = {}
        self._prompts: tuple[NDArray[np.int64], list[str]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.folder, self.manifest, self._shards)

    def __len__(self) -> int:
        return self.n_rows

    @property
    def n_rows(self) -> int:
        """Return M, the number of rows."""
        return int(self._starts[-1])

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Return the shards, in the order of their rows."""
        return self._shards

    @property
    def digest(self) -> str:
        """Return a digest of every byte of these rows, for fingerprints; from the log, without reading them.

        The same rows cut into shards elsewhere have another digest.
        """
        about = [self.manifest.digest, *(f"{s.embeddings_sha256} {s.columns_sha256}" for s in self._shards)]
        return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]

    def embeddings(self, rows: RowNumbers) -> Tensor:
        """Return the embeddings (m, D) float32 of the rows (m,), in any order, repeats allowed."""
        numbers = self._checked(rows)
        order = np.argsort(numbers, kind="stable")  # so that each shard is read once, from front to back
        ordered = numbers[order]
        found = torch.empty(len(numbers), self.manifest.dimension)
        cuts = np.searchsorted(ordered, self._starts)
        for shard, (first, last) in enumerate(pairwise(cuts.tolist())):
            if first < last:
                local = torch.from_numpy(ordered[first:last] - self._starts[shard])
                picked = self._mapped(shard).index_select(0, local).float()
                found.index_copy_(0, torch.from_numpy(order[first:last]), picked)
        return found

    def iter_embeddings(self, batch_size: int = 8192) -> Iterator[Tensor]:
        """Yield the embeddings (b, D) float32 of all rows in order; b is `batch_size` at most."""
        for shard in range(len(self._shards)):
            for first in range(0, self._shards[shard].rows, batch_size):
                yield self._mapped(shard)[first : first + batch_size].to(torch.float32, copy=True)

    def column(self, name: str) -> NDArray[np.float64]:
        """Return a label (M,) float64, NaN where unknown. UserError if the store has no such label."""
        if name not in self.manifest.labels:
            known = ", ".join(self.manifest.labels) or "none"
            raise UserError(f"store {self.folder} has no label {name!r}: it has {known}; choose one of them")
        return self._column(name)

    def sample_indices(self) -> NDArray[np.int64]:
        """Return the sample index (M,) int64 of every row."""
        return self._column("sample_index")

    def groups(self) -> tuple[NDArray[np.int64], list[str]]:
        """Return the prompt number (M,) int64 of every row, and the P prompt ids by number, as they came."""
        if self._prompts is None:
            pyarrow = arrow()
            chunks = [chunk for table in self._tables("prompt_id") for chunk in table["prompt_id"].chunks]
            ids = pyarrow.chunked_array(chunks, pyarrow.large_string()).combine_chunks().dictionary_encode()
            self._prompts = ids.indices.to_numpy().astype(np.int64), ids.dictionary.to_pylist()
        return self._prompts

    def prompt_ids(self) -> NDArray[np.object_]:
        """Return the prompt id (M,), a str, of every row."""
        numbers, ids = self.groups()
        return np.array(ids, dtype=object)[numbers]

    def texts(self, rows: RowNumbers | None = None) -> list[str]:
        """Return the texts of the rows (m,), or of all; read anew each time, never kept."""
        numbers = np.arange(self.n_rows) if rows is None else self._checked(rows)
        found = np.empty(len(numbers), dtype=object)
        for number, shard in enumerate(self._shards):
            local = numbers - self._starts[number]
            inside = np.flatnonzero((local >= 0) & (local < shard.rows))
            if len(inside):
                texts = read_columns(self.folder, shard, ("text",))["text"]
                found[inside] = texts.take(local[inside]).to_pylist()
        return found.tolist()

    def grid(self, label: str | None = None) -> NDArray[np.int64]:
        """Return row numbers (P, K): a prompt a row as in `groups`, its samples by rising index.

        Raises UserError if prompts have different numbers of samples, if there are none, and, where a
        label is named, if it is unknown (NaN) in any row.
        """
        numbers, ids = self.groups()
        counts = np.bincount(numbers, minlength=len(ids))
        if not len(ids) or counts.min() != counts.max():
            few, many = (int(f(counts)) if len(ids) else 0 for f in (np.argmin, np.argmax))
            sides = " and ".join(f"{counts[i]} of prompt {ids[i]!r}" for i in (few, many)) if ids else "none"
            raise UserError(
                f"store {self.folder} has {sides} where every prompt needs as many samples: finish the "
                "embedding, or use pairs, which need no equal numbers"
            )
        if label is not None and np.isnan(self.column(label)).any():
            row = int(np.isnan(self.column(label)).argmax())
            raise UserError(
                f"store {self.folder}: label {label!r} is unknown (NaN) in row {row}, prompt "
                f"{ids[numbers[row]]!r}: give it a value or use another label"
            )
        return np.lexsort((self.sample_indices(), numbers)).reshape(len(ids), -1)

    def verify(self) -> None:
        """Raise UserError if any byte of these rows has changed since it was written; reads all of them."""
        verify_files(self.folder, self._shards)

    def _mapped(self, shard: int) -> Tensor:
        if shard in self._maps:
            return self._maps[shard]
        mapped = map_embeddings(self.folder, self._shards[shard], self.manifest)
        if self._stays_mapped:
            self._maps[shard] = mapped
        return mapped

    def _tables(self, name: str) -> Iterator[Any]:
        return (read_columns(self.folder, shard, (name,)) for shard in self._shards)

    def _column(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            dtype = np.int64 if name == "sample_index" else np.float64
            parts = [table[name].to_numpy() for table in self._tables(name)]
            self._columns[name] = np.concatenate([np.empty(0, dtype), *parts])
        return self._columns[name]

    def _checked(self, rows: RowNumbers) -> NDArray[np.int64]:
        numbers = np.asarray(rows)
        if len(numbers) and (numbers.dtype.kind not in "iu" or numbers.ndim != 1):
            raise ValueError(f"rows of shape {numbers.shape} {numbers.dtype}: give (m,) whole numbers")
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= self.n_rows):
            raise IndexError(f"rows {numbers.min()} to {numbers.max()} of a store of {self.n_rows}")
        return numbers.astype(np.int64)


def open_store(folder: Path | str, *, expect: Manifest | None = None) -> Store:
    """Return the store in the folder with the rows committed by now; reads no embedding and no column.

    expect: refuse a store of another kind of embeddings, as `check_same` says. Raises UserError if the
    folder holds no store, if files of it are missing or have another size, and if pyarrow is missing.
    """
    folder = Path(folder)
    arrow()
    manifest = read_manifest(folder)
    if expect is not None:
        check_same(folder, manifest, expect)
    shards, _ = read_log(folder)
    check_files(folder, shards)
    return Store(folder, manifest, shards)
