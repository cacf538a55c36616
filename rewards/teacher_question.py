"""What teachers are asked, and what one answers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rewards.backbone_texts import TokenTexts
from rewards.candidate_values import Candidates
from rewards.features import TokenRows


@dataclass(frozen=True, slots=True)
class Question:
    """P(attribute) of each column after every token of the texts and, where named, after other candidates.

    rows: the tokens that the generator reads. texts: the same as a backbone reads them, after a begin token.
    """

    columns: tuple[str, ...]
    rows: TokenRows
    texts: TokenTexts
    candidates: Candidates | None

    def digest(self) -> str:
        """Return a digest of every token that is asked about."""
        found = hashlib.sha256()
        for ids in self.texts.rows:
            found.update(np.array([len(ids), *ids], dtype=np.int32).tobytes())
        if self.candidates is not None:
            for part in (self.candidates.places, self.candidates.token_ids):
                found.update(part.numpy().tobytes())
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Answer:
    """One teacher's: soft (N, L) float32 at every state; candidates (M, P, K, L) float32, (0,) for none."""

    name: str
    digest: str
    soft: Tensor
    candidates: Tensor
