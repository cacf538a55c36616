"""The losses of rewards with their own backbone, against loops over tokens written here."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from decoder.contracts import UserError
from decoder.lm import CausalLM, identify
from rewards.arm_losses import soft_loss
from rewards.backbone_heads import ActionValueHead, ValueHead
from rewards.backbone_losses import (
    cumulative_ce,
    cumulative_mse,
    gains,
    mean_square,
    random_tokens,
    token_weights,
)
from rewards.backbone_texts import Batch
from rewards.distil import (
    Teacher,
    candidates_error,
    delta_error,
    likeliest,
    match_outputs,
    pick_positions,
    plain_error,
    read_branches,
)
from rewards.fit_backbone import Objective, Scorer, penalty
from tests.tiny import tiny_gpt2, tiny_llama

LENGTHS = (5, 1, 3)
WIDTH = max(LENGTHS)
N_OUTPUTS = 2


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return values (B, T, F), labels (B, F) and mask (B, T) of ragged texts, noise on the padding."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(LENGTHS), WIDTH, N_OUTPUTS, generator=generator)
    labels = torch.rand(len(LENGTHS), N_OUTPUTS, generator=generator)
    mask = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]
    return values, labels, mask


def squared(value: float, label: float) -> float:
    return (value - label) ** 2


def cross_entropy(value: float, label: float) -> float:
    p = 1 / (1 + math.exp(-value))
    return -label * math.log(p) - (1 - label) * math.log(1 - p)


@pytest.mark.parametrize(("loss", "error"), [(cumulative_mse, squared), (cumulative_ce, cross_entropy)])
def test_cumulative_loss(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], error: Callable[[float, float], float]
) -> None:
    """Sum over outputs and over tokens weighted 2t / (l(l+1)), mean over texts."""
    values, labels, mask = drawn(0)
    total = 0.0
    for row, n in enumerate(LENGTHS):
        for t in range(1, n + 1):
            for f in range(N_OUTPUTS):
                weight = 2 * t / (n * (n + 1))
                total += weight * error(values[row, t - 1, f].item(), labels[row, f].item())
    assert loss(values, labels, mask).item() == pytest.approx(total / len(LENGTHS), rel=1e-5)


def test_weights_sum_to_one() -> None:
    lengths = torch.arange(1, 301)
    weights = token_weights(torch.arange(300) < lengths[:, None])
    torch.testing.assert_close(weights.sum(1), torch.ones(300))
    assert (weights[:, 1:][weights[:, 1:] > 0] > weights[:, :-1][weights[:, 1:] > 0]).all()
    with pytest.raises(AssertionError, match="without tokens"):
        token_weights(torch.zeros(1, 3, dtype=torch.bool))


@pytest.mark.parametrize("loss", [cumulative_mse, cumulative_ce])
def test_padding_changes_no_loss(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """More padding with large numbers on it gives the same loss and no gradient there."""
    values, labels, mask = drawn(1)
    padded = torch.cat([values, torch.full((len(LENGTHS), 4, N_OUTPUTS), 1e6)], 1).requires_grad_()
    wider = torch.cat([mask, torch.zeros(len(LENGTHS), 4, dtype=torch.bool)], 1)
    found = loss(padded, labels, wider)
    torch.testing.assert_close(found, loss(values, labels, mask))
    found.backward()
    assert padded.grad is not None
    assert (padded.grad[~wider] == 0).all()
    torch.testing.assert_close(mean_square(padded, wider), mean_square(values, mask))


def test_soft_loss_of_the_tap_form() -> None:
    """Cross-entropy to a teacher's P of every token: mean over the tokens of a text, mean over texts."""
    values, targets = drawn(3)[0][..., 0], torch.rand(len(LENGTHS), WIDTH)
    mask, total = drawn(3)[2], 0.0
    for row, n in enumerate(LENGTHS):
        total += sum(cross_entropy(values[row, t].item(), targets[row, t].item()) for t in range(n)) / n
    found = soft_loss(values[mask], torch.tensor(LENGTHS), targets[mask])
    assert found.item() == pytest.approx(total / len(LENGTHS), rel=1e-5)


def test_gains() -> None:
    values, _, _ = drawn(2)
    empty = torch.tensor([[0.5, 1.0]]).expand(len(LENGTHS), -1)
    found = gains(values, empty)
    for row in range(len(LENGTHS)):
        for t in range(WIDTH):
            before = values[row, t - 1] if t else empty[row]
            torch.testing.assert_close(found[row, t], values[row, t] - before)
    torch.testing.assert_close(found.cumsum(1) + empty[:, None], values)


def test_random_tokens_are_uniform() -> None:
    mask = torch.ones(100, 100, dtype=torch.bool)
    ids = random_tokens(mask, 5, torch.Generator().manual_seed(0))
    counts = ids.flatten().bincount(minlength=5)
    assert ids.shape == mask.shape
    assert len(counts) == 5
    assert (counts - 2000).abs().max() < 200


# Scorers on tiny models, and what they say one token at a time.


def batch(seed: int = 0) -> Batch:
    """Return three ragged texts: BOS, then 5, 1 and 3 scored tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 300, (len(LENGTHS), WIDTH + 1), generator=generator)
    mask = torch.arange(WIDTH + 1) <= torch.tensor(LENGTHS)[:, None]
    ids[:, 0] = 0
    return Batch(ids * mask, mask, torch.rand(len(LENGTHS), N_OUTPUTS, generator=generator))


def arm(seed: int = 1, rank: int | None = None) -> Scorer:
    torch.manual_seed(seed)
    return Scorer(tiny_llama(seed=seed), ActionValueHead(32, N_OUTPUTS, rank)).eval()


def rad(seed: int = 2) -> Scorer:
    torch.manual_seed(seed)
    return Scorer(tiny_gpt2(seed=seed), ValueHead(32, N_OUTPUTS)).eval()


@torch.no_grad()
def state_of(scorer: Scorer, ids: list[int]) -> Tensor:
    """Return the backbone's last state after these ids alone, (d,)."""
    output = scorer.backbone(torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[-1][0, -1]


@torch.no_grad()
def value_of(scorer: Scorer, prefix: list[int], token: int) -> Tensor:
    """Return r (F,) of a token after its prefix, from scratch."""
    head = scorer.head
    if isinstance(head, ValueHead):
        return head.linear.weight @ state_of(scorer, [*prefix, token]) + head.linear.bias
    h, e = state_of(scorer, prefix), scorer.backbone.lm_head.weight[token]
    w = head.state if head.vocabulary is None else head.vocabulary.transpose(1, 2) @ head.state
    return head.baseline.weight @ h + torch.stack([(w[f] @ h) @ e for f in range(N_OUTPUTS)])


def tokens(texts: Batch) -> list[tuple[int, int, list[int], int]]:
    """Return (row, t, prefix with BOS, token) of every scored token."""
    return [
        (row, t, texts.ids[row, : t + 1].tolist(), int(texts.ids[row, t + 1]))
        for row, n in enumerate(LENGTHS)
        for t in range(n)
    ]


@pytest.mark.parametrize("make", [arm, rad, lambda: arm(rank=4)], ids=["arm", "rad", "arm of rank 4"])
def test_values_token_by_token(make: Callable[[], Scorer]) -> None:
    """One padded pass gives r of every token as reading each prefix by itself does."""
    scorer, texts = make(), batch()
    values = scorer.values(scorer(texts.ids, texts.mask), texts.ids)
    for row, t, prefix, token in tokens(texts):
        torch.testing.assert_close(values[row, t], value_of(scorer, prefix, token), atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("teacher", [rad(), arm(5)], ids=["rad", "arm"])
def test_plain_distillation(teacher: Scorer) -> None:
    """Mean over real tokens and outputs of (student - teacher) squared; outputs in the student's order."""
    student, texts = arm(), batch()
    error = plain_error(Teacher(teacher, (1, 0)))
    found = error(student, student(texts.ids, texts.mask), texts, torch.Generator())
    terms = []
    for _, _, prefix, token in tokens(texts):
        wanted = value_of(teacher, prefix, token).flip(0)
        terms += (value_of(student, prefix, token) - wanted).square().tolist()
    assert len(terms) == sum(LENGTHS) * N_OUTPUTS
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_delta_distillation() -> None:
    """The student fits what each token changed the teacher's value by, from that of BOS alone."""
    student, teacher, texts = arm(), rad(), batch()
    error = delta_error(Teacher(teacher, (0, 1)))
    found = error(student, student(texts.ids, texts.mask), texts, torch.Generator())
    terms = []
    for _, _, prefix, token in tokens(texts):
        change = value_of(teacher, prefix, token) - value_of(teacher, prefix[:-1], prefix[-1])
        terms += (value_of(student, prefix, token) - change).square().tolist()
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    with pytest.raises(UserError, match=r"--distil delta needs a teacher made by rewards\.train_rad"):
        delta_error(Teacher(arm(), (0,)))


@pytest.mark.parametrize("teacher", [rad(), arm(5)], ids=["rad", "arm"])
def test_candidate_distillation(teacher: Scorer) -> None:
    """The plain loss, and the mean over the generator's k likeliest tokens at the places drawn."""
    student, texts, k, n_places = arm(), batch(), 4, 3
    model = tiny_llama(seed=9)
    lm = CausalLM(model, identify("tiny", model, None))
    taught = Teacher(teacher, (0, 1))
    states = student(texts.ids, texts.mask)
    found = candidates_error(taught, lm, k, n_places)(
        student, states, texts, torch.Generator().manual_seed(3)
    )
    places = pick_positions(texts.scored.sum(1), n_places, torch.Generator().manual_seed(3))
    assert all(place < LENGTHS[row] for row, line in enumerate(places.tolist()) for place in line)
    terms = []
    for row, line in enumerate(places.tolist()):
        for place in line:
            prefix = texts.ids[row, : place + 1].tolist()
            with torch.no_grad():
                best = model(torch.tensor([prefix])).logits[0, -1].topk(k).indices.tolist()
            for token in best:
                difference = value_of(student, prefix, token) - value_of(teacher, prefix, token)
                terms += difference.square().tolist()
    assert len(terms) == len(LENGTHS) * n_places * k * N_OUTPUTS
    plain = plain_error(taught)(student, states, texts, torch.Generator()).item()
    assert found.item() == pytest.approx(plain + sum(terms) / len(terms), rel=1e-4)


def test_branches_see_their_prefix_alone() -> None:
    """What stands on the padding, or after the place of a candidate, changes nothing."""
    scorer, texts = rad(), batch()
    places = torch.tensor([[1, 4], [0, 0], [2, 1]])
    candidate_ids = torch.randint(3, 300, (3, 2, 4), generator=torch.Generator().manual_seed(0))
    found = read_branches(scorer, texts, places, candidate_ids)
    other = torch.where(torch.arange(WIDTH + 1) > places.amax(1, keepdim=True), 77, texts.ids)
    torch.testing.assert_close(
        found, read_branches(scorer, Batch(other, texts.mask, texts.labels), places, candidate_ids)
    )
    torch.testing.assert_close(
        found[2, 1, 3],
        state_of(scorer, [*texts.ids[2, :2].tolist(), int(candidate_ids[2, 1, 3])]),
        atol=3e-5,
        rtol=1e-4,
    )


def test_likeliest_takes_no_more_than_there_are() -> None:
    model = tiny_llama()
    lm, texts = CausalLM(model, identify("tiny", model, None)), batch()
    ids, shares = likeliest(lm, texts, torch.zeros(3, 1, dtype=torch.long), 1000)
    assert ids.shape == shares.shape == (3, 1, 300)
    torch.testing.assert_close(shares.sum(-1), torch.ones(3, 1))


def test_teacher_is_out_of_training() -> None:
    """No dropout in its answers, no gradient into it, whatever it was before."""
    scorer, texts = rad().train(), batch()
    assert scorer.backbone.config.resid_pdrop > 0
    teacher = Teacher(scorer, (0,))
    values, empty = teacher.values(texts)
    torch.testing.assert_close(values, teacher.values(texts)[0])
    assert not values.requires_grad
    assert not any(weight.requires_grad for weight in scorer.parameters())
    assert (values.shape, empty.shape) == ((3, WIDTH, 1), (3, 1))


@pytest.mark.parametrize("rank", [None, 4])
def test_regulariser(rank: int | None) -> None:
    """The mean over real positions and outputs of the squared marginal of the random tokens drawn."""
    scorer, texts = arm(rank=rank), batch()
    states = scorer(texts.ids, texts.mask)
    found = penalty(scorer, states, texts, torch.Generator().manual_seed(4))
    random_ids = random_tokens(texts.scored, 300, torch.Generator().manual_seed(4))
    terms = []
    for row, t, prefix, _ in tokens(texts):
        with torch.no_grad():
            baseline = scorer.head.baseline.weight @ state_of(scorer, prefix)
        marginal = value_of(scorer, prefix, int(random_ids[row, t])) - baseline
        terms += marginal.square().tolist()
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    objective = Objective(lambda *_: torch.tensor(2.0), regularise=0.5)
    loss = objective.loss(scorer, states, texts, torch.Generator().manual_seed(4))
    assert loss.item() == pytest.approx(2 + 0.5 * found.item())


def test_match_outputs() -> None:
    assert match_outputs("t", ("a", "b", "c"), "b", ("c", "a")) == (2, 0)
    assert match_outputs("t", ("a", "b", "c"), "b", ("toxic",)) == (1,)
    with pytest.raises(UserError, match="teacher t has the outputs a, b, the data the label columns a, x"):
        match_outputs("t", ("a", "b"), "a", ("a", "x"))
