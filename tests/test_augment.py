"""Augmented pairs: exact counts, the rows they name, and heads that train on them as on any others."""

from __future__ import annotations

from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.augment import Augmented, augment
from rewards.augment_methods import COMBINATIONS, METHODS, Synthesiser, make_synthesiser
from rewards.head_ensemble import HeadEnsemble
from rewards.heads import make_head
from rewards.mlp_head import MlpHead
from rewards.pair_rows import PairRows, hold_out, pair_rows, pairs_of
from tests.head_data import golden
from tests.test_lens_vae import factors

N, D = 120, 24
EVERY = factors(N, D)
SEEDS, STOP = hold_out(EVERY)
SMALL = {"steps": 20, "latent": 4, "hidden": 8}
QUICK: dict[str, dict[str, Any]] = {
    name: SMALL if "steps" in get_type_hints(method.kind) else {} for name, method in METHODS.items()
}
QUICK["lens-consistent"] = {
    "inner_options": "steps=20 latent=4 hidden=8", "head": "bt-linear", "members": 2, "folds": 2,
}  # fmt: skip
MAKING = [name for name in METHODS if name not in ("none", "pairing")]


def made(method: str = "perturbation", ratio: float = 4, **chosen: Any) -> Augmented:
    return augment(method, SEEDS, STOP, ratio, **{**QUICK[method], **chosen})


def read(found: Augmented, rows: np.ndarray[Any, Any]) -> Tensor:
    source = found.embeddings
    return torch.as_tensor(source(rows) if callable(source) else source[rows])  # type: ignore[index]


def weights(head: MlpHead) -> list[Tensor]:
    assert head.mlp_ is not None
    return list(head.mlp_.state_dict().values())


WIDTHS: dict[str, tuple[int, ...]] = {"bt-mlp": (32, 32), "clf-mlp": (32,), "bt-linear": ()}


@pytest.mark.parametrize("name", WIDTHS)
def test_ratio_one_is_the_head_without_augmentation(name: str) -> None:
    """Bit for bit, synthesis off; a head finds the pairs to stop on by itself, and they are the same."""
    data = golden(n=400)
    prompts = np.repeat(np.arange(200), 2)
    seeds, stop = hold_out(pair_rows(data.X, data.pairs, prompts), seed=3)
    found = augment("none", seeds, stop, 1, seed=5)
    alone = make_head(name, steps=60, widths=WIDTHS[name], seed=3).fit(data.X, data.pairs, prompts)
    augmented = make_head(name, steps=60, widths=WIDTHS[name], seed=3).fit(found.embeddings, found.targets)
    assert found.plan.ratio == 1
    for one, other in zip(weights(alone), weights(augmented), strict=True):
        assert torch.equal(one, other)
    assert alone.predict(data.X).tobytes() == augmented.predict(data.X).tobytes()


@pytest.mark.parametrize("name", MAKING)
def test_ratio_one_of_any_method_is_the_original_pairs(name: str) -> None:
    found = augment(name, SEEDS, STOP, 1)
    assert found.pairs is SEEDS.pairs
    assert found.embeddings is SEEDS.embeddings
    assert found.synthesiser is None


@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("ratio", [1.5, 4, 8])
def test_pair_counts_are_exact(combine: str, ratio: float) -> None:
    found = made(ratio=ratio, combine=combine)
    n = len(SEEDS)
    assert len(found.pairs) == round(ratio * n) == found.plan.n_pairs
    assert found.plan.ratio == ratio
    assert (found.pairs[:n] == SEEDS.pairs).all()
    assert len({(a, b) for a, b in found.pairs.tolist()}) == len(found.pairs)
    assert (found.targets.held_out == STOP.pairs).all()
    sources, prompts = found.plan.sources, SEEDS.prompts
    assert prompts is not None
    counts = np.bincount(sources, minlength=n)
    assert counts.sum() == round((ratio - 1) * n)
    assert counts.max() - counts.min() <= 1
    place = {row: i for i, row in enumerate(SEEDS.pairs[:, 0])} | {
        row: i for i, row in enumerate(SEEDS.pairs[:, 1])
    }
    prompt = [
        [prompts[place[row] if row < found.n_rows else sources[(row - found.n_rows) // 2]] for row in pair]
        for pair in found.pairs[n:].tolist()
    ]
    same = np.array([one == other for one, other in prompt])
    assert {"within": same.all(), "own": same.all(), "cross": not same.any()}.get(combine, not same.all())
    real = found.pairs < found.n_rows
    rejected = np.where(real, ~np.isin(found.pairs, SEEDS.pairs[:, 0]), (found.pairs - found.n_rows) % 2)
    assert (rejected == [0, 1]).all()  # a chosen row beside a rejected one
    if combine == "own":
        assert (found.pairs[n:, 0] + 1 == found.pairs[n:, 1]).all()
        assert (found.pairs[n:] >= found.n_rows).all()


def test_pairing_makes_nothing() -> None:
    found = made("pairing", 8)
    assert found.plan.n_synthetic == 0
    assert found.embeddings is SEEDS.embeddings
    assert found.pairs.max() < found.n_rows
    assert len(found.pairs) == 8 * len(SEEDS)


def test_copies_are_apart_from_the_ratio() -> None:
    found = made(ratio=3, copies=7)
    assert found.plan.n_synthetic == 7 * len(SEEDS)
    assert len(found.pairs) == 3 * len(SEEDS)


@pytest.mark.parametrize("name", MAKING)
def test_rows_are_what_was_drawn(name: str) -> None:
    """Original rows as they are; synthetic ones from `n_rows` on, in the order of the draws."""
    found = made(name, 3)
    again = make_synthesiser(name, **QUICK[name])
    assert again is not None
    assert isinstance(again, Synthesiser)
    again.fit(SEEDS, STOP, 0)
    drawn = again.draw(found.plan.sources, np.random.default_rng((0, 24)))
    rows = found.n_rows + np.arange(2 * found.plan.n_synthetic)
    assert torch.allclose(read(found, rows), drawn.flatten(0, 1))
    mixed = np.array([rows[3], 7, rows[0], 2])
    assert torch.equal(read(found, mixed)[1::2], torch.as_tensor(EVERY.embeddings[[7, 2]]))  # type: ignore[index]
    assert torch.equal(read(found, mixed)[::2], read(found, rows)[[3, 0]])
    other = made(name, 3, seed=1)
    assert not torch.allclose(read(other, rows), read(found, rows))


def test_long_draws_in_blocks() -> None:
    found = made(ratio=25)
    n = 2 * found.plan.n_synthetic
    assert n > 2 * 2 * 1024
    originals = torch.as_tensor(SEEDS.read(found.plan.sources)).flatten(0, 1)
    change = read(found, found.n_rows + np.arange(n)) - originals
    scale = torch.as_tensor(SEEDS.read(np.arange(len(SEEDS)))).flatten(0, 1).std(0, correction=0)
    assert torch.allclose((change / scale).std(0), torch.tensor(0.1), rtol=0.1)
    assert change.abs().min(1).values.gt(0).float().mean() > 0.99


def test_gaussians_have_the_mean_and_covariance_of_their_side() -> None:
    originals = SEEDS.read(np.arange(len(SEEDS))).numpy()
    for diagonal in (False, True):
        found = make_synthesiser("gaussian", diagonal=diagonal)
        assert found is not None
        found.fit(SEEDS, STOP, 0)
        drawn = found.draw(np.zeros(20_000, dtype=np.int64), np.random.default_rng(0)).numpy()
        for side in (0, 1):
            assert np.allclose(drawn[:, side].mean(0), originals[:, side].mean(0), atol=0.3)
            expected = np.cov(originals[:, side].T)
            expected = np.diag(np.diag(expected)) if diagonal else expected
            assert np.abs(np.cov(drawn[:, side].T) - expected).max() < 0.05 * np.abs(expected).max()


def test_mixup_stands_between_two_pairs() -> None:
    found = make_synthesiser("mixup", alpha=1.0)
    assert found is not None
    found.fit(SEEDS, STOP, 0)
    sources = np.arange(len(SEEDS))
    originals = SEEDS.read(sources).flatten(1)
    for drawn, source in zip(found.draw(sources, np.random.default_rng(0)).flatten(1), sources, strict=True):
        ends, own = np.delete(originals.numpy(), source, 0), originals[source].numpy()
        along, step = ends - own, drawn.numpy() - own
        share = (along @ step) / (along**2).sum(1)
        off = np.abs(own + share[:, None] * along - drawn.numpy()).max(1)
        assert off.min() < 1e-3  # on the line to one of the others
        assert 0 <= share[off.argmin()] <= 0.5


class Spy:
    """Notes what it is shown, and makes copies."""

    def fit(self, pairs: PairRows, held_out: PairRows, seed: int) -> Spy:
        self.pairs, self.held_out = pairs, held_out
        return self

    def draw(self, sources: np.ndarray[Any, Any], rng: np.random.Generator) -> Tensor:
        return self.pairs.read(sources)

    def figures(self) -> dict[str, Any]:
        return {}

    def warnings(self) -> list[str]:
        return []


def test_no_prompt_to_stop_on_is_learnt_from() -> None:
    """Two pairs a prompt: held out together, never a source, and in no pair."""
    prompts = np.repeat([f"p{i}" for i in range(N // 2)], 2)
    seeds, stop = hold_out(pair_rows(EVERY.embeddings, EVERY.pairs, prompts), share=0.2, seed=2)
    assert len(seeds) + len(stop) == N
    assert seeds.prompts is not None
    assert stop.prompts is not None
    assert not set(seeds.prompts) & set(stop.prompts)
    spy = Spy()
    found = augment(spy, seeds, stop, 3)
    assert spy.pairs is seeds
    assert not np.isin(found.pairs, stop.pairs).any()
    assert (read(found, np.arange(found.n_rows, found.n_rows + 2)) == seeds.read(np.array([0]))[0]).all()


def test_a_row_is_never_beside_itself() -> None:
    """Rows that win one pair and lose another meet themselves in the product; those pairs are left out."""
    pairs = np.array([[i, i + 1] for i in range(9)])
    seeds = pair_rows(EVERY.embeddings, pairs, None)
    stop = pair_rows(EVERY.embeddings, np.array([[20, 21]]), None)
    most = 81 - 8  # of 9 chosen and 9 rejected rows, 8 are in both
    found = augment("pairing", seeds, stop, most / 9)
    assert len(found.pairs) == most
    assert (found.pairs[:, 0] != found.pairs[:, 1]).all()
    with pytest.raises(UserError, match="of 72 combinations 8 are a row beside itself"):
        augment("pairing", seeds, stop, (most + 1) / 9)
    with pytest.raises(UserError, match="only 72 under 'cartesian'"):
        augment("pairing", seeds, stop, 10)


def test_fewer_pairs_are_taken_with_their_prompts() -> None:
    some = SEEDS.take(np.array([4, 2]))
    assert SEEDS.prompts is not None
    assert some.prompts is not None
    assert some.prompts.tolist() == SEEDS.prompts[[4, 2]].tolist()
    assert torch.equal(some.read(np.arange(2)), SEEDS.read(np.array([4, 2])))
    found = augment("pairing", some, STOP, 2)
    assert len(found.pairs) == 4
    assert set(found.pairs.ravel()) == set(some.pairs.ravel())


@pytest.mark.parametrize("bootstrap", [False, True])
def test_every_head_learns_from_them(bootstrap: bool) -> None:
    found = made("lens-residual", 4)
    head = HeadEnsemble(make_head("bt-mlp", widths=(16,), steps=100), n_members=2, bootstrap=bootstrap)
    scores = head.fit(found.embeddings, found.targets).predict(EVERY.embeddings)  # type: ignore[arg-type]
    assert (scores[:N] > scores[N:]).mean() > 0.6
    pytest.importorskip("lightgbm")
    trees = make_head("lgb-clf", trees=20).fit(found.embeddings, found.targets)
    scores = trees.predict(EVERY.embeddings)  # type: ignore[arg-type]
    assert (scores[:N] > scores[N:]).mean() > 0.6


def test_steps_do_not_grow_with_the_pairs() -> None:
    few, many = made("none", 1), made("pairing", 30)
    steps = []
    for found in (few, many):
        head = MlpHead(widths=(8,), steps=200, epochs=4, patience=99).fit(found.embeddings, found.targets)
        assert head.fit_ is not None
        steps.append(head.fit_.steps)
    assert steps[0] == steps[1] == 216  # the measurement after 200, of one every 24


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lens", 0.5), "ratio 0.5 must be 1 or more"),
        (("lens", float("nan")), "ratio nan"),
        (("none", 2), "method none adds no pairs"),
        (("lans", 2), "did you mean lens"),
        (("pairing", 200), "lower the ratio"),
    ],
)
def test_what_is_refused(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        augment(arguments[0], SEEDS, STOP, arguments[1])


def test_options_and_combinations_that_are_refused() -> None:
    for chosen, said in (
        ({"gama": 1}, "did you mean gamma"),
        ({"combine": "outer"}, "no combination is called 'outer'"),
        ({"copies": 0}, "copies 0 must be above 0"),
    ):
        with pytest.raises(UserError, match=said):
            augment("lens", SEEDS, STOP, 2, **chosen)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="makes no embeddings"):
        augment("pairing", SEEDS, STOP, 2, copies=3)
    with pytest.raises(UserError, match="made already"):
        augment(Spy(), SEEDS, STOP, 2, gamma=3)
    with pytest.raises(UserError, match="it has none"):
        augment("none", SEEDS, STOP, 1, gamma=3)
    two = pair_rows(EVERY.embeddings, SEEDS.pairs, None)
    with pytest.raises(UserError, match="these have two"):
        augment("pairing", two, STOP, 2, combine="within")


def test_embeddings_that_cannot_be_used() -> None:
    chosen = np.ones((20, 3))
    with pytest.raises(UserError, match=r"shapes \(20, 3\) and \(20, 4\)"):
        pairs_of(chosen, np.ones((20, 4)), None)
    with pytest.raises(UserError, match="give one a pair"):
        pairs_of(chosen, chosen, np.arange(3))
    with pytest.raises(UserError, match="row 4 holds NaN"):
        hold_out(pairs_of(np.where(np.arange(20)[:, None] == 4, np.nan, chosen), chosen, None))
    with pytest.raises(UserError, match=r"shape \(N, 2\)"):
        pair_rows(chosen, np.arange(4), None)
