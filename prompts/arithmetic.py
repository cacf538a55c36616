"""Arithmetic problems of graded difficulty, made by a seed: sums, differences, products, short stories.

    python -m prompts.arithmetic --n 400 --split test --seed 1 --output problems.jsonl

Each prompt is a question after worked examples, so that a plain language model answers in one line that
ends in the number. Whether a problem is for training or for testing depends on its kind and its numbers
alone: no test problem has a twin in training, whatever the seeds.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError
from prompts.reading import Prompt

Split = Literal["train", "test"]
TEST_SHARE = 4  # one number combination in so many is for testing
NAMES = ("Tom", "Mia", "Ben", "Ana", "Leo", "Eva", "Sam", "Zoe", "Max", "Ida")
THINGS = ("apples", "pens", "books", "stamps", "shells", "coins", "cards", "eggs", "plums", "keys")
EXAMPLES = (
    ("What is 6 + 17?", "6 + 17 = 23", 23),
    ("Kim has 9 plums and eats 2 of them. How many plums are left?", "9 - 2 = 7", 7),
    ("Kim has 4 trays with 3 cups on each. How many cups does Kim have?", "4 * 3 = 12", 12),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem: its grade from 1 (easy) to 4, the ranges of its numbers, question and answer.

    ask takes the numbers and, in a story, a name and a thing; solve takes the numbers.
    """

    grade: int
    ranges: tuple[range, ...]
    ask: Callable[..., str]
    solve: Callable[..., int]


@dataclass(frozen=True, slots=True)
class Question:
    """A problem before it is worded for a model. numbers: the kind and its numbers, which twins share."""

    id: str
    question: str
    answer: int
    numbers: str


KINDS = {
    "product": Kind(2, (range(2, 10), range(2, 31)), lambda a, b: f"What is {a} * {b}?", lambda a, b: a * b),
    "bags": Kind(
        1,
        (range(2, 6), range(2, 10)),
        lambda a, b, who, what: (
            f"{who} has {a} bags with {b} {what} in each. How many {what} does {who} have?"
        ),
        lambda a, b: a * b,
    ),
    "sum": Kind(2, (range(10, 100), range(2, 10)), lambda a, b: f"What is {a} + {b}?", lambda a, b: a + b),
    "buys": Kind(
        2,
        (range(3, 21), range(2, 10)),
        lambda a, b, who, what: (
            f"{who} has {a} {what} and buys {b} more. How many {what} does {who} have now?"
        ),
        lambda a, b: a + b,
    ),
    "sum_of_two_digits": Kind(
        3, (range(10, 100), range(10, 100)), lambda a, b: f"What is {a} + {b}?", lambda a, b: a + b
    ),
    "gives": Kind(
        3,
        (range(10, 21), range(2, 10)),
        lambda a, b, who, what: f"{who} has {a} {what} and gives {b} away. How many {what} are left?",
        lambda a, b: a - b,
    ),
    "difference": Kind(
        3, (range(10, 100), range(2, 10)), lambda a, b: f"What is {a} - {b}?", lambda a, b: a - b
    ),
    "sum_of_three": Kind(
        4, (range(2, 10),) * 3, lambda a, b, c: f"What is {a} + {b} + {c}?", lambda a, b, c: a + b + c
    ),
}
STORIES = ("bags", "buys", "gives")


def problems(n: int, *, split: Split, seed: int = 0, grades: tuple[int, ...] = ()) -> list[Prompt]:
    """Return the n `questions` as prompts with their answers, each after the worked examples."""
    return [
        Prompt(id=each.id, text=after_examples(each.question), answer=str(each.answer), group=each.numbers)
        for each in questions(n, split=split, seed=seed, grades=grades)
    ]


def after_examples(question: str) -> str:
    """Return a question for a plain language model, after worked examples that end in "The answer is"."""
    shown = "".join(f"Question: {q}\nAnswer: {steps}. The answer is {a}.\n\n" for q, steps, a in EXAMPLES)
    return f"{shown}Question: {question}\nAnswer:"


def questions(n: int, *, split: Split, seed: int = 0, grades: tuple[int, ...] = ()) -> list[Question]:
    """Return n different problems, the kinds in turn.

    split: "train" and "test" share no kind with the same numbers, in whatever order.
    grades: only those; all by default.
    Raises UserError for n below 1, a grade that does not exist, and more problems than there are.
    """
    kinds = [name for name, kind in KINDS.items() if not grades or kind.grade in grades]
    known = sorted({kind.grade for kind in KINDS.values()})
    if n < 1 or not set(grades) <= set(known):
        raise UserError(f"{n} problems of grades {list(grades)}: give at least 1, of grades among {known}")
    drawn = {name: _draw(name, split, random.Random(f"{seed} {name}")) for name in kinds}
    found: list[Question] = []
    while len(found) < n and drawn:
        for name in list(drawn)[: n - len(found)]:
            problem = next(drawn[name], None)
            if problem is None:  # a kind of few numbers is used up; the others go on
                del drawn[name]
            else:
                found.append(Question(f"{name}-{split}-{seed}-{len(found)}", *problem))
    if len(found) < n:
        raise UserError(f"there are only {len(found)} such {split} problems, not {n}: ask for fewer")
    return found


def _draw(name: str, split: Split, rng: random.Random) -> Iterator[tuple[str, int, str]]:
    """Yield different questions of a kind, their answers and numbers, in random order, until none is left."""
    kind = KINDS[name]
    stories = [*product(NAMES, THINGS)] if name in STORIES else [()]
    numbers = [each for each in product(*kind.ranges) if _split_of(name, each) == split]
    everything = [*product(numbers, stories)]
    rng.shuffle(everything)
    for chosen, story in everything:
        yield kind.ask(*chosen, *story), kind.solve(*chosen), _twins(name, chosen)


def _twins(name: str, numbers: tuple[int, ...]) -> str:
    return f"{name} {sorted(numbers)}"  # 12 + 34 and 34 + 12 are twins


def _split_of(name: str, numbers: tuple[int, ...]) -> Split:
    digest = hashlib.sha256(_twins(name, numbers).encode()).digest()
    return "test" if digest[0] % TEST_SHARE == 0 else "train"


def arithmetic(
    n: Annotated[int, typer.Option(help="Problems.")] = 400,
    split: Annotated[Split, typer.Option(help="The two share no numbers of a kind.")] = "test",
    seed: Annotated[int, typer.Option(help="Of the problems.")] = 0,
    grade: Annotated[list[int] | None, typer.Option(help="Only this grade, 1 to 4; repeat. [all]")] = None,
    output: Annotated[Path | None, typer.Option(help="JSONL file; standard output if left out.")] = None,
) -> None:
    """Write arithmetic problems with their answers, one JSON object a line: id, prompt, answer, group.

    Problems of a group have the same numbers: whoever splits the training problems keeps them together.
    """
    found = problems(n, split=split, seed=seed, grades=tuple(grade or ()))
    records = [{"id": p.id, "prompt": p.text, "answer": p.answer, "group": p.group} for p in found]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if output is None:
        print(lines, end="")
        return
    try:
        output.write_text(lines, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {output} ({error.strerror}): give another --output") from None


app = make_app(arithmetic)

if __name__ == "__main__":
    run(app)
