"""Split public data sets into what the shipped rewards, the embedded judges and their tests may see.

    python -m rewards.shipped_data ../shared/data --output shipped-data

A judge must not have learned from the texts its reward learned from. So every text falls into one of
ten buckets by a hash of itself, and each side owns some of the buckets; prompts are split in the same
way into those to learn on, to tune on and to report on. The openings of a reward's own texts are
prompts too: a reward learns more from what the generator itself writes after them.

Toxicity: a head trained on labelled tweets alone learns that tweets are toxic and that whatever is
negative is too. So the classes are balanced, the tweets lose what marks them as tweets, and text that
is negative but civil (film reviews) or merely ordinary (web text) joins the harmless class. Half of the
Wikipedia comments are kept out as a test in another style.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError

Pair = tuple[str, int]  # text, label
FILES = {
    "tweets": "toxicity/davidson_labeled_data.csv",
    "comments": "toxicity/wikipedia_comments.csv",
    "reviews": "sst2/train.tsv",
    "test reviews": "sst2/dev.tsv",
    "web": "prompts/sentiment_neutral_prompts.jsonl",
}
JUDGE, REWARD = range(0, 3), range(3, 10)  # buckets of tweets and reviews
COMMENTS = {"judge": range(0, 2), "reward": range(2, 5), "test": range(5, 10)}
PROMPTS = {"learn": range(0, 5), "tune": range(5, 7), "report": range(7, 10)}


def shipped_data(
    folder: Annotated[Path, typer.Argument(help="Folder with toxicity/, sst2/ and prompts/.")],
    output: Annotated[Path, typer.Option(help="Folder for the JSONL files.")],
    seed: Annotated[int, typer.Option(help="Seed of the sampling that balances classes.")] = 0,
) -> None:
    """Write {sentiment,toxicity}-{judge,reward,test}.jsonl of {"text", label}, prompts and openings."""
    for name in FILES.values():
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} does not exist: give the folder that holds toxicity/, sst2/ and prompts/"
            )
    output.mkdir(parents=True, exist_ok=True)
    reviews, toxic = sentiment(folder), toxicity(folder, seed)
    for name, pairs in reviews.items():
        save(output / f"sentiment-{name}.jsonl", [{"text": t, "positive": label} for t, label in pairs])
    for name, pairs in toxic.items():
        labelled = [{"text": text, "toxic": 1 - label, "nontoxic": label} for text, label in pairs]
        save(output / f"toxicity-{name}.jsonl", labelled)
    for name, rows in split_prompts(folder).items():
        save(output / f"prompts-{name}.jsonl", rows)
    for name, parts in (("sentiment", reviews), ("toxicity", toxic)):
        save(output / f"openings-{name}.jsonl", openings([text for text, _ in parts["reward"]]))


def save(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSONL, and print how much."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(rows)} rows")


def bucket(text: str) -> int:
    """Return 0..9 from a hash of the text; case and spacing do not matter."""
    from rewards.clean_text import normalise

    return hashlib.sha256(normalise(text).encode()).digest()[0] % 10


def part(pairs: Sequence[Pair], buckets: range) -> list[Pair]:
    """Return the pairs whose text falls into the buckets."""
    return [pair for pair in pairs if bucket(pair[0]) in buckets]


def sentiment(folder: Path) -> dict[str, list[Pair]]:
    """Return film review sentences with 1 where positive; the test is the data set's own dev part."""
    reviews = read_reviews(folder / FILES["reviews"])
    test = read_reviews(folder / FILES["test reviews"])
    return {"judge": part(reviews, JUDGE), "reward": part(reviews, REWARD), "test": test}


def toxicity(folder: Path, seed: int) -> dict[str, list[Pair]]:
    """Return texts with 1 where harmless; the test is half of the Wikipedia comments, as they come."""
    rng = random.Random(seed)
    tweets, comments = read_tweets(folder / FILES["tweets"]), read_comments(folder / FILES["comments"])
    civil = [(text, 1) for text, _ in read_reviews(folder / FILES["reviews"])]
    web = read_web(folder / FILES["web"], PROMPTS["learn"])
    found = {"test": part(comments, COMMENTS["test"])}
    for name, buckets, plain in (("judge", JUDGE, 600), ("reward", REWARD, 1400)):
        extra = some(part(civil, buckets), plain, rng) + some(part(web, buckets), plain // 2, rng)
        found[name] = balance(part(tweets, buckets), rng) + part(comments, COMMENTS[name]) + extra
        rng.shuffle(found[name])
    return found


def split_prompts(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the web prompts to learn on, to tune on and to report on, each once, as prompt records."""
    lines = (folder / FILES["web"]).read_text(encoding="utf-8").splitlines()
    texts = dict.fromkeys(json.loads(line)["prompt"]["text"] for line in lines)
    found: list[dict[str, Any]] = [
        {"id": f"web-{i:04d}", "prompt": {"text": text}} for i, text in enumerate(texts)
    ]
    return {
        name: [row for row in found if bucket(row["prompt"]["text"]) in buckets]
        for name, buckets in PROMPTS.items()
    }


def openings(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the first halves of the texts, of 3 to 8 words, each once, as prompts for a generator."""
    words = [text.split() for text in texts]
    cut = dict.fromkeys(" ".join(each[: min(8, len(each) // 2)]) for each in words if len(each) >= 6)
    return [{"id": f"opening-{i:05d}", "prompt": {"text": text}} for i, text in enumerate(cut)]


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
    """Return film review sentences as prose, 1 where positive."""
    from rewards.clean_text import make_cleaner

    detokenise = make_cleaner(detokenize=True, social=False)
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [(detokenise(text), int(label)) for text, label in rows]


def read_web(path: Path, buckets: range) -> list[Pair]:
    """Return ordinary web sentences as harmless: prompts of the buckets with their true continuations."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if bucket(row["prompt"]["text"]) in buckets]
    return [(f"{row['prompt']['text']} {row['continuation']['text']}", 1) for row in kept]


def balance(pairs: Sequence[Pair], rng: random.Random) -> list[Pair]:
    """Return as many pairs of one label as of the other, the larger class sampled."""
    classes = [[pair for pair in pairs if pair[1] == label] for label in (0, 1)]
    size = min(map(len, classes))
    return [pair for members in classes for pair in rng.sample(members, size)]


def some(pairs: Sequence[Pair], size: int, rng: random.Random) -> list[Pair]:
    """Return that many pairs at random, or all if there are fewer."""
    return rng.sample(pairs, min(size, len(pairs)))


app = make_app(shipped_data)

if __name__ == "__main__":
    run(app)
