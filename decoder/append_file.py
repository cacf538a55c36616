"""A regular file that only grows at its end, with one writer."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from decoder.contracts import UserError

try:
    import fcntl
except ImportError:  # Windows: a second writer is not noticed there
    fcntl = None  # type: ignore[assignment]


class AppendFile:
    """An open file without buffers: what `append` has written survives a kill of the process."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it empty; anything but a regular file is a `UserError`."""
        self._path = path
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - lives as long as its owner
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.close()
            raise UserError(f"{path} is not a regular file; name another one, or leave it out and use a pipe")

    @property
    def size(self) -> int:
        """Return the number of bytes in the file."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def is_open(self) -> bool:
        """Return False after `close`."""
        return not self._file.closed

    def lock(self) -> None:
        """Keep other processes out until `close`; a `UserError` if one is in already."""
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is writing {self._path}; wait for it or choose another file"
            ) from None
        except OSError:
            return  # a file system without locks

    def append(self, line: bytes) -> None:
        """Write the whole line or, if that raises `OSError`, none of it."""
        size, rest = self.size, memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(size)
            raise

    def truncate(self, size: int) -> None:
        """Cut the file to that many bytes."""
        self._file.truncate(size)

    def sync(self) -> None:
        """Wait for the disk; some file systems report only here that it is full."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and give up its lock; closing twice is fine."""
        self._file.close()


@contextmanager
def write_failures(place: Path | str, advice: str) -> Iterator[None]:
    """Turn a failed write into one line for the user: where, why, and what is kept or to be done."""
    try:
        yield
    except BrokenPipeError:  # who reads no further wants no message
        raise
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or place}: {error.strerror or error}; {advice}"
        ) from error
