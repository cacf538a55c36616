"""What a tap ARM says about whole texts: its reward of the end token after them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decoder.contracts import UserError
from decoder.models import LoadedModel
from decoder.replay import batches_by_length, left_pad
from decoder.terminal import progress
from rewards.arm import TapArm
from rewards.load import load_reward

MAX_TOKENS = 2048  # in one pass, padding included


@torch.inference_mode()
def probabilities(
    loaded: LoadedModel, reward: str, texts: Sequence[str], temperature: float = 1.0
) -> list[float]:
    """Return P(attribute) of each text, one forward pass of the generator a text.

    temperature: divides the log-odds. Raises UserError for a reward that is no tap ARM, and for a
    tokenizer without an end token.
    """
    arm, end = load_reward(f"{reward}@probability", loaded.lm), loaded.tokenizer.eos_token_id
    if not isinstance(arm, TapArm) or end is None:
        raise UserError(f"{reward} cannot label whole texts: give a tap ARM on a model with an end token")
    ids = [row[:-1] if row[-1:] == [end] else row for row in loaded.tokenizer(list(texts)).input_ids]
    found = torch.zeros(len(ids))
    with progress("labelling", len(ids)) as advance:
        for rows in batches_by_length([len(row) for row in ids], MAX_TOKENS):
            found[rows] = _end_probabilities(loaded, arm, [ids[row] for row in rows], end)
            advance(len(rows))
    return [float(value) for value in (found.logit(eps=1e-6) / temperature).sigmoid()]


def _end_probabilities(
    loaded: LoadedModel, arm: TapArm, ids: Sequence[Sequence[int]], end: int
) -> torch.Tensor:
    """Return P(attribute) (B,) of the end token after each row."""
    prompt, mask = left_pad(ids, loaded.lm.device)
    reading = loaded.lm.start(arm.layers).prefill(prompt, mask)
    candidates = torch.full((len(ids), 1), end, device=loaded.lm.device)
    return arm.start(prompt, mask).score(candidates, reading)[:, 0].cpu()
