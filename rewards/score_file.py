"""Scores of texts on disk, a JSON line each: work that is interrupted goes on where it stopped.

A line is {"prompt_id", "sample_index", "score"}; a score that cannot be is null. `run.json` beside the file
says what made it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder import run_record
from decoder.append_file import AppendFile, write_failures
from decoder.contracts import UserError
from decoder.pending import to_json
from decoder.records import about
from decoder.terminal import progress

_KEPT = "finished scores are kept; make room or choose another --output, then run the same command again"
Key = tuple[str, int]  # prompt id and sample index
Scorer = Callable[[int, int], NDArray[np.floating[Any]]]  # first, end -> scores of the items between


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """Items to score, in order.

    keys: what names each. chunk: so many are scored and saved together, always from a multiple of it on, so
    that a resumed run ends with the same bytes. made_by: everything that changes a score, as JSON values.
    """

    keys: Sequence[Key]
    score: Scorer
    chunk: int
    made_by: Mapping[str, Any]


def write_scores(path: Path, job: ScoreJob, *, resume: bool = True) -> NDArray[np.float64]:
    """Score what is missing in the file and return all scores (m,), NaN where there is none.

    resume: False starts over. Raises UserError for a file of other settings or items, one that another
    process writes, and a path that cannot be written; what was saved stays.
    """
    if path.name == run_record.FILE_NAME:
        raise UserError(f"{path} is the name of the run record; choose another --output")
    with write_failures(path, _KEPT):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = AppendFile(path)
    with closing(file), write_failures(path, _KEPT):
        file.lock()
        found = _restored(file, path, job, resume)
        with progress("scoring", len(job.keys), len(found)) as advance:
            for first in range(len(found), len(job.keys), job.chunk):
                scores = job.score(first, min(first + job.chunk, len(job.keys))).tolist()
                file.append(b"".join(_lines(job.keys[first : first + job.chunk], scores)))
                found += scores
                advance(len(scores))
        file.sync()
    return np.array(found, dtype=np.float64)


def _restored(file: AppendFile, path: Path, job: ScoreJob, resume: bool) -> list[float]:
    """Return the scores of the whole chunks that are in the file, and cut it to them."""
    entry = run_record.entry_of(path)
    facts = {**job.made_by, "items": len(job.keys)}
    if not resume or not file.size:
        file.truncate(0)  # before the entry changes: what is left always fits its entry
        run_record.start_entry(path, facts, about())
        return []
    if entry is None:
        raise UserError(
            f"{path} exists, but {run_record.FILE_NAME} beside it does not say how it was made; "
            "use another --output, or --overwrite to replace it"
        )
    run_record.require_same(path, entry, facts)
    scores, sizes = _read(path, job.keys)
    kept = len(scores) if len(scores) == len(job.keys) else len(scores) // job.chunk * job.chunk
    file.truncate(sum(sizes[:kept]))
    if kept < len(job.keys):
        run_record.resume_entry(path, about())
    return scores[:kept]


def _read(path: Path, keys: Sequence[Key]) -> tuple[list[float], list[int]]:
    """Return the scores and the bytes of every line but a torn last one."""
    scores: list[float] = []
    sizes: list[int] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            if not line.endswith(b"\n"):
                break
            if number == len(keys):
                raise _other_items(path, f"it has more lines than the {number} items to score")
            scores.append(_parsed(line, keys[number], path, number + 1))
            sizes.append(len(line))
    return scores, sizes


def _parsed(line: bytes, key: Key, path: Path, number: int) -> float:
    try:
        record = json.loads(line)
        score = record["score"]
        if (record["prompt_id"], record["sample_index"]) == key:
            return float("nan") if score is None else float(score)
    except (ValueError, LookupError, TypeError):
        pass
    raise _other_items(path, f"line {number} is no score of prompt {key[0]!r}, sample {key[1]}")


def _other_items(path: Path, why: str) -> UserError:
    return UserError(f"{path} was changed ({why}); use another --output, or --overwrite to start it again")


def _lines(keys: Sequence[Key], scores: Sequence[float]) -> Iterator[bytes]:
    for (prompt_id, sample), score in zip(keys, scores, strict=True):
        yield to_json({"prompt_id": prompt_id, "sample_index": sample, "score": score}) + b"\n"
