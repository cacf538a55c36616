"""Rollouts to learn from: prompts, several completions of each, and how good every one was.

They are what `python -m decoder.generate` and `python -m decoder.best_of_n` write, with a label a sample.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from prompts.lines import decode_line, open_input, parse_line, shown
from prompts.reading import Prompt, from_value
from rewards.record_fields import find_field, numbers_in

if TYPE_CHECKING:  # a mistake on line 7 is found before transformers is loaded
    from transformers import PreTrainedTokenizerBase

MIN_PROMPTS = 4
LARGEST = 1e30  # of a label: float32 must hold it over a temperature
FORMS = (
    'use {"prompt": {"text": "..."}, "generations": [{"text": "...", "token_ids": [...], "correct": 1}, ...]}'
)
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion. token_ids: the tokens as they were drawn, with the end token; None if not recorded."""

    text: str
    token_ids: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt, its N completions, and their labels (N,) float64; higher is better."""

    prompt: Prompt
    completions: tuple[Sample, ...]
    labels: NDArray[np.float64]


def read_rollouts(path: Path | str, label: str = "correct", threshold: float | None = None) -> list[Rollout]:
    """Return the rollouts of a JSONL file, or of standard input for "-", in order; N may differ.

    label: the field of a generation that says how good it was: a number or a truth value; "scores.toxicity"
    is a field inside one. threshold: labels of at least this become 1, others 0.
    Raises UserError naming file and line: unreadable or empty file, broken line, no prompt, no generations,
    a text that is no string, token_ids that are no ids, a label that is missing or not finite.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        with open_input(path) as stream:
            found = [
                _rollout(record, str(number), where, label, threshold)
                for number, (where, record) in enumerate(_records(stream, name))
            ]
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read rollouts from {name}: {reason}; check the path") from None
    if not found:
        raise UserError(f"{name} is empty: there are no rollouts in it; {FORMS}")
    return found


def tokenise_rollouts(
    tokenizer: PreTrainedTokenizerBase, rollouts: Sequence[Rollout], *, chat: bool
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Return the token ids of every prompt, and of every completion of every prompt; none is empty.

    Completions without token ids are tokenised alone, with a warning: without their end token, and perhaps
    into other tokens than were drawn. Raises UserError for a prompt the tokenizer cannot take, a completion
    without a token, and token ids of another tokenizer.
    """
    from decoder.tokenise import tokenise

    prompts = [rollout.prompt for rollout in rollouts]
    prompt_ids = tokenise(tokenizer, prompts, chat=chat, room=0, context_length=None)
    completion_ids = [[_ids_of(tokenizer, sample) for sample in rollout.completions] for rollout in rollouts]
    for rollout, rows in zip(rollouts, completion_ids, strict=True):
        if [] in rows:
            raise UserError(
                f"{rollout.prompt.source}, generation {rows.index([]) + 1}: no token in it: take it out"
            )
    _check_tokenizer(tokenizer, rollouts)
    texts = sum(sample.token_ids is None for rollout in rollouts for sample in rollout.completions)
    if texts:
        warnings.warn(
            f"{texts} of {sum(map(len, completion_ids))} generations have no token_ids: their texts are "
            "tokenised instead, which may give other tokens than were drawn, and no end token",
            stacklevel=2,
        )
    return prompt_ids, completion_ids


def split_by_prompt(
    rollouts: Sequence[Rollout], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ascending rollout numbers for training and for validation, which gets `share` of the prompts.

    Rollouts of the same prompt, or of prompts of the same group, are never on two sides; neither side is
    empty. Raises UserError for a share outside (0, 1) and for fewer than 4 different prompts or groups.
    """
    if not 0 < share < 1:
        raise UserError(f"the validation share is {share}: it must be between 0 and 1, such as 0.2")
    numbers: dict[tuple[str, str], int] = {}
    prompt = np.array([numbers.setdefault(_likeness(each.prompt), len(numbers)) for each in rollouts])
    if len(numbers) < MIN_PROMPTS:
        raise UserError(
            f"{len(numbers)} different prompts, or groups of them, cannot be split for training and "
            f"validation: give rollouts of at least {MIN_PROMPTS}"
        )
    n_held_out = min(max(round(share * len(numbers)), 1), len(numbers) - 1)
    held_out = np.random.default_rng(seed).permutation(len(numbers))[:n_held_out]
    is_held_out = np.isin(prompt, held_out)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def check_labels(rollouts: Sequence[Rollout], loss: str) -> None:
    """Raise UserError unless the labels can teach under that loss of `rewards.elhsr_losses`.

    ce, hinge and dpo need labels in [0, 1], and the last two two classes, cut at 0.5. The losses within a
    prompt (dpo, infonca, nca) need a prompt whose labels differ, the others a file whose labels do.
    """
    if loss in ("ce", "hinge", "dpo"):
        _check_range(rollouts, loss)
    groups = [(each.labels >= 0.5) if loss in ("hinge", "dpo") else each.labels for each in rollouts]
    every = np.concatenate(groups)
    if loss in ("ce", "hinge") and len(np.unique(every)) < 2:
        seen = f"{every[0]:g}" if loss == "ce" else "0.5 or more" if every[0] else "below 0.5"
        raise UserError(
            f"all {len(every)} labels are {seen}; {loss} learns nothing from one class: give harder "
            "or easier prompts, or set a threshold between the labels"
        )
    if loss in ("dpo", "infonca", "nca") and not any(len(np.unique(labels)) > 1 for labels in groups):
        raise UserError(
            f"within each of the {len(groups)} prompts all labels are alike: {loss} compares completions of "
            "one prompt and learns nothing from them; draw more a prompt, or train with ce"
        )


def _check_range(rollouts: Sequence[Rollout], loss: str) -> None:
    for rollout in rollouts:
        outside = np.flatnonzero((rollout.labels < 0) | (rollout.labels > 1))
        if len(outside):
            raise UserError(
                f"{rollout.prompt.source}, generation {outside[0] + 1}: label {rollout.labels[outside[0]]:g} "
                f"is outside [0, 1], where {loss} wants it: set a threshold, or train with infonca"
            )


def _likeness(prompt: Prompt) -> tuple[str, str]:
    """Return what prompts share that must stay on one side: their group, or else what they say."""
    if prompt.group is not None:
        return "group", prompt.group
    return "prompt", json.dumps(prompt.messages) if prompt.text is None else prompt.text


def _ids_of(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> list[int]:
    if sample.token_ids is not None:
        return list(sample.token_ids)
    return list(map(int, tokenizer(sample.text, add_special_tokens=False).input_ids))


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, rollouts: Sequence[Rollout]) -> None:
    """Refuse token ids that most often spell another text than stands beside them."""
    samples = [sample for each in rollouts for sample in each.completions if sample.token_ids is not None]
    spelt = [_spelt(tokenizer, sample.token_ids or ()) for sample in samples]
    wrong = [i for i, sample in enumerate(samples) if sample.text.strip() not in spelt[i]]
    if 2 * len(wrong) > len(samples):
        first = wrong[0]
        raise UserError(
            f"the token_ids of {len(wrong)} of {len(samples)} generations do not spell their texts (first: "
            f"{shown(spelt[first])} for {shown(samples[first].text)}): give the model that drew them"
        )


def _spelt(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def _records(stream: BinaryIO, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where it stands, object) of every line with anything on it."""
    for number, raw in enumerate(stream, start=1):
        line = raw.removeprefix(_BOM) if number == 1 else raw
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        record = parse_line(decode_line(line.rstrip(b"\r\n"), where), where, FORMS)
        if not isinstance(record, Mapping):
            raise UserError(f"{where}: a rollout must be an object, not {shown(record)}; {FORMS}")
        yield where, record


def _rollout(
    record: Mapping[str, Any], default_id: str, where: str, label: str, threshold: float | None
) -> Rollout:
    for key in ("prompt", "generations"):
        if key not in record:
            raise UserError(f'{where}: missing "{key}", found only the keys {shown(list(record))}; {FORMS}')
    samples = record["generations"]
    if not isinstance(samples, list) or not samples:
        raise UserError(f'{where}: "generations" must be a list with samples, not {shown(samples)}; {FORMS}')
    places = [f"{where}, generation {number}" for number in range(1, len(samples) + 1)]
    completions = tuple(map(_sample, samples, places))
    labels = np.array([_label(each, label, place) for each, place in zip(samples, places, strict=True)])
    if threshold is not None:
        labels = (labels >= threshold).astype(np.float64)
    prompt_id = default_id if record.get("id") is None else str(record["id"])
    return Rollout(from_value(record["prompt"], prompt_id=prompt_id, source=where), completions, labels)


def _sample(value: object, where: str) -> Sample:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: a generation must be an object, not {shown(value)}; {FORMS}")
    text, ids = value.get("text"), value.get("token_ids")
    if not isinstance(text, str):
        raise UserError(f'{where}: "text" must be a string, not {shown(text)}; write the completion there')
    if ids is not None and not (isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)):
        raise UserError(f'{where}: "token_ids" must be a list of token ids, not {shown(ids)}; leave it out')
    return Sample(text, None if ids is None else tuple(ids))


def _label(record: Mapping[str, Any], name: str, where: str) -> float:
    _, value = find_field(record, name)
    if value is None:
        raise UserError(
            f'{where}: no label "{name}"; the fields with a number are: {numbers_in(record)}: '
            "name one with --label"
        )
    if not isinstance(value, int | float):
        raise UserError(
            f'{where}: label "{name}" must be a number, not {shown(value)}; write 1 or 0, or name another'
        )
    if not abs(value) < LARGEST:  # nor NaN
        raise UserError(
            f'{where}: label "{name}" is {shown(value)}, no usable number: take the generation out'
        )
    return float(value)
