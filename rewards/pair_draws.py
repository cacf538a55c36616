"""Drawing of pairs of rows without repeats: evenly over quotas, and across prompts.

Every kind of pair is numbered from 0, so that drawing pairs is drawing different whole numbers and no list of
all pairs is ever made unless most of them are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ATTEMPTS = 30  # to mend pairs across prompts before the rest are drawn evenly over pairs instead


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows sorted by prompt, in random order within one.

    rows: (M,) int64 row numbers. starts, sizes: (G,) int64, where each prompt begins and how many it has.
    A place is a position in `rows`.
    """

    rows: Ints
    starts: Ints
    sizes: Ints

    @classmethod
    def of(cls, groups: Ints, rng: np.random.Generator) -> Layout:
        """Return the layout of rows whose prompts are `groups` (M,)."""
        shuffled = rng.permutation(len(groups))
        sizes = np.unique(groups, return_counts=True)[1]
        return cls(shuffled[np.argsort(groups[shuffled], kind="stable")], sizes.cumsum() - sizes, sizes)

    def n_within(self) -> Ints:
        """Return (G,): the pairs that each prompt has."""
        return self.sizes * (self.sizes - 1) // 2

    def n_across(self) -> Ints:
        """Return (G,): the pairs of each prompt's rows with rows of later prompts."""
        return self.sizes * (len(self.rows) - self.starts - self.sizes)


def even_quotas(sizes: Ints, n: int, rng: np.random.Generator) -> Ints:
    """Return (G,) int64 that sum to n, as equal as `sizes` (G,) allow; chance says who gets one more.

    n is at most the sum of the sizes.
    """
    level, top = 0, int(sizes.max(initial=0))
    while level < top:
        middle = (level + top + 1) // 2
        level, top = (middle, top) if np.minimum(sizes, middle).sum() <= n else (level, middle - 1)
    quotas = np.minimum(sizes, level)
    above = rng.permutation(np.flatnonzero(sizes > level))
    quotas[above[: n - int(quotas.sum())]] += 1
    return quotas


def draw_distinct(quotas: Ints, sizes: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return (owner (n,), number (n,)): of each owner g quotas[g] different numbers below sizes[g].

    Every subset of that size is as likely. Ascending by neither; time and memory grow with n alone.
    """
    dense = 2 * quotas > sizes  # drawing until enough differ would take long
    starts = sizes.cumsum() - sizes
    codes = np.concatenate(
        [
            _draw_dense(np.where(dense, quotas, 0), sizes, starts, rng),
            _draw_sparse(np.where(dense, 0, quotas), sizes, starts, rng),
        ]
    )
    owner = _owner(codes, starts)
    return owner, codes - starts[owner]


def triangle(numbers: Ints) -> tuple[Ints, Ints]:
    """Return (i, j) (n,) of the pairs i < j that these numbers (n,) stand for: j (j - 1) / 2 + i."""
    j = ((1 + np.sqrt(8.0 * numbers + 1)) / 2).astype(np.int64)
    j -= j * (j - 1) // 2 > numbers  # the root of a large number rounds up to a whole one
    return numbers - j * (j - 1) // 2, j


def draw_across(layout: Layout, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return places (n,), (n,) of different pairs with two prompts each, prompts used as evenly as possible.

    n is at most the number of such pairs. Where prompts have rows enough, none is used more than once more
    often than another; pairs that then cannot be found are drawn among all that are left.
    """
    total = int(layout.n_across().sum())
    if 2 * n <= total:
        return _mend(layout, *_rounds(len(layout.sizes), n, rng), rng)
    kept = np.ones(total, dtype=bool)  # most of all pairs: draw the ones to leave out
    kept[_across_number(layout, *draw_across(layout, total - n, rng))] = False
    return _across_pair(layout, rng.permutation(np.flatnonzero(kept)))


def _draw_dense(quotas: Ints, sizes: Ints, starts: Ints, rng: np.random.Generator) -> Ints:
    """Return codes (start + number): of a random order of each owner's numbers, the first."""
    sizes = np.where(quotas > 0, sizes, 0)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(owner)) - np.repeat(sizes.cumsum() - sizes, sizes)
    shuffled = np.lexsort((rng.random(len(owner)), owner))
    chosen = shuffled[place < quotas[owner]]  # owners keep their places: sorted by them first
    return np.asarray(starts[owner[chosen]] + place[chosen])


def _draw_sparse(quotas: Ints, sizes: Ints, starts: Ints, rng: np.random.Generator) -> Ints:
    """Return codes, drawn until enough of them differ: each subset stays as likely as another."""
    codes, missing = np.zeros(0, dtype=np.int64), quotas
    while missing.any():
        owner = np.repeat(np.arange(len(quotas)), missing)
        codes = np.sort(np.concatenate([codes, starts[owner] + rng.integers(sizes[owner])]))
        codes = codes[np.diff(codes, prepend=-1) > 0]  # np.unique hashes, a hundred times slower
        missing = quotas - np.bincount(_owner(codes, starts), minlength=len(quotas))
    return codes


def _owner(codes: Ints, starts: Ints) -> Ints:
    return np.asarray(np.searchsorted(starts, codes, side="right") - 1)


def _rounds(n_prompts: int, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return prompts (n,), (n,): rounds in which each stands beside its neighbour in a random circle.

    A round uses every prompt twice; every second neighbour comes first, so that half a round is even too.
    """
    n_rounds = -(-n // n_prompts)
    circles = rng.permuted(np.tile(np.arange(n_prompts), (n_rounds, 1)), axis=1)
    at = np.concatenate([np.arange(0, n_prompts, 2), np.arange(1, n_prompts, 2)])
    first, second = circles[:, at].ravel()[:n], circles[:, (at + 1) % n_prompts].ravel()[:n]
    return np.minimum(first, second), np.maximum(first, second)


def _mend(layout: Layout, low: Ints, high: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return places of rows of these prompts; pairs that repeat change partners with others at random."""
    first, second = _any_row(layout, low, rng), _any_row(layout, high, rng)
    for _ in range(ATTEMPTS):
        wrong = (low == high) | _repeats(layout, first, second)
        if not wrong.any():
            return first, second
        freed = wrong.copy()
        freed[rng.integers(len(wrong), size=int(wrong.sum()))] = True
        high[freed] = rng.permutation(high[freed])  # every prompt is used as often as before
        first[freed], second[freed] = _any_row(layout, low[freed], rng), _any_row(layout, high[freed], rng)
    right = ~((low == high) | _repeats(layout, first, second))
    return _fill(layout, first[right], second[right], len(low), rng)


def _fill(layout: Layout, first: Ints, second: Ints, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return these places with others after them, n in all, drawn among the pairs that are still free."""
    taken = np.sort(_across_number(layout, first, second))
    free = int(layout.n_across().sum()) - len(taken)
    nth = draw_distinct(np.array([n - len(taken)]), np.array([free]), rng)[1]
    numbers = nth + np.searchsorted(taken - np.arange(len(taken)), nth, side="right")  # the nth free one
    more = _across_pair(layout, rng.permutation(numbers))
    return np.concatenate([first, more[0]]), np.concatenate([second, more[1]])


def _any_row(layout: Layout, prompts: Ints, rng: np.random.Generator) -> Ints:
    return layout.starts[prompts] + rng.integers(layout.sizes[prompts])


def _repeats(layout: Layout, first: Ints, second: Ints) -> Bools:
    """Return (n,) bool, True for every pair that stood before, in either order."""
    codes = np.minimum(first, second) * len(layout.rows) + np.maximum(first, second)
    repeats = np.ones(len(codes), dtype=bool)
    repeats[np.unique(codes, return_index=True)[1]] = False
    return repeats


def _across_number(layout: Layout, first: Ints, second: Ints) -> Ints:
    """Return the numbers (n,) of pairs of places of two prompts: by the earlier place, then by the later."""
    early, late = np.minimum(first, second), np.maximum(first, second)
    prompt = _owner(early, layout.starts)
    start, end = layout.starts[prompt], layout.starts[prompt] + layout.sizes[prompt]
    before = (layout.n_across().cumsum() - layout.n_across())[prompt]
    return np.asarray(before + (early - start) * (len(layout.rows) - end) + late - end)


def _across_pair(layout: Layout, numbers: Ints) -> tuple[Ints, Ints]:
    """Return the places of the pairs with these numbers."""
    starts = layout.n_across().cumsum() - layout.n_across()
    prompt = _owner(numbers, starts)
    start, end = layout.starts[prompt], layout.starts[prompt] + layout.sizes[prompt]
    row, late = np.divmod(numbers - starts[prompt], len(layout.rows) - end)
    return start + row, end + late
