"""Pairs: what must hold of any draw, what is drawn first, and that chance is fair where it chooses."""

from __future__ import annotations

import math
import time
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from decoder.contracts import UserError
from rewards.pairs import PAIRINGS, Pairs, make_pairs

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=6)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows(sizes: list[int], seed: int = 0) -> tuple[Any, Any, Any]:
    """Rewards with ties, groups that do not stand together and embeddings, of prompts of these sizes."""
    random = rng(seed)
    groups = random.permutation(np.repeat(np.arange(len(sizes)) * 7 - 3, sizes))
    return random.normal(size=len(groups)).round(1), groups, random.normal(size=(len(groups), 5))


def all_pairs(pairing: str, groups: Any) -> set[tuple[int, int]]:
    fits = {
        "cross": lambda a, b: groups[a] != groups[b],
        "random": lambda a, b: True,
    }.get(pairing, lambda a, b: groups[a] == groups[b])
    return {(a, b) for a, b in combinations(range(len(groups)), 2) if fits(a, b)}


def unordered(pairs: Pairs) -> list[tuple[int, int]]:
    both = np.sort(np.stack([pairs.first, pairs.second], axis=1), axis=1)
    return [(int(a), int(b)) for a, b in both]


def uses(pairs: Pairs, groups: Any) -> list[int]:
    counts = Counter(groups[np.concatenate([pairs.first, pairs.second])].tolist())
    return [counts[group] for group in np.unique(groups)]


# What must hold of any draw.


@pytest.mark.parametrize("pairing", PAIRINGS)
@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, share=st.floats(0, 1), seed=st.integers(0, 99))
def test_pairs_differ_and_fit(pairing: str, sizes: list[int], share: float, seed: int) -> None:
    """No row meets itself, no unordered pair comes twice, and every pair is of the kind asked for."""
    rewards, groups, embeddings = rows(sizes, seed)
    possible = all_pairs(pairing, groups)
    if not possible:
        with pytest.raises(UserError, match="only 0 different"):
            make_pairs(pairing, rewards, groups, 1, rng(seed), embeddings)
        return
    n = max(1, round(share * len(possible)))
    pairs = make_pairs(pairing, rewards, groups, n, rng(seed), embeddings)
    assert len(pairs) == len(pairs.first) == len(pairs.second) == n
    assert pairs.first.dtype == pairs.second.dtype == np.int64
    assert len(set(unordered(pairs))) == n
    assert set(unordered(pairs)) <= possible
    with pytest.raises(UserError, match=f"only {len(possible)} different"):
        make_pairs(pairing, rewards, groups, len(possible) + 1, rng(seed), embeddings)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_same_seed_gives_the_same_pairs(pairing: str) -> None:
    rewards, groups, embeddings = rows([10] * 30)
    first, again, other = (make_pairs(pairing, rewards, groups, 200, rng(s), embeddings) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.first, again.first)
    np.testing.assert_array_equal(first.second, again.second)
    assert unordered(first) != unordered(other)


@pytest.mark.parametrize("pairing", [name for name in PAIRINGS if name != "random"])
@pytest.mark.parametrize("n", [7, 15, 100, 250])
def test_prompts_are_used_evenly(pairing: str, n: int) -> None:
    """Prompts of one size give as many pairs, or stand in as many, up to one; so does every beginning."""
    rewards, groups, embeddings = rows([6] * 31)
    pairs = make_pairs(pairing, rewards, groups, n, rng(3), embeddings)
    counts = uses(pairs, groups)
    assert max(counts) - min(counts) <= (1 if pairing == "cross" else 2)
    if pairing != "cross":
        early = uses(Pairs(pairs.first[: n // 2], pairs.second[: n // 2]), groups)
        assert max(early) - min(early) <= 2


@pytest.mark.parametrize("sizes", [[40, 1, 1, 1], [1] * 12, [3, 3], [1, 2, 30, 2], [5] * 4])
def test_cross_pairs_of_awkward_prompts(sizes: list[int]) -> None:
    """All pairs across prompts, half of them and one: also where even use is impossible."""
    rewards, groups, _ = rows(sizes)
    possible = all_pairs("cross", groups)
    for n in (1, len(possible) // 2, len(possible) - 1, len(possible)):
        found = unordered(make_pairs("cross", rewards, groups, n, rng(n)))
        assert len(set(found)) == n
        assert set(found) <= possible


def test_most_cross_pairs_are_even_too() -> None:
    """1,500 of the 1,770 pairs of 60 prompts with one row: each stands in 50."""
    rewards, groups, _ = rows([1] * 60)
    assert set(uses(make_pairs("cross", rewards, groups, 1500, rng()), groups)) == {50}


def test_small_prompts_give_what_they_have() -> None:
    rewards, groups, _ = rows([2, 5, 5])
    counts = uses(make_pairs("within", rewards, groups, 13, rng()), groups)
    assert counts == [2, 12, 12]


def test_first_and_second_are_chance() -> None:
    rewards, groups, _ = rows([10] * 400)
    rewards = rewards + groups  # later prompts are better ones
    for pairing in ("within", "cross", "random", "diverse-reward"):
        pairs = make_pairs(pairing, rewards, groups, 4000, rng(4))
        ahead = int((pairs.differences(rewards) > 0).sum())
        trials = int((pairs.differences(rewards) != 0).sum())
        assert stats.binomtest(ahead, trials).pvalue > 1e-4


@pytest.mark.parametrize(("pairing", "n"), [("within", 5), ("within", 2), ("random", 4), ("cross", 3)])
def test_every_pair_is_as_likely(pairing: str, n: int) -> None:
    rewards, groups, _ = rows([3, 3])
    possible = all_pairs(pairing, groups)
    counts = Counter(
        pair for seed in range(1500) for pair in unordered(make_pairs(pairing, rewards, groups, n, rng(seed)))
    )
    assert set(counts) == possible
    assert stats.chisquare([counts[pair] for pair in possible]).pvalue > 1e-4


# What is drawn first.


def test_diverse_reward_is_best_against_worst() -> None:
    rewards, groups, _ = rows([10] * 20, seed=1)
    rewards = rewards + rng(5).normal(scale=1e-3, size=len(rewards))
    pairs = make_pairs("diverse-reward", rewards, groups, 20, rng())
    for a, b in unordered(pairs):
        members = np.flatnonzero(groups == groups[a])
        assert {a, b} == {members[rewards[members].argmin()], members[rewards[members].argmax()]}


def test_similar_reward_is_the_middle_two() -> None:
    rewards, groups, _ = rows([10] * 20, seed=1)
    rewards = rewards + rng(5).normal(scale=1e-3, size=len(rewards))
    pairs = make_pairs("similar-reward", rewards, groups, 20, rng())
    for a, b in unordered(pairs):
        members = np.flatnonzero(groups == groups[a])
        assert {a, b} == set(members[rewards[members].argsort()][4:6])


def test_similar_reward_goes_on_with_neighbours() -> None:
    rewards, groups = np.array([0.0, 1.0, 2.0, 3.0]), np.zeros(4, dtype=int)
    found = unordered(make_pairs("similar-reward", rewards, groups, 6, rng()))
    assert found[0] == (1, 2)
    assert set(found[1:3]) == {(0, 1), (2, 3)}
    assert set(found[3:5]) == {(0, 2), (1, 3)}
    assert found[5] == (0, 3)


@pytest.mark.parametrize(("pairing", "sign"), [("similar", -1), ("diverse", 1)])
def test_embedding_pairs_come_by_cosine(pairing: str, sign: int) -> None:
    """Against all cosines written out: each prompt gives its nearest, or farthest, in that order."""
    sizes = [4, 6, 4]
    rewards, groups, embeddings = rows(sizes)
    pairs = make_pairs(pairing, rewards, groups, 9, rng(), embeddings)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        cosine = {
            (a, b): embeddings[a]
            @ embeddings[b]
            / math.dist(embeddings[a], [0] * 5)
            / math.dist(embeddings[b], [0] * 5)
            for a, b in combinations(members.tolist(), 2)
        }
        found = [pair for pair in unordered(pairs) if groups[pair[0]] == group]
        assert found == sorted(cosine, key=lambda pair: sign * cosine[pair])[:3]


def test_embeddings_may_be_read_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that reads rows is asked for every row once, in order and never for many at a time."""
    rewards, groups, embeddings = rows([8] * 10)
    asked: list[Any] = []

    def read(numbers: Any) -> Any:
        asked.append(numbers)
        assert (np.diff(numbers) > 0).all()
        return embeddings[numbers].astype(np.float16)

    direct = make_pairs("diverse", rewards, groups, 25, rng(), embeddings.astype(np.float16))
    monkeypatch.setattr("rewards.pair_ranking.ROWS_AT_ONCE", 31)
    found = make_pairs("diverse", rewards, groups, 25, rng(), read)
    assert unordered(found) == unordered(direct)
    assert [len(numbers) for numbers in asked] == [24, 24, 24, 8]
    assert sorted(np.concatenate(asked)) == list(range(80))


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_speed(pairing: str) -> None:
    """A million pairs of 100,000 rows; alone it takes about a third of this."""
    groups, random = np.repeat(np.arange(2000), 50), rng()
    rewards, embeddings = random.normal(size=100_000), random.normal(size=(100_000, 16))
    began = time.process_time()
    assert len(make_pairs(pairing, rewards, groups, 1_000_000, rng(), embeddings)) == 1_000_000
    assert time.process_time() - began < 3


# Bad input.


def test_unknown_pairings_are_refused() -> None:
    with pytest.raises(UserError, match="'near'; use one of: within, cross"):
        make_pairs("near", [1.0, 2.0], [0, 0], 1, rng())


def test_unusable_rows_are_refused() -> None:
    with pytest.raises(UserError, match="reward of row 1 is nan"):
        make_pairs("within", [1.0, math.nan], [0, 0], 1, rng())
    with pytest.raises(UserError, match=r"shape \(2,\) and groups of shape \(3,\)"):
        make_pairs("within", [1.0, 2.0], [0, 0, 0], 1, rng())
    with pytest.raises(UserError, match="0 pairs asked for"):
        make_pairs("within", [1.0, 2.0], [0, 0], 0, rng())
    with pytest.raises(UserError, match="2 pairs asked for, but 2 rows of 1 prompts have only 1"):
        make_pairs("within", [1.0, 2.0], [0, 0], 2, rng())


def test_unusable_embeddings_are_refused() -> None:
    rewards, groups, embeddings = rows([4, 4])
    with pytest.raises(UserError, match="'similar' compares embeddings; give them, or use 'similar-reward'"):
        make_pairs("similar", rewards, groups, 1, rng())
    with pytest.raises(UserError, match="7 embeddings for 8 rows"):
        make_pairs("similar", rewards, groups, 1, rng(), embeddings[:7])
    with pytest.raises(UserError, match=r"embeddings of 4 rows have shape \(4, 5, 1\)"):
        make_pairs("similar", rewards, groups, 1, rng(), lambda numbers: embeddings[numbers][:, :, None])
    for wrong, norm in ((0.0, "0.0"), (math.nan, "nan")):
        broken = embeddings.copy()
        broken[5] = wrong
        with pytest.raises(UserError, match=f"row 5 has the norm {norm}"):
            make_pairs("diverse", rewards, groups, 2, rng(), broken)
