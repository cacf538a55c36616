"""Fit an ELHSR probe on features of tokens: AdamW over prompts, stopped early, best weights kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decoder.contracts import UserError
from rewards.elhsr_losses import loss as find_loss
from rewards.features import token_rows


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a probe is fitted; the paper's losses and early stopping, steps of `batch_prompts` prompts.

    The paper's learning rate, 1e-4, is for raw states; features of unit variance take a larger one.
    """

    loss: str = "ce"
    gate: bool = True
    epochs: int = 40
    patience: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_prompts: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """Features (N, F) float32 of all tokens of M completions, where each starts, and how good each was.

    starts, lengths, groups: (M,) int64, groups numbering the prompts. labels: (M,) float32.
    """

    features: Tensor
    starts: Tensor
    lengths: Tensor
    groups: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Fit:
    """The fitted layer, F -> (gate, reward), its loss on validation, and the epoch it is from."""

    linear: nn.Linear
    validation_loss: float
    epoch: int


def fit(tokens: Tokens, train: Tensor, validation: Tensor, recipe: Recipe) -> Fit:
    """Return the layer with the lowest loss on the validation prompts.

    train, validation: prompt numbers (P,) int64. Raises UserError if the loss is not finite.
    """
    criterion = find_loss(recipe.loss)
    generator = torch.Generator().manual_seed(recipe.seed)
    linear = nn.Linear(tokens.features.shape[1], 2)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)  # every completion starts at 0, and gates half open
    optimiser = torch.optim.AdamW(
        linear.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    held_out = completions_of(tokens.groups, validation)
    best = Fit(copy.deepcopy(linear), math.inf, 0)
    for epoch in range(1, recipe.epochs + 1):
        for batch in _batches(tokens, train, recipe.batch_prompts, generator):
            loss = criterion(scores(linear, tokens, batch, recipe.gate), *_targets(tokens, batch))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            found = scores(linear, tokens, held_out, recipe.gate)
            value = float(criterion(found, *_targets(tokens, held_out)))
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} in epoch {epoch}: lower --learning-rate")
        if value < best.validation_loss:
            best = Fit(copy.deepcopy(linear), value, epoch)
        elif epoch - best.epoch >= recipe.patience:
            break
    return best


def scores(linear: nn.Linear, tokens: Tokens, completions: Tensor, gate: bool) -> Tensor:
    """Return R of the completions (B,), as `rewards.fold.GatedMean` has it."""
    lengths = tokens.lengths[completions]
    rows, _ = token_rows(tokens.starts[completions], lengths)
    a, r = linear(tokens.features[rows]).unbind(-1)
    gates = a.sigmoid() if gate else torch.ones_like(a)
    owner = torch.arange(len(completions)).repeat_interleave(lengths)
    total = torch.zeros(2, len(completions)).index_add(1, owner, torch.stack([gates * r, gates]))
    return total[0] / total[1].clamp(min=1e-8)


def completions_of(groups: Tensor, prompts: Tensor) -> Tensor:
    """Return the numbers of the completions, whose prompts are `groups` (M,), of `prompts`, ascending."""
    return torch.isin(groups, prompts).nonzero()[:, 0]


def _targets(tokens: Tokens, completions: Tensor) -> tuple[Tensor, Tensor]:
    return tokens.labels[completions], tokens.groups[completions]


def _batches(tokens: Tokens, prompts: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the completions of `size` prompts at a time, in a new order."""
    order: Sequence[Tensor] = prompts[torch.randperm(len(prompts), generator=generator)].split(size)
    for chosen in order:
        yield completions_of(tokens.groups, chosen)
