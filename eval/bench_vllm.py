"""What steering costs inside vLLM: requests with rewards and without in one engine, and transformers too.

All draw the same number of tokens by the same settings of vLLM's sampler; only `rewards` differs. In the
mixed batch every second request is steered, and the time is that until the last of the others is done. vLLM
without Tiller is a second engine; each has a process of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from decoder.decoder import Decoder
from decoder.models import DTYPES, pick_device, pick_dtype, resolve
from decoder.terminal import progress
from eval.report import Target
from eval.stats import Estimate, bootstrap
from prompts import builtin

STEERED, MIXED = 0.95, 0.98  # of the throughput of plain requests
MODEL, REWARD, BETA = "smollm2-135m", "positive", 8.0
Arguments = dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class VllmPlan:
    """What runs: `requests` at a time, `tokens` each, in `rounds` turns; `hf` beside it."""

    requests: int = 64
    tokens: int = 64
    rounds: int = 7
    dtype: str = "auto"
    compile: bool = False
    hf: bool = True
    seed: int = 0


def bench_vllm(plan: VllmPlan) -> tuple[list[dict[str, Any]], dict[str, Target], dict[str, Any]]:
    """Return a row a way to run, the ratios with their targets, and the settings."""
    engine: dict[str, Any] = {
        "enforce_eager": not plan.compile, "max_model_len": 512, "max_num_seqs": plan.requests,
        "enable_prefix_caching": False,
    }  # fmt: skip
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # for both engines
    decoder = Decoder.from_pretrained(MODEL, dtype=plan.dtype, backend="vllm", **engine)
    ids = [list(each) for each in _prompts(decoder, plan.requests)]
    steered: Arguments = {"rewards": {REWARD: BETA}}
    asked: dict[str, list[Arguments]] = {
        "plain": [None] * plan.requests,
        "steered": [steered] * plan.requests,
        "mixed": [steered if i % 2 else None for i in range(plan.requests)],
    }
    ways: dict[str, Callable[[], float]] = {
        name: partial(_run, _engine(decoder), ids, extra, plan) for name, extra in asked.items()
    }
    ways["without Tiller"] = partial(_run, _start_bare(plan, engine), ids, asked["plain"], plan)
    ways["Decoder, vLLM"] = partial(_generate, decoder, plan)
    if plan.hf:
        hf = Decoder.from_pretrained(MODEL, dtype=plan.dtype)
        ways["Decoder, transformers"] = partial(_generate, hf, plan)
    seconds = _in_turn(ways, plan.rounds)
    total = plan.requests * plan.tokens
    rates = {name: bootstrap(total / found, np.median) for name, found in seconds.items()}
    rows = [
        {"requests": name, "tokens/s": rate.value, "interval": list(rate.interval)}
        for name, rate in rates.items()
    ]
    checks = {
        "steered/plain throughput": Target(_ratio(seconds["plain"], seconds["steered"]), STEERED),
        "plain requests' throughput, mixed batch/plain batch": Target(
            _ratio(seconds["plain"], seconds["mixed"]), MIXED
        ),
        "plain/without Tiller throughput": Target(_ratio(seconds["without Tiller"], seconds["plain"]), MIXED),
        "steered/without Tiller throughput": Target(
            _ratio(seconds["without Tiller"], seconds["steered"]), STEERED
        ),
    }
    settings = {**asdict(plan), "model": decoder.lm.identity.name, "reward": REWARD, "beta": BETA}
    return rows, checks, {**settings, "dtype": str(decoder.lm.dtype)}


def _in_turn(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of each way, (rounds,), after one round that warms up; the order turns."""
    names = list(ways)
    found: dict[str, list[float]] = {name: [] for name in ways}
    with progress("rounds", rounds + 1) as advance:
        for number in range(rounds + 1):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                seconds = ways[name]()
                if number:
                    found[name].append(seconds)
            advance()
    return {name: np.array(values) for name, values in found.items()}


def _engine(decoder: Decoder) -> Any:
    return decoder.backend.engine  # type: ignore[attr-defined]


def _start_bare(plan: VllmPlan, engine: Mapping[str, Any]) -> Any:
    """Return an engine of vLLM's own for the same model, in a process of its own."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    kind = pick_dtype(plan.dtype, pick_device("auto"))
    dtype = next(name for name, each in DTYPES.items() if each == kind)
    arguments = EngineArgs(model=resolve(MODEL), dtype=dtype, **engine)
    return LLMEngine.from_engine_args(arguments, enable_multiprocessing=True)


def _run(engine: Any, ids: Sequence[list[int]], extra: Sequence[Arguments], plan: VllmPlan) -> float:
    """Return the seconds until the last request without rewards is done, or the last of all."""
    from vllm import SamplingParams

    plain = {str(i) for i, arguments in enumerate(extra) if arguments is None}
    waited = plain or {str(i) for i in range(len(ids))}
    begin, end = time.perf_counter(), 0.0
    for i, (prompt, arguments) in enumerate(zip(ids, extra, strict=True)):
        parameters = SamplingParams(
            temperature=1.0, max_tokens=plan.tokens, ignore_eos=True, detokenize=False, extra_args=arguments
        )
        engine.add_request(str(i), {"prompt_token_ids": prompt}, parameters)
    while engine.has_unfinished_requests():
        waited -= {each.request_id for each in engine.step() if each.finished}
        end = end or (0.0 if waited else time.perf_counter())
    return end - begin


def _generate(decoder: Decoder, plan: VllmPlan) -> float:
    """Return the seconds of the same number of steered texts by `Decoder.generate`, without end tokens."""
    decoder.backend.endings.stop_ids = decoder.backend.endings.stop_ids[:0]
    prompts = [each.text for each in builtin("neutral")][: plan.requests]
    begin = time.perf_counter()
    decoder.generate(
        prompts,
        reward=REWARD,
        beta=BETA,
        max_new_tokens=plan.tokens,
        batch_size=plan.requests,
        seed=plan.seed,
    )
    return time.perf_counter() - begin


def _prompts(decoder: Decoder, n: int) -> list[Any]:
    texts = [each.text for each in builtin("neutral")][:n]
    return [decoder.tokenizer(text)["input_ids"] for text in texts]


def _ratio(one: np.ndarray, other: np.ndarray) -> Estimate:
    """Return one/other of paired rounds: the median, with its bootstrap interval."""
    return bootstrap(one / other, np.median)
