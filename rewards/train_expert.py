"""`python -m rewards.train_expert DATA --output DIR`: from your labels to an expert and an anti-expert.

python -m rewards.train_expert train.tsv --output expert
python -m decoder.generate --reward expert --beta 2
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError
from rewards.train_arm import Output, Overwrite
from rewards.training_options import BackboneOptions, Data, GeneratorOptions, TextOptions, pick, takes

Epochs = Annotated[int, typer.Option(min=1)]


@takes(TextOptions, GeneratorOptions, BackboneOptions)
def train_expert(
    data: Data, output: Output, epochs: Epochs = 2, overwrite: Overwrite = False, **options: Any
) -> None:
    """Train DExperts' two language models: one on texts with label 0.5 or more, one on the others.

    They steer by log P(token) of the first minus that of the second. Each learns to write its texts, by
    cross-entropy of the next token, keeps the weights that do best on an eighth of them, and goes on where
    an interrupted run stopped. --loss does not apply, and --adapt is lora or full.
    """
    from rewards.arm_material import gather
    from rewards.output_folder import plan_output

    texts, backbone = pick(TextOptions, options), pick(BackboneOptions, options)
    if backbone.loss is not None:
        raise UserError(f"--loss {backbone.loss} is about labels: leave it out, experts learn to write texts")
    if backbone.adapt == "none":
        raise UserError("--adapt none trains a head alone, and an expert has none: give lora or full")
    wanted = texts.data(data)
    plan_output(output, (), overwrite=overwrite)
    material = gather(wanted)
    if len(material.labelled.columns) > 1:
        raise UserError(
            f"{len(material.labelled.columns)} label columns: experts are trained for one, name it with "
            f"--label-column {material.labelled.columns[0]}"
        )
    # torch takes seconds to import; neither --help nor a mistake in the data must wait for it
    from rewards.expert_run import Wanted, train_experts

    learning = Wanted(epochs, texts.max_length, texts.seed)
    train_experts(material, learning, backbone, pick(GeneratorOptions, options), output)


app = make_app(train_expert)

if __name__ == "__main__":
    run(app)
