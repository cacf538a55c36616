"""Probes that read the generator's own distribution: no hidden states, and no forward pass of their own.

What they score is the base model's distribution before temperature, over all tokens drawn, the end token
among them. Every step takes one logsumexp over the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from decoder.contracts import Drawn, Reading
from rewards.fold import GatedMean, Read


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
        chosen = log_probabilities(drawn)
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
        logits = drawn_logits(drawn)
        divergence = logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1])
        return torch.ones_like(divergence), divergence


def log_probabilities(drawn: Drawn) -> Tensor:
    """Return log p (B, T) float32 of the tokens drawn, in the base model's distribution over all tokens."""
    logits = drawn_logits(drawn)
    return logits.gather(-1, drawn.ids[..., None])[..., 0] - logits.logsumexp(-1)


def drawn_logits(drawn: Drawn) -> Tensor:
    """Return the logits (B, T, V) that the tokens were drawn from. Raises ValueError without them."""
    if drawn.logits is None:
        raise ValueError("a probe with reads_logits was given tokens without logits")
    return drawn.logits


def _fold(read: Read, prompt_ids: Tensor) -> GatedMean:
    return GatedMean(read, len(prompt_ids), prompt_ids.device)
