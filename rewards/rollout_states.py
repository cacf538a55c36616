"""States of the tokens of rollouts' completions, read once from the generator and kept in a cache.

Kept bit for bit in the model's dtype, so that a probe learns from the numbers it will read in a decode.
The alignment is that of `decoder.contracts.Drawn`: the state of a completion's token has read that token,
the last one's included. The prompt's tokens are read before them and not kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decoder.contracts import UserError
from decoder.lm import CausalLM
from decoder.replay import batches_by_length, read_fork
from rewards.features import STORED, FileArray, cached_layers, progress_bar, put, token_rows
from rewards.likelihood import log_probabilities

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class RolloutStates:
    """The states of all N tokens of M completions, completion after completion, prompt after prompt.

    taps: layer -> (N, d) in the model's dtype, unchanged; memory-mapped.
    starts, lengths: (M,) int64, where a completion's tokens stand.
    """

    taps: Mapping[int, Tensor]
    starts: Tensor
    lengths: Tensor

    def rows_of(self, completions: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows (n,) int64 of all tokens of the completions (B,) in order, and positions from 0."""
        return token_rows(self.starts[completions], self.lengths[completions])


def read_rollout_states(
    lm: CausalLM,
    prompt_ids: Sequence[TokenIds],
    completion_ids: Sequence[Sequence[TokenIds]],
    layers: tuple[int, ...],
    cache: Path,
    *,
    title: str = "reading states",
) -> RolloutStates:
    """Return the states of every completion's tokens, from the cache folder as far as it has the layers.

    prompt_ids: P rows. completion_ids: for each prompt its completions, whose number may differ; no row is
    empty. Raises UserError if the cache cannot hold the states, if a text exceeds the model's context or
    vocabulary, and if the model's states are not finite or of more than one dtype.
    """
    prompts = [prompt for prompt, rows in zip(prompt_ids, completion_ids, strict=True) for _ in rows]
    completions = [row for rows in completion_ids for row in rows]
    _check_fit(lm, prompts, completions)
    lengths = torch.tensor([len(row) for row in completions])
    states = RolloutStates({}, lengths.cumsum(0) - lengths, lengths)
    shape = int(lengths.sum()), lm.identity.hidden_size
    dtype = lm.output_embeddings.dtype
    if dtype not in STORED:
        raise UserError(f"states of a model in {dtype} cannot be kept: load it with --dtype float32")

    def fill(arrays: Mapping[int, FileArray]) -> None:
        _fill(lm, read_completions(lm, prompt_ids, completion_ids, tuple(arrays)), states, arrays, title)

    taps = cached_layers(cache, _key(lm, prompts, completions), layers, shape, dtype, fill)
    return RolloutStates(taps, states.starts, states.lengths)


@torch.inference_mode()
def read_completions(
    lm: CausalLM,
    prompt_ids: Sequence[TokenIds],
    completion_ids: Sequence[Sequence[TokenIds]],
    layers: tuple[int, ...],
    *,
    max_tokens: int = 2048,
) -> Iterator[tuple[list[int], dict[int, Tensor], Tensor]]:
    """Yield (completion numbers, taps, mask) until every completion has been read after its prompt.

    Numbers count completions prompt after prompt; taps are layer -> (B, T, d), right-padded by mask (B, T).
    A prompt is read once and forked; its completions pass the model together, as many as fill `max_tokens`
    padded positions.
    """
    first = 0
    for prompt, completions in zip(prompt_ids, completion_ids, strict=True):
        for batch in batches_by_length([len(row) for row in completions], max_tokens):
            drawn = read_fork(lm, prompt, [completions[i] for i in batch], layers, logits=False)[1]
            yield [first + i for i in batch], dict(drawn.taps), drawn.mask
        first += len(completions)


def read_log_probabilities(
    lm: CausalLM,
    prompt_ids: Sequence[TokenIds],
    completion_ids: Sequence[Sequence[TokenIds]],
    cache: Path,
    *,
    title: str = "reading log-probabilities",
) -> Tensor:
    """Return log p (N,) float32 of every token of the completions, in their order, from the cache if there.

    Arguments and errors as in `read_rollout_states`. What a decode at temperature 1 drew the tokens from.
    """
    prompts = [prompt for prompt, rows in zip(prompt_ids, completion_ids, strict=True) for _ in rows]
    completions = [row for rows in completion_ids for row in rows]
    _check_fit(lm, prompts, completions)
    n_tokens = sum(map(len, completions))

    def fill(arrays: Mapping[int, FileArray]) -> None:
        first = 0
        with progress_bar() as progress:
            for prompt, rows in progress.track(
                [*zip(prompt_ids, completion_ids, strict=True)], description=title
            ):
                drawn = read_fork(lm, prompt, rows, (), logits=True)[1]
                found = log_probabilities(drawn)[drawn.mask]  # completion after completion
                put(arrays[0], torch.arange(first, first + len(found)), found[:, None], 0)
                first += len(found)

    key = f"{_key(lm, prompts, completions)}-log-p"
    return cached_layers(cache, key, (0,), (n_tokens, 1), torch.float32, fill)[0][:, 0]


def _check_fit(lm: CausalLM, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> None:
    context, vocabulary = lm.context_length(), lm.identity.vocab_size
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), start=1):
        n_tokens = len(prompt) + len(completion)
        if context is not None and n_tokens > context:
            raise UserError(
                f"completion {number} has {n_tokens} tokens with its prompt, more than the context of "
                f"{lm.identity.name}, {context}: leave it out"
            )
        if max(completion) >= vocabulary:
            raise UserError(
                f"completion {number} holds token {max(completion)} and {lm.identity.name} has {vocabulary}: "
                "give the model that drew it"
            )


def _key(lm: CausalLM, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> str:
    """Return a digest of all that the states depend on; where a prompt ends tells which are kept."""
    about = ("rollouts", lm.identity.weights, lm.identity.tokenizer_hash, str(lm.output_embeddings.dtype))
    digest = hashlib.sha256(repr(about).encode())
    for prompt, completion in zip(prompts, completions, strict=True):
        row = np.array([len(prompt), len(completion), *prompt, *completion], dtype=np.int32)
        digest.update(row.tobytes())
    return digest.hexdigest()[:20]


def _fill(
    lm: CausalLM,
    readings: Iterator[tuple[list[int], Mapping[int, Tensor], Tensor]],
    states: RolloutStates,
    arrays: Mapping[int, FileArray],
    title: str,
) -> None:
    with progress_bar() as progress:
        task = progress.add_task(title, total=int(states.lengths.sum()))
        for numbers, taps, mask in readings:
            where = states.rows_of(torch.tensor(numbers))[0]
            for layer, array in arrays.items():
                tokens = taps[layer][mask]  # (n, d), completion after completion
                if tokens.dtype != lm.output_embeddings.dtype:
                    raise UserError(
                        f"the states at layer {layer} are {tokens.dtype} and the embeddings "
                        f"{lm.output_embeddings.dtype}: load the model with --dtype float32"
                    )
                put(array, where, tokens, layer)
            progress.advance(task, len(where))
