"""Read prompts from arguments, files or standard input: plain text a line, or JSONL.

Every mistake in the input is a `UserError` of one line that names the place, so that a typing error
on line 7 is found before a model is loaded.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from decoder.contracts import UserError
from prompts.lines import decode_line, open_input, parse_line, shown

MAX_LINE_BYTES = 1_000_000
LARGEST = sys.float_info.max  # JSON writes whole numbers past it
FORMS = (
    'use {"prompt": "..."}, {"prompt": {"text": "..."}}, {"prompt": [messages]} or {"messages": [...]}, '
    'with messages like {"role": "user", "content": "..."}'
)
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: either `text` to continue, or `messages` for a chat template.

    id: unique among the prompts of one run; names the prompt in the output.
    source: where it was read ("FILE, line 7"), for messages to people; no part of equality.
    answer: the right answer, where there is one; a number stands as it is written.
    group: prompts of one group are alike, so that training and validation must not share them.
    betas: name of a reward -> its strength after this prompt, instead of the call's.
    """

    id: str
    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    source: str = field(default="", compare=False)
    answer: str | None = None
    group: str | None = None
    betas: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise ValueError(f"prompt {self.id!r}: give exactly one of text and messages")

    def record(self) -> dict[str, Any]:
        """Return the JSON object that stands under "prompt" in the output."""
        said = {"text": self.text} if self.messages is None else {"messages": list(self.messages)}
        betas = None if self.betas is None else dict(self.betas)
        about = {"answer": self.answer, "group": self.group, "betas": betas}
        return {**said, **{name: value for name, value in about.items() if value is not None}}


def from_arguments(texts: Iterable[str]) -> list[Prompt]:
    """Return one prompt for each text, with ids "0", "1", ...; an empty one is a `UserError`."""
    return [
        from_value(text, prompt_id=str(index), source=f"prompt argument {index + 1}")
        for index, text in enumerate(texts)
    ]


def read(path: Path | str) -> list[Prompt]:
    """Return the prompts of a file, or of standard input for "-", in order.

    JSONL where the name ends in .jsonl or .json, else where the first line with anything on it starts
    with "{"; plain text otherwise. Refuses with a `UserError` naming file and line: a file that is
    missing, empty or unreadable, invalid UTF-8, broken JSON or JSON of another shape, an empty prompt,
    an id seen before, and a line of more than 1 MB.
    """
    name = "standard input" if str(path) == "-" else str(path)
    as_json = True if Path(path).suffix.lower() in (".jsonl", ".json") else None
    try:
        with open_input(path) as stream:
            found = unique(_prompts(lines(stream, name), name, as_json))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read prompts from {name}: {reason}; check the path") from None
    if not found:
        raise UserError(f"{name} is empty: there are no prompts in it; write one prompt a line")
    return found


def from_value(value: object, *, prompt_id: str, source: str) -> Prompt:
    """Return the prompt that a string, {"text": ...}, {"messages": ...} or a list of messages stands for.

    Beside "text" or "messages" there may be the "answer" and the "group", each a string or a number, and
    "betas", the strengths of rewards after this prompt.
    """
    text, messages, about = value, value, dict[str, Any]()
    if isinstance(value, Mapping):
        text, messages, about = value.get("text"), value.get("messages"), _about(value, source)
    if isinstance(text, str):
        return Prompt(prompt_id, _checked_text(text, source), None, source, **about)
    if isinstance(messages, list | tuple):
        return Prompt(prompt_id, None, _checked_messages(messages, source), source, **about)
    raise UserError(f"{source}: this is no prompt: {shown(value)}; {FORMS}")


def lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without its line end), holding one line at a time."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + len(b"\r\n")):
        number += 1
        where = f"{name}, line {number}"
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        if len(raw) > MAX_LINE_BYTES:
            raise UserError(f"{where}: more than {MAX_LINE_BYTES} bytes; shorten it or split it")
        text = decode_line(raw, where)
        yield number, text.removeprefix(_BOM) if number == 1 else text


def _prompts(numbered: Iterable[tuple[int, str]], name: str, as_json: bool | None) -> Iterator[Prompt]:
    """Yield the prompts. A blank line is an empty prompt in plain text, unless only blank ones follow."""
    blank = 0
    for number, line in numbered:
        if not line.strip():
            blank = blank or number
            continue
        if as_json is None:
            as_json = line.lstrip().startswith("{")
        where = f"{name}, line {number}"
        if as_json:
            yield _from_json(line, str(number - 1), where)
        elif blank:
            raise UserError(f"{name}, line {blank}: empty prompt; delete the blank line")
        else:
            yield from_value(line, prompt_id=str(number - 1), source=where)


def _from_json(line: str, default_id: str, where: str) -> Prompt:
    return from_record(parse_line(line, where, FORMS), default_id=default_id, where=where)


def from_record(record: object, *, default_id: str, where: str) -> Prompt:
    """Return the prompt of a line's JSON value, with "id", "answer", "group" and "betas" if it has them."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: a prompt must be an object, not {shown(record)}; {FORMS}")
    present = [key for key in ("prompt", "messages") if key in record]
    if len(present) != 1:
        seen = "both" if present else f"neither, only the keys {shown(list(record))}"
        raise UserError(f'{where}: expected one of "prompt" and "messages", found {seen}; {FORMS}')
    value = record["prompt"] if "prompt" in record else {"messages": record["messages"]}
    prompt = from_value(value, prompt_id=_id_of(record, default_id, where), source=where)
    return replace(prompt, **{key: said for key, said in _about(record, where).items() if said is not None})


def _about(record: Mapping[str, object], where: str) -> dict[str, Any]:
    """Return what is said beside a prompt, by the names of `Prompt`; None where nothing is."""
    answer, group = _label_of(record, "answer", where), _label_of(record, "group", where)
    return {"answer": answer, "group": group, "betas": _betas_of(record, where)}


def _id_of(record: Mapping[str, object], default: str, where: str) -> str:
    for key in ("id", "md5_hash"):
        value = record.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UserError(f'{where}: "{key}" must be a string, not {shown(value)}; put it in quotes')
        return _checked_text(str(value), where, what=f'"{key}"')
    return default


def _label_of(record: Mapping[str, object], key: str, where: str) -> str | None:
    value = record.get(key)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number and not isinstance(value, str):
        raise UserError(f'{where}: "{key}" must be a string or a number, not {shown(value)}; mend it')
    return _checked_text(str(value), where, what=f'"{key}"')


def _betas_of(record: Mapping[str, object], where: str) -> dict[str, float] | None:
    betas = record.get("betas")
    if betas is None:
        return None
    if not isinstance(betas, Mapping):
        raise UserError(f'{where}: "betas" must be like {{"positive": 2.0}}, not {shown(betas)}; mend it')
    for name, beta in betas.items():
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not abs(beta) <= LARGEST:
            raise UserError(f"{where}: the beta of {name!r} must be a finite number, not {shown(beta)}")
    return {str(name): float(beta) for name, beta in betas.items()} or None


def _checked_messages(messages: Sequence[object], where: str) -> tuple[dict[str, Any], ...]:
    if not messages:
        raise UserError(f"{where}: the list of messages is empty; {FORMS}")
    checked = tuple(_checked_message(each, f"{where}, message {i}") for i, each in enumerate(messages, 1))
    _checked_text(checked[-1]["content"], where, what="last message")
    return checked


def _checked_message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UserError(f"{where}: a message must be an object, not {shown(message)}; {FORMS}")
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise UserError(f'{where}: "{key}" must be a string, not {shown(message.get(key))}; {FORMS}')
    _checked_text(message["role"], where, what='"role"')
    _encodable(message["content"], where)
    return dict(message)


def _checked_text(text: str, where: str, what: str = "prompt") -> str:
    if not text.strip():
        raise UserError(f"{where}: empty {what} ({text!r}); write some text there or take it out")
    return _encodable(text, where)


def _encodable(text: str, where: str) -> str:
    """Return the text; refuse lone surrogates, which no tokenizer takes (bad bytes in an argument)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        bad = ascii(text[error.start])
        raise UserError(f"{where}: invalid Unicode, {bad} at character {error.start}; send UTF-8") from None
    return text


def unique(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the prompts; a `UserError` names both places of an id that stands twice."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        if prompt.id in first:
            raise UserError(
                f"{prompt.source}: the id {shown(prompt.id)} was used before, at {first[prompt.id].source}; "
                "make the ids unique or leave them out"
            )
        first[prompt.id] = prompt
    return list(first.values())
