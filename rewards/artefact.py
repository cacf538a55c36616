"""Saved heads on disk: `model.safetensors` + `config.json`, and whether one fits a generator."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import nn

from decoder.contracts import ModelIdentity, UserError

FORMAT_VERSION = 1
HARD = ("hidden_size", "num_layers", "vocab_size", "tokenizer_hash")
SOFT = ("architecture", "weights")


def save(directory: Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a head: its tensors as float32 safetensors and a readable config. Makes the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    # As bytes, because safetensors' own file would be readable by its owner alone.
    weights = serialise({name: t.float().contiguous() for name, t in tensors.items()})
    (directory / "model.safetensors").write_bytes(weights)
    text = json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **config}, indent=2)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")


def read_config(directory: Path) -> dict[str, Any]:
    """Return the config of a saved head. Raises UserError if it is missing, broken or too new."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{directory} is not a saved reward: cannot read {path.name} ({error.strerror})"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): train or copy the reward again") from None
    if not isinstance(config, dict) or "kind" not in config:
        raise UserError(f"{path} has no 'kind': it does not describe a reward (is this a model's folder?)")
    if config.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {config.get('format_version')!r}; this version of tiller reads "
            f"{FORMAT_VERSION}: train the reward again or install a matching version"
        )
    return config


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a saved head. Raises UserError if the file is missing, corrupt or holds NaN."""
    path = directory / "model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy or train the reward again") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: tensor {name!r} holds NaN or infinite weights: train the reward again")
    return tensors


def load_weights(module: nn.Module, directory: Path) -> str:
    """Fill a module with a saved head's tensors and return their digest. UserError if they do not fit."""
    tensors = read_tensors(directory)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise UserError(f"{directory}: weights and config disagree ({detail}): train it again") from None
    return digest(tensors)


def check_identity(directory: Path, saved: Mapping[str, Any] | None, generator: ModelIdentity) -> None:
    """Refuse a head made for another model, printing both sides; warn of what it can live with.

    Hidden size, layers, vocabulary size and tokenizer must agree (UserError). Other weights, such as a
    quantised twin's, cost one warning. What is empty in the generator is unknown and differs from nothing.
    """
    if not isinstance(saved, Mapping):
        raise UserError(f"{directory}/config.json does not name its base_model: train the reward again")
    now = asdict(generator)
    differing = [k for k in HARD if now[k] != saved.get(k) and now[k] != ""]
    if differing:
        sides = "; ".join(f"{k} {saved.get(k)!r} in the reward, {now[k]!r} in the model" for k in differing)
        raise UserError(
            f"reward {directory} was trained on {saved.get('name')!r} and does not fit "
            f"{generator.name!r}: {sides}. Train one for this model with python -m rewards.train_arm"
        )
    soft = [k for k in SOFT if now[k] not in (saved.get(k), "")]
    if soft:
        warnings.warn(
            f"reward {directory} was trained on {saved.get('name')!r}; {generator.name!r} has other "
            f"{' and '.join(soft)} but the same shapes and tokenizer, so it is used as it is",
            stacklevel=2,
        )


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a short digest of a head's weights; goes into the fingerprint of whatever it steers."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return state.hexdigest()[:16]
