"""VADER's lexicon and rules as a sentiment judge (Hutto and Gilbert 2014): no training, no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from eval.judge import missing_package


@dataclass(frozen=True, slots=True)
class VaderJudge:
    """Positivity (compound + 1) / 2; a text without a word of the lexicon scores 0.5."""

    analyser: Any
    attribute: str = "sentiment"
    threshold: float = 0.525  # compound >= 0.05, VADER's own bound for positive

    @property
    def name(self) -> str:
        """Return "vader"."""
        return "vader"

    @property
    def about(self) -> Mapping[str, Any]:
        """Return the package's version."""
        return {"judge": self.name, "version": version("vaderSentiment"), "threshold": self.threshold}

    def score(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return (M,) float64 in [0, 1]."""
        return np.array([(self.analyser.polarity_scores(text)["compound"] + 1) / 2 for text in texts])


def load(attribute: str, detail: str | None) -> VaderJudge:
    """Return the judge. Raises UserError without the package, or for a detail: there are no variants."""
    if detail:
        raise UserError(f"judge 'vader:{detail}': vader has no variants, write vader")
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise missing_package("vader", "vaderSentiment") from None
    return VaderJudge(SentimentIntensityAnalyzer())
