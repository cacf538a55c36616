"""Any transformers text-classification model as a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decoder.contracts import UserError
from decoder.lm import hash_weights
from decoder.replay import batches_by_length

DEFAULTS = {"sentiment": "distilbert-base-uncased-finetuned-sst-2-english"}
# Which of a model's labels means the attribute, by the names in common use, lower case.
LABELS = {
    "sentiment": ("positive", "pos", "label_1", "1"),
    "toxicity": ("toxic", "toxicity", "label_1", "hate", "offensive", "1"),
}


@dataclass(frozen=True, slots=True)
class ClassifierJudge:
    """P(label), by softmax over the classes, or by sigmoid where the model is multi-label or has one class.

    max_tokens: what stands past it is not read, as `truncation=True` has it in transformers' pipelines.
    """

    model: Any
    tokenizer: Any
    source: str
    attribute: str
    label: int
    max_tokens: int
    threshold: float = 0.5

    @property
    def name(self) -> str:
        """Return "hf:" and where the model is from."""
        return f"hf:{self.source}"

    @property
    def about(self) -> Mapping[str, Any]:
        """Return revision, digest of the weights, and the label that is read."""
        config = self.model.config
        return {
            "judge": self.name,
            "version": getattr(config, "_commit_hash", None) or "local",
            "weights": hash_weights(self.model),
            "label": config.id2label[self.label],
            "max_tokens": self.max_tokens,
            "threshold": self.threshold,
        }

    @torch.inference_mode()
    def score(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return (M,) float64 in [0, 1]."""
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        scores = np.full(len(ids), np.nan)
        for rows in batches_by_length([len(row) for row in ids], max_tokens=4096):
            batch = self.tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
            logits = self.model(**batch.to(self.model.device)).logits.float()
            scores[rows] = self._probability(logits).double().cpu().numpy()
        return scores

    def _probability(self, logits: torch.Tensor) -> torch.Tensor:
        multi = self.model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1
        return (logits.sigmoid() if multi else logits.softmax(-1))[:, self.label]


def load(attribute: str, detail: str | None) -> ClassifierJudge:
    """Return the judge of `MODEL` or `MODEL#LABEL`, a directory or hub id; sentiment has a default.

    Raises UserError if the model cannot be loaded, and where none of its labels is known to mean the
    attribute or the one named is not there, with the labels it has.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source, _, wanted = (detail or DEFAULTS.get(attribute, "")).partition("#")
    if not source:
        raise UserError(f"judge 'hf' has no default for {attribute}: write hf:MODEL, a directory or hub id")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"cannot load classifier {source!r} ({reason}): give a directory that holds it, or take an "
            "embedded judge, minilm"
        ) from None
    label = find_label(model.config.id2label, attribute, wanted, source)
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
    return ClassifierJudge(model, tokenizer, source, attribute, label, min(limit, 512))


def find_label(names: Mapping[int, str], attribute: str, wanted: str, source: str) -> int:
    """Return the index of the label that means the attribute; `wanted` names one outright."""
    lower = {str(name).lower(): index for index, name in names.items()}
    for name in [wanted.lower()] if wanted else LABELS[attribute]:
        if name in lower:
            return int(lower[name])
    if len(names) == 1 and not wanted:
        return 0
    raise UserError(
        f"classifier {source!r} has the labels {', '.join(map(str, names.values()))}: "
        f"name the one that means {attribute}, as in hf:{source}#{next(iter(names.values()))}"
    )
