"""The tap ARM: a low-rank autoregressive reward read off the generator's own hidden states.

    s(v | x) = <w, h> + <A h, B e(v)> + <c, e(v)> + b

is the log-odds that the text x + v has the attribute. e(v) is the generator's output embedding of v
and h its states at the last token of x: each tap divided by its root mean square, and, where the head
keeps a summary, their running mean beside them. One product with R + 1 columns a step scores any
number of candidates, so neither a second model nor a second forward pass is needed.

Source: the head of "On the Low-Rank Parametrization of Reward Models for Controlled Language
Generation" (arXiv 2407.04615, eqs. 6-8) with an explicit rank and the generator's frozen states in
place of a fine-tuned backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from decoder.contracts import ModelIdentity, Reading, UserError
from decoder.lm import CausalLM
from rewards import artefact
from rewards.compose import Composable

Output = Literal["log_probability", "probability"]
Summary = Literal["none", "text", "generated", "mean"]


@dataclass(frozen=True, slots=True)
class ArmConfig:
    """The shape of a tap ARM.

    layers: the taps read. hidden_size: d of the generator. rank: R of A and B.
    summary: "text" adds the running mean of the states over prompt and generated tokens, "generated"
        over the generated ones alone (what an engine that skips cached prompts can give), "none" no mean,
        "mean" the mean over the text alone, without the last state: steadier on texts that break off.
    output: "log_probability" makes r = log P(attribute), so that beta = 1 is Bayes' rule;
        "probability" makes r = P(attribute), in [0, 1] as the papers have it.
    """

    layers: tuple[int, ...]
    hidden_size: int
    rank: int = 64
    summary: Summary = "text"
    output: Output = "log_probability"


class ArmHead(nn.Module):
    """The weights: states and embeddings are each projected to R + 1 numbers and multiplied.

    Column 0 of `state` gives <w, h> + b, column 0 of `vocabulary` gives <c, e(v)>; the other R columns
    are A h and B e(v).
    """

    def __init__(self, config: ArmConfig) -> None:
        """Make the projections, near zero, so that an untrained head says log-odds 0."""
        super().__init__()
        self.config = config
        width = config.hidden_size * len(config.layers)
        self.state = nn.Linear(width, config.rank + 1)
        self.summary = nn.Linear(width, config.rank + 1, bias=False) if config.summary != "none" else None
        self.vocabulary = nn.Linear(config.hidden_size, config.rank + 1)
        for linear in (self.state, self.summary, self.vocabulary):
            if linear is not None:
                nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.state.bias)
        nn.init.zeros_(self.vocabulary.bias)

    @staticmethod
    def score(state: Tensor, vocabulary: Tensor) -> Tensor:
        """Return log-odds (..., K) from projected states (..., R+1) and embeddings (..., K, R+1)."""
        marginal = (vocabulary[..., 1:] @ state[..., 1:, None])[..., 0]
        return state[..., :1] + vocabulary[..., 0] + marginal


def features(taps: Mapping[int, Tensor], layers: tuple[int, ...]) -> Tensor:
    """Return h without its summary, (..., n_taps * d) float32: each tap over its root mean square.

    The division keeps the first position, whose states are hundreds of times longer, from drowning the
    running mean.
    """
    states = [taps[layer].float() for layer in layers]
    return torch.cat([h * (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt() for h in states], -1)


@dataclass(frozen=True, slots=True)
class TapArm(Composable):
    """A trained head bound to one generator: a `TokenReward`.

    table: (V, R+1) float32, the vocabulary side of the head, folded once. digest: of the weights.
    sign: -1 for the opposite attribute.
    """

    head: ArmHead
    table: Tensor
    digest: str
    sign: int = 1

    @property
    def layers(self) -> tuple[int, ...]:
        """The taps its sessions read."""
        return self.head.config.layers

    @property
    def output(self) -> Output:
        """Whether r is a log-probability or a probability."""
        return self.head.config.output

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> TapSession:
        """Open a session; it keeps no cache, at most one running sum a row."""
        return TapSession(self)

    def opposite(self) -> TapArm:
        """Return the reward of the opposite attribute: log P(not attribute), or P(not attribute)."""
        return replace(self, sign=-self.sign)

    def to_reward(self, log_odds: Tensor) -> Tensor:
        """Return r in the declared output from log-odds of the same shape."""
        signed = self.sign * log_odds
        return logsigmoid(signed) if self.head.config.output == "log_probability" else signed.sigmoid()

    @classmethod
    def bind(cls, head: ArmHead, lm: CausalLM, digest: str = "") -> TapArm:
        """Return the head on this generator, its vocabulary side folded with the output embeddings."""
        head = head.to(lm.device).eval().requires_grad_(False)
        with torch.no_grad():
            table = head.vocabulary(lm.output_embeddings.float())
        return cls(head, table, digest)

    @classmethod
    def from_pretrained(cls, directory: str | Path, lm: CausalLM, output: Output | None = None) -> TapArm:
        """Load a saved head for this generator. Raises UserError if it is broken or does not fit.

        output: takes the place of the one it declares.
        """
        directory = Path(directory)
        config = artefact.read_config(directory)
        artefact.check_identity(directory, config.get("base_model"), lm.identity)
        arm = _arm_config(directory, config, lm.identity)
        head = ArmHead(replace(arm, output=output or arm.output))
        digest = artefact.load_weights(head, directory)
        return cls.bind(head, lm, f"{digest}@{output}" if output else digest)


def save_pretrained(
    head: ArmHead, directory: Path, base_model: ModelIdentity, about: Mapping[str, Any]
) -> None:
    """Write a trained head; `about` holds the training data's fingerprint, metrics and the like."""
    config = {**asdict(head.config), "base_model": asdict(base_model), **about}
    artefact.save(directory, "tap_arm", config, head.state_dict())


def _arm_config(directory: Path, config: Mapping[str, Any], generator: ModelIdentity) -> ArmConfig:
    try:
        layers = tuple(int(layer) for layer in config["layers"])
        arm = ArmConfig(
            layers, config["hidden_size"], int(config["rank"]), config["summary"], config["output"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{directory}/config.json lacks or garbles {error}: train the reward again") from None
    if arm.summary not in get_args(Summary) or arm.output not in (
        "log_probability",
        "probability",
    ):
        raise UserError(f"{directory}/config.json: unknown summary {arm.summary!r} or output {arm.output!r}")
    if arm.hidden_size != generator.hidden_size:
        raise UserError(
            f"{directory} reads {arm.hidden_size} numbers a tap, the model has {generator.hidden_size}"
        )
    return arm


class TapSession:
    """One decode of a tap ARM: nothing but the running sum of projected states, (B, R+1), and a count.

    The mean of projections is the projection of the mean, so the summary costs R + 1 numbers a row.
    """

    def __init__(self, arm: TapArm) -> None:
        self._arm = arm
        self._sum: Tensor | None = None
        self._count: Tensor | None = None

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        """Return r (B, K) float32 of the candidates (B, K)."""
        head, layers = self._arm.head, self._arm.head.config.layers
        if head.summary is None:
            state = head.state(features({layer: reading.taps[layer][:, -1] for layer in layers}, layers))
        else:
            h = features(reading.taps, layers)  # (B, T, n_taps * d)
            state = head.state(h[:, -1]) + self._summarise(head.summary(h), reading.mask)
        return self._arm.to_reward(head.score(state, self._arm.table[candidate_ids]))

    def advance(self, token_ids: Tensor) -> None:
        """Do nothing: the next reading tells all."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows' sums."""
        if self._sum is not None and self._count is not None:
            self._sum, self._count = self._sum[rows], self._count[rows]

    def _summarise(self, projected: Tensor, mask: Tensor) -> Tensor:
        """Fold projected states (B, T, R+1) into the running sum; return the mean so far, (B, R+1)."""
        if self._sum is None and self._arm.head.config.summary == "generated":
            # The last prompt position speaks about the first generated token; those before it do not.
            mask = torch.zeros_like(mask)
            mask[:, -1] = True
        total = projected.masked_fill(~mask[..., None], 0.0).sum(1)
        count = mask.sum(1, keepdim=True)
        self._sum = total if self._sum is None else self._sum + total
        self._count = count if self._count is None else self._count + count
        return self._sum / self._count
