"""States of every token of many texts, read once from the generator and kept in a memory-mapped cache.

A head is fitted dozens of times on the same states, and reading them is the slow part. Each layer has
its own file, so another choice of layers reads only what is missing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from decoder.contracts import UserError
from decoder.lm import CausalLM
from decoder.replay import read_texts
from rewards.arm import features

FileArray = NDArray[Any]
# How a cache file ends, and as what numpy sees it: numpy has no bfloat16, so its bits are kept as integers.
STORED: dict[torch.dtype, tuple[str, type[np.generic]]] = {
    torch.float16: ("f16", np.float16),
    torch.bfloat16: ("bf16", np.int16),
    torch.float32: ("f32", np.float32),
}


@dataclass(frozen=True, slots=True)
class TokenRows:
    """The tokens of M texts and what follows each of them.

    ids: M rows of token ids, none empty. next_ids: (N,) int64 over all tokens, text after text: the
    token that came next; after the last token of a whole text, the end token.
    """

    ids: list[list[int]]
    next_ids: Tensor


@dataclass(frozen=True, slots=True)
class TokenStates:
    """The states of all N tokens of M texts, text after text.

    taps: layer -> (N, d) float16, each state over its root mean square; memory-mapped.
    next_ids: (N,) int64, the candidate that each state is scored with.
    starts, lengths: (M,) int64, where a text's tokens stand.
    """

    taps: Mapping[int, Tensor]
    next_ids: Tensor
    starts: Tensor
    lengths: Tensor

    def rows_of(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows (n,) int64 of all tokens of the texts (B,) in order, and their positions from 0."""
        return token_rows(self.starts[texts], self.lengths[texts])


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> TokenRows:
    """Return the texts' tokens, cut to `max_length`, as the generator would read them as prompts.

    The end token is only ever a candidate, never read: r(end | x) speaks about the whole text x.
    Raises UserError for a tokenizer without an end token and for a text that gives no token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError("this model's tokenizer has no end token (eos_token): name one in its configuration")
    whole = [ids[:-1] if ids[-1:] == [end] else ids for ids in tokenizer(list(texts)).input_ids]
    for text, ids in zip(texts, whole, strict=True):
        if not ids:
            raise UserError(f"the text {text[:40]!r} gives no token: remove it from the data")
    following = [[*ids[1:], end][:max_length] for ids in whole]
    return TokenRows(
        [ids[:max_length] for ids in whole], torch.tensor([token for row in following for token in row])
    )


def read_states(
    lm: CausalLM, rows: TokenRows, layers: tuple[int, ...], cache: Path, *, title: str = "reading states"
) -> TokenStates:
    """Return the states of the tokens at `layers`, from the cache folder as far as it has them.

    Raises UserError if the cache cannot hold them, and if the model's states are not finite.
    """
    lengths = torch.tensor([len(row) for row in rows.ids])
    states = TokenStates({}, rows.next_ids, lengths.cumsum(0) - lengths, lengths)
    shape = (int(lengths.sum()), lm.identity.hidden_size)
    taps = cached_layers(
        cache,
        _key(lm, rows),
        layers,
        shape,
        torch.float16,
        lambda arrays: _fill(lm, rows, states, arrays, title),
    )
    return TokenStates(taps, states.next_ids, states.starts, states.lengths)


def token_rows(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows (n,) int64 of all tokens of texts at starts (B,), in order, and their positions from 0."""
    first = lengths.cumsum(0) - lengths  # where each text begins among the n
    positions = torch.arange(int(lengths.sum())) - first.repeat_interleave(lengths)
    return starts.repeat_interleave(lengths) + positions, positions


def cached_layers(
    cache: Path,
    key: str,
    layers: tuple[int, ...],
    shape: tuple[int, int],
    dtype: torch.dtype,
    fill: Callable[[Mapping[int, FileArray]], None],
) -> dict[int, Tensor]:
    """Return layer -> memory-mapped tensor of `shape` and `dtype`, one file a layer, named after `key`.

    `fill` writes the arrays of the layers that have no file yet, with `put`; it is not called if all have.
    Raises UserError if the folder cannot hold them.
    """
    suffix, stored = STORED[dtype]
    files = {layer: cache / f"{key}-{layer}.{suffix}" for layer in layers}
    n_bytes = shape[0] * shape[1] * np.dtype(stored).itemsize
    missing = {layer: path for layer, path in files.items() if not _holds(path, n_bytes)}
    if missing:
        _make_room(cache, len(missing) * n_bytes)
        with _written_at_once(missing, shape, stored) as arrays:
            fill(arrays)
    # Copy-on-write only because torch cannot wrap read-only memory; nothing writes to it.
    return {
        layer: torch.from_numpy(np.memmap(path, stored, "c", shape=shape)).view(dtype)
        for layer, path in files.items()
    }


def put(array: FileArray, rows: Tensor, tokens: Tensor, layer: int) -> None:
    """Write states (n, d) into an array of `cached_layers`, bit for bit. UserError if they are not finite."""
    if not bool(tokens.isfinite().all()):
        raise UserError(f"the model's states at layer {layer} are not finite: try --dtype float32")
    bits = tokens.view(torch.int16) if tokens.dtype == torch.bfloat16 else tokens
    array[rows.numpy()] = bits.cpu().numpy()


def _key(lm: CausalLM, rows: TokenRows) -> str:
    """Return a digest of all that the states depend on: weights, dtype, tokenizer and tokens."""
    about = (lm.identity.weights, lm.identity.tokenizer_hash, str(lm.output_embeddings.dtype))
    digest = hashlib.sha256(repr(about).encode())
    for ids in rows.ids:
        digest.update(np.array([len(ids), *ids], dtype=np.int32).tobytes())
    return digest.hexdigest()[:20]


def _holds(path: Path, n_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == n_bytes


def _make_room(cache: Path, n_bytes: int) -> None:
    """Make the folder. Refuses before the work starts if it cannot be written or the disk is too small."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
    except OSError as error:
        raise UserError(
            f"cannot use the cache folder {cache} ({error.strerror}): give another with --cache"
        ) from None
    if free < 1.05 * n_bytes:
        raise UserError(
            f"the states take {n_bytes / 1e9:.1f} GB and {cache} has {free / 1e9:.1f} GB free: "
            "give another folder with --cache, fewer --layers, or a --limit on the texts"
        )


@contextmanager
def _written_at_once(
    files: Mapping[int, Path], shape: tuple[int, int], stored: type[np.generic]
) -> Iterator[dict[int, FileArray]]:
    """Give arrays to fill; they get their names only when all are full, so a cache file is never half one."""
    halves = {layer: path.with_name(f".{path.name}.{os.getpid()}") for layer, path in files.items()}
    try:
        arrays = {layer: np.memmap(half, stored, "w+", shape=shape) for layer, half in halves.items()}
        yield dict(arrays)
        for layer, half in halves.items():
            arrays[layer].flush()
            half.replace(files[layer])
    except OSError as error:
        folder = next(iter(files.values())).parent
        raise UserError(
            f"cannot write to {folder} ({error.strerror}): give another folder with --cache"
        ) from None
    finally:
        for half in halves.values():
            half.unlink(missing_ok=True)


def _fill(
    lm: CausalLM, rows: TokenRows, states: TokenStates, arrays: Mapping[int, FileArray], title: str
) -> None:
    with progress_bar() as progress:
        task = progress.add_task(title, total=len(states.next_ids))
        for batch, reading in read_texts(lm, rows.ids, tuple(arrays)):
            where = states.rows_of(torch.tensor(batch))[0]
            for layer, array in arrays.items():
                tokens = features(reading.taps, (layer,))[reading.mask]  # (n, d), text after text
                put(array, where, tokens.half(), layer)
            progress.advance(task, len(where))


def progress_bar() -> Progress:
    """Return a progress bar on stderr that tells the time left; silent where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
