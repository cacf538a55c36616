"""Labelled texts: read from tables, cleaned, checked, each text once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from rewards.clean_text import Cleaner, normalise
from rewards.tables import Table, open_table

TEXT_NAMES = ("text", "sentence", "0")  # tried in turn where no column is named
LABEL_NAMES = ("label", "1")


@dataclass(frozen=True, slots=True)
class Source:
    """A table and which of its columns to read; `positive` values count as 1, all others as 0."""

    path: str
    text: str | None = None
    labels: tuple[str, ...] = ()
    positive: frozenset[str] = frozenset()
    split: str = "train"
    subset: str | None = None

    def header(self) -> bool | None:
        """Return whether the columns asked for are names, not positions; None where none is asked for."""
        asked = [name for name in (self.text, *self.labels) if name is not None]
        return not all(name.isdigit() for name in asked) if asked else None


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """M different texts and their labels, (M, L) in [0, 1], of L columns.

    A text that came several times has the mean of its labels. files: names without folders. n_rows: as
    read; n_empty of them had no text and n_repeated repeated one.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.float64]
    columns: tuple[str, ...]
    files: tuple[str, ...]
    n_rows: int
    n_empty: int
    n_repeated: int

    def take(self, rows: NDArray[np.int64]) -> LabelledTexts:
        """Return these texts alone, in that order; the counts of what was read stay."""
        return replace(self, texts=tuple(self.texts[row] for row in rows), labels=self.labels[rows])

    def fingerprint(self) -> str:
        """Return a digest of texts and labels."""
        digest = hashlib.sha256(self.labels.tobytes())
        for text in self.texts:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()


def parse_source(argument: str, default: Source) -> Source:
    """Return the source an argument names: a path, or PATH::text=COLUMN,label=COLUMN,positive=VALUE.

    Also split= and subset= for data sets. What is not said there is as in `default`; label and positive
    may come several times. Raises UserError for another key.
    """
    path, _, settings = argument.partition("::")
    said: dict[str, list[str]] = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if key not in ("text", "label", "positive", "split", "subset") or not equals:
            raise UserError(f"{argument!r}: {setting!r} is none of text=, label=, positive=, split=, subset=")
        said.setdefault(key, []).append(value)
    return Source(
        path,
        said.get("text", [default.text])[-1],
        tuple(said.get("label", default.labels)),
        frozenset(said.get("positive", default.positive)),
        said.get("split", [default.split])[-1],
        said.get("subset", [default.subset])[-1],
    )


def read_labelled(sources: Sequence[Source], clean: Cleaner) -> LabelledTexts:
    """Return the cleaned texts of all sources, each once. Raises UserError naming file and line."""
    found: dict[str, tuple[str, list[tuple[float, ...]]]] = {}
    n_rows = n_empty = 0
    columns: tuple[str, ...] = ()
    for source in sources:
        table = open_table(source.path, header=source.header(), split=source.split, subset=source.subset)
        text_column, label_columns = _resolve(table, source)
        columns = columns or label_columns
        if len(label_columns) != len(columns):
            raise UserError(
                f"{source.path}: {len(label_columns)} label columns where {len(columns)} are expected"
            )
        for place, (text, *cells) in table.rows([text_column, *label_columns]):
            n_rows += 1
            cleaned = clean(_text(text, place))
            if not cleaned:
                n_empty += 1
                continue
            labels = tuple(_label(cell, source.positive, place) for cell in cells)
            found.setdefault(normalise(cleaned), (cleaned, []))[1].append(labels)
    if not found:
        raise UserError(f"{', '.join(source.path for source in sources)}: no texts in {n_rows} rows")
    return LabelledTexts(
        tuple(text for text, _ in found.values()),
        np.array([np.mean(labels, axis=0) for _, labels in found.values()]),
        columns,
        tuple(Path(source.path).name for source in sources),
        n_rows,
        n_empty,
        n_rows - n_empty - len(found),
    )


def _resolve(table: Table, source: Source) -> tuple[str, tuple[str, ...]]:
    """Return the text column and the label columns to read. Raises UserError with the columns there are."""
    text = source.text or next((name for name in TEXT_NAMES if name in table.columns), None)
    guess = next((name for name in LABEL_NAMES if name in table.columns), None)
    labels = source.labels or ((guess,) if guess else ())
    seen = ", ".join(table.columns[:20])
    if text is None or not labels:
        missing = "--text-column" if text is None else "--label-column"
        raise UserError(f"{source.path} has the columns {seen}: say which to read with {missing}")
    for name in (text, *labels):
        if name not in table.columns:
            raise UserError(f"{source.path} has no column {name!r}: it has {seen}")
    return text, labels


def _text(cell: object, place: str) -> str:
    if cell is None or isinstance(cell, str):
        return cell or ""
    raise UserError(f"{place}: the text is {cell!r:.60}, no string: choose another --text-column")


def _label(cell: object, positive: frozenset[str], place: str) -> float:
    """Return a label in [0, 1]."""
    written = _written(cell)
    if positive:
        return float(written in positive)
    try:
        label = {"true": 1.0, "false": 0.0}.get(written.lower())
        label = float(written) if label is None else label
    except ValueError:
        raise UserError(
            f"{place}: label {written!r:.60} is no number: name the values that count as 1 "
            "with --positive-label"
        ) from None
    if math.isnan(label) or not 0 <= label <= 1:
        raise UserError(
            f"{place}: label {written} is outside [0, 1]: rescale, or name the values that count as 1 "
            "with --positive-label"
        )
    return label


def _written(cell: object) -> str:
    """Return a cell as a person would write it: a whole number has no decimal point."""
    whole = isinstance(cell, float) and cell.is_integer()
    return str(int(cell)) if whole else "" if cell is None else str(cell).strip()  # type: ignore[call-overload]
