"""The losses of a reward with its own backbone: labels, a teacher's values, random tokens. Pure functions.

B texts of at most T scored tokens, right-padded; mask (B, T) is True on real tokens; values (B, T, F) are
r after each of them, one an output. Padding changes no loss.

Sources: RAD (arXiv 2310.09520) for the cumulative losses; "On the Low-Rank Parametrization of Reward Models
for Controlled Language Generation" (arXiv 2407.04615, eqs. 10 and 11) for distillation and the regulariser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

LossName = Literal["ce", "mse"]
LabelLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def token_weights(mask: Tensor) -> Tensor:
    """Return 2t / (l(l+1)) for t = 1..l of every text, (B, T) float32; they sum to one over a text."""
    lengths = mask.sum(1, keepdim=True)
    assert bool((lengths > 0).all()), "a text without tokens has no weights"
    t = mask.cumsum(1) * mask
    return t * (2.0 / (lengths * (lengths + 1)))


def cumulative_mse(values: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return the squared error to labels (B, F): weighted over tokens, sum of outputs, mean of texts."""
    return _cumulative((values - labels[:, None]).square(), mask)


def cumulative_ce(values: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return the same of the cross-entropy of labels (B, F) in [0, 1]; values are log-odds."""
    targets = labels[:, None].expand_as(values)
    return _cumulative(binary_cross_entropy_with_logits(values, targets, reduction="none"), mask)


LABEL_LOSSES: dict[LossName, LabelLoss] = {"ce": cumulative_ce, "mse": cumulative_mse}


def _cumulative(errors: Tensor, mask: Tensor) -> Tensor:
    return (errors.sum(-1).masked_fill(~mask, 0.0) * token_weights(mask)).sum() / len(mask)


def mean_square(differences: Tensor, mask: Tensor) -> Tensor:
    """Return the mean square of (B, T, F) over real tokens and outputs.

    Of student minus teacher it is the loss of distillation (eq. 10); of the marginal of a random token,
    the regulariser that draws unseen tokens to the baseline of their prefix (eq. 11).
    """
    return differences[mask].square().mean()


def gains(values: Tensor, empty: Tensor) -> Tensor:
    """Return r(x_<=t) - r(x_<t) (B, T, F) of values (B, T, F); empty (B, F) is r of no token."""
    return torch.diff(values, dim=1, prepend=empty[:, None])


def random_tokens(mask: Tensor, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Return a uniformly random token id for every position, (B, T) int64, on the mask's device."""
    return torch.randint(vocab_size, mask.shape, generator=generator).to(mask.device)
