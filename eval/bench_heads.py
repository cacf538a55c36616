"""Reward heads an hour, and how good they are: ours beside the papers' training loop, on the same pairs.

Both see the same pairs with the same noisy labels from memory and are measured on the same held-out prompts;
within a round they take turns in going first. A configuration is one fitted head.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoder.contracts import UserError
from decoder.terminal import progress
from eval.head_measures import head_measures
from eval.report import Target
from eval.stats import bootstrap, paired_difference
from eval.synthetic_embeddings import make_synthetic
from rewards.annotation import beta_of, reward_scale
from rewards.heads import HEADS, make_head
from rewards.mlp_head import MlpHead, fit_together
from rewards.pairs import label, make_pairs
from rewards.paper_loop import PaperLoop, fit_paper_loop
from rewards.store import Store, open_store
from rewards.store_manifest import check_same

TRAIN, TEST = [10] * 1000, [32] * 200  # samples of each prompt of the synthetic stores
SPEED = 5.0  # times the papers' loop, at
AS_GOOD = -0.005  # of its Spearman correlation
SECONDS = 30.0  # that one head may take
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """What is fitted: heads that differ in seed, on pairs within prompts; rounds of both loops."""

    head: str = "bt-mlp"
    n_pairs: int = 10_000
    flip_rate: float = 0.1
    n_heads: int = 8
    rounds: int = 3
    precision: str = "float32"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Bench:
    """Embeddings (N, D) and pairs (n, 2), the winner first; test rows with golden rewards and prompts."""

    embeddings: Tensor
    pairs: Tensor
    owners: Ints
    test: Tensor
    golden: Floats
    prompts: Ints


def bench_heads(
    train: Path | None, test: Path | None, golden: str, dimension: int, plan: HeadPlan
) -> tuple[list[dict[str, Any]], dict[str, Target], dict[str, Any]]:
    """Return table rows, checks and settings.

    train, test: stores with a golden reward; synthetic ones of that dimension where none are named. Ratios
    are taken within a round, of which the first warms up; Spearman correlations, the mean over heads, are
    paired over test prompts. Raises UserError for unusable stores, and for heads that are no MLPs.
    """
    heads = _heads(plan)
    with _stores(train, test, dimension, plan.seed) as stores:
        bench = _prepare(*stores, golden, plan)
    loops = {"papers": lambda: _papers(bench, plan), "ours": lambda: _ours(bench, heads)}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    scores: dict[str, Tensor] = {}
    with progress("heads", plan.rounds + 1) as advance:
        for number in range(plan.rounds + 1):
            for name in sorted(loops, reverse=bool(number % 2)):
                begin = time.perf_counter()
                scores[name] = loops[name]()
                seconds[name].append(time.perf_counter() - begin)
            advance()
    times = {name: np.array(found[1:]) for name, found in seconds.items()}
    spearman = {name: _spearman(bench, found) for name, found in scores.items()}
    settings = {**asdict(plan), "papers": asdict(PaperLoop()), "dimension": bench.embeddings.shape[1],
                "n_test_rows": len(bench.golden), "threads": torch.get_num_threads()}  # fmt: skip
    return _rows(times, spearman, plan), _checks(times, spearman, plan), settings


@contextmanager
def _stores(
    train: Path | None, test: Path | None, dimension: int, seed: int
) -> Iterator[tuple[Store, Store]]:
    if (train is None) != (test is None):
        raise UserError("a store to train on and one to test on go together: give both, or neither")
    if train is not None and test is not None:
        yield open_store(train), open_store(test)
        return
    with TemporaryDirectory() as folder:
        parts = enumerate((TRAIN, TEST))
        made = [make_synthetic(Path(folder) / str(i), sizes, dimension, seed, i) for i, sizes in parts]
        yield made[0], made[1]


def _prepare(train: Store, test: Store, golden: str, plan: HeadPlan) -> Bench:
    """Return what both loops read, in memory: the papers' loop knows no other place."""
    check_same(test.folder, test.manifest, train.manifest)
    rewards, prompts = train.column(golden), train.groups()[0]
    rng = np.random.default_rng(plan.seed)
    pairs = make_pairs("within", rewards, prompts, plan.n_pairs, rng)
    scale = reward_scale(rewards)
    beta = beta_of(pairs.differences(rewards), plan.flip_rate, scale)
    labelled = label(pairs, rewards, beta, scale, rng)
    chosen = torch.from_numpy(np.stack([labelled.winner, labelled.loser], axis=1))
    every = train.embeddings(np.arange(len(train)))
    tested = test.embeddings(np.arange(len(test)))
    return Bench(every, chosen, prompts[pairs.first], tested, test.column(golden), test.groups()[0])


def _papers(bench: Bench, plan: HeadPlan) -> Tensor:
    """Return the scores (heads, M) of heads fitted one after another, as the papers do."""
    found = []
    for seed in range(plan.n_heads):
        mlp, _ = fit_paper_loop(bench.embeddings, bench.pairs, seed)
        with torch.no_grad():
            found.append(mlp(bench.test)[:, 0])
    return torch.stack(found)


def _heads(plan: HeadPlan) -> list[MlpHead]:
    if not isinstance(make_head(plan.head), MlpHead):
        raise UserError(
            f"{plan.head} is no MLP, and only those are fitted together: give bt-linear, bt-mlp or clf-mlp"
        )
    made = HEADS[plan.head].options
    return [MlpHead(**made, seed=seed, precision=plan.precision) for seed in range(plan.n_heads)]


def _ours(bench: Bench, heads: Sequence[MlpHead]) -> Tensor:
    """Return the scores (heads, M) of heads fitted together."""
    fit_together(heads, bench.embeddings, [bench.pairs] * len(heads), [bench.owners] * len(heads))
    return torch.stack([torch.from_numpy(head.predict(bench.test)) for head in heads])


def _spearman(bench: Bench, scores: Tensor) -> Floats:
    """Return (P,), each test prompt's rank correlation, the mean over heads."""
    found = [head_measures(row, bench.golden, bench.prompts, (1,))[0].units for row in scores.numpy()]
    return np.asarray(np.mean(found, axis=0), dtype=float)


def _rows(
    times: Mapping[str, Floats], spearman: Mapping[str, Floats], plan: HeadPlan
) -> list[dict[str, Any]]:
    rows = []
    for name, seconds in times.items():
        rate, found = bootstrap(3600 * plan.n_heads / seconds, np.median), bootstrap(spearman[name])
        rows.append(
            {
                "loop": name, "configurations_per_hour": rate.value, "interval": rate.interval,
                "seconds_per_head": float(np.median(seconds)) / plan.n_heads,
                "spearman": found.value, "spearman_interval": found.interval,
            }
        )  # fmt: skip
    return rows


def _checks(times: Mapping[str, Floats], spearman: Mapping[str, Floats], plan: HeadPlan) -> dict[str, Target]:
    return {
        "configurations an hour, ours over the papers'": Target(
            bootstrap(times["papers"] / times["ours"], np.median), SPEED
        ),
        "spearman, ours minus the papers'": Target(
            paired_difference(spearman["ours"], spearman["papers"]), AS_GOOD
        ),
        "seconds to spare of 30 for one head": Target(
            bootstrap(SECONDS - times["ours"] / plan.n_heads, np.median), 0.0
        ),
    }
