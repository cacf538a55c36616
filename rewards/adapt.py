"""What of a backbone is trained: low-rank adapters, all weights, or nothing but the head on it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from decoder.contracts import ModelIdentity, UserError
from decoder.models import load_model
from rewards.backbone import Adaptation
from rewards.backbone_heads import ActionValueHead, ValueHead
from rewards.fit_backbone import Scorer


@dataclass(frozen=True, slots=True)
class Student:
    """A scorer to be trained. model: what saves the backbone, peft's for LoRA. base: the backbone before."""

    scorer: Scorer
    model: Any
    tokenizer: PreTrainedTokenizerBase
    base: ModelIdentity
    context: int | None


@dataclass(frozen=True, slots=True)
class Shape:
    """What to make of a base model. kind: "rad" or "backbone_arm". rank: of an ARM's W, None for full."""

    kind: str
    adapt: Adaptation
    n_outputs: int
    rank: int | None = None
    lora_rank: int = 16
    freeze_embeddings: bool = True


def make_student(
    name: str, revision: str | None, device: torch.device, generator: ModelIdentity, shape: Shape, seed: int
) -> Student:
    """Return an untrained student in float32; the same for the same seed.

    Raises UserError for a base that cannot be loaded or reads other tokens than the generator, without peft
    for LoRA, and for embeddings that LoRA cannot train.
    """
    if not shape.freeze_embeddings and shape.adapt != "full":
        raise UserError("--train-embeddings needs --adapt full: adapters leave the embeddings as they are")
    loaded = load_model(name, dtype="float32", device=str(device), revision=revision)
    base = loaded.lm.identity
    _check_tokens(base, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = base.hidden_size
        head: ValueHead | ActionValueHead = (
            ValueHead(size, shape.n_outputs)
            if shape.kind == "rad"
            else ActionValueHead(size, shape.n_outputs, shape.rank)
        )
        model: Any = loaded.lm.model
        if device.type == "cpu":  # the fused kernel's backward pass takes a third of a step there
            model.set_attn_implementation("eager")
        if shape.adapt == "lora":
            model = _with_adapters(model, shape.lora_rank)
    if shape.adapt == "none":
        model.requires_grad_(False)
    elif shape.freeze_embeddings:
        loaded.lm.output_embeddings.requires_grad_(False)
    scorer = Scorer(loaded.lm.model, head).to(device)
    return Student(scorer, model, loaded.tokenizer, base, loaded.lm.context_length())


def _with_adapters(model: Any, rank: int) -> Any:
    """Return peft's model around this one, which now has adapters beside every linear layer but the last."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError(
            "--adapt lora needs peft: pip install 'tiller-lm[train]', or give --adapt full"
        ) from None
    transposed = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2's linear layers
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", fan_in_fan_out=transposed)
    with warnings.catch_warnings():  # peft asks transformers for an attribute by its old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = get_peft_model(model, config)
    config.base_model_name_or_path = None  # a folder of this machine; the reward's own config names the base
    config.target_modules = sorted(config.target_modules or ())  # a set is saved in another order each time
    return adapted


def _check_tokens(base: ModelIdentity, generator: ModelIdentity) -> None:
    if base.tokenizer_hash != generator.tokenizer_hash or base.vocab_size < generator.vocab_size:
        raise UserError(
            f"--backbone {base.name} reads other tokens than --model {generator.name}: tokenizer "
            f"{base.tokenizer_hash} with {base.vocab_size} rows there, {generator.tokenizer_hash} with "
            f"{generator.vocab_size} here. Give a backbone with the generator's tokenizer"
        )
