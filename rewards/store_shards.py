"""The shards of an embedding store on disk: their files, and the log that says which are committed.

A shard is `NNNNN.safetensors`, one tensor "embeddings" (n, D), and `NNNNN.parquet`, all other columns;
every line of `shards.jsonl` commits one. A line without its end is a crash's and counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from decoder.contracts import UserError
from rewards.durable import share, sync_folder, write_temporary
from rewards.store_manifest import Manifest
from rewards.store_rows import TORCH_DTYPES, Rows, arrow

LOG = "shards.jsonl"
EMBEDDINGS, COLUMNS = ".safetensors", ".parquet"


@dataclass(frozen=True, slots=True)
class Shard:
    """A line of the log: the number of rows, and size and SHA-256 of both files."""

    name: str
    rows: int
    embeddings_bytes: int
    embeddings_sha256: str
    columns_bytes: int
    columns_sha256: str

    @property
    def files(self) -> dict[str, tuple[int, str]]:
        """Return file name -> (bytes, SHA-256)."""
        return {
            self.name + EMBEDDINGS: (self.embeddings_bytes, self.embeddings_sha256),
            self.name + COLUMNS: (self.columns_bytes, self.columns_sha256),
        }

    def line(self) -> bytes:
        """Return the shard as the log has it, with its line end."""
        return json.dumps(asdict(self)).encode() + b"\n"


def name_of(number: int) -> str:
    """Return the name of the shard with that number, from 0."""
    return f"{number:05d}"


def write_shard(folder: Path, name: str, rows: Rows) -> Shard:
    """Return the shard of the rows, both files in place and on the disk, not yet in the log.

    Until its line is in the log, the shard is no part of the store. May raise OSError.
    """
    embeddings = serialise({"embeddings": rows.embeddings.contiguous()})
    columns = _parquet(rows.columns)
    contents = {folder / (name + EMBEDDINGS): embeddings, folder / (name + COLUMNS): columns}
    halves = {path: write_temporary(path, content) for path, content in contents.items()}
    for path, half in halves.items():
        half.replace(path)
    sync_folder(folder)
    return Shard(name, len(rows), len(embeddings), _sha256(embeddings), len(columns), _sha256(columns))


def share_shards(shards: Sequence[tuple[Path, Shard]], folder: Path) -> None:
    """Fill a folder with links to the shards of stores, numbered anew, and their log. May raise OSError."""
    lines = []
    for number, (source, shard) in enumerate(shards):
        renamed = replace(shard, name=name_of(number))
        for old, new in zip(shard.files, renamed.files, strict=True):
            share(source / old, folder / new)
        lines.append(renamed.line())
    (folder / LOG).write_bytes(b"".join(lines))


def read_log(folder: Path) -> tuple[tuple[Shard, ...], int]:
    """Return the committed shards in order, and how many bytes of the log they take; more is a torn line.

    Raises UserError if the log is missing or if a whole line of it is not as it was written.
    """
    path = folder / LOG
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end is torn, or nothing
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}), and says which rows count: copy the store again"
        ) from None
    return tuple(_shard(line, i, path) for i, line in enumerate(lines)), sum(len(line) + 1 for line in lines)


def check_files(folder: Path, shards: Sequence[Shard]) -> None:
    """Raise UserError if a committed shard's file is missing or of another size. Reads no file."""
    for shard in shards:
        for name, (n_bytes, _) in shard.files.items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != n_bytes:
                state = "is missing" if found is None else f"has {found} bytes"
                raise _damaged(folder, shard, f"{path} {state}, {LOG} says {n_bytes}")


def verify_files(folder: Path, shards: Sequence[Shard]) -> None:
    """Raise UserError if any byte of a committed shard has changed. Reads every file."""
    check_files(folder, shards)
    for shard in shards:
        for name, (_, sha256) in shard.files.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise _damaged(folder, shard, f"{folder / name} has changed since it was written")


def map_embeddings(folder: Path, shard: Shard, manifest: Manifest) -> Tensor:
    """Return (n, D) in the store's dtype, mapped from disk: not to be written to, unmapped when dropped."""
    path = folder / (shard.name + EMBEDDINGS)
    try:
        with safe_open(path, framework="pt") as file:
            embeddings: Tensor = file.get_tensor("embeddings")
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, shard, f"{path} cannot be read ({error})") from None
    wanted = (shard.rows, manifest.dimension), TORCH_DTYPES[manifest.dtype]
    if (tuple(embeddings.shape), embeddings.dtype) != wanted:
        found = f"{tuple(embeddings.shape)} {embeddings.dtype}"
        raise _damaged(folder, shard, f"{path} holds {found} where {wanted[0]} {wanted[1]} is expected")
    return embeddings


def read_columns(folder: Path, shard: Shard, names: Sequence[str] | None) -> Any:
    """Return the Arrow table of those columns, None for all; the checksums of what is read are verified."""
    pyarrow = arrow()
    path = folder / (shard.name + COLUMNS)
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            # Not in threads: many workers of a sweep do this at once.
            table = file.read(columns=None if names is None else list(names), use_threads=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise _damaged(folder, shard, f"{path} cannot be read ({str(error).splitlines()[0]})") from None
    if table.num_rows != shard.rows:
        raise _damaged(folder, shard, f"{path} has {table.num_rows} rows where {shard.rows} are expected")
    return table


def rewrite_columns(
    folder: Path, shard: Shard, labels: Mapping[str, NDArray[np.float64]], target: Path
) -> Shard:
    """Return the shard with these labels (n,) too, its columns written into the target folder and synced.

    A label of a name that is there takes its place. Copies no embedding. May raise OSError.
    """
    pyarrow = arrow()
    table = read_columns(folder, shard, None)
    for name, values in labels.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pyarrow.array(values))
    columns = _parquet(table)
    path = target / (shard.name + COLUMNS)
    write_temporary(path, columns).replace(path)
    sync_folder(target)
    return replace(shard, columns_bytes=len(columns), columns_sha256=_sha256(columns))


def _parquet(table: Any) -> bytes:
    pyarrow = arrow()
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd", write_page_checksum=True)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _shard(line: bytes, number: int, path: Path) -> Shard:
    try:
        found = json.loads(line)
        shard = Shard(**found)
        fine = shard.name == name_of(number) and [type(v).__name__ for v in found.values()] == _TYPES
    except (ValueError, TypeError):
        fine = False
    if not fine:
        raise UserError(
            f"{path}, line {number + 1}: {line[:60]!r} is not the line of shard {name_of(number)}: copy the "
            "file again, or cut it there to give up the rows from that shard on"
        )
    return shard


_TYPES = [str(field.type) for field in fields(Shard)]


def _damaged(folder: Path, shard: Shard, what: str) -> UserError:
    return UserError(
        f"{what}: copy it again; or delete the shards from {shard.name} on and their lines in "
        f"{folder / LOG}, and embed those rows again"
    )
