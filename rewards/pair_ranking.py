"""The pairs within a prompt that are most alike or most unlike, by golden reward or by embedding.

Each prompt offers its pairs from the most wanted on. The first of "diverse-reward" is best against worst,
that of "similar-reward" the middle two: the pairs of arXiv 2411.04991 ("diversified", "similar").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from rewards.pair_draws import Ints, Layout

Floats = NDArray[np.float64]
Cost = Callable[[Ints], NDArray[np.floating]]  # rows (g, k) -> (g, k, k), lowest for the most wanted pair
Embeddings = NDArray[np.floating] | Callable[[Ints], NDArray[np.floating]]  # (M, D), or rows (n,) -> (n, D)

PAIRS_AT_ONCE = 2_000_000
ROWS_AT_ONCE = 20_000  # whose embeddings are in memory

BY_REWARD = ("similar-reward", "diverse-reward")
BY_EMBEDDING = ("similar", "diverse")


def pair_cost(name: str, rewards: Floats, embeddings: Embeddings | None) -> Cost:
    """Return what pairs cost under one of the names in BY_REWARD and BY_EMBEDDING.

    rewards: (M,). Raises UserError where the name needs embeddings and there are none, or other rows'.
    """
    if name == "similar-reward":
        return lambda rows: _far_from_middle(rewards[rows])
    if name == "diverse-reward":
        return lambda rows: -_gaps(rewards[rows])
    if embeddings is None:
        raise UserError(f"the pairing {name!r} compares embeddings; give them, or use {name + '-reward'!r}")
    if not callable(embeddings) and len(embeddings) != len(rewards):
        raise UserError(f"{len(embeddings)} embeddings for {len(rewards)} rows; give one a row")
    sign = -1 if name == "similar" else 1
    return lambda rows: sign * _cosines(embeddings, rows)


def draw_ranked(layout: Layout, quotas: Ints, cost: Cost) -> tuple[Ints, Ints, Ints]:
    """Return (prompt (n,), place (n,), place (n,)): of each prompt the quotas[g] most wanted, best first.

    Prompts come by size. Among pairs that tie chance chooses, since places are random.
    """
    parts = [_best(layout, prompts, quotas[prompts], cost) for prompts in _alike(layout, quotas)]
    prompt, first, second = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return prompt, first, second


def _alike(layout: Layout, quotas: Ints) -> Iterator[Ints]:
    """Yield the prompts that must give pairs, as many of one size as fit in memory."""
    for size in np.unique(layout.sizes[quotas > 0]):
        prompts = np.flatnonzero((layout.sizes == size) & (quotas > 0))
        at_once = max(1, min(PAIRS_AT_ONCE // int(size) ** 2, ROWS_AT_ONCE // int(size)))
        yield from np.split(prompts, range(at_once, len(prompts), at_once))


def _best(layout: Layout, prompts: Ints, quotas: Ints, cost: Cost) -> tuple[Ints, Ints, Ints]:
    """Return the best pairs of prompts (g,) of one size."""
    size, most = int(layout.sizes[prompts[0]]), int(quotas.max())
    places = layout.starts[prompts][:, None] + np.arange(size)  # (g, k)
    i, j = np.triu_indices(size, 1)
    costs = cost(layout.rows[places])[:, i, j]  # (g, pairs)
    best = np.argpartition(costs, most - 1, axis=1)[:, :most]
    order = np.argsort(np.take_along_axis(costs, best, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    row, nth = np.nonzero(np.arange(most) < quotas[:, None])
    pair = best[row, nth]
    return prompts[row], places[row, i[pair]], places[row, j[pair]]


def _gaps(rewards: Floats) -> Floats:
    return np.asarray(np.abs(rewards[:, :, None] - rewards[:, None, :]))


def _far_from_middle(rewards: Floats) -> Floats:
    """Return (g, k, k): how many ranks apart, and as a tie-break how far from the middle rank."""
    ranks = rewards.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    k = rewards.shape[1]
    first, second = ranks[:, :, None], ranks[:, None, :]
    return np.asarray(np.abs(first - second) + np.abs(first + second - (k - 1)) / (2 * k))


def _cosines(embeddings: Embeddings, rows: Ints) -> NDArray[np.floating]:
    """Return the cosines (g, k, k) float32 of the embeddings of rows (g, k)."""
    flat = rows.ravel()
    order = np.argsort(flat)  # ascending, as memory-mapped files like to be read
    found = embeddings(flat[order]) if callable(embeddings) else embeddings[flat[order]]
    vectors = np.asarray(found, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(flat):
        raise UserError(f"embeddings of {len(flat)} rows have shape {vectors.shape}; give (rows, D)")
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise UserError(
            f"the embedding of row {flat[order][bad[0]]} has the norm {norms[bad[0]]}, so it has no cosine; "
            "embed that row again or leave it out"
        )
    unit = np.empty_like(vectors)
    unit[order] = vectors / norms[:, None]
    unit = unit.reshape(*rows.shape, -1)
    return np.asarray(unit @ unit.transpose(0, 2, 1))
