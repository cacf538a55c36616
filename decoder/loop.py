"""The decode loop: a generator of steps. It knows no concrete reward; whoever traces, streams or
collects is a `for` loop outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from decoder.contracts import Drawn, Probe, ProbeSession, Reading, RewardSession, Step, TokenReward, UserError
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
    multipliers: (max_new_tokens,) float32, what betas are multiplied by at each token; None for 1.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    prompts: Tensor
    uniforms: Tensor
    betas: Tensor
    multipliers: Tensor | None = None

    def strengths(self, betas: Tensor, index: int) -> Tensor:
        """Return the betas of live rows (B, M) as they act on token `index`."""
        return betas if self.multipliers is None else betas * self.multipliers[index]


@dataclass(frozen=True, slots=True)
class Offer:
    """The tokens open to each row: ids (B, K) or None for all of them, logits (B, K), rewards (B, K, M).

    whole: the logits (B, V) of all tokens, kept where a probe reads them.
    """

    candidate_ids: Tensor | None
    logits: Tensor
    rewards: Tensor
    log_normalizer: Tensor | None
    whole: Tensor | None = None

    def select(self, rows: Tensor) -> Offer:
        """Return the offer of the rows (B',) int64; a row may repeat."""
        ids, normalizer, whole = self.candidate_ids, self.log_normalizer, self.whole
        return Offer(
            ids if ids is None else ids[rows],
            self.logits[rows],
            self.rewards[rows],
            normalizer if normalizer is None else normalizer[rows],
            whole if whole is None else whole[rows],
        )


class Referee(Protocol):
    """Gives up rows while they are being drawn."""

    def give_up(self, index: int, rows: Tensor, scores: Tensor, finished: Sequence[bool]) -> tuple[bool, ...]:
        """Return which of the live rows to drop after token `index`, from their running scores (B,).

        rows: (B,) int64, their numbers. finished: which have ended by themselves; those are never dropped.
        """
        ...


@torch.inference_mode()
def decode(
    lm: CausalLM,
    rows: Rows,
    rewards: Sequence[TokenReward],
    sampling: SamplingConfig,
    *,
    stop_ids: Tensor,
    trace: bool = False,
    probes: Sequence[Probe] = (),
    referee: Referee | None = None,
) -> Iterator[Step]:
    """Yield a `Step` for every token until each row has drawn one of `stop_ids`, is full, or is dropped.

    Rows that end leave the batch. probes score the rows while they are drawn; the referee drops rows by
    the first probe's scores. Raises ScoreError naming the row whose scores are NaN or infinite.
    """
    session, reading = _read_prompts(lm, rows, [*(r.layers for r in rewards), *(p.layers for p in probes)])
    rewarders = [reward.start(rows.prompt_ids, rows.prompt_mask) for reward in rewards]
    probers = [probe.start(rows.prompt_ids, rows.prompt_mask, reading) for probe in probes]
    keep_whole = any(probe.reads_logits for probe in probes)
    reads_ends = any(probe.layers for probe in probes)  # a text's last token too, before its row leaves
    offer = weigh(reading, rewarders, sampling, trace, keep_whole)
    live: list[LMSession | RewardSession | ProbeSession] = [session, *rewarders, *probers]  # caches a row
    if len(rows.prompts) > len(rows.prompt_ids):  # the N-way fork
        offer = offer.select(rows.prompts)
        _select(live, rows.prompts)
    numbers, betas, uniforms = torch.arange(len(rows.prompts), device=lm.device), rows.betas, rows.uniforms

    for index in range(length := uniforms.shape[1]):
        drawn, token_ids, chosen = draw(offer, rows.strengths(betas, index), sampling, uniforms[:, index])
        finished = _finished(token_ids, drawn, stop_ids, numbers, last=index == length - 1)
        after = session.feed(token_ids) if reads_ends and not all(finished) else None
        taps = after.taps if after else session.finish(token_ids) if reads_ends else {}
        scores = _fold(probers, token_ids, taps, offer)
        dropped = referee.give_up(index, numbers, scores[:, 0], finished) if referee else None
        yield Step(
            index, numbers, token_ids, finished, dropped, offer.candidate_ids, chosen,
            offer.rewards, drawn, offer.logits, offer.log_normalizer, scores,
        )  # fmt: skip
        going = [i for i, end in enumerate(finished) if not (end or (dropped and dropped[i]))]
        if not going:
            return
        if len(going) < len(finished):
            kept = torch.tensor(going, device=lm.device)
            _select(live, kept)
            numbers, betas, uniforms, token_ids = (t[kept] for t in (numbers, betas, uniforms, token_ids))
            after = after and after.select(kept)
        for rewarder in rewarders:
            rewarder.advance(token_ids)
        offer = weigh(after or session.feed(token_ids), rewarders, sampling, trace, keep_whole)


def _read_prompts(lm: CausalLM, rows: Rows, tapped: Sequence[tuple[int, ...]]) -> tuple[LMSession, Reading]:
    session = lm.start(tuple(sorted({layer for layers in tapped for layer in layers})))
    return session, session.prefill(rows.prompt_ids, rows.prompt_mask)


def draw(
    offer: Offer, betas: Tensor, sampling: SamplingConfig, uniforms: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return z' (B, K), the tokens drawn (B,) and their columns (B,)."""
    scores = add_rewards(offer.logits, offer.rewards, betas) if offer.rewards.shape[-1] else offer.logits
    chosen = choose(scores, sampling, uniforms)
    ids = offer.candidate_ids
    return scores, chosen if ids is None else ids.gather(1, chosen[:, None])[:, 0], chosen


def weigh(
    reading: Reading,
    rewarders: Sequence[RewardSession],
    sampling: SamplingConfig,
    trace: bool,
    keep_whole: bool = False,
) -> Offer:
    """Return the tokens open after a reading, with their base logits and rewards.

    Only the K candidates' rewards are asked for. Where greedy or unfiltered sampling needs no
    candidates, none are looked up and the whole vocabulary stays open.
    """
    logits = reading.logits
    normalizer = logits.logsumexp(-1, keepdim=True) if trace else None
    width = sampling.reward_top_k if rewarders else sampling.top_k if sampling.do_sample else 0
    whole = logits if keep_whole else None
    if not width:
        return Offer(None, logits, logits.new_zeros(len(logits), 1, 0), normalizer, whole)
    candidate_ids, candidate_logits = top_candidates(logits, width)
    rewards = [rewarder.score(candidate_ids, reading).float() for rewarder in rewarders]
    stacked = torch.stack(rewards, -1) if rewards else logits.new_zeros(*candidate_ids.shape, 0)
    return Offer(candidate_ids, candidate_logits, stacked, normalizer, whole)


def _fold(
    probers: Sequence[ProbeSession], token_ids: Tensor, taps: Mapping[int, Tensor], offer: Offer
) -> Tensor:
    """Let the probes take in the tokens just drawn (B,); return their scores (B, S) float32."""
    if not probers:
        return offer.logits.new_zeros(len(token_ids), 0)
    logits = None if offer.whole is None else offer.whole[:, None]
    ids = token_ids[:, None]
    drawn = Drawn(ids, torch.ones_like(ids, dtype=torch.bool), taps, logits)
    for prober in probers:
        prober.update(drawn)
    return torch.stack([prober.score() for prober in probers], -1)


def _select(live: Sequence[LMSession | RewardSession | ProbeSession], rows: Tensor) -> None:
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
