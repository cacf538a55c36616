"""Preference data sets as prompts, responses and pairs: where a prompt ends, and which responses are one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from decoder.append_file import write_failures
from decoder.contracts import UserError
from decoder.pending import to_json
from prompts.lines import shown
from prompts.reading import Prompt, from_value
from rewards.durable import write_temporary
from rewards.labelled_text import Source, parse_source
from rewards.tables import Table, open_table

TURN = "\n\nAssistant:"  # what the responder's turn begins with in dialogues written as one string
NOTHING: tuple[object, ...] = (None, "", [])
FORMS = 'give strings on both sides, or lists of messages like {"role": "user", "content": "..."}'
Message = Mapping[str, Any]
Messages = list[Message]


@dataclass(frozen=True, slots=True)
class PairColumns:
    """Where a table has the two sides and what stands before them; prompt None takes "prompt" if there."""

    prompt: str | None = None
    chosen: str = "chosen"
    rejected: str = "rejected"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was said before, as text or messages, and the two responses to it."""

    prompt: str | Messages
    chosen: str
    rejected: str

    def fault(self) -> str | None:
        """Return why nothing is learnt from it, None if something is."""
        if not self.chosen.strip() or not self.rejected.strip():
            return "with an empty response"
        last = self.prompt if isinstance(self.prompt, str) else "".join(_contents(self.prompt[-1:]))
        if not last.strip():
            return "without a prompt"
        return "with the same response twice" if self.chosen == self.rejected else None


@dataclass(slots=True)
class Preferences:
    """Distinct prompts with their distinct responses, and which was preferred.

    prompts: with the ids "0", "1", ... in order. responses: of each, text -> its sample index.
    pairs: (prompt, chosen, rejected), all numbers, in file order. left_out: reason -> pairs left out for it.
    """

    prompts: list[Prompt] = field(default_factory=list)
    responses: list[dict[str, int]] = field(default_factory=list)
    pairs: list[tuple[int, int, int]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def files(self) -> dict[str, Iterator[Mapping[str, Any]]]:
        """Return name -> the records of each file, as embedding, training and generation read them."""
        said = [prompt.text if prompt.messages is None else list(prompt.messages) for prompt in self.prompts]
        responses = (
            {"prompt_id": str(number), "sample_index": index, "prompt": said[number], "text": text}
            for number, texts in enumerate(self.responses)
            for text, index in texts.items()
        )
        pairs = ({"prompt_id": str(n), "chosen": won, "rejected": lost} for n, won, lost in self.pairs)
        prompts = ({"id": str(number), "prompt": prompt} for number, prompt in enumerate(said))
        return {"responses.jsonl": responses, "pairs.jsonl": pairs, "prompts.jsonl": prompts}


def read_comparisons(
    data: str, columns: PairColumns, turn: str, limit: int | None = None
) -> Iterator[tuple[str, Comparison]]:
    """Yield (where it stands, the comparison) of each row, at most `limit`, faulty ones too.

    data: a table as `open_table` reads it, PATH or PATH::split=NAME,subset=NAME. Raises UserError naming file
    and line: as `open_table`, a missing column, and cells that are neither strings nor messages.
    """
    if not turn:
        raise UserError("--turn is empty: give what a response begins with, such as '\\n\\nAssistant:'")
    source = parse_source(data, Source(""))
    if source.text or source.labels or source.positive:
        raise UserError(f"{data!r}: only split= and subset= may stand there; name columns by options")
    asked = [name for name in (columns.prompt, columns.chosen, columns.rejected) if name is not None]
    header = not all(name.isdigit() for name in asked)
    table = open_table(source.path, header=header, split=source.split, subset=source.subset)
    names = _columns(table, source.path, columns)
    for where, cells in islice(table.rows(names), limit):
        *given, chosen, rejected = cells
        prompt = None if not given else "" if given[0] is None else given[0]
        yield where, compare(prompt, chosen, rejected, turn, where)


def compare(prompt: object, chosen: object, rejected: object, turn: str, where: str) -> Comparison:
    """Return what a row compares; an empty side empties both. prompt: None where there is no such column.

    Strings with a prompt are the responses themselves; without one, `split_texts` finds it. Of lists of
    messages, `split_messages` does, after the prompt is put before those that lack it.
    """
    if chosen in NOTHING or rejected in NOTHING:
        return Comparison("", "", "")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return split_texts(chosen, rejected, turn)
        return Comparison(prompt if isinstance(prompt, str) else _messages(prompt, where), chosen, rejected)
    sides = [_messages(side, where) for side in (chosen, rejected)]
    return split_messages(*(side if prompt is None else _after(prompt, side, where) for side in sides))


def split_texts(chosen: str, rejected: str, turn: str = TURN) -> Comparison:
    """Return two dialogues as a prompt, up to and with the last `turn` that both begin with, and the rest.

    Where the dialogues part before their last turn, the rest holds several turns: all of it is the response.
    Without a common turn the prompt is "".
    """
    common = chosen[: _n_common(chosen, rejected)]
    end = common.rfind(turn) + len(turn) if turn in common else 0
    return Comparison(common[:end], chosen[end:], rejected[end:])


def split_messages(chosen: Messages, rejected: Messages) -> Comparison:
    """Return two conversations as the messages that both begin with, and the contents of the rest.

    The prompt is all but the last message where the two agree in that, and else ends where both hand over to
    the speaker of the last. Several contents are joined by line breaks.
    """
    n_common = _n_common(chosen[:-1], rejected[:-1])
    speaker = chosen[-1]["role"]
    turns = [i for i in range(n_common + 1) if chosen[i]["role"] == rejected[i]["role"] == speaker]
    end = max(turns, default=0)
    return Comparison(chosen[:end], *("\n".join(_contents(side[end:])) for side in (chosen, rejected)))


def collect(comparisons: Iterable[tuple[str, Comparison]]) -> Preferences:
    """Return the preferences, each prompt and each response of a prompt once; faulty ones are counted.

    Raises UserError naming file and line for invalid Unicode, and if nothing is left.
    """
    found = Preferences()
    numbers: dict[bytes, int] = {}
    for where, each in comparisons:
        fault = each.fault()
        if fault is not None:
            found.left_out[fault] += 1
            continue
        number = numbers.setdefault(to_json(each.prompt), len(numbers))
        if number == len(found.prompts):
            found.prompts.append(from_value(each.prompt, prompt_id=str(number), source=where))
            found.responses.append({})
        won, lost = (_index(found.responses[number], text, where) for text in (each.chosen, each.rejected))
        found.pairs.append((number, won, lost))
    if not found.pairs:
        why = reasons(found.left_out) or "there is no row"
        raise UserError(
            f"no pair is left ({why}): name the columns (--prompt-column, --chosen-column, "
            "--rejected-column) or what a response begins with (--turn)"
        )
    return found


def reasons(left_out: Mapping[str, int]) -> str:
    """Return "2 without a prompt, 1 with an empty response", "" for nothing."""
    return ", ".join(f"{n} {reason}" for reason, n in left_out.items())


def save(folder: Path, found: Preferences) -> None:
    """Write the files of preferences into a folder, in place of older ones. UserError where it cannot be."""
    with write_failures(folder, "give another --output"):
        folder.mkdir(parents=True, exist_ok=True)
        halves = {  # moved only when all are whole: one run's pairs say nothing about another's responses
            folder / name: write_temporary(folder / name, b"".join(to_json(each) + b"\n" for each in records))
            for name, records in found.files().items()
        }
        for path, half in halves.items():
            half.replace(path)


def _columns(table: Table, path: str, columns: PairColumns) -> list[str]:
    """Return the columns to read, the prompt's first if there is one."""
    prompt = columns.prompt or ("prompt" if "prompt" in table.columns else None)
    asked = {
        "--prompt-column": prompt,
        "--chosen-column": columns.chosen,
        "--rejected-column": columns.rejected,
    }
    names = {option: name for option, name in asked.items() if name is not None}
    for option, name in names.items():
        if name not in table.columns:
            seen = ", ".join(table.columns[:20])
            raise UserError(f"{path} has no column {name!r}: it has {seen}: name one with {option}")
    return list(names.values())


def _messages(value: object, where: str) -> Messages:
    """Return the messages of a cell, checked."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(f"{where}: expected messages, not {shown(value)}; {FORMS}")
    for message in value:
        is_message = isinstance(message, Mapping)
        if not is_message or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UserError(f"{where}: this is no message: {shown(message)}; {FORMS}")
    return list(value)


def _contents(messages: Messages) -> list[str]:
    return [message["content"] for message in messages]


def _n_common(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many elements two sequences both begin with."""
    differing = (i for i, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(differing, min(len(one), len(other)))


def _after(prompt: object, side: Messages, where: str) -> Messages:
    """Return a side as the whole conversation; one that has the prompt in itself stays as it is."""
    if isinstance(prompt, str):  # beside whole conversations it repeats their question
        return side if len(side) > 1 else [{"role": "user", "content": prompt}, *side]
    before = _messages(prompt, where)
    return side if side[: len(before)] == before else [*before, *side]


def _index(responses: dict[str, int], text: str, where: str) -> int:
    """Return the sample index of a response, a new one if it was not seen."""
    from_value(text, prompt_id="", source=where)  # refuses what no tokenizer takes
    return responses.setdefault(text, len(responses))
