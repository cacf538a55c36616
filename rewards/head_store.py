"""A head and an embedding store: whether the one reads what the other holds, and scores of its rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from rewards import artefact
from rewards.head_inputs import CHUNK, Ints
from rewards.heads import Head, Scores
from rewards.store import Store
from rewards.store_manifest import DIGESTS, READING, Encoder, Manifest, check_same, differing_facts, facts_of

ADVICE = "Embed the texts as its training texts were, or train a head on these"


def encoder_record(manifest: Manifest) -> dict[str, Any]:
    """Return what made a store's embeddings, as JSON values: what a head's config says of its encoder."""
    record: dict[str, Any] = json.loads(json.dumps(asdict(manifest)))
    del record["labels"]
    return record


def read_encoder(directory: Path) -> Manifest | None:
    """Return what made the embeddings that a saved head reads, without labels; None if it does not say.

    Raises UserError for a record that is broken, or of another dimension than the head.
    """
    config = artefact.read_config(directory)
    record = config.get("encoder")
    if not isinstance(record, Mapping) or "encoder" not in record:
        return None
    try:
        lists = {"layers": tuple(record["layers"]), "labels": ()}
        found = Manifest(**{**record, **lists, "encoder": Encoder(**record["encoder"])})
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{directory}/config.json garbles its encoder ({error}): train the head again"
        ) from None
    if found.dimension != config.get("dimension"):
        raise UserError(
            f"{directory}/config.json: the head reads {config.get('dimension')} numbers, its encoder gives "
            f"{found.dimension}: train the head again"
        )
    return found


def check_encoder(directory: Path, trained: Manifest, now: Manifest, advice: str = ADVICE) -> None:
    """Refuse, printing both sides, embeddings of another kind than the head was trained on.

    Weights or a tokenizer unknown on one side cannot be compared; without the weights the encoder's name
    must agree. advice: what the message tells people to do.
    """
    ours, theirs = facts_of(trained), facts_of(now)
    # The rounding on disk may differ.
    if differing := differing_facts(ours, theirs, (*DIGESTS, *READING)):
        sides = "; ".join(f"{name} {ours[name]!r} in the head, {theirs[name]!r} here" for name in differing)
        raise UserError(
            f"head {directory} was trained on embeddings of {trained.encoder.name!r} and these of "
            f"{now.encoder.name!r} are others: {sides}. {advice}"
        )


def check_kind(store: Store, wanted: Manifest) -> None:
    """Refuse a store whose embeddings are of another kind, as `check_same` does; rounding may differ."""
    dtype, labels = store.manifest.dtype, store.manifest.labels
    check_same(store.folder, store.manifest, replace(wanted, dtype=dtype, labels=labels))


def predict_rows(head: Head, store: Store, rows: Ints) -> Iterator[Scores]:
    """Yield the scores of rows (m,) in order, CHUNK at a time; no more of the store is in memory."""
    for first in range(0, len(rows), CHUNK):
        yield head.predict(store.embeddings(rows[first : first + CHUNK]))


def score_store(head: Head, store: Store, rows: Ints) -> NDArray[np.float64]:
    """Return the scores (m,) of rows (m,)."""
    return np.concatenate([np.zeros(0), *predict_rows(head, store, rows)])
