"""Texts to embed, from anybody's file: generations with their prompts, or tables with a text column."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from decoder.contracts import UserError
from prompts.lines import decode_line, open_input, parse_line, shown
from prompts.reading import Prompt, from_value
from rewards.labelled_text import TEXT_NAMES, Source, parse_source
from rewards.record_fields import find_field, numbers_in
from rewards.tables import JSON_LINES, Table, open_table

TEXTS = (*TEXT_NAMES[:-1], "response", "completion", TEXT_NAMES[-1])  # tried in turn where none is named
PROMPTS = ("prompt", "prompt.text")
LARGEST_ID = 2**31
FORMS = (
    'use {"prompt": {"text": "..."}, "generations": [{"text": "...", "sample_index": 0}, ...]}, or a line a '
    'text, {"text": "..."}'
)
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class TextRow:
    """A text to embed.

    prompt: what stands before it, None for nothing. token_ids: the tokens it was drawn as, without the one
    that ended it; None if not recorded. labels: NaN where unknown. source: "FILE, line 7".
    """

    prompt_id: str
    sample_index: int
    prompt: Prompt | None
    text: str
    token_ids: Sequence[int] | None
    labels: tuple[float, ...]
    source: str

    @property
    def key(self) -> tuple[str, int]:
        """Return what names the row in a store."""
        return self.prompt_id, self.sample_index


@dataclass(frozen=True, slots=True)
class Columns:
    """What to read of a file; None looks for the usual names, and takes prompts and ids only if there.

    labels: "FIELD", or "NAME=FIELD" to name it otherwise in the store; "scores.rm" is a field inside one.
    """

    text: str | None = None
    prompt: str | None = None
    prompt_id: str | None = None
    sample_index: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """Return the names of the labels in the store."""
        return tuple(label.partition("=")[0] for label in self.labels)

    @property
    def label_fields(self) -> tuple[str, ...]:
        """Return the fields of the file that they come from."""
        return tuple(label.partition("=")[2] or label for label in self.labels)

    def asked(self) -> tuple[str, ...]:
        """Return every column of a table that was named."""
        named = (self.text, self.prompt, self.prompt_id, self.sample_index, *self.label_fields)
        return tuple(name for name in named if name is not None)


def read_rows(
    data: Sequence[str], columns: Columns, *, id_prefix: str = "", limit: int | None = None
) -> list[TextRow]:
    """Return the texts of all files in order, at most `limit`; no two have the same prompt id and sample.

    A file is JSONL of {"id", "prompt", "generations": [...]} (decoder.generate, decoder.best_of_n), of
    {"id", "prompt", "best": {...}} (the winners beside the latter), "-" for either on standard input, or a
    table as `open_table` reads it: PATH, PATH::text=COLUMN, PATH::split=NAME. A table's rows of one prompt
    id, or without ids of one prompt, are its samples, numbered as they come where no column numbers them;
    a row without both is a prompt of its own. Without ids, prompts are numbered from 0. id_prefix: put
    before every id. Raises UserError naming file and line.
    """
    every = (row for each in data for row in _file_rows(each, columns, id_prefix))
    rows = list(islice(every, limit))
    if not rows:
        raise UserError(f"{', '.join(data)}: there are no texts in it; {FORMS}")
    first: dict[tuple[str, int], str] = {}
    for row in rows:
        if row.key in first:
            raise UserError(
                f"{row.source}: prompt {row.prompt_id!r}, sample {row.sample_index} was read before, at "
                f"{first[row.key]}: number the samples of a prompt from 0, or embed one file at a time with "
                "--id-prefix"
            )
        first[row.key] = row.source
    return rows


def read_labels(argument: str, columns: Columns) -> Iterator[tuple[tuple[str, int], tuple[float, ...], str]]:
    """Yield (prompt id and sample index, labels, where it stands) of a file, which needs no texts.

    The forms are those of `read_rows`, but that a table names its rows by prompt id and sample index.
    Raises UserError naming file and line.
    """
    source = parse_source(argument, Source("", columns.text))
    if argument == "-" or _holds_generations(source.path):
        for row in _generation_rows(source.path, columns, ""):
            yield row.key, row.labels, row.source
        return
    names = (columns.prompt_id or "prompt_id", columns.sample_index or "sample_index", *columns.label_fields)
    table = open_table(source.path, split=source.split, subset=source.subset)
    for name in names:
        if name not in table.columns:
            seen = ", ".join(table.columns[:20])
            raise UserError(f"{source.path} has no column {name!r}: it has {seen}; name another")
    for where, (prompt_id, index, *cells) in table.rows(names):
        labels = (_number(cell, name, where) for cell, name in zip(cells, columns.label_fields, strict=True))
        yield (_written(prompt_id), _index(index, where)), tuple(labels), where


def _file_rows(argument: str, columns: Columns, id_prefix: str) -> Iterator[TextRow]:
    source = parse_source(argument, Source("", columns.text))
    if source.labels or source.positive:
        raise UserError(f"{argument!r}: name labels with --label-column, which holds for all files")
    if argument == "-" or _holds_generations(source.path):
        return _generation_rows(source.path, columns, id_prefix)
    return _table_rows(source, columns, id_prefix)


def _holds_generations(path: str) -> bool:
    if Path(path).suffix.lower() not in JSON_LINES or not Path(path).is_file():
        return False
    record = next((record for _, record in _records(path)), {})
    return "generations" in record or "best" in record


def _records(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where it stands, object) of every line with anything on it."""
    name = "standard input" if path == "-" else path
    try:
        with open_input(path) as stream:
            for number, raw in enumerate(stream, start=1):
                line, where = raw.removeprefix(_BOM if number == 1 else b""), f"{name}, line {number}"
                if not line.strip():
                    continue
                record = parse_line(decode_line(line.rstrip(b"\r\n"), where), where, FORMS)
                if not isinstance(record, Mapping):
                    raise UserError(f"{where}: a line must be an object, not {shown(record)}; {FORMS}")
                yield where, record
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}; check the path") from None


def _generation_rows(path: str, columns: Columns, id_prefix: str) -> Iterator[TextRow]:
    for number, (where, record) in enumerate(_records(path)):
        known = record.get("prompt"), [record["best"]] if "best" in record else record.get("generations")
        if known[0] is None or not isinstance(known[1], list):
            raise UserError(f'{where}: needs "prompt" and a list of "generations"; {FORMS}')
        prompt_id = id_prefix + str(number if record.get("id") is None else record["id"])
        prompt = _prompt(known[0], prompt_id, where)
        for place, sample in enumerate(known[1]):
            at = f"{where}, generation {place + 1}"
            if not isinstance(sample, Mapping):
                raise UserError(f"{at}: a generation must be an object, not {shown(sample)}; {FORMS}")
            beside = {**record, **sample} if "best" in record else sample
            labels = tuple(_field_number(beside, name, at) for name in columns.label_fields)
            index = _index(sample.get("sample_index", place), at)
            yield TextRow(prompt_id, index, prompt, _text(sample, at), _token_ids(sample, at), labels, at)


def _table_rows(source: Source, columns: Columns, id_prefix: str) -> Iterator[TextRow]:
    asked = columns.asked()
    header = not all(name.isdigit() for name in asked) if asked else None
    table = open_table(source.path, header=header, split=source.split, subset=source.subset)
    names = _resolve(table, source, columns)
    chosen = list(dict.fromkeys(name for name in (*names, *columns.label_fields) if name is not None))
    numbers: dict[object, str] = {}
    counts: Counter[str] = Counter()
    for where, cells in table.rows(chosen):
        cell = dict(zip(chosen, cells, strict=True))
        text, said, given_id, given_index = (None if name is None else cell[name] for name in names)
        if given_id is None:
            likeness = ("row", where) if said in (None, "") else ("prompt", json.dumps(said, default=str))
            given_id = numbers.setdefault(likeness, str(len(numbers)))
        prompt_id = id_prefix + _written(given_id)
        index = counts[prompt_id] if given_index is None else _index(given_index, where)
        counts[prompt_id] += 1
        prompt = None if said in (None, "") else _prompt(said, prompt_id, where)
        labels = tuple(_number(cell[name], name, where) for name in columns.label_fields)
        yield TextRow(prompt_id, index, prompt, _text({"text": text}, where), None, labels, where)


def _resolve(table: Table, source: Source, columns: Columns) -> tuple[str | None, ...]:
    """Return the columns of text, prompt, prompt id and sample index; None for those there are not."""

    def find(asked: str | None, usual: Sequence[str]) -> str | None:
        return asked or next((name for name in usual if name in table.columns), None)

    names = (
        find(source.text, TEXTS),
        find(columns.prompt, PROMPTS),
        find(columns.prompt_id, ("prompt_id",)),
        find(columns.sample_index, ("sample_index",)),
    )
    seen = ", ".join(table.columns[:20])
    if names[0] is None:
        raise UserError(f"{source.path} has the columns {seen}: say which to read with --text-column")
    for name in (*names, *columns.label_fields):
        if name is not None and name not in table.columns:
            raise UserError(f"{source.path} has no column {name!r}: it has {seen}")
    return names


def _prompt(value: object, prompt_id: str, where: str) -> Prompt:
    return from_value(value, prompt_id=prompt_id, source=where)


def _text(sample: Mapping[str, Any], where: str) -> str:
    """Return the text; null, a generation that failed, is an empty one."""
    text = sample.get("text", 0)
    if text is None:
        return ""
    if not isinstance(text, str):
        found = shown(text) if "text" in sample else f"only the keys {shown(list(sample))}"
        raise UserError(f'{where}: "text" must be a string, found {found}; write it there')
    return text


def _token_ids(sample: Mapping[str, Any], where: str) -> Sequence[int] | None:
    ids = sample.get("token_ids")
    if ids is None:
        return None
    if not (isinstance(ids, list) and all(type(i) is int and 0 <= i < LARGEST_ID for i in ids)):
        raise UserError(f'{where}: "token_ids" must be a list of token ids, not {shown(ids)}; leave it out')
    return array("i", ids[:-1] if sample.get("finish_reason") == "stop" else ids)


def _index(value: object, where: str) -> int:
    written = _written(value)
    if isinstance(value, bool) or not (written.isascii() and written.isdigit()):
        raise UserError(f"{where}: the sample index {value!r:.40} is no whole number: count from 0")
    return int(written)


def _field_number(record: Mapping[str, Any], name: str, where: str) -> float:
    found, value = find_field(record, name)
    if not found:
        raise UserError(
            f'{where}: no label "{name}"; the fields with a number are: {numbers_in(record)}: '
            "name one with --label-column"
        )
    return _number(value, name, where)


def _number(value: object, name: str, where: str) -> float:
    """Return a label; NaN for null and for an empty cell."""
    if value is None or value == "":
        return math.nan
    try:
        number = float({"true": 1, "false": 0}.get(str(value).strip().lower(), value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise UserError(
            f'{where}: label "{name}" is {value!r:.40}, no usable number: write one or leave it empty'
        )
    return number


def _written(value: object) -> str:
    """Return a cell as a person would write it: a whole number has no decimal point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
