"""Draws filtered by reward heads: who judges what, which draw is kept, and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment_methods import METHODS, make_synthesiser
from rewards.augment_options import ConsistentOptions
from rewards.lens_consistent import Consistent, chosen, folds
from rewards.mlp_head import MlpHead
from rewards.pair_rows import PairRows, pair_rows, pairs_of
from tests.test_lens_vae import factors

N = 120
PAIRS, HELD_OUT = factors(N), factors(40, seed=1)
QUICK = ConsistentOptions(inner="perturbation", head="bt-linear", folds=2, members=2)
MIXED = np.array([5, 0, 5, 59, 17, 0, 5])


def consistent(pairs: PairRows = PAIRS, **options: Any) -> Consistent:
    return Consistent(replace(QUICK, **options)).fit(pairs, HELD_OUT, 0)


@pytest.fixture(scope="module")
def plain() -> Consistent:
    return consistent(inner_options="variance=4")


def draw(found: Consistent, seed: int = 0) -> Tensor:
    return found.draw(MIXED, np.random.default_rng(seed))


def by_prompt(n_prompts: int, each: int) -> PairRows:
    """Coin tosses, several pairs a prompt; whoever knows the order of a pair has seen its prompt."""
    rng = np.random.default_rng(3)
    found = rng.standard_normal((2, n_prompts, 1, 60)) + 0.01 * rng.standard_normal((2, n_prompts, each, 60))
    return pairs_of(*found.reshape(2, -1, 60), np.repeat(np.arange(n_prompts), each))


def test_folds_are_of_whole_prompts_and_even() -> None:
    pairs = by_prompt(30, 4)
    found = folds(pairs, 3, seed=0)
    assert np.bincount(found).tolist() == [40, 40, 40]
    assert (found.reshape(30, 4) == found.reshape(30, 4)[:, :1]).all()
    assert (folds(pairs, 3, seed=0) == found).all()
    assert (folds(pairs, 3, seed=1) != found).any()
    with pytest.raises(UserError, match="folds 31 of 30 prompts"):
        folds(pairs, 31, seed=0)
    rows = np.arange(20).reshape(10, 2)
    assert np.bincount(folds(pair_rows(np.zeros((20, 3)), rows, None), 2, 0)).tolist() == [5, 5]


def test_which_draw_is_kept_by_hand() -> None:
    sure = np.array([[-1, 2, 5], [-3, -2, -4], [1, 0, 9], [0, -1, -1]], dtype=np.float32)
    assert chosen(sure, "confident").tolist() == [1, 1, 0, 0]  # the first above 0, or the nearest to it
    assert chosen(sure, "best").tolist() == [2, 1, 2, 0]


def test_judges_judge_only_prompts_they_did_not_learn_from() -> None:
    """Of coin tosses they know by heart the pairs they saw, and nothing of the others."""
    pairs = by_prompt(40, 3)
    accuracy = {}
    for n in (1, 2):
        found = Consistent(replace(QUICK, folds=n)).fit(pairs, pairs, 0)
        assert len(found.judges_) == n
        accuracy[n] = found.figures()["accuracy"]
    assert accuracy[1] > 0.9
    assert 0.2 < accuracy[2] < 0.8


def test_margins_are_the_judges_own(plain: Consistent) -> None:
    drawn = PAIRS.read(MIXED) + 1
    found = plain.margins(drawn, MIXED)
    assert found.shape == (2, 7)
    for i, source in enumerate(MIXED):
        judges = plain.judges_[plain._folds[source]]
        scores = judges.member_scores(drawn[i].numpy())  # (members, 2)
        assert found[:, i] == pytest.approx(scores[:, 0] - scores[:, 1], abs=1e-4)


@pytest.mark.parametrize("keep", ["confident", "best"])
def test_what_is_kept_is_what_the_judges_say(keep: str) -> None:
    """Drawn again from the inner method with the same stream, and chosen one pair at a time."""
    found = consistent(inner_options="variance=4", keep=keep, kappa=0.5)
    inner = make_synthesiser("perturbation", variance=4.0)
    assert inner is not None
    inner.fit(PAIRS, HELD_OUT, 0)
    drawn = inner.draw(np.repeat(MIXED, 4), np.random.default_rng(2)).view(7, 4, 2, 24)
    kept = draw(found, 2)
    for i, source in enumerate(MIXED):
        margins = found.margins(drawn[i], np.full(4, source))
        sure = margins.mean(0) - 0.5 * margins.std(0)
        places = np.flatnonzero(sure > 0)
        place = places[0] if keep == "confident" and len(places) else sure.argmax()
        assert torch.equal(kept[i], drawn[i, place])


def test_filtering_leaves_fewer_pairs_that_are_the_wrong_way_round(plain: Consistent) -> None:
    """The first factor is what the chosen texts have more of; the mapping tells it from embeddings."""
    mapping = np.random.default_rng(99).standard_normal((4, 24))
    sources = np.repeat(np.arange(N), 5)

    def right(drawn: Tensor) -> float:
        first = (drawn[:, 0] - drawn[:, 1]).numpy() @ np.linalg.pinv(mapping)[:, 0]
        return float((first > 0).mean())

    raw = make_synthesiser("perturbation", variance=4.0)
    assert raw is not None
    raw.fit(PAIRS, HELD_OUT, 0)
    kept = plain.draw(sources, np.random.default_rng(0))
    assert right(kept) > right(raw.draw(sources, np.random.default_rng(0))) + 0.05


def test_one_draw_of_each_is_the_inner_method() -> None:
    found = consistent(oversample=1)
    inner = make_synthesiser("perturbation")
    assert inner is not None
    expected = inner.fit(PAIRS, HELD_OUT, 0).draw(MIXED, np.random.default_rng(4))
    assert torch.equal(draw(found, 4), expected)


MAKING = [name for name, method in METHODS.items() if method.made_by and name != "lens-consistent"]


@pytest.mark.parametrize("inner", MAKING)
def test_it_wraps_any_method(inner: str) -> None:
    said = "steps=10 latent=3 hidden=4" if "steps" in get_type_hints(METHODS[inner].kind) else ""
    found = consistent(inner=inner, inner_options=said, oversample=2)
    assert draw(found).shape == (7, 2, 24)
    own = {f"inner_{name}" for name in found.inner_.figures()}  # type: ignore[union-attr]
    assert set(found.figures()) == {"accuracy", "agreed", "kept"} | own


def test_figures_and_warnings() -> None:
    calm, wild = consistent(), consistent(inner_options="variance=25", oversample=1)
    assert calm.figures()["agreed"] > wild.figures()["agreed"] + 0.1
    assert calm.figures()["kept"] >= calm.figures()["agreed"]
    assert not calm.warnings()
    assert (
        "raise oversample" in consistent(inner_options="variance=25", oversample=1, kappa=9.0).warnings()[0]
    )
    tossed = pairs_of(*np.random.default_rng(0).standard_normal((2, N, 24)), np.arange(N))
    blind = Consistent(QUICK).fit(tossed, tossed.take(np.arange(20)), 0)
    blind.figures_ = replace(blind.figures_, accuracy=0.5)  # type: ignore[type-var]
    assert "next to chance" in blind.warnings()[0]
    collapsed = consistent(inner="lens", inner_options="steps=100 beta=500")
    assert any("posterior collapse" in said for said in collapsed.warnings())


def test_judges_stop_on_the_pairs_held_out() -> None:
    """Held out the wrong way round, nothing is better than the start, and the judges end early."""
    turned = pair_rows(HELD_OUT.embeddings, HELD_OUT.pairs[:, ::-1], HELD_OUT.prompts)
    steps = []
    for stop in (HELD_OUT, turned):
        found = Consistent(replace(QUICK, folds=1)).fit(PAIRS, stop, 0)
        head = found.judges_[0].members_[0]
        assert isinstance(head, MlpHead)
        assert head.fit_ is not None
        steps.append(head.fit_.steps)
    assert steps[1] < steps[0]


def test_draws_repeat_and_differ(plain: Consistent) -> None:
    assert torch.equal(draw(plain, 1), draw(plain, 1))
    assert not torch.equal(draw(plain, 1), draw(plain, 2))


def test_long_draws_in_parts(plain: Consistent) -> None:
    sources = np.resize(np.arange(N), 600)
    rng = np.random.default_rng(0)
    parts = [plain.draw(sources[a : a + 256], rng) for a in (0, 256, 512)]
    assert torch.equal(torch.cat(parts), plain.draw(sources, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inner": "lens-residul"}, "did you mean lens-residual"),
        ({"inner": "pairing"}, "inner 'pairing' makes no embeddings"),
        ({"inner_options": "gama=1"}, "did you mean gamma"),
        ({"inner_options": "variance=-1"}, "variance -1"),
        ({"head": "bt-mpl"}, "did you mean bt-mlp"),
        ({"keep": "all"}, "keep 'all'"),
        ({"folds": 0}, "folds 0"),
        ({"oversample": 0}, "oversample 0"),
        ({"kappa": -1}, "kappa -1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ConsistentOptions(**options)


def test_what_was_not_fitted_cannot_draw() -> None:
    with pytest.raises(UserError, match="synthesiser was not fitted"):
        draw(Consistent(QUICK))
