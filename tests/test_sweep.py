"""Sweeps: what a cell's figures are, that neighbours do not change them, and that failures end nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("lightgbm")
import pyarrow.parquet as parquet

from decoder.contracts import UserError
from eval.head_measures import head_measures
from eval.stats import expected_best_of
from rewards.heads import make_head
from rewards.pairs import label, make_pairs
from rewards.store import Store
from rewards.sweep_cells import Bench, run_group
from rewards.sweep_run import check, run_sweep
from tests.sweeps import TREES, WEIGHTS, finish, grid, make_store, small_store

LINEAR = {"bt-linear": {"patience": 2, "epochs": 4}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Shared: 60 prompts to train on, 12 to test on."""
    return small_store(tmp_path_factory.mktemp("sweep") / "store")


def rows(folder: Path) -> list[dict[str, Any]]:
    return parquet.read_table(folder / "results.parquet").to_pylist()


def test_a_cell_by_hand(store: Store, tmp_path: Path) -> None:
    """A cell's row against its parts put together one by one: pairs, labels, a fit of its own, figures."""
    axes = grid(noise=(0.2,), noise_kind="flip_rate", best_of=(1, 4))
    finish(tmp_path, store, axes)
    found = rows(tmp_path)
    assert [row["cell"] for row in found] == list(range(4))
    row = found[3]
    assert {k: row[k] for k in ("head", "golden", "split", "pairing", "n_pairs", "seed", "noise")} == {
        "head": "lgb-clf", "golden": "golden", "split": 0, "pairing": "within", "n_pairs": 60, "seed": 1,
        "noise": 0.2,
    }  # fmt: skip
    assert (row["noise_kind"], row["error"]) == ("flip_rate", None)

    prompts, golden = store.groups()[0], store.column("golden")
    train, test = np.flatnonzero(prompts < 60), np.flatnonzero(prompts >= 60)
    pairs = make_pairs("within", golden[train], prompts[train], 60, np.random.default_rng((1, 0, 1)))
    labelled = label(pairs, golden[train], row["beta"], "std", np.random.default_rng((1, 0, 2)))
    assert row["flip_rate"] == labelled.flipped.mean()
    assert 0.05 < row["flip_rate"] < 0.4
    head = make_head("lgb-clf", **TREES, seed=1)
    winners = np.stack([train[labelled.winner], train[labelled.loser]], axis=1)
    head.fit(store.embeddings, winners, prompts[train[pairs.first]])
    scores = head.predict(store.embeddings(test))
    grids = scores.reshape(12, 16), golden[test].reshape(12, 16)
    best = [expected_best_of(score, gold, 4) for score, gold in zip(*grids, strict=True)]
    assert row["best_of_4"] == pytest.approx(np.mean(best))
    assert row["best_of_1"] == pytest.approx(golden[test].mean())
    assert row["improvement_at_1"] == pytest.approx(0, abs=1e-12)
    assert row["quantile_at_1"] == pytest.approx(0.5)
    scipy_stats = pytest.importorskip("scipy.stats")
    each = [scipy_stats.spearmanr(score, gold).statistic for score, gold in zip(*grids, strict=True)]
    assert row["spearman"] == pytest.approx(np.mean(each))


def test_a_linear_reward_is_learnt_from_perfect_labels(store: Store, tmp_path: Path) -> None:
    axes = grid(heads=("bt-linear",), n_pairs=(600,), noise=(np.inf,), seeds=(0,), options={})
    finish(tmp_path, store, axes)
    for row in rows(tmp_path):
        assert row["spearman"] >= 0.99
        assert (row["flip_rate"], row["beta"]) == (0, np.inf)
    assert len(rows(tmp_path)) == 2


@pytest.mark.parametrize("head", ["bt-linear", "bt-mlp", "clf-mlp", "lgb-rank"])
def test_neighbours_change_nothing(store: Store, head: str) -> None:
    """Whole groups, halves in the other order, and cells by themselves give the same bits."""
    options = {
        head: {"patience": 1, "epochs": 2} if head == "bt-linear" else {"widths": (16,), "patience": 1}
    }
    options = options if "lgb" not in head else {head: TREES}
    axes = grid(heads=(head,), n_pairs=(40, 90), seeds=(3,), options=options)
    bench, cells = Bench(store, axes, head_measures), axes.cells()
    together = {result.cell: result.measures for result in run_group(bench, cells)}
    halves = [run_group(bench, cells[::-2]), run_group(bench, cells[::2])]
    assert {result.cell: result.measures for half in halves for result in half} == together
    for cell in cells[::3]:
        assert run_group(Bench(store, axes, head_measures), [cell])[0].measures == together[cell.number]
    assert len({tuple(measures.values()) for measures in together.values()}) > len(cells) / 2


def test_noise_of_a_cell_and_its_mirror(store: Store, tmp_path: Path) -> None:
    """Heads see the same pairs and labels, and more noise only ever flips more of the same labels."""
    axes = grid(heads=("bt-linear", "lgb-clf"), noise=(0.3, 1.0, 5.0), options={**LINEAR, "lgb-clf": TREES})
    finish(tmp_path, store, axes)
    found = rows(tmp_path)
    flips = np.array([row["flip_rate"] for row in found]).reshape(2, -1, 3)
    np.testing.assert_array_equal(flips[0], flips[1])
    assert (np.diff(flips, axis=2) < 0).all()


def test_cells_that_fail_are_recorded_and_skipped(store: Store, tmp_path: Path) -> None:
    """Too many pairs for one pairing, a learning rate that diverges: their neighbours are as without them."""
    options = {"bt-linear": {"lr": 1e30, "patience": 1}, "lgb-clf": TREES}
    axes = grid(heads=("bt-linear", "lgb-clf"), n_pairs=(60, 5000), seeds=(0,), options=options)
    n_failed = run_sweep(Bench(store, axes, head_measures), tmp_path / "all", workers=0)
    found = rows(tmp_path / "all")
    failed = [row for row in found if row["error"] is not None]
    assert n_failed == len(failed) == 8 + 2
    for row in failed:
        assert row["spearman"] is row["beta"] is row["best_of_10"] is None
        assert ("only 900 different ones" in row["error"]) == (
            row["pairing"] == "within" and row["n_pairs"] == 5000
        )
        assert row["head"] == "bt-linear" or "only 900" in row["error"]
    assert sum("the loss is nan" in row["error"] for row in failed) == 6
    alone = grid(n_pairs=(60,), seeds=(0,))
    finish(tmp_path / "some", store, alone)
    kept = [row["spearman"] for row in found if row["head"] == "lgb-clf" and row["n_pairs"] == 60]
    assert kept == [row["spearman"] for row in rows(tmp_path / "some")]


def fail_once(*arguments: Any) -> Any:
    """Fail at the first call, with what no head or measure raises."""
    if not fail_once.__dict__.setdefault("called", []):
        fail_once.__dict__["called"].append(True)
        raise RuntimeError("no\nmemory")
    return head_measures(*arguments)


def test_failed_cells_are_tried_again_when_asked(store: Store, tmp_path: Path) -> None:
    axes = grid(pairing=("cross",), seeds=(0,), noise=(1.0,))
    assert run_sweep(Bench(store, axes, fail_once), tmp_path / "a", workers=0) == 1
    assert rows(tmp_path / "a")[0]["error"] == "RuntimeError: no memory"
    assert run_sweep(Bench(store, axes, fail_once), tmp_path / "a", workers=0) == 1
    assert run_sweep(Bench(store, axes, fail_once), tmp_path / "a", workers=0, retry_failed=True) == 0
    assert (tmp_path / "a/results.parquet").read_bytes() == finish(tmp_path / "b", store, axes)


def test_heads_that_say_nothing_have_no_spearman_and_no_error(store: Store, tmp_path: Path) -> None:
    axes = grid(options={"lgb-clf": {**TREES, "min_leaf_rows": 10_000}})
    finish(tmp_path, store, axes)
    for row in rows(tmp_path):
        assert (row["spearman"], row["error"], row["pairwise_accuracy"]) == (None, None, 0.5)


def test_splits_share_no_prompt_and_differ(store: Store) -> None:
    axes = grid(test_samples=None, test_share=0.25, splits=3)
    bench = Bench(store, axes, head_measures)
    held_out = []
    for split in range(3):
        parts = bench.parts("golden", split)
        assert not set(parts.train_prompts) & set(parts.test_prompts)
        assert len(parts.train) + len(parts.test) == store.n_rows
        assert len(set(parts.test_prompts)) == 18
        np.testing.assert_array_equal(parts.test_rewards, store.column("golden")[parts.test])
        np.testing.assert_array_equal(parts.train_prompts, store.groups()[0][parts.train])
        held_out.append(frozenset(parts.test_prompts.tolist()))
    assert len(set(held_out)) == 3
    other = Bench(store, grid(test_samples=None, test_share=0.25, split_seed=1), head_measures)
    assert frozenset(other.parts("golden", 0).test_prompts.tolist()) not in held_out


def test_prompts_with_many_samples_are_for_testing_alone(store: Store) -> None:
    half = Bench(store, grid(test_share=0.5, splits=2), head_measures)
    for split in (0, 1):
        parts = half.parts("golden", split)
        assert set(parts.train_prompts) == set(range(60))
        assert len(set(parts.test_prompts)) == 6
        assert set(parts.test_prompts) <= set(range(60, 72))
    assert set(Bench(store, grid(), head_measures).parts("golden", 0).test_prompts) == set(range(60, 72))


def test_rows_without_the_reward_are_left_out(store: Store) -> None:
    parts = Bench(store, grid(test_samples=10), head_measures).parts("partial", 0)
    assert not np.isnan(np.concatenate([parts.train_rewards, parts.test_rewards])).any()
    assert len(parts.train) + len(parts.test) == store.n_rows - np.isnan(store.column("partial")).sum()


def test_a_store_of_test_prompts(store: Store, tmp_path: Path) -> None:
    """All of the store is trained on, all of the other tested; the test rows are the other's rows."""
    other = make_store(tmp_path / "test", [10] * 7, seed=9, prefix="t")
    axes = grid(heads=("bt-linear",), test_samples=None, noise=(np.inf,), n_pairs=(600,), options={})
    bench = Bench(store, axes, head_measures, other)
    parts = bench.parts("golden", 0)
    assert (len(parts.train), len(parts.test)) == (store.n_rows, 70)
    run_sweep(bench, tmp_path / "sweep", workers=0)
    assert all(row["spearman"] > 0.97 for row in rows(tmp_path / "sweep"))
    best = [other.column("golden")[k * 10 : k * 10 + 10].max() for k in range(7)]
    assert rows(tmp_path / "sweep")[0]["best_of_10"] == pytest.approx(np.mean(best), abs=0.1)
    with pytest.raises(UserError, match="holds the rows to train on"):
        check(Bench(store, axes, head_measures, store))
    assert np.linalg.norm(WEIGHTS) > 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"golden": ("gold",)}, "has no label 'gold'"),
        ({"best_of": (2, 17)}, "best_of 17: no prompt that split 0 tests has more than 16 samples"),
        ({"test_samples": 17}, "leaves 552 rows to train on and 0 to test on"),
        ({"test_samples": 2}, "leaves 0 rows to train on and 552 to test on"),
    ],
)
def test_grids_that_do_not_fit_the_store(store: Store, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check(Bench(store, grid(**changes), head_measures))


def test_another_grid_or_store_is_refused_and_overwritten_when_asked(store: Store, tmp_path: Path) -> None:
    first = finish(tmp_path / "a", store, grid())
    with pytest.raises(UserError, match=r"holds another sweep: seeds \[0, 1\] there, \[2\] now"):
        finish(tmp_path / "a", store, grid(seeds=(2,)))
    with pytest.raises(UserError, match="holds another sweep: stores"):
        finish(tmp_path / "a", make_store(tmp_path / "other", [6] * 60 + [16] * 12, seed=1), grid())
    assert (tmp_path / "a/results.parquet").read_bytes() == first
    second = finish(tmp_path / "a", store, grid(seeds=(2,)), overwrite=True)
    assert second == finish(tmp_path / "b", store, grid(seeds=(2,))) != first
