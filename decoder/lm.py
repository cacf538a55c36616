"""A causal language model with its cache, mask and taps. The only file that touches the cache API."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from decoder.contracts import ModelIdentity, Reading, UserError


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A transformers causal language model, ready to be read; immutable, shared by every call."""

    model: PreTrainedModel
    identity: ModelIdentity

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        return next(self.model.parameters()).device

    @property
    def output_embeddings(self) -> Tensor:
        """The e(v) of every token, (V, d) in the model's dtype: the rows of the unembedding."""
        return self.model.get_output_embeddings().weight

    def context_length(self) -> int | None:
        """Return the most tokens the model can read, or None where its configuration sets no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def start(self, layers: tuple[int, ...] = ()) -> LMSession:
        """Open a decode that hands out the states of `layers`. Raises UserError for a layer it lacks."""
        wrong = [layer for layer in layers if not 0 <= layer <= self.identity.num_layers]
        if wrong:
            raise UserError(
                f"layer {wrong[0]} does not exist: {self.identity.name} has layers 0 to "
                f"{self.identity.num_layers} (0 is the embedding output); choose one of those"
            )
        return LMSession(self.model, layers)


class LMSession:
    """One decode's cache, mask and positions: born in `CausalLM.start`, dead with the decode."""

    def __init__(self, model: PreTrainedModel, layers: tuple[int, ...]) -> None:
        self._model = model
        self._layers = layers
        self._cache = DynamicCache(config=model.config)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._mask: Tensor | None = None  # (B, T) int64; None while no row is padded
        self._lengths = torch.empty(0)  # (B,) int64, real tokens read so far

    def prefill(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Reading:
        """Read left-padded prompts: ids (B, T) int64, mask (B, T) bool. Lengths come from the mask."""
        self._mask = None if bool(prompt_mask.all()) else prompt_mask.long()
        self._lengths = prompt_mask.sum(-1)
        positions = (prompt_mask.cumsum(-1) - 1).clamp(min=0)
        return self._forward(prompt_ids, positions, prompt_mask)

    def feed(self, token_ids: Tensor) -> Reading:
        """Read one more token a row, (B,) int64."""
        positions = self._extend(token_ids)
        return self._forward(token_ids[:, None], positions, torch.ones_like(positions, dtype=torch.bool))

    def finish(self, token_ids: Tensor) -> dict[int, Tensor]:
        """Read the last token of every row, (B,) int64, for its taps alone, layer -> (B, 1, d)."""
        positions = self._extend(token_ids)
        return self._taps(self._run(self._model.base_model, token_ids[:, None], positions))

    def read(
        self, token_ids: Tensor, mask: Tensor, *, logits: bool
    ) -> tuple[dict[int, Tensor], Tensor | None]:
        """Read T more tokens a row at once, (B, T) int64, right-padded by mask (B, T) bool; the last call.

        Returns the taps, layer -> (B, T, d), and the logits (B, T, V) float32 after each token where asked.
        """
        if self._mask is None:
            self._mask = torch.ones(len(token_ids), self._cache.get_seq_length(), device=mask.device).long()
        self._mask = torch.cat([self._mask, mask.long()], dim=1)
        positions = self._lengths[:, None] + torch.arange(token_ids.shape[1], device=mask.device)
        output = self._run(self._model, token_ids, positions, logits_to_keep=0 if logits else 1)
        return self._taps(output), output.logits.float() if logits else None

    def select(self, rows: Tensor) -> None:
        """Keep the rows (B',) int64, in that order; a row may repeat."""
        self._cache.batch_select_indices(rows)
        self._lengths = self._lengths[rows]
        if self._mask is not None:
            self._mask = self._mask[rows]

    def _extend(self, token_ids: Tensor) -> Tensor:
        """Make room for one more token a row, (B,) int64; return where it stands, (B, 1)."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, torch.ones_like(token_ids)[:, None]], dim=1)
        positions = self._lengths[:, None]
        self._lengths = self._lengths + 1
        return positions

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Reading:
        output = self._run(self._model, ids, positions, logits_to_keep=1)
        return Reading(output.logits[:, -1].float(), self._taps(output), mask)

    def _run(
        self, model: nn.Module, ids: Tensor, positions: Tensor, **options: int
    ) -> Any:  # the model's output record, all of it there
        return model(
            input_ids=ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            output_hidden_states=bool(self._layers),
            **options,
            **({"position_ids": positions} if self._takes_positions else {}),
        )

    def _taps(self, output: Any) -> dict[int, Tensor]:
        return {layer: output.hidden_states[layer] for layer in self._layers}


def identify(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> ModelIdentity:
    """Return what a saved head must agree on; without a tokenizer its hash is "", which means unknown."""
    config = model.config.get_text_config()
    return ModelIdentity(
        name=name,
        architecture=type(model).__name__,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        vocab_size=model.get_output_embeddings().weight.shape[0],
        tokenizer_hash="" if tokenizer is None else hash_tokenizer(tokenizer),
        weights=hash_weights(model),
    )


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of the vocabulary: two tokenizers share it when every id means the same piece."""
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(repr(pieces).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@torch.no_grad()
def hash_weights(model: nn.Module) -> str:
    """Return a digest of a sample of every parameter, the same for a float32 model and its bfloat16 copy."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        sample = parameter.detach().flatten()[:64].to("cpu", torch.bfloat16)
        digest.update(name.encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
