"""What heads are fitted on: embeddings by row number, and pairs or labels, some of them held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from decoder.contracts import UserError
from rewards.heads import Embeddings, Scores
from rewards.pairs import LabelledPairs

Ints = NDArray[np.int64]
FEWEST = 10  # pairs or labels to fit on
KEPT_BYTES = 512 << 20
CHUNK = 8192  # rows read at a time
HELD_OUT_FLOOR = 200  # pairs to stop on, where the share gives fewer and a tenth of all gives as many


class RowReader:
    """Embeddings (N, D) by row number, checked, as float32; rows that were kept are read from memory.

    dimension: D.
    """

    def __init__(self, embeddings: Embeddings, row: int = 0) -> None:
        """Take an array, a tensor or a function of rows (m,) int64; one `row` is read to learn D."""
        self._embeddings = embeddings
        self._array = None if callable(embeddings) else _matrix(embeddings)
        self._kept: tuple[Ints, Tensor] | None = None
        self.dimension = int(self._read(np.array([row])).shape[1])

    def keep(self, rows: Ints) -> None:
        """Keep the embeddings of the rows (any shape) in memory, if they take at most KEPT_BYTES."""
        wanted = np.unique(rows)
        if wanted.size * self.dimension * 4 > KEPT_BYTES:
            return
        found = torch.empty(len(wanted), self.dimension)
        for first in range(0, len(wanted), CHUNK):
            found[first : first + CHUNK] = self._read(wanted[first : first + CHUNK])
        self._kept = (wanted, found)

    def __call__(self, rows: Ints) -> Tensor:
        """Return the embeddings (*shape, D) float32 of rows of any shape.

        Raises UserError naming the row for a row that is not there, and for NaN or infinite embeddings.
        """
        if self._kept is not None:
            known, found = self._kept
            picked = found.index_select(0, torch.from_numpy(np.searchsorted(known, rows.ravel())))
        else:  # each row once, in order: neighbours share pages of a file
            wanted, places = np.unique(rows, return_inverse=True)
            picked = self._read(wanted).index_select(0, torch.from_numpy(places.ravel()))
        return picked.view(*rows.shape, -1)

    def _read(self, rows: Ints) -> Tensor:
        if self._array is None:
            found = self._embeddings(rows)  # type: ignore[operator]  # it is the one that is called
        else:
            if rows.max() >= len(self._array):
                raise UserError(
                    f"row {rows.max()} is asked for, and there are {len(self._array)} embeddings: "
                    "give the embeddings that the pairs were made from"
                )
            found = self._array[rows]
        values = torch.as_tensor(found).float()
        if values.dim() != 2 or len(values) != len(rows):
            raise UserError(
                f"the embeddings of {len(rows)} rows have shape {tuple(values.shape)}: give (rows, D)"
            )
        check_finite(values, rows)
        return values


@dataclass(frozen=True, slots=True)
class Split:
    """What one head learns from and stops on.

    pairs: (m, 2) int64 rows, winner and loser, or None where there are only labels. rows: (r,) int64 and
    labels: (r,) float32, 1 for good and 0 for bad: the responses; one in several pairs stands here as often.
    held_out: (v, 2) int64, pairs of a better and a worse row.
    """

    pairs: Ints | None
    rows: Ints
    labels: NDArray[np.float32]
    held_out: Ints

    @property
    def all_rows(self) -> Ints:
        """Return every row that is read, each once."""
        return np.unique(np.concatenate([self.rows, self.held_out.ravel()]))


def split_targets(y: Any, groups: ArrayLike | None, held_out: float, seed: int) -> Split:
    """Return training and held-out targets; what is in one group is on one side.

    y: pairs (n, 2) of row numbers, the winner first, or `LabelledPairs`, or labels (N,) of 0 and 1, one a
    row; or a `Split`, which is returned as it is. groups: (n,) or (N,), of each pair or label, such as its
    prompt. held_out: the share to stop on. Raises UserError for other shapes, fewer than 10, rows that cannot
    be, labels other than 0 and 1, and groups that leave a side empty.
    """
    if isinstance(y, Split):
        return y
    targets = target_array(y)
    rng = np.random.default_rng((seed, 1))
    stop = _held_out(len(targets), groups, held_out, rng)
    if targets.ndim == 2:
        return split_of_pairs(targets[~stop], targets[stop])
    rows = np.flatnonzero(~stop)
    return Split(None, rows, targets[rows].astype(np.float32), _label_pairs(targets, stop, rng))


def split_of_pairs(pairs: Ints, held_out: Ints) -> Split:
    """Return the split of pairs (m, 2) to learn from and (v, 2) to stop on, one or more each.

    Raises UserError for a side that is empty and for rows that cannot be.
    """
    for name, side in (("learn from", pairs), ("stop on", held_out)):
        if not len(side):
            raise UserError(f"there are no pairs to {name}: give one or more")
        _checked_pairs(side)
    labels = np.repeat(np.array([1, 0], dtype=np.float32), len(pairs))
    return Split(pairs, pairs.T.ravel(), labels, held_out)


def score_rows(X: ArrayLike, dimension: int, score: Callable[[Tensor], ArrayLike]) -> Scores:
    """Return scores (M,) float32 of embeddings (M, D), CHUNK rows at a time.

    score: what a head makes of checked rows (m, D) float32 on the CPU: (m,). Raises UserError for another
    shape or dimension, and naming the row for embeddings that are not finite.
    """
    embeddings = _matrix(X)
    if embeddings.shape[1] != dimension:
        raise UserError(
            f"the head reads embeddings of {dimension} numbers, these have {embeddings.shape[1]}: "
            "embed the texts as the head's training texts were"
        )
    scores = np.empty(len(embeddings), dtype=np.float32)
    for first in range(0, len(embeddings), CHUNK):
        chunk = torch.as_tensor(embeddings[first : first + CHUNK]).detach().float().cpu()
        check_finite(chunk, np.arange(first, first + len(chunk)))
        scores[first : first + CHUNK] = score(chunk)
    return scores


def check_finite(values: Tensor, rows: Ints) -> None:
    """Raise UserError naming the first row whose embedding holds NaN or an infinite number."""
    if bool(values.sum().isfinite()):  # a sum that overflowed is looked at number by number below
        return
    bad = (~values.isfinite().all(1)).nonzero()[:, 0]
    if len(bad):
        raise UserError(
            f"the embedding of row {int(rows[int(bad[0])])} holds NaN or infinite numbers "
            f"({len(bad)} of {len(rows)} rows read do): embed these texts again"
        )


def _matrix(embeddings: Any) -> Any:
    found = embeddings if isinstance(embeddings, Tensor) else np.asanyarray(embeddings)
    if found.ndim != 2 or 0 in found.shape:
        raise UserError(f"embeddings have shape {tuple(found.shape)}: give (rows, D), at least one row")
    return found


def target_array(y: Any) -> Ints:
    """Return pairs (n, 2) or labels (N,) int64. Raises UserError as `split_targets` does."""
    found = np.stack([y.winner, y.loser], 1) if isinstance(y, LabelledPairs) else np.asarray(y)
    if found.ndim not in (1, 2) or (found.ndim == 2 and found.shape[1] != 2):
        raise UserError(f"pairs have shape (n, 2) and labels (N,), not {found.shape}")
    if len(found) < FEWEST:
        raise UserError(f"{len(found)} pairs or labels are too few to fit a head on: give {FEWEST} or more")
    if found.ndim == 2:
        return _checked_pairs(found)
    if not np.isin(found, (0, 1)).all():
        strange = found[~np.isin(found, (0, 1))][0]
        raise UserError(f"label {strange} is neither 0 nor 1: give 1 for a good response, 0 for a bad one")
    return found.astype(np.int64)


def _checked_pairs(pairs: NDArray[Any]) -> Ints:
    if pairs.dtype.kind not in "iu":
        raise UserError(f"pairs of type {pairs.dtype} are no row numbers: give integers, the winner first")
    wrong = (pairs < 0).any(1) | (pairs[:, 0] == pairs[:, 1])
    if wrong.any():
        number = int(wrong.argmax())
        raise UserError(
            f"pair {number} is rows {pairs[number].tolist()}: give two different row numbers of 0 or more"
        )
    return pairs.astype(np.int64)


def _held_out(n: int, groups: ArrayLike | None, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return (n,) bool, True for whole groups of about this share."""
    owner = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if owner.shape != (n,):
        raise UserError(f"groups have shape {owner.shape}: give one a pair or label, ({n},)")
    sizes = np.bincount(owner)
    if len(sizes) < 2:
        raise UserError("all pairs are of one group, so that none can be held out: give several groups")
    wanted = max(round(n * share), min(HELD_OUT_FLOOR, n // 10))
    order = rng.permutation(len(sizes))
    n_groups = int(np.searchsorted(sizes[order].cumsum(), wanted)) + 1
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[: min(n_groups, len(sizes) - 1)]] = True
    return np.asarray(chosen[owner])


def _label_pairs(labels: Ints, held_out: NDArray[np.bool_], rng: np.random.Generator) -> Ints:
    """Return (v, 2): held-out good rows beside bad ones, each of the rarer sort in at least one pair."""
    good, bad = np.flatnonzero(held_out & (labels == 1)), np.flatnonzero(held_out & (labels == 0))
    if not len(good) or not len(bad):
        raise UserError(
            f"{len(good)} good and {len(bad)} bad responses are held out: give more labels of both sorts"
        )
    n = max(len(good), len(bad))
    return np.stack([np.resize(rng.permutation(good), n), np.resize(rng.permutation(bad), n)], 1)
