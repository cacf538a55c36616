"""Ensembles of heads: the rules against their formulas, members, and saved and loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.base import clone

from decoder.contracts import UserError
from rewards.head_ensemble import HeadEnsemble, combine_members
from rewards.heads import RULES, load_head, make_head
from tests.head_data import Golden, golden

SMALL: dict[str, Any] = {"widths": (16, 8), "epochs": 2, "lr": 0.05}


@pytest.fixture(scope="module")
def found() -> Golden:
    return golden(300, flips=0.2)


@pytest.fixture(scope="module")
def fitted(found: Golden) -> HeadEnsemble:
    return HeadEnsemble(make_head("bt-mlp", **SMALL), n_members=3).fit(found.X, found.pairs)


def test_the_rules_are_their_formulas() -> None:
    scores = [[1.0, -2.0, 0.5], [3.0, 0.0, 0.5]]
    expected = {
        "mean": [2, -1, 0.5],
        "min": [1, -2, 0.5],
        "mean-var": [2 - 0.3 * 1, -1 - 0.3 * 1, 0.5],
        "mean-std": [2 - 0.3 * 1, -1 - 0.3 * 1, 0.5],
    }
    for rule in RULES:
        assert combine_members(scores, rule, 0.3).tolist() == pytest.approx(expected[rule])
    wide = [[0.0], [4.0]]  # variance 4, deviation 2
    assert combine_members(wide, "mean-var", 0.5).tolist() == [0]
    assert combine_members(wide, "mean-std", 0.5).tolist() == [1]


@pytest.mark.parametrize("rule", RULES)
def test_identical_members_agree_by_every_rule(rule: str, found: Golden, fitted: HeadEnsemble) -> None:
    one = fitted.member_scores(found.X)[0]
    np.testing.assert_allclose(combine_members([one] * 4, rule), one, atol=1e-6)
    alone = HeadEnsemble(make_head("bt-mlp", **SMALL), n_members=1, rule=rule).fit(found.X, found.pairs)
    np.testing.assert_allclose(alone.predict(found.X), one, atol=1e-5)


def test_members_share_a_zero_and_a_unit(found: Golden, fitted: HeadEnsemble) -> None:
    rows = np.unique(found.pairs)
    scores = fitted.member_scores(found.X[rows])
    assert np.abs(scores.mean(1)).max() < 0.1
    assert np.abs(scores.std(1) - 1).max() < 0.1
    assert len({tuple(row) for row in scores.tolist()}) == 3


def test_a_shifted_member_does_not_become_the_minimum(found: Golden, fitted: HeadEnsemble) -> None:
    shifted = clone(fitted).fit(found.X, found.pairs)
    before = shifted.set_params(rule="min").predict(found.X)
    shifted.members_[0].mlp_.linears[-1].bias.sub_(100)
    shifted._standardise(found.X, found.pairs, None)
    np.testing.assert_allclose(shifted.predict(found.X), before, atol=1e-3)


@pytest.mark.parametrize("groups", [None, np.arange(300) // 3])
def test_bootstrap_members_draw_other_pairs(groups: Any, found: Golden) -> None:
    ensemble = HeadEnsemble(make_head("bt-mlp", **SMALL), n_members=3, bootstrap=True)
    targets, owners = ensemble._targets(found.pairs, groups)
    known = {tuple(pair): number for number, pair in enumerate(found.pairs.tolist())}
    for pairs, owner in zip(targets, owners, strict=True):
        numbers = [known[tuple(pair)] for pair in pairs.tolist()]
        assert len(numbers) == 300
        assert 0.5 < len(set(numbers)) / 300 < 0.75  # 1 - 1/e of them
        assert np.array_equal(owner, numbers if groups is None else np.array(numbers) // 3)
    assert targets[0].tolist() != targets[1].tolist()
    ensemble.fit(found.X, found.pairs, groups)
    assert spearmanr(ensemble.predict(found.X), found.reward).statistic > 0.7


def test_trees_make_an_ensemble_too(found: Golden) -> None:
    pytest.importorskip("lightgbm")
    ensemble = HeadEnsemble(make_head("lgb-rank", trees=30), n_members=2, bootstrap=True, rule="mean-std")
    assert spearmanr(ensemble.fit(found.X, found.pairs).predict(found.X), found.reward).statistic > 0.5


def test_saved_and_loaded(found: Golden, fitted: HeadEnsemble, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path, {"name": "smollm2"}, {"flip_rate": 0.2})
    loaded = load_head(tmp_path, 12, {"name": "smollm2"})
    assert np.array_equal(loaded.predict(found.X), fitted.predict(found.X))
    assert loaded.set_params(rule="min").predict(found.X).max() < fitted.predict(found.X).max()
    with pytest.raises(UserError, match="dimension 12, these have 576"):
        load_head(tmp_path, 576)
    with pytest.raises(UserError, match="'smollm2' in the head, 'gemma' here"):
        load_head(tmp_path, 12, {"name": "gemma"})


def test_scikit_learn_can_clone(found: Golden, fitted: HeadEnsemble) -> None:
    again = clone(fitted).set_params(head__seed=4, rule="mean-var", kappa=0.1)
    assert again.get_params()["head__seed"] == 4
    assert (again.rule, again.kappa, again.n_members) == ("mean-var", 0.1, 3)
    assert fitted.get_params()["head__seed"] == 0  # the clone has a head of its own
    with pytest.raises(UserError, match="was not fitted yet"):
        again.predict(found.X)
    same = clone(fitted).fit(found.X, found.pairs)
    assert np.array_equal(same.predict(found.X), fitted.predict(found.X))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "maen"}, "unknown rule 'maen': did you mean mean"),
        ({"kappa": -1.0}, "kappa -1.0 must be"),
        ({"kappa": math.nan}, "kappa nan must be"),
        ({"n_members": 0}, "n_members 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        HeadEnsemble(**options)
    assert said in str(error.value)


def test_what_else_is_refused(found: Golden) -> None:
    with pytest.raises(UserError, match="unknown option 'rul': did you mean rule"):
        HeadEnsemble().set_params(rul="min")
    with pytest.raises(UserError, match="unknown option 'lrr'"):
        HeadEnsemble().set_params(head__lrr=1.0)
    with pytest.raises(UserError, match="member 1 gave row 0 the score nan"):
        combine_members([[0.0], [math.nan]], "min")
    with pytest.raises(UserError, match="one member or more"):
        combine_members([], "min")
    with pytest.raises(UserError, match="were given labels"):
        HeadEnsemble(bootstrap=True).fit(found.X, np.arange(100) % 2)
