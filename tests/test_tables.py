"""Gzipped tables: the rows of the plain file, lines named as in it, and what is said of broken ones."""

from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path

import pytest

from decoder.contracts import UserError
from rewards.tables import Table, open_table

JSON = '{"text": "a", "label": 1}\n\n{"text": "b \\u00e9", "label": 0}\n'

squeezed = partial(gzip.compress, mtime=0)  # no time of day: it would be in the names of tests


def packed(path: Path, content: str | bytes) -> Path:
    path.write_bytes(squeezed(content.encode() if isinstance(content, str) else content))
    return path


def rows(table: Table) -> list[tuple[str, tuple[str, ...]]]:
    """Return (its line, its cells as text) of every row."""
    return [(place.rpartition(" ")[2], tuple(map(str, cells))) for place, cells in table.rows(table.columns)]


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".jsonl", JSON),
        (".ndjson", JSON),
        (".JSON", JSON),
        (".csv", 'text,label\n"a, ""b""",1\nc,0\n'),
        (".tsv", 'text\tlabel\na "b\t1\nc\t0\n'),
        (".txt", "a\t1\nb\t0\n"),
    ],
)
@pytest.mark.parametrize("end", [".gz", ".GZ"])
def test_a_gzipped_file_is_the_plain_one(tmp_path: Path, suffix: str, content: str, end: str) -> None:
    plain = tmp_path / f"a.b{suffix}"
    plain.write_text(content, encoding="utf-8")
    expected = rows(open_table(str(plain)))
    assert len(expected) == 2
    assert rows(open_table(str(packed(tmp_path / f"a.b{suffix}{end}", content)))) == expected


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(squeezed(b'{"text": "a"}\n') + squeezed(b'{"text": "b"}\n'))
    assert [cells for _, cells in rows(open_table(str(path)))] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("plain.jsonl.gz", JSON.encode(), "plain.jsonl.gz is a broken gzip file"),
        ("torn.jsonl.gz", squeezed(JSON.encode())[:-12], "torn.jsonl.gz is a broken gzip file"),
        ("flipped.jsonl.gz", squeezed(JSON.encode())[:-8] + bytes(8), "is a broken gzip file .CRC"),
        ("garbled.jsonl.gz", squeezed(JSON.encode())[:10] + b"\xff" * 30, "is a broken gzip file"),
        ("none.csv.gz", b"", "none.csv.gz is empty"),
        ("blank.csv.gz", squeezed(b"\n"), "blank.csv.gz is empty"),
        ("utf8.csv.gz", squeezed(b"text,label\na,1\n\xff,0\n"), "line 3: invalid UTF-8 .0xff"),
        ("a.parquet.gz", b"", r"ends in '.gz': it must be one of .csv"),
        ("a.gz", b"", r"ends in '.gz': it must be one of .csv"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, raw: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=said) as caught:
        open_table(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_broken_lines_are_numbered_as_in_the_plain_file(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.jsonl.gz", JSON + "{\n")
    with pytest.raises(UserError, match=r"a\.jsonl\.gz, line 4: not valid JSON"):
        rows(open_table(str(path)))


def test_a_missing_file_is_no_hub_id() -> None:
    with pytest.raises(UserError, match=r"'folder/a\.jsonl\.gz' does not exist"):
        open_table("folder/a.jsonl.gz")
