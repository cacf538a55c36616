"""Find a reward by name, directory or object, and load it for a generator."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

from decoder.contracts import TokenReward, UserError
from decoder.lm import CausalLM
from rewards import artefact

KINDS = {
    "tap_arm": "rewards.arm:TapArm",
    "backbone_arm": "rewards.backbone_arm:BackboneArm",
    "rad": "rewards.rad:Rad",
    "expert": "rewards.language_model_reward:LanguageModelReward",
    "prompted": "rewards.prompted:PromptedReward",
    "elhsr": "rewards.elhsr:Elhsr",
    "embedding_head": "rewards.embedding_head:EmbeddingHead",
    "top_logprobs": "rewards.top_logprobs:TopLogprobs",
    "head_mlp": "rewards.embedding_scorer:EmbeddingScorer",
    "head_lightgbm": "rewards.embedding_scorer:EmbeddingScorer",
    "head_ensemble": "rewards.embedding_scorer:EmbeddingScorer",
}
FORMS = ("log_probability", "probability")
SHIPPED = Path(__file__).parent / "shipped"


def shipped_names() -> list[str]:
    """Return the names of the rewards that come with the project."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def split_form(reward: str | Path) -> tuple[str | Path, str | None]:
    """Return a reward and the form asked for, from "name@probability"; a path that exists is left whole."""
    if isinstance(reward, Path) or "@" not in reward or Path(reward).exists():
        return reward, None
    name, _, form = reward.rpartition("@")
    if form not in FORMS:
        raise UserError(f"reward {reward!r}: {form!r} is no form of a reward: choose {' or '.join(FORMS)}")
    return name, form


def find(reward: str | Path) -> Path:
    """Return the directory of a shipped name or a path. Raises UserError with the nearest names."""
    reward = split_form(reward)[0]
    path = Path(reward)
    if path.is_dir():
        return path
    if (SHIPPED / str(reward) / "config.json").is_file() and str(reward) in shipped_names():
        return SHIPPED / str(reward)
    names = shipped_names()
    near = difflib.get_close_matches(str(reward), names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"unknown reward {str(reward)!r}: {hint}shipped are {', '.join(names) or 'none'}; "
        "anything else must be a directory written by rewards.train_arm"
    )


def load_reward(reward: str | Path | TokenReward, lm: CausalLM) -> TokenReward:
    """Return a reward ready for this generator: by shipped name, directory, or the object itself.

    "name@probability" and "name@log_probability" ask for that form instead of the declared one.
    """
    if not isinstance(reward, str | Path):
        return reward
    directory, form = find(reward), split_form(reward)[1]
    loaded: TokenReward = _class_of(directory).from_pretrained(directory, lm, form)
    return loaded


def load_token_reward(reward: str | Path | TokenReward, lm: CausalLM) -> TokenReward:
    """Return a reward that can steer. Raises UserError for a probe, which scores whole samples."""
    found = load_reward(reward, lm)
    if not isinstance(found, TokenReward):
        raise UserError(
            f"{reward} scores whole samples and cannot steer tokens: give it to decoder.best_of_n as --scorer"
        )
    return found


def _class_of(directory: Path) -> Any:
    kind = artefact.read_config(directory)["kind"]
    if kind not in KINDS:
        raise UserError(f"{directory} is of unknown kind {kind!r}: this version knows {', '.join(KINDS)}")
    module, name = KINDS[kind].split(":")
    return getattr(importlib.import_module(module), name)
