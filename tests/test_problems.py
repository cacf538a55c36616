"""Problems from every source come as prompts with bare answers; every mistake names its place."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from decoder.contracts import UserError
from prompts import answers
from prompts.answers import is_correct
from prompts.arithmetic import problems
from prompts.problems import read_problems
from prompts.reading import Prompt, read

GSM8K = [
    {
        "question": "A van holds 12 crates. How many crates do 100 vans hold?",
        "answer": "Each holds 12.\nThat is 12*100=<<12*100=1200>>1200.\n#### 1,200",
    },
    {"question": "Ida had 3 tickets and lost one. How many are left?", "answer": "3-1=2\n#### 2"},
]
MATH = [
    {
        "problem": "Double $\\frac{1}{6}$.",
        "solution": "Twice it is \\boxed{\\frac{2}{6}}, that is $\\boxed{\\frac{1}{3}}$.",
        "answer": "\\frac{1}{3}",
        "unique_id": "own/1.json",
    },
    {"problem": "Factor $a^2 - b^2$.", "solution": "We get $\\boxed{(a - b)(a + b)}$."},
]


def written(tmp_path: Path, *records: Any) -> str:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def refusal(source: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_problems(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(problem: Prompt) -> str:
    """Return the text of the one message of a chat."""
    assert problem.messages is not None
    (message,) = problem.messages
    assert message["role"] == "user"
    return str(message["content"])


def test_gsm8k(tmp_path: Path) -> None:
    found = read_problems(written(tmp_path, *GSM8K))
    assert [problem.answer for problem in found] == ["1,200", "2"]
    assert [problem.id for problem in found] == ["0", "1"]
    for problem, record in zip(found, GSM8K, strict=True):
        assert said(problem).startswith(f"{record['question']}\n")
        assert '"The answer is"' in said(problem)
        assert is_correct(record["answer"], str(problem.answer)) is True
        assert is_correct(record["answer"], "7") is False


def test_math(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    found = read_problems(written(tmp_path, *MATH))
    assert [problem.id for problem in found] == ["own/1.json", "1"]
    assert [problem.answer for problem in found] == [r"\frac{1}{3}", "(a - b)(a + b)"]
    assert all(r"\boxed{}" in said(problem) for problem in found)
    assert is_correct(r"It is \boxed{b(-b) + a \cdot a}.", str(found[1].answer)) is True
    assert [is_correct(record["solution"], str(p.answer)) for record, p in zip(MATH, found, strict=True)] == [
        True,
        True,
    ]


def test_any_jsonl_with_answers(tmp_path: Path) -> None:
    user = {"role": "user", "content": "Hi, 2 + 2?"}
    records = [
        {"prompt": "2 + 2 =", "answer": 4},
        {"prompt": {"text": "4 / 8 =", "answer": "1/2"}, "id": "half"},
        {"messages": [user], "answer": 4.5},
        {"question": "What is 1 + 1?", "answer": "2", "prompt": None},
    ]
    found = read_problems(written(tmp_path, *records), style="plain")
    assert found[:3] == [
        Prompt("0", text="2 + 2 =", answer="4"),
        Prompt("half", text="4 / 8 =", answer="1/2"),
        Prompt("2", messages=(user,), answer="4.5"),
    ]
    assert str(found[3].text).endswith("The answer is 12.\n\nQuestion: What is 1 + 1?\nAnswer:")


def test_problems_written_out_read_back_equal(tmp_path: Path) -> None:
    first = read_problems(written(tmp_path, *GSM8K))
    records = [{"id": problem.id, "prompt": problem.record()} for problem in first]
    path = written(tmp_path, *records)
    assert read_problems(path) == read(path) == first


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    path = written(tmp_path, GSM8K[0], {"question": "broken"})
    assert len(read_problems(path, limit=1)) == 1
    assert "line 2: has no answer" in refusal(path)
    assert "limit of 0 problems" in refusal(path, limit=0)


def test_arithmetic_by_name() -> None:
    assert read_problems("arithmetic:train:12:3") == problems(12, split="train", seed=3)
    assert read_problems("arithmetic", limit=5) == problems(5, split="test")
    assert read_problems("arithmetic:test:30", limit=5) == problems(30, split="test")[:5]
    assert len(read_problems("arithmetic", split="train")) == 400
    chat = read_problems("arithmetic:train:12:3", style="chat")
    plain = read_problems("arithmetic:train:12:3")
    assert [(each.id, each.answer) for each in chat] == [(each.id, each.answer) for each in plain]
    for each, other in zip(chat, plain, strict=True):
        assert said(each).split("\n")[0] == str(other.text).split("Question: ")[-1].removesuffix("\nAnswer:")


@pytest.mark.parametrize(
    "name", ["arithmetic:dev", "arithmetic:test:many", "arithmetic:test:5:-1", "arithmetic:test:5:1:2"]
)
def test_a_wrong_arithmetic_name_is_refused(name: str) -> None:
    assert "write arithmetic[:SPLIT[:N[:SEED]]]" in refusal(name)


def test_arithmetic_of_none_is_refused() -> None:
    assert "give at least 1" in refusal("arithmetic:test:0")
    assert "split 'validation'" in refusal("arithmetic", split="validation")


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        ({"question": "a"}, ["has no answer", '["question"]', '"####"']),
        ({"question": "a", "answer": "thought\n#### "}, ["has no answer"]),
        ({"question": "a", "answer": None}, ["has no answer"]),
        ({"problem": "a", "solution": "it is 5"}, ["has no answer", "boxed"]),
        ({"prompt": "a"}, ["has no answer"]),
        ({"question": "a", "answer": ["5"]}, ['"answer" must be a string or a number, not ["5"]']),
        ({"question": "a", "answer": True}, ['"answer" must be', "true"]),
        ({"question": "a", "answer": float("nan")}, ['"answer" must be', "NaN"]),
        ({"question": "a", "answer": float("inf")}, ['"answer" must be', "Infinity"]),
        ({"question": "a", "answer": " "}, ['empty "answer"']),
        ({"question": "a", "problem": "b", "answer": "5"}, ['found ["question", "problem"]']),
        ({"answer": "5"}, ["found []", "use {"]),
        ({"question": 5, "answer": "5"}, ['"question" must be a text, not 5']),
        ({"problem": " ", "answer": "5"}, ['"problem" must be a text']),
        ({"prompt": 5, "answer": "5"}, ["no prompt: 5"]),
        (["a"], ['a problem must be an object, not ["a"]']),
        ({"question": "a", "answer": "5", "id": 1.5}, ['"id" must be a string']),
        ({"question": "a", "answer": "5", "id": "0"}, ["used before", "line 1"]),
    ],
)
def test_a_mistake_is_named_with_file_and_line(tmp_path: Path, record: Any, parts: list[str]) -> None:
    path = written(tmp_path, {"question": "fine", "answer": "1"}, record)
    message = refusal(path)
    assert message.startswith(f"{path}, line 2: ")
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "is empty: there are no problems"),
        ("\n \n", "is empty"),
        ('{"question": "a"\n', "line 1: broken JSON"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(content)
    assert part in refusal(str(path))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_bytes(b'{"question": "a", "answer": "1"}\n{"question": "caf\xe9"}\n')
    assert "line 2: invalid UTF-8" in refusal(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(str(tmp_path / "none.jsonl"))
    assert "No such file" in refusal("data/none.jsonl")  # no name of a data set


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in [*GSM8K, {"question": "a"}])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert "standard input, line 3: has no answer" in refusal("-")


def test_a_data_set_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "own/set needs datasets: pip install 'tiller-lm[train]'" in refusal("own/set")


def test_a_data_set(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in GSM8K))
    found = read_problems(str(tmp_path), split="train")
    assert [problem.answer for problem in found] == ["1,200", "2"]
    assert found[1].source == f"{tmp_path}, row 2"
    assert "split 'test'" in refusal(str(tmp_path))
    assert "check the name" in refusal("nobody/nothing-of-this-name")


def test_a_missing_checker_is_told_before_anything_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers._checker.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert len(read_problems(written(tmp_path, *GSM8K, {"question": "a", "answer": "Rome"}))) == 3
    assert "tiller-lm[tasks]" in refusal(written(tmp_path, *MATH))
