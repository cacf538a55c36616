"""An ELHSR probe inside vLLM gives the score that transformers gives for the same tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from decoder.decoder import Decoder
from decoder.replay import score_samples
from rewards.elhsr import Elhsr
from tests.vllm.conftest import SMALL
from tests.vllm.material import PROMPTS, save_probe

LAYERS = (0, 7, 15, 22, 30)


@pytest.fixture(scope="module")
def probe(hf: Decoder, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_probe(tmp_path_factory.mktemp("probes") / "good", hf.lm.identity, LAYERS)


def scores_and_replay(inside: Decoder, probe: str, *replays: Decoder) -> tuple[Tensor, ...]:
    """Return the scores (64,) that came with the texts, and those of each replay of the same tokens."""
    call: dict[str, Any] = {"n": 4, "scorer": probe, "max_new_tokens": 20, "stop": "."}
    found = inside.best_of_n(PROMPTS[:16], **call)
    assert {sample.finish_reason for each in found for sample in each.samples} == {"stop", "length"}
    prompts = [inside.tokenizer(text)["input_ids"] for text in PROMPTS[:16]]
    samples = [[sample.token_ids for sample in each.samples] for each in found]
    own = torch.tensor([sample.scores["good"] for each in found for sample in each.samples])
    return own, *(
        torch.cat([scores[:, 0] for _, scores in score_samples(hf.lm, [bound], prompts, samples)])
        for hf in replays
        for bound in [Elhsr.from_pretrained(probe, hf.lm)]
    )


def test_scores_are_those_of_a_replay(probe: str, hf: Decoder) -> None:
    inside = Decoder.from_pretrained(dtype="float32", backend="vllm", probes=[probe], **SMALL)
    own, replayed = scores_and_replay(inside, probe, hf)
    assert len(own) == 64
    torch.testing.assert_close(own, replayed, atol=1e-4, rtol=0)
    assert own.std() > 0.1


def test_half_precision_costs_no_more_than_on_transformers(probe: str, hf: Decoder) -> None:
    """In bfloat16 transformers is some 1e-2 from its own replay; inside vLLM it must be no further."""
    inside = Decoder.from_pretrained(dtype="bfloat16", backend="vllm", probes=[probe], **SMALL)
    half = Decoder.from_pretrained(dtype="bfloat16")
    own, replayed, exact = scores_and_replay(inside, probe, half, hf)
    print(f"bfloat16: from a replay {_off(own, replayed)}, from float32 {_off(own, exact)}; ", end="")
    print(f"the replay from float32 {_off(replayed, exact)}; scores spread by {own.std():.2f}")
    assert (own - exact).abs().mean() < 2 * (replayed - exact).abs().mean()
    assert torch.corrcoef(torch.stack([own, replayed]))[0, 1] > 0.999


def _off(one: Tensor, other: Tensor) -> str:
    return f"{(one - other).abs().mean():.1e} (at most {(one - other).abs().max():.1e})"
