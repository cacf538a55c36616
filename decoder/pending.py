"""Finished samples on their way to an output line: one line a prompt, in prompt order.

A line has the shape that DExperts writes: {"id", "prompt", "generations": [a record a sample]}.
Records are held as the bytes that will be written, so a sample read back from a journal gives the
same line as one that was never saved.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence

from prompts.reading import Prompt


def to_json(value: object) -> bytes:
    """Return JSON in UTF-8, keys in the order given; NaN and infinities are null, as JSON has neither."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes its own JSON escape


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


class PendingSamples:
    """The samples that wait for the rest of their prompt, or for the prompts before it."""

    def __init__(self, prompts: Sequence[Prompt], num_samples: int) -> None:
        self.prompts, self.num_samples = prompts, num_samples
        self.written = 0  # prompts whose line is out
        self._waiting: dict[int, dict[int, bytes]] = {}

    @property
    def done_samples(self) -> int:
        """Return how many samples are out or waiting."""
        return self.written * self.num_samples + sum(map(len, self._waiting.values()))

    def missing(self, prompt_index: int) -> tuple[int, ...]:
        """Return the sample indices that are neither out nor waiting."""
        if not 0 <= prompt_index < len(self.prompts):
            raise IndexError(f"prompt {prompt_index} of {len(self.prompts)}")
        if prompt_index < self.written:
            return ()
        here = self._waiting.get(prompt_index, {})
        return tuple(sample for sample in range(self.num_samples) if sample not in here)

    def require_missing(self, prompt_index: int, sample_index: int) -> None:
        """Raise `ValueError` for a sample that is there already or was never asked for."""
        if sample_index not in self.missing(prompt_index):
            raise ValueError(f"sample {sample_index} of prompt {prompt_index} is not missing")

    def require_all(self) -> None:
        """Raise `ValueError` unless every line is out."""
        if self.written < len(self.prompts):
            raise ValueError(f"finished with {self.written} of {len(self.prompts)} prompts written")

    def put(self, prompt_index: int, sample_index: int, record: bytes) -> None:
        """Take the JSON of a missing sample."""
        self._waiting.setdefault(prompt_index, {})[sample_index] = record

    def waiting(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (prompt index, sample index, record) of the samples that are not out."""
        for prompt_index, records in self._waiting.items():
            for sample_index, record in records.items():
                yield prompt_index, sample_index, record

    def line_start(self, prompt_index: int) -> bytes:
        """Return how the line of that prompt begins, up to its first record."""
        prompt = self.prompts[prompt_index]
        return b'{"id": %b, "prompt": %b, "generations": [' % (to_json(prompt.id), to_json(prompt.record()))

    def digest(self, prompt_index: int) -> str:
        """Return a short digest of the prompt: equal where id and text are."""
        return hashlib.sha256(self.line_start(prompt_index)).hexdigest()[:16]

    def next_line(self) -> bytes | None:
        """Return the next line if all its samples are here; `line_written` then says that it is out."""
        if self.written == len(self.prompts) or self.missing(self.written):
            return None
        records = self._waiting.get(self.written, {})
        joined = b", ".join(records[sample] for sample in range(self.num_samples))
        return self.line_start(self.written) + joined + b"]}\n"

    def line_written(self) -> None:
        """Forget the samples of the line that is out now."""
        self._waiting.pop(self.written, None)
        self.written += 1
