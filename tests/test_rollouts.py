"""Rollouts from files: what is read, what is refused, how they are tokenised and split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from decoder.contracts import UserError
from prompts.reading import Prompt
from rewards import elhsr_losses
from rewards.rollouts import Rollout, Sample, check_labels, read_rollouts, split_by_prompt, tokenise_rollouts
from tests.tiny import BOS, EOS, tiny_tokenizer

CHAT = [{"role": "user", "content": "Is it raining?"}]


def line(prompt: object = None, generations: object = None, **more: Any) -> dict[str, Any]:
    samples = [{"text": " yes", "correct": 1}, {"text": " no", "correct": 0}]
    return {
        "prompt": {"text": "Is it raining?"} if prompt is None else prompt,
        "generations": samples if generations is None else generations,
        **more,
    }


def write(path: Path, *lines: object) -> Path:
    texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def rollout(text: str, labels: list[float]) -> Rollout:
    samples = tuple(Sample(" yes", None) for _ in labels)
    return Rollout(Prompt("0", text, source=f"FILE, line {len(text)}"), samples, np.array(labels))


def test_reading(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        line(id="first", generations=[{"text": " yes", "token_ids": [5, 1], "correct": True}]),
        "",
        line({"messages": CHAT}),
        line("plain"),
    )
    first, second, third = read_rollouts(file)
    assert first.prompt == Prompt("first", "Is it raining?")
    assert first.prompt.source == f"{file}, line 1"
    assert first.completions == (Sample(" yes", (5, 1)),)
    assert second.prompt == Prompt("1", messages=tuple(CHAT))
    assert second.prompt.source == f"{file}, line 3"
    assert third.prompt.text == "plain"
    assert [each.labels.tolist() for each in (first, second, third)] == [[1.0], [1.0, 0.0], [1.0, 0.0]]


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(line()).encode() + b"\r\n")
    assert len(read_rollouts(file)) == 1


def test_labels_by_name(tmp_path: Path) -> None:
    """A dotted name is a path, unless a field has that very name."""
    samples = [
        {"text": "a", "scores": {"sentiment": 0.9, "arm-v1.2": 3}, "b.c": 5},
        {"text": "b", "scores": {"sentiment": 0.4, "arm-v1.2": -3}, "b.c": 6},
    ]
    file = write(tmp_path / "a.jsonl", line(generations=samples))

    def labels(*arguments: Any) -> list[float]:
        return read_rollouts(file, *arguments)[0].labels.tolist()

    assert labels("scores.sentiment") == [0.9, 0.4]
    assert labels("scores.sentiment", 0.9) == [1.0, 0.0]
    assert labels("scores.arm-v1.2") == [3.0, -3.0]
    assert labels("b.c") == [5.0, 6.0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "a.jsonl is empty: there are no rollouts"),
        ([line(), "{"], "a.jsonl, line 2: broken JSON"),
        (["[1]"], r"line 1: a rollout must be an object, not \[1\]"),
        ([{"generations": []}], 'line 1: missing "prompt", found only the keys'),
        ([{"prompt": "a", "text": "b"}], 'line 1: missing "generations"'),
        ([line(), line({"words": 1})], "line 2: this is no prompt"),
        ([line({"text": " "})], "line 1: empty prompt"),
        ([line(generations=[])], 'line 1: "generations" must be a list with samples'),
        ([line(generations=["yes"])], 'line 1, generation 1: a generation must be an object'),
        ([line(generations=[{"correct": 1}])], 'generation 1: "text" must be a string, not null'),
        ([line(generations=[{"text": "a", "token_ids": [2.5]}])], '"token_ids" must be a list of token ids'),
        ([line(generations=[{"text": "a", "token_ids": [True]}])], '"token_ids" must be a list of token ids'),
        ([line(generations=[{"text": "a", "token_ids": [-1]}])], '"token_ids" must be a list of token ids'),
        (
            [line(), line(generations=[{"text": "a", "n": 3, "scores": {"good": 0.5, "by": "me"}}])],
            'line 2, generation 1: no label "correct"; the fields with a number are: n, scores.good: ',
        ),
        ([line(generations=[{"text": "a"}])], "the fields with a number are: none"),
        ([line(generations=[{"text": "a", "correct": None}])], 'no label "correct"'),
        ([line(generations=[{"text": "a", "correct": "yes"}])], "must be a number, not 'yes'"),
        ([line(generations=[{"text": "a", "correct": float("nan")}])], 'label "correct" is NaN'),
        ([line(generations=[{"text": "a", "correct": float("-inf")}])], 'label "correct" is -Infinity'),
        ([line(generations=[{"text": "a", "correct": 10**400}])], 'label "correct" is 1000'),
    ],
)  # fmt: skip
def test_bad_lines_are_refused(lines: list[object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_rollouts(write(tmp_path / "a.jsonl", *lines) if lines else write(tmp_path / "a.jsonl", ""))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read rollouts from .*none.jsonl: No such file"):
        read_rollouts(tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(UserError, match=r"b.jsonl, line 1: invalid UTF-8, byte 0xff"):
        read_rollouts(tmp_path / "b.jsonl")


# --- tokens -------------------------------------------------------------------------------------


def test_recorded_tokens_are_taken_as_they_are(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Spelt letter by letter, as a decode may and the tokenizer would not, and with the end token."""
    drawn = [tokenizer(letter).input_ids[0] for letter in "rain"]
    assert drawn != tokenizer("rain").input_ids
    samples = [{"text": "rain", "token_ids": [*drawn, EOS], "correct": 1}]
    file = write(tmp_path / "a.jsonl", line(generations=samples), line({"messages": CHAT}, samples))
    prompt_ids, completion_ids = tokenise_rollouts(tokenizer, read_rollouts(file), chat=False)
    assert completion_ids == [[[*drawn, EOS]], [[*drawn, EOS]]]
    assert prompt_ids[0] == tokenizer("Is it raining?").input_ids
    assert prompt_ids[1][0] == BOS
    assert tokenizer.decode(prompt_ids[1]) == "<s>user: Is it raining?\nassistant:"


def test_plain_prompts_pass_the_template_on_demand(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    samples = [{"text": "rain", "token_ids": tokenizer("rain").input_ids, "correct": 1}]
    found = read_rollouts(write(tmp_path / "a.jsonl", line(generations=samples)))
    prompt_ids, _ = tokenise_rollouts(tokenizer, found, chat=True)
    assert tokenizer.decode(prompt_ids[0]) == "<s>user: Is it raining?\nassistant:"


def test_texts_are_tokenised_with_a_warning(tmp_path: Path) -> None:
    """Without the BOS that the tokenizer puts in front of prompts."""
    tokenizer = tiny_tokenizer(adds_bos=True)
    plain = tokenizer("rain", add_special_tokens=False).input_ids
    samples = [{"text": " good rain", "correct": 1}, {"text": "rain", "token_ids": plain, "correct": 0}]
    found = read_rollouts(write(tmp_path / "a.jsonl", line(generations=samples)))
    with pytest.warns(UserWarning, match="1 of 2 generations have no token_ids: their texts are tokenised"):
        prompt_ids, completion_ids = tokenise_rollouts(tokenizer, found, chat=False)
    assert prompt_ids[0][0] == BOS
    assert completion_ids == [[tokenizer(" good rain").input_ids[1:], plain]]


@pytest.mark.parametrize("sample", [{"text": ""}, {"text": "", "token_ids": []}])
def test_completions_without_tokens_are_refused(
    sample: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    samples = [{"text": "rain", "token_ids": tokenizer("rain").input_ids}, sample]
    generations = [{**each, "correct": 1} for each in samples]
    found = read_rollouts(write(tmp_path / "a.jsonl", line(generations=generations)))
    with pytest.raises(UserError, match=r"a.jsonl, line 1, generation 2: no token in it: take it out"):
        tokenise_rollouts(tokenizer, found, chat=False)


def test_tokens_of_another_tokenizer_are_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    ids = tokenizer("rain").input_ids
    good, bad = {"text": "rain", "token_ids": ids}, {"text": "snow", "token_ids": ids}

    def tokenise(*samples: dict[str, Any]) -> None:
        generations = [{**each, "correct": 1} for each in samples]
        file = write(tmp_path / "a.jsonl", line(generations=generations))
        tokenise_rollouts(tokenizer, read_rollouts(file), chat=False)

    tokenise(good, bad)
    with pytest.raises(UserError, match=r"token_ids of 2 of 3 generations do not spell .*'rain' for 'snow'"):
        tokenise(good, bad, bad)


# --- the split and the labels -------------------------------------------------------------------


def test_the_split_covers_all_and_keeps_prompts_whole() -> None:
    """Every prompt stands twice, as in two files joined; chats are told apart by all their messages."""
    chats = [({"role": "user", "content": f"{i}"},) for i in range(10)]
    once = [Rollout(Prompt(str(i), messages=chat), (), np.zeros(0)) for i, chat in enumerate(chats)]
    once += [rollout(f"prompt {i}", [1.0]) for i in range(10)]
    twice = [*once, *once]
    seen = set()
    for seed in range(20):
        train, held_out = split_by_prompt(twice, 0.2, seed)
        assert sorted([*train, *held_out]) == list(range(40))
        assert list(train) == sorted(train)
        assert list(held_out) == sorted(held_out)
        assert len(held_out) == 8
        assert {i % 20 for i in held_out}.isdisjoint(i % 20 for i in train)
        seen.add(tuple(held_out))
    assert len(seen) > 15
    again = split_by_prompt(twice, 0.2, 19)[1]
    assert np.array_equal(held_out, again)


def test_prompts_of_a_group_stay_on_one_side() -> None:
    alike = [
        Rollout(replace(each.prompt, group=f"{i % 10}"), each.completions, each.labels)
        for i, each in enumerate(rollout(f"{i}", [1.0]) for i in range(40))
    ]
    for seed in range(5):
        train, held_out = split_by_prompt(alike, 0.2, seed)
        assert len(held_out) == 8
        assert {i % 10 for i in held_out}.isdisjoint(i % 10 for i in train)


def test_a_group_is_read_with_its_prompt(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_text(json.dumps(line(prompt={"text": "2 + 3 =", "answer": 5, "group": "sum 2 3"})))
    prompt = read_rollouts(path)[0].prompt
    assert (prompt.answer, prompt.group) == ("5", "sum 2 3")
    assert prompt.record() == {"text": "2 + 3 =", "answer": "5", "group": "sum 2 3"}


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.4, 2), (0.99, 4)])
def test_neither_side_of_the_split_is_empty(share: float, expected: int) -> None:
    train, held_out = split_by_prompt([rollout(f"{i}", [1.0]) for i in range(5)], share, 0)
    assert (len(train), len(held_out)) == (5 - expected, expected)


def test_bad_splits_are_refused() -> None:
    four = [rollout(text, [1.0]) for text in "abcd"]
    assert len(split_by_prompt(four, 0.2, 0)[0]) == 3
    with pytest.raises(UserError, match="3 different prompts, or groups of them, cannot be split"):
        split_by_prompt([*four[:3], *four[:3]], 0.2, 0)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(UserError, match=r"must be between 0 and 1"):
            split_by_prompt(four, share, 0)


@pytest.mark.parametrize(
    ("labels", "teaches"),
    [
        ([[0, 1], [1, 1]], {"ce", "hinge", "dpo", "infonca", "nca"}),
        ([[0, 0], [1, 1]], {"ce", "hinge"}),
        ([[1, 1], [1, 1]], set()),
        ([[0.6, 0.6], [0.9, 0.9]], {"ce"}),
        ([[0.6, 0.9], [0.6, 0.6]], {"ce", "infonca", "nca"}),
        ([[-3.5, 4.5], [1, 1]], {"infonca", "nca"}),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels: list[list[float]], teaches: set[str]) -> None:
    rollouts = [rollout(f"{i}", each) for i, each in enumerate(labels)]
    for loss in elhsr_losses.LOSSES:
        if loss in teaches:
            check_labels(rollouts, loss)
        else:
            with pytest.raises(UserError, match=r"learns nothing from|is outside"):
                check_labels(rollouts, loss)


def test_messages_about_labels() -> None:
    with pytest.raises(UserError, match="all 3 labels are 1; ce learns nothing from one class"):
        check_labels([rollout("a", [1, 1, 1])], "ce")
    with pytest.raises(UserError, match=r"all 2 labels are below 0.5; hinge learns"):
        check_labels([rollout("a", [0.1, 0.2])], "hinge")
    with pytest.raises(UserError, match="within each of the 2 prompts all labels are alike: dpo compares"):
        check_labels([rollout("a", [1, 1]), rollout("b", [0])], "dpo")
    with pytest.raises(UserError, match=r"FILE, line 2, generation 3: label 7 is outside \[0, 1\]"):
        check_labels([rollout("a", [1, 1]), rollout("bb", [0, 1, 7])], "ce")
