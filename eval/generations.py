"""Generations to evaluate, from anybody's file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from decoder.contracts import UserError
from eval.formats import FORMS, Layout, Row, layout_of, parsed, row_of
from prompts.lines import decode_line, open_input, shown

_BOM = b"\xef\xbb\xbf"


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


def read_generations(path: Path | str) -> list[PromptSamples]:
    """Return the prompts of a JSONL file, or of standard input for "-", with their samples, in file order.

    The keys of the first line tell the format, and every line must have it:
    - {"prompt", "generations": [{"text", ...}, ...]}: DExperts, RAD and Tiller;
    - {"prompt", "completions" | "responses" | "outputs" | "samples": [...]}: a line a prompt;
    - {"prompt", "continuation": {"text", scores ...}}: RealToxicityPrompts, one sample a prompt;
    - {"doc_id", "arguments", "resps"}: `lm_eval --log_samples` of a generation task. The context is the
      prompt, the unfiltered responses are the samples; the copy that each further filter writes is skipped;
    - {"prompt", "text" | "completion" | "response" | "output" | "generation" | "generated_text" |
      "continuation": "..."}: a line a sample. Lines of one prompt id are samples of one prompt, wherever they
      stand; without ids, lines of one prompt text are;
    - {"text"} alone: a line a text, after the prompt "".

    "prompt" is a string, {"text"}, [messages] or {"messages"}. A chat becomes the contents of its messages,
    each ended by a line break, since its template is not known here. A sample in a list is {"text", ...} or
    a string, which stands for {"text": string}. A text of null (a generation that failed) reads as "".
    id: "prompt_id", "id" or "md5_hash" (lm-eval: "doc_id"), else the prompt's number from 0, as Tiller
    numbers prompts without ids. Raises `UserError`, with file and line: missing, unreadable or empty
    file, invalid UTF-8, broken JSON, missing field, text that is no string, no generations, an id that
    was used before, mixed formats.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        with open_input(path) as stream:
            prompts = _prompts(_rows(stream, name))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read generations from {name}: {reason}; check the path") from None
    if not prompts:
        raise UserError(f"{name} is empty: there are no generations in it; {FORMS}")
    return prompts


def _rows(stream: BinaryIO, name: str) -> Iterator[Row]:
    """Yield what each line holds; blank lines hold nothing."""
    first: tuple[Layout, str] | None = None
    for number, raw in enumerate(stream, start=1):
        line = raw.removeprefix(_BOM) if number == 1 else raw
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        record = parsed(decode_line(line.rstrip(b"\r\n"), where), where)
        layout = layout_of(record, where)
        first = first or (layout, where)
        if layout != first[0]:
            raise UserError(
                f"{where}: mixed formats: {layout} here, {first[0]} at {first[1]}; split the file"
            )
        yield row_of(record, layout, where)


def _prompts(rows: Iterable[Row]) -> list[PromptSamples]:
    """Return one prompt for all rows that share it."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        group = groups.setdefault(_key(row), [])
        if group and _is_copy(row, group[0]):
            continue
        if group:
            _require_joins(row, group[0])
        group.append(row)
    prompts = [_joined(group, str(number)) for number, group in enumerate(groups.values())]
    _require_unique(prompts)
    return prompts


def _key(row: Row) -> tuple[str, str]:
    """Return what rows of one prompt have in common."""
    if row.id is not None:
        return "id", row.id
    return ("prompt", row.prompt) if row.joins else ("source", row.source)


def _is_copy(row: Row, first: Row) -> bool:
    """Return whether this is the line that another filter of lm-eval wrote about the same samples."""
    same = (row.prompt, row.texts) == (first.prompt, first.texts)
    return same and row.variant != first.variant


def _require_joins(row: Row, first: Row) -> None:
    if not row.joins:
        raise _used_before(row.id or "", row.source, first.source)
    if row.prompt != first.prompt:
        raise UserError(
            f"{row.source}: the id {shown(row.id)} stands for the prompt {shown(row.prompt)} here and for "
            f"{shown(first.prompt)} at {first.source}; give each prompt an id of its own"
        )


def _joined(rows: list[Row], number: str) -> PromptSamples:
    first = rows[0]
    return PromptSamples(
        id=number if first.id is None else first.id,
        prompt=first.prompt,
        texts=tuple(text for row in rows for text in row.texts),
        records=tuple(record for row in rows for record in row.records),
        source=first.source,
    )


def _require_unique(prompts: Iterable[PromptSamples]) -> None:
    """Refuse an id that equals the number of a prompt without one."""
    first: dict[str, str] = {}
    for prompt in prompts:
        if prompt.id in first:
            raise _used_before(prompt.id, prompt.source, first[prompt.id])
        first[prompt.id] = prompt.source


def _used_before(prompt_id: str, source: str, first: str) -> UserError:
    return UserError(
        f"{source}: the id {shown(prompt_id)} was used before, at {first}; "
        "make the ids unique or leave them all out"
    )
