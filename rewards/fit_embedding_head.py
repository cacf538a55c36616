"""Fit an embedding head on pooled states: AdamW over prompts, stopped early, best weights kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from decoder.contracts import UserError
from rewards.elhsr_losses import loss as find_loss
from rewards.embedding_head import EmbeddingMLP, Pooling
from rewards.rollout_states import RolloutStates

CHUNK = 256  # completions pooled at a time


def fit(
    embeddings: Tensor,
    labels: Tensor,
    groups: Tensor,
    train: Tensor,
    validation: Tensor,
    *,
    loss: str = "ce",
    widths: tuple[int, ...] = (256, 256),
    epochs: int = 40,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    patience: int = 3,
    seed: int = 0,
    batch_groups: int = 16,
) -> tuple[EmbeddingMLP, float, int]:
    """Return the MLP with the lowest validation loss, that loss, and the epoch it is from (1 is the first).

    embeddings: (M, D) float32. labels: (M,) float. groups: (M,) int64, the prompt of each completion.
    train, validation: (M,) bool; no prompt on both sides. loss: a name of `rewards.elhsr_losses`.
    patience: epochs without a better loss before it stops. batch_groups: whole prompts a step.
    Raises UserError for sides that are empty or share a prompt, inputs or a loss that are not finite.
    """
    criterion = find_loss(loss)
    check_sides(embeddings, labels, groups, train, validation)
    generator = torch.Generator().manual_seed(seed)
    mlp = _new_mlp(embeddings[train], widths, generator)
    optimiser = torch.optim.AdamW(mlp.parameters(), lr=lr, weight_decay=weight_decay)
    prompts = _completions_of_groups(groups, train)
    best = (copy.deepcopy(mlp), math.inf, 0)
    for epoch in range(1, epochs + 1):
        for batch in _batches(prompts, batch_groups, generator):
            optimiser.zero_grad()
            criterion(mlp(embeddings[batch]), labels[batch], groups[batch]).backward()
            optimiser.step()
        with torch.no_grad():
            scores = mlp(embeddings[validation])
        value = float(criterion(scores, labels[validation], groups[validation]))
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} in epoch {epoch}: lower the learning rate, now {lr:g}")
        if value < best[1]:
            best = (copy.deepcopy(mlp), value, epoch)
        elif epoch - best[2] >= patience:
            break
    return best


def pool(states: RolloutStates, layers: tuple[int, ...], pooling: Pooling) -> Tensor:
    """Return (M, L * d) float32: of each completion what an `EmbeddingHead` session pools from it."""
    pooled = [_pool_layer(states, states.taps[layer], pooling) for layer in layers]
    return torch.cat(pooled, -1)


def check_sides(inputs: Tensor, labels: Tensor, groups: Tensor, train: Tensor, validation: Tensor) -> None:
    """Raise UserError unless both masks choose completions, no prompt is on both, and all is finite."""
    for name, mask in (("training", train), ("validation", validation)):
        if not bool(mask.any()):
            raise UserError(f"no completion is for {name}: give rollouts of more prompts")
    both = groups[train].unique()
    both = both[torch.isin(both, groups[validation])]
    if len(both):
        raise UserError(
            f"{len(both)} prompts, such as number {int(both[0])}, are on both sides: split by prompt"
        )
    for name, values in (("inputs", inputs), ("labels", labels)):
        if not bool(values.isfinite().all()):
            raise UserError(f"the {name} to fit on are not finite: load the model with --dtype float32")


def standardisation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (D,) of values (n, D); 1 where they do not vary beyond rounding."""
    mean, scale = values.mean(0), values.std(0, correction=0)
    return mean, scale.where(scale > 1e-5 * mean.abs(), 1.0)


def _new_mlp(embeddings: Tensor, widths: tuple[int, ...], generator: torch.Generator) -> EmbeddingMLP:
    """Return an MLP that standardises by these embeddings and whose scores start near 0."""
    mlp = EmbeddingMLP(embeddings.shape[1], widths)
    mlp.mean, mlp.scale = standardisation(embeddings)
    for linear in mlp.linears:
        assert isinstance(linear, nn.Linear)
        gain = 0.1 if linear is mlp.linears[-1] else math.sqrt(2)  # He et al. 2015 for what a ReLU follows
        nn.init.normal_(linear.weight, std=gain * linear.in_features**-0.5, generator=generator)
        nn.init.zeros_(linear.bias)
    return mlp


def _completions_of_groups(groups: Tensor, chosen: Tensor) -> list[Tensor]:
    """Return for each group among the chosen completions (M,) bool their numbers, int64."""
    numbers = chosen.nonzero()[:, 0]
    _, member, size = groups[numbers].unique(return_inverse=True, return_counts=True)
    return list(numbers[member.argsort(stable=True)].split(size.tolist()))


def _batches(prompts: list[Tensor], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the completions of `size` prompts at a time, in a new order."""
    for chosen in torch.randperm(len(prompts), generator=generator).split(size):
        yield torch.cat([prompts[i] for i in chosen.tolist()])


def _pool_layer(states: RolloutStates, tap: Tensor, pooling: Pooling) -> Tensor:
    """Return (M, d) float32 of one layer's states (N, d)."""
    if pooling == "last":
        return tap[states.starts + states.lengths - 1].float()
    pooled = torch.zeros(len(states.starts), tap.shape[1])
    for completions in torch.arange(len(states.starts)).split(CHUNK):
        owner = completions.repeat_interleave(states.lengths[completions])
        pooled.index_add_(0, owner, tap[states.rows_of(completions)[0]].float())
    return pooled / states.lengths[:, None]
