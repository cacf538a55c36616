"""Preference pairs of embeddings, read when they are asked for, and some of them held out by prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from decoder.contracts import UserError
from rewards.head_inputs import CHUNK, Ints, RowReader, split_targets
from rewards.heads import Embeddings

HELD_OUT, SEED = 0.05, 0  # a head's own


@dataclass(frozen=True, slots=True)
class PairRows:
    """N preference pairs of rows of embeddings.

    embeddings: (R, D), or a function of rows (m,) -> (m, D). reader: the same, checked, as float32. pairs:
    (N, 2) int64 rows, the chosen one first. prompts: (N,) int64, or None where a pair has two. n_rows: R.
    """

    embeddings: Embeddings
    reader: RowReader
    pairs: Ints
    prompts: Ints | None
    n_rows: int

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def dimension(self) -> int:
        """Return D."""
        return self.reader.dimension

    def read(self, numbers: Ints) -> Tensor:
        """Return (m, 2, D) float32: the chosen and the rejected embedding of the pairs (m,).

        Raises UserError naming the row for embeddings that are not finite.
        """
        return self.reader(self.pairs[numbers])

    def take(self, numbers: Ints) -> PairRows:
        """Return those of the pairs, (m,) numbers, in that order."""
        prompts = None if self.prompts is None else self.prompts[numbers]
        return replace(self, pairs=self.pairs[numbers], prompts=prompts)

    def some(self, most: int) -> Ints:
        """Return the numbers of at most so many pairs, evenly chosen."""
        n = len(self)
        return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)


def pair_rows(
    embeddings: Embeddings, pairs: ArrayLike, prompts: ArrayLike | None, n_rows: int | None = None
) -> PairRows:
    """Return pairs (N, 2) of rows of embeddings (R, D), which may be a function of rows.

    prompts: (N,), of any type, of each pair; None where pairs have two. n_rows: R, which a function does not
    say; by default one more than the last row named. Raises UserError for other shapes.
    """
    rows = np.asarray(pairs, dtype=np.int64)
    if rows.ndim != 2 or rows.shape[1] != 2 or not len(rows):
        raise UserError(f"pairs of rows have shape (N, 2), not {rows.shape}: give one or more")
    owner = None if prompts is None else np.unique(np.asarray(prompts), return_inverse=True)[1]
    if owner is not None and owner.shape != (len(rows),):
        raise UserError(f"prompts have shape {owner.shape}: give one a pair, ({len(rows)},)")
    size: Any = None if callable(embeddings) else len(embeddings)  # type: ignore[arg-type]
    known = [n for n in (n_rows, size, int(rows.max()) + 1) if n is not None]
    return PairRows(embeddings, RowReader(embeddings, int(rows[0, 0])), rows, owner, known[0])


def pairs_of(chosen: ArrayLike, rejected: ArrayLike, prompts: ArrayLike | None) -> PairRows:
    """Return N pairs of embeddings chosen (N, D) and rejected (N, D), as rows 0..N-1 and N..2N-1.

    prompts: (N,) ids, or None where pairs have two. Raises UserError for shapes that differ.
    """
    sides = [torch.as_tensor(np.asarray(side, dtype=np.float32)) for side in (chosen, rejected)]
    if sides[0].shape != sides[1].shape or sides[0].dim() != 2:
        shapes = " and ".join(str(tuple(side.shape)) for side in sides)
        raise UserError(f"chosen and rejected embeddings have shapes {shapes}: give (N, D) of both")
    first = np.arange(len(sides[0]))
    return pair_rows(torch.cat(sides), np.stack([first, first + len(first)], 1), prompts)


def hold_out(pairs: PairRows, share: float = HELD_OUT, seed: int = SEED) -> tuple[PairRows, PairRows]:
    """Return the pairs to learn from and those to stop on, which no synthesiser may see as its own.

    The very pairs that a head with this held-out share and seed would stop on; none of a prompt is on both
    sides. What is small enough is kept in memory. Raises UserError as `split_targets` does.
    """
    split = split_targets(pairs.pairs, pairs.prompts, share, seed)
    assert split.pairs is not None  # pairs went in
    pairs.reader.keep(split.all_rows)
    sides = [_of_rows(pairs, wanted) for wanted in (split.pairs, split.held_out)]
    return sides[0], sides[1]


def read_some(pairs: PairRows, most: int) -> Tensor:
    """Return (m, 2, D) of at most so many pairs, evenly chosen, read in parts."""
    numbers = pairs.some(most)
    found = torch.empty(len(numbers), 2, pairs.dimension)
    for first in range(0, len(numbers), CHUNK // 4):
        part = slice(first, first + CHUNK // 4)
        found[part] = pairs.read(numbers[part])
    return found


def _of_rows(pairs: PairRows, wanted: Ints) -> PairRows:
    """Return those of the pairs that are these rows (m, 2), with their prompts, in this order."""
    if pairs.prompts is None:
        return replace(pairs, pairs=wanted)
    prompt_of = dict(zip(map(tuple, pairs.pairs.tolist()), pairs.prompts.tolist(), strict=True))
    prompts = np.array([prompt_of[one, other] for one, other in wanted.tolist()], dtype=np.int64)
    return replace(pairs, pairs=wanted, prompts=prompts)
