"""`python -m rewards.train_arm DATA --output DIR`: from your labels to a steering reward.

python -m rewards.train_arm train.tsv --output arm
python -m rewards.train_arm train.tsv --output arm-backbone --form backbone
python -m rewards.train_arm train.tsv --output arm-taught --teacher rad --distil candidates
python -m rewards.train_arm train.tsv --output arm-distilled --form backbone --teacher rad --distil candidates
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError
from rewards.training_options import (
    BackboneOptions,
    Data,
    GeneratorOptions,
    TapOptions,
    TeacherOptions,
    TextOptions,
    pick,
    refuse_given,
    takes,
)

Output = Annotated[
    Path, typer.Option(help="Folder for the reward; for several labels and taps, one in it each.")
]
Form = Annotated[
    Literal["tap", "backbone"],
    typer.Option(
        help="Read the generator's own states, at no cost, or train a second model that reads the text too."
    ),
]
Rank = Annotated[
    int | None, typer.Option(min=1, help="Default: 16 or 64, chosen; for a backbone a full matrix.")
]
OutputForm = Annotated[
    Literal["log_probability", "probability"] | None,
    typer.Option(
        help="r is log P(attribute), or P(attribute) as in the papers. Default: log_probability; after "
        "squared error, probability."
    ),
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Default: 6; for a backbone 2.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a reward in the output folder.")]


@takes(TextOptions, GeneratorOptions, TapOptions, BackboneOptions, TeacherOptions)
def train_arm(
    data: Data,
    output: Output,
    form: Form = "tap",
    rank: Rank = None,
    epochs: Epochs = None,
    output_form: OutputForm = None,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Train a steering reward from labelled texts: labels are 0/1, True/False or numbers in [0, 1].

    The tap form chooses layers, rank and weight decay on an eighth of the texts and calibrates on it. The
    backbone form keeps the weights that do best on it, and goes on where an interrupted run stopped. Both
    report AUC, accuracy and calibration error by how much of a text was read.
    """
    from rewards.arm_material import gather
    from rewards.output_folder import plan_output

    texts, tap = pick(TextOptions, options), pick(TapOptions, options)
    generator = pick(GeneratorOptions, options)
    backbone, teacher = pick(BackboneOptions, options), pick(TeacherOptions, options)
    for other in (backbone, TeacherOptions(regularise=teacher.regularise)) if form == "tap" else (tap,):
        refuse_given(form, other)
    teacher.check()
    wanted = texts.data(data)
    layers = _parse_layers(tap.layers)
    columns = wanted.label_columns() if form == "tap" else ()
    places = plan_output(output, columns, overwrite=overwrite)
    material = gather(wanted)
    # torch takes seconds to import; neither --help nor a mistake in the data must wait for it
    if form == "tap":
        from rewards.arm_run import HeadOptions, ModelOptions, train_and_save

        form_of_r = output_form or "log_probability"
        decay, length = tap.weight_decay, texts.max_length
        head = HeadOptions(layers, rank, decay, tap.summary, form_of_r, epochs or 6, length, texts.seed)
        train_and_save(
            material, head, ModelOptions(*generator.values()), output,
            places=places, cache=tap.cache, teaching=teacher,
        )  # fmt: skip
    else:
        from rewards.backbone_run import Wanted, train_backbone

        reward = Wanted("backbone_arm", rank, epochs or 2, output_form, texts.max_length, texts.seed)
        train_backbone(material, reward, backbone, teacher, generator, output)


def _parse_layers(layers: str | None) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in (layers or "").replace(",", " ").split()}))
    except ValueError:
        raise UserError(f"--layers is {layers!r}: give numbers, as 15,21") from None


app = make_app(train_arm)

if __name__ == "__main__":
    run(app)
