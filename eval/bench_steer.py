"""What beta does: mean reward and perplexity of samples over a range of strengths."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from decoder.batching import plan_batches
from decoder.config import DecodeConfig
from decoder.decoder import Decoder
from decoder.hf_backend import HFBackend, chosen_rewards
from decoder.job import Job
from decoder.terminal import progress
from decoder.weighting import WeightedReward
from eval.report import Target
from eval.stats import bootstrap, paired_difference
from prompts.reading import Prompt
from rewards.arm import TapArm


def bench_steer(
    decoder: Decoder, reward: str, prompts: Sequence[Prompt], config: DecodeConfig, betas: Sequence[float]
) -> tuple[list[dict[str, Any]], dict[str, Target], dict[str, Any]]:
    """Return table rows over beta, checks and settings.

    Reward is the head's own P(attribute) of the finished text, so it tells whether steering does what
    the head asks, not whether a judge agrees. Perplexity is exp of the mean negative base
    log-probability of the drawn tokens. Intervals are over prompts. Beta 0 samples the same candidates
    with the same random numbers.
    """
    token_ids = decoder.tokenise(prompts, config, chat=False)
    strengths = sorted({0.0, *betas})
    found: dict[float, np.ndarray] = {}
    seconds: dict[float, float] = {}
    with progress("steering", len(strengths) * len(prompts)) as advance:
        for beta in strengths:
            start = time.perf_counter()
            found[beta] = sample(decoder, decoder.load_reward(reward), beta, token_ids, config, advance)
            seconds[beta] = time.perf_counter() - start
    rows = [_row(beta, found[beta], found[0.0], seconds[beta]) for beta in strengths]
    settings = {
        "model": decoder.lm.identity.name, "dtype": str(decoder.lm.model.dtype), "reward": reward,
        "prompts": len(prompts), "samples": config.num_return_sequences,
        "max_new_tokens": config.max_new_tokens,
        "reward_top_k": config.sampling.reward_top_k, "seed": config.seed,
    }  # fmt: skip
    return rows, _checks(found), settings


def sample(
    decoder: Decoder,
    reward: Any,
    beta: float,
    token_ids: Sequence[Sequence[int]],
    config: DecodeConfig,
    advance: Any,
) -> np.ndarray:
    """Return (P, N, 3) float64: each finished sample's P(attribute), base log-probability, tokens."""
    acting = WeightedReward("reward", reward if beta >= 0 else reward.opposite(), beta)
    table = np.zeros((len(token_ids), config.num_return_sequences, 3))
    for batch in plan_batches(
        [len(ids) for ids in token_ids], config.num_return_sequences, config.batch_size
    ):
        job = Job(
            [token_ids[prompt] for prompt in batch.prompts], batch.rows, batch.prompts, [acting],
            config.sampling, config.max_new_tokens, config.seed, trace=True,
        )  # fmt: skip
        scores = follow(decoder, job)
        for (position, number), values in zip(batch.rows, scores.tolist(), strict=True):
            probability = to_probability(reward, values[0])
            table[batch.prompts[position], number] = [
                probability if beta >= 0 else 1 - probability,
                *values[1:],
            ]
        for _ in {prompt for prompt, sample_index in batch.rows if sample_index == 0}:
            advance()
    return table


def to_probability(reward: Any, value: float) -> float:
    """Return P(attribute) from r, which is that or its logarithm, as the head declares."""
    declared = reward.head.config.output if isinstance(reward, TapArm) else "log_probability"
    return math.exp(value) if declared == "log_probability" else value


def follow(decoder: Decoder, job: Job) -> torch.Tensor:
    """Return (B, 3): last reward, sum of base log-probabilities and number of tokens of each row."""
    totals = torch.zeros(len(job.rows), 3, dtype=torch.float64, device=decoder.lm.device)
    for step in HFBackend(decoder.lm, decoder.tokenizer).steps(job):
        assert step.log_normalizer is not None  # the job is traced
        logprobs = step.base_logits.gather(1, step.chosen[:, None]) - step.log_normalizer
        totals[step.rows, 0] = chosen_rewards(step)[:, 0].double()
        totals[step.rows, 1] += logprobs[:, 0].double()
        totals[step.rows, 2] += 1
    return totals


def _perplexity(rows: np.ndarray) -> float:
    return float(np.exp(-rows[..., 1].sum() / rows[..., 2].sum()))


def _row(beta: float, found: np.ndarray, plain: np.ndarray, seconds: float) -> dict[str, Any]:
    reward = bootstrap(found[..., 0].mean(1))
    gain = paired_difference(found[..., 0].mean(1), plain[..., 0].mean(1))
    perplexity = bootstrap(found, _perplexity)
    return {
        "beta": beta, "mean_p": reward.value, "interval": reward.interval, "gain": gain.value,
        "gain_interval": gain.interval, "perplexity": perplexity.value,
        "perplexity_interval": perplexity.interval,
        "tokens_per_second": float(found[..., 2].sum() / seconds),
    }  # fmt: skip


def _checks(found: dict[float, np.ndarray]) -> dict[str, Target]:
    """At beta 1 the gain must exceed the width of its own interval."""
    if 1.0 not in found:
        return {}
    gain = paired_difference(found[1.0][..., 0].mean(1), found[0.0][..., 0].mean(1))
    return {"gain in mean P(attribute) at beta 1": Target(gain, gain.high - gain.low)}
