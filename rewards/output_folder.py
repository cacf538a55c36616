"""Write a saved head into a folder in one go, and never over something else."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from decoder.contracts import UserError

MODELS = {"adapter", "backbone", "expert", "anti_expert"}  # folders of rewards with their own models
FILES = {"config.json", "model.safetensors", *MODELS, "model.txt", "members"}  # the last two of heads


def plan_output(folder: Path, columns: Sequence[str], *, overwrite: bool) -> dict[str, Path]:
    """Return the place of each label column inside the folder where there are several, else nothing.

    With `overwrite` a folder that holds a saved head, and nothing else, may be replaced. Raises UserError
    if a head could not be written.
    """
    places = {name: folder / safe_name(name) for name in columns} if len(columns) > 1 else {}
    if len(set(places.values())) < len(places):
        raise UserError(f"label columns {', '.join(columns)} would share a folder: rename one of them")
    for place in (folder, *places.values()):
        if place.exists() and not place.is_dir():
            raise UserError(f"output {place} is a file: give a folder")
    if not overwrite and _names(folder):
        raise UserError(f"output {folder} is not empty: give another folder, or --overwrite")
    for place in places.values() or (folder,):
        foreign = _names(place) - FILES
        if foreign:
            raise UserError(
                f"output {place} holds other files ({min(foreign)}), so it is not replaced: move them"
            )
    try:
        (folder if places else folder.parent).mkdir(parents=True, exist_ok=True)
        _half(folder).mkdir()
        _half(folder).rmdir()
    except OSError as error:
        raise UserError(f"cannot write to output {folder} ({error.strerror}): give another folder") from None
    return places


def require_new(folder: Path) -> None:
    """Raise UserError if there is anything at the folder's place but an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output {folder} is there already: give a new folder")


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside its place, then move it there, over a saved head if there is one."""
    half = _half(folder)
    try:
        half.mkdir(parents=True)
        write(half)
        if folder.exists():
            shutil.rmtree(folder)
        half.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write to output {folder} ({error.strerror}): free some space") from None
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _half(folder: Path) -> Path:
    return folder.resolve().with_name(f".{folder.resolve().name}.{os.getpid()}")


def safe_name(column: str) -> str:
    """Return a column's name as a folder's name."""
    return re.sub(r"[^\w.-]+", "_", column).strip(".") or "_"
