"""Scores survive anything: whatever the interruption, a rerun ends with the same bytes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from decoder.contracts import UserError
from eval.generations import PromptSamples
from eval.metric import Measure, Metric, Record
from eval.score_store import digest, read_scores, score_metric
from tests.source import ROOT

TEXTS = [("one é", ""), ("two", "three", "four"), ("five",), ("six",) * 7, ("seven", "eight"), ("nine",)]
PROMPTS = [
    PromptSamples(f"p{index}\N{CJK UNIFIED IDEOGRAPH-4E00}", "Say", texts, tuple({} for _ in texts))
    for index, texts in enumerate(TEXTS)
]
TOTAL = 16


@dataclass(frozen=True)
class Lengths:
    """Counts characters, NaN for a blank text; `batch` depends on the chunk, as a padded batch may."""

    name: str = "lengths.chars"
    per_sample: bool = True
    version: int = 1
    stop_at: int | None = None
    calls: list[int] = field(default_factory=list, compare=False)

    @property
    def about(self) -> dict[str, Any]:
        return {"version": self.version}

    def score(self, prompts: Sequence[PromptSamples]) -> list[list[Record]]:
        self.calls.append(sum(len(prompt.texts) for prompt in prompts))
        if len(self.calls) == self.stop_at:
            raise RuntimeError("out of memory")
        size = 1 / 3 + len(prompts)
        if not self.per_sample:
            return [[{"chars": sum(map(len, prompt.texts)), "batch": size}] for prompt in prompts]
        return [
            [{"chars": len(t) if t else math.nan, "batch": size} for t in prompt.texts] for prompt in prompts
        ]

    def measures(self, scores: Sequence[Sequence[Record]]) -> list[Measure]:
        return []


def work(folder: Path, metric: Metric | None = None, **changes: Any) -> list[list[Record]]:
    given = {"generations_digest": "d1", "chunk_samples": 4, "advance": lambda n: None} | changes
    prompts, metric = given.pop("prompts", PROMPTS), metric or Lengths()
    return score_metric(metric, prompts, folder / f"{metric.name}.jsonl", **given)


def refusal(run: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """Return the one line with which it is refused."""
    with pytest.raises(UserError) as caught:
        run(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(a: object, b: object) -> bool:
    """Equal, where NaN equals NaN."""
    return repr(a) == repr(b)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "lengths.chars.jsonl"


def test_the_file_holds_a_line_a_record(path: Path) -> None:
    scores = work(path.parent)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_bytes().splitlines()]
    assert len(lines) == TOTAL
    assert list(lines[0]) == ["prompt_id", "sample", "chars", "batch"]
    places = [(line["prompt_id"], line["sample"]) for line in lines]
    assert places == [(prompt.id, i) for prompt in PROMPTS for i in range(len(prompt.texts))]
    assert [line["chars"] for line in lines[:5]] == [5, None, 3, 5, 4]
    flat = [record for records in scores for record in records]
    assert [record["chars"] for record in flat[2:5]] == [3, 5, 4]
    assert math.isnan(flat[1]["chars"])
    entry = json.loads((path.parent / "run.json").read_text())[path.name]
    assert entry["fingerprint"] == {"version": 1, "metric": "lengths.chars", "generations": "d1"}


def test_chunks_are_of_whole_prompts_and_bounded(path: Path) -> None:
    """2 + 3 exceeds 4, 3 + 1 does not, 7 stands alone, 2 + 1 fit."""
    metric, told = Lengths(), []
    work(path.parent, metric, advance=told.append)
    assert metric.calls == [2, 4, 7, 3]
    assert [count for count in told if count] == metric.calls
    metric = Lengths()
    work(path.parent, metric, chunk_samples=100, resume=False)
    assert metric.calls == [TOTAL]


def test_scores_read_back_without_the_metric(path: Path) -> None:
    scores = work(path.parent)
    ids, read = read_scores(path)
    assert ids == [prompt.id for prompt in PROMPTS]
    assert same(read, scores)


def test_a_metric_of_prompts(tmp_path: Path) -> None:
    metric = Lengths(name="whole", per_sample=False)
    scores = work(tmp_path, metric)
    first = json.loads((tmp_path / "whole.jsonl").read_bytes().splitlines()[0])
    assert list(first) == ["prompt_id", "chars", "batch"]
    assert [records[0]["chars"] for records in scores] == [sum(map(len, texts)) for texts in TEXTS]
    ids, read = read_scores(tmp_path / "whole.jsonl")
    assert (len(ids), same(read, scores)) == (len(PROMPTS), True)
    assert same(work(tmp_path, metric), scores)
    assert len(metric.calls) == 4


@pytest.mark.parametrize("per_sample", [True, False])
def test_a_file_cut_at_any_byte_ends_the_same(tmp_path: Path, per_sample: bool) -> None:
    """A kill leaves any beginning of the file; the rest is scored in the very chunks of the whole run."""
    path = tmp_path / "lengths.chars.jsonl"
    scores = work(tmp_path, Lengths(per_sample=per_sample))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    ends = [sum(map(len, lines[:count])) for count in range(len(lines) + 1)]
    sizes = {end + shift for end in ends for shift in (-1, 0, 1)} & {*range(len(whole))}
    for size in sorted(sizes | {*range(ends[-4], len(whole) + 1)}):
        path.write_bytes(whole[:size])
        metric, told = Lengths(per_sample=per_sample), []
        assert same(work(tmp_path, metric, advance=told.append), scores)
        assert path.read_bytes() == whole, size
        assert sum(told) == TOTAL
        assert metric.calls == [2, 4, 7, 3][4 - len(metric.calls) :]
    assert metric.calls == []


def test_other_chunks_go_on_from_whole_prompts(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        work(tmp_path, Lengths(stop_at=2))
    metric = Lengths()
    scores = work(tmp_path, metric, chunk_samples=5)
    assert metric.calls == [5, 1, 7, 3]  # the one prompt that was there is half of a chunk now
    assert same(scores, work(tmp_path / "whole", chunk_samples=5))


def test_a_metric_that_raises_loses_nothing(path: Path) -> None:
    told: list[int] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        work(path.parent, Lengths(stop_at=3), advance=told.append)
    assert [count for count in told if count] == [2, 4]
    assert len(path.read_bytes().splitlines()) == 6
    assert "not finished" in refusal(read_scores, path)
    metric, told = Lengths(), []
    resumed = work(path.parent, metric, advance=told.append)
    assert (metric.calls, told) == ([7, 3], [6, 7, 3])
    again = path.read_bytes()
    assert same(work(path.parent, Lengths(), resume=False), resumed)
    assert path.read_bytes() == again
    assert read_scores(path)[0] == [prompt.id for prompt in PROMPTS]


def test_a_finished_file_is_left_alone(path: Path) -> None:
    scores = work(path.parent)
    before = (path.parent / "run.json").read_bytes(), path.read_bytes()
    metric = Lengths()
    assert same(work(path.parent, metric, chunk_samples=5), scores)
    assert metric.calls == []
    assert ((path.parent / "run.json").read_bytes(), path.read_bytes()) == before


def test_other_settings_and_generations_are_refused(path: Path) -> None:
    work(path.parent)
    before = path.read_bytes()
    assert "version: 1 in the file, 2 now" in refusal(work, path.parent, Lengths(version=2))
    assert 'generations: "d1" in the file, "d2" now' in refusal(work, path.parent, generations_digest="d2")
    assert path.read_bytes() == before
    work(path.parent, Lengths(version=2), resume=False)
    assert "version: 2 in the file, 1 now" in refusal(work, path.parent)
    (path.parent / "run.json").unlink()
    assert "does not say how it was made" in refusal(work, path.parent)
    assert "no file of scores" in refusal(read_scores, path)


def test_a_changed_file_is_refused(path: Path) -> None:
    work(path.parent)
    lines = path.read_bytes().splitlines(keepends=True)
    for changed, said in [
        ([lines[1], lines[0], *lines[2:]], "line 1: "),
        ([*lines[:3], *lines[4:]], "line 4: "),
        ([*lines, lines[-1]], "17 records where 16 are expected"),
        ([*lines[:2], b"nonsense\n", *lines[3:]], "line 3: this is no record"),
        (
            [*lines[:2], lines[2].replace(b'"chars": 3.0', b'"chars": "x"'), *lines[3:]],
            "line 3: a score is not",
        ),
        ([*lines[:2], lines[2].replace(b'"chars"', b'"words"'), *lines[3:]], "line 3: other columns"),
    ]:
        path.write_bytes(b"".join(changed))
        assert said in refusal(work, path.parent)
        assert path.read_bytes() == b"".join(changed)
    path.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    assert "line 4: sample 1 is missing" in refusal(read_scores, path)
    path.unlink()
    assert "No such file" in refusal(read_scores, path)


def test_infinities_are_scores_that_failed(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Infinite(Lengths):
        def score(self, prompts: Sequence[PromptSamples]) -> list[list[Record]]:
            return [[{"x": math.inf} for _ in prompt.texts] for prompt in prompts]

    scores = work(tmp_path, Infinite())
    assert all(math.isnan(record["x"]) for records in scores for record in records)
    assert same(work(tmp_path, Infinite()), scores)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([[{"a": 1.0}] * 2], "records a prompt"),
        ([[{"a": 1.0}], [{"a": 1.0}] * 3], "records a prompt"),
        ([[{"a": 1.0}, {"b": 1.0}], [{"a": 1.0}] * 3], "other columns"),
        ([[{"sample": 1.0}] * 2, [{"sample": 1.0}] * 3], "no names for columns"),
    ],
)
def test_a_metric_that_breaks_its_word(tmp_path: Path, records: Any, said: str) -> None:
    @dataclass(frozen=True)
    class Broken(Lengths):
        def score(self, prompts: Sequence[PromptSamples]) -> list[list[Record]]:
            return records

    with pytest.raises(ValueError, match=said):
        work(tmp_path, Broken(), prompts=PROMPTS[:2], chunk_samples=9)
    assert (tmp_path / "lengths.chars.jsonl").read_bytes() == b""


def test_later_chunks_must_have_the_columns_of_the_first(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Changing(Lengths):
        def score(self, prompts: Sequence[PromptSamples]) -> list[list[Record]]:
            return [[{prompts[0].id: 1.0} for _ in prompt.texts] for prompt in prompts]

    with pytest.raises(ValueError, match="other columns"):
        work(tmp_path, Changing())


SECOND = """
import sys
from pathlib import Path
from decoder.contracts import UserError
from tests.test_score_store import work
try:
    work(Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


def test_a_second_process_is_refused(path: Path) -> None:
    @dataclass(frozen=True)
    class Calling(Lengths):
        def score(self, prompts: Sequence[PromptSamples]) -> list[list[Record]]:
            said.append(
                subprocess.run(
                    [sys.executable, "-c", SECOND, path.parent], cwd=ROOT, capture_output=True, text=True
                ).stdout
            )
            return super().score(prompts)

    said: list[str] = []
    work(path.parent, Calling(), chunk_samples=100)
    assert len(said) == 1
    assert "another process is writing" in said[0]
    assert len(path.read_bytes().splitlines()) == TOTAL


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write" in refusal(work, tmp_path / "file")
    (tmp_path / "lengths.chars.jsonl").mkdir()
    assert "cannot write" in refusal(work, tmp_path)


def test_the_digest_sees_ids_prompts_texts_records_and_their_bounds() -> None:
    base = PromptSamples("a", "b", ("c", "d"), ({}, {}))
    others = [
        [PromptSamples("x", "b", ("c", "d"), ({}, {}))],
        [PromptSamples("a", "x", ("c", "d"), ({}, {}))],
        [PromptSamples("a", "b", ("d", "c"), ({}, {}))],
        [PromptSamples("a", "b", ("cd",), ({},))],
        [PromptSamples("a", "b", ("c", "d"), ({"x": 1}, {}))],
        [base, base],
        [],
    ]
    assert len({digest([base]), *map(digest, others)}) == 8
    assert digest([base]) == digest([PromptSamples("a", "b", ("c", "d"), ({}, {}), source="elsewhere")])
