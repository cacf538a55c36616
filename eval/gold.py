"""Label candidates with a judge or a reward head: to teach a probe, or to keep several golden rewards.

    python -m decoder.best_of_n --prompts neutral.jsonl --n 8 --output candidates.jsonl
    python -m eval.gold candidates.jsonl --gold sentiment --output labelled.jsonl
    python -m rewards.train_elhsr labelled.jsonl --label gold --output probes/sentiment

Several in turn, each under a name of its own:

    python -m eval.gold samples.jsonl --gold sentiment --field sentiment --output one.jsonl
    python -m eval.gold one.jsonl --gold heads/harmless --field harmless --output two.jsonl
    python -m rewards.embed two.jsonl --label-column sentiment --label-column harmless --output store
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError

if TYPE_CHECKING:
    from eval.candidates import Floats, Group
    from rewards.embed_rows import TextRow

ATTRIBUTES = ("sentiment", "toxicity")
SAMPLE_FIELDS = (  # what decoder.generate and decoder.best_of_n write of a sample
    "text", "sample_index", "seed", "finish_reason", "num_tokens", "reward", "rewards", "token_ids",
    "token_rewards", "scores", "trace", "correct",
)  # fmt: skip


def gold(
    candidates: Annotated[
        str, typer.Argument(help="File of samples, as decoder.best_of_n or decoder.generate writes it.")
    ],
    gold: Annotated[
        str,
        typer.Option(
            help="sentiment: P(positive); toxicity: P(not toxic); or the folder of a head that "
            "rewards.train_head wrote: its score."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The same file, each generation with the number.")],
    judge: Annotated[
        str | None,
        typer.Option(help="Of sentiment or toxicity, as in eval.run: detoxify, hf:MODEL, ... [minilm]"),
    ] = None,
    field: Annotated[str, typer.Option(help="Name of the number in each generation.")] = "gold",
) -> None:
    """Write samples with a judge's verdict, or a head's score, of each; those without one are left out."""
    from eval.candidates import read_seeds

    _check(gold, judge, field)
    groups = read_seeds([candidates])[0]
    found = _judged(groups, gold, judge or "minilm") if gold in ATTRIBUTES else _scored(groups, Path(gold))
    lines, known = [], []
    for group, values in zip(groups, found, strict=True):
        pairs = zip(group.records, values.tolist(), strict=True)
        kept = [{**record, field: value} for record, value in pairs if value == value]
        known += [record[field] for record in kept]
        line = {"id": group.prompt.id, "prompt": group.prompt.record(), "generations": kept}
        lines += [json.dumps(line, ensure_ascii=False) + "\n"] if kept else []
    try:
        output.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {output} ({error.strerror}): give another --output") from None
    n_samples = sum(len(group.records) for group in groups)
    mean = sum(known) / max(len(known), 1)
    print(f"{output}: {len(known)} of {n_samples} generations have a {field}, mean {mean:.3f}")


def _check(gold: str, judge: str | None, field: str) -> None:
    if gold not in ATTRIBUTES and not Path(gold).is_dir():
        raise UserError(f"gold is {gold!r}: choose {', '.join(ATTRIBUTES)} or the folder of a reward head")
    if gold not in ATTRIBUTES and judge is not None:
        raise UserError(
            f"--judge {judge} is about {' and '.join(ATTRIBUTES)}, not the head {gold}: leave it out"
        )
    if not field.strip() or field.partition(".")[0] in SAMPLE_FIELDS:  # "scores.x" would hide a score x
        raise UserError(f"--field {field!r} is a name that samples use themselves: choose another, as 'gold'")


def _judged(groups: Sequence[Group], gold: str, judge: str) -> list[Floats]:
    """Return the judge's probability of the better side, (N,) a prompt; NaN where it has none."""
    from decoder.models import quiet_transformers
    from eval.candidates import gold_of

    quiet_transformers()
    lift = 1.0 if gold == "toxicity" else 0.0  # gold negates toxicity; a label is a probability
    return [values + lift for values in gold_of([groups], gold, judge)[0]]


def _scored(groups: Sequence[Group], folder: Path) -> list[Floats]:
    """Return a saved head's scores, (N,) a prompt; NaN where nothing is embedded."""
    import numpy as np

    from decoder.terminal import progress
    from rewards.head_store import read_encoder
    from rewards.heads import load_head
    from rewards.score_run import EncoderSource, text_job

    rows = [row for group in groups for row in _text_rows(group)]
    job = text_job(rows, load_head(folder), folder, read_encoder(folder), EncoderSource())
    scores: list[float] = []
    with progress("scoring", len(rows), 0) as advance:
        for first in range(0, len(rows), job.chunk):
            scores += job.score(first, min(first + job.chunk, len(rows))).tolist()
            advance(len(scores) - first)
    return np.split(np.array(scores), np.cumsum([len(group.records) for group in groups])[:-1])


def _text_rows(group: Group) -> Iterator[TextRow]:
    """Yield the samples as they are embedded: by their tokens as drawn, but the one that ended them."""
    from eval.candidates import token_ids
    from rewards.embed_rows import TextRow

    drawn = token_ids(group) if all("token_ids" in record for record in group.records) else None
    for index, record in enumerate(group.records):
        ids = None if drawn is None else drawn[index]
        if ids and record.get("finish_reason") == "stop":
            ids = ids[:-1]
        yield TextRow(group.prompt.id, index, group.prompt, record["text"], ids, (), group.prompt.source)


app = make_app(gold)

if __name__ == "__main__":
    run(app)
