"""The records and protocols every part shares. Imports the standard library only (torch for types).

Legend: B live rows, P prompts, N samples a prompt, T positions, K candidates, V vocabulary,
M rewards, d hidden size. Masks are True on real tokens. Higher rewards are better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # commands import this file before they know whether they will need torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """What one forward pass of the generator says.

    logits: (B, V) float32, the next token's, after the last position.
    taps: layer -> (B, T, d) hidden states in the model's dtype, of the layers asked for only.
        Layers are numbered as in transformers' `hidden_states`: 0 is the embedding output,
        i the output of block i, and the last one has passed the final norm.
    mask: (B, T) bool, False on left padding. T is the prompt's length after prefill, 1 in a step.

    Alignment: the state at position t has read tokens 0..t, so it speaks about token t + 1.
    """

    logits: Tensor
    taps: Mapping[int, Tensor]
    mask: Tensor

    def select(self, rows: Tensor) -> Reading:
        """Return the reading of the rows (B',) int64; a row may repeat."""
        taps = {layer: states[rows] for layer, states in self.taps.items()}
        return Reading(self.logits[rows], taps, self.mask[rows])


@dataclass(frozen=True, slots=True)
class Step:
    """One decode step of the rows still alive.

    index: 0 for the first generated token.
    rows: (B,) int64, the row numbers given at the start of the decode.
    token_ids: (B,) int64, the tokens drawn.
    finished: B flags on the host, True where this token ended the row.
    dropped: B flags, True where the row was given up after this token; None unless rows are dropped.
    candidate_ids: (B, K) int64, best first by the base model; None where every token was open.
    chosen: (B,) int64, the column of the candidates (or the token id) that was drawn.
    rewards: (B, K, M) float32, each reward's r(v) before beta; M = 0 without rewards.
    scores: (B, K) float32, z' of the one formula, before temperature.
    base_logits: (B, K) float32, z of the candidates.
    log_normalizer: (B, 1) float32, logsumexp of the whole z, so that base_logits - log_normalizer is
        log P(v); None unless traced, since it reads the whole vocabulary.
    probe_scores: (B, S) float32, each probe's score of the text up to and with this token; S = 0 without.
    """

    index: int
    rows: Tensor
    token_ids: Tensor
    finished: tuple[bool, ...]
    dropped: tuple[bool, ...] | None
    candidate_ids: Tensor | None
    chosen: Tensor
    rewards: Tensor
    scores: Tensor
    base_logits: Tensor
    log_normalizer: Tensor | None
    probe_scores: Tensor


@dataclass(frozen=True, slots=True)
class Drawn:
    """T tokens that were drawn in every row, with what the model said around each of them.

    T is 1 in a decode and a whole completion in a replay. The alignment, everywhere the same: `taps` at
    position t have read token t itself, `logits` at t are those that token t was drawn from.

    ids: (B, T) int64. mask: (B, T) bool, False on padding, which may stand anywhere.
    taps: layer -> (B, T, d) in the model's dtype, of the layers asked for only.
    logits: (B, T, V) float32, or None where no probe reads them.
    """

    ids: Tensor
    mask: Tensor
    taps: Mapping[int, Tensor]
    logits: Tensor | None


@runtime_checkable
class ProbeSession(Protocol):
    """The running score of every row of one decode: mutable, dead when the decode ends."""

    def update(self, drawn: Drawn) -> None:
        """Fold the tokens just drawn, T a row, in order. Folding them one by one comes to the same."""
        ...

    def score(self) -> Tensor:
        """Return (B,) float32: the score of each row's text so far; higher is better."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep the rows (B',) int64, in that order; a row may repeat: that is the N-way fork."""
        ...


@runtime_checkable
class Probe(Protocol):
    """Scores whole samples while they are drawn, or in a replay; weights only, shared by every call.

    A probe that reads taps also reads the last token of a text, which costs one more forward pass of the
    rows that end; one that reads logits costs none.
    """

    @property
    def digest(self) -> str:
        """What tells these weights from others in the fingerprint of a run."""
        ...

    @property
    def layers(self) -> tuple[int, ...]:
        """The taps its sessions read, numbered as in `Reading.taps`; () for none."""
        ...

    @property
    def reads_logits(self) -> bool:
        """Whether its sessions read `Drawn.logits`."""
        ...

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, reading: Reading) -> ProbeSession:
        """Open a session for left-padded prompts (B, T) that the generator has just read."""
        ...


@runtime_checkable
class RewardSession(Protocol):
    """The caches of one decode: mutable, born in `TokenReward.start`, dead when the decode ends.

    The loop calls `score` once for every reading, in order, and `select` before `advance`.
    """

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        """Return r(v) (B, K) float32 of each candidate (B, K) int64 as the next token."""
        ...

    def advance(self, token_ids: Tensor) -> None:
        """Take note of the tokens chosen, (B,) int64."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep the rows (B',) int64, in that order; a row may repeat: that is the N-way fork."""
        ...


@runtime_checkable
class TokenReward(Protocol):
    """Weights: immutable, loaded once, shared by every call."""

    @property
    def digest(self) -> str:
        """What tells these weights from others in the fingerprint of a run."""
        ...

    @property
    def layers(self) -> tuple[int, ...]:
        """The taps its sessions read, numbered as in `Reading.taps`."""
        ...

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> RewardSession:
        """Open a session for left-padded prompts: ids (B, T) int64, mask (B, T) bool."""
        ...

    def opposite(self) -> TokenReward:
        """The reward of the opposite attribute; what a negative beta asks for."""
        ...


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What a saved head must agree on with the generator it reads.

    Hidden size, layers, vocabulary size and tokenizer hash are hard; name and weights are soft.
    """

    name: str
    architecture: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    tokenizer_hash: str
    weights: str


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished sample.

    prompt: index of the prompt in the call. sample: 0..N-1. text: the continuation alone.
    finish_reason: "stop" at an end token (which token_ids keeps and text does not), "length", or
        "dropped" where the sample was given up.
    token_rewards: name -> r of every token as it was drawn, before beta.
    scores: name -> each probe's score of the sample.
    reward: sum_i |beta_i| * r_i of the last token, which speaks about the whole text; None unsteered.
    trace: one record a token when asked for: candidates, base log-probability, rewards, ranks.
    """

    prompt: int
    sample: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    token_rewards: Mapping[str, tuple[float, ...]]
    reward: float | None
    trace: tuple[Mapping[str, object], ...] | None
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def rewards(self) -> dict[str, float]:
        """Return name -> r of the last token."""
        return {name: values[-1] for name, values in self.token_rewards.items()}


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One streamed token of one row.

    text: the piece to show now, "" while a character is incomplete. rewards: name -> r.
    shift: log P(token) with the rewards minus without, over the same candidates; in a row whose
        betas are 0, what they would have done at the strength of the steered rows.
    finish_reason: "stop" or "length" on the row's last token, else None.
    """

    row: int
    index: int
    token_id: int
    text: str
    rewards: Mapping[str, float]
    shift: float
    finish_reason: str | None


class UserError(Exception):
    """Something the user can mend. Says what was wrong, the value seen, and what to do."""
