"""Serve a model with its rewards: vLLM's OpenAI-compatible server, in which any client steers.

    python -m decoder.serve --reward positive nontoxic
    python -m decoder.serve --model DIRECTORY --reward my-reward -- --port 9000 --tensor-parallel-size 2

What follows `--` goes to `vllm serve`. A client steers by
`extra_body={"vllm_xargs": {"rewards": ["positive:2"]}}`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decoder.cli import make_app, run

if TYPE_CHECKING:
    from decoder.vllm_engine import Plan

SERVER = "vllm.entrypoints.openai.api_server"  # what `vllm serve` runs; the CPU's wheel lacks that command

Model = Annotated[str, typer.Option(help="Alias, directory, GGUF file or hub id; clients name it so.")]
Reward = Annotated[
    list[str] | None,
    typer.Option(help="Rewards that clients may ask for, by name or directory. [those shipped for it]"),
]
Passed = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- ARGUMENT...]", help="For `vllm serve`, such as --port 9000."),
]


def serve(
    passed: Passed = None,
    model: Model = "smollm2-135m",
    reward: Reward = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    dry_run: Annotated[bool, typer.Option(help="Check everything and print the command instead.")] = False,
) -> None:
    """Serve a model over HTTP as OpenAI does; every request may ask for rewards and betas of its own."""
    from decoder.models import quiet_transformers
    from decoder.vllm_engine import plan_engine

    quiet_transformers()
    plan = plan_engine(model, reward, dtype=dtype, **read_arguments(passed or []))
    command = [sys.executable, "-m", SERVER, *arguments(plan, model), *(passed or [])]
    if dry_run:
        print(json.dumps(command))
        return
    sys.stdout.flush()
    os.execv(command[0], command)  # so that signals reach the server itself


def arguments(plan: Plan, name: str) -> list[str]:
    """Return the words that start the server with a planned engine; requests name the model `name`."""
    told = {key: plan.arguments[key] for key in ("dtype", "hf_overrides", "additional_config")}
    words = ["--model", plan.arguments["model"], "--served-model-name", name]
    for key, value in told.items():
        words += [f"--{key.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)]
    words += ["--enforce-eager"] if plan.arguments["enforce_eager"] else []
    gate = ["--middleware", "decoder.serve_gate.refuse_beams"]
    return [*words, *gate, "--logits-processors", *plan.arguments["logits_processors"]]


def read_arguments(passed: Sequence[str]) -> Mapping[str, Any]:
    """Return name -> value of what is passed on, as far as it says what rewards allow: `--a-b=1` is a_b."""
    found: dict[str, Any] = {}
    for place, word in enumerate(passed):
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("-"):
            continue
        following = passed[place + 1] if place + 1 < len(passed) else ""
        value = value if equals else following if not following.startswith("-") else "true"
        found[{"-pp": "pipeline_parallel_size"}.get(name, name.replace("-", "_"))] = value
    if "pipeline_parallel_size" in found:
        found["pipeline_parallel_size"] = int(found["pipeline_parallel_size"])
    return found


app = make_app(serve, lists=("--reward",))

if __name__ == "__main__":
    run(app)
