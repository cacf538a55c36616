"""An ELHSR probe inside vLLM gives the score that transformers gives for the same tokens."""

from __future__ import annotations

from typing import Any

import pytest

from decoder.decoder import Decoder
from decoder.replay import score_samples
from rewards.elhsr import Elhsr
from tests.vllm.conftest import SMALL
from tests.vllm.material import PROMPTS, save_probe

LAYERS = (0, 7, 15, 22, 30)


@pytest.fixture(scope="module")
def probe(hf: Decoder, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_probe(tmp_path_factory.mktemp("probes") / "good", hf.lm.identity, LAYERS)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 1e-3)])
def test_scores_are_those_of_a_replay(probe: str, dtype: str, tolerance: float) -> None:
    inside = Decoder.from_pretrained(dtype=dtype, backend="vllm", probes=[probe], **SMALL)
    call: dict[str, Any] = {"n": 4, "scorer": probe, "max_new_tokens": 48, "stop": "."}
    found = inside.best_of_n(PROMPTS[:16], **call)
    hf = Decoder.from_pretrained(dtype=dtype)
    prompts = [hf.tokenizer(text)["input_ids"] for text in PROMPTS[:16]]
    samples = [[sample.token_ids for sample in each.samples] for each in found]
    assert {sample.finish_reason for each in found for sample in each.samples} == {"stop", "length"}
    bound = Elhsr.from_pretrained(probe, hf.lm)
    off = [
        abs(sample.scores["good"] - float(score))
        for number, scores in score_samples(hf.lm, [bound], prompts, samples)
        for sample, score in zip(found[number].samples, scores[0], strict=True)
    ]
    print(f"{dtype}: {len(off)} scores, furthest from the replay {max(off):.2e}")
    assert len(off) == 64
    assert max(off) < tolerance
