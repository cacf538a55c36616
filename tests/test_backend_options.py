"""Where a command line may want its model to run, and what it is told where it cannot."""

from __future__ import annotations

from typing import Any

import pytest

import decoder.vllm_engine as vllm_engine
from decoder.backend_options import backend_arguments, told
from decoder.contracts import UserError
from decoder.decoder import Decoder


def test_transformers_take_nothing_more() -> None:
    assert backend_arguments("hf", None, ["positive"], here={"--trace": True}) == {}
    assert told("hf") == {}


def test_an_engine_is_told_its_rewards_and_arguments() -> None:
    given = ["max_model_len=512", "enforce_eager=true", "kv_cache_dtype=auto"]
    found = backend_arguments("vllm", given, ["positive"], ["logprob"], here={"--trace": False})
    assert found == {
        "backend": "vllm", "rewards": ["positive"], "probes": ["logprob"],
        "max_model_len": 512, "enforce_eager": True, "kv_cache_dtype": "auto",
    }  # fmt: skip
    assert told("vllm") == {"backend": "vllm"}


@pytest.mark.parametrize(
    ("backend", "engine", "here", "message"),
    [
        ("tgi", None, {}, "unknown backend 'tgi': choose hf or vllm"),
        ("hf", ["max_model_len=1"], {}, "--engine max_model_len=1: only --backend vllm has an engine"),
        ("vllm", ["max_model_len"], {}, "--engine 'max_model_len': write NAME=VALUE"),
        ("vllm", ["a b=1"], {}, "--engine 'a b=1': write NAME=VALUE"),
        ("vllm", None, {"--trace": True}, "--trace needs every step's candidates"),
    ],
)
def test_what_is_refused(backend: str, engine: Any, here: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        backend_arguments(backend, engine, [], here=here)


def test_without_vllm_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise vllm_engine.PackageNotFoundError(name)

    monkeypatch.setattr(vllm_engine, "version", absent)
    with pytest.raises(UserError, match=r"--backend vllm needs vLLM 0\.32.*make setup-vllm"):
        Decoder.from_pretrained(backend="vllm")


def test_arguments_of_a_decoder() -> None:
    with pytest.raises(UserError, match="unknown backend 'tgi'"):
        Decoder.from_pretrained(backend="tgi")
    with pytest.raises(UserError, match="unknown argument 'max_model_len'"):
        Decoder.from_pretrained(max_model_len=512)
    with pytest.raises(UserError, match="device is 'cpu'"):
        Decoder.from_pretrained(backend="vllm", device="cpu")
