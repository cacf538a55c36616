"""What a head learns from and is judged on: pairs of a store's rows with their labels, and test rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from rewards.annotation import beta_of, expected_flip_rate, reward_scale
from rewards.augmentation_record import augmentation_of
from rewards.head_inputs import Split, split_of_pairs
from rewards.head_options import GOLDEN, TEST_SHARE, PairOptions
from rewards.head_store import check_kind
from rewards.pair_draws import Ints
from rewards.pairs import label, make_pairs, split_prompts
from rewards.preferences import read_preferences
from rewards.store import Store, open_store

Floats = NDArray[np.float64]
NO_ROWS: Ints = np.zeros(0, dtype=np.int64)
NO_PAIRS: Ints = NO_ROWS.reshape(0, 2)
ACROSS = ("cross", "random")  # pairings whose pairs may have two prompts


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows that the head does not learn from. rows: (m,) int64, of `store`.

    golden: (m,) float64 golden rewards, (0,) where there are none. pairs: (p, 2) given preferences among
    the rows, the chosen one first.
    """

    store: Store
    rows: Ints
    golden: Floats
    pairs: Ints

    @property
    def groups(self) -> Ints:
        """Return the prompt number (m,) of each row."""
        return self.store.groups()[0][self.rows]


@dataclass(frozen=True, slots=True)
class HeadMaterial:
    """Pairs (n, 2) of a store's rows, the winner first, and the rows to judge on.

    groups: (n,), the prompt of each pair, or None where pairs have two. about: how they were made, as JSON.
    stop: (s, 2), given pairs to stop the training on, or None for a share of `pairs`.
    """

    store: Store
    pairs: Ints
    groups: Ints | None
    held_out: HeldOut
    about: dict[str, Any]
    stop: Ints | None = None

    @property
    def targets(self) -> Ints | Split:
        """Return what a head is fitted on."""
        return self.pairs if self.stop is None else split_of_pairs(self.pairs, self.stop)


def gather(folder: Path, options: PairOptions, seed: int) -> HeadMaterial:
    """Return what to learn from and to judge on; embeddings are read for pairs by embedding alone.

    Raises UserError for stores, labels or preferences that cannot be used, for a test store of other
    embeddings or the same rows, and for more pairs than there are.
    """
    store = open_store(folder)
    golden = _golden(store, options)
    other = None if options.test is None else _open_test(options.test, store, options)
    train, held_out = _split(store, _usable(store, golden), options, seed)
    stop = None
    if options.pairs_file is not None:
        train = _of_other_prompts(store, held_out)
        pairs, theirs, about = _given(store, train, held_out, options.pairs_file)
        groups = _common_groups(store, pairs)
        if options.stop_pairs is not None:
            stop = _given(store, train, held_out, options.stop_pairs)[0]
    else:
        assert golden is not None  # which pairs that are given alone can do without
        pairs, about = _draw(store, golden, train, options, seed)
        theirs, groups = NO_PAIRS, None if options.pairing in ACROSS else _common_groups(store, pairs)
    about["rows_without_reward"] = 0 if golden is None else int(np.isnan(golden).sum())
    judged = other or HeldOut(store, held_out, _of_rows(golden, held_out), theirs)
    return HeadMaterial(store, pairs, groups, judged, about, stop)


def _golden(store: Store, options: PairOptions) -> Floats | None:
    """Return the golden rewards (M,) of a store; None where pairs are given and it has none."""
    if options.pairs_file and options.reward_column is None and GOLDEN not in store.manifest.labels:
        return None
    return store.column(options.reward_column or GOLDEN)


def _of_rows(golden: Floats | None, rows: Ints) -> Floats:
    return np.zeros(0) if golden is None else golden[rows]


def _usable(store: Store, golden: Floats | None) -> Ints:
    """Return the rows with a golden reward, or all where there is none to have."""
    rows = np.arange(store.n_rows) if golden is None else np.flatnonzero(np.isfinite(golden))
    if not len(rows):
        raise UserError(f"store {store.folder} has no row with a golden reward: label it, or give another")
    return rows


def _split(store: Store, rows: Ints, options: PairOptions, seed: int) -> tuple[Ints, Ints]:
    """Return the rows to learn from and those of the prompts held out, none where a test store is given."""
    if options.test is not None:
        return rows, NO_ROWS
    share = TEST_SHARE if options.test_share is None else options.test_share
    train, test = split_prompts(store.groups()[0][rows], (1 - share, share), seed)
    return rows[train], rows[test]


def _open_test(folder: Path, store: Store, options: PairOptions) -> HeldOut:
    found = open_store(folder)
    check_kind(found, store.manifest)
    if found.digest == store.digest:
        raise UserError(
            f"--test {folder} holds the rows of {store.folder}, which the head learns from: give another "
            "store, or hold prompts out with --test-share"
        )
    golden = _golden(found, options)
    rows = _usable(found, golden)
    return HeldOut(found, rows, _of_rows(golden, rows), NO_PAIRS)


def _draw(
    store: Store, golden: Floats, rows: Ints, options: PairOptions, seed: int
) -> tuple[Ints, dict[str, Any]]:
    """Return pairs (n, 2) of these rows as a noisy annotator labels them, and what was asked and measured."""
    rewards, prompts = golden[rows], store.groups()[0][rows]
    pairs = make_pairs(
        options.pairing,
        rewards,
        prompts,
        options.pairs,
        np.random.default_rng((seed, 11)),
        lambda numbers: store.embeddings(rows[numbers]).numpy(),
    )
    scale = reward_scale(rewards, options.noise_scale())
    differences = pairs.differences(rewards)
    beta = math.inf if options.beta is None else options.beta
    if options.flip_rate:
        beta = beta_of(differences, options.flip_rate, scale)
    labelled = label(pairs, rewards, beta, scale, np.random.default_rng((seed, 12)))
    about = {
        "pairing": options.pairing,
        "reward_column": options.reward_column or GOLDEN,
        "beta": beta if math.isfinite(beta) else "inf",
        "scale": scale,
        "expected_flip_rate": expected_flip_rate(differences, beta, scale),
        "flip_rate": float(np.where(differences == 0, 0.5, labelled.flipped).mean()),
    }
    return rows[np.stack([labelled.winner, labelled.loser], 1)], about


def _given(store: Store, train: Ints, held_out: Ints, path: Path) -> tuple[Ints, Ints, dict[str, Any]]:
    """Return the user's pairs of training rows, and those of held-out rows; others are left out."""
    pairs = read_preferences(path, store)
    learnt, judged = np.isin(pairs, train).all(1), np.isin(pairs, held_out).all(1)
    about = {
        "pairs_file": path.name,
        "n_pairs_given": len(pairs),
        "n_pairs_left_out": int((~learnt & ~judged).sum()),
        **augmentation_of(path),
    }
    return pairs[learnt], pairs[judged], about


def _of_other_prompts(store: Store, held_out: Ints) -> Ints:
    """Return all rows whose prompts are not held out: a given preference needs no golden reward."""
    prompts = store.groups()[0]
    return np.flatnonzero(~np.isin(prompts, prompts[held_out]))


def _common_groups(store: Store, pairs: Ints) -> Ints | None:
    """Return the prompt of each pair, or None where one has two."""
    prompts = store.groups()[0][pairs]  # (n, 2)
    return prompts[:, 0] if (prompts[:, 0] == prompts[:, 1]).all() else None
