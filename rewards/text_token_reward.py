"""RAD through text: any reward model that reads whole texts, asked about every candidate.

    r(v | x) = reward(text of x + v)

The way for a reward model with a tokenizer of its own. It is the dearest form there is: each step decodes
B * K texts and the model reads all of them from the start, with no cache, so a decode of T tokens costs it
B * K * T whole texts. A reward that reads the generator's tokens (rewards/rad.py) reads B * K * T tokens.
Nothing chooses this form by itself.

Source: "Reward-Augmented Decoding" (arXiv 2310.09520), without its caches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase

from decoder.contracts import Reading, UserError
from rewards.arm import Output
from rewards.compose import Composable
from rewards.text_reward import TextReward


@dataclass(frozen=True, slots=True)
class TextTokenReward(Composable):
    """A `TokenReward` that asks a text reward model.

    model: as `rewards.text_reward.load` returns it. tokenizer: the generator's, which turns tokens into
    text, without special tokens: an end token is worth the text as it stands, and of a chat template the
    plain words are left. output: None for r as the model gives it, a logit or log-odds; "log_probability"
    or "probability" for its logsigmoid or sigmoid. max_tokens: padded positions the model reads at once.
    sign: -1 for the opposite: that of the negative logit.
    """

    model: TextReward
    tokenizer: PreTrainedTokenizerBase
    output: Output | None = None
    max_tokens: int = 4096
    sign: int = 1

    @property
    def digest(self) -> str:
        """Return the model's, with the form of r."""
        return f"text:{self.model.digest}:{self.output}"

    @property
    def layers(self) -> tuple[int, ...]:
        """Return (): nothing of the generator is read."""
        return ()

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> TextTokenSession:
        """Open a session for left-padded prompts (B, T), which are part of the texts."""
        return TextTokenSession(self, prompt_ids, prompt_mask)

    def opposite(self) -> TextTokenReward:
        """Return the reward of the opposite attribute."""
        return replace(self, sign=-self.sign)

    def to_reward(self, values: Tensor) -> Tensor:
        """Return r in the declared form from values of the same shape."""
        signed = self.sign * values
        if self.output is None:
            return signed
        return logsigmoid(signed) if self.output == "log_probability" else signed.sigmoid()


class TextTokenSession:
    """One decode: the tokens of each row so far."""

    def __init__(self, reward: TextTokenReward, prompt_ids: Tensor, prompt_mask: Tensor) -> None:
        self._reward = reward
        self._rows = [
            [token for token, real in zip(ids, mask, strict=True) if real]
            for ids, mask in zip(prompt_ids.tolist(), prompt_mask.tolist(), strict=True)
        ]

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        """Return r (B, K) float32 of the candidates (B, K), from B * K whole texts.

        Raises UserError for a text that the model cannot read whole, or that is empty.
        """
        reward = self._reward
        rows = zip(self._rows, candidate_ids.tolist(), strict=True)
        ids = [[*row, token] for row, candidates in rows for token in candidates]
        texts: list[str] = reward.tokenizer.batch_decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        values = reward.model.score([""] * len(texts), texts, max_tokens=reward.max_tokens)
        for text, value in zip(texts, values, strict=True):
            if math.isnan(value):
                raise UserError(
                    f"reward model {reward.model.name} gives no score to {text[-60:]!r}: it reads 1 to "
                    f"{reward.model.max_tokens} tokens; shorten the prompt or max_new_tokens"
                )
        found = torch.tensor(values, device=candidate_ids.device)  # float32
        return reward.to_reward(found.reshape(candidate_ids.shape))

    def advance(self, token_ids: Tensor) -> None:
        """Note the tokens chosen, (B,) int64; nothing is read."""
        for row, token in zip(self._rows, token_ids.tolist(), strict=True):
            row.append(token)

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self._rows = [list(self._rows[row]) for row in rows.tolist()]
