"""A saved backbone reward as a teacher: its values of texts, and of tokens the generator might have said.

    plain:       r(x_t | x_<t)  ->  teacher r(x_<=t)                        at every token of the data
    delta:       r(x_t | x_<t)  ->  teacher r(x_<=t) - r(x_<t)              what the token changed
    candidates:  plain, and     r(v | x_<t)  ->  teacher r(x_<t + v)        for the generator's likeliest v,
                 at some positions t of every text

All by mean squared error over positions and outputs, each term by itself. Plain is eq. 10 of arXiv
2407.04615; delta is in its authors' code; candidates are ours: the data shows one token a prefix, a decode
chooses among k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from decoder.contracts import UserError
from decoder.lm import CausalLM, why_no_block
from rewards.backbone import Link, load
from rewards.backbone_heads import ActionValueHead, ValueHead
from rewards.backbone_losses import gains, mean_square
from rewards.backbone_texts import Batch
from rewards.fit_backbone import Error, Scorer
from rewards.load import find


@dataclass(frozen=True, slots=True)
class Teacher:
    """A trained scorer that only answers.

    outputs: which of its outputs, in the student's order. link, digest: as it was saved.
    """

    scorer: Scorer
    outputs: tuple[int, ...]
    link: Link = "sigmoid"
    digest: str = ""

    def __post_init__(self) -> None:
        """Take it out of training for good: no dropout in its answers, no gradient."""
        self.scorer.eval().requires_grad_(False)

    @torch.no_grad()
    def values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return r after every scored token, (B, T, F), and of the text with no token, (B, F)."""
        states = self.scorer(batch.ids, batch.mask)
        values = self.scorer.values(states, batch.ids)[..., self.outputs]
        if isinstance(self.scorer.head, ActionValueHead):  # it values tokens, never the text without any
            return values, torch.full_like(values[:, 0], torch.nan)
        return values, self.scorer.head(states[:, 0])[..., self.outputs]

    def value_of_no_text(self, bos_token_id: int) -> Tensor:
        """Return RAD's r of BOS alone, (F,) on the CPU."""
        ids = torch.tensor([[bos_token_id, 0]], device=next(self.scorer.parameters()).device)
        nothing = Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.empty(0))
        return self.values(nothing)[1][0].cpu()

    @torch.no_grad()
    def candidates(self, batch: Batch, positions: Tensor, candidate_ids: Tensor) -> Tensor:
        """Return r (B, P, K, F) of candidates (B, P, K), each after the BOS and the first `positions` tokens.

        positions: (B, P) int64. A RAD teacher reads text and candidates in one forward.
        """
        if isinstance(self.scorer.head, ValueHead):
            value: Tensor = self.scorer.head(read_branches(self.scorer, batch, positions, candidate_ids))
            return value[..., self.outputs]
        states = take_states(self.scorer(batch.ids, batch.mask), positions)
        return self.scorer.candidates(states, candidate_ids)[..., self.outputs]


def take_states(states: Tensor, positions: Tensor) -> Tensor:
    """Return the states (B, P, d) at positions (B, P) of (B, T, d)."""
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))


def read_branches(scorer: Scorer, batch: Batch, positions: Tensor, candidate_ids: Tensor) -> Tensor:
    """Return the states (B, P, K, d) of each candidate, which has read its prefix and itself.

    The candidates stand after the text in one forward; the mask and the position numbers make each of
    them the token that follows its prefix.
    """
    (n_rows, width), n_candidates = batch.ids.shape, candidate_ids.shape[2]
    branch = positions.repeat_interleave(n_candidates, 1)  # (B, S)
    ids = torch.cat([batch.ids, candidate_ids.flatten(1)], 1)
    every = torch.arange(width, device=ids.device)
    numbers = torch.cat([every.expand(n_rows, width), branch + 1], 1)
    sees = torch.zeros(n_rows, ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device)
    sees[:, :width, :width] = every[:, None] >= every
    sees[:, width:, :width] = every <= branch[..., None]
    sees[:, width:, width:] = torch.eye(branch.shape[1], dtype=torch.bool, device=ids.device)
    dtype = scorer.backbone.dtype
    hidden = torch.zeros(sees.shape, dtype=dtype, device=ids.device)
    hidden = hidden.masked_fill(~sees, torch.finfo(dtype).min)[:, None]
    output = scorer.backbone.base_model(
        input_ids=ids, attention_mask=hidden, position_ids=numbers, use_cache=False
    )
    states: Tensor = output.last_hidden_state[:, width:].float()
    return states.reshape(*candidate_ids.shape, -1)


def pick_positions(lengths: Tensor, n_positions: int, generator: torch.Generator) -> Tensor:
    """Return random places (B, P) int64, from 0, in texts of these lengths (B,); they may repeat."""
    chance = torch.rand(len(lengths), n_positions, generator=generator).to(lengths.device)
    return (chance * lengths[:, None]).long()


@torch.no_grad()
def likeliest(lm: CausalLM, batch: Batch, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the generator's k likeliest next tokens after the prefixes at `positions`, (B, P, K) int64.

    Beside them their probabilities among themselves, (B, P, K) float32.
    """
    output = lm.model.base_model(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False)
    logits: Tensor = lm.model.get_output_embeddings()(take_states(output.last_hidden_state, positions))
    found = logits.float().topk(min(k, logits.shape[-1]))
    return found.indices, found.values.softmax(-1)


def plain_error(teacher: Teacher) -> Error:
    """Return the mean squared distance of the student's values from the teacher's."""

    def error(student: Scorer, states: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        values, _ = teacher.values(batch)
        return mean_square(student.values(states, batch.ids) - values, batch.scored)

    return error


def delta_error(teacher: Teacher) -> Error:
    """Return the mean squared distance of the student's values from what each token changed the teacher's by.

    Raises UserError for an ARM as teacher, which has no value of the empty text.
    """
    if not isinstance(teacher.scorer.head, ValueHead):
        raise UserError(
            "--distil delta needs a teacher made by rewards.train_rad: an ARM values no empty text"
        )

    def error(student: Scorer, states: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        changes = gains(*teacher.values(batch))
        return mean_square(student.values(states, batch.ids) - changes, batch.scored)

    return error


def check_block(teacher: Teacher) -> None:
    """Refuse a RAD teacher whose backbone cannot read several candidates in one forward."""
    reason = why_no_block(teacher.scorer.backbone)
    if reason and isinstance(teacher.scorer.head, ValueHead):
        raise UserError(f"the teacher cannot value candidates at one position: {reason}; take --distil plain")


def candidates_error(teacher: Teacher, lm: CausalLM, k: int, n_positions: int) -> Error:
    """Return the plain error and, added to it, that of k tokens of the generator at some places of a text.

    Raises UserError for a RAD teacher whose backbone cannot read them in one forward.
    """
    plain = plain_error(teacher)
    check_block(teacher)

    def error(student: Scorer, states: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        positions = pick_positions(batch.scored.sum(1), n_positions, generator)
        candidate_ids, _ = likeliest(lm, batch, positions, k)
        wanted = teacher.candidates(batch, positions, candidate_ids)
        found = student.candidates(take_states(states, positions), candidate_ids)
        return plain(student, states, batch, generator) + (found - wanted).square().mean()

    return error


def load_teacher(directory: Path, lm: CausalLM, bos_token_id: int | None, columns: Sequence[str]) -> Teacher:
    """Return a saved RAD or backbone ARM as the teacher of these label columns, in the generator's place.

    bos_token_id: what stands before the student's texts. Raises UserError for a reward that is broken, of
    another kind, or for other tokens.
    """
    directory = find(directory)
    head, backbone, config, digest = load(directory, lm)
    if config.bos_token_id != bos_token_id:
        raise UserError(
            f"teacher {directory} puts token {config.bos_token_id} before every text, the student "
            f"{bos_token_id}: give a --backbone with the same begin token"
        )
    outputs = match_outputs(str(directory), config.outputs, config.use, columns)
    return Teacher(Scorer(backbone.lm.model, head.to(lm.device)), outputs, config.link, digest)


def match_outputs(teacher: str, outputs: Sequence[str], use: str, columns: Sequence[str]) -> tuple[int, ...]:
    """Return which of a teacher's outputs teaches each label column: by name, or else its one in use.

    Raises UserError if there are several columns and their names are not all outputs.
    """
    if all(column in outputs for column in columns):
        return tuple(outputs.index(column) for column in columns)
    if len(columns) == 1:
        return (outputs.index(use),)
    raise UserError(
        f"teacher {teacher} has the outputs {', '.join(outputs)}, the data the label columns "
        f"{', '.join(columns)}: name columns that it has"
    )
