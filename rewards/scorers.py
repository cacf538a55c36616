"""What a sample is chosen by: scorers by name, directory or object, and the group rules beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from decoder.contracts import Probe, TokenReward, UserError
from decoder.lm import CausalLM
from decoder.weighting import pair_betas
from rewards.likelihood import MeanLogProbability, SelfCertainty
from rewards.load import find, load_reward
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
    scorers: ScorerLike | Sequence[ScorerLike], lm: CausalLM, *, device: str = "auto", dtype: str = "auto"
) -> Scorers:
    """Return scorers ready for this generator.

    Each is a name ("logprob", "self-certainty", "majority", "oracle", "hf:MODEL", a shipped reward), a
    directory of a saved probe or token reward, or an object; a text may end in ":WEIGHT". Raises UserError
    for an unknown name, one given twice, and a saved head that does not fit.
    """
    listed = scorers if isinstance(scorers, Sequence) and not isinstance(scorers, str) else [scorers]
    if not listed:
        raise UserError(f"no scorer given: choose among {KNOWN}")
    names: list[str] = []
    weights: list[float | None] = []
    probes: dict[str, Probe] = {}
    texts: dict[str, TextReward] = {}
    for item in listed:
        scorer, weight = _weighted(item)
        name = _name(scorer)
        if name in names:
            raise UserError(f"scorer {name!r} is given twice: leave one out")
        names.append(name)
        weights.append(weight)
        if isinstance(scorer, TextReward):
            texts[name] = scorer
        elif isinstance(scorer, str) and scorer.startswith("hf:"):
            texts[name] = load(scorer, device=device, dtype=dtype)
        elif name not in GROUPS:
            probes[name] = load_probe(scorer, lm)
    chosen = None if all(w is None for w in weights) else tuple(1.0 if w is None else w for w in weights)
    return Scorers(tuple(names), chosen, probes, texts)


def load_probe(scorer: str | Path | Probe | TokenReward, lm: CausalLM) -> Probe:
    """Return what scores samples as they are drawn; a token reward is walked along them."""
    if isinstance(scorer, str) and scorer in PROBES:
        return PROBES[scorer]()
    found = load_reward(scorer, lm) if isinstance(scorer, str | Path) else scorer
    return PathReward(found) if isinstance(found, TokenReward) else found


def check_names(scorers: Sequence[str]) -> None:
    """Raise UserError for a name that is no scorer, before a large model is loaded for it."""
    for item in scorers:
        name = _weighted(item)[0]
        if isinstance(name, str) and not (name in PROBES or name in GROUPS or name.startswith("hf:")):
            try:
                find(name)
            except UserError as error:
                raise UserError(f"{error}; scorers are {KNOWN}") from None


def _weighted(item: ScorerLike) -> tuple[ScorerLike, float | None]:
    """Return the scorer and its weight from "name:weight"; "hf:MODEL" keeps its first colon."""
    if not isinstance(item, str) or ":" not in item.removeprefix("hf:") or Path(item).exists():
        return item, None
    prefix = "hf:" if item.startswith("hf:") else ""
    ((name, weight),) = pair_betas(item.removeprefix("hf:"), None)
    return f"{prefix}{name}", weight


def _name(scorer: ScorerLike) -> str:
    if isinstance(scorer, TextReward):
        return scorer.name
    if isinstance(scorer, str | Path):
        known = scorer in PROBES or scorer in GROUPS or str(scorer).startswith("hf:")
        return str(scorer) if known else Path(scorer).absolute().name
    return type(scorer).__name__
