"""Tells every process of vLLM of our model classes: the entry point `vllm.general_plugins` of the project."""

from __future__ import annotations

PREFIX = "Tiller"
COVERED = (  # tested: tokens and rewards equal those on transformers
    "LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
    "GraniteForCausalLM",
)  # fmt: skip


def register() -> None:
    """Add "Tiller..." beside every covered architecture; nothing of it is loaded before it is used."""
    from vllm.model_executor.models import ModelRegistry

    for architecture in COVERED:
        name = PREFIX + architecture
        ModelRegistry.register_model(name, f"rewards.vllm_model:{name}")
