"""Speed of decoding: transformers' `generate`, our loop unsteered and our loop steered, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from decoder.decoder import Decoder
from decoder.hf_backend import HFBackend
from decoder.job import Job
from decoder.lm import CausalLM
from decoder.records import process_peak
from decoder.replay import left_pad
from decoder.sampling import SamplingConfig
from decoder.terminal import progress
from eval.report import Target
from eval.stats import bootstrap
from prompts import builtin

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Timing:
    """One run: seconds to the first token and to the last, rows sent through the model, peak bytes."""

    first: float
    total: float
    rows: int
    peak: int


def bench_decode(
    decoder: Decoder, reward: str, batch_sizes: list[int], max_new_tokens: int, rounds: int, reward_top_k: int
) -> tuple[list[dict[str, Any]], dict[str, Target], dict[str, Any]]:
    """Return table rows, checks and settings. Every method draws `max_new_tokens` a row from the top k.

    The methods take turns inside each round, so that what slows the machine slows them alike; ratios are
    taken within a round and their median reported with a bootstrap interval over rounds.
    """
    prompts = [decoder.tokenizer(prompt.text).input_ids for prompt in builtin("neutral")]
    weighted = decoder.weigh(reward, 2.0)
    sampling = SamplingConfig(top_k=reward_top_k, reward_top_k=reward_top_k)
    rows: list[dict[str, Any]] = []
    checks: dict[str, Target] = {}
    with progress("decoding", len(batch_sizes) * (rounds + 1) * 3) as advance:
        for size in batch_sizes:
            batch = [prompts[i % len(prompts)] for i in range(size)]
            job = Job(batch, [(i, 0) for i in range(size)], range(size), [], sampling, max_new_tokens, seed=0)
            methods = {
                "generate": lambda job=job: run_generate(decoder, job),
                "plain": lambda job=job: run_loop(decoder, job),
                "steered": lambda job=job: run_loop(decoder, replace(job, rewards=weighted)),
            }
            times = take_turns(methods, rounds, advance)
            tokens = size * max_new_tokens
            rows += [_row(size, name, found, tokens) for name, found in times.items()]
            checks |= _checks(size, times)
    settings = {
        "model": decoder.lm.identity.name, "dtype": str(decoder.lm.model.dtype),
        "device": str(decoder.lm.device),
        "reward": reward, "max_new_tokens": max_new_tokens, "rounds": rounds, "reward_top_k": reward_top_k,
        "threads": torch.get_num_threads(),
        "process_peak_mb": process_peak() // 2**20,
    }  # fmt: skip
    return rows, checks, settings


def take_turns(
    methods: Mapping[Name, Callable[[], Timing]], rounds: int, advance: Callable[[], None]
) -> dict[Name, list[Timing]]:
    """Return each method's timings; a first round warms up and is dropped, the order shifts each round."""
    times: dict[Name, list[Timing]] = {name: [] for name in methods}
    names = list(methods)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            timing = methods[name]()
            advance()
            if number:
                times[name].append(timing)
    return times


def run_loop(decoder: Decoder, job: Job) -> Timing:
    """Time our loop on a job, no token ending a row early."""
    backend = endless(decoder)
    with measured(decoder) as record:
        for _ in backend.steps(job):
            record.token()
    return record.timing()


def alternate(decoder: Decoder, jobs: Mapping[str, Job], turn: int) -> dict[str, Timing]:
    """Return the timings of jobs of one length that draw their tokens by turns, no token ending a row early.

    What slows the machine for longer than a token slows all of them alike. turn: who begins.
    """
    running = {name: endless(decoder).steps(job) for name, job in jobs.items()}
    parts: dict[str, list[Timing]] = {name: [] for name in jobs}
    names = list(jobs)
    for index in range(turn, turn + min(job.max_new_tokens for job in jobs.values())):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            with measured(decoder) as record:
                next(running[name])
            parts[name].append(record.timing())
    return {name: _added(found) for name, found in parts.items()}


def _added(parts: Sequence[Timing]) -> Timing:
    total, rows = sum(part.total for part in parts), sum(part.rows for part in parts)
    return Timing(parts[0].total, total, rows, max(part.peak for part in parts))


def endless(decoder: Decoder) -> HFBackend:
    """Return the decoder's backend with no token that ends a row."""
    backend = HFBackend(decoder.lm, decoder.tokenizer)
    backend.endings.stop_ids = backend.endings.stop_ids[:0]
    return backend


def count_reads(decoder: Decoder, job: Job, models: Sequence[CausalLM]) -> float:
    """Return the positions that these models read for a row's second token: the price of a step."""
    embeddings = dict.fromkeys(lm.model.get_input_embeddings() for lm in models)  # a shared one once
    n_read = 0

    def count(module: nn.Module, args: tuple[torch.Tensor, ...], output: object) -> None:
        nonlocal n_read
        n_read += args[0].numel()

    steps = endless(decoder).steps(replace(job, max_new_tokens=2))
    next(steps)
    hooks = [module.register_forward_hook(count) for module in embeddings]
    try:
        for _ in steps:
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return n_read / len(job.rows)


def run_generate(decoder: Decoder, job: Job) -> Timing:
    """Time transformers' generate on the same prompts, filters and length, no token ending a row early."""
    ids, mask = left_pad(job.prompt_ids, decoder.lm.device)
    model: Any = decoder.lm.model  # generate() comes from a mixin that PreTrainedModel does not declare
    config = GenerationConfig(  # what is left None here, generate() takes from the model's own config
        max_new_tokens=job.max_new_tokens, do_sample=True, top_k=job.sampling.top_k, top_p=1.0,
        temperature=1.0, repetition_penalty=1.0, pad_token_id=0, eos_token_id=[],
    )  # fmt: skip
    with measured(decoder) as record:
        model.generate(
            input_ids=ids, attention_mask=mask.long(), generation_config=config, streamer=_Clock(record)
        )
    return record.timing()


class Record:
    """The clock of one run."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._first, self._start = device, 0.0, time.perf_counter()
        self.rows = 0
        self.end = 0.0

    def token(self) -> None:
        """Note that a token column is there; only the first one waits for the device."""
        if not self._first:
            synchronise(self._device)
            self._first = time.perf_counter()

    def timing(self) -> Timing:
        """Return the run's figures."""
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0
        return Timing(self._first - self._start, self.end - self._start, self.rows, peak)


@contextmanager
def measured(decoder: Decoder) -> Iterator[Record]:
    """Time a block and count the rows that pass the model, with or without its unembedding."""
    device = decoder.lm.device
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    record = Record(device)

    def count(module: Any, args: Any, options: dict[str, Any], output: Any) -> None:
        record.rows += len(options["input_ids"] if "input_ids" in options else args[0])

    hook = decoder.lm.model.base_model.register_forward_hook(count, with_kwargs=True)
    try:
        yield record
    finally:
        hook.remove()
    synchronise(device)
    record.end = time.perf_counter()


def synchronise(device: torch.device) -> None:
    """Wait for what the device was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Clock(BaseStreamer):
    """Hears of every column that generate draws; the first it hears of is the prompt."""

    def __init__(self, record: Record) -> None:
        self._record, self._heard = record, 0

    def put(self, value: torch.Tensor) -> None:
        self._heard += 1
        if self._heard > 1:
            self._record.token()

    def end(self) -> None:
        pass


def _row(size: int, name: str, found: list[Timing], tokens: int) -> dict[str, Any]:
    rates = bootstrap([tokens / t.total for t in found], np.median)
    row = {
        "batch": size,
        "method": name,
        "tokens_per_second": rates.value,
        "interval": rates.interval,
        "first_token_ms": float(np.median([t.first for t in found])) * 1e3,
        "rows_per_token": found[0].rows / tokens,
    }
    return row | ({"peak_mb": max(t.peak for t in found) / 2**20} if found[0].peak else {})


def _checks(size: int, times: dict[str, list[Timing]]) -> dict[str, Target]:
    total = {name: np.array([t.total for t in found]) for name, found in times.items()}
    steered = bootstrap(total["plain"] / total["steered"], np.median)
    plain = bootstrap(total["generate"] / total["plain"], np.median)
    return {
        f"steered/unsteered throughput, batch {size}": Target(steered, 0.97 if size >= 32 else 0.95),
        f"unsteered/generate throughput, batch {size}": Target(plain, 1.0),
    }
