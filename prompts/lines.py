"""Lines of anybody's JSONL: opening, decoding and parsing, with messages that name file and line."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

from decoder.contracts import UserError


def open_input(path: Path | str) -> AbstractContextManager[BinaryIO]:
    """Open the bytes of a file, or of standard input for "-", which stays open afterwards."""
    if str(path) != "-":
        return open(path, "rb")
    if sys.stdin is None or sys.stdin.closed:
        raise UserError("standard input is closed; name a file instead of -")
    return nullcontext(sys.stdin.buffer)


def decode_line(raw: bytes, where: str) -> str:
    """Return the text of a line; a `UserError` with file and line where it is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: invalid UTF-8, byte 0x{raw[error.start]:02x} at offset {error.start} of the line; "
            "save the file as UTF-8"
        ) from None


def parse_line(line: str, where: str, forms: str) -> object:
    """Return the JSON value of a line; a `UserError` with file and line where it is broken."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: broken JSON ({error.msg} at column {error.colno}): {shown(line)}; "
            "write one whole JSON object a line"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{where}: JSON nested too deeply or with too long a number; {forms}") from None


def shown(value: object) -> str:
    """Return the value as a reader can recognise it, on one line of at most 60 characters."""
    text = ascii(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
