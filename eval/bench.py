"""Benchmarks. The last line on standard output is one JSON object; the exit code is 0 whether or not the
targets hold.

    python -m eval.bench decode
    python -m eval.bench decode --methods plain --methods tap-arm --methods rad --k 5 --k 20 --k 80
    python -m eval.bench steer --prompts prompts.jsonl
    python -m eval.bench judges reviews.tsv --attribute sentiment --judge minilm --judge vader
    python -m eval.bench best-of-n candidates.jsonl --scorer probes/arithmetic --scorer logprob --output DIR
    python -m eval.bench scoring
    python -m eval.bench heads --flip-rate 0.1
    python -m eval.bench store --folder DIR
    python -m eval.bench vllm
    python -m eval.bench soak --minutes 10
    python -m eval.bench ensembles STORE --flip-rate 0 0.25
    python -m eval.bench lens STORE --golden sentiment --output DIR
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decoder.cli import make_group, run
from eval.bench_ensembles_command import LISTS, ensembles
from eval.bench_lens_command import LENS_LISTS, lens
from eval.bench_vllm_commands import soak, vllm

if TYPE_CHECKING:  # loaded when it runs
    from eval.bench_methods import Plan, Sources

Model = Annotated[str, typer.Option(help="Alias, directory, GGUF file or hub id.")]
Reward = Annotated[str, typer.Option(help="Shipped name or directory.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]


def decode(
    model: Model = "smollm2-135m",
    reward: Annotated[
        str, typer.Option(help="Shipped name or directory; with --methods the tap ARM's, or random.")
    ] = "positive",
    batch_sizes: Annotated[list[int] | None, typer.Option("--batch-size", help="Repeat. [1 8 32]")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens a row.", min=2)] = 32,
    rounds: Annotated[int, typer.Option(help="Times each method runs, in turn.", min=1)] = 7,
    reward_top_k: Annotated[int | None, typer.Option(help="Candidates, without --methods. [20]")] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="plain, tap-arm, backbone-arm, rad, rad-forked; repeat. [the first four]"),
    ] = None,
    ks: Annotated[list[int] | None, typer.Option("--k", help="Candidates; repeat. [5 20 80]")] = None,
    backbone_arm: Annotated[str | None, typer.Option(help="Directory; else random weights.")] = None,
    rad: Annotated[str | None, typer.Option(help="Directory; else random weights.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Latency over k: .svg, .png or .pdf.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Tokens a second: transformers' generate, this loop unsteered, and steered, in one process in turn.

    With --methods (or --k, --picture, --backbone-arm, --rad): steering methods side by side, at every k.
    """
    from decoder.contracts import UserError
    from decoder.decoder import Decoder
    from decoder.models import quiet_transformers
    from eval.bench_decode import bench_decode
    from eval.bench_methods import RANDOM, USUAL, Plan, Sources
    from eval.report import emit

    quiet_transformers()
    sizes = batch_sizes or [1, 8, 32]
    source: dict[str, Any] = {"model": model, "dtype": dtype, "device": device}
    if not any((methods, ks, backbone_arm, rad, picture)):
        decoder = Decoder.from_pretrained(**source)
        width = 20 if reward_top_k is None else reward_top_k
        return emit("decode", *bench_decode(decoder, reward, sizes, max_new_tokens, rounds, width))
    if reward_top_k is not None:
        raise UserError(f"--reward-top-k is {reward_top_k}, but methods are compared: give --k instead")
    plan = Plan(tuple(methods or USUAL), tuple(sizes), tuple(ks or (5, 20, 80)), max_new_tokens, rounds)
    _compare_methods(source, plan, Sources(reward, backbone_arm or RANDOM, rad or RANDOM), picture)


def _compare_methods(source: dict[str, Any], plan: Plan, sources: Sources, picture: Path | None) -> None:
    """Report first: a picture that cannot be written must not cost the figures."""
    from decoder.decoder import Decoder
    from eval.bench_methods import PLAIN, bench_methods, shown
    from eval.latency_picture import by_panel, check_target, draw_latency
    from eval.report import emit

    if picture is not None:
        check_target(picture)
    rows, checks, settings = bench_methods(Decoder.from_pretrained(**source), plan, sources)
    emit("decode methods", rows, checks, settings, shown(rows))
    if picture is not None:
        draw_latency(by_panel(rows), picture, unsteered=PLAIN)


def steer(
    model: Model = "smollm2-135m",
    reward: Reward = "positive",
    betas: Annotated[list[float] | None, typer.Option("--beta", help="Repeat. [-4 -1 0 1 2 4 8]")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="File of prompts; the 200 built-in neutral ones.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Prompts used.", min=2)] = 200,
    num_return_sequences: Annotated[int, typer.Option("--num-return-sequences", "-n")] = 4,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens a sample.")] = 20,
    reward_top_k: Annotated[int, typer.Option(help="Candidates.")] = 20,
    seed: int = 0,
    batch_size: int = 64,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Mean reward and perplexity over beta, with intervals over prompts."""
    from decoder.config import make_config
    from decoder.decoder import Decoder
    from decoder.models import quiet_transformers
    from eval.bench_steer import bench_steer
    from eval.report import emit
    from prompts import builtin
    from prompts.reading import read

    quiet_transformers()
    asked = (read(prompts) if prompts else builtin("neutral"))[:limit]
    config = make_config(
        {
            "num_return_sequences": num_return_sequences, "max_new_tokens": max_new_tokens,
            "reward_top_k": reward_top_k, "seed": seed, "batch_size": batch_size,
        }
    )  # fmt: skip
    decoder = Decoder.from_pretrained(model, dtype=dtype, device=device)
    strengths = betas or [-4.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0]
    emit("steer", *bench_steer(decoder, reward, asked, config, strengths))


def judges(
    data: Annotated[str, typer.Argument(help="CSV, TSV, JSONL or Parquet of labelled texts.")],
    attribute: Annotated[str, typer.Option(help="toxicity or sentiment; label 1 is toxic, or positive.")],
    judge: Annotated[list[str] | None, typer.Option(help="As in eval.run; repeat. [minilm]")] = None,
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the labels, 0 or 1.")] = "label",
) -> None:
    """Accuracy and AUC of judges on labelled texts."""
    from decoder.models import quiet_transformers
    from eval.bench_judges import bench_judges
    from eval.report import emit

    quiet_transformers()
    rows, settings = bench_judges(data, attribute, text_column, label_column, judge or ["minilm"])
    emit("judges", rows, {}, settings)


def best_of_n(
    data: Annotated[
        list[str], typer.Argument(help="Files of decoder.best_of_n --output: the same prompts, a seed each.")
    ],
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="As in decoder.best_of_n, and short, long, length (both), recorded:NAME (a score that the "
            "file holds); repeat. The first is what is tested. [logprob]"
        ),
    ] = None,
    combine: Annotated[str | None, typer.Option(help="A rule for all scorers, as one more row.")] = None,
    combined: Annotated[
        list[str] | None, typer.Option(help="SCORER,SCORER:RULE, or SCORER:vote; repeat.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Whom the others are compared with; the first.")
    ] = None,
    gold: Annotated[
        str, typer.Option(help="correct, sentiment (most positive) or toxicity (least).")
    ] = "correct",
    judge: Annotated[str, typer.Option(help="Of sentiment or toxicity, as in eval.run.")] = "minilm",
    drop: Annotated[
        list[str] | None,
        typer.Option(help="Drop by the first scorer: 4,8,12 or 4,8:keep=0.25 or margin=1.5@6; repeat."),
    ] = None,
    chat: Annotated[bool, typer.Option(help="The prompts had passed the chat template.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for tables and pictures.")] = None,
    model: Model = "smollm2-135m",
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """What scorers choose among kept candidates is worth; what dropping candidates early saves and loses."""
    from decoder.models import quiet_transformers
    from eval.bench_best_of_n import Comparison, bench_best_of_n

    quiet_transformers()
    source = {"model": model, "dtype": dtype, "device": device}
    asked = Comparison(
        scorer or ["logprob"], combine, combined or [], baseline, gold, judge, drop or [], chat, source
    )
    bench_best_of_n(data, asked, output)


def scoring(
    model: Model = "smollm2-135m",
    probe: Annotated[str, typer.Option(help="Directory, or all-layers: random weights.")] = "all-layers",
    batch_size: Annotated[int, typer.Option(help="Samples of one prompt.", min=1)] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens a sample.", min=2)] = 128,
    rounds: Annotated[int, typer.Option(help="Times each method runs, in turn.", min=1)] = 7,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Seconds and forward passes of scoring: while generating, in a replay, by a text reward model."""
    from decoder.decoder import Decoder
    from decoder.models import quiet_transformers
    from eval.bench_scoring import bench_scoring
    from eval.report import emit

    quiet_transformers()
    decoder = Decoder.from_pretrained(model, dtype=dtype, device=device)
    emit("scoring", *bench_scoring(decoder, probe, batch_size, max_new_tokens, rounds))


def heads(
    store: Annotated[Path | None, typer.Option(help="Train on these embeddings, not synthetic ones.")] = None,
    test: Annotated[Path | None, typer.Option(help="Store to test on, with --store.")] = None,
    golden: Annotated[str, typer.Option(help="Their label that is the golden reward.")] = "golden",
    dimension: Annotated[int, typer.Option(help="Of synthetic embeddings.", min=2)] = 2048,
    head: Annotated[str, typer.Option(help="bt-linear, bt-mlp or clf-mlp.")] = "bt-mlp",
    pairs: Annotated[int, typer.Option(help="To train on, within prompts.", min=8)] = 10_000,
    flip_rate: Annotated[float, typer.Option(help="Share of wrong labels, below 0.5.", min=0)] = 0.1,
    n: Annotated[int, typer.Option("--heads", help="Fitted a round, alike but for the seed.", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="Times each loop runs, in turn.", min=1)] = 3,
    precision: Annotated[str, typer.Option(help="Of our products: float32 or bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of embeddings, pairs and labels.", min=0)] = 0,
) -> None:
    """Reward heads an hour, and their Spearman correlation, beside the papers' training loop."""
    from eval.bench_heads import HeadPlan, bench_heads
    from eval.report import emit

    plan = HeadPlan(head, pairs, flip_rate, n, rounds, precision, seed)
    emit("heads", *bench_heads(store, test, golden, dimension, plan))


def store(
    rows: Annotated[int, typer.Option(help="Of the synthetic store.", min=20)] = 1_000_000,
    dimension: Annotated[int, typer.Option(help="Of their embeddings, in float16.", min=2)] = 2048,
    samples: Annotated[int, typer.Option(help="Rows of a prompt.", min=2)] = 10,
    pairs: Annotated[int, typer.Option(help="To train the head on.", min=10)] = 100_000,
    head: Annotated[str, typer.Option(help="As in rewards.train_head.")] = "bt-mlp",
    folder: Annotated[
        Path | None, typer.Option(help="Where the store is kept and found again; else a temporary one.")
    ] = None,
    crashes: Annotated[int, typer.Option(help="Kills of a process that appends.", min=1)] = 10,
    rounds: Annotated[int, typer.Option(help="Openings.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Of embeddings, pairs, fit and kills.", min=0)] = 0,
) -> None:
    """An embedding store at size: seconds to open, memory to train a head, committed rows lost to crashes."""
    from eval.bench_store import StorePlan, bench_store, shown
    from eval.report import emit

    plan = StorePlan(rows, dimension, samples, pairs, head, crashes, rounds, seed)
    found, checks, settings = bench_store(folder, plan)
    emit("store", found, checks, settings, shown(found))


app = make_group(
    {
        "decode": decode,
        "steer": steer,
        "judges": judges,
        "best-of-n": best_of_n,
        "scoring": scoring,
        "heads": heads,
        "store": store,
        "ensembles": ensembles,
        "lens": lens,
        "vllm": vllm,
        "soak": soak,
    },
    lists={"decode": ("--methods", "--k"), "ensembles": LISTS, "lens": LENS_LISTS},
)

if __name__ == "__main__":
    run(app)
