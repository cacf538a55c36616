"""The embedding head: a small MLP on one pooled vector of the generator's states, a `Probe`.

    R = MLP((pool over generated tokens t of [h_t^l for the taps l] - mean) / scale)

where h_t^l is the state of layer l that has read token t, the last token included. Pooling is "mean", or
"last": the last token's states alone. A session keeps one vector of L * d numbers a row.

Source: "Reusing Embeddings" (arXiv 2502.04357), which scores the last layer's last state with a three-layer
MLP of width 256; the mean, more taps and standardised inputs are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from decoder.contracts import Drawn, ModelIdentity, Reading, UserError
from rewards import artefact

if TYPE_CHECKING:  # it loads transformers, which a worker of a sweep never needs
    from decoder.lm import CausalLM

Pooling = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """The shape of a head.

    layers: the taps read, 0 the embeddings. hidden_size: d of the generator. widths: of the hidden layers
    of the MLP; () makes it linear.
    """

    layers: tuple[int, ...]
    hidden_size: int
    pooling: Pooling = "mean"
    widths: tuple[int, ...] = (256, 256)


class EmbeddingMLP(nn.Module):
    """The weights: D inputs, standardised by `mean` and `scale` (D,), hidden ReLU layers, one output."""

    mean: Tensor
    scale: Tensor

    def __init__(self, n_inputs: int, widths: tuple[int, ...]) -> None:
        """Make an MLP that takes its inputs as they are; `fit` sets `mean` and `scale`."""
        super().__init__()
        self.widths = widths
        self.linears = nn.ModuleList(
            nn.Linear(wide, out) for wide, out in zip((n_inputs, *widths), (*widths, 1), strict=True)
        )
        self.register_buffer("mean", torch.zeros(n_inputs))
        self.register_buffer("scale", torch.ones(n_inputs))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return scores (M,) float32 of embeddings (M, D)."""
        hidden = (embeddings - self.mean) / self.scale
        for linear in self.linears[:-1]:
            hidden = linear(hidden).relu()
        scores: Tensor = self.linears[-1](hidden)
        return scores[..., 0]


@dataclass(frozen=True, slots=True)
class EmbeddingHead:
    """A trained MLP bound to one generator: a `Probe`."""

    config: EmbeddingConfig
    mlp: EmbeddingMLP
    digest: str

    @property
    def layers(self) -> tuple[int, ...]:
        """The taps its sessions read."""
        return self.config.layers

    @property
    def reads_logits(self) -> bool:
        """False."""
        return False

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, reading: Reading) -> PooledStates:
        """Open a session: one vector a row."""
        return PooledStates(self.layers, self.config.pooling, self.mlp, like=prompt_ids)

    @classmethod
    def bind(cls, mlp: EmbeddingMLP, config: EmbeddingConfig, lm: CausalLM) -> EmbeddingHead:
        """Return a copy of the MLP as a probe of this generator."""
        frozen = copy.deepcopy(mlp).to(lm.device).eval().requires_grad_(False)
        about = f"{config.pooling} {config.layers}"  # two heads may have the same weights
        return cls(config, frozen, f"{about} {artefact.digest(frozen.state_dict())}")

    @classmethod
    def from_pretrained(cls, directory: str | Path, lm: CausalLM, form: str | None = None) -> EmbeddingHead:
        """Load a saved head for this generator. Raises UserError if it is broken or does not fit."""
        directory = Path(directory)
        if form is not None:
            raise UserError(f"{directory} is a probe and has no form {form!r}: leave out @{form}")
        saved = artefact.read_config(directory)
        artefact.check_identity(directory, saved.get("base_model"), lm.identity)
        config = _shape(directory, saved)
        mlp = EmbeddingMLP(len(config.layers) * config.hidden_size, config.widths)
        artefact.load_weights(mlp, directory)
        return cls.bind(mlp, config, lm)


class PooledStates:
    """A `ProbeSession` that pools the states of each row's tokens, (B, L * d) float32, and scores that."""

    def __init__(
        self,
        layers: tuple[int, ...],
        pooling: Pooling,
        score: Callable[[Tensor], Tensor],
        *,
        like: Tensor,
        ignored: Tensor | None = None,
        without: Tensor | None = None,
    ) -> None:
        """Start with no token in as many rows as `like` (B, ...) has, on its device.

        score: (B, L * d) float32 -> (B,) float32. ignored: (I,) int64, tokens that are not pooled, such as
        the end token. without: (B, L * d), what a row without a token is scored by; None gives NaN.
        """
        self._layers, self._pooling, self._score = layers, pooling, score
        self._pooled: Tensor | None = None  # (B, L * d); a sum for "mean"
        self._count = torch.zeros(len(like), dtype=torch.long, device=like.device)
        self._ignored, self._without = ignored, without

    def update(self, drawn: Drawn) -> None:
        """Take in the tokens just drawn; padding, wherever it stands, changes nothing."""
        self.read(drawn, ignored=self._ignored)

    def read(self, drawn: Drawn, ignored: Tensor | None = None) -> None:
        """Take in tokens, such as those of a prompt, without the ignored ids (I,) among them."""
        mask = drawn.mask if ignored is None else drawn.mask & ~torch.isin(drawn.ids, ignored)
        read = _masked_sum if self._pooling == "mean" else _last_real
        found = torch.cat([read(drawn.taps[layer], mask) for layer in self._layers], -1)
        if self._pooled is None:
            self._pooled = found
        elif self._pooling == "mean":
            self._pooled = self._pooled + found
        else:
            self._pooled = torch.where(mask.any(1)[:, None], found, self._pooled)
        self._count = self._count + mask.sum(1)

    def score(self) -> Tensor:
        """Return (B,) float32; NaN before a row's first token, unless such rows have a vector too."""
        pooled, missing = self._pooled, (self._count == 0)[:, None]
        if pooled is None:
            return torch.full_like(self._count, float("nan"), dtype=torch.float32)
        if self._pooling == "mean":
            pooled = pooled / self._count.clamp(min=1)[:, None]
        if self._without is not None:
            return self._score(torch.where(missing, self._without, pooled))
        return self._score(pooled.masked_fill(missing, 0.0)).masked_fill(missing[:, 0], float("nan"))

    def select(self, rows: Tensor) -> None:
        """Keep these rows' vectors."""
        self._count = self._count[rows]
        self._pooled = None if self._pooled is None else self._pooled[rows]
        self._without = None if self._without is None else self._without[rows]


def last_states(taps: Mapping[int, Tensor], layers: tuple[int, ...], mask: Tensor) -> Tensor:
    """Return (B, L * d) float32, the states at each row's last real position, layers side by side."""
    return torch.cat([_last_real(taps[layer], mask) for layer in layers], -1)


def save_pretrained(
    mlp: EmbeddingMLP,
    config: EmbeddingConfig,
    directory: Path,
    base_model: ModelIdentity,
    about: Mapping[str, Any],
) -> None:
    """Write a trained head; `about` holds the training data's fingerprint, metrics and the like."""
    saved = {**asdict(config), "base_model": asdict(base_model), **about}
    artefact.save(directory, "embedding_head", saved, mlp.state_dict())


def _masked_sum(states: Tensor, mask: Tensor) -> Tensor:
    """Return (B, d) float32, the sum of states (B, T, d) over real positions."""
    return states.float().masked_fill(~mask[..., None], 0.0).sum(1)


def _last_real(states: Tensor, mask: Tensor) -> Tensor:
    """Return (B, d) float32, the state at each row's last real position; position 0 if it has none."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).amax(1)
    return states[torch.arange(len(mask), device=mask.device), last].float()


def _shape(directory: Path, saved: Mapping[str, Any]) -> EmbeddingConfig:
    try:
        layers, widths = (tuple(int(each) for each in saved[key]) for key in ("layers", "widths"))
        found = EmbeddingConfig(layers, int(saved["hidden_size"]), saved["pooling"], widths)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{directory}/config.json lacks or garbles {error}: train the head again") from None
    if found.pooling not in get_args(Pooling):
        raise UserError(f"{directory}/config.json: unknown pooling {found.pooling!r}: train the head again")
    if not layers or min(found.hidden_size, *layers, *widths, 1) < 0 or 0 in widths:
        raise UserError(
            f"{directory}/config.json: layers {list(layers)}, widths {list(widths)} and hidden size "
            f"{found.hidden_size} make no head: train it again"
        )
    return found
