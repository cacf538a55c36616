"""What the shipped rewards and the embedded judges learn from: split apart, balanced, cleaned."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

pytest.importorskip("nltk")

from decoder.contracts import UserError
from prompts.reading import read as read_prompts
from rewards.shipped_data import balance, bucket, shipped_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder laid out as the public data is, with a few sentences of our own."""
    for name in ("toxicity", "sst2", "prompts"):
        (tmp_path / name).mkdir()
    with (tmp_path / "toxicity/davidson_labeled_data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["", "class", "tweet"])
        rows.writerows([i, i % 3, f"RT @someone: tweet number {i} https://t.co/x{i}"] for i in range(90))
    with (tmp_path / "toxicity/wikipedia_comments.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["rev_id", "comment", "toxic"])
        rows.writerows([i, f"::  comment   {i}", str(i % 5 == 0)] for i in range(60))
    for name, start in (("train", 0), ("dev", 100)):
        lines = [f"it is n't film {start + i} , no\t{i % 2}\n" for i in range(40)]
        (tmp_path / f"sst2/{name}.tsv").write_text("".join(lines))
    web = [{"prompt": {"text": f"The road {i}"}, "continuation": {"text": "goes on."}} for i in range(50)]
    lines = [json.dumps(row) + "\n" for row in [*web, web[0]]]
    (tmp_path / "prompts/sentiment_neutral_prompts.jsonl").write_text("".join(lines))
    shipped_data(tmp_path, tmp_path / "out", seed=1)
    return tmp_path


def texts(folder: Path, name: str) -> list[str]:
    """Return the texts of an output file."""
    lines = (folder / "out" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("attribute", ["sentiment", "toxicity"])
def test_judge_reward_and_test_share_no_text(folder: Path, attribute: str) -> None:
    """What makes a judge independent of the reward it judges."""
    parts = [set(texts(folder, f"{attribute}-{part}")) for part in ("judge", "reward", "test")]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]


def test_web_prompts_fall_into_three_parts_without_repeats(folder: Path) -> None:
    parts = [read_prompts(folder / f"out/prompts-{name}.jsonl") for name in ("learn", "tune", "report")]
    found = [prompt.text for part in parts for prompt in part]
    assert sorted(found) == sorted({f"The road {i}" for i in range(50)})
    learned = {text.removesuffix(" goes on.") for text in texts(folder, "toxicity-reward") if "road" in text}
    assert learned
    assert learned <= {prompt.text for prompt in parts[0]}


def test_texts_have_lost_their_marks_and_classes_balance(folder: Path) -> None:
    found = [*texts(folder, "toxicity-reward"), *texts(folder, "toxicity-test")]
    assert not [text for text in found if "@" in text or "http" in text or text.startswith(":")]
    assert any(text.startswith("It isn't film") for text in found)
    lines = (folder / "out/toxicity-reward.jsonl").read_text().splitlines()
    tweets = [row for row in map(json.loads, lines) if "tweet" in row["text"]]
    assert sum(row["toxic"] for row in tweets) * 2 == len(tweets) > 0
    assert all(row["toxic"] + row["nontoxic"] == 1 for row in tweets)


def test_the_split_repeats(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    shipped_data(folder, folder / "out", seed=1)
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == before


def test_a_bucket_is_the_text_s_own() -> None:
    """Case and spacing do not move a text to the other side; every bucket is used."""
    assert bucket("A  good Film") == bucket("a good film")
    assert {bucket(f"text {i}") for i in range(200)} == set(range(10))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A folder without the data is refused by the first file it lacks."""
    with pytest.raises(UserError, match=r"davidson_labeled_data\.csv does not exist"):
        shipped_data(tmp_path, tmp_path / "out")


def test_balance_keeps_the_smaller_class_whole() -> None:
    """Both labels come out equally often."""
    pairs = [("a", 0), ("b", 1), ("c", 1), ("d", 1)]
    found = balance(pairs, random.Random(0))
    assert sorted(label for _, label in found) == [0, 1]
    assert ("a", 0) in found
