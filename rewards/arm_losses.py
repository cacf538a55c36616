"""The losses of a tap ARM: to labels, to a teacher's values of the texts' tokens, and of candidates.

Tokens of B texts stand one after another, n in all; lengths (B,) tell where each ends.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

SPREAD = 20.0  # weight of the spread between candidates, whose probabilities differ by a tenth or so
LEVEL = 0.1  # weight of the values themselves: enough to say where on the sigmoid a prefix stands


def soft_loss(scores: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over texts (B,) of the mean loss of their tokens, scores and targets (n,)."""
    weights = (1.0 / lengths).repeat_interleave(lengths)
    return binary_cross_entropy_with_logits(scores, targets, weights, reduction="sum") / len(lengths)


def cumulative_loss(scores: Tensor, lengths: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over texts (B,) of the loss of their tokens, scores (n,), weighted 2t / (l(l+1))."""
    token_weights = (weights.repeat_interleave(lengths) * position_weights(lengths)).to(scores.dtype)
    token_targets = targets.repeat_interleave(lengths).to(scores.dtype)
    return binary_cross_entropy_with_logits(scores, token_targets, token_weights, reduction="sum") / len(
        lengths
    )


def position_weights(lengths: Tensor) -> Tensor:
    """Return 2t / (l(l+1)) for t = 1..l of every text, (n,) float32; they sum to one over a text."""
    first = lengths.cumsum(0) - lengths
    t = torch.arange(int(lengths.sum())) - first.repeat_interleave(lengths) + 1
    return t * (2.0 / (lengths * (lengths + 1))).repeat_interleave(lengths)


def candidate_loss(log_odds: Tensor, soft: Tensor, shares: Tensor) -> Tensor:
    """Return the loss of log-odds (B, P, K) to P(attribute) `soft`: spread and level, mean over places.

    Spread: the variance over candidates, weighted by shares, of the error in P(attribute). A decode chooses
    among the candidates, so what they share does not matter to it. Level: cross-entropy.
    """
    error = log_odds.sigmoid() - soft
    centred = error - (shares * error).sum(-1, keepdim=True)
    spread = (shares * centred.square()).sum(-1).mean()
    entropy = binary_cross_entropy_with_logits(log_odds, soft, reduction="none")
    return SPREAD * spread + LEVEL * (shares * entropy).sum(-1).mean()
