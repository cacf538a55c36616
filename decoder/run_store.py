"""Where finished samples go: a JSONL file that can be resumed, or a stream.

One line a prompt, in prompt order, in the shape DExperts writes. A sample is safe as soon as `add`
returns: it waits in a journal beside the file (`<file>.partial`) until its prompt is complete and the
prompts before it are written. A process killed at any moment leaves at most one torn line at the end
of either file; it is cut off on reopening, so the finished file has the same bytes as if nothing had
happened. `run.json` in the same folder remembers the settings, so that no file mixes two of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self, TextIO

from decoder.contracts import UserError
from prompts.reading import Prompt

try:
    import fcntl
except ImportError:  # Windows: two writers are not noticed there
    fcntl = None  # type: ignore[assignment]

COMPACT_BYTES = 1 << 20  # a journal larger than this, and mostly of written lines, is rewritten
RUN_RECORD = "run.json"


class SampleStore(Protocol):
    """Takes finished samples in any order; `RunStore` and `StdoutStore` are the two there are."""

    @property
    def done_samples(self) -> int: ...
    def missing(self, prompt_index: int) -> tuple[int, ...]: ...
    def add(self, prompt_index: int, sample_index: int, record: Mapping[str, Any]) -> None: ...
    def finish(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


def to_json(value: object) -> bytes:
    """Return JSON in UTF-8, keys in the order given; NaN and infinities are null, as JSON has neither."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes its own JSON escape


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


class _Pending:
    """The samples that wait for the rest of their prompt or for the prompts before it."""

    def __init__(self, prompts: Sequence[Prompt], num_samples: int) -> None:
        self.prompts, self.num_samples = prompts, num_samples
        self.written = 0  # prompts whose line is out
        self.waiting: dict[int, dict[int, bytes]] = {}

    @property
    def done_samples(self) -> int:
        return self.written * self.num_samples + sum(map(len, self.waiting.values()))

    def missing(self, prompt_index: int) -> tuple[int, ...]:
        if not 0 <= prompt_index < len(self.prompts):
            raise IndexError(f"prompt {prompt_index} of {len(self.prompts)}")
        if prompt_index < self.written:
            return ()
        here = self.waiting.get(prompt_index, {})
        return tuple(sample for sample in range(self.num_samples) if sample not in here)

    def put(self, prompt_index: int, sample_index: int, record: bytes) -> None:
        if sample_index not in self.missing(prompt_index):
            raise ValueError(f"sample {sample_index} of prompt {prompt_index} is not missing")
        self.waiting.setdefault(prompt_index, {})[sample_index] = record

    def head(self, prompt_index: int) -> bytes:
        """Return how the line of that prompt begins; the rest is its records."""
        prompt = self.prompts[prompt_index]
        return b'{"id": %b, "prompt": %b, "generations": [' % (to_json(prompt.id), to_json(prompt.record()))

    def next_line(self) -> bytes | None:
        """Return the next line to write if all its samples are here; `line_written` says that it is out."""
        if self.written == len(self.prompts) or self.missing(self.written):
            return None
        records = self.waiting[self.written]
        return self.head(self.written) + b", ".join(records[i] for i in range(self.num_samples)) + b"]}\n"

    def line_written(self) -> None:
        self.waiting.pop(self.written, None)
        self.written += 1

    def require_all(self) -> None:
        if self.written < len(self.prompts):
            raise ValueError(f"finish() with {self.written} of {len(self.prompts)} prompts written")


class StdoutStore:
    """Prints each line to a text stream as soon as it and those before it are complete; keeps nothing."""

    def __init__(self, stream: TextIO, prompts: Sequence[Prompt], num_samples: int) -> None:
        self._stream, self._pending = stream, _Pending(prompts, num_samples)

    @property
    def done_samples(self) -> int:
        """Return how many samples were taken."""
        return self._pending.done_samples

    def missing(self, prompt_index: int) -> tuple[int, ...]:
        """Return the sample indices that were not added yet."""
        return self._pending.missing(prompt_index)

    def add(self, prompt_index: int, sample_index: int, record: Mapping[str, Any]) -> None:
        """Take a sample. A stream that cannot be written is a `UserError`; a closed pipe passes through."""
        self._pending.put(prompt_index, sample_index, to_json(record))
        while (line := self._pending.next_line()) is not None:
            self._print(line)
            self._pending.line_written()

    def finish(self) -> None:
        """Raise `ValueError` if a sample is still missing."""
        self._pending.require_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def _print(self, line: bytes) -> None:
        try:
            try:
                self._stream.write(line.decode())
            except UnicodeEncodeError:  # not a UTF-8 stream: the same JSON in ASCII
                self._stream.write(json.dumps(json.loads(line)) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(
                f"cannot write to standard output: {_reason(error)}; "
                "use --output FILE, which keeps finished samples"
            ) from None


class RunStore:
    """Writes finished samples to a file, and knows after a restart which ones are there."""

    def __init__(self, path: Path, pending: _Pending) -> None:
        self._path, self._pending = path, pending
        with _failures(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._main = path.open("a+b", buffering=0)
        try:
            self._lock_and_check()
            self._partial = path.with_name(path.name + ".partial")
            with _failures(self._partial):
                self._journal = self._partial.open("a+b", buffering=0)
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
        store = cls(path, _Pending(prompts, num_samples))
        try:
            with _failures(path):
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
        raw = to_json(record)
        self._pending.put(prompt_index, sample_index, raw)
        with _failures(self._path):
            _append(self._journal, self._entry_head(prompt_index, sample_index) + raw + b"}\n")
            self._write_lines()

    def finish(self) -> None:
        """Remove the journal; raise `ValueError` if a sample is still missing."""
        self._pending.require_all()
        with _failures(self._path):
            os.fsync(self._main.fileno())  # some file systems report a full disk only here
            self._journal.close()
            _unlink(self._partial)

    def close(self) -> None:
        """Close the files, which lets the next process have them; what is finished stays."""
        self._journal.close()
        self._main.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
