"""The benchmark of reward heads against the papers' loop, and its synthetic embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from decoder.cli import run
from eval.bench import app
from eval.synthetic_embeddings import make_synthetic
from rewards.heads import make_head

pytest.importorskip("pyarrow")


def benchmark(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(app, ["heads", *map(str, arguments)])
    found = capsys.readouterr()
    return int(ended.value.code or 0), found.out, found.err


def stores(folder: Path) -> tuple[Path, Path]:
    make_synthetic(folder / "train", [6] * 150, 96, seed=1)
    make_synthetic(folder / "test", [8] * 30, 96, seed=1, part=1)
    return folder / "train", folder / "test"


def test_both_loops_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = stores(tmp_path)
    settings = ["--pairs", 900, "--flip-rate", 0, "--heads", 2, "--rounds", 1, "--head", "bt-linear"]
    code, out, _ = benchmark(capsys, "--store", train, "--test", test, *map(str, settings))
    assert code == 0
    found = json.loads(out)
    assert [row["loop"] for row in found["rows"]] == ["papers", "ours"]
    for row in found["rows"]:
        assert row["spearman"] > 0.25  # chance is 0, give or take .07
        assert row["configurations_per_hour"] * row["seconds_per_head"] == pytest.approx(3600, rel=1e-6)
    papers, ours = found["rows"]
    ratio, better, _ = found["checks"].values()
    assert ratio["value"] == pytest.approx(papers["seconds_per_head"] / ours["seconds_per_head"], rel=1e-6)
    assert better["value"] == pytest.approx(ours["spearman"] - papers["spearman"], abs=1e-9)


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = stores(tmp_path)
    small = ["--store", train, "--test", test, "--pairs", 60, "--heads", 1, "--rounds", 1]
    for more, why in (
        (["--head", "lgb-clf"], "lgb-clf is no MLP"),
        (["--golden", "gold"], "has no label 'gold'"),
        (["--flip-rate", 0.6], "0.6"),
        (["--pairs", 100_000], "100000"),
    ):
        code, _, error = benchmark(capsys, *small, *map(str, more))
        assert code == 2, more
        assert why in error
    code, _, error = benchmark(capsys, "--store", train)
    assert code == 2
    assert "give both, or neither" in error


def test_synthetic_rewards_are_in_the_embeddings(tmp_path: Path) -> None:
    """Parts of one seed share the reward and no sample; half the variance is a prompt's; the same again."""
    one = make_synthetic(tmp_path / "a", [10] * 300, 96, seed=2)
    other = make_synthetic(tmp_path / "b", [10] * 300, 96, seed=2, part=1)
    again = make_synthetic(tmp_path / "c", [10] * 300, 96, seed=2)
    rows = np.arange(3000)
    X, Y = one.embeddings(rows).numpy(), other.embeddings(rows).numpy()
    assert torch.equal(again.embeddings(rows), one.embeddings(rows))
    assert not set(one.prompt_ids()) & set(other.prompt_ids())
    assert abs(np.corrcoef(X[:, 0], Y[:, 0])[0, 1]) < 0.1
    gold = one.column("golden")
    assert 0.7 < gold.std() < 1.4
    weights, *_ = np.linalg.lstsq(np.c_[X, np.ones(3000)], gold, rcond=None)
    found = np.c_[Y, np.ones(3000)] @ weights
    assert np.corrcoef(found, other.column("golden"))[0, 1] > 0.75
    by_prompt = gold.reshape(300, 10)
    assert 0.3 < by_prompt.mean(1).var() / gold.var() < 0.75
    pairs = np.stack([rows[::2], rows[1::2]], 1)
    pairs[gold[pairs[:, 0]] < gold[pairs[:, 1]]] = pairs[gold[pairs[:, 0]] < gold[pairs[:, 1]]][:, ::-1]
    scores = make_head("bt-mlp", widths=(32,)).fit(one.embeddings(rows), pairs).predict(Y)
    assert np.corrcoef(scores, other.column("golden"))[0, 1] > 0.75
