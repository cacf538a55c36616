"""Every architecture that is said to be covered: tokens, rewards and scores are those on transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from decoder.decoder import Decoder
from rewards.vllm_plugin import COVERED
from tests.vllm.conftest import SMALL
from tests.vllm.material import PROMPTS, compare, save_model, save_probe, save_reward

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("llama", {"tie_word_embeddings": True}),
    "MistralForCausalLM": ("mistral", {"sliding_window": None, "tie_word_embeddings": False}),
    "Phi3ForCausalLM": ("phi3", {"tie_word_embeddings": False}),
    "Qwen2ForCausalLM": ("qwen2", {"tie_word_embeddings": False}),
    "Qwen3ForCausalLM": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "GraniteForCausalLM": (
        "granite",
        {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    ),
}


def test_all_that_are_covered_are_tested() -> None:
    assert set(KINDS) == set(COVERED)


@pytest.mark.parametrize("architecture", KINDS)
def test_parity(architecture: str, tmp_path: Path) -> None:
    kind, changes = KINDS[architecture]
    model = str(save_model(tmp_path / "model", kind, changes))
    hf = Decoder.from_pretrained(model, dtype="float32")
    reward = save_reward(tmp_path / "kind", hf.lm.identity, (1, 3), "text")
    probe = save_probe(tmp_path / "good", hf.lm.identity, (0, 2, 4))
    inside = Decoder.from_pretrained(
        model, dtype="float32", backend="vllm", rewards=[reward], probes=[probe], **SMALL
    )
    call: dict[str, Any] = {"n": 2, "scorer": probe, "reward": reward, "beta": 3.0, "max_new_tokens": 16}
    ours, theirs = (each.best_of_n(PROMPTS[:8], **call) for each in (inside, hf))
    same, total = compare(ours, theirs, 1e-4)
    assert same == total == 16
    for one, other in zip(ours, theirs, strict=True):
        assert one.winner == other.winner
        scores = [sample.scores for sample in other.samples]
        assert [sample.scores for sample in one.samples] == [pytest.approx(each, abs=1e-4) for each in scores]
        assert len({score for each in scores for score in each.values()}) > 1
