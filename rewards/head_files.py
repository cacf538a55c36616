"""Heads on embeddings on disk, and whether one fits the embeddings it is to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from decoder.contracts import UserError
from rewards import artefact


@dataclass(frozen=True, slots=True)
class SavedHead:
    """What `config.json` says of a head: the dimension D it reads, its hyper-parameters, the rest."""

    dimension: int
    options: Mapping[str, Any]
    config: Mapping[str, Any]


def save_head(
    directory: Path,
    kind: str,
    head: tuple[int, Mapping[str, Any], Mapping[str, Tensor]],
    encoder: Mapping[str, Any] | None,
    about: Mapping[str, Any] | None,
) -> None:
    """Write config and tensors of a head: the dimension D that it reads, its options, its tensors.

    encoder: any JSON-able record of what made the embeddings. about: what else the config should tell.
    """
    dimension, options, tensors = head
    config = {"dimension": dimension, "encoder": dict(encoder or {}), "options": options, **(about or {})}
    artefact.save(directory, kind, config, tensors)


def read_head(
    directory: Path, kind: str, dimension: int | None = None, encoder: Mapping[str, Any] | None = None
) -> SavedHead:
    """Return what a saved head says. dimension, encoder: of the embeddings it is to read, where known.

    Raises UserError for another kind, a broken config, and, with both sides, another dimension or any fact
    of the encoder that both name and that differs.
    """
    config = artefact.read_config(directory)
    if config["kind"] != kind:
        raise UserError(f"{directory} is of kind {config['kind']!r}, not {kind!r}: give another folder")
    try:
        saved = SavedHead(int(config["dimension"]), dict(config["options"]), config)
        made_by = dict(config["encoder"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{directory}/config.json lacks or garbles {error}: train the head again") from None
    if saved.dimension < 1:
        raise UserError(f"{directory}/config.json: dimension {saved.dimension}: train the head again")
    if dimension is not None and dimension != saved.dimension:
        raise UserError(
            f"head {directory} reads embeddings of dimension {saved.dimension}, these have {dimension}: "
            "embed the texts as the head's training texts were, or train a head on these"
        )
    _check_encoder(directory, made_by, encoder or {})
    return saved


def _check_encoder(directory: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [name for name in now if name in saved and saved[name] != now[name]]
    if differing:
        sides = "; ".join(f"{name} {saved[name]!r} in the head, {now[name]!r} here" for name in differing)
        raise UserError(
            f"head {directory} was trained on other embeddings: {sides}. Embed the texts as its training "
            "texts were, or train a head on these"
        )
