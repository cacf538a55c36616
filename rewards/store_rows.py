"""Rows on their way into an embedding store: checked, and as the columns and tensor that are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from decoder.contracts import UserError
from rewards.store_manifest import Manifest

TORCH_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows. columns: an Arrow table of n rows. embeddings: (n, D) in the store's dtype, on the CPU."""

    columns: Any
    embeddings: Tensor

    def __len__(self) -> int:
        return len(self.embeddings)

    def cut(self, first: int, last: int) -> Rows:
        """Return the rows from `first` to before `last`, without copying them."""
        return Rows(self.columns.slice(first, last - first), self.embeddings[first:last])


def arrow() -> Any:
    """Return the module pyarrow. Raises UserError naming the extra if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("an embedding store needs pyarrow: pip install 'tiller-lm[embeddings]'") from None
    return pyarrow


def checked_rows(
    manifest: Manifest,
    prompt_ids: Sequence[str],
    sample_indices: Sequence[int] | NDArray[np.integer[Any]],
    texts: Sequence[str],
    labels: Mapping[str, ArrayLike],
    embeddings: Tensor | NDArray[np.floating[Any]],
) -> Rows:
    """Return the rows as they will be written: copied, and embeddings (n, D) rounded to the store's dtype.

    Raises UserError for columns of different lengths, another dimension, labels other than the manifest's,
    an id or text that is no text, and an embedding with NaN or infinity, also from rounding to float16.
    """
    _check_lengths(manifest, len(prompt_ids), len(sample_indices), len(texts), labels, embeddings)
    columns = _columns(manifest, prompt_ids, sample_indices, texts, labels)
    dtype = TORCH_DTYPES[manifest.dtype]
    # torch.tensor, because from_numpy warns about the read-only arrays of a mapped file.
    given = embeddings if isinstance(embeddings, Tensor) else torch.tensor(embeddings)
    rounded = given.detach().to("cpu", dtype, copy=True).contiguous()
    finite = rounded.isfinite().all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        overflow = bool(given[row].isfinite().all())
        reason = f"is too large for {manifest.dtype}" if overflow else "holds NaN or infinity"
        advice = "make the store in bfloat16 or float32" if overflow else "load the encoder in float32"
        raise UserError(
            f"the embedding of prompt {prompt_ids[row]!r}, sample {sample_indices[row]} {reason}: {advice}"
        )
    return Rows(columns, rounded)


def joined(rows: Sequence[Rows]) -> Rows:
    """Return the rows one after the other; at least one."""
    if len(rows) == 1:
        return rows[0]
    tables = arrow().concat_tables([each.columns for each in rows])
    return Rows(tables, torch.cat([each.embeddings for each in rows]))


def _check_lengths(
    manifest: Manifest,
    n_ids: int,
    n_samples: int,
    n_texts: int,
    labels: Mapping[str, ArrayLike],
    embeddings: Tensor | NDArray[np.floating[Any]],
) -> None:
    shape = tuple(embeddings.shape)
    if len(shape) != 2 or shape[1] != manifest.dimension:
        raise UserError(
            f"embeddings of shape {shape} do not fit a store of dimension {manifest.dimension}: "
            f"give (rows, {manifest.dimension})"
        )
    if set(labels) != set(manifest.labels):
        raise UserError(
            f"labels {sorted(labels)} given, the store has {sorted(manifest.labels)}: give exactly those"
        )
    shapes = {name: np.shape(values) for name, values in labels.items()}
    if {n_ids, n_samples, n_texts} != {shape[0]} or any(each != shape[:1] for each in shapes.values()):
        raise UserError(
            f"{n_ids} prompt ids, {n_samples} sample indices, {n_texts} texts, labels of shapes {shapes} and "
            f"{shape[0]} embeddings: give one of each a row"
        )


def _columns(
    manifest: Manifest,
    prompt_ids: Sequence[str],
    sample_indices: Sequence[int] | NDArray[np.integer[Any]],
    texts: Sequence[str],
    labels: Mapping[str, ArrayLike],
) -> Any:
    """Return the Arrow table of all columns but the embeddings."""
    pyarrow = arrow()
    samples = np.asarray(sample_indices)
    if len(samples) and (samples.dtype.kind not in "iu" or samples.min() < 0):
        raise UserError(f"sample indices {samples[:5].tolist()}...: give whole numbers from 0 on")
    columns = {
        "prompt_id": _text_column(prompt_ids, "prompt id"),
        "sample_index": pyarrow.array(samples.astype(np.int64)),
        "text": _text_column(texts, "text"),
    }
    for name in manifest.labels:
        columns[name] = pyarrow.array(np.asarray(labels[name], np.float64))
    return pyarrow.table(columns)


def _text_column(values: Sequence[str], what: str) -> Any:
    pyarrow = arrow()
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise UserError(f"row {row}: the {what} {value!r} is no text: give a str")
    try:
        return pyarrow.array(values, pyarrow.large_string())
    except UnicodeEncodeError as error:
        raise UserError(
            f"a {what} holds {error.object[error.start]!a}, which is no valid Unicode: send UTF-8"
        ) from None
