"""Preference pairs augmented by a named method, as training pairs for any head.

    pairs = pairs_of(chosen, rejected, prompts)             # (N, D), (N, D), (N,)
    seeds, stop = hold_out(pairs)                           # by prompt, before anything sees a label
    found = augment("lens-shrinkage", seeds, stop, ratio=8)
    head = make_head("bt-mlp", steps=400).fit(found.embeddings, found.targets)

The augmentation ratio, everywhere: pairs to learn from over original pairs to learn from. The pairs to stop
on are original ones and count in neither. The original pairs always stand first; what is added are other
combinations of original and synthetic rows (arXiv 2509.26074, E_aug), drawn and never listed. What more
labels would do: method "none" on more seeds (`PairRows.take` makes the fewer).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment_methods import Synthesiser, find_method, make_synthesiser
from rewards.augment_pairs import draw_combinations, n_combinations
from rewards.augment_plan import Plan, plan
from rewards.head_inputs import Ints, Split, split_of_pairs
from rewards.heads import Embeddings
from rewards.pair_rows import PairRows

BLOCK = 1024  # synthetic pairs made at a time


@dataclass(frozen=True, slots=True)
class Augmented:
    """Training pairs for any head: `head.fit(found.embeddings, found.targets)`.

    embeddings: of rows: those of the original pairs, then from `n_rows` on the synthetic ones, of synthetic
    pair k the chosen row n_rows + 2 k and the rejected one after it. targets: pairs (n, 2) of rows to learn
    from, the original ones first, and original pairs to stop on. synthesiser: fitted, or None.
    """

    embeddings: Embeddings
    targets: Split
    plan: Plan
    n_rows: int
    synthesiser: Synthesiser | None

    @property
    def pairs(self) -> Ints:
        """Return the pairs (n, 2) to learn from, the winner first."""
        assert self.targets.pairs is not None
        return self.targets.pairs


def augment(
    method: str | Synthesiser,
    seeds: PairRows,
    stop: PairRows,
    ratio: float,
    *,
    combine: str | None = None,
    copies: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Augmented:
    """Return `ratio` times as many training pairs as there are seeds; what is made is kept in memory.

    method: a name of `rewards.augment_methods.METHODS`, with options of it, or any unfitted synthesiser.
    seeds, stop: as `hold_out` returns them. combine: a name of COMBINATIONS, by default
    the method's own, "cartesian" of a synthesiser that is given. copies: synthetic pairs an
    original one, ratio - 1 by default. seed: of the fit, the noise and the combinations. Raises UserError
    for names, options and a ratio that cannot be, and for more pairs than there are.
    """
    if not isinstance(method, str) and options:
        raise UserError(f"options {', '.join(options)} of a synthesiser that is made already: leave them out")
    synthesiser = make_synthesiser(method, **options) if isinstance(method, str) else method
    named = method if isinstance(method, str) else ""
    combine = combine or (find_method(named).combine if named else "cartesian")
    wanted = plan(named, len(seeds), ratio, combine, copies, synthesises=synthesiser is not None)
    pairs = combined_pairs(seeds, wanted, combine, seed)  # before the long work, since it may be refused
    targets = split_of_pairs(pairs, stop.pairs)
    if synthesiser is None or not wanted.n_synthetic:
        return Augmented(seeds.embeddings, targets, wanted, seeds.n_rows, None)
    synthesiser.fit(seeds, stop, seed)
    made = torch.empty(2 * wanted.n_synthetic, seeds.dimension)
    for first, block in synthetic_blocks(synthesiser, wanted, seed):
        made[2 * first : 2 * (first + len(block))] = block.flatten(0, 1)
    return Augmented(_Rows(seeds, made), targets, wanted, seeds.n_rows, synthesiser)


def combined_pairs(seeds: PairRows, wanted: Plan, combine: str, seed: int) -> Ints:
    """Return the pairs (n, 2) of rows to learn from, as `Augmented` numbers them, the original ones first.

    A row is never beside itself, which original rows that stand in several pairs could be. Raises UserError
    for more pairs than there are, and for prompts where pairs have two.
    """
    added = wanted.n_pairs - wanted.n_original
    if not added:
        return seeds.pairs
    if seeds.prompts is None and combine in ("within", "cross"):
        raise UserError(
            f"combine {combine!r} needs the one prompt of every original pair, and these have two: "
            "combine cartesian or own"
        )
    own = np.arange(wanted.n_original) if seeds.prompts is None else seeds.prompts
    prompts = np.concatenate([own, own[wanted.sources]])
    made = seeds.n_rows + np.arange(2 * wanted.n_synthetic).reshape(-1, 2)
    rows = np.concatenate([seeds.pairs, made])  # (places, 2)
    most, n = n_combinations(combine, prompts, wanted.n_original), added
    while True:  # a row beside itself is drawn seldom, and then more are drawn
        rng = np.random.default_rng((seed, 23))
        one, other = draw_combinations(combine, prompts, wanted.n_original, n, rng)
        found = np.stack([rows[one, 0], rows[other, 1]], 1)
        found = found[found[:, 0] != found[:, 1]]
        if len(found) >= added:
            return np.concatenate([seeds.pairs, found[:added]])
        if n == most:
            raise UserError(
                f"ratio {wanted.ratio:g} asks for {added} more pairs, and of {most} combinations "
                f"{most - len(found)} are a row beside itself: lower the ratio"
            )
        n = min(2 * n, most)


def synthetic_blocks(synthesiser: Synthesiser, wanted: Plan, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the first number and the embeddings (b, 2, D) of synthetic pairs, BLOCK at a time, in order.

    Raises UserError for a synthesiser that made numbers that are not finite.
    """
    rng = np.random.default_rng((seed, 24))
    sources = wanted.sources
    for first in range(0, len(sources), BLOCK):
        block = synthesiser.draw(sources[first : first + BLOCK], rng)
        if not bool(block.isfinite().all()):
            raise UserError(
                "the synthetic embeddings hold NaN or infinite numbers: lower the noise's variance"
            )
        yield first, block


class _Rows:
    """Embeddings of original rows, as they are read, and of synthetic rows, in memory."""

    def __init__(self, seeds: PairRows, made: Tensor) -> None:
        self._read, self._first, self._made = seeds.embeddings, seeds.n_rows, made

    def __call__(self, rows: Ints) -> Tensor:
        """Return (m, D) float32 of rows (m,)."""
        found = torch.empty(len(rows), self._made.shape[1])
        real = rows < self._first
        if real.any():
            own = rows[real]
            read = self._read(own) if callable(self._read) else self._read[own]  # type: ignore[index]
            found[torch.from_numpy(np.flatnonzero(real))] = torch.as_tensor(read).float()
        found[torch.from_numpy(np.flatnonzero(~real))] = self._made[
            torch.from_numpy(rows[~real] - self._first)
        ]
        return found
