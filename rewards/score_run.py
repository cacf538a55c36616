"""One run of `rewards.score`: scores of a store's rows by their embeddings, or of texts that are embedded."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from decoder.contracts import UserError
from decoder.models import quiet_transformers
from decoder.pending import to_json
from decoder.replay import batches_by_length
from rewards.embed_rows import Columns, TextRow, read_rows
from rewards.embed_tokens import TextForm
from rewards.encoder import EncoderOptions, ModelEncoder, load_encoder
from rewards.head_inputs import CHUNK
from rewards.head_store import check_encoder, encoder_record, read_encoder
from rewards.heads import Head, load_head
from rewards.score_file import ScoreJob, write_scores
from rewards.store import open_store
from rewards.store_manifest import FILE_NAME, DType, Manifest
from rewards.store_rows import TORCH_DTYPES

TEXTS_AT_ONCE = 512  # embedded and saved together


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """Where the encoder is now (None: where the head says), and how it computes. batch_tokens: padded."""

    model: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    batch_tokens: int = 2048
    trust_remote_code: bool = False


def score(
    data: str, folder: Path, output: Path, columns: Columns, source: EncoderSource, *, resume: bool
) -> None:
    """Write a score for every row of a store, or text of a file, and tell how many and how high.

    Raises UserError for a head, store or file that cannot be used, for embeddings of another kind than the
    head was trained on, and for an output that cannot be continued.
    """
    trained = read_encoder(folder)
    head = load_head(folder)
    if (Path(data) / FILE_NAME).is_file():
        job = store_job(Path(data), head, folder, trained)
    else:
        job = text_job(read_rows([data], columns), head, folder, trained, source)
    scores = write_scores(output, job, resume=resume)
    known = scores[~np.isnan(scores)]
    console = Console(stderr=True, highlight=False)
    spread = f", mean {known.mean():.4f}, {known.min():.4f} to {known.max():.4f}" if len(known) else ""
    console.print(f"{output}: {len(known)}/{len(scores)} scored{spread}", soft_wrap=True)


def store_job(data: Path, head: Head, folder: Path, trained: Manifest | None) -> ScoreJob:
    """Return the scoring of a store's rows, by the embeddings that are in it."""
    store = open_store(data)
    if trained is None:
        warnings.warn(
            f"head {folder} does not say what made its embeddings; if it was not this store's encoder, the "
            "scores mean nothing",
            stacklevel=2,
        )
    else:
        check_encoder(folder, trained, store.manifest)
    keys = list(zip(store.prompt_ids().tolist(), store.sample_indices().tolist(), strict=True))

    def chunk(first: int, end: int) -> NDArray[Any]:
        return head.predict(store.embeddings(np.arange(first, end)))

    return ScoreJob(keys, chunk, CHUNK, {"head": head.digest, "store": store.digest})


def text_job(
    rows: Sequence[TextRow], head: Head, folder: Path, trained: Manifest | None, source: EncoderSource
) -> ScoreJob:
    """Return the scoring of texts, by the embeddings that the head's encoder gives them."""
    encoder, dtype = load_for(folder, trained, source)

    def chunk(first: int, end: int) -> NDArray[Any]:
        return score_texts(rows[first:end], encoder, head, source.batch_tokens, TORCH_DTYPES[dtype])

    computed = {"dtype": str(encoder.model.dtype).removeprefix("torch."), "device": encoder.device.type}
    made_by = {
        "head": head.digest,
        "texts": _digest(rows),
        "encoder": encoder_record(encoder.manifest(dtype)),
        "batch_tokens": source.batch_tokens,
        **computed,
    }
    return ScoreJob([row.key for row in rows], chunk, TEXTS_AT_ONCE, made_by)


def load_for(folder: Path, trained: Manifest | None, source: EncoderSource) -> tuple[ModelEncoder, DType]:
    """Return the encoder that a saved head was trained on, and how its embeddings were rounded.

    Raises UserError if the encoder is unknown, is not there, or is another.
    """
    if trained is None:
        raise UserError(
            f"head {folder} does not say what made its embeddings, so texts cannot be embedded for it: "
            "train it with rewards.train_head, or score a store"
        )
    quiet_transformers()
    form = TextForm.from_name(trained.template)
    options = EncoderOptions(trained.layers, trained.pooling, form, trained.max_tokens)
    encoder = load_encoder(
        source.model or trained.encoder.name, options, dtype=source.dtype, device=source.device,
        revision=trained.encoder.revision or None, trust_remote_code=source.trust_remote_code,
    )  # fmt: skip
    check_encoder(folder, trained, encoder.manifest(trained.dtype))
    return encoder, trained.dtype


def score_texts(
    rows: Sequence[TextRow], encoder: ModelEncoder, head: Head, batch_tokens: int, rounding: torch.dtype
) -> NDArray[np.float32]:
    """Return the scores (m,) float32 of texts, embeddings rounded as a store's are; NaN: no token."""
    tokens = [(place, row) for place, row in enumerate(encoder.tokenise(rows)) if row is not None]
    scores = np.full(len(rows), np.nan, dtype=np.float32)
    for batch in batches_by_length([len(row.ids) for _, row in tokens], batch_tokens):
        embeddings = encoder.embed([tokens[i][1] for i in batch]).to(rounding)
        scores[[tokens[i][0] for i in batch]] = head.predict(embeddings)
    return scores


def _digest(rows: Sequence[TextRow]) -> str:
    """Return a digest of everything about the texts that a score depends on."""
    found = hashlib.sha256()
    for row in rows:
        prompt = None if row.prompt is None else [row.prompt.text, row.prompt.messages]
        ids = None if row.token_ids is None else list(row.token_ids)
        found.update(to_json([row.prompt_id, row.sample_index, prompt, row.text, ids]) + b"\n")
    return found.hexdigest()[:16]
