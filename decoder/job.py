"""Rows to decode together, as every backend takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from decoder.contracts import Probe
from decoder.loop import Referee
from decoder.sampling import SamplingConfig
from decoder.weighting import WeightedReward, beta_multipliers


@dataclass(frozen=True, slots=True)
class Job:
    """Rows to decode together.

    prompt_ids: P rows of token ids. rows: B pairs (position in prompt_ids, sample index), ascending by
    prompt. prompt_numbers: P numbers that name the prompts in the completions. betas: for each row one
    strength a reward; None takes the rewards' own. stop: characters that end a text. probes: name -> what
    scores the samples. referee: what drops rows, by the first probe. beta_schedule: as in `DecodeConfig`.
    """

    prompt_ids: Sequence[Sequence[int]]
    rows: Sequence[tuple[int, int]]
    prompt_numbers: Sequence[int]
    rewards: Sequence[WeightedReward]
    sampling: SamplingConfig
    max_new_tokens: int
    seed: int
    trace: bool = False
    betas: Sequence[Sequence[float]] | None = None
    stop: str = ""
    probes: Mapping[str, Probe] = field(default_factory=dict)
    referee: Referee | None = None
    beta_schedule: str = "constant"

    def strengths(self) -> list[list[float]]:
        """Return each row's betas, B rows of M, before the schedule."""
        if self.betas is not None:
            return [list(row) for row in self.betas]
        numbers = [self.prompt_numbers[prompt] for prompt, _ in self.rows]
        return [[reward.strength(number) for reward in self.rewards] for number in numbers]

    def multipliers(self, device: torch.device) -> Tensor | None:
        """Return what the schedule multiplies betas by, (max_new_tokens,) float32; None for 1."""
        found = beta_multipliers(self.beta_schedule, self.max_new_tokens)
        return None if found is None else torch.tensor(found, device=device)
