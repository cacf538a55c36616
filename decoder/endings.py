"""What ends a text: the model's end tokens, and every token with a character that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from decoder.contracts import UserError


class Endings:
    """The ids that end a text on one model. stop_ids: (E,) int64, its own end tokens."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig | None, device: torch.device
    ) -> None:
        """Take the end tokens of the model's generation settings, or else the tokenizer's."""
        self._tokenizer, self._device = tokenizer, device
        stop = settings.eos_token_id if settings else None
        stop = tokenizer.eos_token_id if stop is None else stop
        ids = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
        self.stop_ids = torch.tensor(ids, dtype=torch.long, device=device)
        self._spelt: dict[str, Tensor] = {}

    def ids(self, stop: str) -> Tensor:
        """Return the ids that end a text: the end tokens and every token with a character of `stop`.

        Raises UserError for a character that no token has, such as one spelt in several bytes.
        """
        if stop not in self._spelt:
            pieces = [to_text(self._tokenizer, [i]) for i in range(len(self._tokenizer))] if stop else []
            if absent := sorted(set(stop).difference(*pieces)):
                raise UserError(f"stop is {stop!r}: no token has {absent[0]!r}, so none can end a text there")
            found = [i for i, piece in enumerate(pieces) if set(piece) & set(stop)]
            self._spelt[stop] = torch.tensor(found, dtype=torch.long, device=self._device)
        return torch.cat([self.stop_ids, self._spelt[stop]])

    def reason(self, last_token: int, stop: str) -> str:
        """Return why a text ended with this token: "stop" or "length"."""
        return "stop" if bool((self.ids(stop) == last_token).any()) else "length"


def to_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of token ids as it is, without special tokens."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def cut(text: str, stop: str) -> str:
    """Return the text up to the first of the characters that end one."""
    return text[: min((i for i in map(text.find, stop) if i >= 0), default=len(text))]


class TextStream:
    """Turns a row's token ids into text piece by piece; a piece waits until its character is whole.

    Nothing is shown from the first character of `stop` on, though several tokens may have spelt it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: str = "") -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._stopped = False
        self._shown: list[int] = []  # the ids of the last piece: decoders look at what stands before
        self._waiting: list[int] = []

    def add(self, token_id: int, *, last: bool) -> str:
        """Return what can be shown after this token, "" while a character is incomplete."""
        self._waiting.append(token_id)
        before = to_text(self._tokenizer, self._shown)
        after = to_text(self._tokenizer, self._shown + self._waiting)
        if after.endswith("\N{REPLACEMENT CHARACTER}") and not last:
            return ""
        piece = after[len(before) :]
        # A special token shows nothing; alone before the next piece, it would make that one lose its space.
        self._shown, self._waiting = ([] if piece else self._shown) + self._waiting, []
        shown = "" if self._stopped else cut(piece, self._stop)
        self._stopped = self._stopped or len(shown) < len(piece)
        return shown
