"""The grid of a sweep: axes that are multiplied out into numbered cells, and which are fitted together.

Cells, their numbers and their groups are functions of the grid alone, so that a sweep that was interrupted
goes on with the groups it would have had.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from rewards.heads import HEADS

GROUP_CELLS = {"rewards.mlp_head:MlpHead": 8}  # measured: larger stacks gain nothing, and lose more if killed
ALONE = 2  # cells a group, of heads that are fitted one after the other


@dataclass(frozen=True, slots=True)
class Cell:
    """One configuration. noise: the annotator's beta or its flip rate, whichever the grid gives."""

    number: int
    head: str
    golden: str
    split: int
    pairing: str
    n_pairs: int
    seed: int
    noise: float


Group = tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """The axes of a sweep, and what all of its cells share. `rewards.sweep_yaml` reads one from a file.

    heads: names in `rewards.heads.HEADS`. pairing: names in `rewards.pairs.PAIRINGS`. n_pairs: labelled pairs
    to fit on. seeds: of pairs, labels, weights and batches. noise: of labels, as betas (inf for none) or flip
    rates, as `noise_kind` says. golden: the store's labels that serve as golden reward. scale: what golden
    differences are divided by, "std" or a number. splits: how many times test prompts are drawn, and all else
    anew. test_samples: where given, prompts with at least so many samples are for testing alone, the others
    for training. test_share: of the prompts that may be tested, how many a split draws; None for 0.2 of a
    store that is divided by chance, and all where test prompts are known. best_of: the n of best-of-n.
    options: head -> hyper-parameters in place of its defaults.
    """

    heads: tuple[str, ...]
    pairing: tuple[str, ...]
    n_pairs: tuple[int, ...]
    seeds: tuple[int, ...]
    noise: tuple[float, ...]
    noise_kind: str
    golden: tuple[str, ...] = ("golden",)
    scale: float | str = "std"
    splits: int = 1
    split_seed: int = 0
    test_share: float | None = None
    test_samples: int | None = None
    best_of: tuple[int, ...] = (2, 5, 10)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """Return every cell: noise changes fastest, because the cells along it share their pairs."""
        axes = product(
            self.heads, self.golden, range(self.splits), self.pairing, self.n_pairs, self.seeds, self.noise
        )
        return [Cell(number, *values) for number, values in enumerate(axes)]

    def groups(self) -> list[Group]:
        """Return the cells by what is fitted and committed at once.

        In an order by chance, always the same: so the first groups say how long all will take.
        """
        cells = self.cells()
        found = [
            group
            for name in self.heads
            for group in _chunks([cell for cell in cells if cell.head == name], group_size(name))
        ]
        random.Random(0).shuffle(found)
        return found

    def record(self) -> dict[str, Any]:
        """Return all that changes a result, as JSON values."""
        named = {name: {k: _plain(v) for k, v in chosen.items()} for name, chosen in self.options.items()}
        return {k: _plain(v) for k, v in asdict(replace(self, options={})).items()} | {"options": named}


def group_size(head: str) -> int:
    """Return how many cells of this head make a group."""
    return GROUP_CELLS.get(HEADS[head].made_by, ALONE)


def _chunks(cells: Sequence[Cell], most: int) -> list[Group]:
    """Return the cells in as few parts of at most that many as there can be, as equal as they can be."""
    n_parts = -(-len(cells) // most)
    ends = [len(cells) * part // n_parts for part in range(n_parts + 1)]
    return [tuple(cells[ends[part] : ends[part + 1]]) for part in range(n_parts)]


def _plain(value: Any) -> Any:
    """Return a tuple as a list, and an infinite number, which JSON lacks, as text."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return str(value) if value in (float("inf"), float("-inf")) else value
