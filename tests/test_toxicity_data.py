"""The texts of the shipped `nontoxic`: balanced, cleaned, and the test half kept apart."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

pytest.importorskip("nltk")

from decoder.contracts import UserError
from rewards.toxicity_data import balance, toxicity_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder laid out as the public data is, with a few sentences of our own."""
    for name in ("toxicity", "sst2", "prompts"):
        (tmp_path / name).mkdir()
    with (tmp_path / "toxicity/davidson_labeled_data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["", "class", "tweet"])
        rows.writerows([i, i % 3, f"RT @someone: tweet number {i} https://t.co/x{i}"] for i in range(12))
    with (tmp_path / "toxicity/wikipedia_comments.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["rev_id", "comment", "toxic"])
        rows.writerows([i, f"::  comment   {i}", str(i % 5 == 0)] for i in range(20))
    (tmp_path / "sst2/train.tsv").write_text("".join(f"it is n't film {i} , no\t{i % 2}\n" for i in range(9)))
    line = {"prompt": {"text": "The road"}, "continuation": {"text": "goes on."}}
    (tmp_path / "prompts/sentiment_neutral_prompts.jsonl").write_text((json.dumps(line) + "\n") * 5)
    return tmp_path


def read(path: Path) -> list[dict[str, object]]:
    """Return the records of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_and_test_are_made(folder: Path) -> None:
    """Half the comments are the test; tweets balance, and every text has lost its marks."""
    toxicity_data(folder, folder / "out", plain_texts=3, seed=1)
    train, test = read(folder / "out/train.jsonl"), read(folder / "out/test.jsonl")
    assert len(test) == 10
    assert len(train) == 8 + 10 + 3 + 3
    texts = [str(record["text"]) for record in (*train, *test)]
    assert not [text for text in texts if "@" in text or "http" in text or text.startswith(":")]
    assert not {record["text"] for record in train} & {record["text"] for record in test}
    tweets = [record["nontoxic"] for record in train if "tweet" in str(record["text"])]
    assert sorted(tweets) == [0] * 4 + [1] * 4
    assert any("It isn't film" in text for text in texts)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A folder without the data is refused by the first file it lacks."""
    with pytest.raises(UserError, match=r"davidson_labeled_data\.csv does not exist"):
        toxicity_data(tmp_path, tmp_path / "out")


def test_balance_keeps_the_smaller_class_whole() -> None:
    """Both labels come out equally often."""
    pairs = [("a", 0), ("b", 1), ("c", 1), ("d", 1)]
    found = balance(pairs, random.Random(0))
    assert sorted(label for _, label in found) == [0, 1]
    assert ("a", 0) in found
