"""Judges of finished text: what each is, and how one is named on the command line."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from decoder.contracts import UserError

ATTRIBUTES = ("toxicity", "sentiment")
# judge -> (module with `load(attribute, detail)`, attributes it knows, what it is)
JUDGES = {
    "minilm": ("eval.linear_judge", ATTRIBUTES, "embedded: linear on MiniLM sentence embeddings"),
    "profanity": ("eval.profanity_judge", ("toxicity",), "embedded: alt-profanity-check, bag of words"),
    "vader": ("eval.vader_judge", ("sentiment",), "embedded: VADER's lexicon and rules"),
    "detoxify": ("eval.detoxify_judge", ("toxicity",), "Detoxify; detoxify:unbiased, detoxify:FILE.ckpt"),
    "hf": ("eval.classifier_judge", ATTRIBUTES, "hf:MODEL, a transformers text-classification model"),
}
EMBEDDED = "minilm"  # the default: needs no download


@runtime_checkable
class Judge(Protocol):
    """Says how strongly texts have an attribute; immutable, independent of every reward."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def attribute(self) -> str:
        """One of `ATTRIBUTES`: high scores mean toxic, or positive."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """Everything that changes its scores: version, weights, threshold. JSON values."""
        ...

    @property
    def threshold(self) -> float:
        """The score from which a text counts as toxic, or positive."""
        ...

    def score(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return (M,) float64 scores in [0, 1], NaN where it cannot say; no text is blank."""
        ...


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """A judge as asked for: `[ATTRIBUTE=]NAME[:DETAIL]`."""

    attribute: str
    name: str
    detail: str | None

    def load(self) -> Judge:
        """Return the judge. Raises UserError if a package or its weights are missing."""
        judge: Judge = importlib.import_module(JUDGES[self.name][0]).load(self.attribute, self.detail)
        return judge


def parse_judge(text: str, attributes: Sequence[str]) -> JudgeSpec:
    """Return the judge that a text names, for one of the attributes that are asked for.

    The attribute may be left out where only one fits. Raises UserError for an unknown name or
    attribute, naming the known ones, and where several attributes would fit.
    """
    head, found, rest = text.partition("=")
    attribute, called = (head, rest) if found and head in ATTRIBUTES else (None, text)
    name, _, detail = called.partition(":")
    if name not in JUDGES:
        known = "; ".join(f"{each} ({about})" for each, (_, _, about) in JUDGES.items())
        raise UserError(f"unknown judge {name!r}: choose among {known}")
    able = [each for each in ([attribute] if attribute else attributes) if each in JUDGES[name][1]]
    if len(able) != 1:
        does = ", ".join(JUDGES[name][1])
        asked = attribute or ", ".join(attributes) or "neither toxicity nor sentiment"
        raise UserError(
            f"judge {text!r} knows {does}, and the metrics ask for {asked}: "
            f"write for instance {JUDGES[name][1][0]}={name}, and name that metric"
        )
    return JudgeSpec(able[0], name, detail or None)


def missing_package(judge: str, package: str) -> UserError:
    """Return the error for a judge whose package is not installed."""
    return UserError(
        f"judge {judge!r} needs {package}: pip install 'tiller-lm[eval]', or choose another judge "
        f"({', '.join(JUDGES)})"
    )
