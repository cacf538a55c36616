"""Rows of a table: CSV, TSV or JSON lines, gzipped or not, Parquet, or a Hugging Face data set."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from decoder.contracts import UserError
from rewards.record_fields import flat

Row = tuple[str, tuple[object, ...]]  # where it stands, for messages to people; its cells
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
GZIP = ".gz"


@dataclass(frozen=True, slots=True)
class Table:
    """Column names, and `rows(names)`: the cells of those columns, row by row."""

    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[Row]]


def open_table(
    path: str, *, header: bool | None = None, split: str = "train", subset: str | None = None
) -> Table:
    """Return the table in a file or folder, or of a hub id (owner/name), whose split and subset count.

    header: whether a CSV or TSV file has one; None looks at its first line. Without one the columns
    are "0", "1", ... Of a gzipped file (.jsonl.gz) the suffix before .gz counts. Raises UserError, also while
    rows are read: missing, empty or unreadable file, broken gzip, invalid UTF-8, broken JSON, ragged row,
    missing package.
    """
    place, suffix = Path(path), _suffix(Path(path))
    known = suffix in DELIMITERS or suffix in JSON_LINES or suffix == ".parquet"
    if place.is_dir() or (not place.exists() and not known and re.fullmatch(r"[\w.-]+/[\w.-]+", path)):
        return _dataset(path, split, subset)
    if not place.exists():
        raise UserError(f"data {path!r} does not exist: check the path (a data set on the hub is owner/name)")
    if not known:
        names = ", ".join([*DELIMITERS, *JSON_LINES])
        raise UserError(
            f"data {path!r} ends in {suffix or 'nothing'!r}: it must be one of {names} (or these with "
            ".gz), .parquet"
        )
    if suffix == ".parquet":
        return _parquet(path)
    text = _read_text(place)
    if suffix in JSON_LINES:
        return _json_lines(path, text)
    return _delimited(path, text, DELIMITERS[suffix], header)


def _suffix(path: Path) -> str:
    """Return what tells the format: of a gzipped text file, the suffix before .gz."""
    suffix, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    return inner if suffix == GZIP and (inner in DELIMITERS or inner in JSON_LINES) else suffix


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions") from None
    if path.suffix.lower() != GZIP:
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a broken gzip file ({_brief(error)}): fetch or pack it again") from None


def _read_text(path: Path) -> str:
    raw = _read_bytes(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: invalid UTF-8 (0x{raw[error.start]:02x}): save it as UTF-8"
        ) from None
    if not text.strip():
        raise UserError(f"{path} is empty: give a file with texts and labels")
    return text


def _delimited(path: str, text: str, delimiter: str, header: bool | None) -> Table:
    # Tab-separated files of language data hold bare quotes; commas need real quoting.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(sys.maxsize)

    def records() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
        try:
            yield from ((reader.line_num, cells) for cells in reader if cells)
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num}: {error}: mend the line or save as JSONL"
            ) from None

    first = next(records())[1]
    has_header = not any(map(_is_label, first)) if header is None else header
    columns = tuple(first) if has_header else tuple(map(str, range(len(first))))

    def rows(names: Sequence[str]) -> Iterator[Row]:
        places = [columns.index(name) for name in names]
        for index, (line, cells) in enumerate(records()):
            if index == 0 and has_header:
                continue
            if len(cells) != len(columns):
                raise UserError(
                    f"{path}, line {line}: {len(cells)} columns where {len(columns)} are expected "
                    "(a separator or line break inside a text?): mend the line or save as JSONL"
                )
            yield f"{path}, line {line}", tuple(cells[place] for place in places)

    return Table(columns, rows)


def _is_label(cell: str) -> bool:
    """Return whether a cell reads as a number or truth value; names of columns do not."""
    try:
        float(cell)
    except ValueError:
        return cell.strip().lower() in ("true", "false")
    return True


def _json_lines(path: str, text: str) -> Table:
    lines = text.split("\n")  # not splitlines: JSON strings may hold other line breaks as they are

    def records() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}, line {number}", _record(line, f"{path}, line {number}")

    def rows(names: Sequence[str]) -> Iterator[Row]:
        for place, record in records():
            cells = dict(flat(record))
            missing = [name for name in names if name not in cells]
            if missing:
                raise UserError(f"{place}: no column {missing[0]!r}, it has {', '.join(cells)}: add it there")
            yield place, tuple(cells[name] for name in names)

    return Table(tuple(name for name, _ in flat(next(records())[1])), rows)


def _record(line: str, place: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not valid JSON ({error}): write one object a line") from None
    if not isinstance(record, dict):
        raise UserError(f"{place}: a JSON {type(record).__name__}, not an object: write one object a line")
    return record


def _parquet(path: str) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"reading {path} needs pyarrow: pip install 'tiller-lm[train]'") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file ({_brief(error)}): write it again") from None

    def rows(names: Sequence[str]) -> Iterator[Row]:
        number = 0
        for batch in file.iter_batches(columns=list(names)):
            for cells in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                number += 1
                yield f"{path}, row {number}", cells

    return Table(tuple(file.schema_arrow.names), rows)


def _dataset(path: str, split: str, subset: str | None) -> Table:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"reading the data set {path} needs datasets: pip install 'tiller-lm[train]'"
        ) from None
    saved = any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        found = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, subset)
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"cannot load the data set {path!r} ({_brief(error)}): check the path or hub id, or pass a file"
        ) from None
    if isinstance(found, dict):
        if split not in found:
            raise UserError(
                f"{path} has no split {split!r}, it has {', '.join(found)}: write {path}::split=NAME"
            )
        found = found[split]

    def rows(names: Sequence[str]) -> Iterator[Row]:
        for number, record in enumerate(found.select_columns(list(names)), start=1):
            yield f"{path}, row {number}", tuple(record[name] for name in names)

    return Table(tuple(found.column_names), rows)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
