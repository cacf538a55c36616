"""What runs a model for a `Decoder`: transformers in this process, or an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from decoder.contracts import Completion, Probe, TokenEvent, TokenReward

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from decoder.endings import Endings
    from decoder.job import Job


class Backend(Protocol):
    """Draws jobs. lm: the model, at least with identity, dtype, device and context_length()."""

    lm: Any
    tokenizer: PreTrainedTokenizerBase
    endings: Endings

    def load_reward(self, reward: str | Path) -> TokenReward:
        """Return a reward for this model, by shipped name or directory, else raise UserError."""
        ...

    def load_probe(self, scorer: str | Path | Probe | TokenReward, ends: Tensor) -> Probe:
        """Return what scores samples as they are drawn; ends: as in `rewards.scorers.load_probe`."""
        ...

    def complete(self, job: Job) -> Iterator[Completion]:
        """Yield each row's completion as the row ends."""
        ...

    def stream(self, job: Job) -> Iterator[TokenEvent]:
        """Yield every token of every row as it is drawn."""
        ...
