"""What steering reached and what it cost, from what the generations file itself carries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from eval.generations import PromptSamples
from eval.metric import Measure, Record, mean_measure

KL = ("kl", "kl_candidates")


@dataclass(frozen=True, slots=True)
class RewardAndKL:
    """The rewards a sample ended with, and how far its policy went from the base model, in nats.

    reward: the field "reward", sum |beta_i| r_i at the last token; "reward.NAME": r of each of "rewards".
    kl: KL(pi || p) summed over the sample's tokens, p the whole base model.
    kl_candidates: KL(pi || p_K) likewise, p_K the base model over the same K candidates, made to sum
        to 1. kl = kl_candidates - sum of log P(candidates): the rest is the price of the cut to K.

    Both KLs are exact at every step, given the tokens before it; their mean over samples estimates the
    KL of whole texts without bias (the chain rule). They come from "trace" (`--trace`), so they hold
    only for text drawn at temperature 1 without top-k, top-p or greedy choice after the rewards, which
    a trace does not show. A step without rewards drew from the base model: 0.

    NaN where a sample has no such field.
    """

    @property
    def name(self) -> str:
        """Return "reward_kl"."""
        return "reward_kl"

    @property
    def about(self) -> Mapping[str, Any]:
        """Return where the figures come from and when they hold."""
        return {
            "reward": "the file's own, at the last token",
            "kl": "nats a sample, exact a step, from the trace; p is the whole base model",
            "kl_candidates": "the same against the base model over the same candidates",
            "kl_holds_for": "sampling at temperature 1, no top-k, no top-p",
        }

    @property
    def per_sample(self) -> bool:
        """Return True."""
        return True

    def score(self, prompts: Sequence[PromptSamples]) -> list[list[Record]]:
        """Return a sample's {"reward", "kl", "kl_candidates"} and a "reward.NAME" for each it carries.

        Raises UserError for a field that is there but has another shape than Tiller writes.
        """
        return [
            [_score(record, f"{prompt.source}, sample {i}") for i, record in enumerate(prompt.records)]
            for prompt in prompts
        ]

    def measures(self, scores: Sequence[Sequence[Record]]) -> list[Measure]:
        """Return the mean over prompts of each figure; a sample that lacks one is not scored in it."""
        found = {name for records in scores for record in records for name in record}
        rewards = ["reward", *sorted(name for name in found if name.startswith("reward."))]
        named = [*((name, "higher") for name in rewards), *((name, "lower") for name in KL)]
        return [mean_measure(name, _column(scores, name), better) for name, better in named]


def step_kl(base_logprobs: NDArray[Any], scores: NDArray[Any]) -> tuple[float, float]:
    """Return one step's KL(pi || p) and KL(pi || p_K) in nats; pi is the softmax of the scores.

    base_logprobs: (K,) log P of the candidates under the whole base model. scores: (K,) z'.
    """
    policy, base = _log_softmax(scores), _log_softmax(base_logprobs)
    among = float((np.exp(policy) * (policy - base)).sum())
    return among - float(np.logaddexp.reduce(base_logprobs)), among


def _score(record: Mapping[str, Any], where: str) -> Record:
    whole, among = _trace_kl(record.get("trace"), where)
    named = record.get("rewards")
    if not isinstance(named, Mapping | None):
        raise UserError(f'{where}: "rewards" must be an object of name and number, not {named!r:.60}')
    return {
        "reward": _number(record.get("reward"), f'{where}: "reward"'),
        "kl": whole,
        "kl_candidates": among,
        **{f"reward.{n}": _number(value, f"{where}: reward {n!r}") for n, value in (named or {}).items()},
    }


def _trace_kl(trace: Any, where: str) -> tuple[float, float]:
    """Return both KLs summed over a trace's steps; NaN for no trace or one without a step."""
    if not trace:
        return math.nan, math.nan
    if not isinstance(trace, list | tuple):
        raise UserError(f'{where}: "trace" must be a list of steps, not {trace!r:.60}')
    steps = [_step(step, f"{where}: step {i} of its trace") for i, step in enumerate(trace)]
    whole, among = zip(*steps, strict=True)
    return math.fsum(whole), math.fsum(among)


def _step(step: Any, where: str) -> tuple[float, float]:
    wanted = ("rewards", "base_logprobs", "scores")
    missing = [key for key in wanted if not isinstance(step, Mapping) or key not in step]
    if missing:
        raise UserError(f'{where} has no "{missing[0]}": give a file written with --trace')
    if not step["rewards"]:  # it lists some likely tokens, but every token was open
        return 0.0, 0.0
    base, scores = (_numbers(step[key], f"{where}: {key}") for key in wanted[1:])
    if base.shape != scores.shape:
        raise UserError(f"{where} has {len(base)} base_logprobs but {len(scores)} scores: it is damaged")
    return step_kl(base, scores) if np.isfinite([base, scores]).all() else (math.nan, math.nan)


def _numbers(values: Any, where: str) -> NDArray[Any]:
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"{where} must be a list of numbers, not {values!r:.60}")
    return np.array([_number(value, where) for value in values])


def _number(value: Any, where: str) -> float:
    """Return the number, NaN for none or an infinite one."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where} must be a number or null, not {value!r:.60}")
    return float(value) if math.isfinite(value) else math.nan


def _log_softmax(values: NDArray[Any]) -> NDArray[Any]:
    shifted: NDArray[Any] = values - np.logaddexp.reduce(values)
    return shifted


def _column(scores: Sequence[Sequence[Record]], name: str) -> list[NDArray[Any]]:
    """Return a column that not every sample has, as one float64 array a prompt."""
    return [np.array([record.get(name, math.nan) for record in records], dtype=float) for records in scores]
