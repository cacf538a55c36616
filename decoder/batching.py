"""Plan the batches of a run: by length within windows of prompts, the same however often it is planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WINDOW = 8  # batches: longer windows pad less but keep more finished samples waiting for their turn


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows decoded together. prompts: indices into the run's prompts; rows: (position in prompts, sample)."""

    prompts: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]


def plan_batches(
    lengths: Sequence[int], num_samples: int, batch_size: int, *, together: bool = False
) -> Iterator[Batch]:
    """Yield batches of at most `batch_size` rows that cover every (prompt, sample) once.

    Prompts are taken in windows, in order, and sorted by length inside one. A prompt's samples may fall
    into two batches, unless `together`, which needs a batch_size of num_samples or more. A pure function
    of its arguments: a resumed run decodes the same batches, so its floating-point results are the same.
    """
    if together:
        batch_size -= batch_size % num_samples
    size = max(1, batch_size * WINDOW // num_samples)
    for start in range(0, len(lengths), size):
        window = range(start, min(start + size, len(lengths)))
        queue = [(p, s) for p in sorted(window, key=lengths.__getitem__) for s in range(num_samples)]
        for first in range(0, len(queue), batch_size):
            yield _batch(queue[first : first + batch_size])


def _batch(pairs: Sequence[tuple[int, int]]) -> Batch:
    prompts = tuple(dict.fromkeys(prompt for prompt, _ in pairs))
    position = {prompt: i for i, prompt in enumerate(prompts)}
    return Batch(prompts, tuple((position[prompt], sample) for prompt, sample in pairs))
