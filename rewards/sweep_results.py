"""Results of a sweep on disk: a journal that grows by a group at a time, and two tables made from it.

`journal.jsonl` holds what was finished and survives a kill at any moment; a torn last line is cut off.
`results.parquet` is written when every cell was tried: a row a cell in the grid's order, the same bytes
however the sweep came to its end. Processor seconds, which differ from run to run, are in `timings.parquet`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from decoder.append_file import AppendFile
from decoder.contracts import UserError
from rewards.durable import sync_folder, write_temporary
from rewards.store_rows import arrow
from rewards.sweep_grid import Cell, Grid

SETTINGS, JOURNAL = "sweep.json", "journal.jsonl"
RESULTS, TIMINGS = "results.parquet", "timings.parquet"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a cell.

    beta: the annotator's, where a flip rate was asked for the one that gives it. flip_rate: of the labels as
    they were drawn. measures: name -> mean over test prompts, None where none was scored; empty, as the two
    are None, where there is an error. seconds: its share of the processor time that its group took.
    """

    cell: int
    beta: float | None
    flip_rate: float | None
    measures: Mapping[str, float | None]
    error: str | None
    seconds: float


def failure(cell: Cell, error: str, seconds: float = 0.0) -> Result:
    """Return the result of a cell that failed, its error on one line."""
    return Result(cell.number, None, None, {}, " ".join(error.split()), seconds)


class SweepResults:
    """The folder of one sweep, locked while it is open. done: cell number -> its last result."""

    def __init__(self, folder: Path, grid: Grid, settings: Mapping[str, Any], journal: AppendFile) -> None:
        """Take an opened journal; `SweepResults.open` is the way in."""
        self.folder, self.grid, self._settings, self._journal = folder, grid, settings, journal
        self.done: dict[int, Result] = {}

    @classmethod
    def open(
        cls,
        folder: Path,
        grid: Grid,
        stores: Sequence[str],
        about: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> Self:
        """Return a new sweep's folder, or an unfinished one's with what it holds.

        stores: digests of the embeddings. about: what else is remembered, such as versions. overwrite:
        start over. Raises UserError for the folder of another grid or store, naming what differs, for one
        that another process writes, for a damaged journal, and where it cannot be written.
        """
        settings = {"format": FORMAT, "stores": list(stores), "grid": grid.record()}
        arrow()
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            journal = AppendFile(folder / JOURNAL)
            try:
                journal.lock()
                found = cls(folder, grid, settings, journal)
                found._start(about, overwrite)
            except BaseException:
                journal.close()
                raise
        return found

    def add(self, results: Sequence[Result]) -> None:
        """Commit results: on return they are on the disk. Raises UserError if they cannot be written."""
        line = json.dumps([asdict(result) for result in results], separators=(",", ":")).encode() + b"\n"
        with _writing(self.folder):
            self._journal.append(line)
            self._journal.sync()
        self.done |= {result.cell: result for result in results}

    def failed(self) -> list[Result]:
        """Return the results with an error, by cell."""
        return [self.done[number] for number in sorted(self.done) if self.done[number].error is not None]

    def write_tables(self) -> None:
        """Write both tables. Every cell must have been tried."""
        cells = self.grid.cells()
        results = [self.done[cell.number] for cell in cells]
        metadata = {"tiller.sweep": json.dumps(self._settings)}
        timings = {"cell": [r.cell for r in results], "seconds": [r.seconds for r in results]}
        tables = {
            TIMINGS: arrow().table(timings),
            RESULTS: _results_table(self.grid, cells, results).replace_schema_metadata(metadata),
        }
        with _writing(self.folder):
            for name, table in tables.items():  # the results last: where they are, the sweep is finished
                _replace(self.folder / name, _parquet(table))

    def close(self) -> None:
        """Let other processes have the folder."""
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self, about: Mapping[str, Any], overwrite: bool) -> None:
        path = self.folder / SETTINGS
        if path.exists() and not overwrite:
            _check_same(path, self._settings)
            self._read_journal()
            return
        if self._journal.size and not overwrite:
            raise UserError(
                f"{self.folder} has a {JOURNAL} and no {SETTINGS}, which says of what: give another folder, "
                "or --overwrite"
            )
        for name in (RESULTS, TIMINGS):
            (self.folder / name).unlink(missing_ok=True)
        self._journal.truncate(0)  # before the settings: what is left always fits them
        self._journal.sync()
        _replace(path, json.dumps({**self._settings, "about": about}, indent=1).encode() + b"\n")

    def _read_journal(self) -> None:
        """Take in every whole line and cut off what a kill left behind the last one."""
        path, kept = self.folder / JOURNAL, 0
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                results = [Result(**each) for each in json.loads(line)]
            except (ValueError, TypeError):
                raise UserError(
                    f"{path}, line {number} is not as it was written: delete it to run its cells again, or "
                    "give another folder"
                ) from None
            self.done |= {result.cell: result for result in results}
            kept += len(line) + 1
        self._journal.truncate(kept)


def measure_names(best_of: Sequence[int]) -> list[str]:
    """Return the columns of figures, as `eval.head_measures` names them."""
    chosen = [f"{name}_{n}" for name in ("best_of", "improvement_at", "quantile_at") for n in best_of]
    return ["spearman", "pairwise_accuracy", *chosen]


def _results_table(grid: Grid, cells: Sequence[Cell], results: Sequence[Result]) -> Any:
    """Return the Arrow table: the axes, what labels were drawn, the figures, the error."""
    pyarrow = arrow()
    text, whole, number = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    kinds = {"number": whole, "split": whole, "n_pairs": whole, "seed": whole, "noise": number}
    axes = {
        "cell" if name == "number" else name: pyarrow.array(
            [getattr(cell, name) for cell in cells], kinds.get(name, text)
        )
        for name in Cell.__slots__
    }
    axes["noise_kind"] = pyarrow.array([grid.noise_kind] * len(cells), text)
    drawn = {
        name: pyarrow.array([getattr(result, name) for result in results], number)
        for name in ("beta", "flip_rate")
    }
    figures = {
        name: pyarrow.array([result.measures.get(name) for result in results], number)
        for name in measure_names(grid.best_of)
    }
    errors = {"error": pyarrow.array([result.error for result in results], text)}
    return pyarrow.table({**axes, **drawn, **figures, **errors})


def _parquet(table: Any) -> bytes:
    pyarrow = arrow()
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _replace(path: Path, content: bytes) -> None:
    """Put a whole file in the place of another; a kill leaves the one or the other."""
    write_temporary(path, content).replace(path)
    sync_folder(path.parent)


def _check_same(path: Path, settings: Mapping[str, Any]) -> None:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        old = {"format": before["format"], "stores": before["stores"], **before["grid"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is broken: give another folder, or --overwrite to start over") from None
    new = {"format": settings["format"], "stores": settings["stores"], **settings["grid"]}
    differing = [name for name in new if old.get(name) != new[name]]
    if differing:
        sides = "; ".join(f"{name} {old.get(name)} there, {new[name]} now" for name in differing)
        raise UserError(f"{path.parent} holds another sweep: {sides}. Give another folder, or --overwrite")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a failed write into one line for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or folder} ({error.strerror or error}): finished cells are kept; "
            "make room or choose another folder, then run the same command again"
        ) from error
