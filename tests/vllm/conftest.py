"""One engine for most tests: SmolLM2-135M in float32, whose results are compared with transformers'."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from decoder.decoder import Decoder

SMALL = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 64, "block_size": 32}


@pytest.fixture(scope="session")
def hf() -> Decoder:
    return Decoder.from_pretrained(dtype="float32")


@pytest.fixture(scope="session")
def vllm() -> Decoder:
    return Decoder.from_pretrained(
        dtype="float32", backend="vllm", probes=["logprob", "self-certainty"], **SMALL
    )
