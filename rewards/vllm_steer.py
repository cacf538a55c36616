"""The one formula on a batch of vLLM's: rows may differ in beta, in its sign and in their candidates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoder.sampling import top_candidates
from rewards.vllm_readout import Readout


def steer(
    logits: Tensor, states: dict[str, Tensor], readout: Readout, betas: Tensor, widths: Tensor, widest: int
) -> Tensor:
    """Return the logits (n, V), overwritten: z + sum_i |beta_i| r_i among the best, minus infinity elsewhere.

    states: reward -> (n, R + 1). betas: (n, M), a column each of the readout's rewards. widths: (n,) int64,
    each row's number of candidates, at most `widest`.
    """
    ids, scores = top_candidates(logits, widest)
    for column, (name, arm) in enumerate(readout.arms.items()):
        beta = betas[:, column, None]
        odds = arm.head.score(states[name], arm.table[ids])
        scores = scores + beta.abs() * arm.to_reward(torch.where(beta < 0, -odds, odds))
    ranks = torch.arange(ids.shape[1], device=ids.device)
    scores = scores.masked_fill(ranks >= widths[:, None], -torch.inf)
    return logits.fill_(-torch.inf).scatter_(1, ids, scores)


def score(
    ids: Tensor, states: dict[str, Tensor], readout: Readout, acts: Sequence[tuple[str, int]]
) -> Tensor:
    """Return r (n, K, M) float32 of the candidates (n, K): of each reward, or of its opposite for sign -1."""
    if not acts:
        return torch.zeros(*ids.shape, 0, device=ids.device)
    odds = {
        name: readout.arms[name].head.score(states[name], readout.arms[name].table[ids])
        for name in dict(acts)
    }
    return torch.stack([readout.arms[name].to_reward(sign * odds[name]) for name, sign in acts], -1)
