"""A teacher's opinion of every token of the texts, read once, for the tap ARM to learn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from decoder.models import LoadedModel
from rewards.arm_material import Material
from rewards.backbone_texts import encode
from rewards.distil import load_teacher
from rewards.fit_backbone import read_values


@dataclass(frozen=True, slots=True)
class Taught:
    """What a teacher says of a run's texts.

    soft: (N, L) float32, P(attribute) after the token that each of the N states is scored with. name: of its
    folder. seconds: of asking.
    """

    soft: Tensor
    name: str
    digest: str
    seconds: float


def ask_teacher(directory: Path, loaded: LoadedModel, material: Material, max_length: int) -> Taught:
    """Return a saved RAD's or backbone ARM's P(attribute) for each label column, text after text.

    Raises UserError if it is broken, does not read the generator's tokens, or lacks a column's output.
    """
    begin = time.perf_counter()
    labelled, tokenizer = material.labelled, loaded.tokenizer
    teacher = load_teacher(directory, loaded.lm, tokenizer.bos_token_id, labelled.columns)
    context = teacher.scorer.backbone.config.get_text_config().max_position_embeddings
    labels = torch.from_numpy(labelled.labels)
    texts = encode(tokenizer, labelled.texts, labels, max_length, context)
    values = read_values(teacher.scorer, texts, loaded.lm.device, "asking the teacher")
    found = torch.cat([value[-count:] for value, count in zip(values, texts.read, strict=True)])
    found = found[:, teacher.outputs]
    soft = found.sigmoid() if teacher.link == "sigmoid" else found.clamp(0.0, 1.0)
    return Taught(soft, directory.name, teacher.digest, time.perf_counter() - begin)
