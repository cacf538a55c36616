"""A saved head on embeddings as a scorer of samples: it pools the generator's own states as its store did.

A store whose encoder is the generator holds what a decode reads anyway: the states of prompt and response,
or of the response alone, the last one's or their mean. So the head that was trained on it scores a sample as
it is drawn, at no forward pass of its own, as it would score the same text from the store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from decoder.contracts import Drawn, Reading, UserError
from decoder.lm import CausalLM
from rewards.embed_tokens import TextForm
from rewards.embedding_head import PooledStates, last_states
from rewards.head_store import check_encoder, read_encoder
from rewards.heads import Head, load_head
from rewards.store_manifest import Encoder, Manifest
from rewards.store_rows import TORCH_DTYPES


@dataclass(frozen=True, slots=True)
class EmbeddingScorer:
    """A head bound to the generator that made its embeddings: a `Probe`.

    trained: what its embeddings were. end_ids: (E,) int64, tokens that end a text and are no part of it.
    """

    head: Head
    trained: Manifest
    end_ids: Tensor
    digest: str

    @property
    def layers(self) -> tuple[int, ...]:
        """The taps its sessions read."""
        return self.trained.layers

    @property
    def reads_logits(self) -> bool:
        """False."""
        return False

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, reading: Reading) -> PooledStates:
        """Open a session: one vector a row, over the prompt too where the store's was.

        A response without a token is scored by the prompt's last state, as it is embedded.
        """
        whole = TextForm.from_name(self.trained.template).pooled == "all"
        last = last_states(reading.taps, self.layers, prompt_mask)
        session = PooledStates(
            self.layers,
            self.trained.pooling,
            self._score,
            like=prompt_ids,
            ignored=self.end_ids,
            without=last,
        )
        if whole:  # its end tokens too: a template may have written some
            session.read(Drawn(prompt_ids, prompt_mask, reading.taps, None))
        return session

    @classmethod
    def from_pretrained(cls, directory: str | Path, lm: CausalLM, form: str | None = None) -> EmbeddingScorer:
        """Load a saved head for this generator. Raises UserError if it is broken, or reads other states."""
        directory = Path(directory)
        if form is not None:
            raise UserError(
                f"{directory} is a head on embeddings and has no form {form!r}: leave out @{form}"
            )
        trained = read_encoder(directory)
        if trained is None:
            raise UserError(
                f"head {directory} does not say what made its embeddings, so no states can be pooled for it: "
                "train it with rewards.train_head"
            )
        check_encoder(
            directory, trained, _states_of(lm, trained), f"Choose with --model {trained.encoder.name}"
        )
        lm.start(trained.layers)
        head = load_head(directory)
        facts = (trained.layers, trained.pooling, trained.template, trained.dtype)
        return cls(head, trained, _end_ids(lm), f"{head.digest} {facts}")

    def _score(self, pooled: Tensor) -> Tensor:
        """Return scores (B,) of pooled states (B, D), rounded as the store's are."""
        rounded = pooled.to(TORCH_DTYPES[self.trained.dtype])
        return torch.from_numpy(self.head.predict(rounded)).to(pooled.device)


def _states_of(lm: CausalLM, trained: Manifest) -> Manifest:
    """Return what the generator's states are, pooled as the head's embeddings were."""
    identity = lm.identity
    encoder = Encoder(identity.name, identity.weights, identity.tokenizer_hash)
    return replace(trained, encoder=encoder, dimension=identity.hidden_size * len(trained.layers))


def _end_ids(lm: CausalLM) -> Tensor:
    """Return the ids (E,) that end the model's texts, by its own generation settings."""
    settings = lm.model.generation_config
    found = None if settings is None else settings.eos_token_id
    ids = [] if found is None else [found] if isinstance(found, int) else list(found)
    return torch.tensor(ids, dtype=torch.long, device=lm.device)
