"""`python -m rewards.relabel STORE LABELS... --label-column NAME --output NEW`: labels for embedded rows.

    python -m decoder.generate --prompts prompts.jsonl -n 10 --beta 0 --output samples.jsonl --embed store
    python -m eval.gold samples.jsonl --gold sentiment --output judged.jsonl
    python -m rewards.relabel store judged.jsonl --label-column golden=gold --output labelled

What is embedded while it is drawn is judged only afterwards; and people's labels come later still.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError

StoreFolder = Annotated[Path, typer.Argument(help="Embedding store.", metavar="STORE")]
Data = Annotated[
    list[str],
    typer.Argument(
        help="Files with the labels: generations, or tables of prompt_id, sample_index and labels.",
        metavar="LABELS...",
    ),
]
LabelColumn = Annotated[
    list[str], typer.Option(help="A number to take: FIELD or NAME=FIELD; scores.rm for one inside. Repeat.")
]
Output = Annotated[Path, typer.Option(help="Folder of the new store; it shares the embeddings' files.")]
IdColumn = Annotated[str | None, typer.Option(help="Of a table. [prompt_id]")]
IndexColumn = Annotated[str | None, typer.Option(help="Of a table. [sample_index]")]


def relabel(
    store: StoreFolder,
    labels: Data,
    label_column: LabelColumn,
    output: Output,
    prompt_id_column: IdColumn = None,
    sample_index_column: IndexColumn = None,
) -> None:
    """Copy a store with more labels, by prompt id and sample index, without copying its embeddings."""
    from rewards.embed_rows import Columns
    from rewards.store_labels import relabel as write

    if output.resolve() == store.resolve():
        raise UserError(f"--output {output} is the store itself: give a new folder")
    columns = Columns(None, None, prompt_id_column, sample_index_column, tuple(label_column))
    found = write(store, labels, columns, output)
    elsewhere = f"; {found.n_elsewhere} labels are of rows it lacks" if found.n_elsewhere else ""
    names = ", ".join(columns.label_names)
    typer.echo(f"{output}: {found.n_labelled} of {found.n_rows} rows have {names}{elsewhere}")


app = make_app(relabel)

if __name__ == "__main__":
    run(app)
