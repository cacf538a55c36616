"""What the cells of the benchmark of LENS share: rows to learn from, nested seed pairs, rows to judge on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from decoder.contracts import UserError
from eval.head_measures import head_measures
from eval.lens_plan import LensPlan
from rewards.annotation import beta_of, reward_scale
from rewards.pair_rows import PairRows, pair_rows
from rewards.pairs import label, make_pairs, split_prompts
from rewards.store import Store, open_store
from rewards.sweep_cells import Bench
from rewards.sweep_grid import Grid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
TUNING = 0.2  # of the prompts to train on, for ablations alone
STOP = 0.1  # of the other prompts, whose pairs heads and autoencoders stop on
MOST_PAIRS = 60_000  # that are drawn and labelled of a seed; a cell takes the first of them
SPLIT_SEED = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows (M,) of a store, their golden rewards and their prompts, (M,) each."""

    rows: Ints
    golden: Floats
    prompts: Ints

    def take(self, mask: NDArray[np.bool_]) -> Rows:
        """Return those where the mask (M,) is True."""
        return Rows(self.rows[mask], self.golden[mask], self.prompts[mask])


@dataclass
class LensMaterial:
    """The rows to learn from and those to judge on; may be pickled. Pairs and embeddings are remembered."""

    store: Store
    plan: LensPlan
    train: Rows
    judged: Rows
    _pairs: dict[int, tuple[PairRows, PairRows]] = field(default_factory=dict, repr=False)
    _read: list[Tensor] = field(default_factory=list, repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        return LensMaterial, (self.store, self.plan, self.train, self.judged)

    def judged_embeddings(self) -> Tensor:
        """Return the embeddings (M, D) of the rows to judge on."""
        if not self._read:
            self._read.append(self.store.embeddings(self.judged.rows))
        return self._read[0]

    def pairs(self, seed: int) -> tuple[PairRows, PairRows]:
        """Return all labelled pairs of a seed: to learn from and, of other prompts, to stop on.

        Pairs within prompts, in rounds over the prompts: the first N are the seed pairs of size N, so that
        smaller sizes are parts of larger ones, and the first N / 10 of the others are its pairs to stop on.
        """
        if seed not in self._pairs:
            self._pairs.clear()  # groups come by seed; one is enough
            learn, stop = split_prompts(self.train.prompts, (1 - STOP, STOP), seed)
            self._pairs[seed] = self._labelled(learn, seed, 0), self._labelled(stop, seed, 1)
        return self._pairs[seed]

    def bounds(self) -> tuple[Floats, Floats]:
        """Return (P,), (P,): the golden reward of a random sample, and that of the best of n."""
        found = {
            measure.name: measure.units
            for measure in head_measures(self.judged.golden, self.judged.golden, self.judged.prompts,
                                         (1, self.plan.n))
        }  # fmt: skip
        return found["best_of_1"], found[f"best_of_{self.plan.n}"]

    def _labelled(self, chosen: NDArray[np.bool_], seed: int, side: int) -> PairRows:
        """Return the pairs of the chosen rows as the annotator ordered them."""
        side_rows, rng = self.train.take(chosen), np.random.default_rng((seed, 31, side))
        golden, prompts = side_rows.golden, side_rows.prompts
        sizes = np.unique(prompts, return_counts=True)[1]
        n = min(int((sizes * (sizes - 1) // 2).sum()), MOST_PAIRS)
        pairs = make_pairs("within", golden, prompts, n, rng)
        scale = reward_scale(self.train.golden)
        beta = beta_of(pairs.differences(golden), self.plan.flip_rate, scale)
        found = label(pairs, golden, beta, scale, rng)
        rows = np.stack([side_rows.rows[found.winner], side_rows.rows[found.loser]], 1)
        made = pair_rows(self.store.embeddings, rows, prompts[pairs.first], self.store.n_rows)
        made.reader.keep(np.unique(rows))
        return made


def open_material(folder: Path, plan: LensPlan) -> LensMaterial:
    """Return what the plan's part learns from and judges on.

    "table" judges on the prompts with `test_samples` samples or more and learns from all others; "ablations"
    judges on a fifth of those others, held out here. Raises UserError for a store or label that cannot be
    used, and where no prompt to judge on has n samples.
    """
    store = open_store(folder)
    grid = Grid(
        heads=(plan.head,), pairing=("within",), n_pairs=(1,), seeds=(0,), noise=(plan.flip_rate,),
        noise_kind="flip_rate", golden=(plan.golden,), test_samples=plan.test_samples,
    )  # fmt: skip
    parts = Bench(store, grid, head_measures).parts(plan.golden, 0)
    train = Rows(parts.train, parts.train_rewards, parts.train_prompts)
    judged = Rows(parts.test, parts.test_rewards, parts.test_prompts)
    if plan.part == "ablations":
        kept, held = split_prompts(train.prompts, (1 - TUNING, TUNING), SPLIT_SEED)
        train, judged = train.take(kept), train.take(held)
    prompts, counts = np.unique(judged.prompts, return_counts=True)
    enough = np.isin(judged.prompts, prompts[counts >= plan.n])
    if not enough.any():
        raise UserError(
            f"no prompt to judge on has {plan.n} samples with a known {plan.golden!r}; the most is "
            f"{counts.max()}: let fewer compete (--n)"
        )
    return LensMaterial(store, plan, train, judged.take(enough))


def seed_pairs(
    material: LensMaterial, n_pairs: int, seed: int, times: float = 1
) -> tuple[PairRows, PairRows]:
    """Return `times` n_pairs pairs to learn from, and n_pairs / 10 to stop on. UserError for too many."""
    learn, stop = material.pairs(seed)
    n_learn, n_stop = round(times * n_pairs), n_pairs // 10
    for wanted, there in ((n_learn, learn), (n_stop, stop)):
        if wanted > len(there):
            raise UserError(f"{wanted} labelled pairs are wanted, and there are {len(there)}: ask for fewer")
    return learn.take(np.arange(n_learn)), stop.take(np.arange(n_stop))
