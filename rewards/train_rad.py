"""`python -m rewards.train_rad DATA --output DIR`: from your labels to a RAD reward.

python -m rewards.train_rad train.tsv --output rad
python -m decoder.generate --reward rad
python -m rewards.train_arm train.tsv --output arm --form backbone --teacher rad
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from decoder.cli import make_app, run
from rewards.train_arm import Output, OutputForm, Overwrite
from rewards.training_options import (
    BackboneOptions,
    Data,
    GeneratorOptions,
    TeacherOptions,
    TextOptions,
    pick,
    takes,
)

Epochs = Annotated[int, typer.Option(min=1)]


@takes(TextOptions, GeneratorOptions, BackboneOptions)
def train_rad(
    data: Data,
    output: Output,
    epochs: Epochs = 2,
    output_form: OutputForm = None,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Train RAD from labelled texts: a language model with a head that values every text it has read.

    It steers best and costs most, for in a decode it reads each candidate; it can teach an ARM, which does
    not. Keeps the weights that do best on an eighth of the texts, goes on where an interrupted run stopped,
    and reports AUC, accuracy and calibration error by how much of a text was read. With its defaults it is
    also FUDGE's prefix classifier: r is log P(attribute | text with the candidate).
    """
    from rewards.arm_material import gather
    from rewards.output_folder import plan_output

    texts = pick(TextOptions, options)
    wanted = texts.data(data)
    plan_output(output, (), overwrite=overwrite)
    material = gather(wanted)
    # torch takes seconds to import; neither --help nor a mistake in the data must wait for it
    from rewards.backbone_run import Wanted, train_backbone

    train_backbone(
        material,
        Wanted("rad", None, epochs, output_form, texts.max_length, texts.seed),
        pick(BackboneOptions, options),
        TeacherOptions(),
        pick(GeneratorOptions, options),
        output,
    )


app = make_app(train_rad)

if __name__ == "__main__":
    run(app)
