"""`python -m rewards.score FILE_OR_STORE --head HEAD --output SCORES.jsonl`: what a head says of texts.

python -m rewards.score store --head head --output scores.jsonl
python -m rewards.score generations.jsonl --head head --output scores.jsonl
python -m rewards.score answers.tsv --head head --output scores.jsonl --text-column answer
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError

Data = Annotated[
    str,
    typer.Argument(
        help="Embedding store, whose embeddings are scored as they are; or texts to embed: generations of "
        "decoder.generate or decoder.best_of_n, JSONL, CSV, TSV, Parquet, a data set, or - for JSONL on "
        "standard input.",
        metavar="FILE_OR_STORE",
    ),
]
HeadFolder = Annotated[Path, typer.Option(help="Folder of a head that rewards.train_head wrote.")]
Output = Annotated[Path, typer.Option(help='JSONL of {"prompt_id", "sample_index", "score"} to write.')]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start the output over, not resume it.")]
TextColumn = Annotated[str | None, typer.Option(help="Of a table: name, or position without a header.")]
PromptColumn = Annotated[str | None, typer.Option(help="What stands before the text.")]
IdColumn = Annotated[str | None, typer.Option(help="The prompt's id.")]
IndexColumn = Annotated[str | None, typer.Option(help="Which sample of its prompt the text is.")]
Model = Annotated[str | None, typer.Option(help="Where the head's encoder is now, if it was moved.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
BatchTokens = Annotated[int, typer.Option(min=1, help="Padded tokens that pass the encoder together.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the encoder.")
]


def score(
    data: Data,
    head: HeadFolder,
    output: Output,
    text_column: TextColumn = None,
    prompt_column: PromptColumn = None,
    prompt_id_column: IdColumn = None,
    sample_index_column: IndexColumn = None,
    model: Model = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_tokens: BatchTokens = 2048,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Score texts with a saved head, from a store's embeddings or by embedding them as it was trained.

    An interrupted run goes on where it stopped. A text without a token has the score null.
    """
    if not head.is_dir():
        raise UserError(f"head {head} is no folder: give one that rewards.train_head wrote")

    from rewards.embed_rows import Columns
    from rewards.score_run import EncoderSource
    from rewards.score_run import score as write

    columns = Columns(text_column, prompt_column, prompt_id_column, sample_index_column)
    source = EncoderSource(model, dtype, device, batch_tokens, trust_remote_code)
    write(data, head, output, columns, source, resume=not overwrite)


app = make_app(score)

if __name__ == "__main__":
    run(app)
