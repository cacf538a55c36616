"""Checkpoints of a training run: written whole, taken up again, refused for other settings."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from decoder.contracts import UserError

SETTINGS = "settings.json"


@dataclass(slots=True)
class Progress:
    """Where a run stands: what accelerate does not know of. best_weights: of what is trained, on the CPU."""

    step: int = 0
    n_tokens: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    history: list[tuple[int, float, float]] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, for accelerate to save."""
        return {name: getattr(self, name) for name in Progress.__slots__}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take all of it back."""
        for name in Progress.__slots__:
            setattr(self, name, state[name])


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy on the CPU of the weights that are trained, by name."""
    return {
        name: weight.detach().cpu().clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


@torch.no_grad()
def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put trained weights back into the model; they must be all of them."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained.keys() == weights.keys(), "weights of another model"
    for name, weight in trained.items():
        weight.copy_(weights[name])


class Checkpoints:
    """The checkpoints of one run in a folder: `step-N`, only the newest of them."""

    def __init__(self, folder: Path, accelerator: Accelerator, model: nn.Module, state: Progress) -> None:
        """Let accelerate save and load the trained weights alone, not the frozen ones too."""
        self.state = state
        self._folder, self._accelerator, self._model = folder, accelerator, model
        accelerator.register_for_checkpointing(state)
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def save(self) -> None:
        """Write a checkpoint. It gets its name when it is whole, and only then the one before goes."""
        half = self._folder / "writing"
        shutil.rmtree(half, ignore_errors=True)
        older = self._found()
        try:
            self._accelerator.save_state(str(half))
            half.rename(self._folder / f"step-{self.state.step}")
        except OSError as error:
            raise UserError(
                f"cannot write a checkpoint to {self._folder} ({error.strerror}): free some space"
            ) from None
        for folder in older:
            shutil.rmtree(folder)

    def resume(self) -> int:
        """Take up the last checkpoint, if there is one; return its step, or 0."""
        found = self._found()
        if found:
            self._accelerator.load_state(str(found[-1]))
        return self.state.step

    def _found(self) -> list[Path]:
        folders = self._folder.glob("step-*")
        return sorted(folders, key=lambda folder: int(folder.name.removeprefix("step-")))

    def _save_weights(self, models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        weights.clear()
        save_file(trained_weights(self._model), Path(folder) / "model.safetensors")

    def _load_weights(self, models: list[nn.Module], folder: str) -> None:
        models.clear()
        fill(self._model, load_file(Path(folder) / "model.safetensors"))


def partial_folder(output: Path) -> Path:
    """Return where the checkpoints of a run with that output stand."""
    return output.with_name(f"{output.name}.partial")


def check_settings(partial: Path, settings: Mapping[str, Any]) -> None:
    """Note in the folder what the run depends on. Raises UserError if one of other settings stopped there."""
    now = json.loads(json.dumps(settings))
    path = partial / SETTINGS
    try:
        if path.is_file() and next(partial.glob("step-*"), None):
            return _compare(partial, json.loads(path.read_text(encoding="utf-8")), now)
        partial.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".half")
        half.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
        half.replace(path)
    except OSError as error:
        raise UserError(f"cannot write to {partial} ({error.strerror}): give another --output") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete {partial}") from None


def _compare(partial: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        sides = ", ".join(f"{name} {before.get(name)!r} there, {now.get(name)!r} now" for name in names)
        raise UserError(
            f"{partial} holds a run that stopped, of other settings: {sides}. "
            "Give its settings to go on with it, or delete the folder"
        )
