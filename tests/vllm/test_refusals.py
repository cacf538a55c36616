"""What a worker refuses itself, since a configuration can reach it by ways that nobody checks before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rewards.vllm_model import refuse

FINE: dict[str, Any] = {
    "use_v2_model_runner": False, "speculative_config": None, "lora_config": None, "kv_transfer_config": None,
    "parallel_config": SimpleNamespace(pipeline_parallel_size=1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_v2_model_runner": True}, "second model runner"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"lora_config": object()}, "LoRA"),
        ({"kv_transfer_config": object()}, "KV transfer"),
        ({"parallel_config": SimpleNamespace(pipeline_parallel_size=2)}, "pipeline parallelism"),
    ],
)
def test_each_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        refuse(SimpleNamespace(**{**FINE, **change}))  # type: ignore[arg-type]


def test_the_rest_is_not() -> None:
    refuse(SimpleNamespace(**FINE))  # type: ignore[arg-type]
