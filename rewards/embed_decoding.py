"""Embeddings of samples while they are drawn: the states that the decode reads anyway, pooled a row.

    encoder = encoder_of(LoadedModel(decoder.lm, decoder.tokenizer))
    with open_writer("store", encoder.manifest("float16", ("golden",))) as writer:
        sink = DecodeSink(encoder, writer, decoder.backend.endings.ids(config.stop), labels=golden)
        for batch in sink.lacking(plan_batches([*map(len, token_ids)], n, size), prompts):
            draw = partial(decoder.complete, batch, token_ids, rewards, config)
            for sample in sink.complete(batch, prompts, token_ids, draw):
                ...

A row is what `rewards.embed` makes of the finished text: the token that ends it is not pooled. Where the
two would read other tokens (a text cut inside its last token, one over the length), the text is read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from decoder.batching import Batch
from decoder.contracts import Completion, Drawn, Probe, Reading, UserError
from decoder.models import LoadedModel
from prompts.reading import Prompt
from rewards.embed_rows import TextRow
from rewards.embed_run import append
from rewards.embed_tokens import TextForm
from rewards.encoder import EncoderOptions, ModelEncoder, encoder_of, pool
from rewards.store_writer import Writer, open_writer

NAME = "embedding"  # of the probe among those of a decode


class Draw(Protocol):
    """Draws one batch; `Decoder.complete` is one, its first four arguments given."""

    def __call__(self, *, probes: Mapping[str, Probe]) -> Iterable[Completion]:
        """Yield the batch's completions, with these probes in the decode beside any others."""
        ...


def no_labels(prompt: Prompt, completion: Completion) -> Mapping[str, float]:
    """Return no label."""
    return {}


@dataclass(frozen=True, slots=True)
class DecodeSink:
    """Puts the samples of decodes into a store, each with its embedding.

    encoder: the generator itself (`encoder_of`). ends: (E,) int64, the ids that end a text. labels: gives
    each of the store's labels of a finished sample, NaN where unknown. read_again: how many samples needed a
    pass of their own.
    """

    encoder: ModelEncoder
    writer: Writer
    ends: Tensor
    labels: Callable[[Prompt, Completion], Mapping[str, float]] = no_labels
    read_again: list[Completion] = field(default_factory=list)

    def lacking(self, batches: Iterable[Batch], prompts: Sequence[Prompt]) -> Iterator[Batch]:
        """Yield the batches of which the store lacks a sample; those there in part are drawn whole again."""
        for batch in batches:
            keys = [(prompts[batch.prompts[position]].id, sample) for position, sample in batch.rows]
            if not all(self.writer.has(*key) for key in keys):
                yield batch

    def complete(
        self, batch: Batch, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]], draw: Draw
    ) -> Iterator[Completion]:
        """Yield a batch's completions as they end; those new to the store are in it when the batch is over.

        prompts and token_ids: those of the run, side by side. Samples given up half-way are not kept. Ended
        early, it keeps what had ended. Raises UserError for prompts that the encoder reads otherwise.
        """
        for number in batch.prompts:
            self._require_same(prompts[number], token_ids[number])
        pooling = _Pooling(self.encoder, self.ends)
        ended: list[Completion] = []
        try:
            for done in draw(probes={NAME: pooling}):
                ended.append(done)
                yield replace(done, scores={k: v for k, v in done.scores.items() if k != NAME})
        finally:
            self._keep(batch, prompts, token_ids, ended, pooling)

    def _keep(
        self,
        batch: Batch,
        prompts: Sequence[Prompt],
        token_ids: Sequence[Sequence[int]],
        ended: Sequence[Completion],
        pooling: _Pooling,
    ) -> None:
        places = {(batch.prompts[position], sample): i for i, (position, sample) in enumerate(batch.rows)}
        new = [
            done
            for done in ended
            if done.finish_reason != "dropped" and not self.writer.has(prompts[done.prompt].id, done.sample)
        ]
        if not new:
            return
        rows = [self._row(prompts[done.prompt], done) for done in new]
        numbers = [places[done.prompt, done.sample] for done in new]
        embeddings = pooling.vectors()[torch.tensor(numbers, device=self.ends.device)]
        for i, (done, read) in enumerate(zip(new, self.encoder.tokenise(rows), strict=True)):
            assert read is not None, "its prompt has a token"
            if read.ids != [*token_ids[done.prompt], *_text_ids(done)]:
                self.read_again.append(done)
                embeddings[i] = self.encoder.embed([read])[0]
        append(self.writer, rows, embeddings)

    def _row(self, prompt: Prompt, done: Completion) -> TextRow:
        said = self.labels(prompt, done)
        names = self.writer.manifest.labels
        if set(said) != set(names):
            raise UserError(f"labels {sorted(said)} given, the store has {sorted(names)}: give exactly those")
        values = tuple(float(said[name]) for name in names)
        return TextRow(prompt.id, done.sample, prompt, done.text, _text_ids(done), values, prompt.source)

    def _require_same(self, prompt: Prompt, ids: Sequence[int]) -> None:
        if self.encoder.tokeniser.prompt_ids(prompt) != list(ids):
            form = self.encoder.tokeniser.form.template
            raise UserError(
                f"{prompt.source}: prompt {prompt.id!r} is not decoded as the encoder reads it, with the "
                f"template {form!r}: make the encoder with the other one"
            )


class NoSink:
    """Keeps no embedding: what a decode that nobody embeds goes through."""

    def lacking(self, batches: Iterable[Batch], prompts: Sequence[Prompt]) -> Iterator[Batch]:
        """Yield nothing."""
        return iter(())

    def complete(
        self, batch: Batch, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]], draw: Draw
    ) -> Iterator[Completion]:
        """Yield a batch's completions as they end."""
        return iter(draw(probes={}))


@contextmanager
def open_sink(
    folder: Path | None, loaded: LoadedModel, ends: Tensor, *, chat: bool
) -> Iterator[DecodeSink | NoSink]:
    """Give what puts samples into the store in `folder`, made or appended to: float16, no labels.

    ends: (E,) int64, the ids that end a text. Raises UserError for a store of other embeddings.
    """
    if folder is None:
        yield NoSink()
        return
    form = TextForm("all", "chat" if chat else "none")
    encoder = encoder_of(loaded, EncoderOptions(form=form))
    with open_writer(folder, encoder.manifest("float16", ())) as writer:
        yield DecodeSink(encoder, writer, ends)


class _Pooling:
    """A `Probe` of one decode, whose session holds the pooled states of every row it began with."""

    digest = NAME
    reads_logits = False

    def __init__(self, encoder: ModelEncoder, ends: Tensor) -> None:
        self.encoder, self.ends = encoder, ends
        self.layers = encoder.layers
        self._session: PooledRows | None = None

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, reading: Reading) -> PooledRows:
        self._session = PooledRows(self.encoder, self.ends, reading)
        return self._session

    def vectors(self) -> Tensor:
        """Return the embeddings (B, D) float32 of the rows that the decode began with."""
        assert self._session is not None, "nothing was drawn"
        return self._session.vectors()


class PooledRows:
    """A `ProbeSession` that pools each row's states, and keeps those of rows that have left."""

    def __init__(self, encoder: ModelEncoder, ends: Tensor, reading: Reading) -> None:
        """Start with a row a prompt, from what was read of it."""
        self._encoder, self._ends = encoder, ends
        states = self._states(reading.taps)
        self._before = pool(states, reading.mask, "last")  # (B, D): where no token follows
        takes_prompt = encoder.tokeniser.form.pooled == "all"
        self._counts = reading.mask.sum(1) * takes_prompt
        self._sums = _masked_sum(states, reading.mask) * takes_prompt
        self._rows = torch.arange(len(states), device=states.device)  # where each live row's numbers stand

    def update(self, drawn: Drawn) -> None:
        """Take in the tokens just drawn, but for those that end a text."""
        states, mask = self._states(drawn.taps), drawn.mask & ~torch.isin(drawn.ids, self._ends)
        self._counts[self._rows] += mask.sum(1)
        self._sums[self._rows] += _masked_sum(states, mask)
        last, has = pool(states, mask, "last"), mask.any(1)[:, None]
        self._before[self._rows] = torch.where(has, last, self._before[self._rows])

    def score(self) -> Tensor:
        """Return (B,) NaN: an embedding is no score."""
        return torch.full((len(self._rows),), math.nan, device=self._rows.device)

    def select(self, rows: Tensor) -> None:
        """Keep these rows live; one that repeats is a row of its own from here on."""
        chosen = self._rows[rows]
        if len(chosen.unique()) < len(chosen):
            self._before, self._counts, self._sums = (
                numbers[chosen] for numbers in (self._before, self._counts, self._sums)
            )
            chosen = torch.arange(len(chosen), device=chosen.device)
        self._rows = chosen

    def vectors(self) -> Tensor:
        """Return the embeddings (B, D) float32 of all rows since the last fork, live or not, in order."""
        if self._encoder.pooling == "last":
            return self._before.clone()
        counts = self._counts[:, None]
        return torch.where(counts > 0, self._sums / counts.clamp(min=1), self._before)

    def _states(self, taps: Mapping[int, Tensor]) -> Tensor:
        return torch.cat([taps[layer] for layer in self._encoder.layers], -1)  # (B, T, D)


def _masked_sum(states: Tensor, mask: Tensor) -> Tensor:
    """Return (B, D) float32, the sum of states (B, T, D) over real positions."""
    return states.float().masked_fill(~mask[..., None], 0.0).sum(1)


def _text_ids(done: Completion) -> tuple[int, ...]:
    """Return the tokens of a sample without the one that ended it."""
    return done.token_ids[:-1] if done.finish_reason == "stop" else done.token_ids
