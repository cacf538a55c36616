"""MLP reward heads on embeddings: Bradley-Terry and classification, one at a time or hundreds together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from rewards import artefact
from rewards.embedding_head import EmbeddingMLP
from rewards.fit_stacked import MlpFit, fit_stack
from rewards.head_files import read_head, save_head
from rewards.head_inputs import RowReader, score_rows, split_targets
from rewards.heads import (
    Embeddings,
    MlpOptions,
    Scores,
    change_options,
    fitted,
    make_options,
    options_record,
    stack_key,
)

KIND = "head_mlp"
# What the largest tensor of a stack may take. Measured: past it, stacks are slower than lone fits, because
# they leave the processor's cache and the allocator asks the system for every tensor anew.
STACK_BYTES = 16 << 20


class MlpHead:
    """A linear head or an MLP on embeddings, trained on pairs; standardises its inputs itself.

    Sources: "Reusing Embeddings" (arXiv 2502.04357) and "Beyond Bradley-Terry" (arXiv 2411.04991), section
    3, for the two losses and the widths; training is ours (`rewards/fit_stacked.py`). After `fit`: `mlp_`,
    the weights; `fit_`, how the training ended, None in a head that was loaded.
    """

    def __init__(self, **options: Any) -> None:
        """Take fields of `MlpOptions`. Raises UserError for other names and impossible values."""
        self.options = make_options(MlpOptions, options)
        self.mlp_: EmbeddingMLP | None = None
        self.fit_: MlpFit | None = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        return options_record(self.options)

    def set_params(self, **changes: Any) -> MlpHead:
        """Change hyper-parameters of the next `fit` and return itself."""
        self.options = change_options(self.options, changes)
        return self

    def fit(self, X: Embeddings, y: Any, groups: ArrayLike | None = None) -> MlpHead:
        """Learn from pairs of embeddings and return itself.

        X: (N, D), or a function that returns the embeddings (m, D) of rows (m,) int64. y: pairs (n, 2) of
        rows, the winner first, or `LabelledPairs`; for the loss "clf" also labels (N,) of 0 and 1; or a
        `Split` that says which pairs to stop on. groups: (n,), the prompt of each pair; held-out pairs share
        none with the others. Raises UserError for
        pairs, rows or embeddings that cannot be used.
        """
        fit_together([self], X, [y], [groups])
        return self

    @torch.no_grad()
    def predict(self, X: ArrayLike) -> Scores:
        """Return scores (M,) float32 of embeddings (M, D); sigma(s1 - s2) is how likely the first wins.

        Raises UserError for a head that was not fitted, another D, and rows that are not finite.
        """
        mlp = fitted(self.mlp_)
        return score_rows(X, len(mlp.mean), mlp)

    def save_pretrained(
        self,
        directory: str | Path,
        encoder: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the fitted head; `encoder` says what made the embeddings, `about` where labels came from."""
        mlp = fitted(self.mlp_)
        learnt = (len(mlp.mean), options_record(self.options), mlp.state_dict())
        save_head(Path(directory), KIND, learnt, encoder, about)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, dimension: int | None = None, encoder: Mapping[str, Any] | None = None
    ) -> MlpHead:
        """Load a saved head, for embeddings of this dimension and encoder where they are given.

        Raises UserError if it is broken or was made for others.
        """
        saved = read_head(Path(directory), KIND, dimension, encoder)
        head = cls(**{**saved.options, "widths": tuple(saved.options.get("widths", ()))})
        mlp = EmbeddingMLP(saved.dimension, head.options.widths)
        artefact.load_weights(mlp, Path(directory))
        head.mlp_ = mlp.eval().requires_grad_(False)
        return head

    @property
    def digest(self) -> str:
        """Return what tells these weights from others."""
        return artefact.digest(fitted(self.mlp_).state_dict())


def fit_together(
    heads: Sequence[MlpHead],
    X: Embeddings,
    targets: Sequence[Any],
    groups: Sequence[ArrayLike | None] | None = None,
) -> None:
    """Fit many heads on the same embeddings, those that differ only in seed and targets as one stack.

    X as in `MlpHead.fit`. targets, groups: each head's own. Every head ends as it would alone.
    Raises UserError as `MlpHead.fit` does.
    """
    if not heads:
        return
    owners = groups or [None] * len(heads)
    splits = [
        split_targets(y, owner, head.options.held_out, head.options.seed)
        for head, y, owner in zip(heads, targets, owners, strict=True)
    ]
    reader = RowReader(X, int(splits[0].rows[0]))
    reader.keep(np.unique(np.concatenate([split.all_rows for split in splits])))
    for stack in _stacks(heads, reader.dimension):
        chosen = [heads[place] for place in stack]
        seeds = [head.options.seed for head in chosen]
        found = fit_stack(reader, [splits[place] for place in stack], seeds, chosen[0].options)
        for head, fit in zip(chosen, found, strict=True):
            head.fit_, head.mlp_ = fit, fit.mlp


def _stacks(heads: Sequence[MlpHead], dimension: int) -> list[list[int]]:
    """Return the places of the heads that are trained together, as many as STACK_BYTES allows."""
    alike: dict[str, list[int]] = {}
    for place, head in enumerate(heads):
        alike.setdefault(stack_key(head.options), []).append(place)
    stacks = []
    for places in alike.values():
        sizes = [dimension, *heads[places[0]].options.widths, 1]
        largest = max(
            wide * max(out, 2 * heads[places[0]].options.batch_pairs) for wide, out in pairwise(sizes)
        )
        most = max(1, STACK_BYTES // (4 * largest))
        stacks += [places[first : first + most] for first in range(0, len(places), most)]
    return stacks
