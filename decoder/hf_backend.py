"""The transformers backend: token ids in, completions or streamed tokens out, by the decode loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from decoder.contracts import Completion, Probe, Step, TokenEvent, UserError
from decoder.lm import CausalLM
from decoder.loop import Referee, Rows, decode
from decoder.replay import left_pad
from decoder.sampling import SamplingConfig, draw_uniforms
from decoder.trace import trace_rows
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


class HFBackend:
    """Decodes jobs on a transformers model in this process."""

    provides = frozenset({"token_reward", "probe", "stream", "trace"})

    def __init__(self, lm: CausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        self.lm = lm
        self.tokenizer = tokenizer
        self.stop_ids = torch.tensor(_stop_ids(lm, tokenizer), dtype=torch.long, device=lm.device)
        self._spelt: dict[str, Tensor] = {}

    def ending(self, stop: str) -> Tensor:
        """Return the ids that end a text: the end tokens and every token with a character of `stop`.

        Raises UserError for a character that no token has, such as one spelt in several bytes.
        """
        if stop not in self._spelt:
            pieces = [to_text(self.tokenizer, [i]) for i in range(len(self.tokenizer))] if stop else []
            if absent := sorted(set(stop).difference(*pieces)):
                raise UserError(f"stop is {stop!r}: no token has {absent[0]!r}, so none can end a text there")
            found = [i for i, piece in enumerate(pieces) if set(piece) & set(stop)]
            self._spelt[stop] = torch.tensor(found, dtype=torch.long, device=self.lm.device)
        return torch.cat([self.stop_ids, self._spelt[stop]])

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
            self.lm, rows, rewards, job.sampling, stop_ids=self.ending(job.stop), trace=job.trace,
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
            values, shifts = chosen_rewards(step).tolist(), shift(step, acting).tolist()
            for i, (row, token) in enumerate(zip(step.rows.tolist(), step.token_ids.tolist(), strict=True)):
                reason = self._reason(token, job.stop) if step.finished[i] else None
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
            self._reason(ids[-1], job.stop),
            named,
            total,
            tuple(trace) if job.trace else None,
        )

    def _reason(self, last_token: int, stop: str) -> str:
        return "stop" if bool((self.ending(stop) == last_token).any()) else "length"


def ended(step: Step) -> list[tuple[int, int]]:
    """Return (place in the step, row number) of the rows that leave after this step."""
    leaving = [end or bool(step.dropped and step.dropped[i]) for i, end in enumerate(step.finished)]
    if not any(leaving):
        return []
    numbers = step.rows.tolist()
    return [(i, numbers[i]) for i, leaves in enumerate(leaving) if leaves]


def cut(text: str, stop: str) -> str:
    """Return the text up to the first of the characters that end one."""
    return text[: min((i for i in map(text.find, stop) if i >= 0), default=len(text))]


def chosen_rewards(step: Step) -> Tensor:
    """Return each reward's r of the drawn tokens, (B, M) float32."""
    index = step.chosen[:, None, None].expand(-1, 1, step.rewards.shape[-1])
    return step.rewards.gather(1, index)[:, 0] if step.rewards.shape[-1] else step.rewards[:, 0]


def shift(step: Step, strengths: Tensor) -> Tensor:
    """Return log P(token) with the rewards at `strengths` (M,) minus without, over the candidates, (B,)."""
    if not len(strengths):
        return torch.zeros(len(step.token_ids))
    steered = step.base_logits + step.rewards @ strengths
    change = steered.log_softmax(-1) - step.base_logits.log_softmax(-1)
    return change.gather(1, step.chosen[:, None])[:, 0]


def to_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of token ids as it is, without special tokens."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


class TextStream:
    """Turns a row's token ids into text piece by piece; a piece waits until its character is whole.

    Nothing is shown from the first character of `stop` on, though several tokens may have spelt it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: str = "") -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._stopped = False
        self._shown: list[int] = []  # the ids of the last piece: decoders look at what stands before
        self._waiting: list[int] = []

    def add(self, token_id: int, *, last: bool) -> str:
        """Return what can be shown after this token, "" while a character is incomplete."""
        self._waiting.append(token_id)
        before = to_text(self._tokenizer, self._shown)
        after = to_text(self._tokenizer, self._shown + self._waiting)
        if after.endswith("\N{REPLACEMENT CHARACTER}") and not last:
            return ""
        piece = after[len(before) :]
        # A special token shows nothing; alone before the next piece, it would make that one lose its space.
        self._shown, self._waiting = ([] if piece else self._shown) + self._waiting, []
        shown = "" if self._stopped else cut(piece, self._stop)
        self._stopped = self._stopped or len(shown) < len(piece)
        return shown


def _stop_ids(lm: CausalLM, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a text: the model's own generation settings first, then the tokenizer."""
    stop = lm.model.generation_config.eos_token_id if lm.model.generation_config else None
    stop = tokenizer.eos_token_id if stop is None else stop
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
