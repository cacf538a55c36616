"""Prompts of a Python call, and prompts to token ids: plain or through the chat template, never with
two BOS, never too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from decoder.contracts import UserError
from prompts.reading import Prompt, from_value


def as_prompts(value: object) -> list[Prompt]:
    """Return the prompts of a call: a text, a conversation, a `Prompt`, or a list of any of these.

    Raises UserError for an empty list, an empty text or anything else.
    """
    if isinstance(value, str | Prompt | Mapping):
        value = [value]
    if not isinstance(value, Sequence) or not value:
        raise UserError(
            f"prompts is {value!r}: give a text, a conversation, or a list with at least one of them"
        )
    if all(isinstance(item, Mapping) and "role" in item for item in value):
        value = [value]  # the messages of one conversation
    return [
        item if isinstance(item, Prompt) else from_value(item, prompt_id=str(i), source=f"prompt {i}")
        for i, item in enumerate(value)
    ]


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    chat: bool,
    room: int,
    context_length: int | None,
) -> list[list[int]]:
    """Return each prompt's token ids.

    Plain texts are encoded as they are, or as a user's message when `chat`; conversations always pass
    the template. Raises UserError naming the prompt when it gives no token, or when with `room` new
    tokens it exceeds the context.
    """
    if (chat or any(prompt.messages for prompt in prompts)) and tokenizer.chat_template is None:
        raise UserError("this model's tokenizer has no chat template: give plain texts, without --chat")
    rows = []
    for prompt in prompts:
        ids = encode(tokenizer, prompt, chat=chat)
        if not ids:
            raise UserError(f"{prompt.source}: prompt {prompt.id!r} gives no token: remove it or add text")
        if context_length is not None and len(ids) + room > context_length:
            raise UserError(
                f"{prompt.source}: prompt {prompt.id!r} has {len(ids)} tokens; with {room} new ones it "
                f"exceeds the model's context of {context_length}: shorten it or lower max_new_tokens"
            )
        rows.append(ids)
    return rows


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, chat: bool) -> list[int]:
    """Return one prompt's token ids, with at most one BOS in front. UserError if the template objects."""
    if prompt.messages is not None or chat:
        messages = prompt.messages or ({"role": "user", "content": prompt.text},)
        plain = [dict(message) for message in messages]
        try:
            ids = tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
        except TemplateError as error:
            raise UserError(
                f"{prompt.source}: the model's chat template refuses it ({error}): change its messages"
            ) from None
        return list(map(int, ids))
    ids = list(map(int, tokenizer(prompt.text).input_ids))
    doubled = tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2
    return ids[1:] if doubled else ids
