"""Embeddings whose golden reward is known, for benchmarks of speed and tests of recovery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewards.store import Store, open_store
from rewards.store_manifest import Encoder, Manifest
from rewards.store_writer import open_writer

GOLDEN = "golden"
N_LATENT, N_HIDDEN = 64, 32
NOISE = 0.3  # of an embedding's own numbers, whose signal has a deviation of about 1


def make_synthetic(folder: Path, sizes: list[int], dimension: int, seed: int, part: int = 0) -> Store:
    """Return a new store of len(sizes) prompts with as many samples each, float16, labelled "golden".

    Each sample is a point in 64 latent numbers, half of their variance its prompt's. Its embedding, of
    `dimension` numbers, is a linear map of them and noise, with scales and offsets that differ from number to
    number as those of hidden states do; its golden reward is a linear form and a ReLU network of width 32 of
    them, of deviation about 1. Stores of one seed share map, form and network; their parts have prompts and
    samples of their own. Raises UserError if the folder holds a store of other embeddings.
    """
    rng = np.random.default_rng((seed, 1, part))
    latent = _latents(sizes, rng)
    ids = [f"{part}-{number}" for number, size in enumerate(sizes) for _ in range(size)]
    manifest = Manifest(
        Encoder(f"synthetic-{seed}"), dimension, layers=(0,), dtype="float16", labels=(GOLDEN,)
    )
    mapping, scales = _mapping(dimension, seed), _scales(dimension, seed)
    golden = _golden(latent, seed)
    with open_writer(folder, manifest) as writer:
        for first in range(0, len(ids), 4096):
            rows = slice(first, first + 4096)
            noise = NOISE * rng.standard_normal((len(latent[rows]), dimension), dtype=np.float32)
            writer.append(
                prompt_ids=ids[rows],
                sample_indices=[index for size in sizes for index in range(size)][rows],
                texts=[""] * len(ids[rows]),
                labels={GOLDEN: golden[rows]},
                embeddings=(latent[rows] @ mapping + noise) * scales[0] + scales[1],
            )
    return open_store(folder)


def _latents(sizes: list[int], rng: np.random.Generator) -> NDArray[np.float32]:
    prompts = np.repeat(rng.standard_normal((len(sizes), N_LATENT), dtype=np.float32), sizes, axis=0)
    own = rng.standard_normal(prompts.shape, dtype=np.float32)
    return np.asarray((prompts + own) / np.sqrt(2), dtype=np.float32)


def _mapping(dimension: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng((seed, 3))
    mapping = rng.standard_normal((N_LATENT, dimension), dtype=np.float32)
    return np.asarray(mapping / np.sqrt(N_LATENT), dtype=np.float32)


def _scales(dimension: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what each number is multiplied by, and what is added to it."""
    rng = np.random.default_rng((seed, 4))
    return np.exp(rng.standard_normal(dimension, dtype=np.float32)), rng.standard_normal(
        dimension, np.float32
    )


def _golden(latent: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng((seed, 5))
    linear = latent @ rng.standard_normal(N_LATENT, dtype=np.float32) / np.sqrt(N_LATENT)
    hidden = np.maximum(latent @ rng.standard_normal((N_LATENT, N_HIDDEN), dtype=np.float32) / 8, 0)
    bent = hidden @ rng.standard_normal(N_HIDDEN, dtype=np.float32) / np.sqrt(N_HIDDEN / 3)
    return np.asarray((linear + bent) / np.sqrt(2), dtype=np.float32)
