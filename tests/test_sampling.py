"""The one formula and the drawing of a token, against slow loops and transformers' own filters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from decoder.contracts import UserError
from decoder.sampling import (
    SamplingConfig,
    add_rewards,
    choose,
    draw_uniforms,
    keep_top_k,
    keep_top_p,
    top_candidates,
)

INF = math.inf
ALMOST_ONE = float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_choose(scores: list[float], config: SamplingConfig, uniform: float) -> int:
    """Return the column drawn from one row, in float64 and with nothing but loops."""
    columns = range(len(scores))
    if not config.do_sample:
        return max(columns, key=lambda column: scores[column])
    scaled = [score / config.temperature for score in scores]
    ranked = sorted(columns, key=lambda column: -scaled[column])
    ranked = ranked[: config.top_k or None]
    weights = {column: math.exp(scaled[column] - max(scaled)) for column in ranked}
    total, kept, mass = sum(weights.values()), [], 0.0
    for column in ranked:
        if mass < config.top_p:
            kept.append(column)
        mass += weights[column] / total
    target, mass = uniform * sum(weights[column] for column in kept), 0.0
    for column in sorted(kept):
        mass += weights[column]
        if mass > target:
            return column
    return max(kept)


def test_the_formula() -> None:
    """z' = z + sum |beta_i| r_i, term by term: a wrong axis, sign or missing reward shows."""
    logits, rewards, betas = random(3, 7), random(3, 7, 2, seed=1), random(3, 2, seed=2, scale=3)
    found = add_rewards(logits, rewards, betas)
    for row in range(3):
        for column in range(7):
            expected = float(logits[row, column])
            for i in range(2):
                expected += abs(float(betas[row, i])) * float(rewards[row, column, i])
            assert float(found[row, column]) == pytest.approx(expected, abs=1e-5)


def test_candidates_are_the_base_models_best() -> None:
    """Candidates come best first from the base logits alone; more than the vocabulary means all of it."""
    logits = random(4, 50)
    ids, values = top_candidates(logits, 5)
    for row in range(4):
        expected = sorted(range(50), key=lambda v: -float(logits[row, v]))[:5]
        assert ids[row].tolist() == expected
        assert torch.equal(values[row], logits[row, expected])
    assert top_candidates(logits, 99)[0].shape == (4, 50)


@pytest.mark.parametrize("size", [64, 1280, 1300, 49_152, 50_257])
@pytest.mark.parametrize("k", [1, 20, 200])
def test_candidates_of_large_vocabularies_are_those_of_topk(size: int, k: int) -> None:
    """Looking at blocks first finds the same, also beside the last whole block and among closed tokens."""
    logits = random(6, size)
    logits[0, : size - 5] = -torch.inf
    logits[1, -1] = 9.0
    logits[2, : size // 2] += 9.0
    ids, values = top_candidates(logits, k)
    assert torch.equal(values, logits.topk(min(k, size)).values)
    assert torch.equal(logits.gather(1, ids), values)
    assert all(len(set(row)) == len(row) for row in ids.tolist())


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.3),
        SamplingConfig(temperature=1.7, top_k=3),
        SamplingConfig(top_p=0.6),
        SamplingConfig(temperature=2.0, top_k=6, top_p=0.8),
        SamplingConfig(do_sample=False, temperature=0.5, top_k=2),
    ],
    ids=str,
)
def test_drawing_is_the_naive_drawing(config: SamplingConfig) -> None:
    """Temperature, top-k, top-p and inversion in that order, against loops over one row at a time."""
    scores = random(400, 9, scale=2)
    uniforms = torch.rand(400, generator=torch.Generator().manual_seed(3))
    expected = [
        naive_choose(row, config, u) for row, u in zip(scores.tolist(), uniforms.tolist(), strict=True)
    ]
    assert choose(scores, config, uniforms).tolist() == expected


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("k", [0, 1, 7, 40, 41])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.93, 1.0])
def test_filters_are_transformers(temperature: float, k: int, p: float) -> None:
    """Our filters keep what transformers' warpers keep, and leave the values as they were."""
    logits = random(16, 40, seed=5, scale=3)
    theirs = TemperatureLogitsWarper(temperature)(None, logits)
    theirs = TopKLogitsWarper(k)(None, theirs) if k else theirs
    theirs = TopPLogitsWarper(p)(None, theirs)
    assert torch.equal(keep_top_p(keep_top_k(logits / temperature, k), p), theirs)


def test_every_column_has_its_share() -> None:
    """Over an even grid of numbers, each column is drawn as often as softmax says, to one draw."""
    scores, n = random(1, 8, seed=6, scale=2), 20_000
    grid = (torch.arange(n) + 0.5) / n
    drawn = choose(scores.expand(n, 8), SamplingConfig(temperature=1.3), grid).bincount(minlength=8)
    expected = n * (scores[0].double() / 1.3).softmax(-1)
    assert (drawn - expected).abs().max() <= 1.5


def test_random_numbers_draw_from_softmax() -> None:
    """Chi-square of real draws against softmax: the numbers and their inversion together."""
    scores, n = random(1, 6, seed=7), 6000
    uniforms = draw_uniforms(0, [((1, 2, 3), sample) for sample in range(n // 50)], 50).flatten()
    drawn = choose(scores.expand(n, 6), SamplingConfig(), uniforms).bincount(minlength=6)
    expected = n * scores[0].softmax(-1)
    chi_square = float(((drawn - expected) ** 2 / expected).sum())
    assert chi_square < 20.5  # 5 degrees of freedom, one in a thousand


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-20, ALMOST_ONE, 1.0])
@pytest.mark.parametrize("width", [4, 1000, 50_000])
def test_a_closed_column_is_never_drawn(uniform: float, width: int) -> None:
    """Columns at minus infinity have no share, also at the two ends where rounding could let them in."""
    scores = random(8, width, seed=8, scale=4)
    scores[:, 0] = scores[:, -1] = -INF
    scores[0, : width // 2] = -INF
    scores[1, width // 2 :] = -INF
    scores[2, :-2] = -INF
    drawn = choose(scores, SamplingConfig(), torch.full((8,), uniform))
    assert scores.gather(1, drawn[:, None]).isfinite().all()


@settings(deadline=None)
@given(
    row=st.lists(st.one_of(st.just(-INF), st.floats(-80, 80, width=32)), min_size=1, max_size=12).filter(
        lambda row: max(row) > -INF
    ),
    uniform=st.floats(0, 1, width=32),
    k=st.integers(0, 12),
    p=st.floats(0.01, 1),
)
def test_what_is_drawn_is_open(row: list[float], uniform: float, k: int, p: float) -> None:
    """Whatever the scores and filters: the column drawn is open and among the k best."""
    config = SamplingConfig(top_k=k, top_p=p)
    column = int(choose(torch.tensor([row]), config, torch.tensor([uniform]))[0])
    assert row[column] > -INF
    assert not k or sum(score > row[column] for score in row) < k


def test_greedy_is_argmax_whatever_the_number() -> None:
    """Greedy takes the best score and reads neither temperature nor random numbers."""
    scores = random(32, 9)
    config = SamplingConfig(do_sample=False, temperature=9.0, top_p=0.1)
    for uniform in (0.0, ALMOST_ONE):
        assert torch.equal(choose(scores, config, torch.full((32,), uniform)), scores.argmax(-1))


def test_random_numbers_belong_to_the_row_not_to_the_batch() -> None:
    """A row's numbers are the same alone, in any batch, in any place, and begin the same at any length."""
    streams = [((5, 6), 0), ((7,), 3), ((5, 6), 1)]
    together = draw_uniforms(11, streams, 6)
    alone = torch.cat([draw_uniforms(11, [stream], 6) for stream in streams])
    assert torch.equal(together, alone)
    assert torch.equal(draw_uniforms(11, streams[::-1], 6), together.flip(0))
    assert torch.equal(draw_uniforms(11, streams, 4), together[:, :4])


def test_random_numbers_differ_where_anything_differs() -> None:
    """Another seed, sample or prompt gives other numbers; also prompts that are equal when run together."""
    streams = [((5, 6), 0), ((5, 6), 1), ((5, 7), 0), ((6, 5), 0), ((5,), 0), ((5, 6, 0), 0), ((0, 5, 6), 0)]
    rows = torch.cat([draw_uniforms(seed, streams, 8) for seed in (0, 1, -1, 2**62)])
    assert len({tuple(row) for row in rows.tolist()}) == 4 * len(streams)


def test_random_numbers_are_uniform() -> None:
    """All lie in [0, 1) and fill twenty bins evenly (chi-square); a negative seed is as good as any."""
    numbers = draw_uniforms(-5, [((1, 2), sample) for sample in range(200)], 100)
    assert numbers.dtype == torch.float32
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = (numbers.flatten() * 20).long().bincount(minlength=20)
    assert float(((counts - 1000.0) ** 2 / 1000).sum()) < 43.8  # 19 degrees of freedom, one in a thousand


finite = st.floats(-10, 10, width=32)


@settings(deadline=None)
@given(data=st.data(), shift=finite, beta=st.floats(-4, 4, width=32))
def test_a_constant_added_to_a_reward_changes_no_probability(
    data: st.DataObject, shift: float, beta: float
) -> None:
    """Only differences between candidates steer: a reward is defined up to a constant a row."""
    row = st.lists(finite, min_size=5, max_size=5)
    logits, rewards = torch.tensor([data.draw(row)]), torch.tensor([data.draw(row)])[..., None]
    before, after = (
        add_rewards(logits, r, torch.tensor([[beta]])).softmax(-1) for r in (rewards, rewards + shift)
    )
    assert torch.allclose(before, after, atol=1e-4)


@settings(deadline=None)
@given(order=st.permutations(range(6)), k=st.integers(0, 9), p=st.floats(0.1, 1), seed=st.integers(0, 99))
def test_the_order_of_rows_changes_nothing(order: list[int], k: int, p: float, seed: int) -> None:
    """Each row is drawn by itself: permuting the rows permutes the draws."""
    logits, rewards, betas = (
        random(6, 9, seed=seed),
        random(6, 9, 2, seed=seed + 1),
        random(6, 2, seed=seed + 2),
    )
    uniforms = torch.rand(6, generator=torch.Generator().manual_seed(seed))
    config = SamplingConfig(top_k=k, top_p=p)
    drawn = choose(add_rewards(logits, rewards, betas), config, uniforms)
    again = choose(add_rewards(logits[order], rewards[order], betas[order]), config, uniforms[order])
    assert torch.equal(again, drawn[order])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", INF),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("reward_top_k", 0),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: Any) -> None:
    """Each field names itself and the value seen, before anything is decoded."""
    with pytest.raises(UserError, match=f"{name} is {value}"):
        SamplingConfig(**{name: value})
