"""Label candidates with a judge, so that a probe learns to choose what the judge likes.

python -m decoder.best_of_n --prompts neutral.jsonl --n 8 --output candidates.jsonl
python -m eval.gold candidates.jsonl --gold sentiment --output labelled.jsonl
python -m rewards.train_elhsr labelled.jsonl --label gold --output probes/sentiment
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError


def gold(
    candidates: Annotated[str, typer.Argument(help="File of candidates, as decoder.best_of_n writes it.")],
    gold: Annotated[str, typer.Option(help="sentiment: P(positive); toxicity: P(not toxic).")],
    output: Annotated[Path, typer.Option(help='The same file, each generation with a "gold" in [0, 1].')],
    judge: Annotated[str, typer.Option(help="As in eval.run: minilm, detoxify, hf:MODEL, ...")] = "minilm",
) -> None:
    """Write candidates with the judge's verdict on each; those it cannot judge are left out."""
    from decoder.models import quiet_transformers
    from eval.candidates import gold_of, read_seeds

    if gold not in ("sentiment", "toxicity"):
        raise UserError(f"gold is {gold!r}: choose sentiment or toxicity")
    quiet_transformers()
    groups = read_seeds([candidates])
    found = gold_of(groups, gold, judge)[0]
    lift = 1.0 if gold == "toxicity" else 0.0  # gold negates toxicity; a label is a probability
    lines, kept, total = [], 0, 0.0
    for group, values in zip(groups[0], found, strict=True):
        pairs = zip(group.records, (values + lift).tolist(), strict=True)
        judged = [{**record, "gold": value} for record, value in pairs if value == value]
        kept, total = kept + len(judged), total + sum(record["gold"] for record in judged)
        line = {"id": group.prompt.id, "prompt": group.prompt.record(), "generations": judged}
        lines += [json.dumps(line, ensure_ascii=False) + "\n"] if judged else []
    try:
        output.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {output} ({error.strerror}): give another --output") from None
    n_samples = sum(len(group.records) for group in groups[0])
    print(f"{output}: {kept} of {n_samples} generations judged, mean {total / max(kept, 1):.3f}")


app = make_app(gold)

if __name__ == "__main__":
    run(app)
