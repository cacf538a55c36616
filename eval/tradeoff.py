"""The trade-off: attribute against perplexity over beta, one curve a reward, as table, picture and page.

    python -m eval.tradeoff --reward positive --betas 0 1 2 4 8 --output tradeoff
    python -m eval.tradeoff --reward nontoxic ./mine --prompts provoking --attributes toxicity --output t
    python -m eval.tradeoff --reward nontoxic --protocol realtoxicityprompts --prompts rtp.jsonl --output r
    python -m eval.tradeoff --reward ./mine --also shipped=tradeoff --output both

Generates, judges and draws; everything is kept, so an interrupted run goes on where it stopped.
report.html in the output folder is one self-contained page with example texts, worst cases first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decoder.cli import make_app, run

LISTS = ("--reward", "--betas", "--attributes", "--judge", "--also")


def tradeoff(
    output: Annotated[Path, typer.Option(help="Folder for samples, scores, report and picture.")],
    reward: Annotated[
        list[str] | None, typer.Option(help="Shipped names or directories, a curve each. [positive]")
    ] = None,
    betas: Annotated[list[float] | None, typer.Option(help="Strengths; 0 is added. [0 1 2 4 8]")] = None,
    prompts: Annotated[
        str, typer.Option(help="Built-in set, file, or hf://datasets/OWNER/NAME/FILE.jsonl.")
    ] = "neutral",
    protocol: Annotated[
        str,
        typer.Option(help="own, realtoxicityprompts or dexperts-sentiment: samples, tokens, attributes."),
    ] = "own",
    attributes: Annotated[list[str] | None, typer.Option(help="sentiment, toxicity or both.")] = None,
    judge: Annotated[
        list[str] | None, typer.Option(help="[ATTRIBUTE=]NAME[:DETAIL], as in eval.run. [minilm]")
    ] = None,
    reads: Annotated[
        str, typer.Option(help="What judges read, whole or continuation. [sentiment whole, toxicity not]")
    ] = "",
    also: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER: draw the curves of another such folder too.")
    ] = None,
    model: Annotated[str, typer.Option(help="Generator, and model of the perplexity.")] = "smollm2-135m",
    limit: Annotated[int | None, typer.Option(help="Use the first prompts only.", min=2)] = None,
    num_return_sequences: Annotated[
        int | None,
        typer.Option("--num-return-sequences", "-n", help="Samples a prompt. [the protocol's]"),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens a sample. [20]")] = None,
    reward_top_k: Annotated[int, typer.Option(help="Candidates; unsteered samples use them too.")] = 20,
    seed: int = 0,
    batch_size: int = 64,
    overwrite: Annotated[bool, typer.Option(help="Start over instead of going on.")] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Generate over beta, judge, and show which method gives most attribute for the least perplexity."""
    from eval.metrics import check_names, make_metrics
    from eval.protocols import find_protocol, read_prompts
    from eval.tradeoff_report import read_others, write_report

    rules = find_protocol(protocol)
    kinds, judges = attributes or list(rules.attributes), judge or []
    strengths = rules.signed(betas or [0.0, 1.0, 2.0, 4.0, 8.0], prompts)
    check_names([*kinds, "perplexity", "diversity"], judges, reads)
    asked = read_prompts(prompts)[:limit]
    others = read_others(also or [])

    from decoder.decoder import Decoder, make_config
    from decoder.models import LoadedModel, quiet_transformers
    from eval.tradeoff_run import Plan, run_plan

    quiet_transformers()
    config = make_config(
        {
            "num_return_sequences": num_return_sequences or rules.samples,
            "max_new_tokens": max_new_tokens or rules.max_new_tokens,
            "reward_top_k": reward_top_k, "seed": seed, "batch_size": batch_size,
        }
    )  # fmt: skip
    decoder = Decoder.from_pretrained(model, dtype=dtype, device=device)
    plan = Plan(tuple(reward or ["positive"]), tuple(strengths), asked, config)
    loaded = LoadedModel(decoder.lm, decoder.tokenizer)
    metrics = make_metrics([*kinds, "perplexity", "diversity"], judges, lambda: loaded, reads)
    curves, settings = run_plan(decoder, plan, metrics, kinds, output, overwrite=overwrite)
    about = {
        "prompts": f"{prompts} ({len(asked)})",
        "protocol": f"{protocol} ({rules.source})",
        "model": model,
    }
    write_report(output, [*curves, *others], kinds, {**about, **settings})


app = make_app(tradeoff, lists=LISTS)

if __name__ == "__main__":
    run(app)
