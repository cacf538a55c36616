"""The losses of probes against loops written from the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoder.contracts import UserError
from rewards.elhsr_losses import ALPHA, LOSSES, dpo, good_bad_pairs, infonca, loss

Row = tuple[float, float, int]  # score, label, group


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_group(rows: list[Row]) -> list[list[tuple[float, float]]]:
    return [[(r, y) for r, y, g in rows if g == group] for group in {g for _, _, g in rows}]


def wanted(group: list[tuple[float, float]]) -> list[float]:
    """softmax(label / alpha)."""
    powers = [math.exp((y - max(y for _, y in group)) / ALPHA) for _, y in group]
    return [power / sum(powers) for power in powers]


def plain_ce(rows: list[Row]) -> float:
    terms = [-y * math.log(sigmoid(r)) - (1 - y) * math.log(sigmoid(-r)) for r, y, _ in rows]
    return sum(terms) / len(terms)


def plain_hinge(rows: list[Row]) -> float:
    terms = [max(0.0, 1 - (1 if y >= 0.5 else -1) * r) for r, y, _ in rows]
    return sum(terms) / len(terms)


def plain_dpo(rows: list[Row]) -> float:
    terms = [
        -math.log(sigmoid(good - bad))
        for group in by_group(rows)
        for good, y_good in group
        for bad, y_bad in group
        if y_good >= 0.5 > y_bad
    ]
    return sum(terms) / len(terms) if terms else 0.0


def plain_infonca(rows: list[Row]) -> float:
    total = 0.0
    for group in by_group(rows):
        normaliser = math.log(sum(math.exp(r) for r, _ in group))
        total -= sum(w * (r - normaliser) for w, (r, _) in zip(wanted(group), group, strict=True))
    return total / len(by_group(rows))


def plain_nca(rows: list[Row]) -> float:
    total = 0.0
    for group in by_group(rows):
        for w, (r, _) in zip(wanted(group), group, strict=True):
            total -= w * math.log(sigmoid(r)) + math.log(sigmoid(-r)) / len(group)
    return total / len(by_group(rows))


PLAIN: dict[str, Callable[[list[Row]], float]] = {
    "ce": plain_ce,
    "hinge": plain_hinge,
    "dpo": plain_dpo,
    "infonca": plain_infonca,
    "nca": plain_nca,
}
ROWS = st.lists(
    st.tuples(st.floats(-6, 6), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.sampled_from([0, 1, 5, 2**40])),
    min_size=1,
    max_size=24,
)


def tensors(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    scores, labels, groups = zip(*rows, strict=True)
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(labels), torch.tensor(groups)


def mixed() -> tuple[Tensor, Tensor, Tensor]:
    """Groups of 1 to 6 in disorder; group 2 has one class only."""
    generator = torch.Generator().manual_seed(3)
    groups = torch.repeat_interleave(torch.arange(5), torch.tensor([6, 2, 3, 1, 4]))
    groups = groups[torch.randperm(16, generator=generator)]
    labels = torch.randint(0, 2, (16,), generator=generator).float()
    labels[groups == 2] = 1.0
    return torch.randn(16, generator=generator) * 2, labels, groups


def test_every_loss_has_a_reference() -> None:
    assert set(PLAIN) == set(LOSSES)


@pytest.mark.parametrize("name", PLAIN)
@given(rows=ROWS)
@settings(deadline=None, max_examples=60)
def test_losses_are_the_formulas(name: str, rows: list[Row]) -> None:
    assert float(loss(name)(*tensors(rows))) == pytest.approx(PLAIN[name](rows), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_formula(name: str) -> None:
    scores, labels, groups = mixed()
    scores = scores.double().requires_grad_()
    loss(name)(scores, labels, groups).backward()

    def value(shifted: Tensor) -> float:
        return PLAIN[name](list(zip(shifted.tolist(), labels.tolist(), groups.tolist(), strict=True)))

    for i in range(len(scores)):
        step = torch.zeros_like(scores)
        step[i] = 1e-5
        slope = (value(scores.detach() + step) - value(scores.detach() - step)) / 2e-5
        assert scores.grad is not None
        assert float(scores.grad[i]) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e3, 1e4])
def test_far_scores_stay_finite(name: str, size: float) -> None:
    scores, labels, groups = mixed()
    scores = (scores * size).requires_grad_()
    found = loss(name)(scores, labels, groups)
    found.backward()
    assert scores.grad is not None
    assert bool(found.isfinite())
    assert bool(scores.grad.isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
def test_a_constant_matters_to_the_losses_of_single_scores_alone(name: str) -> None:
    scores, labels, groups = mixed()
    before, after = loss(name)(scores, labels, groups), loss(name)(scores + 3.0, labels, groups)
    assert (abs(float(after - before)) < 1e-5) == (name in ("dpo", "infonca"))


def test_only_a_constant_to_every_score_is_free() -> None:
    """One prompt's scores may move against another's, as nothing compares them."""
    scores, labels, groups = mixed()
    moved = scores + groups.float()
    for within in (dpo, infonca):
        torch.testing.assert_close(within(moved, labels, groups), within(scores, labels, groups))


@pytest.mark.parametrize("name", LOSSES)
def test_order_does_not_matter(name: str) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(9))
    scores, labels, groups = mixed()
    torch.testing.assert_close(
        loss(name)(scores[order], labels[order], groups[order]), loss(name)(scores, labels, groups)
    )


def test_pairs() -> None:
    """Every good with every bad one of its own group, and nothing else."""
    _, labels, groups = mixed()
    found = set(zip(*(each.tolist() for each in good_bad_pairs(labels, groups)), strict=True))
    expected = {
        (i, j)
        for i in range(16)
        for j in range(16)
        if groups[i] == groups[j] and labels[i] == 1 and labels[j] == 0
    }
    assert found == expected
    assert len(good_bad_pairs(labels, groups)[0]) == len(expected) > 8


def test_prompts_of_one_class_give_no_pairs() -> None:
    scores, labels, groups = mixed()
    kept = groups != 2
    torch.testing.assert_close(dpo(scores[kept], labels[kept], groups[kept]), dpo(scores, labels, groups))
    scores = scores.requires_grad_()
    nothing = dpo(scores, torch.ones(16), groups)
    nothing.backward()
    assert nothing.item() == 0.0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_unknown_losses_are_refused() -> None:
    with pytest.raises(UserError, match="no loss 'mse': choose one of ce, hinge, dpo, infonca, nca"):
        loss("mse")
