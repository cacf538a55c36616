"""Many MLPs of one shape as one: weights (S, in, out), and every layer one batched product for all of them.

What a member computes does not depend on its neighbours: products of a batch are made one by one from the
same numbers, and nothing here sums over members. Measured on a CPU: the same to the last bit where widths are
multiples of 16, to 1e-7 elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from rewards.embedding_head import EmbeddingMLP

FIRST_GAIN = 0.5 * math.sqrt(2)  # half of what He et al. 2015 ask for: nearer to linear at the start
LAST_GAIN = 0.01  # scores start near 0
SCALES = 2.0 ** torch.linspace(-6, 6, 97, dtype=torch.float64)


class StackedMLP(nn.Module):
    """S MLPs with D inputs, the same hidden ReLU widths and one output each.

    weights: a (S, in, out) float32 tensor a layer. biases: (S, 1, out). mean, scale: (S, 1, D), by which
    each member standardises its inputs.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, widths: Sequence[int], seeds: Sequence[int]) -> None:
        """Make members that standardise by mean and scale (S, D) and draw weights by their own seeds."""
        super().__init__()
        self.register_buffer("mean", mean[:, None])
        self.register_buffer("scale", scale[:, None])
        drawn = [_draw(mean.shape[1], widths, seed) for seed in seeds]
        self.weights = nn.ParameterList(torch.stack(layer) for layer in zip(*drawn, strict=True))
        self.biases = nn.ParameterList(torch.zeros(len(seeds), 1, weight.shape[2]) for weight in self.weights)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return scores (S, B) of embeddings (S, B, D), each member's own."""
        hidden = (embeddings - self.mean).div_(self.scale)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu_()
        # Not a product: with one column it would be made another way for one member than for several.
        last = hidden.float() * self.weights[-1].transpose(1, 2)  # (S, B, in)
        scores: Tensor = last.sum(-1) + self.biases[-1][:, 0]
        return scores

    def keep(self, kept: Tensor) -> None:
        """Keep the members (S',) int64, in that order; gradients are dropped."""
        for parameter in self.parameters():
            parameter.data, parameter.grad = parameter.data[kept], None
        self.mean, self.scale = self.mean[kept], self.scale[kept]

    def member(self, number: int, tensors: Sequence[Tensor] | None = None) -> EmbeddingMLP:
        """Return one member as an MLP of its own, with `tensors` in place of `list(self.parameters())`."""
        chosen = [tensor.detach()[number] for tensor in tensors or list(self.parameters())]
        weights, biases = chosen[: len(self.weights)], chosen[len(self.weights) :]
        mlp = EmbeddingMLP(self.mean.shape[2], tuple(weight.shape[1] for weight in weights[:-1]))
        named = {"mean": self.mean[number, 0], "scale": self.scale[number, 0]}
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            named |= {f"linears.{layer}.weight": weight.T, f"linears.{layer}.bias": bias[0]}
        mlp.load_state_dict(named)
        return mlp.eval().requires_grad_(False)


def bradley_terry(scores: Tensor) -> Tensor:
    """Return (S,): the mean of -log sigma(s1 - s2) over pairs; scores (S, 2 b), winners first.

    Source: Bradley and Terry 1952, by the numerically stable softplus(s2 - s1).
    """
    winners, losers = scores.chunk(2, dim=1)
    return softplus(losers - winners).mean(1)


def classification(scores: Tensor, labels: Tensor) -> Tensor:
    """Return (S,): the mean binary cross-entropy of sigma(s) over responses; scores and labels (S, B)."""
    return binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(1)


def calibrated_loss(margins: Tensor) -> tuple[float, float]:
    """Return the lowest mean of -log sigma(a m) over factors a > 0, and that a; margins s1 - s2 (n,).

    A ranking does not depend on the scale of its scores, and an MLP that learns on grows overconfident long
    before its ranking suffers, so the plain loss would stop it too early. One more pair that is won and
    lost by a typical margin keeps a finite where every pair is in order.
    """
    m = margins.double()
    typical = m.square().mean().sqrt()
    if not bool(typical > 0):  # NaN too, which the caller looks for
        return float(typical + math.log(2)), 1.0
    pairs = softplus(-SCALES[:, None] * (m / typical)).sum(1)
    losses = (pairs + softplus(SCALES) + softplus(-SCALES)) / len(m)
    best = int(losses.argmin())
    return float(losses[best]), float(SCALES[best] / typical)


def _draw(n_inputs: int, widths: Sequence[int], seed: int) -> list[Tensor]:
    """Return a member's weights (in, out), layer by layer."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [n_inputs, *widths, 1]
    layers = []
    for layer, (wide, out) in enumerate(pairwise(sizes)):
        gain = LAST_GAIN if layer == len(widths) else FIRST_GAIN if layer == 0 else math.sqrt(2)
        layers.append(torch.randn(wide, out, generator=generator) * (gain * wide**-0.5))
    return layers
