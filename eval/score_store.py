"""Scores on disk, a file a metric: work that is interrupted goes on where it stopped.

A file holds one line a record, {"prompt_id", "sample", columns ...}, without "sample" for a metric of
whole prompts. NaN, a score that failed, is null there. `run.json` beside the file says what made it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

from decoder import run_record
from decoder.append_file import AppendFile, write_failures
from decoder.contracts import UserError
from decoder.pending import to_json
from eval.generations import PromptSamples
from eval.metric import Metric, Record

Scores = list[list[Record]]  # for each prompt, its records
_Places = list[list[dict[str, Any]]]  # for each prompt, what stands before the columns of its records
_KEPT = "finished scores are kept; make room or choose another --output, then run the same command again"
_PLACE = ("prompt_id", "sample")  # of a line, before its columns


def digest(prompts: Sequence[PromptSamples]) -> str:
    """Return a short sha256 of ids, prompts, texts and records in order: what a score may depend on."""
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(to_json([prompt.id, prompt.prompt, *prompt.texts, *prompt.records]) + b"\n")
    return found.hexdigest()[:16]


def score_metric(
    metric: Metric,
    prompts: Sequence[PromptSamples],
    path: Path,
    *,
    generations_digest: str,
    chunk_samples: int = 256,
    advance: Callable[[int], None],
    resume: bool = True,
) -> Scores:
    """Return every record of the metric, read from the file at `path` as far as it is there.

    path: the metric's own file, FOLDER/<metric.name>.jsonl; its folder is made.
    generations_digest: `digest` of the prompts.
    chunk_samples: whole prompts of at most so many samples are scored and saved together. The chunks
        depend on the prompts alone, and a resumed run begins at the start of one, so that it scores
        the batches of the interrupted run and ends with the same bytes.
    advance: called with the number of samples read back, then with that of each chunk scored.
    resume: False starts over.

    Raises `UserError` for a file of other settings, generations or prompts, one that another process
    writes, and a path that cannot be written; what was saved stays. Raises ValueError for records of
    another number or with other columns than those before them.
    """
    fingerprint = {**metric.about, "metric": metric.name, "generations": generations_digest}
    ends = _chunk_ends(prompts, chunk_samples)
    with write_failures(path, _KEPT):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = AppendFile(path)
    with closing(file):
        with write_failures(path, _KEPT):
            file.lock()
            scores = _started(file, path, _places(metric, prompts), fingerprint, ends, resume)
        advance(_samples(prompts[: len(scores)]))
        for start, end in pairwise(ends[ends.index(len(scores)) :]):
            chunk = prompts[start:end]
            scored = _checked(metric, chunk, metric.score(chunk), scores)
            with write_failures(path, _KEPT):
                file.append(b"".join(_lines(_places(metric, chunk), scored)))
            scores += scored
            advance(_samples(chunk))
        with write_failures(path, _KEPT):
            file.sync()
    return scores


def read_scores(path: Path) -> tuple[list[str], Scores]:
    """Return the prompt ids of a finished score file and each prompt's records, NaN where a score failed.

    Raises `UserError` for a file that is missing, unfinished, or not one of ours.
    """
    entry = run_record.entry_of(path)
    if entry is None:
        raise UserError(
            f"{path} is no file of scores: no {run_record.FILE_NAME} beside it names it; check the path"
        )
    ids: list[str] = []
    scores: Scores = []
    count = 0
    for count, (place, record) in enumerate(_read(path), start=1):
        if not ids or place["prompt_id"] != ids[-1]:
            ids.append(place["prompt_id"])
            scores.append([])
        if place.get("sample", 0) != len(scores[-1]):
            raise UserError(f"{path}, line {count}: sample {len(scores[-1])} is missing; score again")
        scores[-1].append(record)
    if count != entry.get("about", {}).get("records"):
        raise UserError(f"{path} is not finished; run the command that made it again, it goes on from there")
    return ids, scores


def _places(metric: Metric, prompts: Sequence[PromptSamples]) -> _Places:
    if not metric.per_sample:
        return [[{"prompt_id": prompt.id}] for prompt in prompts]
    return [
        [{"prompt_id": prompt.id, "sample": sample} for sample in range(len(prompt.texts))]
        for prompt in prompts
    ]


def _started(
    file: AppendFile,
    path: Path,
    places: _Places,
    fingerprint: Mapping[str, Any],
    ends: Sequence[int],
    resume: bool,
) -> Scores:
    """Return the scores of the chunks that are in the file, and cut it to them."""
    about = {"records": sum(map(len, places))}
    entry = run_record.entry_of(path)
    if not resume or not file.size:
        file.truncate(0)  # before the entry changes: what is left always fits its entry
        run_record.start_entry(path, fingerprint, about)
        return []
    if entry is None:
        raise UserError(
            f"{path} exists, but {run_record.FILE_NAME} beside it does not say how it was made; "
            "use another --output, or --overwrite to replace it"
        )
    run_record.require_same(path, entry, fingerprint)
    scores = _restored(path, places)
    kept = max(end for end in ends if end <= len(scores))
    with path.open("rb") as lines:
        file.truncate(sum(len(lines.readline()) for one in places[:kept] for _ in one))
    if kept < len(places):
        run_record.resume_entry(path, about)
    return scores[:kept]


def _restored(path: Path, places: _Places) -> Scores:
    """Return the scores of the prompts that are whole in the file; refuse any other prompt in it."""
    found = list(_read(path))
    expected = [place for one in places for place in one]
    if len(found) > len(expected):
        raise UserError(
            f"{path} has {len(found)} records where {len(expected)} are expected; "
            "use another --output, or --overwrite to start it again"
        )
    for number, ((place, _), wanted) in enumerate(zip(found, expected, strict=False), start=1):
        if place != wanted:
            raise UserError(
                f"{path}, line {number}: {to_json(place).decode()} where {to_json(wanted).decode()} is "
                "expected; use another --output, or --overwrite to start it again"
            )
    scores: Scores = []
    at = 0
    for one in places:
        if at + len(one) > len(found):
            break
        scores.append([record for _, record in found[at : at + len(one)]])
        at += len(one)
    return scores


def _read(path: Path) -> Iterator[tuple[dict[str, Any], Record]]:
    """Yield (place, record) of every line but a torn last one."""
    columns: tuple[str, ...] | None = None
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    return
                place, record = _parsed(line, f"{path}, line {number}")
                columns = columns or tuple(record)
                if tuple(record) != columns:
                    raise UserError(f"{path}, line {number}: other columns than in line 1; --overwrite it")
                yield place, record
    except OSError as error:
        raise UserError(f"cannot read scores from {path}: {error.strerror}; check the path") from None


def _parsed(line: bytes, where: str) -> tuple[dict[str, Any], Record]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("prompt_id"), str):
        raise UserError(f"{where}: this is no record of a score; --overwrite the file to start it again")
    place = {key: values.pop(key) for key in _PLACE if key in values}
    if not all(value is None or type(value) in (int, float) for value in values.values()):
        raise UserError(f"{where}: a score is not a number; --overwrite the file to start it again")
    return place, {name: math.nan if value is None else float(value) for name, value in values.items()}


def _checked(
    metric: Metric, chunk: Sequence[PromptSamples], scored: Sequence[Sequence[Record]], before: Scores
) -> Scores:
    """Return the records as they read back from the file; ValueError if the metric breaks its word."""
    wanted = [len(one) for one in _places(metric, chunk)]
    if [len(records) for records in scored] != wanted:
        raise ValueError(f"{metric.name}: {[len(r) for r in scored]} records a prompt instead of {wanted}")
    columns = tuple(next((record for records in [*before[:1], *scored] for record in records), {}))
    if any(tuple(record) != columns for records in scored for record in records):
        raise ValueError(f"{metric.name}: a record has other columns than {columns}")
    if set(columns) & set(_PLACE):
        raise ValueError(f"{metric.name}: {_PLACE} are no names for columns")
    return [[{name: _finite(value) for name, value in record.items()} for record in one] for one in scored]


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan  # JSON has no infinity


def _lines(places: _Places, scores: Sequence[Sequence[Record]]) -> Iterator[bytes]:
    for one, records in zip(places, scores, strict=True):
        for place, record in zip(one, records, strict=True):
            yield to_json({**place, **record}) + b"\n"


def _chunk_ends(prompts: Sequence[PromptSamples], chunk_samples: int) -> list[int]:
    """Return 0 and where each chunk of whole prompts ends."""
    ends, samples = [0], 0
    for index, prompt in enumerate(prompts):
        samples += len(prompt.texts)
        if index > ends[-1] and samples > chunk_samples:
            ends.append(index)
            samples = len(prompt.texts)
    return [*ends, len(prompts)] if prompts else ends


def _samples(prompts: Sequence[PromptSamples]) -> int:
    return sum(len(prompt.texts) for prompt in prompts)
