"""Small rewards for tests: tap ARMs with wide random weights, and a toy whose answer is known by heart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decoder.contracts import Reading
from decoder.lm import CausalLM, identify
from rewards.arm import ArmConfig, ArmHead, Output, Summary, TapArm, save_pretrained

LAYERS = (1, 3)


def as_lm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> CausalLM:
    """Return the model as the decoder reads it."""
    return CausalLM(model, identify("tiny", model, tokenizer))


def random_head(
    hidden: int = 32,
    layers: tuple[int, ...] = LAYERS,
    *,
    summary: Summary = "text",
    output: Output = "log_probability",
    seed: int = 0,
) -> ArmHead:
    """Return an ARM head whose log-odds are of size 1 to 10, so that it does move the choice of tokens."""
    head = ArmHead(ArmConfig(layers, hidden, rank=4, summary=summary, output=output))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(std=0.3, generator=generator)
    return head


def tiny_arm(lm: CausalLM, layers: tuple[int, ...] = LAYERS, *, seed: int = 0, **config: Any) -> TapArm:
    """Return a random ARM bound to a tiny model."""
    head = random_head(lm.identity.hidden_size, layers, seed=seed, **config)
    return TapArm.bind(head, lm, digest=f"random-{seed}")


def save_arm(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a random ARM that fits the model; return its directory."""
    head = random_head(model.config.hidden_size, seed=seed, **config)
    save_pretrained(head, directory, identify("tiny", model, tokenizer), {})
    return directory


@dataclass(frozen=True)
class Favours:
    """1 for the ids in `wanted`, 0 for the others, negated for the opposite; no taps, no state."""

    wanted: tuple[int, ...]
    sign: float = 1.0
    layers: tuple[int, ...] = ()

    @property
    def digest(self) -> str:
        return f"{self.sign} x {self.wanted}"

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> FavoursSession:
        return FavoursSession(self)

    def opposite(self) -> Favours:
        return Favours(self.wanted, -self.sign)


class FavoursSession:
    def __init__(self, reward: Favours) -> None:
        self.reward = reward

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        return self.reward.sign * torch.isin(candidate_ids, torch.tensor(self.reward.wanted)).float()

    def advance(self, token_ids: Tensor) -> None: ...

    def select(self, rows: Tensor) -> None: ...


def pad(rows: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Return left-padded ids and mask, written out by hand."""
    width = max(map(len, rows))
    ids = [[pad_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask).bool()
