"""Diversity of a prompt's samples: distinct n-grams, self-BLEU, repetition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decoder.contracts import UserError
from eval.generations import PromptSamples
from eval.metric import Measure, Record, column, mean_measure

BETTER = {
    "dist1": "higher", "dist2": "higher", "dist3": "higher", "self_bleu": "lower", "repetition": "lower",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Diversity:
    """How much a prompt's samples differ from each other, and how much each repeats itself.

    dist1, dist2, dist3: different n-grams over all samples of the prompt / all words of them, the same
        denominator for every n (Liu et al. 2021, DExperts). Words are what single spaces separate, as
        there, so that figures compare: " a b" has three, the first of them empty.
    self_bleu: mean over samples of BLEU-4 against the prompt's other samples (Zhu et al. 2018, Texygen),
        smoothed by method 1 of Chen and Cherry 2014. NaN for fewer than two samples that say anything.
    repetition: mean over samples of 1 - different 4-grams / 4-grams (Welleck et al. 2020, seq-rep-4),
        over the samples of four words and more; NaN if there is none.

    Words of the last two are separated by any white space. A sample without a word counts nowhere.
    All are shares between 0 and 1, of the continuations alone. More samples a prompt lower dist and
    raise self-BLEU: compare only files with the same number.
    """

    @property
    def name(self) -> str:
        """Return "diversity"."""
        return "diversity"

    @property
    def about(self) -> Mapping[str, Any]:
        """Return the definitions used."""
        return {
            "dist": "unique n-grams / words over a prompt's samples, words between single spaces",
            "self_bleu": "BLEU-4 against the prompt's other samples, smoothing method 1",
            "repetition": "1 - unique 4-grams / 4-grams of each sample",
        }

    @property
    def per_sample(self) -> bool:
        """Return False: a record speaks about all samples of a prompt."""
        return False

    def score(self, prompts: Sequence[PromptSamples]) -> list[list[Record]]:
        """Return a prompt's dist1, dist2, dist3, self_bleu and repetition.

        Raises UserError when nltk is not installed.
        """
        return [[diversity(prompt.texts)] for prompt in prompts]

    def measures(self, scores: Sequence[Sequence[Record]]) -> list[Measure]:
        """Return the mean over prompts of each figure; scored and total count prompts."""
        return [mean_measure(name, column(scores, name), better) for name, better in BETTER.items()]


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """Return dist1, dist2, dist3, self_bleu and repetition of one prompt's samples; see `Diversity`."""
    spoken = [text for text in texts if text.strip()]
    spaced, words = [text.split(" ") for text in spoken], [text.split() for text in spoken]
    return {
        **{f"dist{n}": distinct(spaced, n) for n in (1, 2, 3)},
        "self_bleu": self_bleu(words),
        "repetition": repetition(words),
    }


def distinct(samples: Sequence[Sequence[str]], n: int) -> float:
    """Return the different n-grams of all samples / all their words; NaN without a word."""
    words = sum(map(len, samples))
    return len({gram for sample in samples for gram in _grams(sample, n)}) / words if words else math.nan


def repetition(samples: Sequence[Sequence[str]], n: int = 4) -> float:
    """Return the mean over samples of 1 - different n-grams / n-grams; NaN if no sample has n words."""
    grams = [found for sample in samples if (found := _grams(sample, n))]
    return sum(1 - len(set(found)) / len(found) for found in grams) / len(grams) if grams else math.nan


def self_bleu(samples: Sequence[Sequence[str]]) -> float:
    """Return the mean BLEU-4 of each sample against the others; NaN for fewer than two samples."""
    if len(samples) < 2:
        return math.nan
    try:
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    except ModuleNotFoundError:
        raise UserError("self-BLEU needs nltk, which is missing: pip install 'tiller-lm[eval]'") from None
    smooth = SmoothingFunction().method1
    scores = [
        sentence_bleu([*samples[:i], *samples[i + 1 :]], sample, smoothing_function=smooth)
        for i, sample in enumerate(samples)
    ]
    return float(sum(scores) / len(scores))


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
