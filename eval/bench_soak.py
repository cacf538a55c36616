"""A server under load: many clients at once, each request with rewards of its own, for minutes on end.

What every request should answer is asked first, one request at a time; under load each text must be the one
it gets alone. Some clients read a stream, some leave in the middle of one, some ask for a reward that is not
there and must be told so.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from decoder.contracts import UserError
from decoder.terminal import progress
from eval.report import Target
from eval.server_process import Server, run_server
from eval.stats import Estimate
from prompts import builtin

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MODEL = "smollm2-135m"
WISHES: tuple[tuple[str, ...], ...] = (
    (), ("positive:8",), ("positive:-8",), ("nontoxic:4", "positive:2"), ("nontoxic:-6",), ("positive",),
)  # fmt: skip
WAYS = {"whole": 0.7, "stream": 0.15, "leave": 0.1, "refused": 0.05}  # of asking, and how often
PROMPTS = 8  # each with every wish
FLAT = 0.95  # of the memory at the end that must have been there early on
EVERY = 1.0  # seconds between two looks at the memory
Asked = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """How long: `minutes`, or `requests` if that comes first; how many `clients`, `tokens` a text at most."""

    minutes: float = 10.0
    requests: int | None = None
    clients: int = 32
    tokens: int = 16
    dtype: str = "float32"
    seed: int = 0


@dataclass(slots=True)
class Tally:
    """What came of it: requests by how they were asked, wrong answers, seconds each and in all, memory."""

    asked: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    took: float = 0.0


def bench_soak(plan: SoakPlan) -> tuple[list[dict[str, Any]], dict[str, Target], dict[str, Any]]:
    """Return figures a row, the checks (every answer right, memory flat) and the settings."""
    _require_openai()
    engine = ["--enforce-eager", "--max-model-len", "512", "--max-num-seqs", str(plan.clients)]
    with run_server(["--model", MODEL, "--dtype", plan.dtype], engine) as server:
        tally = Tally()
        asyncio.run(_soak(server, plan, tally))
    return _rows(tally), _checks(tally), asdict(plan)


def _require_openai() -> None:
    try:
        import openai  # noqa: F401
        import psutil  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is missing: run this in the environment of vLLM, .venv-vllm") from None


async def _soak(server: Server, plan: SoakPlan, tally: Tally) -> None:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=120.0)
    texts = [prompt.text or "" for prompt in builtin("neutral")][:PROMPTS]
    alone = {asked: await _text(client, asked, plan) for asked in product(texts, WISHES)}
    watch = asyncio.create_task(_watch(server.pid, tally))
    rng, begin = random.Random(plan.seed), time.monotonic()
    deadline = begin + 60 * plan.minutes
    with progress("requests", plan.requests or 0) as advance:

        async def work() -> None:
            while time.monotonic() < deadline and tally.asked.total() < (plan.requests or np.inf):
                asked, way = rng.choice([*alone]), rng.choices([*WAYS], [*WAYS.values()])[0]
                tally.asked[way] += 1
                await _ask(client, asked, way, alone[asked], plan, tally)
                advance()

        await asyncio.gather(*(work() for _ in range(plan.clients)))
    tally.took = time.monotonic() - begin
    watch.cancel()


async def _ask(
    client: AsyncOpenAI, asked: Asked, way: str, expected: str, plan: SoakPlan, tally: Tally
) -> None:
    """Ask in one of the `WAYS` and take note of what was wrong with the answer."""
    from openai import BadRequestError, OpenAIError

    begin = time.monotonic()
    try:
        if way == "whole":
            found = await _text(client, asked, plan)
        elif way == "refused":
            found = await _text(client, (asked[0], ("friendly:1",)), plan)
        else:
            found = await _stream(client, asked, plan, leave=way == "leave")
    except BadRequestError as error:
        found = expected if way == "refused" and "unknown reward 'friendly'" in str(error) else str(error)
    except OpenAIError as error:
        found = f"{type(error).__name__}: {error}"
    else:
        found = found if way != "refused" else f"not refused: {found}"
    tally.seconds.append(time.monotonic() - begin)
    if found != expected and not (way == "leave" and expected.startswith(found)):
        tally.wrong.append(f"{way} {asked}: {found!r}, not {expected!r}")


async def _text(client: AsyncOpenAI, asked: Asked, plan: SoakPlan) -> str:
    done = await client.completions.create(**_call(asked, plan))
    return str(done.choices[0].text)


async def _stream(client: AsyncOpenAI, asked: Asked, plan: SoakPlan, *, leave: bool) -> str:
    """Return the text of a stream, of which one who leaves has read a few pieces."""
    pieces: list[str] = []
    stream = await client.completions.create(stream=True, **_call(asked, plan))
    async for event in stream:
        pieces.append(event.choices[0].text)
        if leave and len(pieces) > 3:
            await stream.close()
            break
    return "".join(pieces)


def _call(asked: Asked, plan: SoakPlan) -> dict[str, Any]:
    prompt, rewards = asked
    extra = {"vllm_xargs": {"rewards": list(rewards)}} if rewards else {}
    return {
        "model": MODEL, "prompt": prompt, "temperature": 0.0, "max_tokens": plan.tokens, "extra_body": extra,
    }  # fmt: skip


async def _watch(pid: int, tally: Tally) -> None:
    """Add the resident memory of a process and all its children, again and again."""
    import psutil

    while True:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        tally.mib.append(sum(each.memory_info().rss for each in family) / 2**20)
        await asyncio.sleep(EVERY)


def _rows(tally: Tally) -> list[dict[str, Any]]:
    figures = {
        **{f"requests, {way}": tally.asked[way] for way in WAYS},
        "wrong answers": len(tally.wrong),
        "requests/s": tally.asked.total() / tally.took,
        "seconds a request, median": float(np.median(tally.seconds)),
        "seconds a request, 95th percentile": float(np.quantile(tally.seconds, 0.95)),
        "MiB after a fifth": _median_mib(tally, 0.2, 0.4),
        "MiB at the end": _median_mib(tally, 0.8, 1.0),
    }
    return [{"figure": name, "value": value} for name, value in figures.items()] + [
        {"figure": "wrong", "value": each} for each in tally.wrong[:5]
    ]


def _checks(tally: Tally) -> dict[str, Target]:
    total = tally.asked.total()
    early, late = _median_mib(tally, 0.2, 0.4), _median_mib(tally, 0.8, 1.0)
    return {
        "share of answers as alone": Target(_exactly(1 - len(tally.wrong) / total, total), 1.0),
        "memory, after a fifth/at the end": Target(_exactly(early / late, len(tally.mib)), FLAT),
    }


def _median_mib(tally: Tally, begin: float, end: float) -> float:
    n = len(tally.mib)
    return float(np.median(tally.mib[int(begin * n) : max(int(end * n), int(begin * n) + 1)]))


def _exactly(value: float, n: int) -> Estimate:
    """Return a count's share, which needs no interval: nothing was sampled."""
    return Estimate(value, value, value, n)
