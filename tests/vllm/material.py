"""Rewards and probes with random weights, saved for a model; prompts to try them on; what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from decoder.best_of import Selection
from decoder.contracts import ModelIdentity
from decoder.decoder import Generation
from prompts import builtin
from rewards import arm, elhsr
from tests.tiny import BOS, EOS, PAD, VOCAB, tiny_tokenizer

PROMPTS = [prompt.text for prompt in builtin("neutral")]
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "initializer_range": 0.2, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
}  # fmt: skip


def compare(
    ours: Sequence[Generation] | Sequence[Selection],
    theirs: Sequence[Generation] | Sequence[Selection],
    tolerance: float,
) -> tuple[int, int]:
    """Return how many samples have the same tokens, of how many; in those, rewards must agree."""
    pairs = [
        pair
        for one, other in zip(ours, theirs, strict=True)
        for pair in zip(one.samples, other.samples, strict=True)
    ]
    same = [(a, b) for a, b in pairs if a.token_ids == b.token_ids]
    for a, b in same:
        assert (a.text, a.finish_reason, a.sample) == (b.text, b.finish_reason, b.sample)
        assert a.token_rewards.keys() == b.token_rewards.keys()
        for name in a.token_rewards:
            assert a.token_rewards[name] == pytest.approx(b.token_rewards[name], abs=tolerance)
    return len(same), len(pairs)


def save_model(directory: Path, kind: str, changes: dict[str, Any]) -> Path:
    """Write a small model with random weights, of one of transformers' kinds, and a tokenizer."""
    config = AutoConfig.for_model(kind, **{**SHAPE, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def save_reward(directory: Path, model: ModelIdentity, layers: tuple[int, ...], summary: str) -> str:
    """Write a tap ARM whose log-odds vary by some units between candidates; return its directory."""
    head = arm.ArmHead(arm.ArmConfig(layers, model.hidden_size, 8, summary))  # type: ignore[arg-type]
    _draw(head, 1.0 / model.hidden_size**0.5)
    torch.nn.init.normal_(head.vocabulary.weight, std=1.0)
    arm.save_pretrained(head, directory, model, {})
    return str(directory)


def save_probe(directory: Path, model: ModelIdentity, layers: tuple[int, ...]) -> str:
    """Write a probe whose rewards and gate logits vary by about one unit between tokens."""
    head = elhsr.ElhsrHead(elhsr.ElhsrConfig(layers, model.hidden_size))
    _draw(head, 1.0 / (model.hidden_size * len(layers)) ** 0.5)
    elhsr.save_pretrained(head, directory, model, {})
    return str(directory)


def _draw(head: torch.nn.Module, spread: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=spread)
