"""The one formula on a batch of vLLM's: rows may differ in beta, in its sign and in their candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoder.sampling import top_candidates
from rewards.vllm_readout import Readout
from rewards.vllm_requests import Asked


@dataclass(frozen=True, slots=True)
class Steering:
    """The rows of a batch that are steered, n of them, as tensors that serve until the batch changes.

    rows: (n,) int64, rising. betas: reward -> (n, 1), of those that any row asks for. widths: (n, 1) int64,
    each row's number of candidates, at most `widest`.
    """

    rows: Tensor
    betas: Mapping[str, Tensor]
    widths: Tensor
    widest: int

    @classmethod
    def of(cls, asked: Mapping[int, Asked], device: torch.device) -> Steering:
        """Return the steering of row -> what it asks for."""
        wishes = list(asked.values())
        names = sorted({name for wish in wishes for name in wish.betas})
        betas = {name: torch.tensor([[wish.betas.get(name, 0.0)] for wish in wishes]) for name in names}
        widths = [wish.top_k for wish in wishes]
        return cls(
            torch.tensor(list(asked), device=device),
            {name: beta.to(device) for name, beta in betas.items()},
            torch.tensor(widths, device=device)[:, None],
            max(widths),
        )

    def act(self, logits: Tensor, columns: Tensor, readout: Readout) -> None:
        """Overwrite the rows of logits (N, V): z + sum_i |beta_i| r_i among the best, -inf elsewhere.

        columns: (N, C), what the readout said of each row.
        """
        whole = len(self.rows) == len(logits)
        states, _, _ = readout.split(columns[self.rows])
        ids, scores = top_candidates(logits if whole else logits[self.rows], self.widest)
        for name, beta in self.betas.items():
            arm = readout.arms[name]
            odds = arm.head.score(states[name], arm.table[ids])
            scores = scores + beta.abs() * arm.to_reward(torch.where(beta < 0, -odds, odds))
        ranks = torch.arange(ids.shape[1], device=ids.device)
        leave_open(logits, self.rows, ids, scores.masked_fill(ranks >= self.widths, -torch.inf))


def leave_open(logits: Tensor, rows: Tensor, ids: Tensor, scores: Tensor) -> None:
    """Put scores (n, K) at the tokens (n, K) of these rows of logits (N, V), minus infinity elsewhere.

    rows: (n,) int64, rising, so that as many as there are in the batch are all of it.
    """
    if len(rows) == len(logits):
        logits.fill_(-torch.inf)
    else:
        logits.index_fill_(0, rows, -torch.inf)
    logits[rows[:, None], ids] = scores


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
