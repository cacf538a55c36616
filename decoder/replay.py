"""Read finished texts again: hidden states of whole texts in batches, and a reward along a path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from decoder.contracts import Reading, TokenReward
from decoder.lm import CausalLM


def left_pad(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) int64 and mask (B, T) bool of ragged rows; what stands on padding is id 0."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device)
    return ids, mask


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield indices, shortest first, in batches of at most `max_tokens` padded positions (at least one)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def read_texts(
    lm: CausalLM, texts: Sequence[Sequence[int]], layers: tuple[int, ...], *, max_tokens: int = 2048
) -> Iterator[tuple[list[int], Reading]]:
    """Yield (indices, reading) over batches of token id rows; taps are (B, T, d), left-padded by mask."""
    for batch in batches_by_length([len(text) for text in texts], max_tokens):
        ids, mask = left_pad([texts[i] for i in batch], lm.device)
        yield batch, lm.start(layers).prefill(ids, mask)


@torch.inference_mode()
def score_path(
    lm: CausalLM, reward: TokenReward, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return r of every token of each completion as a decode would have seen it, teacher-forced.

    prompts, completions: token ids, one row each, none empty. Works for any reward; one forward a token.
    """
    ids, mask = left_pad(prompts, lm.device)
    width = max(len(tokens) for tokens in completions)
    padded = torch.tensor([[*t, *[0] * (width - len(t))] for t in completions], device=lm.device)
    session, rewarder = lm.start(reward.layers), reward.start(ids, mask)
    reading, columns = session.prefill(ids, mask), []
    for position in range(width):
        tokens = padded[:, position]
        columns.append(rewarder.score(tokens[:, None], reading)[:, 0])
        if position < width - 1:
            rewarder.advance(tokens)
            reading = session.feed(tokens)
    table = torch.stack(columns, 1).tolist()
    return [row[: len(t)] for row, t in zip(table, completions, strict=True)]
