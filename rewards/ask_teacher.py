"""A teacher's opinion of the texts' tokens and of others in their places, for the tap ARM to learn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decoder.contracts import UserError
from decoder.lm import CausalLM
from decoder.models import LoadedModel
from decoder.terminal import progress
from rewards.arm_material import Material
from rewards.backbone_texts import TokenTexts, encode, in_order, make_batch
from rewards.candidate_values import CandidateValues
from rewards.distil import Teacher, check_block, likeliest, load_teacher, pick_positions
from rewards.fit_backbone import read_values
from rewards.training_options import TeacherOptions

BATCH_TOKENS = 4096  # padded, candidates included


@dataclass(frozen=True, slots=True)
class Taught:
    """What a teacher says of a run's texts.

    soft: (N, L) float32, P(attribute) after the token that each of the N states is scored with. candidates:
    of others in its place, None if not asked. about: the teacher and what was asked, for JSON. seconds: of
    asking.
    """

    soft: Tensor
    candidates: CandidateValues | None
    about: dict[str, Any]
    seconds: float


def ask_teacher(
    options: TeacherOptions, loaded: LoadedModel, material: Material, max_length: int, seed: int
) -> Taught:
    """Return a saved RAD's or backbone ARM's P(attribute) for each label column, text after text.

    Raises UserError if it is broken, does not read the generator's tokens, lacks a column's output, or cannot
    say what is asked.
    """
    begin, directory = time.perf_counter(), options.teacher
    assert directory is not None, "there is no teacher to ask"
    if options.distil == "delta":
        raise UserError("--distil delta is for --form backbone: take plain or candidates")
    labelled, tokenizer = material.labelled, loaded.tokenizer
    teacher = load_teacher(directory, loaded.lm, tokenizer.bos_token_id, labelled.columns)
    context = teacher.scorer.backbone.config.get_text_config().max_position_embeddings
    labels = torch.from_numpy(labelled.labels)
    texts = encode(tokenizer, labelled.texts, labels, max_length, context)
    values = read_values(teacher.scorer, texts, loaded.lm.device, "asking the teacher")
    found = torch.cat([value[-count:] for value, count in zip(values, texts.read, strict=True)])
    about: dict[str, Any] = {"teacher": directory.name, "digest": teacher.digest, "distil": options.distil}
    candidates = None
    if options.distil == "candidates":
        check_block(teacher)
        shape = options.candidate_positions, options.candidates
        candidates = ask_candidates(teacher, loaded.lm, texts, *shape, seed)
        about |= {"candidate_positions": shape[0], "candidates": shape[1]}
    soft = to_probability(teacher, found[:, teacher.outputs])
    return Taught(soft, candidates, about, time.perf_counter() - begin)


def ask_candidates(
    teacher: Teacher, lm: CausalLM, texts: TokenTexts, n_places: int, k: int, seed: int
) -> CandidateValues:
    """Return the teacher's values of the generator's k likeliest tokens at random places of every text."""
    generator = torch.Generator().manual_seed(seed)
    read = torch.tensor(texts.read)
    places = pick_positions(read, n_places, generator)
    # A state of the generator has read no BOS where the tokenizer adds none, the teacher always has.
    begin = torch.tensor([len(row) - 1 for row in texts.rows]) - read
    parts: dict[int, tuple[Tensor, ...]] = {}
    widest = BATCH_TOKENS // (n_places * k + 1)
    with progress("asking about candidates", len(texts.rows)) as advance:
        for rows in (part for batch in in_order(texts, BATCH_TOKENS) for part in _split(batch, widest)):
            batch = make_batch(texts, rows, lm.device)
            at = (places[rows] + begin[rows, None]).to(lm.device)
            ids, shares = likeliest(lm, batch, at, k)
            soft = to_probability(teacher, teacher.candidates(batch, at, ids).float())
            each = zip(ids.cpu(), shares.cpu(), soft.cpu(), strict=True)
            parts |= dict(zip(rows, each, strict=True))
            advance(len(rows))
    in_place = [parts[text] for text in range(len(parts))]
    return CandidateValues(places, *map(torch.stack, zip(*in_place, strict=True)))


def to_probability(teacher: Teacher, values: Tensor) -> Tensor:
    """Return P(attribute) in [0, 1] from a teacher's values."""
    return values.sigmoid() if teacher.link == "sigmoid" else values.clamp(0.0, 1.0)


def _split(rows: list[int], size: int) -> list[list[int]]:
    size = max(1, size)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
