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


Store = Annotated[Path, typer.Argument(help="Embeddings with golden rewards, of rewards.embed.")]
Part = Annotated[
    str, typer.Option(help="table, on the test prompts; ablations, on prompts held out of the others; text.")
]
Methods = Annotated[list[str] | None, typer.Option("--method", help="Beside none and pairing. [all]")]
Ratios = Annotated[
    list[float] | None, typer.Option("--ratio", help="Pairs over seed pairs. [4 8; ablations 4; text 8]")
]
Sizes = Annotated[
    list[int] | None,
    typer.Option("--size", help="Seed pairs. [100 300 1000 3000; ablations 300 1000; text 1000]"),
]
Output = Annotated[
    Path | None, typer.Option(help="Folder for results and pictures; an interrupted run goes on there.")
]
TestSamples = Annotated[int, typer.Option(help="Prompts with so many samples are for testing alone.", min=2)]
Asked = Annotated[str | None, typer.Option("--question", help="With text: asked about {text}, in its place.")]
Answers = Annotated[str, typer.Option(help="With text: two words to go on with, the good one first.")]


def lens(
    store: Store,
    part: Part = "table",
    golden: Annotated[str, typer.Option(help="Their label that is the golden reward.")] = "golden",
    flip_rate: Annotated[float, typer.Option(help="Share of wrong labels.")] = 0.1,
    head: Annotated[str, typer.Option(help="bt-mlp, bt-linear or clf-mlp.")] = "bt-mlp",
    steps: Annotated[int, typer.Option(help="Updates of every head.", min=20)] = 400,
    methods: Methods = None,
    ratios: Ratios = None,
    sizes: Sizes = None,
    seeds: Annotated[int | None, typer.Option(help="[5; ablations and text 3]", min=1)] = None,
    n: Annotated[int | None, typer.Option("--n", help="Samples that compete. [16; ablations 8]")] = None,
    test_samples: TestSamples = 16,
    output: Output = None,
    workers: Annotated[int, typer.Option(help="Processes of one thread; 0: none but this.", min=0)] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how long it would take.")] = False,
    prompts: Annotated[Path | None, typer.Option(help="With text: the store's prompts, JSONL.")] = None,
    model: Annotated[str, typer.Option(help="With text: what embedded the store.")] = "smollm2-135m",
    limit: Annotated[int | None, typer.Option(help="With text: new pairs at most.", min=10)] = None,
    question: Asked = None,
    answers: Answers = "positive,negative",
) -> None:
    """LENS against no augmentation, pairing, noise, Gaussians, mixup and more real pairs.

    --part ablations chooses every method's options on prompts of its own; the table in the same output uses
    them. --part text draws and judges new texts with the generator, and says what that costs beside LENS.
    """
    from eval.lens_plan import LensPlan

    usual = _usual(part)
    plan = LensPlan(
        "table" if part == TEXT else part, golden, head, flip_rate, tuple(dict.fromkeys(ratios or usual[1])),
        tuple(sorted(set(sizes or usual[0]))), seeds or usual[2], steps, n or usual[3], test_samples,
    )  # fmt: skip
    if part == TEXT:
        _text(store, plan, prompts, model, limit, output, (question, answers), dry_run=dry_run)
    else:
        _cells(store, plan, methods, output, workers, dry_run=dry_run)


def _usual(part: str) -> tuple[list[int], list[float], int, int]:
    """Return the defaults of a part. Raises UserError for one that is none."""
    from decoder.contracts import UserError
    from rewards.heads import nearest

    if part not in DEFAULTS:
        raise UserError(f"no part is called {part!r}: {nearest(part, DEFAULTS)}")
    return DEFAULTS[part]


def _text(
    store: Path,
    plan: LensPlan,
    prompts: Path | None,
    model: str,
    limit: int | None,
    output: Path | None,
    asked: tuple[str | None, str],
    *,
    dry_run: bool,
) -> None:
    """Run what is drawn and judged as text."""
    from decoder.contracts import UserError

    if prompts is None or dry_run:
        raise UserError("--part text needs the store's --prompts, and has no --dry-run: it measures its cost")
    from eval.lens_text import make_question
    from eval.lens_text_run import text_part

    text_part(store, plan, prompts, model, limit, output, make_question(*asked))


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
