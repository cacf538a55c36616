"""Rows for embedding stores, and whether a store holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decoder.contracts import UserError
from rewards.store import Store
from rewards.store_manifest import Encoder, Manifest
from rewards.store_rows import TORCH_DTYPES
from rewards.store_writer import open_writer

D = 6
MANIFEST = Manifest(
    encoder=Encoder("tiny", weights="w1", tokenizer="t1", revision="r1"),
    dimension=D,
    layers=(1, 2),
    pooling="last",
    dtype="float16",
    labels=("golden", "length"),
)
N = 14
EVERY = torch.randn(32, D, generator=torch.Generator().manual_seed(5))


def rows_of(indices: list[int]) -> dict[str, Any]:
    """Rows as a pure function of their indices: two samples a prompt, odd texts, an unknown label."""
    return {
        "prompt_ids": [f"p{i // 2} é" for i in indices],
        "sample_indices": [i % 2 for i in indices],
        "texts": [f"text {i}\n\t\u2028 \N{CJK UNIFIED IDEOGRAPH-4E00}" * (i % 3) for i in indices],
        "labels": {
            "golden": [float("nan") if i == 5 else i / 7 for i in indices],
            "length": np.array(indices, np.float32),
        },
        "embeddings": EVERY[indices],
    }


def work(folder: Path, n: int = N, shard_rows: int = 4, tell: Callable[[int], object] = id) -> None:
    """Append the rows 0..n-1 that are not there, three at a time, as a resumed job does."""
    with open_writer(folder, MANIFEST, shard_rows=shard_rows) as writer:
        tell(writer.n_rows)
        missing = [i for i in range(n) if not writer.has(f"p{i // 2} é", i % 2)]
        for first in range(0, len(missing), 3):
            writer.append(**rows_of(missing[first : first + 3]))
            tell(writer.n_rows)


def assert_holds(store: Store, indices: list[int]) -> None:
    """Compare every part of the store with the rows, bit for bit."""
    rows = rows_of(indices)
    dtype = TORCH_DTYPES[store.manifest.dtype]
    assert store.n_rows == len(store) == len(indices)
    assert torch.equal(store.embeddings(range(len(indices))), rows["embeddings"].to(dtype).float())
    assert store.prompt_ids().tolist() == rows["prompt_ids"]
    assert store.sample_indices().tolist() == rows["sample_indices"]
    assert store.texts() == rows["texts"]
    for name, values in rows["labels"].items():
        np.testing.assert_array_equal(store.column(name), np.array(values, np.float64))


def refusal(act: Callable[[], object]) -> str:
    """Return the one line with which something is refused."""
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)
