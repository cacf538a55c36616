"""A saved tap ARM as a teacher: P(attribute) from the states of the generator that it reads."""

from __future__ import annotations

from pathlib import Path

import torch

from decoder.lm import CausalLM
from rewards import artefact
from rewards.arm import TapArm
from rewards.distil import match_outputs
from rewards.features import read_states
from rewards.fit_arm import candidate_log_odds, log_odds
from rewards.teacher_question import Answer, Question

TEXTS_AT_ONCE = 256


@torch.no_grad()
def ask_tap(directory: Path, question: Question, lm: CausalLM, cache: Path) -> Answer:
    """Return what a saved tap ARM holds of the question; the states it reads stay in the cache folder.

    Raises UserError if it is broken, is for another generator, or there are several label columns.
    """
    arm = TapArm.from_pretrained(directory, lm)
    label = str(artefact.read_config(directory).get("label_column", directory.name))
    match_outputs(str(directory), (label,), label, question.columns)
    head, embeddings = arm.head.cpu(), lm.output_embeddings.detach().cpu()
    states = read_states(lm, question.rows, arm.layers, cache, title=f"reading states for {directory.name}")
    parts = torch.arange(len(question.rows.ids)).split(TEXTS_AT_ONCE)
    soft = torch.cat([log_odds(head, states, embeddings, part) for part in parts]).sigmoid()[:, None]
    candidates = torch.empty(0)
    if (asked := question.candidates) is not None:
        found = [candidate_log_odds(head, states, embeddings, asked, part) for part in parts]
        candidates = torch.cat(found).sigmoid()[..., None]
    return Answer(directory.name, arm.digest, soft, candidates)
