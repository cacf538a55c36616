"""Results of the benchmark of LENS on disk: a line of settings, then a line a cell, as they come.

What was finished survives a kill at any moment; a torn last line is cut off and its cell run again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from decoder.append_file import AppendFile, write_failures
from decoder.contracts import UserError
from eval.lens_cells import Result

ADVICE = "finished cells are kept: make room, then run the same command again"


class Journal:
    """One part's results, by `Cell.key`; the file is locked while it is open."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open or begin the file. Raises UserError for one of other settings, naming what differs."""
        self.path, self.done = path, dict[str, Result]()
        told = json.loads(json.dumps(settings))  # as they are read back
        with write_failures(path, ADVICE):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = AppendFile(path)
        try:
            self._file.lock()
            self._begin(told)
        except BaseException:
            self._file.close()
            raise

    def add(self, results: Sequence[Result]) -> None:
        """Commit results: on return they are on the disk. Raises UserError if they cannot be written."""
        lines = "".join(json.dumps(asdict(result), allow_nan=False) + "\n" for result in results)
        self._append(lines.encode())
        self.done |= {result.key: result for result in results}

    def close(self) -> None:
        """Let other processes have the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _begin(self, settings: dict[str, Any]) -> None:
        whole = self.path.read_bytes().rpartition(b"\n")[0]
        self._file.truncate(len(whole) + 1 if whole else 0)
        if not whole:
            self._append(json.dumps(settings).encode() + b"\n")
            return
        try:
            before, *records = [json.loads(line) for line in whole.split(b"\n")]
            self.done = {found.key: found for found in (_result(record) for record in records)}
            differing = [name for name in settings | before if before.get(name) != settings.get(name)]
        except (ValueError, TypeError, AttributeError):
            raise UserError(
                f"{self.path} is not as it was written: delete it, or give another --output"
            ) from None
        if differing:
            sides = "; ".join(f"{n} {before.get(n)} there, {settings.get(n)} now" for n in differing)
            raise UserError(
                f"{self.path} holds another benchmark: {sides}. Delete it, or give another --output"
            )

    def _append(self, content: bytes) -> None:
        with write_failures(self.path, ADVICE):
            self._file.append(content)
            self._file.sync()


def _result(record: Mapping[str, Any]) -> Result:
    lists = {name: tuple(record[name]) for name in ("reward", "spearman")}
    return Result(**{**record, **lists})
