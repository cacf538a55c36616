"""Label generated texts with a saved reward, to train another on what the generator itself writes.

    python -m eval.label rollouts.jsonl --reward ./teacher --label-column positive --output labelled.jsonl
    python -m rewards.train_arm labelled.jsonl --text-column text --label-column positive --output student

A head trained on a corpus alone meets other states when it steers. Its verdict on whole texts is far
better than on prefixes, so it can teach a second head what each beginning is likely to become.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decoder.cli import make_app, run


def label(
    generations: Annotated[list[str], typer.Argument(help="Files of generations, as eval.run reads them.")],
    reward: Annotated[str, typer.Option(help="Teacher: shipped name, or directory of an ARM or a RAD.")],
    output: Annotated[Path, typer.Option(help='JSONL of {"text", LABEL_COLUMN} to write.')],
    label_column: Annotated[str, typer.Option(help="Name of the labels, P(attribute).")] = "label",
    temperature: Annotated[
        float, typer.Option(help="Divide the teacher's log-odds by this; below 1 sharpens.", min=0.01)
    ] = 1.0,
    model: Annotated[str, typer.Option(help="The generator.")] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Write each text, prompt and continuation, with the teacher's probability of the attribute."""
    import json

    from decoder.models import load_model, quiet_transformers
    from eval.generations import read_generations
    from eval.whole_text import probabilities

    prompts = [prompt for name in generations for prompt in read_generations(name)]
    texts = [text for prompt in prompts for text in prompt.full_texts() if text.strip()]
    quiet_transformers()
    labels = probabilities(load_model(model, dtype=dtype, device=device), reward, texts, temperature)
    with output.open("w", encoding="utf-8") as file:
        for text, value in zip(texts, labels, strict=True):
            file.write(json.dumps({"text": text, label_column: round(value, 4)}, ensure_ascii=False) + "\n")
    print(f"{output}: {len(texts)} texts, mean {sum(labels) / len(labels):.3f}")


app = make_app(label)

if __name__ == "__main__":
    run(app)
