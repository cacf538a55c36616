"""Any token reward as the score of whole samples: what it says of the last token drawn.

r of a token speaks about the whole text up to and with it, so r of the last one is the text's score: the
number that a decode with this reward at beta 0 records last, and the last of `decoder.replay.score_path`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decoder.contracts import Drawn, Reading, RewardSession, TokenReward


@dataclass(frozen=True, slots=True)
class PathReward:
    """A `Probe` that walks a token reward along the tokens drawn.

    The reward sees readings without logits, (B, 0): no reward along a path knows what comes next.
    """

    reward: TokenReward
    reads_logits: bool = False

    @property
    def digest(self) -> str:
        """Return the reward's own, marked."""
        return f"path:{self.reward.digest}"

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the taps the reward reads."""
        return self.reward.layers

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, reading: Reading) -> PathSession:
        """Open a session; it keeps the prompt's taps (B, T, d) until the first token is drawn."""
        taps = {layer: reading.taps[layer] for layer in self.layers}
        blind = Reading(reading.logits.new_empty(len(prompt_ids), 0), taps, reading.mask)
        return PathSession(self.reward.start(prompt_ids, prompt_mask), blind)


class PathSession:
    """The reward's own session, the reading before the next token, and r of the last token, (B,) float32."""

    def __init__(self, rewarder: RewardSession, reading: Reading) -> None:
        self._rewarder = rewarder
        self._reading = reading
        n_rows, device = len(reading.mask), reading.mask.device
        self._scores = torch.full((n_rows,), float("nan"), device=device)
        self._ended = torch.zeros(n_rows, dtype=torch.bool, device=device)
        # The last tokens scored, of which the reward is told after rows were selected, as in a decode.
        self._last_ids: Tensor | None = None

    def update(self, drawn: Drawn) -> None:
        """Walk the T tokens of every row, padding last.

        A reward's session takes in a token of every row or of none. So a row that has no more tokens keeps
        its score while its share of the session is fed padding, and is of no use afterwards: in a row that
        goes on in a later update the score is NaN.
        """
        order = (~drawn.mask).long().argsort(dim=1, stable=True)  # (B, T), real tokens first
        rows = torch.arange(len(order), device=order.device)
        for column in order.unbind(1):
            taps = {layer: drawn.taps[layer][rows, column][:, None] for layer in self._reading.taps}
            self._walk(drawn.ids[rows, column], drawn.mask[rows, column], taps)

    def score(self) -> Tensor:
        """Return (B,) float32: r of each row's last token, NaN before any token."""
        return self._scores

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in the reward's session too."""
        self._rewarder.select(rows)
        self._reading = self._reading.select(rows)
        self._scores, self._ended = self._scores[rows], self._ended[rows]
        self._last_ids = None if self._last_ids is None else self._last_ids[rows]

    def _walk(self, ids: Tensor, real: Tensor, taps: dict[int, Tensor]) -> None:
        """Score one token a row, ids (B,) where real (B,), and keep the taps (B, 1, d) that have read it."""
        if self._last_ids is not None:
            self._rewarder.advance(self._last_ids)
        found = self._rewarder.score(ids[:, None], self._reading)[:, 0].float()
        found = found.masked_fill(self._ended, float("nan"))
        self._scores = torch.where(real, found, self._scores)
        self._ended = self._ended | ~real
        self._last_ids = ids
        self._reading = replace(self._reading, taps=taps, mask=torch.ones_like(real)[:, None])
