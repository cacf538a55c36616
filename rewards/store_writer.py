"""The one who adds to an embedding store: rows in, shards out; what is committed survives anything.

A shard is committed by its line in the log, written after its files are on the disk under their names.
A process killed at any moment leaves at most one shard without a line, and a torn line; the next writer
removes both and goes on after the last committed row.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from decoder.append_file import AppendFile, write_failures
from decoder.contracts import UserError
from rewards.durable import TEMPORARY
from rewards.store_manifest import FILE_NAME, Manifest, check_same, read_manifest, write_manifest
from rewards.store_rows import TORCH_DTYPES, Rows, arrow, checked_rows, joined
from rewards.store_shards import (
    COLUMNS,
    EMBEDDINGS,
    LOG,
    check_files,
    name_of,
    read_columns,
    read_log,
    write_shard,
)

_KEPT = "committed rows are kept: make room or give another folder, then run it again"
SHARD_BYTES = 64 << 20
MOST_SHARD_ROWS = 100_000  # their texts wait in memory
_OURS = re.compile(rf"(\d{{5,}})({re.escape(EMBEDDINGS)}|{re.escape(COLUMNS)})({re.escape(TEMPORARY)})?")


class Writer:
    """Appends rows to a store, which it keeps locked until `close`; `open_writer` is the way in.

    As a context manager it commits what waits when the block ends, and nothing more if an error ends it.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, log: AppendFile, shard_rows: int, commit_seconds: float
    ) -> None:
        """Take in the committed rows' keys; the log is open, locked and whole."""
        self.manifest = manifest
        self._folder, self._log = folder, log
        self._shard_rows, self._commit_seconds = shard_rows, commit_seconds
        self._keys: dict[str, set[int]] = {}
        self._waiting: list[Rows] = []
        self._since = time.monotonic()  # when the first row began to wait
        shards, _ = read_log(folder)
        self._n_shards, self._n_rows = len(shards), sum(shard.rows for shard in shards)
        for shard in shards:
            columns = read_columns(folder, shard, ("prompt_id", "sample_index"))
            self._add_keys(columns["prompt_id"].to_pylist(), columns["sample_index"].to_pylist())

    @property
    def n_rows(self) -> int:
        """Return the number of committed rows: those that a crash leaves."""
        return self._n_rows

    def has(self, prompt_id: str, sample_index: int) -> bool:
        """Return whether that row is in the store or waits to be committed."""
        return sample_index in self._keys.get(prompt_id, ())

    def append(
        self,
        prompt_ids: Sequence[str],
        sample_indices: Sequence[int] | NDArray[np.integer[Any]],
        texts: Sequence[str],
        labels: Mapping[str, ArrayLike],
        embeddings: Tensor | NDArray[np.floating[Any]],
    ) -> None:
        """Take n rows, all or none; commit a shard whenever one is full or its rows have waited too long.

        labels: name -> (n,) of numbers, NaN where unknown, for each of the manifest's labels. embeddings:
        (n, D), rounded to the store's dtype. Raises UserError for a row that is there already, for NaN and
        infinite embeddings, for columns that do not fit the store, and if a shard cannot be written.
        """
        self._require_open()
        rows = checked_rows(self.manifest, prompt_ids, sample_indices, texts, labels, embeddings)
        samples = [int(sample) for sample in sample_indices]
        self._require_new(prompt_ids, samples)
        self._add_keys(prompt_ids, samples)
        if not len(rows):
            return
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append(rows)
        self._commit_full_shards()
        if time.monotonic() - self._since >= self._commit_seconds:
            self.commit()

    def commit(self) -> None:
        """Commit what waits, as a shard that may be small. UserError if it cannot be written."""
        self._require_open()
        if self._waiting:
            rows, self._waiting = joined(self._waiting), []
            self._write(rows)

    def close(self) -> None:
        """Commit what waits and let another writer in; closing twice is fine."""
        if self._log.is_open:
            self.commit()
            self.abandon()

    def abandon(self) -> None:
        """Let another writer in; what waits is lost."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _require_open(self) -> None:
        if not self._log.is_open:
            raise ValueError(f"the writer of {self._folder} is closed: open another")

    def _require_new(self, prompt_ids: Sequence[str], samples: Sequence[int]) -> None:
        fresh: set[tuple[str, int]] = set()
        for key in zip(prompt_ids, samples, strict=True):
            if key in fresh or self.has(*key):
                where = "twice in what was given" if key in fresh else "in the store already"
                raise UserError(
                    f"prompt {key[0]!r}, sample {key[1]} is {where}, {self._folder}: leave it out "
                    "(`Writer.has` tells), or number the samples of a prompt from 0"
                )
            fresh.add(key)

    def _add_keys(self, prompt_ids: Sequence[str], samples: Sequence[int]) -> None:
        for prompt_id, sample in zip(prompt_ids, samples, strict=True):
            self._keys.setdefault(prompt_id, set()).add(sample)

    def _commit_full_shards(self) -> None:
        if sum(map(len, self._waiting)) < self._shard_rows:
            return
        rows, self._waiting = joined(self._waiting), []
        n_full = len(rows) // self._shard_rows * self._shard_rows
        for first in range(0, n_full, self._shard_rows):
            self._write(rows.cut(first, first + self._shard_rows))
        if n_full < len(rows):
            self._waiting, self._since = [rows.cut(n_full, len(rows))], time.monotonic()

    def _write(self, rows: Rows) -> None:
        """Commit a shard. A failure closes the writer: rows would be missing in the middle."""
        try:
            with write_failures(self._folder, _KEPT):
                shard = write_shard(self._folder, name_of(self._n_shards), rows)
                self._log.append(shard.line())
                self._log.sync()
        except BaseException:
            self.abandon()
            raise
        self._n_shards, self._n_rows = self._n_shards + 1, self._n_rows + len(rows)


def open_writer(
    folder: Path | str,
    manifest: Manifest,
    *,
    shard_rows: int | None = None,
    commit_seconds: float = 300.0,
) -> Writer:
    """Return the writer of a new store, or of the one that is there, to go on after its last committed row.

    shard_rows: the rows of a full shard; by default as many as have 64 MB of embeddings, 100,000 at most.
    commit_seconds: a shard is also committed when an append finds that rows have waited that long, so that
    a crash costs no more work than that. Raises UserError if the store holds other embeddings or labels,
    if another process is writing it, if it is damaged, and if the folder holds something else.
    """
    folder = Path(folder)
    arrow()
    _require_store_or_nothing(folder)
    with write_failures(folder, _KEPT):
        folder.mkdir(parents=True, exist_ok=True)
        log = AppendFile(folder / LOG)
    try:
        log.lock()
        _settle(folder, manifest, log)
        return Writer(folder, manifest, log, shard_rows or _default_rows(manifest), commit_seconds)
    except BaseException:
        log.close()
        raise


def create(
    folder: Path | str,
    manifest: Manifest,
    *,
    shard_rows: int | None = None,
    commit_seconds: float = 300.0,
) -> Writer:
    """Return the writer of a new store, as `open_writer` does. Raises UserError if there is one already."""
    if (Path(folder) / FILE_NAME).exists():
        raise UserError(f"{folder} is an embedding store already: give another folder, or resume it")
    return open_writer(folder, manifest, shard_rows=shard_rows, commit_seconds=commit_seconds)


def _default_rows(manifest: Manifest) -> int:
    row_bytes = manifest.dimension * TORCH_DTYPES[manifest.dtype].itemsize
    return min(max(1, SHARD_BYTES // row_bytes), MOST_SHARD_ROWS)


def _require_store_or_nothing(folder: Path) -> None:
    """Refuse a folder of something else, and a store that has lost one of its two records."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder for the store")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    log, half = folder / LOG, FILE_NAME + TEMPORARY
    if FILE_NAME in names:
        if LOG not in names:  # the log is made first, so no crash does this
            raise UserError(f"{log} is missing, and says which rows count: copy the store again")
    elif names - {LOG, half} or (LOG in names and log.stat().st_size):
        raise UserError(
            f"{folder} is not empty and has no {FILE_NAME} ({min(names)} is there): give another folder"
        )


def _settle(folder: Path, manifest: Manifest, log: AppendFile) -> None:
    """Make the manifest or compare it, and remove what a crash left."""
    if not (folder / FILE_NAME).exists():
        with write_failures(folder, _KEPT):
            write_manifest(folder, manifest)
    found = read_manifest(folder)
    check_same(folder, found, manifest)
    if found.labels != manifest.labels:
        raise UserError(
            f"store {folder} has the labels {list(found.labels)} and {list(manifest.labels)} were asked for: "
            "give those of the store, or another folder"
        )
    shards, size = read_log(folder)
    check_files(folder, shards)
    with write_failures(folder, _KEPT):
        _remove_leftovers(folder, len(shards))
        log.truncate(size)


def _remove_leftovers(folder: Path, n_shards: int) -> None:
    """Remove half-written files and the shard after the last committed one; more is no crash's doing."""
    unlisted = [path for path in folder.iterdir() if _is_leftover(path.name, n_shards)]
    for path in unlisted:
        if path.suffix != TEMPORARY and not path.name.startswith(name_of(n_shards) + "."):
            raise UserError(
                f"{path} is not in {LOG}, and a crash leaves only {name_of(n_shards)}: copy {LOG} again, "
                f"or delete the shards from {name_of(n_shards)} on"
            )
    for path in unlisted:
        path.unlink()


def _is_leftover(name: str, n_shards: int) -> bool:
    found = _OURS.fullmatch(name)
    if name == FILE_NAME + TEMPORARY:
        return True
    return found is not None and (found[3] is not None or int(found[1]) >= n_shards)
