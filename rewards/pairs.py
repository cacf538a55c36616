"""Pairs of rows to compare, the labels a noisy annotator gives them, and splits that share no prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decoder.contracts import UserError
from rewards.annotation import annotate, reward_scale
from rewards.pair_draws import Ints, Layout, draw_across, draw_distinct, even_quotas, triangle
from rewards.pair_ranking import BY_EMBEDDING, BY_REWARD, Embeddings, draw_ranked, pair_cost

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PAIRINGS = ("within", "cross", "random", *BY_REWARD, *BY_EMBEDDING)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Different unordered pairs of rows: first (n,) and second (n,), int64 row numbers."""

    first: Ints
    second: Ints

    def __len__(self) -> int:
        return len(self.first)

    def differences(self, rewards: ArrayLike) -> Floats:
        """Return (n,) float64: the reward of the first minus that of the second; rewards (M,)."""
        values = np.asarray(rewards, dtype=float)
        return np.asarray(values[self.first] - values[self.second], dtype=float)


@dataclass(frozen=True, slots=True)
class LabelledPairs:
    """Pairs as an annotator ordered them.

    winner, loser: (n,) int64 row numbers. flipped: (n,) bool, True where the loser's golden reward is higher.
    """

    winner: Ints
    loser: Ints
    flipped: Bools

    def __len__(self) -> int:
        return len(self.winner)


def make_pairs(
    pairing: str,
    rewards: ArrayLike,
    groups: ArrayLike,
    n_pairs: int,
    rng: np.random.Generator,
    embeddings: Embeddings | None = None,
) -> Pairs:
    """Return n_pairs different pairs of rows; which of two rows comes first is chance.

    rewards: (M,) golden rewards, finite. groups: (M,) int, the prompt of each row. embeddings: (M, D), or a
    function of row numbers (n,) that returns (n, D); only "similar" and "diverse" read them. pairing:
    - within: random pairs of one prompt; - cross: of two prompts, each prompt used as often as another;
    - random: any two rows; - similar-reward, diverse-reward: of one prompt, from the middle two or from best
      against worst on; - similar, diverse: of one prompt, by the cosine of their embeddings.
    Prompts give as many pairs as each other where they have them, and pairs stand in rounds over the prompts:
    the first ones are even too. The same seed gives the same pairs.
    Raises UserError for an unknown pairing, unusable rewards, groups or embeddings, and for more pairs than
    there are.
    """
    golden, members = _rows(rewards, groups)
    if pairing not in PAIRINGS:
        raise UserError(f"no pairing is called {pairing!r}; use one of: {', '.join(PAIRINGS)}")
    layout = Layout.of(members, rng)
    _require(n_pairs, _capacity(pairing, layout), pairing, layout)
    one, other = _places(pairing, golden, layout, n_pairs, rng, embeddings)
    first, second = layout.rows[one], layout.rows[other]
    swapped = rng.random(n_pairs) < 0.5
    return Pairs(np.where(swapped, second, first), np.where(swapped, first, second))


def label(
    pairs: Pairs, rewards: ArrayLike, beta: float, scale: float | str, rng: np.random.Generator
) -> LabelledPairs:
    """Return the pairs as (winner, loser), labelled with P(first wins) = sigma(beta * difference / scale).

    rewards: (M,) golden rewards of all rows. scale: "std" for their deviation, or a number. Raises UserError
    as `rewards.annotation.annotate` and `reward_scale` do.
    """
    differences = pairs.differences(rewards)
    first_wins = annotate(differences, beta, reward_scale(rewards, scale), rng)
    return LabelledPairs(
        winner=np.where(first_wins, pairs.first, pairs.second),
        loser=np.where(first_wins, pairs.second, pairs.first),
        flipped=(differences != 0) & (first_wins != (differences > 0)),
    )


def split_prompts(groups: ArrayLike, shares: Sequence[float], seed: int) -> tuple[Bools, ...]:
    """Return one mask of rows (M,) bool a share, such as (0.8, 0.1, 0.1); no prompt is in two of them.

    groups: (M,) int, the prompt of each row. A share is of the prompts, and every row is in one mask. Raises
    UserError for shares that are negative or do not sum to 1, and for fewer prompts than parts.
    """
    wanted = np.asarray(shares, dtype=float)
    if not (wanted >= 0).all() or not np.isclose(wanted.sum(), 1):
        raise UserError(f"the shares {list(shares)} must be 0 or more and sum to 1, such as 0.8 0.1 0.1")
    prompts, member = np.unique(np.asarray(groups), return_inverse=True)
    ends = np.rint(wanted.cumsum() * len(prompts)).astype(np.int64)
    counts = np.diff(ends, prepend=0)
    if (counts[wanted > 0] == 0).any():
        raise UserError(
            f"{len(prompts)} prompts are too few for the shares {list(shares)}; give more prompts"
        )
    place = np.random.default_rng(seed).permutation(len(prompts))[member]
    part = np.searchsorted(ends, place, side="right")
    return tuple(part == number for number in range(len(wanted)))


def _places(
    pairing: str,
    golden: Floats,
    layout: Layout,
    n_pairs: int,
    rng: np.random.Generator,
    embeddings: Embeddings | None,
) -> tuple[Ints, Ints]:
    """Return the places (n,), (n,) of the pairs."""
    if pairing == "cross":
        return draw_across(layout, n_pairs, rng)
    if pairing == "random":
        _, numbers = draw_distinct(np.array([n_pairs]), np.array([_capacity(pairing, layout)]), rng)
        return triangle(rng.permutation(numbers))
    quotas = even_quotas(layout.n_within(), n_pairs, rng)
    if pairing == "within":
        return _draw_within(layout, quotas, rng)
    prompt, one, other = draw_ranked(layout, quotas, pair_cost(pairing, golden, embeddings))
    order = _rounds(prompt, rng)
    return one[order], other[order]


def _draw_within(layout: Layout, quotas: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return places of random pairs of one prompt, round after round over the prompts."""
    prompt, number = draw_distinct(quotas, layout.n_within(), rng)
    shuffled = rng.permutation(len(prompt))
    prompt, number = prompt[shuffled], number[shuffled]
    order = _rounds(prompt, rng)
    i, j = triangle(number[order])
    start = layout.starts[prompt[order]]
    return start + i, start + j


def _rounds(prompt: Ints, rng: np.random.Generator) -> Ints:
    """Return an order of pairs (n,) that takes the first of every prompt, then the second, and so on."""
    by_prompt = np.argsort(prompt, kind="stable")
    counts = np.bincount(prompt)
    nth = np.empty(len(prompt), dtype=np.int64)
    nth[by_prompt] = np.arange(len(prompt)) - np.repeat(counts.cumsum() - counts, counts)
    return np.lexsort((rng.random(len(prompt)), nth))


def _capacity(pairing: str, layout: Layout) -> int:
    """Return how many different pairs there are."""
    if pairing == "cross":
        return int(layout.n_across().sum())
    if pairing == "random":
        return len(layout.rows) * (len(layout.rows) - 1) // 2
    return int(layout.n_within().sum())


def _require(n_pairs: int, capacity: int, pairing: str, layout: Layout) -> None:
    if n_pairs < 1:
        raise UserError(f"{n_pairs} pairs asked for; ask for 1 or more")
    if n_pairs > capacity:
        raise UserError(
            f"{n_pairs} pairs asked for, but {len(layout.rows)} rows of {len(layout.sizes)} prompts have "
            f"only {capacity} different ones under {pairing!r}; ask for at most that many"
        )


def _rows(rewards: ArrayLike, groups: ArrayLike) -> tuple[Floats, Ints]:
    """Return rewards (M,) float64 and the prompt of each row as a number from 0."""
    golden, members = np.asarray(rewards, dtype=float), np.asarray(groups)
    if golden.ndim != 1 or golden.shape != members.shape:
        raise UserError(
            f"rewards of shape {golden.shape} and groups of shape {members.shape}; give one a row, (M,)"
        )
    bad = np.flatnonzero(~np.isfinite(golden))
    if len(bad):
        raise UserError(
            f"the golden reward of row {bad[0]} is {golden[bad[0]]}; score it again or leave it out"
        )
    return golden, np.unique(members, return_inverse=True)[1].astype(np.int64)
