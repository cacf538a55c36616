"""`python -m rewards.embed DATA... --model M --output STORE`: texts to embeddings, kept to train heads on.

    python -m decoder.best_of_n --prompts prompts.jsonl --n 10 --output samples.jsonl
    python -m rewards.embed samples.jsonl --label-column golden=scores.sentiment --output store
    python -m rewards.train_head store --output heads/sentiment

DATA are generations or tables of texts. A run that was interrupted goes on where it stopped, and more DATA
of the same kind is added to the same store. The arrays of "Reusing Embeddings" become a store by
--paper-arrays EMBEDDINGS.npy REWARDS.npy, where --model, --layer and --pooling say what made them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError
from rewards.training_options import pick, takes

if TYPE_CHECKING:
    from rewards.embed_rows import Columns

Data = Annotated[
    list[str] | None,
    typer.Argument(
        help="JSONL as decoder.generate and decoder.best_of_n write it, or CSV, TSV, JSONL, Parquet, data "
        "set folders and hub ids with a text column; FILE::text=COLUMN or FILE::split=NAME for one of them.",
        metavar="DATA...",
        show_default=False,
    ),
]
Output = Annotated[Path, typer.Option(help="Folder of the store: a new one, or one to add to.")]


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Which texts and labels to read."""

    text_column: Annotated[str | None, typer.Option(help="Of a table; position from 0 without a header.")] = (
        None
    )
    prompt_column: Annotated[
        str | None, typer.Option(help="What stands before the text. [prompt, if there]")
    ] = None
    prompt_id_column: Annotated[
        str | None, typer.Option(help="Texts of one prompt share it. [prompt_id, if there]")
    ] = None
    sample_index_column: Annotated[
        str | None, typer.Option(help="[sample_index, if there, else counted]")
    ] = None
    label_column: Annotated[
        list[str] | None,
        typer.Option(
            help="A number to keep: FIELD or NAME=FIELD; scores.rm for one inside. May be repeated."
        ),
    ] = None
    id_prefix: Annotated[str, typer.Option(help="Put before every prompt id, where files share ids.")] = ""
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first texts only.")] = None

    def columns(self) -> Columns:
        """Return what to read of a file."""
        from rewards.embed_rows import Columns

        labels = tuple(self.label_column or ())
        return Columns(
            self.text_column, self.prompt_column, self.prompt_id_column, self.sample_index_column, labels
        )


@dataclass(frozen=True, slots=True)
class KindOptions:
    """What an embedding is; texts of one store share all of it."""

    model: Annotated[
        str | None,
        typer.Option(help="Language or encoder model: alias, folder, GGUF file or hub id. [smollm2-135m]"),
    ] = None
    layer: Annotated[
        list[int] | None,
        typer.Option(help="0 is the embeddings, -1 the last. Several times: side by side. [-1]"),
    ] = None
    pooling: Annotated[
        Literal["last", "mean"] | None,
        typer.Option(help="The last token's state, or the mean. [last; mean of an encoder model]"),
    ] = None
    text: Annotated[
        Literal["all", "response"],
        typer.Option(
            help="Pool over prompt and response, or over the response alone, read after its prompt."
        ),
    ] = "all"
    template: Annotated[
        Literal["none", "chat"], typer.Option(help="Put prompts through the model's chat template, or not.")
    ] = "none"
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens read; longer prompts lose their beginnings. [all the model reads]"),
    ] = None
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"], typer.Option(help="Of the embeddings on disk.")
    ] = "float16"
    revision: Annotated[str | None, typer.Option(help="Of a hub model.")] = None


@dataclass(frozen=True, slots=True)
class WorkOptions:
    """How the work is done."""

    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens that are read together.")] = 2048
    rows_per_shard: Annotated[int | None, typer.Option(min=1, help="Rows a file. [64 MB of embeddings]")] = (
        None
    )
    model_dtype: Annotated[
        str, typer.Option(help="What the model computes in: auto, float32, bfloat16 or float16.")
    ] = "auto"
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto"
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False


@dataclass(frozen=True, slots=True)
class ArrayOptions:
    """The arrays of the paper, in place of DATA."""

    paper_arrays: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="EMBEDDINGS REWARDS", help="Two .npy files in place of DATA."),
    ] = None
    layout: Annotated[
        Literal["nk", "kn"] | None,
        typer.Option(help="Of the arrays: (prompts, samples, D), or (samples, prompts, D)."),
    ] = None


@takes(DataOptions, KindOptions, WorkOptions, ArrayOptions)
def embed(output: Output, data: Data = None, **options: Any) -> None:
    """Embed texts with a model and keep the vectors, with ids and labels, in a store."""
    texts, kind = pick(DataOptions, options), pick(KindOptions, options)
    work, arrays = pick(WorkOptions, options), pick(ArrayOptions, options)
    if bool(data) == bool(arrays.paper_arrays):
        raise UserError("give DATA, or --paper-arrays EMBEDDINGS REWARDS, and one of the two")
    if arrays.paper_arrays:
        _copy_arrays(output, arrays, texts, kind, work)
    else:
        _embed_texts(output, data or [], texts, kind, work)


def _embed_texts(
    output: Path, data: list[str], texts: DataOptions, kind: KindOptions, work: WorkOptions
) -> None:
    from rewards.embed_rows import read_rows

    columns = texts.columns()
    rows = read_rows(data, columns, id_prefix=texts.id_prefix, limit=texts.limit)  # before slow imports

    from decoder.models import DEFAULT_MODEL, quiet_transformers
    from rewards.embed_run import StoreOptions, embed_rows, report
    from rewards.embed_tokens import TextForm
    from rewards.encoder import EncoderOptions, load_encoder
    from rewards.store_rows import arrow

    arrow()
    quiet_transformers()
    encoder = load_encoder(
        kind.model or DEFAULT_MODEL,
        EncoderOptions(
            tuple(kind.layer or (-1,)), kind.pooling, TextForm(kind.text, kind.template), kind.max_length
        ),
        dtype=work.model_dtype,
        device=work.device,
        revision=kind.revision,
        trust_remote_code=work.trust_remote_code,
    )
    into = StoreOptions(kind.dtype, columns.label_names, work.batch_tokens, work.rows_per_shard)
    report(output, embed_rows(rows, encoder, output, into), encoder.tokeniser.max_tokens)


def _copy_arrays(
    output: Path, arrays: ArrayOptions, texts: DataOptions, kind: KindOptions, work: WorkOptions
) -> None:
    """Bring the paper's arrays into a store, of which the command line says what they are."""
    layers, names = tuple(kind.layer or ()), texts.columns().label_names or ("golden",)
    if kind.model is None or not layers or min(layers) < 0:
        raise UserError(
            "arrays do not say what made them: give --model and --layer, such as google/gemma-2b and its "
            "last, 18"
        )
    if arrays.paper_arrays is None or len(names) > 1:
        raise UserError(f"the arrays have one reward: name it with one --label-column, not {len(names)}")

    from rewards.embed_run import copy_arrays, report
    from rewards.paper_arrays import open_paper_arrays
    from rewards.store_manifest import Encoder, Manifest

    found = open_paper_arrays(*arrays.paper_arrays, layout=arrays.layout)
    encoder = Encoder(kind.model, revision=kind.revision or "")
    manifest = Manifest(
        encoder,
        found.dimension,
        layers,
        kind.pooling or "last",
        kind.dtype,
        names,
        max_tokens=kind.max_length,
    )
    report(output, copy_arrays(found, manifest, output, shard_rows=work.rows_per_shard))


app = make_app(embed)

if __name__ == "__main__":
    run(app)
