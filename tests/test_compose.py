"""Rewards made of others: each rule against its formula, its opposite against arithmetic on probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decoder.contracts import Reading, TokenReward, UserError
from decoder.decoder import Decoder
from decoder.lm import CausalLM
from decoder.models import LoadedModel
from decoder.replay import left_pad, score_path
from rewards.arm import TapArm
from rewards.compose import Composition, ensemble, maximum, minimum, product, weighted_sum
from rewards.compose_rules import Declares, Sum
from tests.heads import Favours, as_lm, tiny_arm

TEXTS = ["The kettle sang", "A", "She thought the film was bad, but"]
PROMPTS = [[5, 17, 200], [9], [33, 44, 55, 66]]
CANDIDATES = torch.tensor([[3, 70, 9, 250], [8, 8, 1, 2], [100, 4, 30, 299]])


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def lm(tiny_model: PreTrainedModel) -> CausalLM:
    return as_lm(tiny_model)


@pytest.fixture(scope="module")
def decoder(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Decoder:
    return Decoder(LoadedModel(as_lm(tiny_model, tokenizer), tokenizer))


@dataclass(frozen=True)
class Counting:
    """The token's id over 100, plus the sum of the row's ids so far; a session that must be kept in step."""

    factor: float
    layers: tuple[int, ...] = ()
    digest: str = "counting"

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> CountingSession:
        return CountingSession(self.factor, (prompt_ids * prompt_mask).sum(1))

    def opposite(self) -> Counting:
        return Counting(-self.factor)


class CountingSession:
    def __init__(self, factor: float, totals: Tensor) -> None:
        self.factor, self.totals = factor, totals

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        return self.factor * (candidate_ids / 100 + self.totals[:, None])

    def advance(self, token_ids: Tensor) -> None:
        self.totals = self.totals + token_ids

    def select(self, rows: Tensor) -> None:
        self.totals = self.totals[rows]


def walk(lm: CausalLM, reward: TokenReward) -> Tensor:
    """Return r (2, 3, K) of two steps, between them rows swapped and repeated, and tokens drawn."""
    ids, mask = left_pad(PROMPTS)
    model, session = lm.start(reward.layers), reward.start(ids, mask)
    first = session.score(CANDIDATES, model.prefill(ids, mask))
    rows, drawn = torch.tensor([2, 0, 0]), torch.tensor([11, 12, 13])
    model.select(rows)
    session.select(rows)
    session.advance(drawn)
    return torch.stack([first, session.score(CANDIDATES, model.feed(drawn))])


def arms(lm: CausalLM, output: str = "log_probability") -> tuple[TapArm, TapArm, TapArm]:
    """Return three ARMs on different taps and with different summaries."""
    return (
        tiny_arm(lm, (1, 3), seed=0, output=output),
        tiny_arm(lm, (2,), seed=1, output=output, summary="none"),
        tiny_arm(lm, (4,), seed=2, output=output, summary="generated"),
    )


RULES: list[tuple[Callable[..., Composition], Callable[[list[float]], float]]] = [
    (lambda a, b, c: a * 2 + b + 0.25 * c, lambda r: 2 * r[0] + r[1] + 0.25 * r[2]),
    (minimum, min),
    (maximum, max),
    (product, sum),
    (lambda *all_: ensemble(*all_, kappa=0.0), lambda r: sum(r) / 3),
    (
        lambda *all_: ensemble(*all_, kappa=1.5),
        lambda r: sum(r) / 3 - 1.5 * math.sqrt(sum((x - sum(r) / 3) ** 2 for x in r) / 3),
    ),
]


@pytest.mark.parametrize(("compose", "formula"), RULES)
def test_each_rule_is_its_formula(
    lm: CausalLM, compose: Callable[..., Composition], formula: Callable[[list[float]], float]
) -> None:
    """Element by element on what the members say alone, over two steps with rows swapped and repeated."""
    members = arms(lm)
    reward = compose(*members)
    found, apart = walk(lm, reward), [walk(lm, each).flatten().tolist() for each in members]
    expected = [formula(list(values)) for values in zip(*apart, strict=True)]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert found.dtype == torch.float32
    assert found.shape == (2, 3, 4)
    assert reward.layers == (1, 2, 3, 4)
    assert isinstance(reward, TokenReward)


def test_sessions_of_members_are_kept_in_step(lm: CausalLM) -> None:
    """Members with a state of their own hear of every token and every change of rows."""
    a, b = Counting(1.0), Counting(-3.0)
    assert torch.equal(walk(lm, weighted_sum((a, 2.0), (b, 1.0))), 2 * walk(lm, a) + walk(lm, b))
    assert torch.equal(walk(lm, minimum(a, b)), torch.minimum(walk(lm, a), walk(lm, b)))


def test_a_sum_steers_as_its_members_do(decoder: Decoder) -> None:
    """`a * 2 + b` at beta 1.5 is a at beta 3 beside b at beta 1.5, and negated it is both negated."""
    a, b, _ = arms(decoder.lm)
    options: dict[str, Any] = {"max_new_tokens": 6, "num_return_sequences": 2}
    for sign in (1, -1):
        together = decoder.generate(TEXTS, reward=a * 2 + b, beta=1.5 * sign, **options)
        apart = decoder.generate(TEXTS, reward=[a, b], beta=[3.0 * sign, 1.5 * sign], **options)
        for one, two in zip(together, apart, strict=True):
            for first, second in zip(one.samples, two.samples, strict=True):
                assert first.token_ids == second.token_ids
                assert first.reward == pytest.approx(second.reward, rel=1e-4)
    plain = decoder.generate(TEXTS, top_k=20, **options)
    assert plain[0].samples[0].token_ids != together[0].samples[0].token_ids


def test_a_path_scored_again_is_the_path(decoder: Decoder) -> None:
    """A composition, nested, is replayed as it was decoded: it is a reward like any other."""
    a, b, c = arms(decoder.lm)
    reward = ensemble(minimum(a, b), c, product(a, c).opposite(), kappa=0.5)
    done = decoder.generate(TEXTS, reward=reward, beta=2.0, max_new_tokens=5)
    samples = [generation.samples[0] for generation in done]
    prompts = [decoder.tokenizer(text).input_ids for text in TEXTS]
    again = score_path(decoder.lm, reward, prompts, [list(sample.token_ids) for sample in samples])
    for sample, values in zip(samples, again, strict=True):
        assert values == pytest.approx(sample.token_rewards["Composition"], abs=1e-4)


# Opposites.


def chances(lm: CausalLM, rewards: tuple[TapArm, ...]) -> list[Tensor]:
    """Return P (2, 3, K) float64 of log P rewards."""
    return [walk(lm, each).double().exp() for each in rewards]


def test_opposites_of_log_probabilities(lm: CausalLM) -> None:
    """log(1 - P) of the composed P, where P is one: minimum, maximum and product, and twice is never."""
    members = arms(lm)
    p = torch.stack(chances(lm, members))
    composed = {minimum: p.amin(0), maximum: p.amax(0), product: p.prod(0)}
    for compose, chance in composed.items():
        reward = compose(*members)
        assert reward.output == "log_probability"
        assert isinstance(reward, Declares)
        clear = chance < 0.999  # nearer to 1, the float64 reference itself has lost the digits
        assert clear.sum() > 12
        found = walk(lm, reward.opposite()).double()
        torch.testing.assert_close(found[clear], (1 - chance).log()[clear], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(walk(lm, reward.opposite().opposite()), walk(lm, reward))


def test_opposites_of_probabilities(lm: CausalLM) -> None:
    """1 - P of the composed P; a product takes the logarithm, with its floor."""
    members = arms(lm, "probability")
    p = torch.stack([walk(lm, each) for each in members])
    torch.testing.assert_close(walk(lm, minimum(*members).opposite()), 1 - p.amin(0))
    torch.testing.assert_close(walk(lm, maximum(*members).opposite()), 1 - p.amax(0))
    assert minimum(*members).output == "probability"
    raised = p.clamp(min=0.2)
    assert (raised != p).any()
    torch.testing.assert_close(walk(lm, product(*members, floor=0.2)), raised.log().sum(0))
    torch.testing.assert_close(
        walk(lm, product(*members, floor=0.2).opposite()), (1 - raised.prod(0)).log(), rtol=1e-4, atol=1e-5
    )
    mixed = product(members[0], arms(lm)[1], floor=0.2)
    torch.testing.assert_close(walk(lm, mixed), raised[0].log() + walk(lm, arms(lm)[1]))


def test_the_opposite_of_certainty_is_finite_and_not_flat() -> None:
    """log(1 - P) where P is all but 1: the digits of log P are kept, and P = 1 itself gives no infinity."""
    rule = product(Sure(), Sure()).opposite().rule
    log_p = torch.tensor([[[-1e-10, -1e-10], [-1e-6, -2e-6], [0.0, 0.0], [-90.0, -1.0]]])
    found = rule.reduce(log_p)[0].tolist()
    assert found[:2] == pytest.approx([math.log(2e-10), math.log(3e-6)], rel=1e-5)
    assert math.isfinite(found[2])
    assert found[2] < -80
    assert found[3] == pytest.approx(0.0, abs=1e-7)


class Sure(Favours):
    """A reward that says what its numbers are."""

    output = "log_probability"

    def __init__(self) -> None:
        super().__init__((1,))


def test_opposites_of_sums_and_ensembles(lm: CausalLM) -> None:
    """The same weights, and the same scepticism, over the members' opposites."""
    a, b, c = arms(lm)
    opposite = [walk(lm, each.opposite()) for each in (a, b, c)]
    torch.testing.assert_close(walk(lm, (a * 2 + b).opposite()), 2 * opposite[0] + opposite[1])
    stacked = torch.stack(opposite)
    expected = stacked.mean(0) - 2 * stacked.std(0, correction=0)
    torch.testing.assert_close(walk(lm, ensemble(a, b, c, kappa=2.0).opposite()), expected)


def test_what_has_no_opposite(lm: CausalLM) -> None:
    """The minimum of numbers that are no probabilities: asking less of a sum means nothing."""
    a, b, _ = arms(lm)
    for reward in (minimum(Favours((1,)), Favours((2,))), maximum(a + b, a * 2)):
        with pytest.raises(UserError, match="has no opposite: its rewards are neither P nor log P"):
            reward.opposite()


# Operators.


def test_sums_are_flat_and_an_object_runs_once(lm: CausalLM) -> None:
    """However they are bracketed, sums are one sum; the weights of one and the same object add up."""
    a, b, c = arms(lm)
    for reward in ((a * 2 + b) * 3 + (c + a), 6 * a + (3 * b + (a + c)), a + (b * 6 + (c + a * 6) * 2) * 0.5):
        assert isinstance(reward.rule, Sum)
        found = dict(zip(map(id, reward.members), reward.rule.weights, strict=True))
        assert found == {id(a): 7.0, id(b): 3.0, id(c): 1.0}
    inside = minimum(a, b) + c
    assert [type(each) for each in inside.members] == [Composition, TapArm]


def test_a_negative_weight_asks_for_the_opposite(lm: CausalLM) -> None:
    """As a negative beta does: log P(not attribute), not minus log P(attribute)."""
    a, b, _ = arms(lm)
    torch.testing.assert_close(walk(lm, a * -2), 2 * walk(lm, a.opposite()))
    torch.testing.assert_close(
        walk(lm, (a + 2 * b) * -1), walk(lm, a.opposite()) + 2 * walk(lm, b.opposite())
    )
    assert not torch.allclose(walk(lm, a * -2), -2 * walk(lm, a))
    assert torch.equal(walk(lm, a * 0 + b), walk(lm, b))


def test_rewards_without_operators_join_in(lm: CausalLM) -> None:
    """A reward of somebody else's needs no operators where one of ours stands beside it."""
    theirs, (ours, _, _) = Favours((70, 8)), arms(lm)
    expected = walk(lm, theirs) + walk(lm, ours)
    torch.testing.assert_close(walk(lm, theirs + ours), expected)
    torch.testing.assert_close(walk(lm, ours + theirs), expected)


@pytest.mark.parametrize("other", [1, "positive", None])
def test_what_is_no_reward_cannot_be_added(lm: CausalLM, other: Any) -> None:
    with pytest.raises(TypeError):
        arms(lm)[0] + other
    with pytest.raises(TypeError):
        other + arms(lm)[0]


@pytest.mark.parametrize("weight", ["2", None, True, [1.0]])
def test_what_is_no_number_cannot_weigh(lm: CausalLM, weight: Any) -> None:
    with pytest.raises(TypeError):
        arms(lm)[0] * weight


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda a, p: a * math.nan, "weight nan of TapArm: give a finite number"),
        (lambda a, p: a * 1e300 * 1e300, "weight inf of TapArm"),
        (lambda a, p: weighted_sum(), "a sum of no rewards"),
        (lambda a, p: minimum(a), "minimum was given 1 rewards: give at least two"),
        (lambda a, p: ensemble(), "ensemble was given 0 rewards"),
        (lambda a, p: minimum(a, "positive"), "minimum was given 'positive': give token rewards"),
        (lambda a, p: minimum(a, p), r"several forms \(log_probability, probability\)"),
        (lambda a, p: maximum(a, Favours((1,))), r"several forms \(log_probability, None\)"),
        (lambda a, p: ensemble(a, p), "several forms"),
        (lambda a, p: product(a, Favours((1,))), "Favours does not declare whether it gives P or log P"),
        (lambda a, p: product(a, a + a), "Composition does not declare"),
        (lambda a, p: product(a, p, floor=0.0), "floor is 0.0"),
        (lambda a, p: product(a, p, floor=1.0), "floor is 1.0"),
        (lambda a, p: ensemble(a, a, kappa=-1.0), "kappa is -1.0"),
        (lambda a, p: ensemble(a, a, kappa=math.nan), "kappa is nan"),
    ],
)
def test_what_cannot_be_composed(lm: CausalLM, make: Callable[..., Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make(arms(lm)[0], arms(lm, "probability")[0])
    assert "\n" not in str(caught.value)


def test_digests_tell_compositions_apart(lm: CausalLM) -> None:
    """Members, weights, operation, parameters and each member's direction: a run may not be resumed with
    any of them changed."""
    a, b, c = arms(lm)
    p, q, _ = arms(lm, "probability")
    made = [
        a * 2 + b, a * 2.0000001 + b, a + b * 2, a * 2 + c, minimum(a, b), maximum(a, b), minimum(a, c),
        product(a, b), product(a, b).opposite(), product(p, q), product(p, q, floor=0.01), ensemble(a, b),
        ensemble(a, b, kappa=0.5), ensemble(a, b, c), minimum(a, b) + c, minimum(a + c, b + c),
        minimum(a.opposite(), b), minimum(a, b.opposite()), a * -2 + b, (a * 2 + b).opposite(),
    ]  # fmt: skip
    digests = [reward.digest for reward in made]
    assert len(set(digests)) == len(digests)
    assert (a * 2 + b).digest == "sum(2.0*random-0, 1.0*random-1)"
