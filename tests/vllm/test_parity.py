"""Tokens, rewards and scores inside vLLM are those on transformers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from decoder.decoder import Decoder
from tests.vllm.material import PROMPTS as ALL
from tests.vllm.material import compare

PROMPTS = ALL[:50]


@pytest.mark.parametrize("beta", [10.0, -10.0, 2.0])
def test_greedy_parity_on_ragged_prompts(hf: Decoder, vllm: Decoder, beta: float) -> None:
    call: dict[str, Any] = {"reward": "positive", "beta": beta, "do_sample": False, "max_new_tokens": 20}
    same, total = compare(vllm.generate(PROMPTS, batch_size=64, **call), hf.generate(PROMPTS, **call), 1e-4)
    assert same == total == 50


@pytest.mark.parametrize(
    "call",
    [
        {"reward": {"positive": -5.0, "nontoxic": 3.0}, "num_return_sequences": 3},
        {
            "reward": "positive",
            "beta": 8.0,
            "top_p": 0.9,
            "temperature": 0.7,
            "beta_schedule": "linear:1:0:10",
        },
        {"reward": "nontoxic", "beta": 3.0, "reward_top_k": 5, "stop": "\n."},
        {"top_k": 50, "temperature": 0.8},
        {"do_sample": False},
        {},
    ],
)
def test_sampled_tokens_are_those_of_the_decode_loop(
    hf: Decoder, vllm: Decoder, call: dict[str, Any]
) -> None:
    ours = vllm.generate(PROMPTS[:8], batch_size=64, max_new_tokens=20, **call)
    same, total = compare(ours, hf.generate(PROMPTS[:8], max_new_tokens=20, **call), 1e-4)
    assert same >= total - 1, "a draw at the very edge of two tokens may fall otherwise"


def test_streams_are_alike(hf: Decoder, vllm: Decoder) -> None:
    call: dict[str, Any] = {
        "reward": "positive",
        "beta": 5.0,
        "unsteered": True,
        "max_new_tokens": 8,
        "num_return_sequences": 2,
    }
    events = [sorted(each.stream(PROMPTS[0], **call), key=lambda e: (e.row, e.index)) for each in (hf, vllm)]
    for theirs, ours in itertools.zip_longest(*events):
        assert (ours.row, ours.index, ours.token_id, ours.text) == (
            theirs.row,
            theirs.index,
            theirs.token_id,
            theirs.text,
        )
        assert ours.finish_reason == theirs.finish_reason
        assert ours.shift == pytest.approx(theirs.shift, abs=1e-3)
        assert ours.rewards == pytest.approx(theirs.rewards, abs=1e-4)


def test_best_of_n_needs_no_second_pass(hf: Decoder, vllm: Decoder) -> None:
    call: dict[str, Any] = {"scorer": ["logprob", "self-certainty"], "n": 4, "max_new_tokens": 16}
    for ours, theirs in zip(
        vllm.best_of_n(PROMPTS[:4], **call), hf.best_of_n(PROMPTS[:4], **call), strict=True
    ):
        assert ours.winner == theirs.winner
        for a, b in zip(ours.samples, theirs.samples, strict=True):
            assert a.scores == pytest.approx(b.scores, abs=1e-4)
