"""The texts of one decode as a reward's own language model reads them.

It reads BOS + text, so that the first token too has a state before it. Its state at the end of a row, after
the final norm, is what a head reads.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from decoder.contracts import UserError
from decoder.lm import CausalLM


@dataclass(frozen=True, slots=True)
class Backbone:
    """A reward's language model, trained and frozen, and the BOS that it puts before a text."""

    lm: CausalLM
    bos_token_id: int | None

    def start(self) -> BackboneSession:
        """Open a session for the texts of one decode."""
        return BackboneSession(self)


class BackboneSession:
    """The texts of one decode as the backbone reads them; no logits are made after the prompts."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._layer = backbone.lm.identity.num_layers  # the last tap, after the final norm
        self._session = backbone.lm.start((self._layer,))
        self._longest = 0  # at least as many tokens as any row has

    def prefill(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """Read left-padded prompts (B, T) behind a BOS; return the states at their ends, (B, d) float32."""
        ids, mask = with_bos(prompt_ids, prompt_mask, self._backbone.bos_token_id)
        self._longest = int(mask.sum(-1).max())
        self._refuse_beyond(self._longest)
        return self._session.prefill(ids, mask).taps[self._layer][:, -1].float()

    def feed(self, token_ids: Tensor) -> Tensor:
        """Read one more token a row, (B,) int64; return the states that have read it, (B, d) float32."""
        self._make_room()
        self._longest += 1
        return self._session.finish(token_ids)[self._layer][:, 0].float()

    def peek(self, candidate_ids: Tensor) -> Tensor:
        """Return the states of candidates (B, K) as next tokens, (B, K, d) float32; see `LMSession.peek`."""
        self._make_room()
        return self._session.peek(candidate_ids)[self._layer].float()

    def keep(self, columns: Tensor) -> None:
        """Go on with the candidate in column (B,) of each row's last peek."""
        self._longest += 1
        self._session.keep(columns)

    def forget(self) -> None:
        """Drop the candidates of the last peek."""
        self._session.forget()

    def fork(self, rows: Tensor) -> BackboneSession:
        """Return a session of its own that goes on with the rows (B',) int64; this one stays as it is."""
        twin = copy.copy(self)
        twin._session = self._session.fork(rows)
        return twin

    def select(self, rows: Tensor) -> None:
        """Keep the rows (B',) int64, in that order; a row may repeat."""
        self._session.select(rows)

    def _make_room(self) -> None:
        """Refuse one more token than the backbone can read; looks at the device only near the limit."""
        limit = self._backbone.lm.context_length()
        if limit is not None and self._longest >= limit:
            self._longest = int(self._session.lengths.max())  # the longest rows may have left
            self._refuse_beyond(self._longest + 1)

    def _refuse_beyond(self, length: int) -> None:
        limit = self._backbone.lm.context_length()
        if limit is not None and length > limit:
            raise UserError(
                f"the reward's backbone {self._backbone.lm.identity.name!r} reads at most {limit} tokens, "
                f"and a text has {length} with its BOS: shorten the prompt or max_new_tokens"
            )


def with_bos(ids: Tensor, mask: Tensor, bos_token_id: int | None) -> tuple[Tensor, Tensor]:
    """Return left-padded ids (B, T') int64 and mask with a BOS before each row, unless it stands there."""
    if bos_token_id is None:
        return ids, mask
    first = mask.long().argmax(-1)  # (B,), also the column before the first token once there is one more
    rows = torch.arange(len(ids), device=ids.device)
    lacking = ids[rows, first] != bos_token_id
    ids = torch.cat([torch.zeros_like(ids[:, :1]), ids], 1)
    mask = torch.cat([torch.zeros_like(mask[:, :1]), mask], 1)
    ids[rows, first] = torch.where(lacking, bos_token_id, ids[rows, first])
    mask[rows, first] = lacking
    start = int(~mask[:, 0].any())
    return ids[:, start:], mask[:, start:]
