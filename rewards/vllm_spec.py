"""What an engine must know of its rewards, as plain values that travel to every worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from decoder.contracts import ModelIdentity, UserError
from rewards import artefact
from rewards.load import find, load_reward, shipped_names, split_form
from rewards.scorers import PROBES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from decoder.lm import CausalLM
    from rewards.vllm_readout import FoldProbe

KEY = "tiller"  # in vLLM's `additional_config`
REWARDS_VARIABLE = "TILLER_VLLM_REWARDS"  # names, for the process that takes requests in


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved reward or probe. reference: its directory, or a name of one without weights.

    form: asked for instead of the declared one. digest: of its weights.
    """

    reference: str
    form: str | None
    layers: tuple[int, ...]
    digest: str

    def load(self, lm: WorkerLM) -> Any:
        """Return it bound to a worker's model."""
        if self.reference in PROBES:
            return PROBES[self.reference]()
        return load_reward(self.reference + (f"@{self.form}" if self.form else ""), cast("CausalLM", lm))


@dataclass(frozen=True, slots=True)
class WorkerLM:
    """As much of a `CausalLM` as binding takes. output_embeddings: the worker's share of the rows."""

    identity: ModelIdentity
    device: torch.device
    output_embeddings: Tensor


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """The rewards and probes of an engine by name, and the model they read."""

    identity: ModelIdentity
    rewards: Mapping[str, Saved]
    probes: Mapping[str, Saved]

    @property
    def layers(self) -> tuple[int, ...]:
        """Every tap that is read."""
        saved = [*self.rewards.values(), *self.probes.values()]
        return tuple(sorted({layer for each in saved for layer in each.layers}))

    def record(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    def load_probes(self, lm: WorkerLM) -> dict[str, FoldProbe]:
        """Return the probes bound to a worker's model."""
        return {name: each.load(lm) for name, each in self.probes.items()}


def make_spec(
    identity: ModelIdentity, rewards: Sequence[str | Path], probes: Sequence[str | Path]
) -> EngineSpec:
    """Return the spec of these rewards and probes, by name or directory.

    Raises UserError for one that is not there, made for another model, or that cannot be read inside vLLM.
    """
    found = {name_of(each): _saved(each, identity, "tap_arm") for each in rewards}
    scored = {name_of(each): _probe(each, identity) for each in probes}
    return EngineSpec(identity, found, scored)


def shipped_for(identity: ModelIdentity) -> list[str]:
    """Return the shipped rewards that fit this model."""
    fitting = []
    for name in shipped_names():
        base = artefact.read_config(find(name)).get("base_model", {})
        if all(base.get(key) == getattr(identity, key) for key in artefact.HARD):
            fitting.append(name)
    return fitting


def read_spec(vllm_config: Any) -> EngineSpec:
    """Return the spec that the engine was started with."""
    told = (vllm_config.additional_config or {}).get(KEY)
    if told is None:
        raise RuntimeError("this engine was not told its rewards: start it with Decoder or `tiller serve`")
    found = [{name: Saved(**each) for name, each in told[part].items()} for part in ("rewards", "probes")]
    return EngineSpec(ModelIdentity(**told["identity"]), *found)


def name_of(reward: str | Path) -> str:
    """Return what a reward or probe is called in requests: its name, or that of its directory."""
    return Path(reward).absolute().name


def _probe(probe: str | Path, identity: ModelIdentity) -> Saved:
    if str(probe) in PROBES:
        return Saved(str(probe), None, (), PROBES[str(probe)]().digest)
    return _saved(probe, identity, "elhsr")


def _saved(reward: str | Path, identity: ModelIdentity, kind: str) -> Saved:
    directory, form = find(reward), split_form(reward)[1]
    config = artefact.read_config(directory)
    if config["kind"] != kind:
        what = "steer" if kind == "tap_arm" else "score"
        raise UserError(
            f"{reward} is of kind {config['kind']}, which cannot {what} inside vLLM: {kind} alone reads its "
            "numbers off the states of the pass that vLLM makes anyway; run it with --backend hf"
        )
    artefact.check_identity(directory, config.get("base_model"), identity)
    if config.get("summary") == "generated":
        raise UserError(
            f"{reward} keeps a mean over generated tokens alone, which the vLLM backend does not: train it "
            "with --summary text or none, or run it with --backend hf"
        )
    if config.get("likelihood") or config.get("features") == "logits":
        raise UserError(
            f"{reward} reads logits beside states, which the vLLM backend does not: train it with --features "
            "hidden and without --likelihood, or run it with --backend hf"
        )
    digest = artefact.digest(artefact.read_tensors(directory)) + (f"@{form}" if form else "")
    return Saved(str(directory.absolute()), form, tuple(config["layers"]), digest)
