"""`run.json`: which settings made each output file of a folder, so that none is continued with others.

One entry a file name: {"fingerprint": what changes the answer, "about": what else to remember,
"resumed": the same of each later run that added samples}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from decoder.contracts import UserError

try:
    import fcntl
except ImportError:  # Windows: two runs that start in one folder in the same instant are not kept apart
    fcntl = None  # type: ignore[assignment]

FILE_NAME = "run.json"
_SHOWN = 5


def entry_of(output: Path) -> dict[str, Any] | None:
    """Return the entry of an output file, None if it has none; a broken `run.json` is a `UserError`."""
    return _load(output.with_name(FILE_NAME)).get(output.name)


def require_same(output: Path, entry: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Refuse with a `UserError` that prints both values of every setting that differs."""
    old, new = _flat(entry["fingerprint"]), _flat(_plain(fingerprint))
    changed = [
        f"{key}: {old.get(key, 'absent')} in the file, {new.get(key, 'absent')} now"
        for key in [*old, *(new.keys() - old.keys())]
        if old.get(key) != new.get(key)
    ]
    if changed:
        rest = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise UserError(
            f"{output} was made with other settings ({'; '.join(changed[:_SHOWN])}{rest}); "
            "use another --output, or --overwrite to start it again"
        )


def start_entry(output: Path, fingerprint: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Give the output file a new entry, in place of any it had. May raise `OSError`."""
    with _changing(output) as entries:
        entries[output.name] = {"fingerprint": _plain(fingerprint), "about": _plain(about)}


def resume_entry(output: Path, about: Mapping[str, Any]) -> None:
    """Note in the output file's entry that another run adds to it. May raise `OSError`."""
    with _changing(output) as entries:
        entries[output.name].setdefault("resumed", []).append(_plain(about))


def _load(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
        raise UserError(f"{path} is no run record of ours; move it away or use another folder for --output")
    return entries


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("fingerprint"), dict)


@contextmanager
def _changing(output: Path) -> Iterator[dict[str, Any]]:
    """Give the entries to change and put them back in one step, one process at a time."""
    path = output.with_name(FILE_NAME)
    with _folder_locked(path.parent):
        entries = _load(path)
        yield entries
        text = json.dumps(entries, ensure_ascii=False, indent=2) + "\n"
        fresh = path.with_name(FILE_NAME + ".tmp")
        with fresh.open("wb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)


@contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value as it comes back from a JSON file."""
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain


def _flat(value: object, prefix: str = "") -> dict[str, str]:
    """Return dotted key -> JSON text of every leaf."""
    if not isinstance(value, dict) or (prefix and not value):
        return {prefix: json.dumps(value, ensure_ascii=False)}
    leaves: dict[str, str] = {}
    for key, each in value.items():
        leaves |= _flat(each, f"{prefix}.{key}" if prefix else key)
    return leaves
