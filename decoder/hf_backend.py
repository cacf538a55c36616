"""The transformers backend: token ids in, completions or streamed tokens out, by the decode loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from decoder.contracts import Completion, Probe, Step, TokenEvent, TokenReward
from decoder.endings import Endings, TextStream, cut, to_text
from decoder.job import Job
from decoder.lm import CausalLM
from decoder.loop import Rows, decode
from decoder.replay import left_pad
from decoder.sampling import draw_uniforms, pick, shift
from decoder.trace import trace_rows


class HFBackend:
    """Decodes jobs on a transformers model in this process."""

    def __init__(self, lm: CausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        self.lm = lm
        self.tokenizer = tokenizer
        self.endings = Endings(tokenizer, lm.model.generation_config, lm.device)

    def load_reward(self, reward: str | Path) -> TokenReward:
        """Return a reward for this model, by shipped name or directory."""
        from rewards.load import load_token_reward

        return load_token_reward(reward, self.lm)

    def load_probe(self, scorer: str | Path | Probe | TokenReward, ends: Tensor) -> Probe:
        """Return what scores samples as they are drawn; ends: as in `rewards.scorers.load_probe`."""
        from rewards.scorers import load_probe

        return load_probe(scorer, self.lm, ends)

    def steps(self, job: Job) -> Iterator[Step]:
        """Yield the job's decode steps."""
        ids, mask = left_pad(job.prompt_ids, self.lm.device)
        streams = [(job.prompt_ids[prompt], sample) for prompt, sample in job.rows]
        shape = len(job.rows), len(job.rewards)
        rows = Rows(
            ids,
            mask,
            torch.tensor([prompt for prompt, _ in job.rows], device=self.lm.device),
            draw_uniforms(job.seed, streams, job.max_new_tokens).to(self.lm.device),
            torch.tensor(job.strengths()).reshape(shape).to(self.lm.device),
            job.multipliers(self.lm.device),
        )
        rewards = [reward.reward for reward in job.rewards]
        return decode(
            self.lm, rows, rewards, job.sampling, stop_ids=self.endings.ids(job.stop), trace=job.trace,
            probes=[*job.probes.values()], referee=job.referee,
        )  # fmt: skip

    def complete(self, job: Job) -> Iterator[Completion]:
        """Yield each row's completion as the row ends."""
        shape, strengths = (len(job.rows), job.max_new_tokens), job.strengths()
        tokens = torch.zeros(shape, dtype=torch.long, device=self.lm.device)
        rewards = torch.zeros(*shape, len(job.rewards), device=self.lm.device)
        traces: list[list[dict[str, object]]] = [[] for _ in job.rows]
        for step in self.steps(job):
            tokens[step.rows, step.index] = step.token_ids
            rewards[step.rows, step.index] = chosen_rewards(step)
            if job.trace:
                trace_rows(step, [reward.name for reward in job.rewards], self.tokenizer, traces)
            for i, row in ended(step):
                length = step.index + 1
                read = tokens[row, :length], rewards[row, :length], traces[row]
                done = self._completion(job, row, strengths[row], *read)
                scores = dict(zip(job.probes, step.probe_scores[i].tolist(), strict=True))
                reason = done.finish_reason if step.finished[i] else "dropped"
                yield replace(done, scores=scores, finish_reason=reason)

    def stream(self, job: Job) -> Iterator[TokenEvent]:
        """Yield every token of every row as it is drawn."""
        strengths = torch.tensor(job.strengths(), device=self.lm.device).abs().amax(0)
        multipliers = job.multipliers(self.lm.device)
        pieces = [TextStream(self.tokenizer, job.stop) for _ in job.rows]
        for step in self.steps(job):
            acting = strengths if multipliers is None else strengths * multipliers[step.index]
            values, shifts = chosen_rewards(step).tolist(), _shifts(step, acting)
            for i, (row, token) in enumerate(zip(step.rows.tolist(), step.token_ids.tolist(), strict=True)):
                reason = self.endings.reason(token, job.stop) if step.finished[i] else None
                text = pieces[row].add(token, last=reason is not None)
                named = {r.name: v for r, v in zip(job.rewards, values[i], strict=True)}
                yield TokenEvent(row, step.index, token, text, named, shifts[i], reason)

    def _completion(
        self,
        job: Job,
        row: int,
        strengths: Sequence[float],
        tokens: Tensor,
        rewards: Tensor,
        trace: list[dict[str, object]],
    ) -> Completion:
        prompt, sample = job.rows[row]
        ids, values = tokens.tolist(), rewards.tolist()
        named = {r.name: tuple(v[i] for v in values) for i, r in enumerate(job.rewards)}
        total = (
            sum(abs(beta) * r for beta, r in zip(strengths, values[-1], strict=True)) if values[-1] else None
        )
        return Completion(
            job.prompt_numbers[prompt],
            sample,
            cut(to_text(self.tokenizer, ids), job.stop),
            tuple(ids),
            self.endings.reason(ids[-1], job.stop),
            named,
            total,
            tuple(trace) if job.trace else None,
        )


def ended(step: Step) -> list[tuple[int, int]]:
    """Return (place in the step, row number) of the rows that leave after this step."""
    leaving = [end or bool(step.dropped and step.dropped[i]) for i, end in enumerate(step.finished)]
    if not any(leaving):
        return []
    numbers = step.rows.tolist()
    return [(i, numbers[i]) for i, leaves in enumerate(leaving) if leaves]


def chosen_rewards(step: Step) -> Tensor:
    """Return each reward's r of the drawn tokens, (B, M) float32."""
    return pick(step.rewards, step.chosen) if step.rewards.shape[-1] else step.rewards[:, 0]


def _shifts(step: Step, strengths: Tensor) -> list[float]:
    """Return log P(token) with the rewards at `strengths` (M,) minus without, a row each."""
    if not len(strengths):
        return [0.0] * len(step.token_ids)
    betas = strengths.expand(len(step.token_ids), -1)
    return list(shift(step.base_logits, step.rewards, betas, step.chosen).tolist())
