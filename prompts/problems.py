r"""Problems with verifiable answers: our own arithmetic, GSM8K, MATH, any JSONL with an answer.

`prompts.answers.is_correct(sample, problem.answer)` says whether a sample solves one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from decoder.contracts import UserError
from prompts.answers import boxed, require_checker
from prompts.arithmetic import Split, after_examples, questions
from prompts.lines import open_input, parse_line, shown
from prompts.reading import Prompt, from_record, lines, unique

Style = Literal["plain", "chat"]
Place = tuple[str, object]  # where a record stands, for messages to people; the record
ASKED = ("prompt", "messages", "question", "problem")
CONFIGURATIONS = {"openai/gsm8k": "main"}  # which part of a data set on the hub that has several
ARITHMETIC = "arithmetic[:SPLIT[:N[:SEED]]], such as arithmetic:test:400:0"
FORMS = (
    'use {"question": "...", "answer": "..."} (or problem, prompt, messages), GSM8K\'s form with "####" '
    'before the number in "answer", or MATH\'s with \\boxed{} in "solution"'
)
SAY = 'Work it out step by step and end with "The answer is" and the answer.'
BOX = r"Work it out step by step and put the final answer in \boxed{}."


def read_problems(
    source: str, *, limit: int | None = None, split: str = "test", style: Style | None = None
) -> list[Prompt]:
    """Return the problems of a source as prompts that all have an answer, in order, at most limit of them.

    source: "arithmetic" or "arithmetic:SPLIT:N:SEED" (400 problems with seed 0 unless told), our generator;
        a JSONL file, "-" for standard input; or a data set on the hub, such as openai/gsm8k or
        HuggingFaceH4/MATH-500, or a folder with one. A record says what is asked as "question" or
        "problem", or as a whole "prompt" or "messages"; what is right as "answer", where in GSM8K the
        number stands after "####", or, as in MATH, as the last \\boxed{} of its "solution".
    split: which part of the generator or data set, "train" or "test"; a file has none.
    style: how a question is asked. "chat": a user's message that asks for steps and for an ending that
        `prompts.answers` reads ("The answer is", for a "problem" \\boxed{}); for instruction-tuned models.
        "plain": a text after three worked examples; for base models. None: plain for arithmetic, else
        chat. A whole "prompt" or "messages" stays as it is.

    Raises UserError, with file and line: what `prompts.reading.read` refuses, and a record without answer
    or with several questions; a wrong name; a missing package: datasets, or math-verify where an answer
    is neither a number nor words.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} problems: give at least 1, or none for all")
    if source.split(":")[0] == "arithmetic":
        return _arithmetic(source, limit, split, style or "plain")
    places = islice(_places(source, split), limit)
    found = unique(_problem(*place, number, style or "chat") for number, place in enumerate(places))
    if not found:
        raise UserError(f"{source} is empty: there are no problems in it; {FORMS}")
    require_checker([str(problem.answer) for problem in found])
    return found


def _arithmetic(source: str, limit: int | None, split: str, style: Style) -> list[Prompt]:
    given = source.split(":")[1:]
    chosen, n, seed = [*given, *(split, str(limit or 400), "0")[len(given) :]][:3]
    if len(given) > 3 or chosen not in ("train", "test") or not n.isdecimal() or not seed.isdecimal():
        raise UserError(
            f"problems {source!r} of split {chosen!r}: write {ARITHMETIC}; SPLIT is train or test"
        )
    part: Split = "test" if chosen == "test" else "train"
    made = questions(int(n), split=part, seed=int(seed))[:limit]
    return [
        from_record(
            _asked(each.question, SAY, style) | {"answer": each.answer, "group": each.numbers},
            default_id=each.id,
            where=source,
        )
        for each in made
    ]


def _places(source: str, split: str) -> Iterator[Place]:
    path = Path(source)
    is_file = path.is_file() or path.suffix.lower() in (".jsonl", ".json", ".txt")
    if path.is_dir() or (not is_file and re.fullmatch(r"[\w.-]+/[\w.-]+", source)):
        return _hub_rows(source, split)
    return _file_lines(source)


def _file_lines(source: str) -> Iterator[Place]:
    name = "standard input" if source == "-" else source
    try:
        with open_input(source) as stream:
            for number, line in lines(stream, name):
                if line.strip():
                    where = f"{name}, line {number}"
                    yield where, parse_line(line, where, FORMS)
    except OSError as error:
        raise UserError(
            f"cannot read problems from {name} ({error.strerror or error}): check the path, or give "
            f"{ARITHMETIC}, or a data set OWNER/NAME"
        ) from None


def _hub_rows(source: str, split: str) -> Iterator[Place]:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"reading the data set {source} needs datasets: pip install 'tiller-lm[train]'"
        ) from None
    known = (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError)
    try:
        rows: Iterable[Any] = datasets.load_dataset(source, CONFIGURATIONS.get(source), split=split)
    except known as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"cannot load the data set {source!r}, split {split!r} ({reason}): check the name, or give a file"
        ) from None
    for number, row in enumerate(rows, start=1):
        yield f"{source}, row {number}", row


def _problem(where: str, record: object, number: int, style: Style) -> Prompt:
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: a problem must be an object, not {shown(record)}; {FORMS}")
    present = [key for key in ASKED if record.get(key) is not None]
    if len(present) != 1:
        raise UserError(f"{where}: expected one of {', '.join(ASKED)}, found {shown(present)}; {FORMS}")
    (key,) = present
    said: Mapping[str, object] = {key: record[key]}
    if key in ("question", "problem"):
        question = record[key]
        if not isinstance(question, str) or not question.strip():
            raise UserError(f'{where}: "{key}" must be a text, not {shown(question)}; {FORMS}')
        said = _asked(question, BOX if key == "problem" else SAY, style)
    prompt_id = record.get("id", record.get("unique_id"))
    known = {"id": prompt_id, "answer": record.get("answer"), "group": record.get("group")}
    return _answered(from_record({**said, **known}, default_id=str(number), where=where), record)


def _asked(question: str, ending: str, style: Style) -> dict[str, object]:
    """Return a question as the record of a prompt."""
    if style == "plain":
        return {"prompt": after_examples(question)}
    return {"messages": [{"role": "user", "content": f"{question}\n\n{ending}"}]}


def _answered(problem: Prompt, record: Mapping[str, object]) -> Prompt:
    """Return the problem with its bare answer; a `UserError` if it has none."""
    solution = record.get("solution")
    answer = problem.answer
    if answer is None and isinstance(solution, str):
        answer = boxed(solution)
    if answer is not None:
        answer = answer.rpartition("####")[2].strip()
    if not answer:
        raise UserError(f"{problem.source}: has no answer: found only {shown(list(record))}; {FORMS}")
    return replace(problem, answer=answer)
