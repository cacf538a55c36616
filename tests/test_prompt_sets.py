"""The packaged prompt sets keep the form and the promises of their datasheet, `prompts/SOURCES.md`."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from prompts import builtin, builtin_names
from tests.source import ROOT

COUNTS = {
    "neutral": 200,
    "negative": 220,
    "positive": 220,
    "provoking": 220,
    "dev_negative": 90,
    "dev_provoking": 90,
}
SPLITS = [("negative", "dev_negative"), ("provoking", "dev_provoking")]
TOPICS = {name: 9 if name.startswith("dev_") else 20 for name in COUNTS if name != "neutral"}
PROVOKING = ["provoking", "dev_provoking"]

# What a provoking prompt must leave to the model: a modest list of our own, mild and strong.
RUDE_WORDS = (
    "arse arsehole ass asshole bastard bastards bitch bitches bloody bollocks bugger bullshit clown "
    "clowns coward cowards crap cretin cunt damn damned dick dickhead disgusting douche dumb fool "
    "fools freak fuck fucked fucker fucking garbage hypocrite idiot idiotic idiots imbecile jackass "
    "jerk jerks lazy liar liars loser losers lunatic maggot moron moronic morons motherfucker nutter "
    "pathetic pig pigs pillock piss pissed prick psycho scum scumbag shit shitty skank slag slob slut "
    "snob stupid swine thug traitor trash troll twat twit vermin wanker weirdo whore wimp worthless "
)
RUDE = frozenset(RUDE_WORDS.split())


def lines(name: str) -> list[str]:
    return [str(prompt.text) for prompt in builtin(name)]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def rude(text: str) -> set[str]:
    return RUDE & set(words(text))


def overlap(first: str, second: str) -> float:
    """Return the Jaccard index of the two sets of words."""
    one, other = set(words(first)), set(words(second))
    return len(one & other) / len(one | other)


EVERYTHING = [(name, text) for name in COUNTS for text in lines(name)]


def test_the_sets_are_as_large_as_the_datasheet_says() -> None:
    assert set(builtin_names()) == {"demo", *COUNTS}
    sheet = (ROOT / "prompts" / "SOURCES.md").read_text(encoding="utf-8")
    for name, count in COUNTS.items():
        assert len(builtin(name)) == count
        assert f"| `{name}.jsonl` | {count} |" in sheet
    assert COUNTS["neutral"] >= 150
    assert min(COUNTS[name] for name in ("negative", "positive", "provoking")) >= 200


@pytest.mark.parametrize("name", COUNTS)
def test_ids_count_the_prompts_of_a_set(name: str) -> None:
    prefix = name.replace("_", "-")
    assert [prompt.id for prompt in builtin(name)] == [f"{prefix}-{i:03}" for i in range(COUNTS[name])]


def test_ids_and_texts_are_unique_across_sets() -> None:
    names = builtin_names()
    ids = [prompt.id for name in names for prompt in builtin(name)]
    texts = [" ".join(words(text)) for name in names for text in lines(name)]
    assert [key for key, times in Counter(ids + texts).items() if times > 1] == []


@pytest.mark.parametrize("name", COUNTS)
def test_every_prompt_is_a_half_sentence(name: str) -> None:
    shortest, longest = (4, 10) if name == "neutral" else (4, 12)
    for text in lines(name):
        assert text == " ".join(text.split()), text
        assert text[-1].isalnum() or text[-1] in ",:", text
        assert shortest <= len(text.split()) <= longest, text


@pytest.mark.parametrize("name", COUNTS)
def test_a_set_is_printable_ascii_but_for_one_accent(name: str) -> None:
    for text in lines(name):
        assert text.replace("é", "e").isascii(), text
        assert text.isprintable(), text


def test_no_two_prompts_begin_alike() -> None:
    starts = Counter(" ".join(words(text)[:4]) for _, text in EVERYTHING)
    assert [start for start, times in starts.items() if times > 1] == []


def test_no_two_prompts_are_near_duplicates() -> None:
    assert overlap("He ate the soup and", "he ate the cake, and") == pytest.approx(4 / 6)
    pairs = itertools.combinations([text for _, text in EVERYTHING], 2)
    assert [pair for pair in pairs if overlap(*pair) >= 0.6] == []


@pytest.mark.parametrize(("report", "dev"), SPLITS)
def test_tuning_and_reporting_share_no_run_of_six_words(report: str, dev: str) -> None:
    def runs(name: str) -> set[tuple[str, ...]]:
        spoken = [words(text) for text in lines(name)]
        return {tuple(said[i : i + 6]) for said in spoken for i in range(len(said) - 5)}

    assert len(runs(report)) > 100
    assert runs(report) & runs(dev) == set()


@pytest.mark.parametrize("name", COUNTS)
def test_endings_vary(name: str) -> None:
    """No single last word carries a set: that would make it a test of one construction."""
    _, times = Counter(words(text)[-1] for text in lines(name)).most_common(1)[0]
    assert times <= 0.3 * COUNTS[name]


@pytest.mark.parametrize("name", TOPICS)
def test_topics_take_equal_turns(name: str) -> None:
    assert COUNTS[name] % TOPICS[name] == 0
    sheet = (ROOT / "prompts" / "SOURCES.md").read_text(encoding="utf-8")
    (listed,) = re.findall(rf"^- `{name}`: (.*?)\.$", sheet, re.MULTILINE | re.DOTALL)
    assert len(listed.split(";")) == TOPICS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_prompts_hold_no_profanity_and_no_insult(name: str) -> None:
    assert rude("Get out, you STUPID") == {"stupid"}
    found = {text: rude(text) for text in lines(name)}
    assert {text: hits for text, hits in found.items() if hits} == {}


@pytest.mark.parametrize("name", PROVOKING)
def test_a_word_model_finds_the_provoking_prompts_clean(name: str) -> None:
    profanity_check = pytest.importorskip("profanity_check")
    assert profanity_check.predict_prob(["you stupid bastard"])[0] > 0.5
    scores = profanity_check.predict_prob(lines(name))
    assert [text for text, score in zip(lines(name), scores, strict=True) if score >= 0.5] == []
