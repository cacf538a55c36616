"""The decode loop: a generator of steps. It knows no concrete reward; whoever traces, streams or
collects is a `for` loop outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoder.contracts import Reading, RewardSession, Step, TokenReward, UserError
from decoder.lm import CausalLM, LMSession
from decoder.sampling import SamplingConfig, add_rewards, choose, top_candidates


class ScoreError(UserError, ValueError):
    """A row has a score that is no number, or none that is finite: nothing can be drawn."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What to decode: P prompts, forked into B rows.

    prompt_ids: (P, T) int64, left-padded; prompt_mask: (P, T) bool.
    prompts: (B,) int64, the prompt each row continues, in ascending order and none left out; a prompt
        is read once, however many rows continue it.
    uniforms: (B, max_new_tokens) float32, each row's random numbers.
    betas: (B, M) float32, each row's strength of each reward; a row may have its own.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    prompts: Tensor
    uniforms: Tensor
    betas: Tensor


@dataclass(frozen=True, slots=True)
class Offer:
    """The tokens open to each row: ids (B, K) or None for all of them, logits (B, K), rewards (B, K, M)."""

    candidate_ids: Tensor | None
    logits: Tensor
    rewards: Tensor
    log_normalizer: Tensor | None

    def select(self, rows: Tensor) -> Offer:
        """Return the offer of the rows (B',) int64; a row may repeat."""
        ids, normalizer = self.candidate_ids, self.log_normalizer
        return Offer(
            ids if ids is None else ids[rows],
            self.logits[rows],
            self.rewards[rows],
            normalizer if normalizer is None else normalizer[rows],
        )


@torch.inference_mode()
def decode(
    lm: CausalLM,
    rows: Rows,
    rewards: Sequence[TokenReward],
    sampling: SamplingConfig,
    *,
    stop_ids: Tensor,
    trace: bool = False,
) -> Iterator[Step]:
    """Yield a `Step` for every token until each row has drawn one of `stop_ids` or is full.

    Finished rows leave the batch. Raises ScoreError naming the row whose scores are NaN or infinite.
    """
    layers = tuple(sorted({layer for reward in rewards for layer in reward.layers}))
    session = lm.start(layers)
    reading = session.prefill(rows.prompt_ids, rows.prompt_mask)
    rewarders = [reward.start(rows.prompt_ids, rows.prompt_mask) for reward in rewards]
    offer = weigh(reading, rewarders, sampling, trace)
    live: list[LMSession | RewardSession] = [session, *rewarders]  # whatever holds a cache a row
    if len(rows.prompts) > len(rows.prompt_ids):  # the N-way fork
        offer = offer.select(rows.prompts)
        _select(live, rows.prompts)
    numbers, betas, uniforms = torch.arange(len(rows.prompts), device=lm.device), rows.betas, rows.uniforms
    length = uniforms.shape[1]

    for index in range(length):
        scores = add_rewards(offer.logits, offer.rewards, betas) if rewarders else offer.logits
        chosen = choose(scores, sampling, uniforms[:, index])
        ids = offer.candidate_ids
        token_ids = chosen if ids is None else ids.gather(1, chosen[:, None])[:, 0]
        finished = _finished(token_ids, scores, stop_ids, numbers, last=index == length - 1)
        yield Step(
            index, numbers, token_ids, finished, ids, chosen,
            offer.rewards, scores, offer.logits, offer.log_normalizer,
        )  # fmt: skip
        if all(finished):
            return
        if any(finished):
            kept = torch.tensor([i for i, end in enumerate(finished) if not end], device=lm.device)
            _select(live, kept)
            numbers, betas, uniforms, token_ids = (t[kept] for t in (numbers, betas, uniforms, token_ids))
        for rewarder in rewarders:
            rewarder.advance(token_ids)
        offer = weigh(session.feed(token_ids), rewarders, sampling, trace)


def weigh(
    reading: Reading, rewarders: Sequence[RewardSession], sampling: SamplingConfig, trace: bool
) -> Offer:
    """Return the tokens open after a reading, with their base logits and rewards.

    Only the K candidates' rewards are asked for. Where greedy or unfiltered sampling needs no
    candidates, none are looked up and the whole vocabulary stays open.
    """
    logits = reading.logits
    normalizer = logits.logsumexp(-1, keepdim=True) if trace else None
    width = sampling.reward_top_k if rewarders else sampling.top_k if sampling.do_sample else 0
    if not width:
        return Offer(None, logits, logits.new_zeros(len(logits), 1, 0), normalizer)
    candidate_ids, candidate_logits = top_candidates(logits, width)
    rewards = [rewarder.score(candidate_ids, reading).float() for rewarder in rewarders]
    empty = logits.new_zeros(*candidate_ids.shape, 0)
    return Offer(candidate_ids, candidate_logits, torch.stack(rewards, -1) if rewards else empty, normalizer)


def _select(live: Sequence[LMSession | RewardSession], rows: Tensor) -> None:
    for session in live:
        session.select(rows)


def _finished(
    token_ids: Tensor, scores: Tensor, stop_ids: Tensor, numbers: Tensor, *, last: bool
) -> tuple[bool, ...]:
    """Return which rows end here. The step's one look at the device from the host."""
    broken = ~scores.amax(-1).isfinite()  # the maximum hands on NaN and infinity
    ends, bad = torch.stack([torch.isin(token_ids, stop_ids), broken]).tolist()
    if any(bad):
        row = int(numbers[bad.index(True)])
        raise ScoreError(
            f"row {row}: a score is NaN or infinite; check the reward's weights and the model's dtype"
        )
    return tuple(last or end for end in ends)
