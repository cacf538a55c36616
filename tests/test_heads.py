"""Heads by name: what they learn, scikit-learn's manners, saved and loaded, and what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.base import clone

from decoder.contracts import UserError
from rewards.head_inputs import split_targets
from rewards.heads import HEADS, Head, load_head, make_head
from rewards.mlp_head import MlpHead, fit_together
from rewards.pairs import LabelledPairs
from tests.head_data import golden

SMALL: dict[str, Any] = {"widths": (16, 8), "epochs": 2, "lr": 0.05}
MLPS = ("bt-linear", "bt-mlp", "clf-mlp")


@pytest.mark.parametrize("name", MLPS)
def test_a_linear_reward_is_found(name: str) -> None:
    """Perfect labels, inputs of very different scales, rows that no pair held."""
    found = golden(4000)
    options = {} if name == "bt-linear" else {"widths": (32, 32), "weight_decay": 0.05}
    head = make_head(name, **options).fit(found.X, found.pairs)
    scores = head.predict(found.X[found.test :])
    assert scores.shape == (400,)
    assert scores.dtype == np.float32
    assert spearmanr(scores, found.reward[found.test :]).statistic >= 0.99


def test_labels_of_rows_are_learnt_too() -> None:
    found = golden()
    labels = (found.reward > np.median(found.reward)).astype(int)
    head = make_head("clf-mlp", **SMALL).fit(found.X, labels)
    assert spearmanr(head.predict(found.X), found.reward).statistic > 0.9
    with pytest.raises(UserError, match="compares rows and was given labels"):
        make_head("bt-mlp").fit(found.X, labels)


def test_embeddings_may_be_a_function_or_half_precision() -> None:
    found = golden(200)
    X = found.X.astype(np.float16)
    labelled = LabelledPairs(found.pairs[:, 0], found.pairs[:, 1], np.zeros(200, dtype=bool))
    one = make_head("bt-mlp", **SMALL).fit(X, found.pairs).predict(X)
    other = make_head("bt-mlp", **SMALL).fit(lambda rows: torch.from_numpy(X[rows]), labelled).predict(X)
    assert np.array_equal(one, other)


def test_fitting_together_is_fitting_apart() -> None:
    found = golden(200)
    noisy = np.where(np.arange(200)[:, None] % 5 > 0, found.pairs, found.pairs[:, ::-1])
    targets = [found.pairs, noisy, found.pairs[:90], noisy]
    names = ["bt-mlp", "clf-mlp", "bt-mlp", "bt-mlp"]
    together = [MlpHead(**make_head(name, **SMALL, seed=s).get_params()) for s, name in enumerate(names)]
    fit_together(together, found.X, targets)
    for seed, (name, target) in enumerate(zip(names, targets, strict=True)):
        alone = make_head(name, **SMALL, seed=seed).fit(found.X, target)
        np.testing.assert_allclose(alone.predict(found.X), together[seed].predict(found.X), atol=1e-5)
    fit_together([], found.X, [])


@pytest.mark.parametrize("name", HEADS)
def test_scikit_learn_can_clone(name: str) -> None:
    head = make_head(name, seed=7).set_params(lr=0.2)
    again = clone(head)
    assert type(again) is type(head)
    assert again is not head
    assert again.get_params() == head.get_params()
    assert again.get_params()["seed"] == 7
    assert again.get_params()["lr"] == 0.2


def test_a_clone_learns_the_same_and_a_seed_matters() -> None:
    found = golden(200)
    head = make_head("bt-mlp", **SMALL).fit(found.X, found.pairs)
    scores = head.predict(found.X)
    assert np.array_equal(clone(head).fit(found.X, found.pairs).predict(found.X), scores)
    other = clone(head).set_params(seed=1).fit(found.X, found.pairs)
    assert not np.allclose(other.predict(found.X), scores, atol=1e-3)


def test_groups_stay_on_one_side() -> None:
    pairs, groups = np.arange(400).reshape(-1, 2), np.repeat(np.arange(20), 10)
    split = split_targets(pairs, groups, 0.2, 0)
    sides = [set((side[:, 0] // 20).tolist()) for side in (split.pairs, split.held_out) if side is not None]
    assert len(sides) == 2
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(range(20))
    assert len(split.held_out) == 40
    assert len(split_targets(pairs, None, 0.2, 0).held_out) == 40


def test_a_response_that_wins_and_loses_keeps_both_labels() -> None:
    pairs = np.array([[i, i + 1] for i in range(30)])
    split = split_targets(pairs, None, 0.1, 0)
    assert split.pairs is not None
    assert len(split.rows) == 2 * len(split.pairs)  # no mirrored copies
    inner = int(split.pairs[1, 0])
    wanted = [1] * (split.pairs[:, 0] == inner).sum() + [0] * (split.pairs[:, 1] == inner).sum()
    assert sorted(split.labels[split.rows == inner].tolist()) == sorted(wanted)


def saved(tmp_path: Path, name: str = "bt-mlp") -> tuple[Head, Path]:
    found = golden(200)
    head = make_head(name, **SMALL).fit(found.X, found.pairs)
    head.save_pretrained(tmp_path / "head", {"name": "smollm2", "pooling": "last"}, {"n_pairs": 200})
    return head, tmp_path / "head"


def test_a_saved_head_scores_the_same(tmp_path: Path) -> None:
    head, folder = saved(tmp_path)
    loaded = load_head(folder, 12, {"name": "smollm2", "pooling": "last", "device": "cpu"})
    X = golden(200).X
    assert np.array_equal(loaded.predict(X), head.predict(X))
    assert loaded.get_params() == head.get_params()
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["kind"], config["dimension"], config["n_pairs"]) == ("head_mlp", 12, 200)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((576,), ("dimension 12, these have 576",)),
        ((12, {"pooling": "mean"}), ("pooling 'last' in the head, 'mean' here",)),
        ((12, {"name": "gemma"}), ("name 'smollm2' in the head, 'gemma' here",)),
    ],
)
def test_other_embeddings_are_refused(tmp_path: Path, arguments: Any, said: tuple[str, ...]) -> None:
    _, folder = saved(tmp_path)
    with pytest.raises(UserError) as error:
        load_head(folder, *arguments)
    assert all(part in str(error.value) for part in said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "elhsr"}, "is of kind 'elhsr', no head on embeddings"),
        ({"dimension": None}, "lacks or garbles"),
        ({"dimension": 0}, "dimension 0"),
        ({"dimension": 13}, "weights and config disagree"),
        ({"options": {"widht": 3}}, "unknown option 'widht': did you mean widths?"),
    ],
)
def test_broken_configs_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    _, folder = saved(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError) as error:
        load_head(folder)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("bt-mpl", {}, "unknown head 'bt-mpl': did you mean bt-mlp"),
        ("zzz", {}, "there are bt-linear, bt-mlp, clf-mlp, lgb-clf, lgb-rank"),
        ("bt-mlp", {"weigth_decay": 1}, "did you mean weight_decay"),
        ("lgb-clf", {"widths": (3,)}, "unknown option 'widths'"),
        ("bt-mlp", {"lr": 0}, "lr 0 must be a number above 0"),
        ("bt-mlp", {"weight_decay": -1}, "weight_decay -1 must be"),
        ("bt-mlp", {"lr": math.inf}, "lr inf must be"),
        ("bt-mlp", {"widths": (0,)}, "1 unit or more"),
        ("bt-mlp", {"loss": "dpo"}, "loss 'dpo' is not known"),
        ("bt-mlp", {"precision": "float16"}, "precision 'float16' is not known"),
        ("bt-mlp", {"held_out": 1.0}, "held_out 1.0 must be a share"),
        ("lgb-rank", {"leaves": 1}, "leaves 1"),
    ],
)
def test_options_that_cannot_be(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        make_head(name, **options)
    assert said in str(error.value)


X, PAIRS = golden(200).X, golden(200).pairs
BROKEN = X.copy()
BROKEN[PAIRS[3, 1], 5] = np.nan


@pytest.mark.parametrize(
    ("embeddings", "y", "groups", "said"),
    [
        (BROKEN, PAIRS, None, f"the embedding of row {PAIRS[3, 1]} holds NaN"),
        (X[:100], PAIRS, None, "there are 100 embeddings"),
        (X[:, 0], PAIRS, None, "embeddings have shape (800,)"),
        (X[:0], PAIRS, None, "embeddings have shape (0, 12)"),
        (X, PAIRS[:0], None, "0 pairs or labels are too few"),
        (X, PAIRS.astype(float), None, "pairs of type float64 are no row numbers"),
        (X, PAIRS[:, [0, 0]], None, "give two different row numbers"),
        (X, PAIRS - 1000, None, "pair 0 is rows"),
        (X, np.zeros((20, 3), dtype=int), None, "not (20, 3)"),
        (X, np.full(20, 2), None, "label 2 is neither 0 nor 1"),
        (X, np.ones(800), None, "0 bad responses are held out"),
        (X, PAIRS, np.zeros(200), "all pairs are of one group"),
        (X, PAIRS, np.zeros(3), "groups have shape (3,)"),
        (lambda rows: torch.zeros(1, 12), PAIRS, None, "have shape (1, 12)"),
    ],
)
def test_inputs_that_cannot_be_used(embeddings: Any, y: Any, groups: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        make_head("clf-mlp", **SMALL).fit(embeddings, y, groups)
    assert said in str(error.value)


def test_scoring_refuses_what_it_cannot_score() -> None:
    with pytest.raises(UserError, match="was not fitted yet"):
        make_head("bt-mlp").predict(X)
    head = make_head("bt-mlp", **SMALL).fit(X, PAIRS)
    with pytest.raises(UserError, match="of 12 numbers, these have 11"):
        head.predict(X[:, :11])
    with pytest.raises(UserError, match=f"embedding of row {PAIRS[3, 1]} holds NaN"):
        head.predict(BROKEN)
    with pytest.raises(UserError, match="the loss is nan"):
        make_head("bt-mlp", **{**SMALL, "lr": 1e30}).fit(X, PAIRS)
