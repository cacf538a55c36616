"""Where finished samples go: a JSONL file that can be resumed, or a stream.

A sample is safe as soon as `add` returns: it waits in a journal beside the file (`<file>.partial`)
until its prompt is complete and the prompts before it are written. A process killed at any moment
leaves at most one torn line at the end of either file; it is cut off on reopening, so the finished
file has the same bytes as if nothing had happened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self, TextIO

from decoder import run_record
from decoder.append_file import AppendFile, write_failures
from decoder.contracts import UserError
from decoder.pending import PendingSamples, to_json
from prompts.reading import Prompt

COMPACT_BYTES = 1 << 20  # a journal larger than this, and mostly of lines already out, is rewritten
_COMPACTED = ".partial.tmp"
_ELSEWHERE = "choose another --output"
_KEPT = "finished samples are kept; make room, then run the same command again"


class SampleStore(Protocol):
    """Takes finished samples in any order: a `RunStore` or a `StdoutStore`."""

    @property
    def done_samples(self) -> int: ...
    def missing(self, prompt_index: int) -> tuple[int, ...]: ...
    def add(self, prompt_index: int, sample_index: int, record: Mapping[str, Any]) -> None: ...
    def finish(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


class RunStore:
    """Writes finished samples to a file, and knows after a restart which ones are there."""

    def __init__(self, path: Path, pending: PendingSamples) -> None:
        """Open the files under their lock, as they are; `RunStore.open` is the way in."""
        self._path = path.resolve() if path.is_symlink() else path
        self._partial = self._path.with_name(self._path.name + ".partial")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._pending, self._main = pending, AppendFile(self._path)
        try:
            self._main.lock()
            self._journal = AppendFile(self._partial)
        except BaseException:
            self._main.close()
            raise

    @classmethod
    def open(
        cls,
        path: Path,
        fingerprint: Mapping[str, Any],
        about: Mapping[str, Any],
        prompts: Sequence[Prompt],
        num_samples: int,
        resume: bool = True,
    ) -> Self:
        """Return the store of a new file, or of an unfinished one with what it holds already taken in.

        fingerprint: everything that changes the answer. about: what else `run.json` should remember.
        resume: False starts over. Refuses with a `UserError` a file of other settings or prompts, a
        file that is not ours, one that another process writes, and a path that cannot be written.
        """
        if path.name == run_record.FILE_NAME:
            raise UserError(f"{path} is the name of the run record; {_ELSEWHERE}")
        with write_failures(path, _ELSEWHERE):
            store = cls(path, PendingSamples(prompts, num_samples))
            try:
                store._start({**fingerprint, "num_samples": num_samples}, about, resume)
            except BaseException:
                store.close()
                raise
        return store

    @property
    def done_samples(self) -> int:
        """Return how many samples are on disk."""
        return self._pending.done_samples

    def missing(self, prompt_index: int) -> tuple[int, ...]:
        """Return the sample indices of that prompt which are not on disk yet."""
        return self._pending.missing(prompt_index)

    def add(self, prompt_index: int, sample_index: int, record: Mapping[str, Any]) -> None:
        """Save a sample: on return it survives a kill. A failed write is a `UserError`."""
        self._pending.require_missing(prompt_index, sample_index)
        raw = to_json(record)
        with write_failures(self._path, _KEPT):
            self._journal.append(self._entry(prompt_index, sample_index, raw))
            self._pending.put(prompt_index, sample_index, raw)
            self._write_lines()

    def finish(self) -> None:
        """Wait until the file is on the disk; raise `ValueError` if a sample is still missing."""
        self._pending.require_all()
        with write_failures(self._path, _KEPT):
            self._main.sync()

    def close(self) -> None:
        """Close the files, which lets another process have them, and remove an empty journal."""
        empty = self._journal.is_open and self._journal.size == 0
        self._journal.close()
        if empty:
            with suppress(OSError):  # it does no harm
                self._partial.unlink(missing_ok=True)
        self._main.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self, fingerprint: Mapping[str, Any], about: Mapping[str, Any], resume: bool) -> None:
        self._path.with_name(self._path.name + _COMPACTED).unlink(missing_ok=True)
        entry = run_record.entry_of(self._path)
        if not resume or not (self._main.size or self._journal.size):
            self._journal.truncate(0)  # all before the entry changes: what is left always fits its entry
            self._main.truncate(0)
            run_record.start_entry(self._path, fingerprint, about)
            return
        if entry is None:
            raise UserError(
                f"{self._path} exists, but {run_record.FILE_NAME} beside it does not say how it was made; "
                "use another --output, or --overwrite to replace it"
            )
        run_record.require_same(self._path, entry, fingerprint)
        self._take_in()
        if self._pending.written < len(self._pending.prompts):
            run_record.resume_entry(self._path, about)

    def _take_in(self) -> None:
        """Read both files, cut off what a kill left torn, and write the lines that were due."""
        with self._path.open("rb") as lines:
            self._main.truncate(_taken(lines, self._take_line))
        with self._partial.open("rb") as lines:
            self._journal.truncate(_taken(lines, self._take_entry))
        self._write_lines()

    def _take_line(self, line: bytes) -> int:
        """Count a finished prompt; return the bytes to keep: 0 for a torn line."""
        if not line.endswith(b"\n"):
            return 0
        number = self._pending.written
        if number == len(self._pending.prompts):
            raise self._other_prompts(f"it has more lines than the {number} prompts given")
        start = self._pending.line_start(number)
        if not (line.startswith(start) and line.endswith(b"]}\n")):
            raise self._other_prompts(f"line {number + 1} is {_shown(line)}, expected {_shown(start)}")
        self._pending.line_written()
        return len(line)

    def _take_entry(self, line: bytes) -> int:
        """Take a saved sample, unless its line is out; return the bytes to keep: 0 for a torn one."""
        head, _, raw = line.partition(b', "record": ')
        try:
            json.loads(line)
            place = json.loads(head + b"}")
            prompt_index, sample_index = int(place["prompt_index"]), int(place["sample_index"])
        except (ValueError, LookupError, TypeError):
            return 0
        if not raw.endswith(b"}\n"):
            return 0
        self._require_prompt(prompt_index, place.get("prompt"))
        if sample_index in self._pending.missing(prompt_index):
            self._pending.put(prompt_index, sample_index, raw.removesuffix(b"}\n"))
        return len(line)

    def _require_prompt(self, prompt_index: int, digest: object) -> None:
        known = prompt_index < len(self._pending.prompts)
        if not known or digest != self._pending.digest(prompt_index):
            raise self._other_prompts(f"a saved sample belongs to another prompt {prompt_index + 1}")

    def _other_prompts(self, why: str) -> UserError:
        return UserError(
            f"{self._path} was made with other prompts ({why}); "
            "give the same prompts, use another --output, or --overwrite to start it again"
        )

    def _entry(self, prompt_index: int, sample_index: int, record: bytes) -> bytes:
        """Return the journal line of a sample; `_take_entry` reads it."""
        place = {"prompt_index": prompt_index, "sample_index": sample_index}
        head = to_json({**place, "prompt": self._pending.digest(prompt_index)})
        return head[:-1] + b', "record": ' + record + b"}\n"

    def _write_lines(self) -> None:
        """Move complete prompts to the file; the journal lets go of them only afterwards."""
        while (line := self._pending.next_line()) is not None:
            self._main.append(line)
            self._pending.line_written()
        size = self._journal.size
        if size and next(self._pending.waiting(), None) is None:
            self._journal.truncate(0)
        elif size > COMPACT_BYTES and size > 2 * sum(len(raw) for _, _, raw in self._pending.waiting()):
            self._compact()

    def _compact(self) -> None:
        """Replace the journal by one with only the samples that wait."""
        fresh = self._path.with_name(self._path.name + _COMPACTED)
        with fresh.open("wb") as file:
            file.writelines(self._entry(*sample) for sample in self._pending.waiting())
        self._journal.close()
        os.replace(fresh, self._partial)
        self._journal = AppendFile(self._partial)


class StdoutStore:
    """Prints each line to a text stream once it and those before it are complete; nothing is kept."""

    def __init__(self, stream: TextIO, prompts: Sequence[Prompt], num_samples: int) -> None:
        self._stream, self._pending = stream, PendingSamples(prompts, num_samples)

    @property
    def done_samples(self) -> int:
        """Return how many samples were added."""
        return self._pending.done_samples

    def missing(self, prompt_index: int) -> tuple[int, ...]:
        """Return the sample indices of that prompt which were not added yet."""
        return self._pending.missing(prompt_index)

    def add(self, prompt_index: int, sample_index: int, record: Mapping[str, Any]) -> None:
        """Take a sample. A failed write is a `UserError`, but a closed pipe passes through."""
        self._pending.require_missing(prompt_index, sample_index)
        self._pending.put(prompt_index, sample_index, to_json(record))
        while (line := self._pending.next_line()) is not None:
            print_line(self._stream, line)
            self._pending.line_written()

    def finish(self) -> None:
        """Raise `ValueError` if a sample is still missing."""
        self._pending.require_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


def print_line(stream: TextIO, line: bytes) -> None:
    """Write a line of JSON to a stream. A failed write is a `UserError`, but a closed pipe passes through."""
    with write_failures("standard output", "use --output FILE, which keeps finished samples"):
        try:
            stream.write(line.decode())
        except UnicodeEncodeError:  # not a UTF-8 stream: the same JSON in ASCII
            stream.write(json.dumps(json.loads(line)) + "\n")
        stream.flush()


def _taken(lines: Iterable[bytes], take: Callable[[bytes], int]) -> int:
    """Return the bytes of the lines before the first that is torn."""
    kept = 0
    for line in lines:
        size = take(line)
        if not size:
            break
        kept += size
    return kept


def _shown(line: bytes) -> str:
    text = line[:80].decode("utf-8", "replace")
    return text if len(line) <= 80 else text + "..."
