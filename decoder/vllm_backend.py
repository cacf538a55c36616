"""The vLLM backend: the same jobs under continuous batching, with the tokens that transformers would draw.

A row is a request of its own. Its tokens are drawn in the worker by the loop's own formula and random numbers
(`rewards.vllm_group`), so what comes out differs from transformers only by the rounding of the forward pass.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from decoder.contracts import Completion, TokenEvent, UserError
from decoder.endings import Endings, TextStream, cut, to_text
from decoder.job import Job
from decoder.loop import ScoreError
from decoder.vllm_engine import EngineModel, Plan, start_engine
from decoder.weighting import beta_multipliers
from rewards.vllm_requests import Kind, Order
from rewards.vllm_spec import Saved, name_of


@dataclass(frozen=True, slots=True)
class EngineReward:
    """A reward that lives in an engine's workers: a `TokenReward` by name, which opens no session here."""

    name: str
    digest: str
    layers: tuple[int, ...]
    sign: int = 1

    def start(self, prompt_ids: Any, prompt_mask: Any) -> Any:
        """Refuse: its weights are in the workers."""
        raise UserError(
            f"reward {self.name} runs inside vLLM and scores nothing outside: take --backend hf for that"
        )

    def opposite(self) -> EngineReward:
        """Return the reward of the opposite attribute."""
        return dataclasses.replace(self, sign=-self.sign)


@dataclass(frozen=True, slots=True)
class EngineProbe:
    """A probe that lives in an engine's workers: a `Probe` by name, which opens no session here."""

    name: str
    digest: str
    layers: tuple[int, ...]
    reads_logits: bool

    def start(self, prompt_ids: Any, prompt_mask: Any, reading: Any) -> Any:
        """Refuse: its weights are in the workers."""
        raise UserError(
            f"probe {self.name} runs inside vLLM and scores nothing outside: take --backend hf for that"
        )


@dataclass(slots=True)
class Row:
    """A row under way. tokens: of its text; told: how many a stream has yielded.

    whole: the text has ended. over: nothing more is awaited, not even the pass that reads its last token.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    told: int = 0
    whole: bool = False
    over: bool = False

    def extend(self, drawn: Sequence[int], kind: Kind, reads_end: bool) -> None:
        """Take in all tokens drawn so far; one after the text's end only says that the end was read."""
        for token in drawn[len(self.tokens) :]:
            if self.whole:
                self.over = True
                return
            self.tokens.append(token)
            self.whole = token in kind.ends or len(self.tokens) == kind.length
            self.over = self.whole and not reads_end


class VLLMBackend:
    """Decodes jobs on a vLLM engine."""

    def __init__(self, plan: Plan) -> None:
        self.engine, self._spec = start_engine(plan), plan.spec
        self.tokenizer = plan.tokenizer
        reads_ends = any(each.layers for each in plan.spec.probes.values())
        config = self.engine.vllm_config
        limit = config.model_config.max_model_len - reads_ends  # a last token is read where one more has room
        self.lm = EngineModel(plan.spec.identity, plan.dtype, config.device_config.device, limit)
        self.endings = Endings(plan.tokenizer, plan.settings, torch.device("cpu"))
        self._numbers = itertools.count()

    def load_reward(self, reward: str | Path) -> EngineReward:
        """Return a reward the engine was started with, by its name or directory, else raise UserError."""
        return EngineReward(*self._find(reward, self._spec.rewards, "rewards"))

    def load_probe(self, probe: Any, ends: Any) -> EngineProbe:
        """Return a probe that the engine was started with, by its name or directory, else raise UserError."""
        if not isinstance(probe, str | Path):
            raise UserError(f"{type(probe).__name__} lives in this process: give the engine its directory")
        name, digest, layers = self._find(probe, self._spec.probes, "probes")
        return EngineProbe(name, digest, layers, reads_logits=not layers)

    def _find(
        self, asked: str | Path, there: Mapping[str, Saved], what: str
    ) -> tuple[str, str, tuple[int, ...]]:
        name = name_of(asked)
        if name not in there:
            known = f"was started with {', '.join(there)}" if there else "was started without any"
            raise UserError(f"{asked} is not in the engine, which {known}: give {what}=[...] when it starts")
        return name, there[name].digest, there[name].layers

    def complete(self, job: Job) -> Iterator[Completion]:
        """Yield each row's completion as the row ends."""
        strengths = job.strengths()
        for rows in self._steps(job, strengths, strengths):
            over = {key: row for key, row in rows.items() if row.over}
            for key, told in self._read(over).items():
                yield self._completion(job, over[key], strengths[over[key].number], told)

    def stream(self, job: Job) -> Iterator[TokenEvent]:
        """Yield every token of every row as it is drawn."""
        strengths = job.strengths()
        shown = [max(abs(row[i]) for row in strengths) for i in range(len(job.rewards))]
        pieces = [TextStream(self.tokenizer, job.stop) for _ in job.rows]
        for rows in self._steps(job, strengths, [shown] * len(job.rows)):
            for key, told in self._read(rows).items():
                row = rows[key]
                for index in range(row.told, len(row.tokens)):
                    yield self._event(job, row, index, told, pieces[row.number])
                row.told = len(row.tokens)

    def _steps(
        self, job: Job, betas: Sequence[Sequence[float]], shown: Sequence[Sequence[float]]
    ) -> Iterator[dict[str, Row]]:
        """Run the rows; after every step of the engine yield those with a new token, by key."""
        kind, reads_end = make_kind(job, self.endings), any(probe.layers for probe in job.probes.values())
        live: dict[str, Row] = {}
        try:
            for number, (prompt, sample) in enumerate(job.rows):
                order = Order(
                    f"tiller-{next(self._numbers)}",
                    kind,
                    tuple(betas[number]),
                    tuple(shown[number]),
                    job.seed,
                    sample,
                )
                live[order.key] = Row(number)
                parameters = _parameters(order, reads_end)
                self.engine.add_request(
                    order.key, {"prompt_token_ids": [*job.prompt_ids[prompt]]}, parameters
                )
            while live:
                moved = {}
                for output in self.engine.step():
                    row = live.get(output.request_id)
                    if row is not None:
                        row.extend(output.outputs[0].token_ids, kind, reads_end)
                        moved[output.request_id] = row
                yield moved
                self._close([key for key, row in moved.items() if row.over], live)
        finally:
            self._close([*live], live)

    def _close(self, keys: Sequence[str], live: dict[str, Row]) -> None:
        """Let these requests go, in the engine and in its workers."""
        if keys:
            self.engine.abort_request([*keys])  # one that has finished is gone already
            self.engine.collective_rpc("tiller_close", args=([*keys],))
        for key in keys:
            del live[key]

    def _read(self, rows: Mapping[str, Row]) -> dict[str, dict[str, Any]]:
        """Return key -> what the workers know of the rows' tokens."""
        if not rows:
            return {}
        asked = {key: len(row.tokens) for key, row in rows.items()}
        found: dict[str, dict[str, Any]] = self.engine.collective_rpc("tiller_read", args=(asked,))[0]
        return found

    def _completion(
        self, job: Job, row: Row, strengths: Sequence[float], told: Mapping[str, Any]
    ) -> Completion:
        prompt, sample = job.rows[row.number]
        values = told["rewards"]
        _require_finite(values, row.number)
        total = (
            sum(abs(beta) * r for beta, r in zip(strengths, values[-1], strict=True)) if job.rewards else None
        )
        return Completion(
            job.prompt_numbers[prompt],
            sample,
            cut(to_text(self.tokenizer, row.tokens), job.stop),
            tuple(row.tokens),
            self.endings.reason(row.tokens[-1], job.stop),
            {r.name: tuple(v[i] for v in values) for i, r in enumerate(job.rewards)},
            total,
            None,
            dict(zip(job.probes, told["scores"], strict=True)),
        )

    def _event(
        self, job: Job, row: Row, index: int, told: Mapping[str, Any], pieces: TextStream
    ) -> TokenEvent:
        token, values = row.tokens[index], told["rewards"][index]
        _require_finite([values], row.number)
        last = row.whole and index == len(row.tokens) - 1
        reason = self.endings.reason(token, job.stop) if last else None
        named = {r.name: v for r, v in zip(job.rewards, values, strict=True)}
        return TokenEvent(
            row.number, index, token, pieces.add(token, last=last), named, told["shift"][index], reason
        )


def make_kind(job: Job, endings: Endings) -> Kind:
    """Return what the job's rows have in common. Raises UserError for what an engine does not do."""
    for asked, what in ((job.trace, "trace"), (job.referee, "dropping weak samples")):
        if asked:
            raise UserError(
                f"{what} needs every candidate of every step, which vLLM keeps: take --backend hf for that"
            )
    for each in [*(reward.reward for reward in job.rewards), *job.probes.values()]:
        if not isinstance(each, EngineReward | EngineProbe):
            raise UserError(
                f"{type(each).__name__} lives in this process and cannot steer inside vLLM: give its name or "
                "directory when the engine starts"
            )
    acts = tuple((each.reward.name, each.reward.sign) for each in job.rewards)  # type: ignore[attr-defined]
    names = tuple(probe.name for probe in job.probes.values())  # type: ignore[attr-defined]
    multipliers = beta_multipliers(job.beta_schedule, job.max_new_tokens)
    ends = frozenset(endings.ids(job.stop).tolist())
    return Kind(acts, job.sampling, job.max_new_tokens, multipliers, ends, names)


def _parameters(order: Order, reads_end: bool) -> Any:
    """Return vLLM's sampling parameters: it takes the one token that the worker leaves open."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0.0,
        max_tokens=order.kind.length + reads_end,
        ignore_eos=True,  # the text's ends are ours
        stop_token_ids=[] if reads_end else sorted(order.kind.ends),
        detokenize=False,
        extra_args=order.arguments(),
    )


def _require_finite(values: Sequence[Sequence[float]], row: int) -> None:
    if not all(math.isfinite(r) for each in values for r in each):
        raise ScoreError(
            f"row {row}: a score is NaN or infinite; check the reward's weights and the model's dtype"
        )
