"""What a token reward says about whole texts: its P(attribute) after the end token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decoder.contracts import TokenReward, UserError
from decoder.models import LoadedModel
from decoder.replay import batches_by_length, left_pad
from decoder.terminal import progress
from rewards.load import load_token_reward

MAX_TOKENS = 2048  # in one pass, padding included


@torch.inference_mode()
def probabilities(
    loaded: LoadedModel, reward: str, texts: Sequence[str], temperature: float = 1.0
) -> list[float]:
    """Return P(attribute) of each text, one forward pass a text of the models that the reward reads.

    temperature: divides the log-odds. Raises UserError for a reward without a probability, and for a
    tokenizer without an end token.
    """
    rewarder, end = load_token_reward(f"{reward}@probability", loaded.lm), loaded.tokenizer.eos_token_id
    if end is None:
        raise UserError(f"{reward} cannot label whole texts: its tokenizer has no end token")
    ids = [row[:-1] if row[-1:] == [end] else row for row in loaded.tokenizer(list(texts)).input_ids]
    found = torch.zeros(len(ids))
    with progress("labelling", len(ids)) as advance:
        for rows in batches_by_length([len(row) for row in ids], MAX_TOKENS):
            found[rows] = _end_probabilities(loaded, rewarder, [ids[row] for row in rows], end)
            advance(len(rows))
    return [float(value) for value in (found.logit(eps=1e-6) / temperature).sigmoid()]


def _end_probabilities(
    loaded: LoadedModel, reward: TokenReward, ids: Sequence[Sequence[int]], end: int
) -> torch.Tensor:
    """Return P(attribute) (B,) of the end token after each row."""
    prompt, mask = left_pad(ids, loaded.lm.device)
    reading = loaded.lm.start(reward.layers).prefill(prompt, mask)
    candidates = torch.full((len(ids), 1), end, device=loaded.lm.device)
    return reward.start(prompt, mask).score(candidates, reading)[:, 0].cpu()
