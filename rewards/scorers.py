"""What a sample is chosen by: scorers by name, directory or object, and the group rules beside them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from decoder.contracts import Probe, TokenReward, UserError
from decoder.lm import CausalLM
from rewards.embedding_scorer import EmbeddingScorer
from rewards.likelihood import MeanLogProbability, SelfCertainty
from rewards.load import load_reward, shipped_names, split_form
from rewards.path_reward import PathReward
from rewards.text_reward import TextReward, load

ScorerLike = str | Path | Probe | TokenReward | TextReward
PROBES: Mapping[str, Callable[[], Probe]] = {"logprob": MeanLogProbability, "self-certainty": SelfCertainty}
GROUPS = ("majority", "oracle")  # these look at all samples of a prompt, or at its answer
KNOWN = f"{', '.join([*PROBES, *GROUPS])}, hf:MODEL, a shipped reward or a directory"


@dataclass(frozen=True, slots=True)
class Scorers:
    """The scorers of a run, loaded; `names` holds all of them in order, `weights` one number each or None.

    probes score while a sample is drawn, texts when it is whole, groups when all samples of a prompt are.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] | None
    probes: Mapping[str, Probe]
    texts: Mapping[str, TextReward]

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the names of the scorers that need the whole group."""
        return tuple(name for name in self.names if name in GROUPS)

    def digests(self) -> dict[str, str]:
        """Return name -> what tells the scorer's weights from others."""
        found: Mapping[str, Probe | TextReward] = {**self.probes, **self.texts}
        return {name: scorer.digest for name, scorer in found.items()}


def load_scorers(
    scorers: ScorerLike | Sequence[ScorerLike],
    probe: Callable[[Any], Probe],
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> Scorers:
    """Return scorers ready for a generator; probe: loads for it what scores samples as they are drawn.

    Each is a name ("logprob", "self-certainty", "majority", "oracle", "hf:MODEL", a shipped reward), a
    directory of a saved probe, head on embeddings or token reward, or an object; a text may end in
    ":WEIGHT". Raises UserError for an unknown name, one given twice, and a saved head that does not fit.
    """
    listed = scorers if isinstance(scorers, Sequence) and not isinstance(scorers, str) else [scorers]
    found, weights = name_scorers(listed)
    probes: dict[str, Probe] = {}
    texts: dict[str, TextReward] = {}
    for name, scorer in found.items():
        if isinstance(scorer, TextReward):
            texts[name] = scorer
        elif isinstance(scorer, str) and scorer.startswith("hf:"):
            texts[name] = load(scorer, device=device, dtype=dtype)
        elif name not in GROUPS:
            probes[name] = probe(scorer)
    return Scorers(tuple(found), weights, probes, texts)


def name_scorers(
    scorers: Sequence[ScorerLike],
) -> tuple[dict[str, ScorerLike], tuple[float, ...] | None]:
    """Return name -> scorer, and one weight each, or None if no scorer has one; nothing is loaded.

    A second object of one class is numbered. Raises UserError for none at all, an unknown name and one
    given twice.
    """
    if not scorers:
        raise UserError(f"no scorer given: choose among {KNOWN}")
    found: dict[str, ScorerLike] = {}
    weights: list[float | None] = []
    for item in scorers:
        scorer, weight = _weighted(item)
        name = _name(scorer)
        taken = [other for key, other in found.items() if key.partition("#")[0] == name]
        if taken and (isinstance(scorer, str | Path) or any(scorer is other for other in taken)):
            raise UserError(f"scorer {name!r} is given twice: leave one out")
        if isinstance(scorer, str):
            _require_known(scorer)
        found[f"{name}#{len(taken) + 1}" if taken else name] = scorer
        weights.append(weight)
    chosen = None if all(w is None for w in weights) else tuple(1.0 if w is None else w for w in weights)
    return found, chosen


def check_names(scorers: Sequence[str]) -> None:
    """Raise UserError for a name that is no scorer, before a large model is loaded for it."""
    if scorers:
        name_scorers(scorers)


def has_running_score(name: str) -> bool:
    """Return whether a scorer known by name scores samples while they are drawn."""
    return name not in GROUPS and not name.startswith("hf:")


def running_scorers(scorers: Sequence[str]) -> list[str]:
    """Return those that score samples while they are drawn: names and directories, without their weights."""
    return [str(scorer) for name, scorer in name_scorers(scorers)[0].items() if has_running_score(name)]


def load_probe(scorer: str | Path | Probe | TokenReward, lm: CausalLM, ends: Tensor | None = None) -> Probe:
    """Return what scores samples as they are drawn; a token reward is walked along them.

    ends: (E,) int64, the ids that end a sample and are no part of its text, which a head on embeddings does
    not pool; None takes the model's own end tokens.
    """
    if isinstance(scorer, str) and scorer in PROBES:
        return PROBES[scorer]()
    found: Probe | TokenReward = load_reward(scorer, lm) if isinstance(scorer, str | Path) else scorer
    if isinstance(found, EmbeddingScorer) and ends is not None:
        found = replace(found, end_ids=ends)
    return PathReward(found) if isinstance(found, TokenReward) else found


def _require_known(scorer: str) -> None:
    names = [*PROBES, *GROUPS, *shipped_names()]
    bare = str(split_form(scorer)[0])
    if bare in names or bare.startswith("hf:") or (bare and Path(bare).is_dir()):
        return
    near = difflib.get_close_matches(bare, names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f"unknown scorer {scorer!r}: {hint}scorers are {KNOWN}")


def _weighted(item: ScorerLike) -> tuple[ScorerLike, float | None]:
    """Return the scorer and its weight from "name:weight"; "hf:MODEL" keeps its first colon."""
    bare = item.removeprefix("hf:") if isinstance(item, str) else ""
    if not isinstance(item, str) or ":" not in bare or Path(bare).exists():
        return item, None
    name, _, given = item.rpartition(":")
    try:
        weight = float(given)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise UserError(
            f"scorer {item!r}: {given!r} is no weight; write NAME:WEIGHT with a number of 0 or more, such as "
            f"{name or 'logprob'}:2"
        )
    return name, weight


def _name(scorer: ScorerLike) -> str:
    if isinstance(scorer, TextReward):
        return scorer.name
    if isinstance(scorer, str | Path):
        known = scorer in PROBES or scorer in GROUPS or str(scorer).startswith("hf:")
        return str(scorer) if known else Path(scorer).absolute().name
    return type(scorer).__name__
