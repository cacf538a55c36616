"""One line of a generations file: which layout it has, and the prompt and samples it holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from decoder.contracts import UserError
from prompts.lines import parse_line, shown
from prompts.reading import from_value

TEXTS = ("text", "completion", "response", "output", "generation", "generated_text", "continuation")
LISTS = ("completions", "responses", "outputs", "samples")
IDS = ("prompt_id", "id", "md5_hash")
FORMS = (
    'use {"prompt", "generations": [{"text"}]} (DExperts, RAD, Tiller), '
    '{"prompt", "continuation": {"text"}} (RealToxicityPrompts), lm-eval samples of a generation task, '
    f'{{"prompt", "completions": [...]}} (or {", ".join(LISTS[1:])}), '
    f'{{"prompt", "text": "..."}} (or {", ".join(TEXTS[1:])}), or {{"text": "..."}} alone'
)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the lines of a file are laid out: all lines of one file are equal in it.

    form: "lm-eval", "list" (a line a prompt), "continuation" (RealToxicityPrompts), "sample" (a line
    a sample) or "text" (a line a text without prompt). key: the field that holds the texts.
    """

    form: str
    key: str

    def __str__(self) -> str:
        if self.form == "lm-eval":
            return 'lm-eval samples ("resps")'
        if self.form == "text":
            return '"text" without "prompt"'
        return f'"prompt" with "{self.key}"' + (" as an object" if self.form == "continuation" else "")


@dataclass(frozen=True, slots=True)
class Row:
    """What one line holds. id: None where the file gives none. joins: whether lines share a prompt.

    variant: lm-eval's filter; a task with several writes the same samples once for each.
    """

    id: str | None
    prompt: str
    texts: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]
    source: str
    joins: bool = False
    variant: str = ""


def parsed(line: str, where: str) -> dict[str, Any]:
    """Return the JSON object of a line; anything else is a `UserError`."""
    record = parse_line(line, where, FORMS)
    if not isinstance(record, dict):
        raise UserError(f"{where}: a line must be an object, not {shown(record)}; {FORMS}")
    return record


def layout_of(record: Mapping[str, Any], where: str) -> Layout:
    """Return the layout that the keys tell; a `UserError` for none, or for more than one field of texts."""
    if "resps" in record:
        return Layout("lm-eval", "resps")
    if "generations" in record:
        return Layout("list", "generations")
    if key := _only(record, LISTS, where):
        return Layout("list", key)
    key = _only(record, TEXTS, where)
    if "prompt" not in record and key == "text":
        return Layout("text", key)
    if not key or "prompt" not in record:
        raise _missing(record, '"prompt"' if key else "texts", where)
    is_object = key == "continuation" and isinstance(record[key], Mapping)
    return Layout("continuation" if is_object else "sample", key)


def row_of(record: Mapping[str, Any], layout: Layout, where: str) -> Row:
    """Return the prompt and samples of a line of that layout; a `UserError` names what is wrong in it."""
    if layout.form == "lm-eval":
        return _lm_eval_row(record, where)
    prompt = "" if layout.form == "text" else _prompt_text(_field(record, "prompt", where), where)
    if layout.form == "list":
        samples = _samples(_field(record, layout.key, where), layout.key, where)
    elif layout.form == "continuation":
        samples = [_sample(record[layout.key], where)]
    else:  # the line is the sample's own object
        samples = [(_text(record[layout.key], f'"{layout.key}"', where), record)]
    return Row(_id(record, IDS, where), prompt, *_columns(samples), where, joins=layout.form == "sample")


def _only(record: Mapping[str, Any], keys: Iterable[str], where: str) -> str:
    """Return the one of the keys that is there, "" if none is."""
    found = [key for key in keys if key in record]
    if len(found) > 1:
        raise UserError(f"{where}: the texts may be in any of {shown(found)}; keep the field to be measured")
    return found[0] if found else ""


def _field(record: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise _missing(record, f'"{key}"', where)
    return record[key]


def _missing(record: Mapping[str, Any], what: str, where: str) -> UserError:
    return UserError(f"{where}: missing {what}, found only the keys {shown(list(record))}; {FORMS}")


def _id(record: Mapping[str, Any], keys: Iterable[str], where: str) -> str | None:
    for key in keys:
        value = record.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise UserError(f'{where}: "{key}" must be a string, not {shown(value)}; mend it or leave it out')
        return _encodable(str(value), f'"{key}"', where)
    return None


def _prompt_text(value: object, where: str) -> str:
    """Return a prompt as text: of a chat, the contents of its messages, each ended by a line break."""
    text = value.get("text") if isinstance(value, Mapping) else value
    if isinstance(text, str):  # it may be empty, as it may not where it is to be continued
        return _encodable(text, "prompt", where)
    messages = from_value(value, prompt_id="", source=where).messages or ()
    return "".join(f"{message['content']}\n" for message in messages)


def _samples(values: object, key: str, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(values, list):
        raise UserError(f'{where}: "{key}" must be a list, not {shown(values)}; write ["...", ...] there')
    if not values:
        raise UserError(f'{where}: no generations: "{key}" is []; generate again or take the line out')
    return [_sample(value, f"{where}, generation {number}") for number, value in enumerate(values, 1)]


def _sample(value: object, where: str) -> tuple[str, Mapping[str, Any]]:
    """Return a sample's text and its object; a plain string stands for {"text": string}."""
    record = value if isinstance(value, Mapping) else {"text": value}
    return _text(_field(record, "text", where), '"text"', where), record


def _text(value: object, what: str, where: str) -> str:
    if value is None:  # a generation that failed: judges do not score an empty text
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{where}: {what} must be a string, not {shown(value)}; write the generated text there"
        )
    return _encodable(value, what, where)


def _encodable(text: str, what: str, where: str) -> str:
    """Return the text; refuse lone surrogates, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        bad = ascii(text[error.start])
        raise UserError(
            f"{where}: invalid Unicode in {what}, {bad} at character {error.start}; write UTF-8"
        ) from None
    return text


def _columns(
    samples: Iterable[tuple[str, Mapping[str, Any]]],
) -> tuple[tuple[str, ...], tuple[Mapping[str, Any], ...]]:
    texts, records = zip(*samples, strict=True)
    return texts, records


def _lm_eval_row(record: Mapping[str, Any], where: str) -> Row:
    """Return the row of `lm_eval --log_samples`: a request a context, and a list of texts a request."""
    requests = [_request(each, where) for each in _requests(_field(record, "arguments", where))]
    contexts = {_context(request[0], where) for request in requests}
    if len(contexts) != 1:
        raise UserError(
            f'{where}: "arguments" holds {len(contexts)} different contexts; '
            "only tasks with one context a document can be read"
        )
    responses = record["resps"]
    nested = isinstance(responses, list) and all(isinstance(each, list) for each in responses)
    texts = [text for each in responses for text in each] if nested else responses
    samples = _samples(texts, "resps", where)
    prompt_id = _id(record, ("doc_id",), where)
    if prompt_id is None:
        raise _missing(record, '"doc_id"', where)
    return Row(prompt_id, contexts.pop(), *_columns(samples), where, variant=json.dumps(record.get("filter")))


def _requests(arguments: object) -> list[Any]:
    """Return the requests, which older versions list and newer ones name gen_args_0, gen_args_1, ..."""
    if isinstance(arguments, Mapping):
        return [list(each.values()) if isinstance(each, Mapping) else each for each in arguments.values()]
    return arguments if isinstance(arguments, list) else [arguments]


def _request(request: object, where: str) -> list[Any]:
    """Return [context, generation settings, ...]; a likelihood request has no settings."""
    if not isinstance(request, list) or len(request) < 2 or not isinstance(request[1], Mapping):
        raise UserError(
            f"{where}: this lm-eval task generates no text (a request is {shown(request)}, "
            "without generation settings); give the samples of a generate_until task"
        )
    return request


def _context(context: object, where: str) -> str:
    """Return the context as text; a chat sent to an API is logged as [JSON of its messages]."""
    is_chat = isinstance(context, list) and len(context) == 1 and isinstance(context[0], str)
    return _prompt_text(parse_line(context[0], where, FORMS) if is_chat else context, where)  # type: ignore[index]
