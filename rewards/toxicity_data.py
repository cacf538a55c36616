"""Make the training and test texts of the shipped `nontoxic` reward from public data sets.

    python -m rewards.toxicity_data ../shared/data --output toxicity-data

A head trained on labelled tweets alone learns that tweets are toxic and that whatever is negative is
too. So the classes are balanced, the tweets lose what marks them as tweets, and plain text that is
negative but civil (film reviews) or merely ordinary (web text) joins the harmless class. Half of the
Wikipedia comments are kept out as a test in another style.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError

Pair = tuple[str, int]  # text, 1 where harmless
FILES = {
    "tweets": "toxicity/davidson_labeled_data.csv",
    "comments": "toxicity/wikipedia_comments.csv",
    "reviews": "sst2/train.tsv",
    "web": "prompts/sentiment_neutral_prompts.jsonl",
}


def toxicity_data(
    folder: Annotated[Path, typer.Argument(help="Folder with toxicity/, sst2/ and prompts/.")],
    output: Annotated[Path, typer.Option(help="Folder for train.jsonl and test.jsonl.")],
    plain_texts: Annotated[int, typer.Option(help="Reviews, and as many web texts, to add.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the sampling and the split.")] = 0,
) -> None:
    """Write train.jsonl and test.jsonl of {"text", "nontoxic"}, and print what is in them."""
    rng = random.Random(seed)
    for name in FILES.values():
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} does not exist: give the folder that holds toxicity/, sst2/ and prompts/"
            )
    comments = read_comments(folder / FILES["comments"])
    rng.shuffle(comments)
    half = len(comments) // 2
    plain = rng.sample(read_reviews(folder / FILES["reviews"]), plain_texts)
    plain += rng.sample(read_web(folder / FILES["web"]), plain_texts)
    train = balance(read_tweets(folder / FILES["tweets"]), rng) + comments[half:] + plain
    rng.shuffle(train)
    output.mkdir(parents=True, exist_ok=True)
    for name, pairs in (("train", train), ("test", comments[:half])):
        lines = [json.dumps({"text": text, "nontoxic": label}, ensure_ascii=False) for text, label in pairs]
        (output / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(pairs)} texts, {sum(label for _, label in pairs)} of them harmless")


def read_tweets(path: Path) -> list[Pair]:
    """Return Davidson et al.'s tweets, cleaned: class 2 (neither) is harmless, 0 and 1 are toxic."""
    from rewards.clean_text import clean_social

    with path.open(encoding="utf-8", newline="") as file:
        pairs = [(clean_social(row["tweet"]), int(row["class"] == "2")) for row in csv.DictReader(file)]
    return [(text, label) for text, label in pairs if text]


def read_comments(path: Path) -> list[Pair]:
    """Return the Wikipedia talk comments, white space and indentation marks removed."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(" ".join(row["comment"].split()), row["toxic"] == "False") for row in csv.DictReader(file)]
    return [(text.lstrip("`:*=# "), int(harmless)) for text, harmless in rows]


def read_reviews(path: Path) -> list[Pair]:
    """Return film review sentences, good and bad alike, as harmless."""
    from rewards.clean_text import make_cleaner

    detokenise = make_cleaner(detokenize=True, social=False)
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(detokenise(line.split("\t")[0]), 1) for line in lines]


def read_web(path: Path) -> list[Pair]:
    """Return ordinary web sentences, from prompts with their true continuations, as harmless."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(f"{row['prompt']['text']} {row['continuation']['text']}", 1) for row in rows]


def balance(pairs: Sequence[Pair], rng: random.Random) -> list[Pair]:
    """Return as many pairs of one label as of the other, the larger class sampled."""
    classes = [[pair for pair in pairs if pair[1] == label] for label in (0, 1)]
    size = min(map(len, classes))
    return [pair for members in classes for pair in rng.sample(members, size)]


app = make_app(toxicity_data)

if __name__ == "__main__":
    run(app)
