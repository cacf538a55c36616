"""Two workers, each with half of every layer and of the vocabulary, steer and score as one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from decoder.decoder import Decoder
from tests.vllm.conftest import SMALL
from tests.vllm.material import PROMPTS, compare, save_model, save_probe, save_reward


def test_two_workers_are_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    model = str(save_model(tmp_path / "model", "llama", {"tie_word_embeddings": True}))
    hf = Decoder.from_pretrained(model, dtype="float32")
    reward = save_reward(tmp_path / "kind", hf.lm.identity, (1, 3), "text")
    probe = save_probe(tmp_path / "good", hf.lm.identity, (0, 2, 4))
    inside = Decoder.from_pretrained(
        model, dtype="float32", backend="vllm", rewards=[reward], probes=[probe], tensor_parallel_size=2,
        **SMALL,
    )  # fmt: skip
    call: dict[str, Any] = {"n": 2, "scorer": probe, "reward": reward, "beta": 3.0, "max_new_tokens": 16}
    ours, theirs = (each.best_of_n(PROMPTS[:8], **call) for each in (inside, hf))
    same, total = compare(ours, theirs, 1e-4)
    assert same == total == 16
    for one, other in zip(ours, theirs, strict=True):
        assert one.winner == other.winner
