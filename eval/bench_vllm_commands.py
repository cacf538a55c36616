"""The benchmarks `vllm` and `soak` as commands; they run in the environment of vLLM."""

from __future__ import annotations

from typing import Annotated

import typer


def vllm(
    requests: Annotated[int, typer.Option(help="At a time.", min=1, max=200)] = 64,
    tokens: Annotated[int, typer.Option(help="Of each.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="Turns of every way.", min=2)] = 7,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    compile: Annotated[bool, typer.Option(help="Let vLLM compile the model.")] = False,  # noqa: A002
    hf: Annotated[bool, typer.Option(help="Time transformers beside it.")] = True,
    seed: Annotated[int, typer.Option(help="Of the Decoder's samples.")] = 0,
) -> None:
    """What steering costs inside vLLM: plain, steered and mixed batches, and transformers beside them."""
    from eval.bench_vllm import VllmPlan, bench_vllm
    from eval.report import emit

    emit("vllm", *bench_vllm(VllmPlan(requests, tokens, rounds, dtype, compile, hf, seed)))


def soak(
    minutes: Annotated[float, typer.Option(help="How long.", min=0.1)] = 10.0,
    requests: Annotated[int | None, typer.Option(help="End after so many, if that is sooner.", min=1)] = None,
    clients: Annotated[int, typer.Option(help="At once.", min=1)] = 32,
    tokens: Annotated[int, typer.Option(help="Of a text, at most.", min=4)] = 16,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of who asks what.", min=0)] = 0,
) -> None:
    """Clients with mixed rewards at a server of ours: every answer as it is alone, and memory flat."""
    from eval.bench_soak import SoakPlan, bench_soak
    from eval.report import emit

    plan = SoakPlan(
        minutes=minutes, requests=requests, clients=clients, tokens=tokens, dtype=dtype, seed=seed
    )
    emit("soak", *bench_soak(plan))
