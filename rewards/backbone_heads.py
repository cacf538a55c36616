"""Heads on a reward's own backbone: the value of a text, and the value of each next token.

    RAD:  r(x) = <w, h(x)> + b                             one scalar an output, of the text x as it stands
    ARM:  r(v | x) = <w, h(x)> + <W h(x), e(v)>            of x followed by v, for every v from one h(x)

h(x) is the backbone's last hidden state after x, e(v) its own output embedding of v. So an ARM scores any
number of candidates with one forward pass, and RAD needs the state of every x + v.

Source: RAD (arXiv 2310.09520); "On the Low-Rank Parametrization of Reward Models for Controlled Language
Generation" (arXiv 2407.04615, eqs. 6-8), whose W is a full d x d matrix an output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

START = 0.02  # standard deviation of the first weights


class ValueHead(nn.Module):
    """The head of RAD: F outputs a text, with a bias each."""

    def __init__(self, hidden_size: int, n_outputs: int = 1) -> None:
        """Make a head near 0."""
        super().__init__()
        self.linear = nn.Linear(hidden_size, n_outputs)
        nn.init.normal_(self.linear.weight, std=START)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Return r (..., F) of states (..., d)."""
        value: Tensor = self.linear(h)
        return value


class ActionValueHead(nn.Module):
    """The head of the ARM: a baseline <w, h> and a marginal <W h, e(v)> for each of F outputs.

    rank: None for a full W (F, d, d); R for W = B^T A with A, B (F, R, d).
    """

    def __init__(self, hidden_size: int, n_outputs: int = 1, rank: int | None = None) -> None:
        """Make a head near 0."""
        super().__init__()
        self.rank = rank
        self.baseline = nn.Linear(hidden_size, n_outputs, bias=False)
        width = hidden_size if rank is None else rank
        self.state = nn.Parameter(torch.empty(n_outputs, width, hidden_size))
        self.vocabulary = None if rank is None else nn.Parameter(torch.empty(n_outputs, rank, hidden_size))
        for weight in (self.baseline.weight, self.state, self.vocabulary):
            if weight is not None:
                nn.init.normal_(weight, std=START)

    def marginal(self, h: Tensor, embeddings: Tensor) -> Tensor:
        """Return <W h, e> (..., K, F) of states (..., d) and embeddings (..., K, d)."""
        projected = torch.einsum("frd,...d->...fr", self.state, h)
        if self.vocabulary is not None:
            projected = torch.einsum("frd,...fr->...fd", self.vocabulary, projected)
        return torch.einsum("...fd,...kd->...kf", projected, embeddings)

    def forward(self, h: Tensor, embeddings: Tensor) -> Tensor:
        """Return r (..., K, F) of the candidates with those embeddings (..., K, d), after states (..., d)."""
        value: Tensor = self.baseline(h)[..., None, :] + self.marginal(h, embeddings)
        return value
