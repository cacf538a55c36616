"""The fold behind whole-sample probes: a gated mean over a text's tokens, kept as two running sums a row.

    score = sum_t g_t r_t / max(sum_t g_t, 1e-8)

so a text has its score the moment its last token is read, and nothing else is stored. Source: the
aggregation of ELHSR (arXiv 2505.12225), whose gate is a sigmoid; a gate of 1 gives a plain mean.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from decoder.contracts import Drawn

Read = Callable[[Drawn], tuple[Tensor, Tensor]]
SMALLEST = 1e-8  # of the sum of gates that divides


class GatedMean:
    """A `ProbeSession` that folds the gates and rewards of tokens into (B, 2) float32."""

    def __init__(self, read: Read, n_rows: int, device: torch.device | str = "cpu") -> None:
        """Start with no token in `n_rows` rows.

        read: gives the gates (B, T), >= 0, and the rewards (B, T) of drawn tokens, float32. What it says
            about padding is not used, not even NaN.
        """
        self._read = read
        self._sums = torch.zeros(n_rows, 2, device=device)  # of g r, and of g

    def update(self, drawn: Drawn) -> None:
        """Fold the tokens just drawn; padding, wherever it stands, changes nothing."""
        gates, rewards = self._read(drawn)
        terms = torch.stack([gates * rewards, gates], -1)  # (B, T, 2)
        self._sums = self._sums + torch.where(drawn.mask[..., None], terms, 0.0).sum(1)

    def score(self) -> Tensor:
        """Return (B,) float32. NaN where no gate has opened: before any token, or if all gates are 0."""
        return score_of(self._sums)

    def select(self, rows: Tensor) -> None:
        """Keep these rows' sums."""
        self._sums = self._sums[rows]


def score_of(sums: Tensor) -> Tensor:
    """Return the scores (...) of sums (..., 2) of g r and of g; NaN where no gate has opened."""
    weighed, total = sums.unbind(-1)
    return (weighed / total.clamp(min=SMALLEST)).masked_fill(total == 0, float("nan"))


def gated_mean(gates: Tensor, rewards: Tensor) -> Tensor:
    """Return the score () of one text from the gates (T,) and rewards (T,) of all its tokens."""
    return (gates * rewards).sum() / gates.sum().clamp(min=SMALLEST)
