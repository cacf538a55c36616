"""Draws of any method that reward heads order as they are labelled: consistency filtering by an ensemble.

Why: a synthetic pair is labelled by whom it was made of, not by what it says; noise and a lossy decoder turn
some pairs round, and a head then learns from wrong labels. Reward heads that learnt from the original pairs
judge each draw. They judge only what is made of prompts that they did not learn from: of its own pairs a head
knows the order by heart, and would agree with anything near them.

Sources: synthetic data filtered by a model trained on the seed, as in round-trip consistency, Alberti et al.
(arXiv 1906.05416); a mean less what members disagree by, as `rewards.head_ensemble` has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment_methods import Synthesiser, make_synthesiser
from rewards.augment_options import ConsistentOptions
from rewards.head_ensemble import HeadEnsemble
from rewards.head_inputs import split_of_pairs
from rewards.heads import fitted, make_head
from rewards.pair_draws import Ints
from rewards.pair_rows import PairRows

SOURCES = 256  # whose draws are held in memory together
MEASURED = 512  # pairs, evenly chosen, whose draws are judged for the figures
CHANCE = 0.55  # of original pairs in order, below which judges know next to nothing


@dataclass(frozen=True, slots=True)
class ConsistentFigures:
    """What the judges say of pairs of prompts that they did not learn from.

    accuracy: share of original pairs that their mean orders as labelled. agreed: share of draws that they
    order so confidently. kept: the same of those that are kept.
    """

    accuracy: float
    agreed: float
    kept: float


class Consistent:
    """Filters another synthesiser. After `fit`: `inner_`, `judges_` (one ensemble a fold) and `figures_`."""

    def __init__(self, options: ConsistentOptions) -> None:
        """Take the options."""
        self.options = options
        self.inner_: Synthesiser | None = None
        self.judges_: list[HeadEnsemble] = []
        self.figures_: ConsistentFigures | None = None
        self._folds: Ints = np.empty(0, dtype=np.int64)

    def fit(self, pairs: PairRows, held_out: PairRows, seed: int) -> Consistent:
        """Fit the inner method and the judges, and return itself. UserError as they raise it."""
        options = self.options
        inner = make_synthesiser(options.inner, **options.of_inner())
        assert inner is not None  # the options refuse methods that make nothing
        self._folds = folds(pairs, options.folds, seed)
        self.judges_ = [self._judges(pairs, held_out, fold, seed) for fold in range(options.folds)]
        self.inner_ = inner.fit(pairs, held_out, seed)
        self.figures_ = self._measure(pairs, seed)
        return self

    @torch.no_grad()
    def draw(self, sources: Ints, rng: np.random.Generator) -> Tensor:
        """Return (n, 2, D) float32: of `oversample` draws for each of the pairs `sources` (n,) the one kept.

        The first that the judges order confidently as it is labelled; where none is, the one nearest to that.
        """
        parts = [sources[first : first + SOURCES] for first in range(0, len(sources), SOURCES)]
        kept = []
        for part in parts:
            drawn, margins = self._judged(part, rng)
            kept.append(drawn[torch.arange(len(part)), torch.from_numpy(chosen(margins, self.options.keep))])
        return torch.cat(kept)

    def figures(self) -> dict[str, Any]:
        """Return the figures by name, those of the inner method as inner_NAME."""
        found = asdict(fitted(self.figures_, "synthesiser"))
        inner = fitted(self.inner_, "synthesiser").figures()
        return {**found, **{f"inner_{name}": value for name, value in inner.items()}}

    def warnings(self) -> list[str]:
        """Return what is wrong with the judges, then with the inner method."""
        found, said = fitted(self.figures_, "synthesiser"), []
        if found.accuracy < CHANCE:
            said.append(
                f"the judges order {found.accuracy:.0%} of original pairs of other prompts as they are "
                "labelled: to filter by them is next to chance; give more pairs"
            )
        elif found.kept < 0.5:
            said.append(
                f"the judges are sure of {found.kept:.0%} of the pairs that are kept: raise oversample, or "
                "lower kappa or the inner method's noise"
            )
        return [*said, *fitted(self.inner_, "synthesiser").warnings()]

    def _judges(self, pairs: PairRows, held_out: PairRows, fold: int, seed: int) -> HeadEnsemble:
        """Return heads that learnt from the other folds; from all pairs if there is one."""
        options = self.options
        learnt = pairs.pairs[(self._folds != fold) | (options.folds == 1)]
        ensemble = HeadEnsemble(make_head(options.head), options.members, seed=seed + fold * options.members)
        stop = held_out.pairs + pairs.n_rows
        return ensemble.fit(_both(pairs, held_out), split_of_pairs(learnt, stop))

    def _judged(self, sources: Ints, rng: np.random.Generator) -> tuple[Tensor, NDArray[np.float32]]:
        """Return `oversample` draws of each source (n, k, 2, D), and how sure judges are of them (n, k)."""
        k = self.options.oversample
        pool = np.repeat(sources, k)
        drawn = fitted(self.inner_, "synthesiser").draw(pool, rng)
        margins = self.margins(drawn, pool)
        sure = margins.mean(0) - self.options.kappa * margins.std(0)
        return drawn.view(len(sources), k, *drawn.shape[1:]), sure.reshape(len(sources), k)

    def margins(self, drawn: Tensor, sources: Ints) -> NDArray[np.float32]:
        """Return by how much each judge prefers the chosen side of pairs (n, 2, D), (members, n) float32.

        sources: (n,), the pair each was made of, which says whose judges judge it.
        """
        found = np.empty((self.options.members, len(sources)), dtype=np.float32)
        for fold, judges in enumerate(fitted(self.judges_, "synthesiser")):
            rows = np.flatnonzero(self._folds[sources] == fold)
            if len(rows):
                sides = drawn[torch.from_numpy(rows)]
                one, other = (judges.member_scores(sides[:, side].numpy()) for side in (0, 1))
                found[:, rows] = one - other
        return found

    @torch.no_grad()
    def _measure(self, pairs: PairRows, seed: int) -> ConsistentFigures:
        some = pairs.some(MEASURED)
        _, sure = self._judged(some, np.random.default_rng((seed, 25)))
        places = chosen(sure, self.options.keep)
        real = self.margins(pairs.read(some), some).mean(0)
        kept = sure[np.arange(len(some)), places]
        return ConsistentFigures(float((real > 0).mean()), float((sure > 0).mean()), float((kept > 0).mean()))


def _both(pairs: PairRows, held_out: PairRows) -> Callable[[Ints], Tensor]:
    """Return what reads rows (m,) of the pairs, and from their `n_rows` on those of the others: (m, D)."""

    def read(rows: Ints) -> Tensor:
        found = torch.empty(len(rows), pairs.dimension)
        own = rows < pairs.n_rows
        for side, chosen_rows, first in ((pairs, own, 0), (held_out, ~own, pairs.n_rows)):
            if chosen_rows.any():
                found[torch.from_numpy(chosen_rows)] = side.reader(rows[chosen_rows] - first)
        return found

    return read


def folds(pairs: PairRows, n_folds: int, seed: int) -> Ints:
    """Return the fold (N,) of each pair, of as many prompts each as can be. UserError for too few prompts."""
    owner = np.arange(len(pairs)) if pairs.prompts is None else pairs.prompts
    prompts, member = np.unique(owner, return_inverse=True)
    if len(prompts) < n_folds:
        raise UserError(f"folds {n_folds} of {len(prompts)} prompts: give at most as many folds as prompts")
    return np.asarray(np.random.default_rng((seed, 26)).permutation(len(prompts))[member] % n_folds)


def chosen(sure: NDArray[np.float32], keep: str) -> Ints:
    """Return which of each row's draws is kept (n,), of how sure judges are of them (n, k)."""
    best = sure.argmax(1)
    confident = sure > 0
    return np.asarray(np.where(confident.any(1) & (keep == "confident"), confident.argmax(1), best))
