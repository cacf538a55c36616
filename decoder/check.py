"""Check a model and a reward before relying on them: one line a check, exit 1 if any fails.

python -m decoder.check
python -m decoder.check --model gpt2 --reward ./my-reward --dtype float32
"""

from __future__ import annotations

from typing import Annotated

import typer

from decoder.cli import make_app, run


def check(
    model: Annotated[str, typer.Option(help="Alias, directory, GGUF file or hub id.")] = "smollm2-135m",
    reward: Annotated[
        str | None, typer.Option(help="Shipped name or directory. [positive, if it fits]")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32 is exact; lower precisions differ by rounding.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with a hub model.")] = False,
) -> int:
    """Check that a model and a reward work together: batching, caching, beta 0, vocabulary and more."""
    from rich.console import Console

    from decoder.checks import all_checks
    from decoder.decoder import Decoder
    from decoder.models import DEFAULT_MODEL, quiet_transformers

    quiet_transformers()
    decoder = Decoder.from_pretrained(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if reward is None and model == DEFAULT_MODEL:
        reward = "positive"
    console = Console(highlight=False)
    failed = 0
    for result in all_checks(decoder, reward):
        failed += not result.passed
        style = "green" if result.passed else "bold red"
        console.print(
            f"[{style}]{'pass' if result.passed else 'FAIL'}[/]  {result.name:<36} {result.detail}",
            soft_wrap=True,
        )
    console.print(f"{failed} failed" if failed else "all passed", style="bold")
    return 1 if failed else 0


app = make_app(check)

if __name__ == "__main__":
    run(app)
