"""The ARM with a backbone of its own: the reward of every candidate from one forward pass a step.

    s(v | x) = <w, h(x)> + <W h(x), e(v)>

h(x) is the backbone's state after BOS + x and e(v) its own output embedding of v, gathered for the
candidates alone. W is d x d, or of rank R.

Source: "On the Low-Rank Parametrization of Reward Models for Controlled Language Generation"
(arXiv 2407.04615, eqs. 6-8).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from decoder.contracts import Reading
from decoder.lm import CausalLM
from rewards.arm import Output
from rewards.backbone import ARM, BackboneConfig, load, pick_output
from rewards.backbone_heads import ActionValueHead
from rewards.backbone_session import Backbone
from rewards.compose import Composable


@dataclass(frozen=True, slots=True)
class BackboneArm(Composable):
    """A trained head on its backbone: a `TokenReward`.

    head: the output that steers, alone. digest: of head and backbone. sign: -1 for the opposite attribute.
    """

    head: ActionValueHead
    backbone: Backbone
    config: BackboneConfig
    digest: str
    sign: int = 1

    @property
    def layers(self) -> tuple[int, ...]:
        """Return (): nothing of the generator is read."""
        return ()

    @property
    def output(self) -> Output:
        """Whether r is a log-probability or a probability."""
        return self.config.output

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> BackboneArmSession:
        """Open a session: the backbone reads the prompts (B, T). Raises UserError if they are too long."""
        return BackboneArmSession(self, prompt_ids, prompt_mask)

    def opposite(self) -> BackboneArm:
        """Return the reward of the opposite attribute."""
        return replace(self, sign=-self.sign)

    def value(self, states: Tensor, candidate_ids: Tensor) -> Tensor:
        """Return s (B, K) float32 of candidates (B, K) after states (B, d) float32."""
        embeddings = self.backbone.lm.output_embeddings[candidate_ids].float()  # (B, K, d)
        value: Tensor = self.head(states, embeddings)[..., 0]
        return value

    def to_reward(self, values: Tensor) -> Tensor:
        """Return r in the declared output from values of the same shape."""
        return self.config.to_reward(values, self.sign)

    @classmethod
    def bind(
        cls, head: ActionValueHead, backbone: Backbone, config: BackboneConfig, digest: str = ""
    ) -> BackboneArm:
        """Return a copy of the head (F outputs) on its backbone, with the output that the config uses."""
        one = ActionValueHead(head.state.shape[-1], 1, head.rank)
        used = config.outputs.index(config.use)
        return cls(pick_output(head, one, used, backbone.lm.device), backbone, config, digest)

    @classmethod
    def from_pretrained(cls, directory: str | Path, lm: CausalLM, form: str | None = None) -> BackboneArm:
        """Load a saved one for this generator. Raises UserError if it is broken or does not fit.

        form: "log_probability" or "probability" in the place of the output it declares.
        """
        head, backbone, config, digest = load(Path(directory), lm, form, kind=ARM)
        assert isinstance(head, ActionValueHead)
        return cls.bind(head, backbone, config, digest)


class BackboneArmSession:
    """One decode: the backbone's cache, and its states at the rows' ends, (B, d) float32."""

    def __init__(self, arm: BackboneArm, prompt_ids: Tensor, prompt_mask: Tensor) -> None:
        self._arm = arm
        self._texts = arm.backbone.start()
        self._states = self._texts.prefill(prompt_ids, prompt_mask)

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        """Return r (B, K) float32 of the candidates (B, K); no forward pass, any number of them."""
        return self._arm.to_reward(self._arm.value(self._states, candidate_ids))

    def advance(self, token_ids: Tensor) -> None:
        """Read the tokens chosen, (B,) int64: the step's one forward pass."""
        self._states = self._texts.feed(token_ids)

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self._texts.select(rows)
        self._states = self._states[rows]
