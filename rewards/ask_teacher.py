"""Teachers' opinion of the texts' tokens and of others in their places, for the tap ARM to learn.

A teacher is a RAD, a backbone ARM, or another tap ARM. Of several the mean of P(attribute) is learnt: what
errs in each is partly its own, and one head can hold what they agree on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from decoder.contracts import UserError
from decoder.lm import CausalLM
from decoder.models import LoadedModel
from decoder.terminal import progress
from rewards import artefact
from rewards.arm_material import Material
from rewards.ask_tap import ask_tap
from rewards.backbone_texts import TokenTexts, encode, in_order, make_batch
from rewards.candidate_values import Candidates, CandidateValues
from rewards.distil import Teacher, check_block, likeliest, load_teacher, pick_positions
from rewards.durable import write_temporary
from rewards.features import tokenise
from rewards.fit_backbone import read_values
from rewards.load import find
from rewards.teacher_question import Answer, Question
from rewards.training_options import TeacherOptions

BATCH_TOKENS = 4096  # padded, candidates included


@dataclass(frozen=True, slots=True)
class Taught:
    """What the teachers say of a run's texts.

    soft: (N, L) float32, P(attribute) after the token that each of the N states is scored with. candidates:
    of others in its place, None if not asked. about: the teachers and what was asked, for JSON. seconds: of
    asking.
    """

    soft: Tensor
    candidates: CandidateValues | None
    about: dict[str, Any]
    seconds: float


def ask_teachers(
    options: TeacherOptions, loaded: LoadedModel, material: Material, cache: Path, max_length: int, seed: int
) -> Taught:
    """Return the mean P(attribute) of the saved teachers for each label column, text after text.

    Answers are kept in the cache folder: asking takes far longer than learning. Raises UserError if a teacher
    is broken, does not read the generator's tokens, lacks a column's output, or cannot say what is asked.
    """
    begin = time.perf_counter()
    if options.distil == "delta":
        raise UserError("--distil delta is for --form backbone: take plain or candidates")
    question = _question(options, loaded, material, max_length, seed)
    answers = [_ask(find(teacher), question, loaded, cache) for teacher in options.teacher or ()]
    assert answers, "there is no teacher to ask"
    soft = torch.stack([answer.soft for answer in answers]).mean(0)
    about: dict[str, Any] = {
        "teachers": {answer.name: answer.digest for answer in answers},
        "distil": options.distil,
    }
    candidates = None
    if question.candidates is not None:
        of_candidates = torch.stack([answer.candidates for answer in answers]).mean(0)
        candidates = CandidateValues(question.candidates, of_candidates)
        about |= {"candidate_positions": options.candidate_positions, "candidates": options.candidates}
    return Taught(soft, candidates, about, time.perf_counter() - begin)


def _question(
    options: TeacherOptions, loaded: LoadedModel, material: Material, max_length: int, seed: int
) -> Question:
    labelled, tokenizer = material.labelled, loaded.tokenizer
    labels = torch.from_numpy(labelled.labels)
    rows = tokenise(tokenizer, labelled.texts, max_length)
    texts = encode(tokenizer, labelled.texts, labels, max_length, loaded.lm.context_length())
    candidates = None
    if options.distil == "candidates":
        shape = options.candidate_positions, options.candidates
        candidates = choose_candidates(loaded.lm, texts, *shape, seed)
    return Question(labelled.columns, rows, texts, candidates)


def choose_candidates(lm: CausalLM, texts: TokenTexts, n_places: int, k: int, seed: int) -> Candidates:
    """Return the generator's k likeliest tokens at random places of every text."""
    generator = torch.Generator().manual_seed(seed)
    places = pick_positions(torch.tensor(texts.read), n_places, generator)
    after = places + _begins(texts)[:, None]
    parts: dict[int, tuple[Tensor, ...]] = {}
    with progress("choosing candidates", len(texts.rows)) as advance:
        for rows in in_order(texts, BATCH_TOKENS):
            batch = make_batch(texts, rows, lm.device)
            ids, shares = likeliest(lm, batch, after[rows].to(lm.device), k)
            parts |= dict(zip(rows, zip(ids.cpu(), shares.cpu(), strict=True), strict=True))
            advance(len(rows))
    in_place = [parts[text] for text in range(len(parts))]
    return Candidates(places, *map(torch.stack, zip(*in_place, strict=True)))


def value_candidates(teacher: Teacher, texts: TokenTexts, candidates: Candidates, title: str) -> Tensor:
    """Return a backbone teacher's P(attribute) of every candidate, (M, P, K, L) float32 on the CPU."""
    after = candidates.places + _begins(texts)[:, None]
    device = next(teacher.scorer.parameters()).device
    widest = BATCH_TOKENS // (candidates.token_ids[0].numel() + 1)
    found = torch.empty(*candidates.token_ids.shape, len(teacher.outputs))
    with progress(title, len(texts.rows)) as advance:
        for rows in (part for batch in in_order(texts, BATCH_TOKENS) for part in _split(batch, widest)):
            batch = make_batch(texts, rows, device)
            ids = candidates.token_ids[rows].to(device)
            values = teacher.candidates(batch, after[rows].to(device), ids).float()
            found[rows] = to_probability(teacher, values).cpu()
            advance(len(rows))
    return found


def to_probability(teacher: Teacher, values: Tensor) -> Tensor:
    """Return P(attribute) in [0, 1] from a teacher's values."""
    return values.sigmoid() if teacher.link == "sigmoid" else values.clamp(0.0, 1.0)


def _ask(directory: Path, question: Question, loaded: LoadedModel, cache: Path) -> Answer:
    if artefact.read_config(directory)["kind"] == "tap_arm":
        return ask_tap(directory, question, loaded.lm, cache)
    teacher = load_teacher(directory, loaded.lm, loaded.tokenizer.bos_token_id, question.columns)
    if question.candidates is not None:
        check_block(teacher)

    def answer() -> Answer:
        title, texts = f"asking {directory.name}", question.texts
        values = read_values(teacher.scorer, texts, loaded.lm.device, title)
        found = torch.cat([value[-count:] for value, count in zip(values, texts.read, strict=True)])
        soft = to_probability(teacher, found[:, teacher.outputs])
        if question.candidates is None:
            return Answer(directory.name, teacher.digest, soft, torch.empty(0))
        of_candidates = value_candidates(teacher, texts, question.candidates, f"{title} about candidates")
        return Answer(directory.name, teacher.digest, soft, of_candidates)

    asked = hashlib.sha256(f"{teacher.digest} {teacher.outputs} {question.digest()}".encode())
    return _remembered(cache / f"{asked.hexdigest()[:20]}-teacher.safetensors", directory, teacher, answer)


def _remembered(path: Path, directory: Path, teacher: Teacher, answer: Callable[[], Answer]) -> Answer:
    """Return the answer from the file, or find it and write it there. UserError if it cannot be written."""
    if path.is_file():
        return Answer(directory.name, teacher.digest, **load_file(path))
    found = answer()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = save({"soft": found.soft.contiguous(), "candidates": found.candidates.contiguous()})
        write_temporary(path, content).replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write to {path.parent} ({error.strerror}): give another folder with --cache"
        ) from None
    return found


def _begins(texts: TokenTexts) -> Tensor:
    """Return (M,) int64, 1 where a backbone has read a begin token that the generator's states have not."""
    return torch.tensor([len(row) - 1 - read for row, read in zip(texts.rows, texts.read, strict=True)])


def _split(rows: list[int], size: int) -> list[list[int]]:
    size = max(1, size)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
