"""LightGBM heads: what they learn, that they are repeatable and saved as text, and what they refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.base import clone

from decoder.contracts import UserError
from rewards.heads import load_head, make_head
from tests.head_data import golden

NAMES = ("lgb-clf", "lgb-rank")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    found = golden(100)
    with pytest.raises(UserError, match=r"pip install 'tiller-lm\[heads\]'"):
        make_head("lgb-clf").fit(found.X, found.pairs)


@pytest.fixture
def _lightgbm() -> None:
    pytest.importorskip("lightgbm")


needs_lightgbm = pytest.mark.usefixtures("_lightgbm")


@needs_lightgbm
@pytest.mark.parametrize("name", NAMES)
def test_trees_learn_the_reward(name: str) -> None:
    found = golden(4000, dimension=4)
    head = make_head(name, trees=300).fit(found.X, found.pairs)
    scores = head.predict(found.X[found.test :])
    assert scores.dtype == np.float32
    assert spearmanr(scores, found.reward[found.test :]).statistic > 0.95


@needs_lightgbm
@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_grows_the_same_trees(name: str) -> None:
    found = golden(500, flips=0.2)
    head = make_head(name, trees=20, threads=1).fit(found.X, found.pairs)
    again = clone(head).set_params(threads=2).fit(found.X, found.pairs)
    assert np.array_equal(head.predict(found.X), again.predict(found.X))


@needs_lightgbm
def test_it_stops_where_held_out_pairs_are_best() -> None:
    found = golden(400, flips=0.45)
    head = make_head("lgb-clf", trees=200, patience=10, held_out=0.3).fit(found.X, found.pairs)
    assert head.fit_.trees < head.fit_.grown < 200
    longer = make_head("lgb-clf", trees=head.fit_.trees, held_out=0.3).fit(found.X, found.pairs)
    np.testing.assert_allclose(head.predict(found.X), longer.predict(found.X), atol=1e-6)


@needs_lightgbm
@pytest.mark.parametrize("name", NAMES)
def test_saved_as_text_and_loaded(name: str, tmp_path: Path) -> None:
    found = golden(300)
    head = make_head(name, trees=15).fit(found.X, found.pairs)
    head.save_pretrained(tmp_path, {"name": "smollm2"})
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "model.txt"}
    assert json.loads((tmp_path / "config.json").read_text())["kind"] == "head_lightgbm"
    loaded = load_head(tmp_path, 12, {"name": "smollm2"})
    assert np.array_equal(loaded.predict(found.X), head.predict(found.X))
    assert loaded.get_params() == head.get_params()
    with pytest.raises(UserError, match="dimension 12, these have 13"):
        load_head(tmp_path, 13)


@needs_lightgbm
@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot read"), (b"no model", "holds no LightGBM model"), (b"\xff", "holds no")],
)
def test_a_broken_model_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    found = golden(100)
    make_head("lgb-clf", trees=2).fit(found.X, found.pairs).save_pretrained(tmp_path)
    (tmp_path / "model.txt").unlink()
    if content is not None:
        (tmp_path / "model.txt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_head(tmp_path)


@needs_lightgbm
def test_it_refuses_what_it_cannot_use() -> None:
    found = golden(100)
    labels = (found.reward > np.median(found.reward)).astype(int)
    with pytest.raises(UserError, match="was not fitted yet"):
        make_head("lgb-rank").predict(found.X)
    with pytest.raises(UserError, match="was given labels"):
        make_head("lgb-rank").fit(found.X, labels)
    head = make_head("lgb-clf", trees=5).fit(found.X, labels)
    assert spearmanr(head.predict(found.X), labels).statistic > 0.5
    broken = found.X.copy()
    broken[4, 2] = np.inf
    with pytest.raises(UserError, match="embedding of row 4 holds NaN or infinite"):
        head.predict(broken)
