"""What a command line says of where a model runs; the options that steering and choosing share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from decoder.contracts import UserError

Backend = Annotated[str, typer.Option(help="hf: transformers, here; vllm: an engine of vLLM's.")]
Engine = Annotated[
    list[str] | None,
    typer.Option(help="Argument of vLLM's engine, as max_model_len=512; repeat.", metavar="NAME=VALUE"),
]


def backend_arguments(
    backend: str,
    engine: Sequence[str] | None,
    rewards: Sequence[str],
    probes: Sequence[str] = (),
    *,
    here: Mapping[str, object],
) -> dict[str, Any]:
    """Return the arguments of `Decoder.from_pretrained` that say where the model runs, none for hf.

    rewards, probes: those an engine must be started with. here: option -> value of what an engine cannot do.
    Raises UserError for an unknown backend, an engine argument that is no NAME=VALUE or has no engine, and
    for what an engine cannot do.
    """
    if backend not in ("hf", "vllm"):
        raise UserError(f"unknown backend {backend!r}: choose hf or vllm")
    if backend == "hf":
        if engine:
            raise UserError(f"--engine {engine[0]}: only --backend vllm has an engine")
        return {}
    for option, value in here.items():
        if value:
            raise UserError(
                f"{option} needs every step's candidates or states, which vLLM keeps: leave it out"
            )
    given = dict(_pair(each) for each in engine or ())
    return {"backend": backend, "rewards": [*rewards], "probes": [*probes], **given}


def told(backend: str) -> dict[str, str]:
    """Return what a run's record says of the backend: nothing of the usual one."""
    return {} if backend == "hf" else {"backend": backend}


def _pair(told: str) -> tuple[str, Any]:
    import yaml  # type: ignore[import-untyped]

    name, equals, value = told.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"--engine {told!r}: write NAME=VALUE, such as max_model_len=512")
    return name, yaml.safe_load(value)
