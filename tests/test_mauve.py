"""MAUVE: closed forms, the authors' own function, and a tiny model."""

from __future__ import annotations

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from decoder.contracts import UserError
from decoder.models import LoadedModel
from eval.generations import PromptSamples
from eval.mauve import Mauve, mauve, text_features
from tests.heads import as_lm
from tests.tiny import SENTENCES, tiny_llama, tiny_tokenizer

pytest.importorskip("mauve")

WORDS = " ".join(SENTENCES).split()


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.stats.RESAMPLES", 200)  # the package's curve takes most of the time


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    tokenizer = tiny_tokenizer()
    return LoadedModel(as_lm(tiny_llama(), tokenizer), tokenizer)


def sentences(number: int, seed: int, words: list[str] = WORDS) -> list[str]:
    chance = np.random.default_rng(seed)
    return [" ".join(chance.choice(words, size=8)) for _ in range(number)]


def as_samples(texts: list[str], each: int = 4) -> list[PromptSamples]:
    """Return prompts that are the texts' first words, `each` samples each."""
    groups = [texts[i : i + each] for i in range(0, len(texts), each)]
    return [PromptSamples(str(i), "", tuple(group), ({},) * len(group)) for i, group in enumerate(groups)]


def clusters(counts: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """Return features of three clusters that nobody could confuse, shuffled."""
    chance = np.random.default_rng(seed)
    rows = np.repeat(np.eye(3, 6) * 10, counts, axis=0)
    return chance.permutation(rows + chance.normal(scale=0.1, size=rows.shape))


def area(p: NDArray[np.float64], q: NDArray[np.float64], scaling: float = 5.0) -> float:
    """Return MAUVE of two histograms from its definition, on the package's 25 mixtures."""
    corners = [(0.0, 1.0)]
    for weight in np.linspace(1e-6, 1 - 1e-6, 25):
        mixture = weight * p + (1 - weight) * q
        divergence = [sum(a * math.log(a / m) for a, m in zip(h, mixture, strict=True) if a) for h in (q, p)]
        corners.append((math.exp(-scaling * divergence[0]), math.exp(-scaling * divergence[1])))
    corners.append((1.0, 0.0))
    corners.sort(key=lambda corner: (corner[0], -corner[1]))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(corners))


@pytest.mark.parametrize(("counts", "scaling"), [((20, 20, 20), 5.0), ((50, 10, 0), 5.0), ((50, 10, 0), 1.0)])
def test_known_clusters_in_closed_form(counts: tuple[int, ...], scaling: float) -> None:
    wanted = (10, 20, 30)
    found = mauve([clusters(counts, 1)], clusters(wanted, 2), buckets=3, scaling=scaling)
    expected = area(np.array(counts) / sum(counts), np.array(wanted) / sum(wanted), scaling)
    assert found.estimate.value == pytest.approx(expected, abs=1e-6)


def test_it_is_the_authors_function() -> None:
    """Where k-means has one answer, the package's whole function gives the same number."""
    from mauve import compute_mauve

    generated, reference = clusters((50, 40, 30), 1), clusters((20, 40, 60), 2)
    theirs = compute_mauve(p_features=generated, q_features=reference, num_buckets=3, kmeans_num_redo=10)
    found = mauve(np.split(generated, 30), reference, buckets=3)
    assert found.estimate.value == pytest.approx(theirs.mauve, abs=1e-6)


def test_the_interval_holds_the_figure_and_shrinks() -> None:
    reference = clusters((20, 40, 60), 2)
    few = mauve(np.split(clusters((30, 5, 5), 1), 10), reference, buckets=3).estimate
    many = mauve(np.split(clusters((300, 50, 50), 1), 100), reference, buckets=3).estimate
    assert few.value == pytest.approx(many.value, abs=1e-6)
    assert (few.n, many.n) == (10, 100)
    assert 0 < few.low < few.value < few.high < 1
    assert many.high - many.low < 0.6 * (few.high - few.low)


def test_the_same_texts_give_one(loaded: LoadedModel) -> None:
    texts = sentences(60, seed=1)
    found = Mauve(loaded, texts).estimate(as_samples(texts))
    assert found.estimate.value == pytest.approx(1, abs=1e-6)
    assert found.estimate.high == 1
    assert (found.scored, found.total, found.estimate.n) == (60, 60, 15)


def test_other_texts_give_less(loaded: LoadedModel) -> None:
    """Texts of the same words, and texts of three words only."""
    metric = Mauve(loaded, sentences(200, seed=1))
    near = metric.estimate(as_samples(sentences(200, seed=2))).estimate
    far = metric.estimate(as_samples(sentences(200, 3, ["bread", "butter", "x"]))).estimate
    assert near.value > 0.6
    assert far.value < 0.5
    assert far.high < near.low


def test_it_gives_the_same_twice(loaded: LoadedModel) -> None:
    metric = Mauve(loaded, sentences(40, seed=1), seed=3)
    prompts = as_samples(sentences(40, seed=2))
    assert metric.estimate(prompts) == metric.estimate(prompts)


def test_prompts_are_read_if_asked(loaded: LoadedModel) -> None:
    """Whole texts equal to the reference give 1; their second halves alone do not."""
    reference = sentences(60, seed=1)
    halves = [text.split(" ", 7) for text in reference]
    prompts = [
        PromptSamples(str(i), " ".join(half[:7]), (" " + half[7],), ({},)) for i, half in enumerate(halves)
    ]
    assert Mauve(loaded, reference).estimate(prompts).estimate.value == pytest.approx(1, abs=1e-6)
    assert Mauve(loaded, reference, whole_texts=False).estimate(prompts).estimate.value < 0.9


def test_empty_samples_are_counted_but_not_scored(loaded: LoadedModel) -> None:
    texts = sentences(40, seed=1)
    full = Mauve(loaded, texts).estimate(as_samples(texts))
    empty = PromptSamples("e", "The film", ("", "  "), ({}, {}))
    found = Mauve(loaded, [*texts, ""]).estimate([*as_samples(texts), empty])
    assert (found.scored, found.total) == (40, 42)
    assert found.estimate == full.estimate


def test_features_are_the_last_tokens_states(loaded: LoadedModel) -> None:
    """Against the model on each text alone, cut at the context; no token gives no state."""
    long = "the rain went on and on " * 60
    texts = ["The kettle sang", "A", long, "", "The kettle sang"]
    found = text_features(loaded, texts)
    assert found.shape == (5, 32)
    assert np.isnan(found[3]).all()
    assert (found[0] == found[4]).all()
    for row, text in zip(found[:3], texts, strict=False):
        ids = torch.tensor([loaded.tokenizer(text).input_ids[:128]])
        with torch.no_grad():
            states = loaded.lm.model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(row, states[0, -1].numpy(), rtol=1e-4, atol=1e-4)


def test_one_text_for_all(loaded: LoadedModel) -> None:
    found = mauve([np.ones((5, 4)), np.ones((5, 4))], np.ones((30, 4)))
    assert found.estimate.value == pytest.approx(1)


def test_about_tells_references_apart(loaded: LoadedModel) -> None:
    one, two = (Mauve(loaded, sentences(10, seed)).about for seed in (1, 2))
    assert one["weights"] == loaded.lm.identity.weights
    assert one["reference"] != two["reference"]
    assert one["reference_texts"] == 10


def test_too_little_and_too_much() -> None:
    texts = np.random.default_rng(0).normal(size=(10, 4))
    nothing = np.full((3, 4), np.nan)
    with pytest.raises(UserError, match="0 generated and 10 reference texts"):
        mauve([nothing], texts)
    with pytest.raises(UserError, match="10 generated and 1 reference texts"):
        mauve([texts], texts[:1])
    for buckets in (1, 21):
        with pytest.raises(UserError, match=f"asked for {buckets} buckets: give 2 to 20"):
            mauve([texts], texts, buckets=buckets)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mauve.compute_mauve", None)
    with pytest.raises(UserError, match=r"MAUVE needs the package mauve.*tiller-lm\[mauve\]"):
        mauve([np.eye(4)], np.eye(4))
