"""Which rows stand side by side in augmented data: combinations are numbered and drawn, never listed.

Every place is a chosen and a rejected row: the first N places are the original pairs, the others synthetic.
A combination is the chosen row of one place beside the rejected row of another or the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decoder.contracts import UserError
from rewards.augment_methods import COMBINATIONS
from rewards.heads import nearest
from rewards.pair_draws import Ints, draw_distinct, even_quotas


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Places sorted by prompt, originals first in each.

    places: (M,). starts, sizes, originals: (G,), where a prompt begins, its places and its original ones.
    """

    places: Ints
    starts: Ints
    sizes: Ints
    originals: Ints

    @classmethod
    def of(cls, prompts: Ints, n_original: int) -> _Blocks:
        """Return the blocks of places whose prompts are (M,)."""
        _, member, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
        originals = np.bincount(member[:n_original], minlength=len(sizes))
        return cls(np.argsort(member, kind="stable"), sizes.cumsum() - sizes, sizes, originals)


def n_combinations(combine: str, prompts: Ints, n_original: int) -> int:
    """Return how many combinations there are beside the N original pairs; arguments as `draw_combinations`.

    Of M places in prompts of c places each, r of them original: "cartesian" M^2 - N; "within" the sum of
    c^2 - r; "cross" the sum of c (M - c); "own" M - N.
    """
    return int(_sizes(combine, _blocks(combine, prompts, n_original)).sum())


def draw_combinations(
    combine: str, prompts: Ints, n_original: int, n: int, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return places (n,), (n,) int64 of the chosen and the rejected rows of n different combinations.

    prompts: (M,) int, of each place. combine: "cartesian", any two places, as the paper writes it (arXiv
    2509.26074, E_aug); "within", of one prompt; "cross", of two; "own", the sides of one synthetic place. No
    original pair is drawn. Prompts give as many as each other where they have them ("cross": those of the
    chosen row); order is chance. Memory and time grow with n + M. Raises UserError for an unknown name and
    for more than there are.
    """
    blocks = _blocks(combine, prompts, n_original)
    sizes = _sizes(combine, blocks)
    if n > sizes.sum():
        raise UserError(
            f"{n} pairs beside the {n_original} original ones are wanted, and {len(prompts)} chosen and "
            f"rejected rows have only {int(sizes.sum())} under {combine!r}: lower the ratio"
        )
    owner, number = draw_distinct(even_quotas(sizes, n, rng), sizes, rng)
    shuffled = rng.permutation(n)
    owner, number = owner[shuffled], number[shuffled]
    if combine == "own":
        return number + n_original, number + n_original
    one, other = (_across if combine == "cross" else _inside)(blocks, owner, number)
    return blocks.places[one], blocks.places[other]


def _blocks(combine: str, prompts: Ints, n_original: int) -> _Blocks:
    """Return the blocks that a combination is drawn in: one for all, where prompts do not matter."""
    if combine not in COMBINATIONS:
        raise UserError(f"no combination is called {combine!r}: {nearest(combine, COMBINATIONS)}")
    by_prompt = combine in ("within", "cross")
    return _Blocks.of(prompts if by_prompt else np.zeros(len(prompts), dtype=np.int64), n_original)


def _sizes(combine: str, blocks: _Blocks) -> Ints:
    """Return the combinations (G,) of each block."""
    if combine == "own":
        return blocks.sizes - blocks.originals
    if combine == "cross":
        return blocks.sizes * (len(blocks.places) - blocks.sizes)
    return blocks.sizes**2 - blocks.originals


def _inside(blocks: _Blocks, owner: Ints, number: Ints) -> tuple[Ints, Ints]:
    """Return sorted places of two of one block.

    Codes a c + b count pairs of places a, b of a block of c; the r originals are the codes k (c + 1), and
    number t is the t-th other code: k c of the others come before original k.
    """
    c, start = blocks.sizes[owner], blocks.starts[owner]
    code = number + np.minimum(blocks.originals[owner], number // c + 1)
    return start + code // c, start + code % c


def _across(blocks: _Blocks, owner: Ints, number: Ints) -> tuple[Ints, Ints]:
    """Return sorted places of the chosen row in a block and the rejected one in another."""
    c, start = blocks.sizes[owner], blocks.starts[owner]
    others = len(blocks.places) - c
    other = number % others
    return start + number // others, other + c * (other >= start)
