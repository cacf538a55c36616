"""Probes that read the generator's own distribution: no hidden states, and no forward pass of their own.

What they score is the base model's distribution before temperature, over all tokens drawn, the end token
among them. Every step takes one logsumexp over the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from decoder.contracts import Drawn, Reading, UserError
from prompts.lines import shown
from rewards import artefact
from rewards.fold import GatedMean, Read

FLOOR = -30.0  # APIs write -9999 for "very unlikely": a line through that would see nothing else


@dataclass(frozen=True, slots=True)
class MeanLogProbability:
    """The mean of log p over the tokens drawn: how likely the model finds its text, length apart."""

    digest: str = "mean-log-probability"
    layers: tuple[int, ...] = ()
    reads_logits: bool = True

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, reading: Reading) -> GatedMean:
        """Open a session of two sums a row."""
        return _fold(self.read, prompt_ids)

    @staticmethod
    def read(drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Return gates of 1 and log p of each token, both (B, T) float32."""
        logits = _logits(drawn)
        chosen = logits.gather(-1, drawn.ids[..., None])[..., 0] - logits.logsumexp(-1)
        return torch.ones_like(chosen), chosen


@dataclass(frozen=True, slots=True)
class SelfCertainty:
    """The mean over tokens of KL(uniform || p) = -log V - mean_v log p_v: how far from undecided p is.

    Infinite where the model gives some token probability 0. Source: Kang et al. 2025, arXiv 2502.18581.
    """

    digest: str = "self-certainty"
    layers: tuple[int, ...] = ()
    reads_logits: bool = True

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, reading: Reading) -> GatedMean:
        """Open a session of two sums a row."""
        return _fold(self.read, prompt_ids)

    @staticmethod
    def read(drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Return gates of 1 and the divergence at each token, both (B, T) float32."""
        logits = _logits(drawn)
        divergence = logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1])
        return torch.ones_like(divergence), divergence


@dataclass(frozen=True, slots=True, eq=False)
class TopLogprobs:
    """A trained gate and reward on log p of the token and of the m likeliest: all that closed APIs tell.

    weight: (2, m + 1) float32, bias: (2,) float32; row 0 makes the gate's log-odds, row 1 the reward.
    """

    weight: Tensor
    bias: Tensor
    layers: tuple[int, ...] = ()
    reads_logits: bool = True

    @property
    def m(self) -> int:
        """Return how many alternatives it reads."""
        return self.weight.shape[1] - 1

    @property
    def digest(self) -> str:
        """Return a digest of the weights."""
        return f"top-logprobs:{artefact.digest({'weight': self.weight, 'bias': self.bias})}"

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, reading: Reading) -> GatedMean:
        """Open a session of two sums a row. Raises UserError if the vocabulary has fewer than m tokens."""
        require_alternatives(reading.logits.shape[-1], self.m)
        device = prompt_ids.device
        here = replace(self, weight=self.weight.to(device), bias=self.bias.to(device))
        return _fold(here.read, prompt_ids)

    def read(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Return the gates in (0, 1) and the rewards, both (B, T) float32."""
        return self.weigh(self.features(_logits(drawn), drawn.ids, self.m))

    def weigh(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return gates and rewards (...) of features (..., m + 1)."""
        gate, reward = (features @ self.weight.T + self.bias).unbind(-1)
        return gate.sigmoid(), reward

    def score_records(self, logprobs: Any) -> float:
        """Return the score of a text from an API's answer; see `features_of_records` for its shapes."""
        features = features_of_records(logprobs, self.m).to(self.weight.device)[None]
        ids = torch.zeros(features.shape[:2], dtype=torch.long, device=features.device)
        session = GatedMean(lambda drawn: self.weigh(features), 1, features.device)
        session.update(Drawn(ids, torch.ones_like(ids, dtype=torch.bool), {}, None))
        return float(session.score())

    @staticmethod
    def features(logits: Tensor, ids: Tensor, m: int) -> Tensor:
        """Return (B, T, m + 1) float32: log p of ids (B, T), then the m highest log p, best first.

        logits: (B, T, V) float32. What is below -30 counts as -30, here as in `features_of_records`.
        """
        top = logits.topk(m).values
        both = torch.cat([logits.gather(-1, ids[..., None]), top], -1)
        return (both - logits.logsumexp(-1, keepdim=True)).clamp(min=FLOOR)


def features_of_records(logprobs: Any, m: int) -> Tensor:
    """Return (T, m + 1) float32, the same as `TopLogprobs.features`, of the log-probabilities of one answer.

    logprobs: the chat shape, [{"logprob": x, "top_logprobs": [{"logprob": y}, ...]}, ...] or {"content":
    that list}; or the older one of completions, {"token_logprobs": [x, ...], "top_logprobs": [{token: y},
    ...]}. They have to be the raw ones, before temperature. An API that leaves out the end token gives one
    row less than a decode: train the probe on what it will read.
    Raises UserError for another shape, no tokens, a value that is no number, and fewer than m alternatives.
    """
    pairs = _chat_pairs(logprobs) if _is_chat(logprobs) else _flat_pairs(logprobs)
    if not pairs:
        raise UserError("these log-probabilities hold no token: leave out answers that are empty")
    rows = [_features_of(chosen, others, m, f"token {i}") for i, (chosen, others) in enumerate(pairs)]
    return torch.tensor(rows, dtype=torch.float32).clamp(min=FLOOR)


def require_alternatives(found: int, m: int, where: str = "the model's vocabulary") -> None:
    """Raise UserError where fewer than the m alternatives that a probe reads are there."""
    if found < m:
        raise UserError(
            f"{where} has {found} alternatives, the probe reads {m}: ask for {m} or more (top_logprobs in "
            "chats, logprobs in completions), or train a probe that reads fewer"
        )


def _fold(read: Read, prompt_ids: Tensor) -> GatedMean:
    return GatedMean(read, len(prompt_ids), prompt_ids.device)


def _logits(drawn: Drawn) -> Tensor:
    if drawn.logits is None:
        raise ValueError("a probe with reads_logits was given tokens without logits")
    return drawn.logits


def _is_chat(logprobs: Any) -> bool:
    return isinstance(logprobs, list) or (isinstance(logprobs, Mapping) and "content" in logprobs)


def _chat_pairs(logprobs: Any) -> list[tuple[Any, list[Any]]]:
    """Return each token's log-probability and those of the alternatives, unchecked, of the chat shape."""
    tokens = logprobs["content"] if isinstance(logprobs, Mapping) else logprobs
    try:
        return [
            (token["logprob"], [other["logprob"] for other in token.get("top_logprobs") or ()])
            for token in tokens or ()
        ]
    except (TypeError, KeyError, AttributeError):
        raise _unknown_shape(logprobs) from None


def _flat_pairs(logprobs: Any) -> list[tuple[Any, list[Any]]]:
    """Return the same of the completions shape."""
    try:
        chosen = logprobs["token_logprobs"]
        others = logprobs.get("top_logprobs") or [None] * len(chosen)
        return [(x, list((each or {}).values())) for x, each in zip(chosen, others, strict=True)]
    except (TypeError, KeyError, AttributeError, ValueError):
        raise _unknown_shape(logprobs) from None


def _features_of(chosen: Any, others: Sequence[Any], m: int, where: str) -> list[float]:
    values = [_number(value, where) for value in (chosen, *others)]
    require_alternatives(len(others), m, where)
    return [values[0], *sorted(values[1:], reverse=True)[:m]]


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise UserError(
            f"{where}: the log-probability {shown(value)} is no number: ask for the answer's own tokens, "
            "without the prompt (no echo)"
        )
    return float(value)


def _unknown_shape(logprobs: Any) -> UserError:
    return UserError(
        f"these are no log-probabilities of tokens: {shown(logprobs)}; give the 'logprobs' of one choice of "
        'a chat ({"content": [...]}) or of a completion ({"token_logprobs": [...], "top_logprobs": [...]})'
    )
