"""Best-of-N: draw samples that are scored on the way, and choose among them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from decoder.batching import Batch, plan_batches
from decoder.contracts import Completion, UserError
from decoder.dropping import Dropping, DropSchedule
from decoder.weighting import WeightedReward
from prompts.reading import Prompt

if TYPE_CHECKING:
    from decoder.config import DecodeConfig
    from decoder.decoder import Decoder
    from rewards.scorers import Scorers


@dataclass(frozen=True, slots=True)
class Selection:
    """A prompt, its samples, their combined scores (N,) and the index of the best; NaN: no score."""

    prompt: Prompt
    samples: tuple[Completion, ...]
    scores: tuple[float, ...]
    winner: int

    @property
    def best(self) -> Completion:
        """Return the winning sample."""
        return self.samples[self.winner]


@dataclass(frozen=True, slots=True)
class BestOf:
    """What a Best-of-N run draws and how it is scored; prompts and their token ids side by side."""

    decoder: Decoder
    prompts: Sequence[Prompt]
    token_ids: Sequence[Sequence[int]]
    rewards: Sequence[WeightedReward]
    config: DecodeConfig
    scorers: Scorers
    schedule: DropSchedule

    def __post_init__(self) -> None:
        """Refuse early dropping where candidates would not meet in one batch, or could not be ranked."""
        first = self.scorers.names[0]
        check_dropping(self.schedule, self.config, first, runs=first in self.scorers.probes)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the run, the same however often it is planned."""
        lengths = [len(ids) for ids in self.token_ids]
        samples, size = self.config.num_return_sequences, self.config.batch_size
        yield from plan_batches(lengths, samples, size, together=self.schedule.drops)

    def draw(self, batch: Batch) -> list[Completion]:
        """Return the batch's completions with name -> score of every scorer that needs no group."""
        rows = [batch.prompts[position] for position, _ in batch.rows]
        referee = Dropping(self.schedule, rows) if self.schedule.drops else None
        done = list(
            self.decoder.complete(
                batch, self.token_ids, self.rewards, self.config, probes=self.scorers.probes, referee=referee
            )
        )
        added = self._score_texts(done)
        return [replace(each, scores={**each.scores, **more}) for each, more in zip(done, added, strict=True)]

    def _score_texts(self, done: Sequence[Completion]) -> list[dict[str, float]]:
        """Return what the text reward models say of whole samples; NaN for those given up."""
        added: list[dict[str, float]] = [{} for _ in done]
        whole = [i for i, each in enumerate(done) if each.finish_reason != "dropped"]
        for name, model in self.scorers.texts.items():
            prompts, texts = [self.prompts[done[i].prompt] for i in whole], [done[i].text for i in whole]
            found = dict(zip(whole, model.score(prompts, texts), strict=True))
            for i, scores in enumerate(added):
                scores[name] = found.get(i, math.nan)
        return added


def check_dropping(schedule: DropSchedule, config: DecodeConfig, first: str, *, runs: bool) -> None:
    """Raise UserError if the schedule cannot be kept. runs: whether the first scorer has a running score."""
    samples, size = config.num_return_sequences, config.batch_size
    if schedule.drops and size < samples:
        raise UserError(
            f"early dropping compares all {samples} samples of a prompt in one batch, and batch_size is "
            f"{size}: raise it to {samples}"
        )
    if schedule.drops and not runs:
        raise UserError(
            f"early dropping needs a score while samples are drawn, and {first!r} has none: put one of a "
            "probe, a token reward, logprob or self-certainty first"
        )


def select(prompt: Prompt, samples: Sequence[Completion], scorers: Scorers, rule: str) -> Selection:
    """Return the choice among a prompt's samples, in sample order."""
    from rewards.choice import Candidate, choose

    ordered = sorted(samples, key=lambda sample: sample.sample)
    candidates = [
        Candidate(each.text, _finite(each.scores), each.finish_reason == "dropped") for each in ordered
    ]
    choice = choose(candidates, prompt, scorers, rule)
    return Selection(prompt, tuple(ordered), tuple(choice.scores.tolist()), choice.winner)


def _finite(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores as a file gives them back: an infinite one did not come out either."""
    return {name: score if math.isfinite(score) else math.nan for name, score in scores.items()}


def run(job: BestOf, rule: str) -> list[Selection]:
    """Return every prompt's choice, in order. Raises UserError where no sample of a prompt has a score."""
    from rewards.choice import check_rule

    check_rule(rule, len(job.scorers.names), job.scorers.weights)
    samples: list[list[Completion]] = [[] for _ in job.prompts]
    for batch in job.batches():
        for completion in job.draw(batch):
            samples[completion.prompt].append(completion)
    return [
        select(prompt, found, job.scorers, rule) for prompt, found in zip(job.prompts, samples, strict=True)
    ]


def to_record(completion: Completion, prompt: Prompt, seed: int) -> Mapping[str, Any]:
    """Return a sample as it stands in a file: as other runs write it, and whether its answer is right."""
    from decoder.records import to_record as plain
    from rewards.choice import correctness

    record = plain(completion, seed)
    if prompt.answer is None:
        return record
    right = correctness(completion.text, prompt)
    return {**record, "correct": int(right) if right == right else None}
