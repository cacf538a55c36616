"""What a reward with its own backbone learns, labels or a teacher's values, and how to read its own then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoder.contracts import UserError
from decoder.lm import CausalLM
from rewards.backbone import Link
from rewards.backbone_losses import LABEL_LOSSES, LossName
from rewards.backbone_texts import Batch
from rewards.distil import Teacher, candidates_error, delta_error, plain_error
from rewards.fit_backbone import Error, Objective, Scorer
from rewards.training_options import BackboneOptions, TeacherOptions

LINKS: dict[LossName, Link] = {"ce": "sigmoid", "mse": "clamp"}
SURE = 1e-4  # a clamped value is told as log-odds of at least this probability and of its opposite


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is learnt.

    link: of the student's values. read_as: the link under which the values, or their running sum from
    `start` (F,) where a student learns differences, tell the label.
    """

    objective: Objective
    link: Link
    read_as: Link
    start: Tensor | None = None

    def log_odds(self, values: Sequence[Tensor], n_last: Sequence[int]) -> NDArray[np.float64]:
        """Return log-odds (N, F) of the last so many values (l, F) of every text, text after text."""
        if self.start is not None:
            values = [self.start + value.cumsum(0) for value in values]
        found = torch.cat([value[-count:] for value, count in zip(values, n_last, strict=True)]).double()
        if self.read_as == "clamp":
            found = found.clamp(SURE, 1 - SURE).logit()
        log_odds: NDArray[np.float64] = found.numpy()
        return log_odds


def make_lesson(
    options: BackboneOptions,
    teaching: TeacherOptions,
    teacher: Teacher | None,
    lm: CausalLM,
    bos_token_id: int,
) -> Lesson:
    """Return what the options say is learnt: labels, or a teacher's values.

    A student of a teacher has its link. One of differences has the sigmoid link all the same: differences
    are no probabilities, and clamped to [0, 1] they would lose whatever makes a text worse; so r rises with
    the difference, and its scale is its own. Raises UserError for --loss beside a teacher.
    """
    coefficient = teaching.regularise
    if teacher is None:
        loss = options.loss or "ce"
        return Lesson(Objective(label_error(loss), coefficient), LINKS[loss], LINKS[loss])
    if options.loss is not None:
        raise UserError("--loss is about labels, and --teacher takes their place: leave one of them out")
    if teaching.distil == "delta":
        objective = Objective(delta_error(teacher), coefficient)
        return Lesson(objective, "sigmoid", teacher.link, teacher.value_of_no_text(bos_token_id))
    error = plain_error(teacher)
    if teaching.distil == "candidates":
        error = candidates_error(teacher, lm, teaching.candidates, teaching.candidate_positions)
    return Lesson(Objective(error, coefficient), teacher.link, teacher.link)


def label_error(loss: LossName) -> Error:
    """Return the error of a scorer's values on labels."""
    cumulative = LABEL_LOSSES[loss]

    def error(scorer: Scorer, states: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        return cumulative(scorer.values(states, batch.ids), batch.labels, batch.scored)

    return error
