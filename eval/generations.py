"""Generations to evaluate, from anybody's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PromptSamples:
    """A prompt and what was generated after it.

    id: unique in a file. prompt: the text before the samples, "" where the file has none.
    texts: the continuations alone. records: the file's own object of each sample, same length, where
    extra fields stand (token_ids, token_rewards, trace, Perspective's scores).
    source: where it was read ("FILE, line 7"), for messages.
    """

    id: str
    prompt: str
    texts: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]
    source: str = field(default="", compare=False)

    def full_texts(self) -> list[str]:
        """Return prompt and continuation as one text a sample."""
        return [self.prompt + text for text in self.texts]
