"""The trade-off: attribute against perplexity over beta, one curve a reward, as table, picture and page.

    python -m eval.tradeoff --reward positive --betas 0 1 2 4 8 --output tradeoff
    python -m eval.tradeoff --reward nontoxic:2,4 ./mine --prompts provoking --attributes toxicity --output t
    python -m eval.tradeoff --reward nontoxic --protocol realtoxicityprompts --prompts rtp.jsonl --output r
    python -m eval.tradeoff --reward ./mine --also shipped=tradeoff --output both

Generates, judges and draws; everything is kept, so an interrupted run goes on where it stopped.
report.html in the output folder is one self-contained page with example texts, worst cases first.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError

if TYPE_CHECKING:
    from eval.curves import Curve
    from eval.tradeoff_run import Method, Plan

LISTS = ("--reward", "--betas", "--attributes", "--judge", "--also")


Output = Annotated[Path, typer.Option(help="Folder for samples, scores, report and picture.")]
Reward = Annotated[
    list[str] | None,
    typer.Option(help="Shipped names or directories, a curve each; NAME:1,2,4 has its own betas. [positive]"),
]
Betas = Annotated[list[float] | None, typer.Option(help="Strengths; 0 is added. [0 1 2 4 8]")]
Prompts = Annotated[str, typer.Option(help="Built-in set, file, or hf://datasets/OWNER/NAME/FILE.jsonl.")]
ProtocolName = Annotated[
    str, typer.Option(help="own, realtoxicityprompts or dexperts-sentiment: samples, tokens, attributes.")
]
Attributes = Annotated[list[str] | None, typer.Option(help="sentiment, toxicity or both.")]
JudgeNames = Annotated[
    list[str] | None, typer.Option(help="[ATTRIBUTE=]NAME[:DETAIL], as in eval.run. [minilm]")
]
Reads = Annotated[
    str, typer.Option(help="What judges read, whole or continuation. [sentiment whole, toxicity not]")
]
Also = Annotated[
    list[str] | None, typer.Option(help="NAME=FOLDER: draw the curves of another such folder too.")
]
Samples = Annotated[
    int | None, typer.Option("--num-return-sequences", "-n", help="Samples a prompt. [the protocol's]")
]
Overwrite = Annotated[bool, typer.Option(help="Start over instead of going on.")]


def tradeoff(
    output: Output,
    reward: Reward = None,
    betas: Betas = None,
    prompts: Prompts = "neutral",
    protocol: ProtocolName = "own",
    attributes: Attributes = None,
    judge: JudgeNames = None,
    reads: Reads = "",
    also: Also = None,
    model: Annotated[str, typer.Option(help="Generator, and model of the perplexity.")] = "smollm2-135m",
    limit: Annotated[int | None, typer.Option(help="Use the first prompts only.", min=2)] = None,
    num_return_sequences: Samples = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens a sample. [the protocol's]")] = None,
    reward_top_k: Annotated[int, typer.Option(help="Candidates; unsteered samples use them too.")] = 20,
    seed: int = 0,
    batch_size: int = 64,
    overwrite: Overwrite = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Generate over beta, judge, and show which method gives most attribute for the least perplexity."""
    from decoder.config import make_config
    from eval.metrics import check_names
    from eval.protocols import find_protocol, read_prompts
    from eval.tradeoff_report import read_others, write_report
    from eval.tradeoff_run import Plan

    rules = find_protocol(protocol)
    kinds, strengths = attributes or list(rules.attributes), betas or [0.0, 1.0, 2.0, 4.0, 8.0]
    check_names([*kinds, "perplexity", "diversity"], judge or [], reads)
    asked, others = read_prompts(prompts)[:limit], read_others(also or [])
    numbers = {
        "num_return_sequences": num_return_sequences or rules.samples, "reward_top_k": reward_top_k,
        "max_new_tokens": max_new_tokens or rules.max_new_tokens, "seed": seed, "batch_size": batch_size,
    }  # fmt: skip
    methods = [parse_method(each, strengths) for each in reward or ["positive"]]
    signed = [replace(each, betas=tuple(rules.signed(each.betas, prompts))) for each in methods]
    plan = Plan(tuple(signed), asked, make_config(numbers))
    curves, settings = trade(plan, model, dtype, device, kinds, judge or [], reads, output, overwrite)
    about = {"prompts": f"{prompts} ({len(asked)})", "protocol": protocol, "model": model}
    write_report(output, [*curves, *others], kinds, {**about, **settings})


def parse_method(reward: str, betas: list[float]) -> Method:
    """Return a reward and its strengths: those after its last colon, else `betas`. A path stays whole.

    Raises UserError for an unknown reward, before a model is loaded, and for a strength that is no number.
    """
    from eval.tradeoff_run import Method
    from rewards.load import find

    name, colon, own = reward.rpartition(":")
    if not colon or Path(reward).exists():
        name, own = reward, ""
    try:
        strengths = [float(each) for each in own.split(",")] if own else betas
    except ValueError:
        raise UserError(
            f"--reward {reward!r}: {own!r} are no betas; write NAME:1,2,4, or NAME alone"
        ) from None
    find(name)
    return Method(name, tuple(strengths))


def trade(
    plan: Plan, model: str, dtype: str, device: str, kinds: list[str], judges: list[str], reads: str,
    output: Path, overwrite: bool,
) -> tuple[list[Curve], dict[str, Any]]:  # fmt: skip
    """Return the curves and the settings, with one model for both generating and perplexity."""
    from decoder.decoder import Decoder
    from decoder.models import LoadedModel, quiet_transformers
    from eval.metrics import make_metrics
    from eval.tradeoff_run import run_plan

    quiet_transformers()
    decoder = Decoder.from_pretrained(model, dtype=dtype, device=device)
    loaded = LoadedModel(decoder.lm, decoder.tokenizer)
    metrics = make_metrics([*kinds, "perplexity", "diversity"], judges, lambda: loaded, reads)
    return run_plan(decoder, plan, metrics, kinds, output, overwrite=overwrite)


app = make_app(tradeoff, lists=LISTS)

if __name__ == "__main__":
    run(app)
