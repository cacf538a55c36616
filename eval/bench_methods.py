"""Speed of the steering methods side by side: plain decoding, tap ARM, backbone ARM and RAD over k.

The ARMs (arXiv 2407.04615) score any number of candidates from the states of one forward pass; RAD (arXiv
2310.09520) reads every candidate. So the ARMs should be flat in k and RAD should grow with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from decoder.config import make_config
from decoder.contracts import TokenReward, UserError
from decoder.decoder import Decoder
from decoder.job import Job
from decoder.lm import CausalLM, why_no_block
from decoder.records import process_peak
from decoder.sampling import SamplingConfig
from decoder.terminal import progress
from decoder.weighting import WeightedReward
from eval.bench_decode import Timing, count_reads, run_loop, take_turns
from eval.report import Target
from eval.stats import Estimate, bootstrap
from prompts import builtin
from rewards.arm import ArmConfig, ArmHead, TapArm
from rewards.backbone import BackboneConfig
from rewards.backbone_arm import BackboneArm
from rewards.backbone_heads import ActionValueHead, ValueHead
from rewards.backbone_session import Backbone
from rewards.rad import Rad

PLAIN, TAP, BACKBONE, RAD, FORKED = METHODS = ("plain", "tap-arm", "backbone-arm", "rad", "rad-forked")
USUAL = METHODS[:4]
RANDOM = "random"  # as the source of a reward: one with random weights, made in memory
TARGETS = {TAP: 5.0, BACKBONE: 2.5}  # least throughput over RAD's
TARGET_SIZE, TARGET_K = 32, 20
BETA = 2.0
NOISE = 0.02  # standard deviation of made-up weights
TAP_RANK = 64  # of a made-up tap ARM; the shipped ones' is the same

Key = tuple[str, int]  # method and k
Reward = TypeVar("Reward", TapArm, BackboneArm, Rad)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to time: every method at every k and batch size, `rounds` times in turn."""

    methods: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    ks: tuple[int, ...]
    max_new_tokens: int
    rounds: int

    def __post_init__(self) -> None:
        """Refuse what is no method, what is asked twice, and numbers below 1. Raises UserError."""
        for method in self.methods:
            if method not in METHODS:
                raise UserError(f"--methods is {method!r}: choose among {', '.join(METHODS)}")
        for option, numbers in (("--batch-size", self.batch_sizes), ("--k", self.ks)):
            if min(numbers) < 1:
                raise UserError(f"{option} is {min(numbers)}: give at least 1")
        lists = {"--methods": self.methods, "--batch-size": self.batch_sizes, "--k": self.ks}
        for option, asked in lists.items():
            if len(set(asked)) < len(asked):
                raise UserError(f"{option} is given twice with the same value: {', '.join(map(str, asked))}")

    @property
    def keys(self) -> list[Key]:
        """Every method at every k, in the order asked."""
        return [(method, k) for k in self.ks for method in self.methods]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where rewards come from: a shipped name, a directory, or RANDOM."""

    tap_arm: str = "positive"
    backbone_arm: str = RANDOM
    rad: str = RANDOM


@dataclass(frozen=True, slots=True)
class Runs:
    """The timed runs of one batch size: a `Timing` a round of every method at every k, in turn."""

    size: int
    n_tokens: int
    times: Mapping[Key, Sequence[Timing]]
    reads: Mapping[Key, float]

    def seconds(self, method: str, k: int) -> NDArray[Any]:
        """Return (rounds,) seconds of whole runs, prompts included."""
        return np.array([timing.total for timing in self.times[method, k]])

    def latency(self, method: str, k: int) -> NDArray[Any]:
        """Return (rounds,) milliseconds from one token of a row to its next, without the prompts."""
        found = self.times[method, k]
        return np.array([1e3 * (each.total - each.first) / (self.n_tokens - 1) for each in found])

    def speedup(self, method: str, base: str, k: int) -> Estimate:
        """Return the throughput over another method's, paired by round: median and interval."""
        return bootstrap(self.seconds(base, k) / self.seconds(method, k), np.median)


def bench_methods(
    decoder: Decoder, plan: Plan, sources: Sources = Sources()
) -> tuple[list[dict[str, Any]], dict[str, Target], dict[str, Any]]:
    """Return table rows, checks and settings. Every method draws its tokens from the k likeliest.

    All methods at all k take turns inside each round of a batch size; ratios are taken within a round and
    their median is reported with a bootstrap interval over rounds. Raises UserError for prompts that leave no
    room, a k beyond the vocabulary, and a reward that is of another kind or does not fit.
    """
    asked = builtin("neutral")[: max(plan.batch_sizes)]
    room = {"top_k": max(plan.ks), "max_new_tokens": plan.max_new_tokens + 1}  # 1 for a backbone's BOS
    prompts = decoder.tokenise(asked, make_config(room), chat=False)
    rewards = make_rewards(decoder, plan.methods, sources)
    runs = []
    with progress("decoding", len(plan.batch_sizes) * (plan.rounds + 1) * len(plan.keys)) as advance:
        for size in plan.batch_sizes:
            ids = [prompts[i % len(prompts)] for i in range(size)]
            jobs = {key: _job(ids, key, rewards, plan.max_new_tokens) for key in plan.keys}
            reads = {key: count_reads(decoder, job, _models(decoder, job)) for key, job in jobs.items()}
            timed = {key: (lambda job=job: run_loop(decoder, job)) for key, job in jobs.items()}
            times = take_turns(timed, plan.rounds, advance)
            runs.append(Runs(size, plan.max_new_tokens, times, reads))
    equal = _are_equal(rewards)
    checks = {name: target for run in runs if equal for name, target in _checks(run, plan).items()}
    settings = _settings(decoder, plan, sources, rewards)
    growth = [_growth(run, method, plan.ks) for run in runs for method in plan.methods if len(plan.ks) > 1]
    rows = [_row(run, method, k, plan) for run in runs for method, k in plan.keys]
    return rows, checks, settings | {"growth": growth}


def shown(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows narrow enough for a terminal: medians alone, under short names."""
    short = {"tokens_per_second": "tokens/s", "ms_per_token": "ms/token", "reads_per_token": "reads"}
    short |= {name: name for name in ("batch", "k", "method")}
    short |= {f"over_{base}": f"/ {base}" for base in (PLAIN, RAD)}
    return [{short[name]: value for name, value in row.items() if name in short} for row in rows]


def make_rewards(decoder: Decoder, methods: Sequence[str], sources: Sources) -> dict[str, TokenReward]:
    """Return the reward of each method that has one, loaded or made in memory with random weights.

    A backbone that is made up is the other method's, where that was loaded, else the generator itself, whose
    weights it shares. Raises UserError for a loaded reward of another kind, and for "rad" on a backbone that
    cannot read candidates as a block.
    """
    rads = {RAD, FORKED}.intersection(methods)
    arm = _load(decoder, BACKBONE, sources.backbone_arm, BackboneArm) if BACKBONE in methods else None
    rad = _load(decoder, RAD, sources.rad, Rad) if rads else None
    loaded = arm or rad
    backbone = loaded.backbone if loaded else Backbone(decoder.lm, decoder.tokenizer.bos_token_id)
    found: dict[str, TokenReward] = {}
    if TAP in methods:
        found[TAP] = _load(decoder, TAP, sources.tap_arm, TapArm) or _random_tap_arm(decoder.lm)
    if BACKBONE in methods:
        head = _fill(ActionValueHead(backbone.lm.identity.hidden_size))
        found[BACKBONE] = arm or BackboneArm.bind(head, backbone, _config(backbone), RANDOM)
    if rads:
        value = _fill(ValueHead(backbone.lm.identity.hidden_size))
        rad = rad or Rad.bind(value, backbone, _config(backbone), RANDOM)
        reason = why_no_block(rad.backbone.lm.model)
        if RAD in rads and reason:
            raise UserError(f"--methods is 'rad', which reads a block, but {reason}: give rad-forked")
        found |= {RAD: replace(rad, mode="block")} if RAD in rads else {}
        found |= {FORKED: replace(rad, mode="forked")} if FORKED in rads else {}
    return found


def _job(ids: Sequence[Sequence[int]], key: Key, rewards: Mapping[str, TokenReward], n_tokens: int) -> Job:
    method, k = key
    weighted = [WeightedReward(method, rewards[method], BETA)] if method in rewards else []
    sampling = SamplingConfig(top_k=k, reward_top_k=k)
    return Job(ids, [(i, 0) for i in range(len(ids))], range(len(ids)), weighted, sampling, n_tokens, seed=0)


def _models(decoder: Decoder, job: Job) -> list[CausalLM]:
    own = (_backbone_lm(weighted.reward) for weighted in job.rewards)
    return [decoder.lm, *(lm for lm in own if lm)]


# Rewards.


def _load(decoder: Decoder, method: str, source: str, kind: type[Reward]) -> Reward | None:
    """Return the reward of that name or directory; None for one to be made up."""
    if source == RANDOM:
        return None
    found = decoder.load_reward(source)
    if not isinstance(found, kind):
        raise UserError(f"{source} is a {type(found).__name__}, which is no {method}: give a {kind.__name__}")
    return found


def _random_tap_arm(lm: CausalLM) -> TapArm:
    """Return a tap ARM on the taps at three and four fifths of the depth, where the shipped ones lie."""
    layers = tuple(sorted({round(lm.identity.num_layers * share) for share in (0.6, 0.8)}))
    head = _fill(ArmHead(ArmConfig(layers, lm.identity.hidden_size, TAP_RANK)))
    return TapArm.bind(head, lm, RANDOM)


Head = TypeVar("Head", bound=nn.Module)


def _fill(head: Head) -> Head:
    """Return the head with small random weights, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(std=NOISE, generator=generator)
    return head


def _config(backbone: Backbone) -> BackboneConfig:
    return BackboneConfig(
        backbone.lm.identity, "none", (RANDOM,), RANDOM, "sigmoid", "log_probability", backbone.bos_token_id
    )


def _backbone_lm(reward: TokenReward) -> CausalLM | None:
    return reward.backbone.lm if isinstance(reward, BackboneArm | Rad) else None


def _are_equal(rewards: Mapping[str, TokenReward]) -> bool:
    """Return whether all backbones have one shape, without which ratios between them promise nothing."""
    ids = [lm.identity for reward in rewards.values() if (lm := _backbone_lm(reward))]
    return len({(each.architecture, each.hidden_size, each.num_layers) for each in ids}) <= 1


# What is reported.


def _row(runs: Runs, method: str, k: int, plan: Plan) -> dict[str, Any]:
    rates = bootstrap(runs.size * runs.n_tokens / runs.seconds(method, k), np.median)
    latency, timings = bootstrap(runs.latency(method, k), np.median), runs.times[method, k]
    row: dict[str, Any] = {
        "batch": runs.size, "k": k, "method": method,
        "tokens_per_second": rates.value, "interval": rates.interval,
        "ms_per_token": latency.value, "ms_interval": latency.interval,
        "first_token_ms": float(np.median([timing.first for timing in timings])) * 1e3,
        "reads_per_token": runs.reads[method, k], "rounds": plan.rounds,
    }  # fmt: skip
    grown = bootstrap(runs.latency(method, k) / runs.latency(method, min(plan.ks)), np.median)
    row |= {"over_smallest_k": grown.value, "over_smallest_k_interval": grown.interval}
    for base in (PLAIN, RAD):
        if base in plan.methods:
            ratio = runs.speedup(method, base, k)
            row |= {f"over_{base}": ratio.value, f"over_{base}_interval": ratio.interval}
    return row | ({"peak_mb": max(t.peak for t in timings) / 2**20} if timings[0].peak else {})


def _checks(runs: Runs, plan: Plan) -> dict[str, Target]:
    if runs.size != TARGET_SIZE or TARGET_K not in plan.ks or RAD not in plan.methods:
        return {}
    return {
        f"{method}/rad throughput, batch {runs.size}, k {TARGET_K}": Target(
            runs.speedup(method, RAD, TARGET_K), least
        )
        for method, least in TARGETS.items()
        if method in plan.methods
    }


def _growth(runs: Runs, method: str, ks: Sequence[int]) -> dict[str, Any]:
    """Return the slope of the latency in k, and how near to a line RAD's medians lie."""
    latency = np.stack([runs.latency(method, k) for k in ks])  # (K, rounds)
    slope = bootstrap(np.polyfit(ks, latency, 1)[0], np.median)
    told = {"batch": runs.size, "method": method, "ms_per_candidate": slope.value, "interval": slope.interval}
    if len(ks) > 2 and method in (RAD, FORKED):
        told["r_squared"] = float(np.corrcoef(ks, np.median(latency, axis=1))[0, 1] ** 2)
    return told


def _settings(
    decoder: Decoder, plan: Plan, sources: Sources, rewards: Mapping[str, TokenReward]
) -> dict[str, Any]:
    named = {TAP: sources.tap_arm, BACKBONE: sources.backbone_arm, RAD: sources.rad, FORKED: sources.rad}
    made = "random weights, made in memory: for timing only"
    told = {method: made if named[method] == RANDOM else named[method] for method in rewards}
    backbones = {
        method: "the generator, its weights shared" if lm is decoder.lm else lm.identity.name
        for method, reward in rewards.items() if (lm := _backbone_lm(reward))
    }  # fmt: skip
    return {
        "model": decoder.lm.identity.name, "dtype": str(decoder.lm.model.dtype),
        "device": str(decoder.lm.device), "rewards": told, "backbones": backbones,
        "equal_backbones": _are_equal(rewards), "beta": BETA, "max_new_tokens": plan.max_new_tokens,
        "rounds": plan.rounds, "threads": torch.get_num_threads(),
        "process_peak_mb": process_peak() // 2**20,
    }  # fmt: skip
