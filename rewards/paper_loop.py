"""The training loop of "Reusing Embeddings" as it was released, written anew: the baseline of benchmarks.

Kept as it is, with its weaknesses: sigmoid and BCELoss instead of a loss on logits, mirrored pairs made
before the split, so that most validation pairs were trained on the other way round, inputs that are not
standardised, about 60 optimiser steps for 10,000 pairs, and the last weights rather than the best.
Source: the code of arXiv 2411.04991, which arXiv 2502.04357 builds on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LOOK_BACK = 3  # it stops where a validation loss is above all of the last three


@dataclass(frozen=True, slots=True)
class PaperLoop:
    """Its constants: Adam's learning rate, epochs, pairs a step, validation share, widths."""

    lr: float = 1e-3
    epochs: int = 30
    batch_pairs: int = 10_240
    validation: float = 0.2
    widths: tuple[int, int] = (1024, 512)


def fit_paper_loop(
    embeddings: Tensor,
    pairs: Tensor,
    seed: int = 0,
    constants: PaperLoop | None = None,
    on_epoch: Callable[[nn.Module], None] | None = None,
) -> tuple[nn.Module, int]:
    """Return the MLP, embeddings (M, D) -> scores (M, 1), and how many epochs it was trained.

    embeddings: (N, D) float32. pairs: (n, 2) int64 rows, the winner first. on_epoch: shown the MLP after
    each epoch.
    """
    constants = constants or PaperLoop()
    generator = torch.Generator().manual_seed(seed)
    both = torch.cat([pairs, pairs.flip(1)])
    labels = torch.cat([torch.ones(len(pairs)), torch.zeros(len(pairs))])
    shuffled = torch.randperm(len(both), generator=generator)
    validation, train = shuffled.tensor_split([int(len(both) * constants.validation)])
    mlp = _mlp(embeddings.shape[1], constants.widths, seed)
    optimiser = torch.optim.Adam(mlp.parameters(), lr=constants.lr)
    losses: list[float] = []
    for epoch in range(1, constants.epochs + 1):
        for _ in range(math.ceil(len(train) / constants.batch_pairs)):
            order = torch.randperm(len(train), generator=generator)
            batch = train[order[: constants.batch_pairs]]
            optimiser.zero_grad()
            _loss(mlp, embeddings, both[batch], labels[batch]).backward()
            optimiser.step()
        with torch.no_grad():
            losses.append(float(_loss(mlp, embeddings, both[validation], labels[validation])))
        if on_epoch is not None:
            on_epoch(mlp)
        if epoch > LOOK_BACK and losses[-1] > max(losses[-1 - LOOK_BACK : -1]):
            break
    return mlp, epoch


def _loss(mlp: nn.Module, embeddings: Tensor, pairs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of sigma(s1 - s2)."""
    first, second = (mlp(embeddings[pairs[:, side]]) for side in (0, 1))
    return nn.functional.binary_cross_entropy(torch.sigmoid(first - second)[:, 0], labels)


def _mlp(n_inputs: int, widths: tuple[int, int], seed: int) -> nn.Module:
    """Return Linear, ReLU, Linear, ReLU, Linear with torch's own initial weights."""
    first, second = widths
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(n_inputs, first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, 1),
        )
