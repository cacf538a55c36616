"""The cells of a sweep: held-out prompts, noisy pairs, heads fitted together, and what they are worth.

A cell's result is a function of the store, the grid's common settings and the cell: its random numbers come
from its own axes, and heads that are fitted together end as they would alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from rewards.annotation import beta_of, measured_flip_rate, reward_scale
from rewards.heads import Head, make_head
from rewards.pairs import Pairs, label, make_pairs, split_prompts
from rewards.store import Store
from rewards.sweep_grid import Cell, Grid
from rewards.sweep_results import Result, failure

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ROWS_AT_ONCE = 16_384  # of test embeddings in memory
PAIRS, LABELS = 1, 2  # streams of random numbers
TEST_SHARE = 0.2  # of the prompts of a store that is divided by chance


class Measured(Protocol):
    """A figure of a head: one unit a test prompt, NaN where it was not scored."""

    @property
    def name(self) -> str: ...
    @property
    def units(self) -> NDArray[Any]: ...


# scores (M,), golden rewards (M,), prompts (M,) and the n of best-of-n -> figures
Measure = Callable[[Floats, Floats, Ints, Sequence[int]], Sequence[Measured]]


@dataclass(frozen=True, slots=True)
class Parts:
    """Rows of a split: row numbers, golden rewards and prompts of either side.

    train: rows of the store. test: rows of the same store, or of the test store.
    """

    train: Ints
    train_rewards: Floats
    train_prompts: Ints
    test: Ints
    test_rewards: Floats
    test_prompts: Ints


@dataclass(frozen=True, slots=True)
class Targets:
    """What a head is fitted on. pairs: (n, 2) rows, winners first. owners: (n,), their prompts, or None."""

    pairs: Ints
    owners: Ints | None
    beta: float
    flip_rate: float


class Bench:
    """What all cells share; may be pickled, and remembers splits and the last pairs until then."""

    def __init__(self, store: Store, grid: Grid, measure: Measure, test: Store | None = None) -> None:
        """Take the embeddings, the settings and what measures a head, such as `eval.head_measures`.

        test: a store of test prompts; without it they are prompts of `store`.
        """
        self.store, self.grid, self.measure, self.test = store, grid, measure, test
        self._parts: dict[tuple[str, int], Parts] = {}
        self._pairs: tuple[tuple[Any, ...], Pairs] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Bench, (self.store, self.grid, self.measure, self.test)

    def warm(self) -> None:
        """Load what the heads are made of, so that no cell's seconds hold it."""
        for name in self.grid.heads:
            make_head(name, **self.grid.options.get(name, {}))

    def parts(self, golden: str, split: int) -> Parts:
        """Return the rows of a split, those without this golden reward left out; prompts are never divided.

        Raises UserError for a label that the store has not, and where a side has no prompt.
        """
        if (golden, split) not in self._parts:
            self._parts[golden, split] = _parts(self, golden, split)
        return self._parts[golden, split]

    def pairs(self, cell: Cell) -> Pairs:
        """Return the cell's pairs, as places in its training rows; heads and noises share them."""
        key = (cell.golden, cell.split, cell.pairing, cell.n_pairs, cell.seed)
        if self._pairs is None or self._pairs[0] != key:
            parts = self.parts(cell.golden, cell.split)
            self._pairs = key, make_pairs(
                cell.pairing, parts.train_rewards, parts.train_prompts, cell.n_pairs, _rng(cell, PAIRS),
                lambda places: self.store.embeddings(parts.train[places]).numpy(),
            )  # fmt: skip
        return self._pairs[1]


def run_group(bench: Bench, cells: Sequence[Cell]) -> list[Result]:
    """Return the results of cells of one head, in their order; a cell that fails is a result with an error.

    If any fails, each is run by itself to tell which.
    """
    began = time.process_time()
    try:
        return _together(bench, cells)
    except Exception as error:  # whatever it was, it is recorded below and must not end the sweep
        if len(cells) > 1:
            return [result for cell in cells for result in run_group(bench, [cell])]
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return [failure(cells[0], text, time.process_time() - began)]


def _together(bench: Bench, cells: Sequence[Cell]) -> list[Result]:
    began = time.process_time()
    targets = [targets_of(bench, cell) for cell in cells]
    heads = [make_head(c.head, **bench.grid.options.get(c.head, {}), seed=c.seed) for c in cells]
    seconds = _fit(bench.store, heads, targets)
    measured = _measured(bench, cells, heads)
    shared = (time.process_time() - began - sum(seconds)) / len(cells)
    return [
        Result(cell.number, target.beta, target.flip_rate, figures, None, shared + own)
        for cell, target, figures, own in zip(cells, targets, measured, seconds, strict=True)
    ]


def _fit(store: Store, heads: Sequence[Head], targets: Sequence[Targets]) -> list[float]:
    """Fit the heads; return the seconds of each, in a stack by the steps it made."""
    from rewards.mlp_head import MlpHead, fit_together  # slow, and who only hands out cells needs none of it

    began = time.process_time()
    mlps = [head for head in heads if isinstance(head, MlpHead)]
    if len(mlps) == len(heads):
        fit_together(mlps, store.embeddings, [t.pairs for t in targets], [t.owners for t in targets])
        steps = np.array([head.fit_.steps for head in mlps if head.fit_ is not None])
        shares: list[float] = ((time.process_time() - began) * steps / steps.sum()).tolist()
        return shares
    seconds = []
    for head, target in zip(heads, targets, strict=True):
        began = time.process_time()
        head.fit(store.embeddings, target.pairs, target.owners)
        seconds.append(time.process_time() - began)
    return seconds


def _measured(bench: Bench, cells: Sequence[Cell], heads: Sequence[Head]) -> list[dict[str, float | None]]:
    """Return the figures of each head on the test rows of its cell, which are read once a split."""
    found: list[dict[str, float | None]] = []
    for (golden, split), members in groupby(
        zip(cells, heads, strict=True), key=lambda member: (member[0].golden, member[0].split)
    ):
        parts = bench.parts(golden, split)
        for scores in _scores(bench.test or bench.store, parts.test, [head for _, head in members]):
            figures = bench.measure(scores, parts.test_rewards, parts.test_prompts, bench.grid.best_of)
            found.append({figure.name: _mean(figure.units) for figure in figures})
    return found


def _scores(store: Store, rows: Ints, heads: Sequence[Head]) -> NDArray[np.float32]:
    """Return scores (heads, M) of the rows (M,)."""
    scores = np.empty((len(heads), len(rows)), dtype=np.float32)
    for first in range(0, len(rows), ROWS_AT_ONCE):
        embeddings = store.embeddings(rows[first : first + ROWS_AT_ONCE])
        for number, head in enumerate(heads):
            scores[number, first : first + ROWS_AT_ONCE] = head.predict(embeddings)
    return scores


def _mean(units: NDArray[Any]) -> float | None:
    scored = units[~np.isnan(units)]
    return float(scored.mean()) if len(scored) else None


def targets_of(bench: Bench, cell: Cell) -> Targets:
    """Return the cell's pairs, labelled, as rows of the store."""
    parts, pairs = bench.parts(cell.golden, cell.split), bench.pairs(cell)
    differences = pairs.differences(parts.train_rewards)
    scale = reward_scale(parts.train_rewards, bench.grid.scale)
    beta = cell.noise if bench.grid.noise_kind == "beta" else beta_of(differences, cell.noise, scale)
    labelled = label(pairs, parts.train_rewards, beta, scale, _rng(cell, LABELS))
    return Targets(
        pairs=np.stack([parts.train[labelled.winner], parts.train[labelled.loser]], axis=1),
        # Pairs of two prompts have no one prompt to be held out with.
        owners=None if cell.pairing in ("cross", "random") else parts.train_prompts[pairs.first],
        beta=beta,
        flip_rate=measured_flip_rate(differences, labelled.winner == pairs.first),
    )


def _rng(cell: Cell, stream: int) -> np.random.Generator:
    """Return the random numbers of a seed and split: heads, noises and golden rewards share them."""
    return np.random.default_rng((cell.seed, cell.split, stream))


def _parts(bench: Bench, golden: str, split: int) -> Parts:
    grid, store, tested = bench.grid, bench.store, bench.test or bench.store
    chosen = _large(tested, _known(tested, golden), grid.test_samples)
    seed = int(np.random.SeedSequence((grid.split_seed, split)).generate_state(1)[0])
    apart = bench.test is not None or grid.test_samples is not None  # who may be tested does not train
    share = grid.test_share or (1.0 if apart else TEST_SHARE)
    test = chosen
    if share < 1 and len(chosen):
        test = chosen[split_prompts(tested.groups()[0][chosen], (1 - share, share), seed)[1]]
    train = _known(store, golden)
    if bench.test is None:
        train = np.setdiff1d(train, chosen if apart else test, assume_unique=True)
    if not len(train) or not len(test):
        raise UserError(
            f"store {tested.folder} leaves {len(train)} rows to train on and {len(test)} to test on, under "
            f"test_samples {grid.test_samples} and test_share {share:g}: give other numbers, or a test store"
        )
    return Parts(*_side(store, train, golden), *_side(tested, test, golden))


def _known(store: Store, golden: str) -> Ints:
    """Return the rows (M,) with this golden reward."""
    rows = np.flatnonzero(np.isfinite(store.column(golden)))
    if not len(rows):
        raise UserError(f"store {store.folder}: the label {golden!r} of every row is unknown: name another")
    return rows


def _large(store: Store, rows: Ints, samples: int | None) -> Ints:
    """Return those of the rows whose prompts have at least so many samples, with a golden reward or not."""
    prompts = store.groups()[0]
    return rows[np.bincount(prompts)[prompts[rows]] >= (samples or 1)]


def _side(store: Store, rows: Ints, golden: str) -> tuple[Ints, Floats, Ints]:
    return rows, store.column(golden)[rows], store.groups()[0][rows]
