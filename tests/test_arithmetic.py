"""The arithmetic generator: right answers, training apart from testing, the same from the same seed."""

from __future__ import annotations

import json
import math
import operator
import re
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest

from decoder.contracts import UserError
from prompts.answers import extract, is_correct
from prompts.arithmetic import EXAMPLES, KINDS, Split, problems, questions
from prompts.reading import Prompt, read
from tests.source import ROOT

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
STORIES = {"bags": "*", "trays": "*", "buys": "+", "gives": "-", "eats": "-"}


def solved(question: str) -> int:
    """Return the answer from the words of the question alone."""
    numbers = list(map(int, re.findall(r"\d+", question)))
    if asked := re.fullmatch(r"What is ([\d +*-]+)\?", question):
        signs = re.findall(r"[+*-]", asked[1])
        assert len(set(signs)) == 1
        assert len(signs) == len(numbers) - 1
        return reduce(SIGNS[signs[0]], numbers)
    (sign,) = {STORIES[word] for word in STORIES if re.search(rf"\b{word}\b", question)}
    assert len(numbers) == 2
    return SIGNS[sign](*numbers)


def last_question(prompt: Prompt) -> str:
    """Return what a prompt asks after its worked examples."""
    return re.findall(r"^Question: (.*)$", str(prompt.text), re.MULTILINE)[-1]


def numbers_of(split: Split, seed: int) -> set[tuple[str, tuple[str, ...]]]:
    """Return (kind, its numbers in order of size) of many problems."""
    made = questions(500, split=split, seed=seed)
    return {(each.id.split("-")[0], tuple(sorted(re.findall(r"\d+", each.question)))) for each in made}


def test_problems_of_the_same_numbers_are_one_group() -> None:
    groups: dict[str | None, set[tuple[str, ...]]] = {}
    for prompt in problems(500, split="train"):
        numbers = tuple(sorted(re.findall(r"\d+", last_question(prompt)), key=int))
        groups.setdefault(prompt.group, set()).add((prompt.id.split("-")[0], *numbers))
    assert all(len(alike) == 1 for alike in groups.values())
    assert 100 < len(groups) < 500


@pytest.mark.parametrize("grade", [1, 2, 3, 4])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_answers_are_right(split: Split, grade: int) -> None:
    made = problems(70, split=split, seed=7, grades=(grade,))
    assert [prompt.answer for prompt in made] == [str(solved(last_question(prompt))) for prompt in made]
    assert all(int(str(prompt.answer)) > 0 for prompt in made)
    assert {KINDS[prompt.id.split("-")[0]].grade for prompt in made} == {grade}


def test_a_wrong_solution_would_be_seen() -> None:
    assert solved("What is 12 - 5?") == 7
    assert solved("Tom has 3 bags with 4 pens in each. How many pens does Tom have?") == 12
    assert len({solved(f"Mia has 9 keys and {does}.") for does in ("buys 2 more", "gives 2 away")}) == 2


def test_the_worked_examples_are_right_and_read_as_answers() -> None:
    (made,) = problems(1, split="test")
    shown = re.findall(r"Question: (.*)\nAnswer: (.*)\n\n", str(made.text))
    assert len(shown) == len(EXAMPLES) == 3
    for question, said in shown:
        assert is_correct(said, str(solved(question)))
        assert extract(said.split(".")[0]) == str(solved(question))
    assert str(made.text).endswith(f"\n\nQuestion: {last_question(made)}\nAnswer:")


def test_training_and_testing_share_no_numbers_whatever_the_seeds() -> None:
    train = set[tuple[str, tuple[str, ...]]]().union(*(numbers_of("train", seed) for seed in range(6)))
    test = set[tuple[str, tuple[str, ...]]]().union(*(numbers_of("test", seed) for seed in range(6)))
    assert {kind for kind, _ in train} == {kind for kind, _ in test} == set(KINDS)
    assert len(test) > 200
    assert train & test == set()


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_problem_comes_twice(split: Split) -> None:
    made = problems(1200, split=split)
    assert len({prompt.text for prompt in made}) == len({prompt.id for prompt in made}) == 1200


def test_the_seed_tells_the_problems() -> None:
    assert problems(50, split="test", seed=3) == problems(50, split="test", seed=3)
    assert problems(50, split="test", seed=3)[:20] == problems(20, split="test", seed=3)
    texts = [{str(each.text) for each in problems(50, split="test", seed=seed)} for seed in (3, 4)]
    assert len(texts[0] & texts[1]) < 25


def test_the_kinds_take_turns() -> None:
    made = [prompt.id.split("-")[0] for prompt in problems(2 * len(KINDS) + 1, split="train")]
    assert made == [*KINDS, *KINDS, next(iter(KINDS))]


def test_every_problem_there_is_can_be_drawn_and_no_more() -> None:
    """A kind that is used up leaves the others their turns."""
    with pytest.raises(
        UserError, match=r"there are only \d+ such test problems, not 1000000: ask for fewer"
    ) as full:
        problems(1_000_000, split="test", grades=(2,))
    most = int(re.findall(r"only (\d+)", str(full.value))[0])
    with pytest.raises(UserError) as train:
        problems(1_000_000, split="train", grades=(2,))
    rest = int(re.findall(r"only (\d+)", str(train.value))[0])
    stories = 100  # of each pair of numbers, by ten names and ten things
    whole = sum(
        math.prod(map(len, kind.ranges)) * (stories if name == "buys" else 1)
        for name, kind in KINDS.items()
        if kind.grade == 2
    )
    assert most + rest == whole
    assert len(problems(most, split="test", grades=(2,))) == most


@pytest.mark.parametrize(("n", "grades"), [(0, ()), (-1, ()), (5, (9,)), (5, (1, 0))])
def test_what_there_is_not_is_refused(n: int, grades: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="give at least 1, of grades among"):
        problems(n, split="test", grades=grades)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-m", "prompts.arithmetic", *arguments]
    return subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_writes_what_the_reader_reads(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    done = command("--n", "30", "--split", "train", "--seed", "5", "--grade", "1", "--output", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert read(path) == problems(30, split="train", seed=5, grades=(1,))
    shown = command("--n", "2")
    assert [json.loads(line)["answer"] for line in shown.stdout.splitlines()] == [
        prompt.answer for prompt in problems(2, split="test")
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--n", "0"], "0 problems of grades []: give at least 1"),
        (["--grade", "9"], "of grades [9]: give at least 1, of grades among [1, 2, 3, 4]"),
        (["--output", "{folder}/none/problems.jsonl"], "No such file or directory"),
        (["--output", "{folder}"], "Is a directory"),
        (["--split", "dev"], "dev"),
        (["--n", "many"], "--n"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = command(*(each.format(folder=tmp_path) for each in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
