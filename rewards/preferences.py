"""Preferences that somebody gives: which of two rows of a store is better, as JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from decoder.contracts import UserError
from prompts.lines import decode_line, open_input, parse_line, shown
from rewards.pair_draws import Ints
from rewards.store import Store

FORMS = (
    'use {"prompt_id": "7", "chosen": 0, "rejected": 3}, sample indices, or {"chosen": {"prompt_id": "7", '
    '"sample_index": 0}, "rejected": {"prompt_id": "8", "sample_index": 3}}'
)
Key = tuple[str, int]


def read_preferences(path: Path | str, store: Store) -> Ints:
    """Return pairs (n, 2) int64 of row numbers, the chosen one first, in file order.

    A row is named by its prompt id and sample index. Raises UserError naming file and line: unreadable or
    empty file, broken line, a missing or strange field, a row that the store lacks, a row against itself.
    """
    name = "standard input" if str(path) == "-" else str(path)
    row_of = _row_numbers(store)
    try:
        with open_input(path) as stream:
            lines = list(enumerate(stream, start=1))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read pairs from {name}: {reason}; check the path") from None
    found = [_pair(line, f"{name}, line {number}", row_of) for number, line in lines if line.strip()]
    if not found:
        raise UserError(f"{name} is empty: there are no pairs in it; {FORMS}")
    return np.array(found, dtype=np.int64)


def _row_numbers(store: Store) -> Callable[[Key, str], int]:
    """Return the function of a row's key, and of where it stands, that finds its number."""
    keys = zip(store.prompt_ids().tolist(), store.sample_indices().tolist(), strict=True)
    numbers = {key: number for number, key in enumerate(keys)}

    def row_of(key: Key, where: str) -> int:
        if key not in numbers:
            raise UserError(
                f"{where}: store {store.folder} has no sample {key[1]} of prompt {key[0]!r}: "
                "name rows by the prompt ids and sample indices that were embedded"
            )
        return numbers[key]

    return row_of


def _pair(line: bytes, where: str, row_of: Callable[[Key, str], int]) -> tuple[int, int]:
    record = parse_line(decode_line(line.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf"), where), where, FORMS)
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: a pair must be an object, not {shown(record)}; {FORMS}")
    chosen, rejected = (row_of(_key(record, side, where), where) for side in ("chosen", "rejected"))
    if chosen == rejected:
        raise UserError(f"{where}: one row is chosen and rejected ({shown(record)}): name two, or drop it")
    return chosen, rejected


def _key(record: Mapping[str, object], side: str, where: str) -> Key:
    value = record.get(side)
    row = value if isinstance(value, Mapping) else {**record, "sample_index": value}
    prompt_id, sample = row.get("prompt_id"), row.get("sample_index")
    if isinstance(prompt_id, bool) or not isinstance(prompt_id, str | int) or type(sample) is not int:
        raise UserError(
            f'{where}: "{side}" names no row: prompt_id {shown(prompt_id)}, sample_index {shown(sample)}; '
            f"{FORMS}"
        )
    return str(prompt_id), sample
