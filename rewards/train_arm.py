"""`python -m rewards.train_arm DATA --output DIR`: from your labels to a steering reward."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError

# What each option is; the defaults stand below.
Data = Annotated[
    list[str],
    typer.Argument(
        help="CSV, TSV, JSONL or Parquet files, data set folders or hub ids (owner/name). "
        "FILE::text=COLUMN,label=COLUMN,positive=VALUE overrides the options for one of them.",
        metavar="DATA...",
    ),
]
Output = Annotated[Path, typer.Option(help="Folder for the reward; for several labels, one in it each.")]
TextColumn = Annotated[str | None, typer.Option(help="Name, or position from 0 in a file without a header.")]
LabelColumn = Annotated[
    list[str] | None, typer.Option(help="As --text-column. Several times: a reward for each.")
]
PositiveLabel = Annotated[
    list[str] | None, typer.Option(help="A value that counts as 1, all others as 0. May be repeated.")
]
Detokenize = Annotated[bool, typer.Option(help="Undo the spacing of tokenised corpora (SST-2).")]
CleanSocial = Annotated[bool, typer.Option(help="Strip RT, @names, links and the like.")]
Validation = Annotated[
    str | None, typer.Option(help="Choose and calibrate on this file instead of an eighth of DATA.")
]
Test = Annotated[list[str] | None, typer.Option(help="Only report on this file. May be repeated.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use at most this many texts of DATA.")]
Model = Annotated[str, typer.Option(help="Alias, folder, GGUF file or hub id.")]
Layers = Annotated[
    str | None, typer.Option(help="Taps to read, as 15,21. Default: the best one or two of five.")
]
Rank = Annotated[int | None, typer.Option(min=1, help="Default: 16 or 64, chosen.")]
WeightDecay = Annotated[float | None, typer.Option(min=0, help="Default: 1 or 10, chosen.")]
Summary = Annotated[
    Literal["text", "generated", "none", "mean"],
    typer.Option(
        help="Running mean of the states over the whole text, over the generated part (works where an "
        "engine skips cached prompts), or none; mean is that over the text without the last state."
    ),
]
OutputForm = Annotated[
    Literal["log_probability", "probability"],
    typer.Option(help="r is log P(attribute), or P(attribute) as in the papers."),
]
Epochs = Annotated[int, typer.Option(min=1)]
MaxLength = Annotated[int, typer.Option(min=2, help="Tokens read of a text.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the split and of the fit.")]
Cache = Annotated[Path | None, typer.Option(help="Folder to keep the states read in.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a reward in the output folder.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Revision = Annotated[str | None, typer.Option(help="Of a hub model.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]


def train_arm(
    data: Data,
    output: Output,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    positive_label: PositiveLabel = None,
    detokenize: Detokenize = False,
    clean_social: CleanSocial = False,
    validation: Validation = None,
    test: Test = None,
    limit: Limit = None,
    model: Model = "smollm2-135m",
    layers: Layers = None,
    rank: Rank = None,
    weight_decay: WeightDecay = None,
    summary: Summary = "text",
    output_form: OutputForm = "log_probability",
    epochs: Epochs = 6,
    max_length: MaxLength = 256,
    seed: Seed = 0,
    cache: Cache = None,
    overwrite: Overwrite = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train a steering reward from labelled texts: labels are 0/1, True/False or numbers in [0, 1].

    Chooses layers, rank and weight decay on an eighth of the texts, calibrates on it, and reports AUC,
    accuracy and calibration error by how much of a text was read.
    """
    from rewards.arm_material import DataOptions, gather
    from rewards.labelled_text import Source
    from rewards.output_folder import plan_output

    taps = _parse_layers(layers)
    columns = Source("", text_column, tuple(label_column or ()), frozenset(positive_label or ()))
    tests = tuple(test or ())
    options = DataOptions(tuple(data), columns, detokenize, clean_social, validation, tests, limit, seed)
    places = plan_output(output, options.label_columns(), overwrite=overwrite)
    material = gather(options)
    # torch takes seconds to import; neither --help nor a mistake in the data must wait for it
    from rewards.arm_run import HeadOptions, ModelOptions, train_and_save

    head = HeadOptions(taps, rank, weight_decay, summary, output_form, epochs, max_length, seed)
    generator = ModelOptions(model, dtype, device, revision, trust_remote_code)
    train_and_save(material, head, generator, output, places=places, cache=cache)


def _parse_layers(layers: str | None) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in (layers or "").replace(",", " ").split()}))
    except ValueError:
        raise UserError(f"--layers is {layers!r}: give numbers, as 15,21") from None


app = make_app(train_arm)

if __name__ == "__main__":
    run(app)
