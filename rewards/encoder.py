"""Text encoders: one pooled vector of hidden states a text, from a language model or an encoder model.

    e = concatenation over the taps l of (last or mean over the pooled tokens t of h_t^l)

where h_t^l is the state of layer l at token t. "last" of the last layer is the embedding of "Reusing
Embeddings" (arXiv 2502.04357); the last token is found by the mask, never by the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from decoder.contracts import UserError
from decoder.lm import hash_tokenizer, hash_weights
from decoder.models import DEFAULT_MODEL, LoadedModel, load_model, pick_device, pick_dtype, resolve
from decoder.replay import right_pad
from rewards.embed_rows import TextRow
from rewards.embed_tokens import TextForm, Tokeniser, TokenRow
from rewards.store import Store
from rewards.store_manifest import DType, Encoder, Manifest, Pooling, check_same
from rewards.text_reward import longest

GENERATORS = ("ForCausalLM", "LMHeadModel")  # how the architectures end that `load_model` takes
NO_LIMIT = 10**9


@runtime_checkable
class TextEncoder(Protocol):
    """What makes the embeddings of a store; a model here, or anything else with these three."""

    def manifest(self, dtype: DType, labels: tuple[str, ...] = ()) -> Manifest:
        """Return what a store of these embeddings says of them."""
        ...

    def tokenise(self, rows: Sequence[TextRow]) -> list[TokenRow | None]:
        """Return what is read of each text; None where there is nothing to read."""
        ...

    def embed(self, rows: Sequence[TokenRow]) -> Tensor:
        """Return the embeddings (B, D) float32, on any device; all rows pass the model together."""
        ...


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """How texts become vectors.

    layers: numbered as in `Reading.taps`, negative ones from the last, -1. pooling: None takes "last" of a
    language model and "mean" of an encoder model. max_tokens: where texts are cut, None for as many as the
    model reads.
    """

    layers: tuple[int, ...] = (-1,)
    pooling: Pooling | None = None
    form: TextForm = field(default_factory=TextForm)
    max_tokens: int | None = None


@dataclass(frozen=True)
class ModelEncoder:
    """A transformers model as a `TextEncoder`.

    model: the backbone, without a head. layers: counted from 0, the embeddings. is_generator: whether texts
    are read as a decode reads them, so that its states are these.
    """

    model: Any
    tokeniser: Tokeniser
    about: Encoder
    layers: tuple[int, ...]
    pooling: Pooling
    is_generator: bool

    @cached_property
    def device(self) -> torch.device:
        """Where the model is."""
        parameter: Tensor = next(iter(self.model.parameters()))
        return parameter.device

    @property
    def dimension(self) -> int:
        """Return D, the hidden size times the number of layers."""
        return int(self.model.config.get_text_config().hidden_size) * len(self.layers)

    def manifest(self, dtype: DType, labels: tuple[str, ...] = ()) -> Manifest:
        """Return what a store of these embeddings says of them."""
        template = self.tokeniser.form.name(self.tokeniser.tokenizer.chat_template)
        return Manifest(
            self.about, self.dimension, self.layers, self.pooling, dtype, labels, template,
            self.tokeniser.max_tokens,
        )  # fmt: skip

    def tokenise(self, rows: Sequence[TextRow]) -> list[TokenRow | None]:
        """Return what is read of each text, as `Tokeniser` says; None for a text without a token."""
        return self.tokeniser(rows)

    @torch.inference_mode()
    def embed(self, rows: Sequence[TokenRow]) -> Tensor:
        """Return the embeddings (B, D) float32, on the model's device; all rows pass it together."""
        ids, mask = right_pad([row.ids for row in rows], self.device)
        first, last = (
            torch.tensor([getattr(row, name) for row in rows], device=self.device)[:, None]
            for name in ("first", "last")
        )
        places = torch.arange(ids.shape[1], device=self.device)
        pooled = (places >= first) & (places < last)  # (B, T)
        taps = self._taps(ids, mask)
        return torch.cat([pool(taps[layer], pooled, self.pooling) for layer in self.layers], -1)

    def _taps(self, ids: Tensor, mask: Tensor) -> dict[int, Tensor]:
        """Return layer -> states (B, T, d): of all layers, where others than the last are asked for."""
        top = n_layers(self.model)
        below = self.layers != (top,)
        output = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            output_hidden_states=below,
            **({"use_cache": False} if self.is_generator else {}),
        )
        return dict(enumerate(output.hidden_states)) if below else {top: output.last_hidden_state}


def pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return (B, d) float32 of states (B, T, d): those at each row's True positions, or the last of them.

    Wherever padding stands, and whatever its states are, NaN too, it changes nothing. A row of the mask
    (B, T) bool that is all False gives zeros for "mean" and the first state for "last".
    """
    if pooling == "mean":
        total = states.float().masked_fill(~mask[..., None], 0.0).sum(1)
        return total / mask.sum(1, keepdim=True).clamp(min=1)
    places = torch.arange(mask.shape[1], device=mask.device)
    return states[torch.arange(len(mask), device=mask.device), (places * mask).amax(1)].float()


def load_encoder(
    name: str = DEFAULT_MODEL,
    options: EncoderOptions = EncoderOptions(),
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ModelEncoder:
    """Return the encoder of a model: one that `load_model` takes, or any that transformers' AutoModel does.

    dtype: what the model computes in. Raises UserError for a model that cannot be loaded, that is encoder
    and decoder in one, layers it lacks, and a form or length it cannot read.
    """
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if _is_generator(name, where):
        loaded = load_model(name, dtype=dtype, device=device, **where)
        return encoder_of(loaded, options, revision=revision)
    model, tokenizer = _load_backbone(name, dtype, device, where)
    about = Encoder(name, hash_weights(model), hash_tokenizer(tokenizer), revision or "")
    return _encoder(model, tokenizer, about, options, is_generator=False)


def encoder_of(
    loaded: LoadedModel, options: EncoderOptions = EncoderOptions(), *, revision: str | None = None
) -> ModelEncoder:
    """Return the encoder that a loaded generator is. Raises UserError as `load_encoder` does."""
    identity = loaded.lm.identity
    about = Encoder(identity.name, identity.weights, identity.tokenizer_hash, revision or "")
    return _encoder(loaded.lm.model.base_model, loaded.tokenizer, about, options, is_generator=True)


def encoder_for(
    store: Store, *, model: str | None = None, dtype: str = "auto", device: str = "auto"
) -> ModelEncoder:
    """Return the encoder that makes embeddings of a store's kind, to score other texts with its heads.

    model: where the model is now, if not where the manifest says. Raises UserError as `load_encoder` does,
    and if that model gives embeddings of another kind.
    """
    said = store.manifest
    options = EncoderOptions(said.layers, said.pooling, TextForm.from_name(said.template), said.max_tokens)
    name, revision = model or said.encoder.name, said.encoder.revision or None
    encoder = load_encoder(name, options, dtype=dtype, device=device, revision=revision)
    check_same(store.folder, said, encoder.manifest(said.dtype))
    return encoder


def n_layers(model: Any) -> int:
    """Return the number of the last layer."""
    return int(model.config.get_text_config().num_hidden_layers)


def _encoder(
    model: Any, tokenizer: Any, about: Encoder, options: EncoderOptions, *, is_generator: bool
) -> ModelEncoder:
    limit = longest(model, tokenizer)
    asked = options.max_tokens
    if asked is not None and asked > limit:
        raise UserError(f"max_length is {asked} and {about.name} reads {limit} tokens: give at most that")
    most = asked if asked is not None else limit if limit < NO_LIMIT else None
    pooling: Pooling = options.pooling or ("last" if is_generator else "mean")
    return ModelEncoder(
        model,
        Tokeniser(tokenizer, options.form, most, keeps_drawn=is_generator),
        about,
        _counted(options.layers, n_layers(model), about.name),
        pooling,
        is_generator,
    )


def _counted(layers: tuple[int, ...], top: int, name: str) -> tuple[int, ...]:
    """Return the layers counted from 0. Raises UserError for one that is not there or twice there."""
    found = tuple(layer if layer >= 0 else top + 1 + layer for layer in layers)
    wrong = [layer for layer, place in zip(layers, found, strict=True) if not 0 <= place <= top]
    if wrong or len(set(found)) < len(found) or not found:
        problem = f"layer {wrong[0]} does not exist" if wrong else f"layers {list(layers)} are none or repeat"
        raise UserError(
            f"{problem}: {name} has layers 0 to {top} (0 is the embedding output, -1 the last one); choose "
            "one or several of those"
        )
    return found


def _is_generator(name: str, where: dict[str, Any]) -> bool:
    try:
        config = AutoConfig.from_pretrained(resolve(name), **where)
    except (OSError, ValueError, KeyError):
        return True  # `load_model` meets the same trouble, and has the words for it
    return any(each.endswith(GENERATORS) for each in config.architectures or ())


def _load_backbone(name: str, dtype: str, device: str, where: dict[str, Any]) -> tuple[Any, Any]:
    """Return a model without a head, and its tokenizer."""
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    path = resolve(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
        model, report = AutoModel.from_pretrained(path, dtype=kind, output_loading_info=True, **where)
    except (OSError, ValueError, SafetensorError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot load encoder model {name!r} ({reason}): check that it is complete") from None
    absent = sorted(report["missing_keys"])  # transformers would fill them with random numbers
    if any(key.startswith("pooler.") for key in absent):  # no state is read from it
        model.pooler = None
        absent = [key for key in absent if not key.startswith("pooler.")]
    if absent:
        raise UserError(
            f"encoder model {name!r} lacks weights, {absent[0]} among them: check that it is complete"
        )
    if model.config.is_encoder_decoder:
        raise UserError(f"{name!r} is encoder and decoder in one: give an encoder or a causal language model")
    model.config.use_cache = False
    return model.eval().to(place), tokenizer
