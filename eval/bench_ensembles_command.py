"""The command of `eval.bench` on ensembles of reward heads, and where choosing by them goes wrong.

python -m eval.bench ensembles store --golden harmless --flip-rate 0 0.25 --output ensembles
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LISTS = ("--flip-rate", "--kappa", "--ns")  # options that take several values in a row


def ensembles(
    store: Annotated[Path, typer.Argument(help="Embeddings with golden rewards, of rewards.embed.")],
    test: Annotated[Path | None, typer.Option(help="Store to test on, if another.")] = None,
    test_samples: Annotated[
        int | None,
        typer.Option(help="Prompts with so many samples are for testing alone. [the largest n]", min=2),
    ] = None,
    golden: Annotated[str, typer.Option(help="Their label that is the golden reward.")] = "golden",
    head: Annotated[str, typer.Option(help="As in rewards.train_head, such as bt-mlp, lgb-clf.")] = "bt-mlp",
    pairing: Annotated[str, typer.Option(help="within, cross, random, diverse, ...")] = "within",
    pairs: Annotated[int, typer.Option(help="To train on.", min=10)] = 2000,
    flip_rates: Annotated[
        list[float] | None, typer.Option("--flip-rate", help="Shares of wrong labels. [0 0.25]")
    ] = None,
    members: Annotated[int, typer.Option(help="Heads an ensemble.", min=1)] = 5,
    kappas: Annotated[
        list[float] | None,
        typer.Option("--kappa", help="Of mean-var and mean-std, a row of each. [0.5]"),
    ] = None,
    bootstrap: Annotated[bool, typer.Option(help="Members draw their pairs with replacement.")] = False,
    seeds: Annotated[int, typer.Option(help="Ensembles, of other pairs, labels and weights.", min=1)] = 5,
    ns: Annotated[
        list[int] | None, typer.Option("--ns", help="Samples that compete. [1 2 4 8 16 32 64]")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for tables and pictures.")] = None,
) -> None:
    """Ensembles of heads against one head under label noise, and overoptimisation: golden over proxy."""
    from eval.bench_ensembles import EnsemblePlan, bench_ensembles
    from eval.ensembles_report import check_output, checks, lines, rows, summarise, write
    from eval.report import emit

    asked = EnsemblePlan(
        golden, head, pairing, pairs, tuple(dict.fromkeys([0.0, 0.25] if flip_rates is None else flip_rates)),
        members, tuple(dict.fromkeys([0.5] if kappas is None else kappas)), bootstrap, seeds,
        tuple(sorted({1, *(ns or (2, 4, 8, 16, 32, 64))})), test_samples,
    )  # fmt: skip
    if output is not None:
        check_output(output)
    found = bench_ensembles(store, test, asked)
    summaries = summarise(found)
    if output is not None:
        write(output, found, summaries)  # first: whoever reads the tables through a pipe may leave early
    told = lines(found, summaries)
    emit("ensembles", rows(found, summaries), checks(found, summaries), found.settings, told)
