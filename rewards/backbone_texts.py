"""Texts as a reward with its own backbone reads them in training: BOS in front, padded right, in batches.

The scored tokens of a text are its own and the end token after it, so that a decode's end candidate is
scored as trained; a text cut to its length limit has none. They are the tokens the tap ARM learns from,
and the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from decoder.contracts import UserError
from decoder.replay import batches_by_length, right_pad
from rewards.features import tokenise

WINDOW = 50  # batches whose texts are sorted by length together


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """M texts of training.

    rows: their token ids, each BOS and then the scored tokens. labels: (M, F) float32 in [0, 1].
    read: how many states each text gives the measures by prefix, which a tap ARM would read.
    """

    rows: list[list[int]]
    labels: Tensor
    read: list[int]

    def n_scored(self) -> int:
        """Return how many tokens are scored in all."""
        return sum(map(len, self.rows)) - len(self.rows)


@dataclass(frozen=True, slots=True)
class Batch:
    """B texts side by side.

    ids: (B, T + 1) int64, BOS first, 0 on padding. mask: (B, T + 1) bool. labels: (B, F) float32.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor

    @property
    def scored(self) -> Tensor:
        """The mask of the scored tokens, (B, T)."""
        return self.mask[:, 1:]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    labels: Tensor,
    max_length: int,
    context: int | None,
) -> TokenTexts:
    """Return texts with labels (M, F) cut to `max_length` tokens.

    context: the most tokens the backbone can read, None where it sets no limit. Raises UserError for a
    tokenizer without BOS or end token, a text that gives no token, and one the backbone cannot read.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        raise UserError(
            "the backbone's tokenizer has no begin token (bos_token): name one in its configuration"
        )
    read = tokenise(tokenizer, texts, max_length)
    lengths = [len(ids) for ids in read.ids]
    following = [part.tolist() for part in read.next_ids.split(lengths)]
    rows = [[ids[0], *after] for ids, after in zip(read.ids, following, strict=True)]
    rows = [row if row[0] == bos else [bos, *row] for row in rows]
    longest = max(map(len, rows))
    if context is not None and longest > context:
        raise UserError(
            f"a text takes {longest} tokens with BOS and end, the backbone reads {context}: "
            f"give --max-length {context - 2}"
        )
    return TokenTexts(rows, labels.float(), lengths)


def make_batch(texts: TokenTexts, rows: Sequence[int], device: torch.device) -> Batch:
    """Return these texts as one batch."""
    ids, mask = right_pad([texts.rows[row] for row in rows], device)
    return Batch(ids, mask, texts.labels[list(rows)].to(device))


def plan_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return an epoch's batches of text numbers: each text once, like lengths together, in random order.

    The same for the same arguments: an interrupted run finds its place by counting.
    """
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    for window in _split(order, WINDOW * batch_size):
        batches += _split(sorted(window, key=lengths.__getitem__), batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def in_order(texts: TokenTexts, max_tokens: int) -> Iterator[list[int]]:
    """Yield text numbers, shortest first, in batches of at most `max_tokens` padded tokens."""
    yield from batches_by_length([len(row) for row in texts.rows], max_tokens)


def _split(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
