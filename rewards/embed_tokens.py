"""What an encoder reads of a text and which of it is pooled: prompt, template, tokens as drawn, the cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from decoder.contracts import UserError
from decoder.endings import to_text
from decoder.models import config_digest
from prompts.reading import Prompt
from rewards.embed_rows import TextRow

Pooled = Literal["all", "response"]
Template = Literal["none", "chat"]


@dataclass(frozen=True, slots=True)
class TextForm:
    """How prompt and response become one text. Raises UserError for values that are not known.

    pooled: over all tokens, or over those of the response alone; both read the prompt before it. template:
    "chat" puts prompts through the model's chat template; with "none" a conversation is the contents of its
    messages, each ended by a line break.
    """

    pooled: Pooled = "all"
    template: Template = "none"

    def __post_init__(self) -> None:
        for name, value, kind in (("text", self.pooled, Pooled), ("template", self.template, Template)):
            if value not in get_args(kind):
                raise UserError(f"{name} {value!r} is not known: choose one of {', '.join(get_args(kind))}")

    def name(self, chat_template: str | None) -> str:
        """Return what a manifest says of it: "plain" or "chat DIGEST", then ", response" if only that."""
        base = "plain" if self.template == "none" else f"chat {config_digest(chat_template)}"
        return base if self.pooled == "all" else f"{base}, {self.pooled}"

    @classmethod
    def from_name(cls, name: str) -> TextForm:
        """Return the form that a manifest names, whatever the chat template was."""
        base, _, pooled = name.partition(", ")
        template: Template = "chat" if base.startswith("chat ") else "none"
        return cls("response" if pooled == "response" else "all", template)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A text as token ids; those from `first` to before `last` are pooled. is_cut: it was longer."""

    ids: list[int]
    first: int
    last: int
    is_cut: bool = False


@dataclass(frozen=True)
class Tokeniser:
    """Turns texts into what the encoder reads.

    max_tokens: longer texts are cut, where there is a prompt at its front, else at their end; special
    tokens that the tokenizer adds stay. keeps_drawn: read a response as the tokens it was drawn as, where
    they are recorded and spell its text with this tokenizer.
    """

    tokenizer: PreTrainedTokenizerBase
    form: TextForm
    max_tokens: int | None
    keeps_drawn: bool

    def __post_init__(self) -> None:
        """Refuse a form that this tokenizer cannot give."""
        if self.form.template == "chat" and self.tokenizer.chat_template is None:
            raise UserError("this model's tokenizer has no chat template: give --template none")
        if self.form.pooled == "response" and not self.tokenizer.is_fast:
            raise UserError("this model's tokenizer does not tell where tokens stand: give --text all")
        least = sum(self._added) + 1
        if self.max_tokens is not None and self.max_tokens < least:
            raise UserError(f"max_length is {self.max_tokens}: give at least {least}")

    def __call__(self, rows: Sequence[TextRow]) -> list[TokenRow | None]:
        """Return what is read of each text; None where there is no token of one.

        A response without a token counts as the prompt's last one. Raises UserError for a template that
        refuses a prompt, and for a template where there is no prompt.
        """
        fronts: dict[int, str] = {}
        for row in rows:
            if id(row.prompt) not in fronts:  # all samples of a prompt share it
                fronts[id(row.prompt)] = self._front(row)
        found: list[TokenRow | None] = [None] * len(rows)
        spelt = {i: ids for i, row in enumerate(rows) if (ids := self._drawn(row)) is not None}
        before = {key: self._ids([front])[0] for key, front in fronts.items() if front} if spelt else {}
        for i, ids in spelt.items():
            front_ids = before[id(rows[i].prompt)]
            found[i] = self._cut([*front_ids, *ids], len(ids), has_prompt=True, added=(self._added[0], 0))
        others = [i for i in range(len(rows)) if i not in spelt]
        for i, read in zip(others, self._joint(fronts, [rows[i] for i in others]), strict=True):
            found[i] = read
        return found

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return what is read of a prompt before tokens that were drawn after it."""
        return self._ids([self._rendered(prompt)])[0]

    def _front(self, row: TextRow) -> str:
        if row.prompt is not None:
            return self._rendered(row.prompt)
        if self.form.template == "chat":
            raise UserError(f"{row.source}: no prompt to put through the chat template: give --template none")
        return ""

    def _rendered(self, prompt: Prompt) -> str:
        if self.form.template == "none":
            messages = prompt.messages or ()
            return prompt.text or "".join(f"{message['content']}\n" for message in messages)
        plain = [dict(each) for each in prompt.messages or ({"role": "user", "content": prompt.text},)]
        try:
            return str(self.tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False))
        except TemplateError as error:
            raise UserError(
                f"{prompt.source}: the model's chat template refuses it ({error}): change its messages"
            ) from None

    def _drawn(self, row: TextRow) -> list[int] | None:
        """Return the tokens as drawn, but for special ones at the end; None if they spell another text."""
        if not self.keeps_drawn or row.token_ids is None or row.prompt is None:
            return None
        ids = list(row.token_ids)
        while ids and ids[-1] in self._special:
            ids.pop()
        if max(ids, default=0) >= self._n_pieces or to_text(self.tokenizer, ids) != row.text:
            return None
        return ids

    def _joint(self, fronts: dict[int, str], rows: Sequence[TextRow]) -> list[TokenRow | None]:
        """Return what is read of prompt and text as one string."""
        if not rows:
            return []
        starts = [len(fronts[id(row.prompt)]) for row in rows]
        texts = [fronts[id(row.prompt)] + row.text for row in rows]
        every = self._ids(texts)
        lengths = self._responses(texts, starts) if self.form.pooled == "response" else map(len, every)
        return [
            self._cut(ids, n, has_prompt=row.prompt is not None, added=self._added)
            for row, ids, n in zip(rows, every, lengths, strict=True)
        ]

    def _cut(
        self, ids: list[int], n_response: int, *, has_prompt: bool, added: tuple[int, int]
    ) -> TokenRow | None:
        """Return the row that is read, of which the last `n_response` before the added tokens are pooled."""
        body = ids[added[0] : len(ids) - added[1]]
        if not body:
            return None
        room = len(body) if self.max_tokens is None else min(len(body), self.max_tokens - sum(added))
        kept = body[len(body) - room :] if has_prompt else body[:room]
        whole = [*ids[: added[0]], *kept, *ids[len(ids) - added[1] :]]
        is_cut = room < len(body)
        if self.form.pooled == "all":
            return TokenRow(whole, 0, len(whole), is_cut)
        last = len(whole) - added[1]
        return TokenRow(whole, last - min(max(n_response, 1), room), last, is_cut)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, with what the tokenizer adds, never with two BOS."""
        bos = self.tokenizer.bos_token_id
        special = self.form.template == "none"  # a template writes its own
        found = self.tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
        return [ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids for ids in found]

    def _responses(self, texts: Sequence[str], starts: Sequence[int]) -> list[int]:
        """Return how many tokens of each text reach past `starts`, where its response begins."""
        found = self.tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        return [sum(end > start for _, end in spans) for spans, start in zip(found, starts, strict=True)]

    @cached_property
    def _added(self) -> tuple[int, int]:
        """Return how many special tokens are put in front and behind."""
        if self.form.template == "chat":
            return 0, 0
        whole, bare = (
            self.tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False)
        )
        front = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return front, len(whole) - len(bare) - front

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    @cached_property
    def _n_pieces(self) -> int:
        return len(self.tokenizer)
