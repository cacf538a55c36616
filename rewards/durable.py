"""Files that are on the disk, whole, when a call returns."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

TEMPORARY = ".tmp"  # what a half-written file's name ends in


def write_temporary(path: Path, content: bytes) -> Path:
    """Return the temporary file beside `path` that holds the content, on the disk. May raise OSError."""
    half = path.with_name(path.name + TEMPORARY)
    with half.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return half


def sync_folder(folder: Path) -> None:
    """Wait until the names in the folder are on the disk. May raise OSError."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def share(source: Path, target: Path) -> None:
    """Make the target the same file, or a copy where the file system has no links. May raise OSError."""
    try:
        os.link(source, target)
    except OSError:  # another disk, for one
        shutil.copyfile(source, target)
