"""Measure generations: anybody's JSONL, judged locally, every figure with its interval and coverage.

    python -m eval.run generations.jsonl --output report
    python -m eval.run generations.jsonl --metrics toxicity sentiment --judge profanity vader --output report

Reads files of DExperts, RAD, RealToxicityPrompts, lm-eval samples, plain JSONL and ours. Scores are kept
a sample at a time, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decoder.cli import make_app, run

LISTS = ("--metrics", "--judge")  # options that take several values at once


def measure(
    generations: Annotated[str, typer.Argument(help="JSONL file; - for standard input.")],
    output: Annotated[Path, typer.Option(help="Folder for scores, units.jsonl, report.json, report.md.")],
    metrics: Annotated[
        list[str] | None,
        typer.Option(help="toxicity, sentiment, perplexity, diversity, recorded, reward. [the first four]"),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="[ATTRIBUTE=]NAME[:DETAIL], NAME minilm, profanity, vader, detoxify or hf."),
    ] = None,
    reads: Annotated[
        str, typer.Option(help="What judges read, whole or continuation. [sentiment whole, toxicity not]")
    ] = "",
    model: Annotated[str, typer.Option(help="Model of the perplexity.")] = "smollm2-135m",
    limit: Annotated[int | None, typer.Option(help="Use the first prompts only.", min=1)] = None,
    overwrite: Annotated[bool, typer.Option(help="Score anew instead of going on.")] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Score generations and report every figure with interval, n, judge and scored/total."""
    from eval.generations import read_generations
    from eval.metrics import DEFAULT_METRICS, check_names, make_metrics

    names, judges = metrics or list(DEFAULT_METRICS), judge or []
    check_names(names, judges, reads)
    prompts = read_generations(generations)[:limit]

    from decoder.models import load_model, quiet_transformers
    from eval.evaluation import evaluate
    from eval.run_report import emit_report

    quiet_transformers()
    made = make_metrics(names, judges, lambda: load_model(model, dtype=dtype, device=device), reads)
    emit_report(evaluate(prompts, made, output, resume=not overwrite), output)


app = make_app(measure, lists=LISTS)

if __name__ == "__main__":
    run(app)
