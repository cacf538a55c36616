"""Tiller's decoder: steer a language model with rewards read off its own forward pass.

The public names load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decoder.config import DecodeConfig
    from decoder.contracts import (
        Completion,
        Reading,
        RewardSession,
        Step,
        TokenEvent,
        TokenReward,
        UserError,
    )
    from decoder.decoder import Decoder, Generation
    from decoder.hf_generate import custom_generate
    from decoder.sampling import SamplingConfig

_HOMES = {
    **dict.fromkeys(
        ("Completion", "Reading", "RewardSession", "Step", "TokenEvent", "TokenReward", "UserError"),
        "decoder.contracts",
    ),
    "custom_generate": "decoder.hf_generate",
    "DecodeConfig": "decoder.config",
    **dict.fromkeys(("Decoder", "Generation"), "decoder.decoder"),
    "SamplingConfig": "decoder.sampling",
}

__all__ = [
    "Completion",
    "DecodeConfig",
    "Decoder",
    "Generation",
    "Reading",
    "RewardSession",
    "SamplingConfig",
    "Step",
    "TokenEvent",
    "TokenReward",
    "UserError",
    "custom_generate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'decoder' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
