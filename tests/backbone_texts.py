"""Texts whose label hangs on one word, for tests that train rewards with their own backbone."""

from __future__ import annotations

import torch

FILLER = ("the film", "a street", "the rain", "morning", "the music", "a train", "it was", "and then")


def labelled_texts(n: int) -> list[tuple[str, int]]:
    """Return n different texts; those with the word `good` have label 1."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, int] = {}
    while len(found) < n:
        label = len(found) % 2
        words = [FILLER[i] for i in torch.randint(len(FILLER), (4,), generator=generator)]
        words.insert(int(torch.randint(3, (1,), generator=generator)), "good" if label else "bad")
        found.setdefault(" ".join(words), label)
    return list(found.items())
