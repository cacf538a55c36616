"""Fixtures every test may use. The environment is set before torch and transformers read it."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import ARCHITECTURES, save_tiny, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer: 300 tokens, pad apart from EOS, no BOS added."""
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_model() -> PreTrainedModel:
    """A tiny Llama, shared: do not change it."""
    return tiny_llama()


@pytest.fixture(scope="session", params=ARCHITECTURES)
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny model of each architecture in turn, shared: do not change it."""
    return ARCHITECTURES[request.param]()


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tiny Llama and its tokenizer, as a user would have one."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))
