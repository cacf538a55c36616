"""MLPs trained together: losses and gradients against numpy, members against lone fits, early stopping."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr

from rewards import head_inputs
from rewards.fit_stacked import _Stack, fit_stack
from rewards.head_inputs import RowReader, split_targets
from rewards.heads import MlpOptions
from rewards.paper_loop import PaperLoop, fit_paper_loop
from rewards.stacked_mlp import StackedMLP, bradley_terry, calibrated_loss, classification
from tests.head_data import Golden, golden

QUICK: dict[str, Any] = {"widths": (16, 8), "epochs": 4, "patience": 2, "lr": 0.05}


def stack_of(n_members: int = 2, widths: tuple[int, ...] = (6, 5), dimension: int = 4) -> StackedMLP:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(n_members, dimension, generator=generator)
    scale = torch.rand(n_members, dimension, generator=generator) + 0.5
    stack = StackedMLP(mean, scale, widths, range(n_members))
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.normal_(generator=generator)
    return stack


def numpy_forward(stack: StackedMLP, s: int, x: Any) -> tuple[Any, list[Any]]:
    """Return scores (B,) of one member and the input of every layer, in float64."""
    hidden = (x - stack.mean[s].double().numpy()) / stack.scale[s].double().numpy()
    inputs = [hidden]
    for weight, bias in list(zip(stack.weights, stack.biases, strict=True))[:-1]:
        hidden = np.maximum(
            hidden @ weight[s].detach().double().numpy() + bias[s].detach().double().numpy(), 0
        )
        inputs.append(hidden)
    last, bias = stack.weights[-1][s], stack.biases[-1][s]
    return (hidden @ last.detach().double().numpy() + bias.detach().double().numpy())[:, 0], inputs


def numpy_gradients(stack: StackedMLP, s: int, inputs: list[Any], d_scores: Any) -> list[Any]:
    """Return the gradient of each weight by the chain rule written out, first layer first."""
    upstream, gradients = d_scores[:, None], []
    for layer in reversed(range(len(inputs))):
        gradients.append(inputs[layer].T @ upstream)
        upstream = (upstream @ stack.weights[layer][s].detach().double().numpy().T) * (inputs[layer] > 0)
    return gradients[::-1]


@pytest.mark.parametrize("widths", [(), (6,), (6, 5)])
def test_bradley_terry_and_its_gradient_are_those_of_numpy(widths: tuple[int, ...]) -> None:
    stack = stack_of(widths=widths)
    x = torch.randn(2, 14, 4, generator=torch.Generator().manual_seed(1))  # 7 pairs, winners first
    scores = stack(x)
    losses = bradley_terry(scores)
    losses.sum().backward()
    for s in range(2):
        expected, inputs = numpy_forward(stack, s, x[s].double().numpy())
        margin = expected[:7] - expected[7:]
        p_wrong = 1 / (1 + np.exp(margin))
        assert scores[s].tolist() == pytest.approx(expected, abs=1e-4)
        assert losses[s].item() == pytest.approx(-np.log(1 - p_wrong).mean(), rel=1e-5)
        gradients = numpy_gradients(stack, s, inputs, np.concatenate([-p_wrong, p_wrong]) / 7)
        for weight, gradient in zip(stack.weights, gradients, strict=True):
            assert weight.grad is not None
            np.testing.assert_allclose(weight.grad[s].numpy(), gradient, rtol=1e-4, atol=1e-5)


def test_classification_is_the_mean_over_responses() -> None:
    scores, labels = (
        torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]]),
        torch.tensor([[1.0, 0, 0], [0, 1, 1]]),
    )
    p = 1 / (1 + np.exp(-scores.double().numpy()))
    expected = -np.where(labels.numpy() == 1, np.log(p), np.log(1 - p)).mean(1)
    assert classification(scores, labels).tolist() == pytest.approx(expected, rel=1e-5)


def test_calibrated_loss_is_the_lowest_over_scales() -> None:
    margins = torch.from_numpy(np.random.default_rng(0).normal(0.4, 1, 300))
    typical = float(margins.square().mean().sqrt())

    def loss_of(log_factor: float) -> float:
        m, a = margins.numpy() / typical, math.exp(log_factor)
        both = np.logaddexp(0, -a) + np.logaddexp(0, a)
        return float((np.logaddexp(0, -a * m).sum() + both) / 300)

    best = minimize_scalar(loss_of, bounds=(-5, 5), method="bounded")
    loss, factor = calibrated_loss(margins)
    assert loss == pytest.approx(best.fun, abs=1e-4)
    assert factor * typical == pytest.approx(math.exp(best.x), rel=0.05)
    assert calibrated_loss(margins * 1000)[0] == pytest.approx(loss, rel=1e-9)  # a ranking has no scale


def test_calibrated_loss_at_its_ends() -> None:
    ordered = torch.full((50,), 2.0)
    loss, factor = calibrated_loss(ordered)
    assert 0 < loss < 0.2
    assert math.isfinite(factor)
    assert calibrated_loss(-ordered)[0] > math.log(2)
    assert calibrated_loss(torch.zeros(5)) == (pytest.approx(math.log(2)), 1.0)
    assert math.isnan(calibrated_loss(torch.tensor([1.0, math.nan]))[0])


def test_a_member_alone_scores_as_in_the_stack() -> None:
    stack = stack_of(3)
    x = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = stack(x)
        for s in range(3):
            torch.testing.assert_close(stack.member(s)(x[s]), together[s], atol=1e-5, rtol=1e-5)
        stack.keep(torch.tensor([2, 0]))
        assert torch.equal(stack(x[[2, 0]]), together[[2, 0]])


def material(n_members: int) -> list[Golden]:
    """Return pairs of other sizes, labels and rows on the embeddings of the first."""
    first = golden()
    rng = np.random.default_rng(5)
    others = []
    for size in rng.integers(200, 1500, n_members):
        pairs = first.pairs[rng.permutation(1500)[:size]]
        flipped = rng.random(size) < 0.2
        others.append(np.where(flipped[:, None], pairs[:, ::-1], pairs))
    return [Golden(first.X, first.reward, pairs, first.test) for pairs in others]


@pytest.mark.parametrize(
    "options", [{"loss": "bt"}, {"loss": "clf"}, {"precision": "bfloat16"}, {"widths": (7, 3)}]
)
def test_a_head_does_not_depend_on_its_neighbours(options: dict[str, Any]) -> None:
    chosen = MlpOptions(**{**QUICK, **options})
    members = material(4)
    reader = RowReader(members[0].X)
    splits = [split_targets(each.pairs, None, 0.1, seed) for seed, each in enumerate(members)]
    together = fit_stack(reader, splits, range(4), chosen)
    assert len({fit.steps for fit in together}) > 1  # some left the stack before others
    for seed in (1, 3):
        alone = fit_stack(reader, [splits[seed]], [seed], chosen)[0]
        assert (alone.step, alone.steps) == (together[seed].step, together[seed].steps)
        for name, tensor in alone.mlp.state_dict().items():
            torch.testing.assert_close(tensor, together[seed].mlp.state_dict()[name], atol=1e-5, rtol=0)


def test_the_best_weights_are_kept() -> None:
    """Longer training must not change what was found, and it must be as good as it is said to be."""
    found = golden(300, flips=0.3)
    split = split_targets(found.pairs, None, 0.3, 0)
    reader = RowReader(found.X)
    settings = {**QUICK, "epochs": 20}
    short, long = (
        fit_stack(reader, [split], [0], MlpOptions(**{**settings, "patience": patience}))[0]
        for patience in (2, 1000)
    )
    assert short.step < short.steps < long.steps  # it did go past its best
    assert short.step <= long.step
    if short.step == long.step:
        assert all(map(torch.equal, short.mlp.state_dict().values(), long.mlp.state_dict().values()))
    for fit in (short, long):
        winners, losers = fit.mlp(reader(split.held_out)).T
        loss, factor = calibrated_loss(winners - losers)
        assert loss == pytest.approx(fit.loss, rel=1e-4)
        assert factor == pytest.approx(1, rel=0.1)  # sigma(s1 - s2) needs no other scale


def test_what_is_kept_is_an_average_of_weights() -> None:
    """Of those after every fourth step: the n-th moves it by 2 / (n + 1), later by 4 / 40."""
    found = golden(200)
    stack = _Stack(RowReader(found.X), [split_targets(found.pairs, None, 0.1, 0)], [0], MlpOptions(**QUICK))
    expected = torch.zeros_like(stack.model.weights[0][0])
    for step in range(1, 49):
        stack.step()
        if step % 4 == 0:
            expected.lerp_(stack.model.weights[0][0].detach(), max(0.1, 2 / (step / 4 + 1)))
    stack.measure()  # due at 48 steps: 400 over twice the 4 epochs, as a multiple of 4
    best = stack.members[0].best
    assert best is not None
    torch.testing.assert_close(best.mlp.linears[0].weight.T, expected)


def test_rows_read_at_each_step_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = golden(200)
    split = split_targets(found.pairs, None, 0.1, 0)
    kept, read = RowReader(found.X), RowReader(lambda rows: torch.from_numpy(found.X)[rows])
    kept.keep(split.all_rows)
    monkeypatch.setattr(head_inputs, "KEPT_BYTES", 0)
    read.keep(split.all_rows)
    assert read._kept is None
    one, other = (fit_stack(reader, [split], [0], MlpOptions(**QUICK))[0] for reader in (kept, read))
    assert all(map(torch.equal, one.mlp.state_dict().values(), other.mlp.state_dict().values()))


def test_the_paper_loop_learns_and_stops() -> None:
    found = golden(600)
    X = torch.from_numpy((found.X - found.X.mean(0)) / found.X.std(0))  # the loop itself does not
    pairs = torch.from_numpy(found.pairs.copy())
    seen: list[int] = []
    mlp, epochs = fit_paper_loop(
        X, pairs, constants=PaperLoop(batch_pairs=100), on_epoch=lambda _: seen.append(1)
    )
    assert len(seen) == epochs <= 30
    with torch.no_grad():
        scores = mlp(X[found.test :])[:, 0]
    assert spearmanr(scores, found.reward[found.test :]).statistic > 0.9
    noise = torch.where(
        torch.rand(600, 1, generator=torch.Generator().manual_seed(0)) < 0.5, pairs, pairs.flip(1)
    )
    assert fit_paper_loop(X, noise, constants=PaperLoop(batch_pairs=100, lr=0.01))[1] < 30
