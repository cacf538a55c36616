"""Diversity by hand, and against slow loops."""

from __future__ import annotations

import math
import random
import sys
from collections import Counter

import pytest

from decoder.contracts import UserError
from eval.diversity import Diversity, distinct, diversity, repetition, self_bleu
from eval.generations import PromptSamples
from eval.metric import Metric


def samples(*texts: str) -> PromptSamples:
    return PromptSamples(texts[0], "", texts, tuple({"text": text} for text in texts))


def some_samples(count: int = 6, seed: int = 0) -> list[list[str]]:
    chance = random.Random(seed)
    return [[chance.choice("abcdefgh") for _ in range(chance.randint(4, 12))] for _ in range(count)]


def test_it_is_a_metric() -> None:
    metric = Diversity()
    assert isinstance(metric, Metric)
    assert metric.name == "diversity"
    assert not metric.per_sample


def test_dist_by_hand() -> None:
    """Seven words; a b c d; ab bc ba ad; abc, bad: the denominator is always the words."""
    found = diversity(["a b c", "b a d a"])
    assert found["dist1"] == pytest.approx(4 / 7)
    assert found["dist2"] == pytest.approx(5 / 7)  # ab bc | ba ad da
    assert found["dist3"] == pytest.approx(3 / 7)  # abc | bad ada


def test_words_stand_between_single_spaces() -> None:
    """A space in front makes an empty word, in the papers and here."""
    assert diversity([" a b", " a c"])["dist1"] == pytest.approx(4 / 6)  # "", a, b, c
    assert diversity(["a\nb"])["dist1"] == 1  # one word
    assert diversity(["a\nb"])["dist2"] == 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_dist_against_a_slow_loop(n: int) -> None:
    texts = some_samples()
    seen: list[str] = []
    for words in texts:
        for i in range(len(words)):
            gram = " ".join(words[i : i + n])
            if gram.count(" ") == n - 1 and gram not in seen:
                seen.append(gram)
    assert distinct(texts, n) == pytest.approx(len(seen) / sum(map(len, texts)))


def naive_bleu(references: list[list[str]], sample: list[str]) -> float:
    """BLEU-4 from its definition; a precision of 0 becomes 0.1 / its n-grams."""
    logs = 0.0
    for n in (1, 2, 3, 4):
        grams = Counter(tuple(sample[i : i + n]) for i in range(len(sample) - n + 1))
        hits = 0
        for gram, count in grams.items():
            most = max(
                sum(tuple(reference[i : i + n]) == gram for i in range(len(reference)))
                for reference in references
            )
            hits += min(count, most)
        if n == 1 and not hits:
            return 0.0
        logs += math.log((hits or 0.1) / max(1, sum(grams.values()))) / 4
    nearest = min((abs(len(reference) - len(sample)), len(reference)) for reference in references)[1]
    return math.exp(logs + min(0.0, 1 - nearest / len(sample)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_self_bleu_against_the_definition(seed: int) -> None:
    texts = some_samples(seed=seed)
    expected = [naive_bleu(texts[:i] + texts[i + 1 :], text) for i, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(sum(expected) / len(expected))


def test_self_bleu_at_its_ends() -> None:
    assert diversity(["a b c d e", "a b c d e"])["self_bleu"] == pytest.approx(1)
    assert diversity(["a b c d e", "f g h i j"])["self_bleu"] == 0


def test_repetition_by_hand() -> None:
    """a b a b a b has abab twice among three 4-grams; a sample of three words has none."""
    assert diversity(["a b a b a b", "a b c"])["repetition"] == pytest.approx(1 / 3)
    assert diversity(["a b a b a b", "a b c d"])["repetition"] == pytest.approx(1 / 6)
    assert repetition([["x"] * 10]) == pytest.approx(6 / 7)


def test_empty_samples_count_nowhere() -> None:
    with_empty = diversity(["a b c d", "", "d e f g", "  "])
    assert with_empty == diversity(["a b c d", "d e f g"])


def test_what_cannot_be_said_is_nan() -> None:
    assert all(math.isnan(value) for value in diversity(["", ""]).values())
    single = diversity(["a b c", ""])
    assert single["dist1"] == 1
    assert math.isnan(single["self_bleu"])
    assert math.isnan(single["repetition"])


def test_measures_are_means_over_prompts() -> None:
    metric = Diversity()
    scores = metric.score([samples("a b", "a c"), samples("a b c d", ""), samples("", "")])
    assert [len(records) for records in scores] == [1, 1, 1]
    found = {measure.name: measure for measure in metric.measures(scores)}
    assert found["dist1"].estimate().value == pytest.approx((3 / 4 + 1) / 2)
    assert found["dist2"].estimate().value == pytest.approx((2 / 4 + 3 / 4) / 2)
    counts = {name: (measure.scored, measure.total) for name, measure in found.items()}
    assert counts == {
        "dist1": (2, 3), "dist2": (2, 3), "dist3": (2, 3), "self_bleu": (1, 3), "repetition": (1, 3),
    }  # fmt: skip
    better = {name: measure.better for name, measure in found.items()}
    assert better["dist3"] == "higher"
    assert better["self_bleu"] == better["repetition"] == "lower"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk.translate.bleu_score", None)
    with pytest.raises(UserError, match=r"needs nltk.*tiller-lm\[eval\]"):
        diversity(["a b", "a c"])
