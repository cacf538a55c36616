"""Rewards with a backbone of their own inside transformers' plain `generate`, as a logits processor.

>>> steer = RewardLogitsProcessor(reward, betas=2.0, attention_mask=inputs["attention_mask"])
>>> model.generate(**inputs, logits_processor=LogitsProcessorList([steer]))

transformers hands a processor the token ids and the logits and nothing else. So a reward that reads the
generator's hidden states cannot act here (`decoder.custom_generate` runs it inside `generate`), and what the
processor knows of a call it must see from the ids: a step adds one token to rows that it has seen, in any
order (beams), and anything else begins a new call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from decoder.contracts import Reading, RewardSession, TokenReward, UserError
from decoder.sampling import SamplingConfig, add_rewards, top_candidates
from decoder.weighting import RewardLike, WeightedReward, pair_betas, weigh_rewards


@dataclass(slots=True)
class _Call:
    """One `generate` so far: the ids (B, T) that the rewards' sessions have read."""

    ids: Tensor
    sessions: list[RewardSession]


class RewardLogitsProcessor:
    """Adds sum_i |beta_i| r_i to the logits of each row's `reward_top_k` likeliest tokens; the rest are -inf.

    Greedy search, sampling and beam search give what `decoder.loop.decode` would choose from. Beams add up
    what is returned here, log-probabilities plus rewards. `generate`'s own temperature, top-k and top-p act
    afterwards; its top-k is 50 unless set, so set `top_k=0` where reward_top_k is larger.

    A call's caches are freed when the next one begins, or by `reset`. A call that begins with the very text
    that the last one ended with goes on from them, which says the same.
    """

    def __init__(
        self,
        rewards: TokenReward | Sequence[TokenReward],
        betas: float | Sequence[float] = 1.0,
        reward_top_k: int = 20,
        *,
        attention_mask: Tensor | None = None,
    ) -> None:
        """Take rewards that read no taps, each with its beta; 0 drops one, a negative one takes the opposite.

        attention_mask: (P, T) of the prompts, left-padded, as `generate` gets it. It is needed wherever
        prompts differ, because a pad id may also stand in a text; the processor then serves batches of that
        shape and padding. Without it every call must be one unpadded prompt, with any number of sequences.
        Raises UserError for rewards that read taps or are not loaded, and for wrong numbers.
        """
        if isinstance(rewards, Mapping):
            raise UserError("rewards is a mapping: give the rewards, and their strengths as betas=")
        self._rewards: list[WeightedReward] = weigh_rewards(pair_betas(rewards, betas), _checked)
        self._width = SamplingConfig(reward_top_k=reward_top_k).reward_top_k
        self._mask = None if attention_mask is None else attention_mask.bool()
        self._call: _Call | None = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return z' (B, V) from the ids so far (B, T) int64 and logits or log-probabilities (B, V)."""
        if not self._rewards:
            return scores
        new = self._step(input_ids)
        base = scores.float()
        candidate_ids, logits = top_candidates(base, self._width)
        reading = Reading(base, {}, new)
        found = [session.score(candidate_ids, reading).float() for session in self._sessions()]
        betas = torch.tensor([reward.beta for reward in self._rewards], device=base.device)
        steered = add_rewards(logits, torch.stack(found, -1), betas.expand(len(base), -1))
        _check_finite(steered)
        return torch.full_like(base, -torch.inf).scatter(1, candidate_ids, steered).to(scores.dtype)

    def reset(self) -> None:
        """Forget the last call and free its caches."""
        self._call = None

    def _sessions(self) -> list[RewardSession]:
        return [] if self._call is None else self._call.sessions

    def _step(self, ids: Tensor) -> Tensor:
        """Let the sessions read what is new; return its mask, (B, T) or (B, 1)."""
        parents = None if self._call is None else _parents(self._call.ids, ids)
        if self._call is None or parents is None:
            mask = self._prompt_mask(ids)
            self._call = None  # the old caches go before the new ones come
            self._call = _Call(ids, [reward.reward.start(ids, mask) for reward in self._rewards])
            return mask
        moved = not torch.equal(parents, torch.arange(len(self._call.ids), device=parents.device))
        for session in self._call.sessions:
            if moved:
                session.select(parents)
            session.advance(ids[:, -1])
        self._call.ids = ids
        return torch.ones_like(ids[:, -1:], dtype=torch.bool)

    def _prompt_mask(self, ids: Tensor) -> Tensor:
        """Return which ids of a new call's prompts are real, (B, T)."""
        n_rows, length = ids.shape
        if not length:
            raise UserError("generate was given no prompt ids: rewards read token ids, so give input_ids")
        if self._mask is None:
            if bool((ids != ids[:1]).any()):
                raise UserError(
                    f"{n_rows} rows of several prompts, without a mask: give attention_mask= (all ones where "
                    "nothing is padded), since a pad id may also stand in a text"
                )
            return torch.ones_like(ids, dtype=torch.bool)
        prompts, width = self._mask.shape
        if width != length or n_rows % prompts:
            raise UserError(
                f"attention_mask is of {prompts} prompts of {width} tokens, generate began with {n_rows} "
                f"rows of {length}: make a RewardLogitsProcessor with the mask of this batch"
            )
        return self._mask.to(ids.device).repeat_interleave(n_rows // prompts, 0)


def _parents(seen: Tensor, ids: Tensor) -> Tensor | None:
    """Return which row of `seen` (B, T) each row of ids (B', T+1) continues, (B',) int64.

    None if any continues none. A row that continues itself is taken as doing so; of equal rows any will do.
    """
    if ids.shape[1] != seen.shape[1] + 1 or ids.device != seen.device:
        return None
    before = ids[:, :-1]
    if torch.equal(before, seen):
        return torch.arange(len(ids), device=ids.device)
    same = torch.stack([(seen == row).all(-1) for row in before])  # (B', B)
    if not bool(same.any(-1).all()):
        return None
    stays = torch.arange(len(ids), device=ids.device).clamp(max=len(seen) - 1)
    return torch.where(same.gather(1, stays[:, None])[:, 0], stays, same.long().argmax(-1))


def _checked(reward: RewardLike) -> TokenReward:
    """Return the reward; a `UserError` unless it is loaded and owns its backbone."""
    if isinstance(reward, str | Path):
        raise UserError(
            f"reward {str(reward)!r} is a name: give the reward itself, as rewards.load.load_reward's"
        )
    if not isinstance(reward, TokenReward):
        raise UserError(f"{type(reward).__name__} is no token reward: give one with start and opposite")
    if reward.layers:
        raise UserError(
            f"{type(reward).__name__} reads the generator's hidden states (layers "
            f"{', '.join(map(str, reward.layers))}), which a logits processor is not given: use "
            "model.generate(custom_generate=decoder.custom_generate, reward=..., beta=...)"
        )
    return reward


def _check_finite(scores: Tensor) -> None:
    bad = ~scores.amax(-1).isfinite()
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise UserError(f"row {row}: a score is NaN or infinite; check the reward's weights and its dtype")
