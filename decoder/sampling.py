"""The one formula, and the drawing of a token from it. Pure functions of tensors.

    z'_v = z_v + sum_i |beta_i| * r_i(v)   for v among the base model's top `reward_top_k` tokens,
    z'_v = -inf                            elsewhere;

then temperature, top-k, top-p and sampling, in that order. r_i is the reward of the attribute, or
of its opposite where beta_i < 0. Without rewards every token is open and z' = z.

Shapes: B rows, K candidates, V vocabulary, M rewards. Everything is float32 unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decoder.contracts import UserError

BLOCK = 64  # tokens of the vocabulary whose highest logit is looked at first


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How a token is drawn, in transformers' `GenerationConfig` names; validated on construction.

    top_k 0 and top_p 1.0 switch those filters off. `reward_top_k` is the number of candidates a
    reward may reorder. Raises UserError naming the field, the value seen and the range.
    """

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    reward_top_k: int = 20

    def __post_init__(self) -> None:
        """Refuse numbers outside their range."""
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(
                f"temperature is {self.temperature}: give a finite number above 0, or do_sample=False"
            )
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}: give 0 (off) or a positive number")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: give a number above 0 and at most 1")
        if self.reward_top_k < 1:
            raise UserError(f"reward_top_k is {self.reward_top_k}: give at least 1 candidate")


def top_candidates(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k likeliest tokens of each row, ids (B, K) int64 and logits (B, K), best first.

    Chosen from the base model only, before temperature: a reward may reorder candidates but can
    never bring in a token the base model had ranked below k.
    """
    n_blocks, width = logits.shape[-1] // BLOCK, min(k, logits.shape[-1])
    if width >= n_blocks:
        values, ids = logits.topk(width, dim=-1)
        return ids, values
    # The k likeliest lie in the k blocks with the highest maxima: a third of the time of one topk on a CPU.
    peaks = logits[:, : n_blocks * BLOCK].unflatten(-1, (n_blocks, BLOCK)).amax(-1)
    first = peaks.topk(width, dim=-1, sorted=False).indices * BLOCK
    inside = first[:, :, None] + torch.arange(BLOCK, device=logits.device)
    rest = torch.arange(n_blocks * BLOCK, logits.shape[-1], device=logits.device)
    offered = torch.cat([inside.flatten(1), rest.expand(len(logits), -1)], -1)
    values, chosen = logits.gather(1, offered).topk(width, dim=-1)
    return offered.gather(1, chosen), values


def add_rewards(logits: Tensor, rewards: Tensor, betas: Tensor) -> Tensor:
    """Return z' (B, K) = z + sum_i |beta_i| r_i from logits (B, K), rewards (B, K, M), betas (B, M)."""
    return logits + torch.einsum("bkm,bm->bk", rewards, betas.abs())


def pick(rewards: Tensor, chosen: Tensor) -> Tensor:
    """Return each reward's r of the chosen columns, (B, M), from rewards (B, K, M) and columns (B,)."""
    index = chosen[:, None, None].expand(-1, 1, rewards.shape[-1])
    return rewards.gather(1, index)[:, 0]


def shift(logits: Tensor, rewards: Tensor, betas: Tensor, chosen: Tensor) -> Tensor:
    """Return log P of the chosen columns with the rewards minus without, over the candidates, (B,)."""
    change = add_rewards(logits, rewards, betas).log_softmax(-1) - logits.log_softmax(-1)
    return change.gather(1, chosen[:, None])[:, 0]


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Return scores (B, K) with all but each row's k highest at minus infinity; k = 0 keeps all."""
    if k == 0 or k >= scores.shape[-1]:
        return scores
    threshold = scores.topk(k, dim=-1).values[:, -1:]
    return scores.masked_fill(scores < threshold, -math.inf)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Return scores (B, K) with all but the smallest set of total probability >= p at minus infinity."""
    if p >= 1:
        return scores
    ordered, order = scores.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # the mass of the tokens ranked above
    return scores.masked_fill((before >= p).gather(-1, order.argsort(dim=-1)), -math.inf)


def choose(scores: Tensor, config: SamplingConfig, uniforms: Tensor) -> Tensor:
    """Return the column drawn in each row, (B,) int64, from z' (B, K).

    uniforms: (B,) in [0, 1), one number a row. Drawing is by inverting the cumulative distribution,
    so a row's token depends on its own number alone, and two decodes that share numbers differ only
    where their distributions do.
    """
    if not config.do_sample:
        return scores.argmax(dim=-1)
    filtered = keep_top_p(keep_top_k(scores / config.temperature, config.top_k), config.top_p)
    cumulative = filtered.softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]  # rounding leaves it just off 1; below it, the column found is always open
    threshold = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # Only a row without a finite maximum finds no column; the loop reports it.
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=scores.shape[-1] - 1)


def draw_uniforms(seed: int, streams: Sequence[tuple[Sequence[int], int]], length: int) -> Tensor:
    """Return the random numbers of whole rows, (B, length) float32 in [0, 1).

    streams: a row's (prompt token ids, sample index). Row i's numbers depend on the seed, its prompt
    and its sample index only, never on the batch it is decoded in.
    """
    rows = [_uniform_row(seed, prompt_ids, sample, length) for prompt_ids, sample in streams]
    return torch.from_numpy(np.stack(rows))


def _uniform_row(seed: int, prompt_ids: Sequence[int], sample: int, length: int) -> np.ndarray:
    entropy = [abs(seed), int(seed < 0), sample, len(prompt_ids), *prompt_ids]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).random(length, np.float32)
