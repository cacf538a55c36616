"""Fields of JSON records by dotted name: names of rewards may have dots themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def find_field(record: Mapping[str, Any], name: str) -> tuple[bool, object]:
    """Return whether there is a field, and record["a.b"] or record["a"]["b"] for "a.b"."""
    if name in record:
        return True, record[name]
    head, _, rest = name.partition(".")
    inside = record.get(head)
    return find_field(inside, rest) if rest and isinstance(inside, Mapping) else (False, None)


def numbers_in(record: Mapping[str, Any]) -> str:
    """Return the dotted names of all numbers in the record, or "none", for messages."""
    names = [name for name, value in flat(record) if isinstance(value, int | float)]
    return ", ".join(names) or "none"


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the fields of a record by dotted name; those of an object inside are named outer.inner."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
