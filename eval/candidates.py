"""Candidates that `decoder.best_of_n` kept: every sample of every prompt, and its gold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from prompts.lines import decode_line, open_input, parse_line, shown
from prompts.reading import Prompt, from_value, unique

if TYPE_CHECKING:  # loaded when something is scored with them
    from eval.judge import Judge

Floats = NDArray[np.float64]
Columns = list[list[Floats]]  # of each file and prompt, one number a sample: (N,) float64
Record = Mapping[str, Any]
FORMS = (
    'give the file that decoder.best_of_n --output wrote: {"prompt", "generations": [{"text", ...}]} a line'
)
GOLD = ("correct", "sentiment", "toxicity")


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its N samples as the file has them: text, token_ids, scores, correct."""

    prompt: Prompt
    records: tuple[Record, ...]

    @property
    def texts(self) -> list[str]:
        """Return the continuations."""
        return [record["text"] for record in self.records]


def read_seeds(paths: Sequence[Path | str]) -> list[list[Group]]:
    """Return the groups of every file, the prompts of all in the order of the first.

    The files are the same prompts drawn with other seeds. Raises UserError naming file and line for a file
    that is missing or empty, a broken line, a sample that was dropped on the way, or other prompts.
    """
    first, *others = [_read(path) for path in paths]
    seeds = [first]
    for path, groups in zip(paths[1:], others, strict=True):
        by_id = {group.prompt.id: group for group in groups}
        _check_same(path, [group.prompt for group in first], by_id)
        seeds.append([by_id[group.prompt.id] for group in first])
    return seeds


def gold_of(seeds: Sequence[Sequence[Group]], gold: str, judge: str) -> Columns:
    """Return `correct`, or `judged_gold` of sentiment or toxicity by the judge named."""
    if gold not in GOLD:
        raise UserError(f"unknown gold {gold!r}: choose among {', '.join(GOLD)}")
    if gold == "correct":
        return correct(seeds)
    from eval.judge import parse_judge

    return judged_gold(seeds, parse_judge(judge, [gold]).load())


def correct(seeds: Sequence[Sequence[Group]]) -> Columns:
    """Return 1 for each right sample, 0 for a wrong one, NaN where that cannot be decided.

    As recorded; what the file does not say is checked now. UserError for a prompt without an answer.
    """
    return [[_correct(group) for group in groups] for groups in seeds]


def judged_gold(seeds: Sequence[Sequence[Group]], judge: Judge) -> Columns:
    """Return the judge's score of each sample, toxicity negated: higher is better; NaN if it has none.

    The judge reads what its attribute's protocol has it read, as in `eval.attribute`.
    """
    from eval.attribute import AttributeMetric
    from eval.generations import PromptSamples

    metric = AttributeMetric(judge)
    sign = -1.0 if judge.attribute == "toxicity" else 1.0

    def score(groups: Sequence[Group]) -> list[Floats]:
        samples = [
            PromptSamples(each.prompt.id, prompt_text(each.prompt), tuple(each.texts), each.records)
            for each in groups
        ]
        found = metric.score(samples)
        return [sign * np.array([record[metric.name] for record in records]) for records in found]

    return [score(groups) for groups in seeds]


def prompt_text(prompt: Prompt) -> str:
    """Return the text before a continuation; a conversation is its contents, each ended by a line break."""
    if prompt.messages is None:
        return prompt.text or ""
    return "".join(f"{message['content']}\n" for message in prompt.messages)


def token_ids(group: Group) -> list[list[int]]:
    """Return each sample's tokens as they were drawn. UserError where the file has none."""
    for number, record in enumerate(group.records, 1):
        ids = record.get("token_ids")
        if not (isinstance(ids, list) and ids and all(type(i) is int and i >= 0 for i in ids)):
            raise UserError(
                f'{group.prompt.source}, generation {number}: "token_ids" must be a list of token ids, not '
                f"{shown(ids)}; {FORMS}"
            )
    return [record["token_ids"] for record in group.records]


def _read(path: Path | str) -> list[Group]:
    name = "standard input" if str(path) == "-" else str(path)
    try:
        with open_input(path) as stream:
            lines = [(f"{name}, line {number}", raw) for number, raw in enumerate(stream, 1) if raw.strip()]
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read candidates from {name}: {reason}; check the path") from None
    groups = [
        _group(parse_line(decode_line(raw.rstrip(b"\r\n"), where), where, FORMS), str(number), where)
        for number, (where, raw) in enumerate(lines)
    ]
    if not groups:
        raise UserError(f"{name} is empty: there are no candidates in it; {FORMS}")
    unique(group.prompt for group in groups)
    return groups


def _group(line: object, default_id: str, where: str) -> Group:
    if not (isinstance(line, Mapping) and "prompt" in line and isinstance(line.get("generations"), list)):
        raise UserError(f"{where}: these are no candidates: {shown(line)}; {FORMS}")
    samples = line["generations"]
    if not samples:
        raise UserError(f"{where}: no generation to choose from (N = 0); draw at least one")
    for number, sample in enumerate(samples, 1):
        if not (isinstance(sample, Mapping) and isinstance(sample.get("text"), str)):
            raise UserError(f"{where}, generation {number}: it has no text: {shown(sample)}; {FORMS}")
        if sample.get("finish_reason") == "dropped":
            raise UserError(
                f"{where}, generation {number}: it was dropped before its end; give a run drawn without "
                "--drop-schedule and --drop-margin"
            )
    prompt_id = default_id if line.get("id") is None else str(line["id"])
    return Group(from_value(line["prompt"], prompt_id=prompt_id, source=where), tuple(samples))


def _check_same(path: Path | str, wanted: Sequence[Prompt], found: Mapping[str, Group]) -> None:
    for prompt in wanted:
        other = found.get(prompt.id)
        if other is None or other.prompt != prompt:
            seen = f"is another one at {other.prompt.source}" if other else f"is not in {path}"
            raise UserError(
                f"{prompt.source}: prompt {prompt.id!r} {seen}; give files of the same prompts, drawn with "
                "other seeds"
            )
    if len(found) > len(wanted):
        raise UserError(
            f"{path} has {len(found)} prompts and the first file {len(wanted)}; give files of the same "
            "prompts, drawn with other seeds"
        )


def _correct(group: Group) -> Floats:
    from rewards.choice import correctness

    found = []
    for number, record in enumerate(group.records, 1):
        said = record.get("correct", math.nan)
        if "correct" not in record:
            if group.prompt.answer is None:
                raise UserError(
                    f'{group.prompt.source}, generation {number}: neither "correct" nor an answer of the '
                    "prompt; add answers, or take another --gold"
                )
            said = correctness(record["text"], group.prompt)
        elif said is not None and said not in (0, 1):
            raise UserError(
                f'{group.prompt.source}, generation {number}: "correct" must be 1, 0 or null, not '
                f"{shown(said)}; mend it"
            )
        found.append(math.nan if said is None else float(said))
    return np.array(found)
