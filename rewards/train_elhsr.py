"""`python -m rewards.train_elhsr ROLLOUTS.jsonl --output DIR`: from labelled samples to a Best-of-N probe.

python -m decoder.best_of_n --problems arithmetic:train:800:0 --n 8 --stop '\\n' --output rollouts.jsonl
python -m rewards.train_elhsr rollouts.jsonl --output probes/arithmetic
python -m decoder.best_of_n --problems arithmetic:test:400:0 --stop '\\n' --scorer probes/arithmetic
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError
from rewards.output_folder import plan_output

Rollouts = Annotated[
    str,
    typer.Argument(
        help="JSONL of prompts with their generations, as decoder.best_of_n writes it.", metavar="ROLLOUTS"
    ),
]
Output = Annotated[Path, typer.Option(help="Folder for the probe.")]
Label = Annotated[
    str, typer.Option(help="Field of a generation that says how good it is; scores.NAME for one inside.")
]
Threshold = Annotated[float | None, typer.Option(help="A label of at least this is 1, others are 0.")]
Test = Annotated[list[str] | None, typer.Option(help="Only report on this file. May be repeated.")]
Limit = Annotated[int | None, typer.Option(min=4, help="Use the first prompts only.")]
Curve = Annotated[
    list[int] | None,
    typer.Option("--learning-curve", min=5, help="Fit on so many prompts too, and report. May be repeated."),
]
Repeat = Annotated[int, typer.Option(min=1, help="Fit with so many seeds and report all; the first is kept.")]
Form = Annotated[
    Literal["elhsr", "embedding", "top-logprobs"],
    typer.Option(
        help="A gated linear score of all tokens; an MLP on their pooled states; or a gated linear score of "
        "the log-probabilities that closed APIs return."
    ),
]
Pooling = Annotated[Literal["mean", "last"], typer.Option(help="Of an embedding: over the tokens.")]
Alternatives = Annotated[int, typer.Option(min=1, help="Log-probabilities a token, of top-logprobs.")]
Layers = Annotated[str, typer.Option(help="Taps to read: all, last-four, or numbers as 16,20,24 (0 to L).")]
Gate = Annotated[bool, typer.Option(help="Weigh tokens by a learnt gate, or all alike.")]
NormOption = Annotated[
    Literal["rms", "none"], typer.Option(help="Divide each tap by its root mean square, or not.")
]
FeaturesOption = Annotated[
    Literal["hidden", "logits"], typer.Option(help="Weights on hidden states, or one a vocabulary entry.")
]
Likelihood = Annotated[
    bool, typer.Option(help="Of elhsr: read each token's log-probability beside the states.")
]
Components = Annotated[
    int, typer.Option(min=0, help="Leading directions of each tap to fit in; 0 for all. Mapped back after.")
]
LossOption = Annotated[
    Literal["ce", "hinge", "dpo", "infonca", "nca"],
    typer.Option(help="ce: is it good? dpo: is it better than others of its prompt?"),
]
Epochs = Annotated[int, typer.Option(min=1)]
Patience = Annotated[int, typer.Option(min=1, help="Epochs without a better validation loss before the end.")]
LearningRate = Annotated[float, typer.Option(min=0)]
WeightDecay = Annotated[float, typer.Option(min=0)]
BatchPrompts = Annotated[int, typer.Option(min=1, help="Prompts a step.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the split and of the fit.")]
Chat = Annotated[bool, typer.Option(help="The rollouts' plain prompts went through the chat template.")]
Model = Annotated[str, typer.Option(help="Alias, folder, GGUF file or hub id: the one that drew them.")]
Cache = Annotated[Path | None, typer.Option(help="Folder to keep the states read in.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a probe in the output folder.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Revision = Annotated[str | None, typer.Option(help="Of a hub model.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]
NAMED_LAYERS = {"all": (), "last-four": (-4, -3, -2, -1)}


def train_elhsr(
    rollouts: Rollouts,
    output: Output,
    label: Label = "correct",
    threshold: Threshold = None,
    test: Test = None,
    limit: Limit = None,
    learning_curve: Curve = None,
    repeat: Repeat = 1,
    form: Form = "elhsr",
    layers: Layers = "all",
    gate: Gate = True,
    norm: NormOption = "rms",
    features: FeaturesOption = "hidden",
    likelihood: Likelihood = False,
    components: Components = 64,
    pooling: Pooling = "mean",
    alternatives: Alternatives = 5,
    loss: LossOption = "ce",
    epochs: Epochs = 40,
    patience: Patience = 3,
    learning_rate: LearningRate = 1e-3,
    weight_decay: WeightDecay = 1e-2,
    batch_prompts: BatchPrompts = 16,
    seed: Seed = 0,
    chat: Chat = False,
    model: Model = "smollm2-135m",
    cache: Cache = None,
    overwrite: Overwrite = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train a probe that scores whole samples by the states of the model that drew them."""
    taps = parse_layers(layers)
    plan_output(output, ["probe"], overwrite=overwrite)

    from rewards.arm_run import ModelOptions
    from rewards.elhsr_material import DataOptions
    from rewards.elhsr_run import Search, train_and_save
    from rewards.fit_elhsr import Recipe
    from rewards.probe_forms import make_shape

    data = DataOptions(rollouts, tuple(test or ()), label, threshold, limit, loss)
    recipe = Recipe(loss, gate, epochs, patience, learning_rate, weight_decay, batch_prompts, seed)
    shape = make_shape(form, taps, gate, norm, features, likelihood, components, pooling, alternatives)
    search = Search(shape, recipe, tuple(learning_curve or ()), repeat)
    generator = ModelOptions(model, dtype, device, revision, trust_remote_code)
    train_and_save(data, search, generator, output, chat=chat, cache=cache)


def parse_layers(layers: str) -> tuple[int, ...]:
    """Return the layers of a name or a list of numbers; () stands for all. Raises UserError for others."""
    if layers in NAMED_LAYERS:
        return NAMED_LAYERS[layers]
    try:
        return tuple(sorted({int(part) for part in layers.replace(",", " ").split()}))
    except ValueError:
        raise UserError(f"--layers is {layers!r}: give all, last-four, or numbers as 16,20,24") from None


app = make_app(train_elhsr, lists=["--learning-curve"])

if __name__ == "__main__":
    run(app)
