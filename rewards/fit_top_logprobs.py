"""Fit a probe on top log-probabilities, and read them: from the generator, or from an API's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoder.contracts import UserError
from decoder.lm import CausalLM
from decoder.replay import batches_by_length, read_fork
from prompts.lines import decode_line, parse_line, shown
from rewards import fit_elhsr
from rewards.features import progress_bar
from rewards.fit_elhsr import Recipe, Tokens
from rewards.fit_embedding_head import check_sides, standardisation
from rewards.likelihood import drawn_logits
from rewards.top_logprobs import TopLogprobs, features_of_records, require_alternatives

FORMS = 'a rollout is {"prompt": ..., "generations": [{"text": "...", "logprobs": ...}, ...]}'


def fit(
    features: Sequence[Tensor],
    labels: Tensor,
    groups: Tensor,
    train: Tensor,
    validation: Tensor,
    *,
    loss: str = "ce",
    epochs: int = 40,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    patience: int = 3,
    seed: int = 0,
    batch_groups: int = 16,
) -> tuple[TopLogprobs, float, int]:
    """Return the probe with the lowest validation loss, that loss, and the epoch it is from.

    features: of M completions (T_i, m + 1) float32 each, none empty; the rest as in
    `rewards.fit_embedding_head.fit`. They are standardised for the fit and the weights folded back.
    Raises UserError for sides that are empty or share a prompt, inputs or a loss that are not finite.
    """
    check_sides(torch.cat(list(features)), labels, groups, train, validation)
    mean, scale = standardisation(torch.cat([features[i] for i in train.nonzero()[:, 0].tolist()]))
    used = (train | validation).nonzero()[:, 0]
    chosen = [features[i] for i in used.tolist()]
    lengths = torch.tensor([len(each) for each in chosen])
    tokens = Tokens(
        (torch.cat(chosen) - mean) / scale,
        lengths.cumsum(0) - lengths,
        lengths,
        groups[used],
        labels[used].float(),
    )
    recipe = Recipe(
        loss=loss,
        epochs=epochs,
        patience=patience,
        learning_rate=lr,
        weight_decay=weight_decay,
        batch_prompts=batch_groups,
        seed=seed,
    )
    found = fit_elhsr.fit(tokens, groups[train].unique(), groups[validation].unique(), recipe)
    weight, bias = found.linear.weight.detach(), found.linear.bias.detach()
    probe = TopLogprobs(weight / scale, bias - weight @ (mean / scale))
    return probe, found.validation_loss, found.epoch


@torch.no_grad()
def features_by_replay(
    lm: CausalLM,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[Sequence[int]]],
    m: int,
    *,
    max_tokens: int = 512,
    title: str = "reading log-probabilities",
) -> list[Tensor]:
    """Return `TopLogprobs.features` (T_i, m + 1) of every completion as a decode has it, prompt after prompt.

    prompt_ids: P rows; completion_ids: for each its completions; no row is empty. A prompt is forked and its
    completions read at once, `max_tokens` padded positions at a time, each with logits over the vocabulary.
    Raises UserError for a vocabulary of fewer than m tokens.
    """
    require_alternatives(lm.identity.vocab_size, m)
    found: list[Tensor] = []
    with progress_bar() as progress:
        task = progress.add_task(title, total=len(prompt_ids))
        for prompt, completions in zip(prompt_ids, completion_ids, strict=True):
            rows: dict[int, Tensor] = {}
            for batch in batches_by_length([len(row) for row in completions], max_tokens):
                read = _read(lm, prompt, [completions[i] for i in batch], m)
                rows.update(zip(batch, read, strict=True))
            found += [rows[i] for i in range(len(completions))]
            progress.advance(task)
    return found


def features_by_records(path: Path | str, m: int) -> list[Tensor] | None:
    """Return features (T_i, m + 1) of every generation of a rollouts file from its field "logprobs".

    The order is that of `rewards.rollouts.read_rollouts`; shapes of answers as in `features_of_records`.
    None where no generation has the field. Raises UserError naming file and line where some lack it, where
    it does not do, and for a line that is broken or no rollout.
    """
    samples = _generations(Path(path))
    with_field = [sample.get("logprobs") is not None for _, sample in samples]
    if not any(with_field):
        return None
    if not all(with_field):
        raise UserError(
            f'{samples[with_field.index(False)][0]}: no "logprobs", which other generations have: write '
            "them for all, or take them out of all"
        )
    return [_of_record(sample["logprobs"], m, where) for where, sample in samples]


def _read(lm: CausalLM, prompt: Sequence[int], completions: Sequence[Sequence[int]], m: int) -> list[Tensor]:
    """Return the features of completions of one prompt, read at once."""
    drawn = read_fork(lm, prompt, completions, (), logits=True)[1]
    features = TopLogprobs.features(drawn_logits(drawn), drawn.ids, m).cpu()
    return [features[i, : len(row)].clone() for i, row in enumerate(completions)]


def _of_record(logprobs: Any, m: int, where: str) -> Tensor:
    try:
        return features_of_records(logprobs, m)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _generations(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (where it stands, object) of every generation."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read rollouts from {path}: {error.strerror}; check the path") from None
    found = []
    for number, raw in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if raw.strip():
            record = parse_line(decode_line(raw.rstrip(b"\r"), where), where, FORMS)
            found += [
                (f"{where}, generation {i}", sample) for i, sample in enumerate(_samples(record, where), 1)
            ]
    return found


def _samples(record: object, where: str) -> list[Mapping[str, Any]]:
    samples = record.get("generations") if isinstance(record, Mapping) else None
    if not isinstance(samples, list) or not all(isinstance(each, Mapping) for each in samples):
        raise UserError(f"{where}: no rollout: {shown(record)}; {FORMS}")
    return samples
