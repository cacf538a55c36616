"""A causal language model with its cache, mask and taps. The only file that touches the cache API."""

from __future__ import annotations

import copy
import hashlib
import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

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
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.model.dtype

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


def why_no_block(model: PreTrainedModel) -> str | None:
    """Return why the model cannot read several tokens at one position (`LMSession.peek`), None if it can."""
    config, name = model.config.get_text_config(), type(model).__name__
    if not _takes_positions(model) or getattr(config, "alibi", False):
        return f"{name} finds positions by itself"
    odd = [layer for layer in DynamicCache(config=model.config).layers if type(layer) is not DynamicLayer]
    if odd:  # sliding windows, recurrent states: what such a cache lets go of, no candidate can see
        return f"{name} keeps a {type(odd[0]).__name__}, not every token's keys and values"
    if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo's windows, which no cache layer shows
        return f"{name} has local attention"
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return f"{name} runs {model.config._attn_implementation} attention, which takes no mask of ours"
    return None


def _takes_positions(model: PreTrainedModel) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


class LMSession:
    """One decode's cache, mask and positions: born in `CausalLM.start`, dead with the decode."""

    def __init__(self, model: PreTrainedModel, layers: tuple[int, ...]) -> None:
        self._model = model
        self._layers = layers
        self._cache = DynamicCache(config=model.config)
        self._takes_positions = _takes_positions(model)
        self._mask: Tensor | None = None  # (B, T) int64; None while no row is padded
        self._lengths = torch.empty(0)  # (B,) int64, real tokens read so far
        self._n_peeked = 0  # candidates at the end of the cache that are no part of the text yet

    @cached_property
    def _no_block(self) -> str | None:
        return why_no_block(self._model)

    @property
    def lengths(self) -> Tensor:
        """The real tokens of each row read so far, (B,) int64."""
        return self._lengths

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
        """Read one more token of every row, (B,) int64, for its taps alone, layer -> (B, 1, d): no logits."""
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

    def peek(self, candidate_ids: Tensor) -> dict[int, Tensor]:
        """Return the taps of each candidate (B, K) int64 as the next token, layer -> (B, K, d); no logits.

        One forward pass reads all K at the same position: each sees its row's text and itself. The text
        goes on with one of them after `keep`; `forget`, or another peek, drops them. Rows may be selected
        in between. Raises UserError naming a model that cannot do this (`why_no_block`).
        """
        if self._no_block:
            raise UserError(
                f"candidates cannot be read as one block: {self._no_block}; fork the cache instead"
            )
        self.forget()
        mask = self._block_mask(*candidate_ids.shape)
        positions = self._lengths[:, None].expand_as(candidate_ids)
        output = self._run(self._model.base_model, candidate_ids, positions, attention_mask=mask)
        self._n_peeked = candidate_ids.shape[1]
        return self._taps(output)

    def keep(self, columns: Tensor) -> None:
        """Take the candidate in column (B,) int64 of the last peek into each row's text, drop the others."""
        end = self._cache.get_seq_length() - self._n_peeked
        rows = torch.arange(len(columns), device=columns.device)
        layers: list[Any] = self._cache.layers  # each a DynamicLayer, or there had been no peek
        for layer in layers:
            for states in (layer.keys, layer.values):  # (B, heads, T + K, head size)
                states[:, :, end] = states[rows, :, end + columns]
        self._n_peeked -= 1
        self.forget()
        self._extend(columns)

    def forget(self) -> None:
        """Drop the candidates of the last peek, if there are any."""
        if self._n_peeked:
            self._cache.crop(-self._n_peeked)
        self._n_peeked = 0

    def fork(self, rows: Tensor) -> LMSession:
        """Return a session of its own that goes on with the rows (B',) int64; this one stays as it is."""
        assert not self._n_peeked, "keep or forget the candidates first"
        twin = LMSession(self._model, self._layers)
        twin._cache = copy.copy(self._cache)
        twin._cache.layers = [copy.copy(layer) for layer in self._cache.layers]  # `select` copies tensors
        twin._mask, twin._lengths = self._mask, self._lengths
        twin.select(rows)
        return twin

    def select(self, rows: Tensor) -> None:
        """Keep the rows (B',) int64, in that order; a row may repeat."""
        self._cache.batch_select_indices(rows)
        self._lengths = self._lengths[rows]
        if self._mask is not None:
            self._mask = self._mask[rows]

    def _block_mask(self, n_rows: int, n_candidates: int) -> Tensor:
        """Return what K candidates may see of text and block, (B, 1, K, T + K), to be added to attention."""
        block = ~torch.eye(n_candidates, dtype=torch.bool, device=self._lengths.device)
        n_read, shape = self._cache.get_seq_length(), (n_rows, n_candidates, -1)
        padding = block.new_zeros(n_rows, n_read) if self._mask is None else self._mask == 0
        hidden = torch.cat([padding[:, None].expand(shape), block.expand(shape)], -1)[:, None]
        dtype = self._model.dtype
        return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)

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
        self, model: nn.Module, ids: Tensor, positions: Tensor, **options: Any
    ) -> Any:  # the model's output record, all of it there
        assert not self._n_peeked, "keep or forget the candidates first"
        return model(
            input_ids=ids,
            past_key_values=self._cache,
            use_cache=True,
            output_hidden_states=bool(self._layers),
            **{"attention_mask": self._mask, **options},
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
