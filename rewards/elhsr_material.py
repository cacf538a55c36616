"""What a probe is trained on: rollouts with their states, split by prompt, and sets it is only tested on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoder.models import LoadedModel
from rewards.fit_top_logprobs import features_by_replay
from rewards.rollout_states import RolloutStates, read_log_probabilities, read_rollout_states
from rewards.rollouts import Rollout, check_labels, read_rollouts, split_by_prompt, tokenise_rollouts

VALIDATION = 0.2


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Files and what in them counts. label: field of a generation. threshold: from it on, a label is 1."""

    rollouts: str
    tests: tuple[str, ...] = ()
    label: str = "correct"
    threshold: float | None = None
    limit: int | None = None
    loss: str = "ce"


@dataclass(frozen=True, slots=True)
class RolloutSet:
    """Rollouts and the states of their M completions, completion after completion.

    prompt_ids: a row a prompt. completion_ids: for each prompt, a row a completion. labels: (M,) float32.
    groups: (M,) int64, the number of each completion's prompt. seconds: of reading.
    log_probabilities: (N,) float32 of all tokens that `states` holds, or None where no probe reads them.
    """

    rollouts: list[Rollout]
    prompt_ids: list[list[int]]
    completion_ids: list[list[list[int]]]
    states: RolloutStates
    labels: Tensor
    groups: Tensor
    seconds: float
    log_probabilities: Tensor | None = None

    def subset(self, prompts: Tensor) -> RolloutSet:
        """Return the rollouts with those numbers (P,), ascending, on the same states; groups keep theirs."""
        kept, numbers = torch.isin(self.groups, prompts), prompts.sort().values.tolist()
        states = RolloutStates(self.states.taps, self.states.starts[kept], self.states.lengths[kept])
        return RolloutSet(
            [self.rollouts[i] for i in numbers],
            [self.prompt_ids[i] for i in numbers],
            [self.completion_ids[i] for i in numbers],
            states,
            self.labels[kept],
            self.groups[kept],
            self.seconds,
            self.log_probabilities,
        )

    def logprobs(self, loaded: LoadedModel, m: int) -> list[Tensor]:
        """Return the top-m log-probability features (T, m + 1) of every completion, by replay."""
        return features_by_replay(loaded.lm, self.prompt_ids, self.completion_ids, m)

    def by_prompt(self, scores: Tensor) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """Return scores (M,) and labels as one array a prompt."""
        sizes = np.array([len(each.labels) for each in self.rollouts])
        cuts = sizes.cumsum()[:-1]
        labels = [np.asarray(each.labels, dtype=float) for each in self.rollouts]
        return np.split(scores.double().numpy(), cuts), labels


def read_sets(options: DataOptions) -> list[list[Rollout]]:
    """Return the rollouts to learn from, then those of each test. UserError for labels that teach nothing."""
    found = [read_rollouts(file, options.label, options.threshold) for file in _files(options)]
    found[0] = found[0][: options.limit]
    check_labels(found[0], options.loss)
    return found


def with_states(
    loaded: LoadedModel,
    rollouts: list[Rollout],
    layers: tuple[int, ...],
    cache: Path,
    *,
    chat: bool,
    title: str,
    likelihood: bool = False,
) -> RolloutSet:
    """Return rollouts with the states of their completions, from the cache as far as it has them.

    likelihood: with their tokens' log-probabilities too.
    """
    begin = time.perf_counter()
    prompts, completions = tokenise_rollouts(loaded.tokenizer, rollouts, chat=chat)
    states = read_rollout_states(loaded.lm, prompts, completions, layers, cache, title=title)
    found = read_log_probabilities(loaded.lm, prompts, completions, cache) if likelihood else None
    labels = torch.from_numpy(np.concatenate([each.labels for each in rollouts])).float()
    sizes = torch.tensor([len(each.labels) for each in rollouts])
    groups = torch.arange(len(rollouts)).repeat_interleave(sizes)
    seconds = time.perf_counter() - begin
    return RolloutSet(rollouts, prompts, completions, states, labels, groups, seconds, found)


def split(rollouts: Sequence[Rollout], seed: int, loss: str) -> tuple[Tensor, Tensor]:
    """Return the prompt numbers (P,) to train and to validate on. UserError if a side teaches nothing."""
    sides = split_by_prompt(rollouts, VALIDATION, seed)
    for side in sides:
        check_labels([rollouts[i] for i in side], loss)
    return torch.from_numpy(sides[0]), torch.from_numpy(sides[1])


def _files(options: DataOptions) -> tuple[str, ...]:
    return options.rollouts, *options.tests
