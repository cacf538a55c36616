"""The command of `eval.bench` on augmented preference pairs: LENS, its rivals and what it costs.

python -m eval.bench lens store --golden sentiment --part ablations --output lens
python -m eval.bench lens store --golden sentiment --output lens
python -m eval.bench lens store --golden sentiment --part text --prompts prompts.jsonl --output lens
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # loaded when it runs
    from eval.lens_plan import Arm, LensPlan

LENS_LISTS = ("--ratio", "--size", "--method")  # options that take several values in a row
TEXT = "text"
# of each part: seed pairs, ratios, seeds, samples that compete
DEFAULTS: dict[str, tuple[list[int], list[float], int, int]] = {
    "table": ([100, 300, 1000, 3000], [4, 8], 5, 16),
    "ablations": ([300, 1000], [4], 3, 8),
    TEXT: ([1000], [8], 3, 16),
}


def lens(
    store: Annotated[Path, typer.Argument(help="Embeddings with golden rewards, of rewards.embed.")],
    part: Annotated[
        str,
        typer.Option(
            help="table, on the test prompts; ablations, on prompts held out of the others; or text."
        ),
    ] = "table",
    golden: Annotated[str, typer.Option(help="Their label that is the golden reward.")] = "golden",
    flip_rate: Annotated[float, typer.Option(help="Share of wrong labels.")] = 0.1,
    head: Annotated[str, typer.Option(help="bt-mlp, bt-linear or clf-mlp.")] = "bt-mlp",
    steps: Annotated[int, typer.Option(help="Updates of every head.", min=20)] = 400,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Beside none and pairing. [all]")
    ] = None,
    ratios: Annotated[
        list[float] | None, typer.Option("--ratio", help="Pairs over seed pairs. [4 8; ablations 4; text 8]")
    ] = None,
    sizes: Annotated[
        list[int] | None,
        typer.Option("--size", help="Seed pairs. [100 300 1000 3000; ablations 300 1000; text 1000]"),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="[5; ablations and text 3]", min=1)] = None,
    n: Annotated[int | None, typer.Option("--n", help="Samples that compete. [16; ablations 8]")] = None,
    test_samples: Annotated[
        int, typer.Option(help="Prompts with so many samples are for testing alone.", min=2)
    ] = 16,
    output: Annotated[
        Path | None, typer.Option(help="Folder for results and pictures; an interrupted run goes on there.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes of one thread; 0: none but this.", min=0)] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how long it would take.")] = False,
    prompts: Annotated[Path | None, typer.Option(help="With text: the store's prompts, JSONL.")] = None,
    model: Annotated[str, typer.Option(help="With text: what embedded the store.")] = "smollm2-135m",
    limit: Annotated[int | None, typer.Option(help="With text: new pairs at most.", min=10)] = None,
    question: Annotated[
        str | None, typer.Option(help="With text: what the generator is asked about {text}, in its place.")
    ] = None,
    answers: Annotated[
        str, typer.Option(help="With text: what it may answer, the good word first.")
    ] = "positive,negative",
) -> None:
    """LENS against no augmentation, pairing, noise, Gaussians, mixup and more real pairs.

    --part ablations chooses every method's options on prompts of its own; the table in the same output uses
    them. --part text draws and judges new texts with the generator, and says what that costs beside LENS.
    """
    from decoder.contracts import UserError
    from eval.lens_plan import LensPlan
    from rewards.heads import nearest

    if part not in DEFAULTS:
        raise UserError(f"no part is called {part!r}: {nearest(part, DEFAULTS)}")
    usual = DEFAULTS[part]
    plan = LensPlan(
        "table" if part == TEXT else part, golden, head, flip_rate, tuple(dict.fromkeys(ratios or usual[1])),
        tuple(sorted(set(sizes or usual[0]))), seeds or usual[2], steps, n or usual[3], test_samples,
    )  # fmt: skip
    if part != TEXT:
        _cells(store, plan, methods, output, workers, dry_run=dry_run)
        return
    if prompts is None or dry_run:
        raise UserError("--part text needs the store's --prompts, and has no --dry-run: it measures its cost")
    from eval.lens_text import make_question
    from eval.lens_text_run import text_part

    text_part(store, plan, prompts, model, limit, output, make_question(question, answers))


def _cells(
    store: Path,
    plan: LensPlan,
    methods: list[str] | None,
    output: Path | None,
    workers: int,
    *,
    dry_run: bool,
) -> None:
    """Run the table or the ablations, or say how long that would take."""
    from eval.bench_lens import bench_lens, estimate_seconds
    from eval.lens_report import check_output, report
    from eval.report import emit

    arms = _arms(plan, methods, output)
    if dry_run:
        told: dict[str, Any] = estimate_seconds(store, plan, arms, workers)
        emit("lens", [{"part": plan.part, **told}], {}, plan.settings())
        return
    if output is not None:
        check_output(output)
    report(bench_lens(store, plan, arms, output, workers), output)


def _arms(plan: LensPlan, methods: list[str] | None, output: Path | None) -> list[Arm]:
    from eval.bench_lens import read_tuned
    from eval.lens_plan import METHODS, ablation_arms, table_arms

    wanted = methods or METHODS
    return ablation_arms(wanted) if plan.part == "ablations" else table_arms(read_tuned(output), wanted)
