"""Read finished texts again: states of whole texts in batches, rewards along a path, scores of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from decoder.contracts import Drawn, Probe, ProbeSession, Reading, TokenReward
from decoder.lm import CausalLM


def left_pad(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) int64 and mask (B, T) bool of ragged rows; what stands on padding is id 0."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device)
    return ids, mask


def right_pad(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) int64 and mask (B, T) bool of ragged rows; what stands on padding is id 0."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield indices, shortest first, in batches of at most `max_tokens` padded positions (at least one)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def read_texts(
    lm: CausalLM, texts: Sequence[Sequence[int]], layers: tuple[int, ...], *, max_tokens: int = 2048
) -> Iterator[tuple[list[int], Reading]]:
    """Yield (indices, reading) over batches of token id rows; taps are (B, T, d), left-padded by mask."""
    for batch in batches_by_length([len(text) for text in texts], max_tokens):
        ids, mask = left_pad([texts[i] for i in batch], lm.device)
        yield batch, lm.start(layers).prefill(ids, mask)


@torch.inference_mode()
def score_path(
    lm: CausalLM, reward: TokenReward, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return r of every token of each completion as a decode would have seen it, teacher-forced.

    prompts, completions: token ids, one row each, none empty. Works for any reward; one forward a token.
    """
    ids, mask = left_pad(prompts, lm.device)
    session, rewarder = lm.start(reward.layers), reward.start(ids, mask)
    reading = session.prefill(ids, mask)
    found: list[list[float]] = [[] for _ in completions]
    live = list(range(len(completions)))
    for position in range(max(map(len, completions))):
        tokens = torch.tensor([completions[row][position] for row in live], device=lm.device)
        scores = rewarder.score(tokens[:, None], reading)[:, 0]
        for row, score in zip(live, scores.tolist(), strict=True):
            found[row].append(score)
        going = [i for i, row in enumerate(live) if position + 1 < len(completions[row])]
        if not going:
            break
        if len(going) < len(live):  # a row that went on past its end could leave the model's context
            live, kept = [live[i] for i in going], torch.tensor(going, device=lm.device)
            tokens = tokens[kept]
            session.select(kept)
            rewarder.select(kept)
        rewarder.advance(tokens)
        reading = session.feed(tokens)
    return found


@torch.inference_mode()
def score_samples(
    lm: CausalLM,
    probes: Sequence[Probe],
    prompts: Sequence[Sequence[int]],
    samples: Sequence[Sequence[Sequence[int]]],
    *,
    max_tokens: int = 2048,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (prompt, scores (N, S) float32): each probe's score of every sample, as its decode gave it.

    prompts: P rows of token ids; samples: for each, N rows of token ids, none empty. A prompt is read once
    and forked; its samples pass the model together, all tokens of `max_tokens` padded positions at once.
    """
    for prompt, completions in enumerate(samples):
        parts = _parts(completions, max_tokens)
        yield prompt, torch.cat([_fold_fork(lm, probes, prompts[prompt], part) for part in parts])


@torch.inference_mode()
def running_scores(
    lm: CausalLM,
    probe: Probe,
    prompts: Sequence[Sequence[int]],
    samples: Sequence[Sequence[Sequence[int]]],
    *,
    max_tokens: int = 2048,
) -> Iterator[tuple[int, list[list[float]]]]:
    """Yield (prompt, for each of its samples the probe's score of the text up to and with every token).

    They are `Step.probe_scores` of the decode that drew the samples, from one forward; arguments as in
    `score_samples`. The last one of a sample is its score.
    """
    for prompt, completions in enumerate(samples):
        found: list[list[float]] = []
        for part in _parts(completions, max_tokens):
            (prober,), drawn = _read_fork(lm, [probe], prompts[prompt], part)
            steps = []
            for t in range(drawn.ids.shape[1]):
                prober.update(_column(drawn, t))
                steps.append(prober.score())
            table = torch.stack(steps, 1).tolist()
            found += [scores[: len(ids)] for scores, ids in zip(table, part, strict=True)]
        yield prompt, found


def _parts(completions: Sequence[Sequence[int]], max_tokens: int) -> list[Sequence[Sequence[int]]]:
    size = max(1, max_tokens // max(map(len, completions)))
    return [completions[i : i + size] for i in range(0, len(completions), size)]


def _fold_fork(
    lm: CausalLM, probes: Sequence[Probe], prompt: Sequence[int], completions: Sequence[Sequence[int]]
) -> Tensor:
    """Return scores (N, S) of completions of one prompt, read at once."""
    probers, drawn = _read_fork(lm, probes, prompt, completions)
    for prober in probers:
        prober.update(drawn)
    return torch.stack([prober.score() for prober in probers], -1)


def _read_fork(
    lm: CausalLM, probes: Sequence[Probe], prompt: Sequence[int], completions: Sequence[Sequence[int]]
) -> tuple[list[ProbeSession], Drawn]:
    """Return open sessions of N rows and all tokens of the completions, to be folded into them."""
    layers = tuple(sorted({layer for probe in probes for layer in probe.layers}))
    wants_logits = any(probe.reads_logits for probe in probes)
    reading, drawn = read_fork(lm, prompt, completions, layers, logits=wants_logits)
    probers = [probe.start(*left_pad([prompt], lm.device), reading) for probe in probes]
    for prober in probers:
        prober.select(torch.zeros(len(completions), dtype=torch.long, device=lm.device))
    return probers, drawn


@torch.inference_mode()
def read_fork(
    lm: CausalLM,
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    layers: tuple[int, ...],
    *,
    logits: bool,
) -> tuple[Reading, Drawn]:
    """Return the reading of one prompt, and all tokens of its N completions, read at once after it.

    The tokens are right-padded by mask; with the logits they were drawn from where asked.
    """
    session = lm.start(layers)
    reading = session.prefill(*left_pad([prompt], lm.device))
    fork = torch.zeros(len(completions), dtype=torch.long, device=lm.device)
    session.select(fork)
    ids, mask = right_pad(completions, lm.device)
    taps, after = session.read(ids, mask, logits=logits)
    before = None if after is None else torch.cat([reading.logits[fork][:, None], after[:, :-1]], 1)
    return reading, Drawn(ids, mask, taps, before)


def _column(drawn: Drawn, t: int) -> Drawn:
    """Return what was drawn at one position alone."""
    taps = {layer: states[:, t : t + 1] for layer, states in drawn.taps.items()}
    logits = None if drawn.logits is None else drawn.logits[:, t : t + 1]
    return Drawn(drawn.ids[:, t : t + 1], drawn.mask[:, t : t + 1], taps, logits)
