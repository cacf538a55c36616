"""RAD: the value of every text x + v, by a backbone that reads each candidate v.

    s(v | x) = <w, h(x + v)> + b

So k candidates cost k tokens a step. In the block form they pass the backbone in one forward, as one masked
block at the same position; in the forked form, its reference, each in a copy of the cache. Both keep the
branch that was sampled, so that no token is read twice.

Source: "Reward-Augmented Decoding" (arXiv 2310.09520).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from decoder.contracts import Reading, UserError
from decoder.lm import CausalLM, why_no_block
from rewards.arm import Output
from rewards.backbone import RAD, BackboneConfig, load, pick_output
from rewards.backbone_heads import ValueHead
from rewards.backbone_session import Backbone, BackboneSession
from rewards.compose import Composable

Mode = Literal["block", "forked"]


@dataclass(frozen=True, slots=True)
class Rad(Composable):
    """A trained value head on its backbone: a `TokenReward`.

    head: the output that steers, alone. digest: of head and backbone. sign: -1 for the opposite attribute.
    mode: how candidates are read. "block" and "forked" give the same rewards (3e-5 in float32); "forked"
        holds K caches a row and is for models that cannot read a block.
    """

    head: ValueHead
    backbone: Backbone
    config: BackboneConfig
    digest: str
    mode: Mode
    sign: int = 1

    @property
    def layers(self) -> tuple[int, ...]:
        """Return (): nothing of the generator is read."""
        return ()

    @property
    def output(self) -> Output:
        """Whether r is a log-probability or a probability."""
        return self.config.output

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> RadSession:
        """Open a session: the backbone reads the prompts (B, T). Raises UserError if they are too long."""
        return RadSession(self, prompt_ids, prompt_mask)

    def opposite(self) -> Rad:
        """Return the reward of the opposite attribute."""
        return replace(self, sign=-self.sign)

    def value(self, states: Tensor) -> Tensor:
        """Return s (...) float32 of texts by the states at their ends, (..., d) float32."""
        value: Tensor = self.head(states)[..., 0]
        return value

    def to_reward(self, values: Tensor) -> Tensor:
        """Return r in the declared output from values of the same shape."""
        return self.config.to_reward(values, self.sign)

    @classmethod
    def bind(
        cls,
        head: ValueHead,
        backbone: Backbone,
        config: BackboneConfig,
        digest: str = "",
        mode: Mode | None = None,
    ) -> Rad:
        """Return a copy of the head (F outputs) on its backbone, with the output that the config uses.

        mode: by default "block", and "forked" for a backbone that `decoder.lm.why_no_block` has a reason
        against: sliding windows, positions that it finds by itself, attention without a mask of ours.
        Raises UserError for "block" on one of those.
        """
        reason = why_no_block(backbone.lm.model)
        if reason and mode == "block":
            raise UserError(f"mode is 'block', but {reason}: leave it out, or give 'forked'")
        one = ValueHead(head.linear.in_features)
        used = config.outputs.index(config.use)
        head = pick_output(head, one, used, backbone.lm.device)
        return cls(head, backbone, config, digest, mode or ("forked" if reason else "block"))

    @classmethod
    def from_pretrained(cls, directory: str | Path, lm: CausalLM, form: str | None = None) -> Rad:
        """Load a saved one for this generator, in its default mode (see `bind`). Raises UserError if it is
        broken or does not fit.

        form: "log_probability" or "probability" in the place of the output it declares.
        """
        head, backbone, config, digest = load(Path(directory), lm, form, kind=RAD)
        assert isinstance(head, ValueHead)
        return cls.bind(head, backbone, config, digest)


class Branches(Protocol):
    """The rows' texts, and after `read` a branch for each of K candidates."""

    def read(self, candidate_ids: Tensor) -> Tensor:
        """Return the states (B, K, d) float32 that have read the candidates (B, K)."""
        ...

    def keep(self, columns: Tensor) -> None:
        """Go on with the branch in column (B,) of each row."""
        ...

    def feed(self, token_ids: Tensor) -> None:
        """Drop the branches and read the tokens (B,)."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep these rows, with their branches."""
        ...


class RadSession:
    """One decode: the backbone's cache with the branches of the candidates scored last, (B, K) int64."""

    def __init__(self, rad: Rad, prompt_ids: Tensor, prompt_mask: Tensor) -> None:
        self._rad = rad
        texts = rad.backbone.start()
        texts.prefill(prompt_ids, prompt_mask)
        self._branches: Branches = Block(texts) if rad.mode == "block" else Forks(texts)
        self._candidate_ids: Tensor | None = None

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        """Return r (B, K) float32 of the candidates (B, K), from B * K tokens read."""
        self._candidate_ids = candidate_ids
        return self._rad.to_reward(self._rad.value(self._branches.read(candidate_ids)))

    def advance(self, token_ids: Tensor) -> None:
        """Keep the branches of the tokens chosen, (B,) int64; where one was not scored, read them all."""
        if self._candidate_ids is None:
            return self._branches.feed(token_ids)
        hits, self._candidate_ids = self._candidate_ids == token_ids[:, None], None
        if bool(hits.any(-1).all()):
            self._branches.keep(hits.long().argmax(-1))
        else:
            self._branches.feed(token_ids)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, with the branches of their candidates."""
        self._branches.select(rows)
        if self._candidate_ids is not None:
            self._candidate_ids = self._candidate_ids[rows]


class Block:
    """Branches as one masked block at the end of the cache."""

    def __init__(self, texts: BackboneSession) -> None:
        self._texts = texts

    def read(self, candidate_ids: Tensor) -> Tensor:
        return self._texts.peek(candidate_ids)

    def keep(self, columns: Tensor) -> None:
        self._texts.keep(columns)

    def feed(self, token_ids: Tensor) -> None:
        self._texts.forget()
        self._texts.feed(token_ids)

    def select(self, rows: Tensor) -> None:
        self._texts.select(rows)


class Forks:
    """Branches as K copies of each row's cache, row after row."""

    def __init__(self, texts: BackboneSession) -> None:
        self._texts = texts
        self._forks = texts
        self._n_branches = 1

    def read(self, candidate_ids: Tensor) -> Tensor:
        n_rows, self._n_branches = candidate_ids.shape
        rows = torch.arange(n_rows, device=candidate_ids.device).repeat_interleave(self._n_branches)
        self._forks = self._texts.fork(rows)
        states = self._forks.feed(candidate_ids.flatten())  # (B * K, d)
        return states.reshape(*candidate_ids.shape, -1)

    def keep(self, columns: Tensor) -> None:
        self._forks.select(self._places(torch.arange(len(columns), device=columns.device), columns[:, None]))
        self._texts = self._forks

    def feed(self, token_ids: Tensor) -> None:
        self._forks = self._texts
        self._texts.feed(token_ids)

    def select(self, rows: Tensor) -> None:
        self._texts.select(rows)
        if self._forks is not self._texts:
            branches = torch.arange(self._n_branches, device=rows.device)
            self._forks.select(self._places(rows, branches))

    def _places(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return where branches, columns (K',) or (B, K'), of rows (B,) stand among the forks, flat."""
        return (rows[:, None] * self._n_branches + columns).flatten()
