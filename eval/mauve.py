"""MAUVE: how near a set of generations comes to a set of reference texts. One figure for the whole set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from decoder.models import LoadedModel
from decoder.replay import read_texts
from decoder.tokenise import encode
from eval.generations import PromptSamples
from eval.stats import Estimate, bootstrap
from prompts.reading import Prompt

EXPLAINED = 0.9  # share of the variance that the principal components keep, as in the paper
RESTARTS = 5  # of k-means


@dataclass(frozen=True, slots=True)
class MauveScore:
    """The figure; scored, total: samples behind it, and those asked for."""

    estimate: Estimate
    scored: int
    total: int


@dataclass(frozen=True, slots=True)
class Mauve:
    """MAUVE of generations against reference texts (Pillutla et al. 2021), from a local model's states.

    Not a `Metric`: the buckets are found on generations and reference together, so no sample has a score
    of its own that could be saved and averaged. Nor is the figure a `Measure`, whose units two
    evaluations could subtract: each set has buckets of its own.

    loaded: the model whose last normed state of the last token stands for a text. reference: texts of
    people, as many as there are samples or more. whole_texts: read prompt and continuation, as the paper
    does (then the reference holds prompts too); else the continuation alone. buckets: a tenth of the
    smaller set if None. scaling: the paper's c. seed: of k-means.
    """

    loaded: LoadedModel
    reference: Sequence[str]
    whole_texts: bool = True
    buckets: int | None = None
    scaling: float = 5.0
    seed: int = 0
    name: str = "mauve"

    @property
    def about(self) -> Mapping[str, Any]:
        """Return the model, a digest of the reference, and the settings."""
        lm = self.loaded.lm
        return {
            "model": lm.identity.name,
            "weights": lm.identity.weights,
            "tokenizer": lm.identity.tokenizer_hash,
            "dtype": str(lm.model.dtype).removeprefix("torch."),
            "reference_texts": len(self.reference),
            "reference": hashlib.sha256("\0".join(self.reference).encode()).hexdigest()[:16],
            "whole_texts": self.whole_texts,
            "buckets": self.buckets,
            "scaling": self.scaling,
            "seed": self.seed,
        }

    def estimate(self, prompts: Sequence[PromptSamples]) -> MauveScore:
        """Return the figure with its interval; see `mauve`. An empty continuation is not scored."""
        counts = [len(prompt.texts) for prompt in prompts]
        texts = [text for prompt in prompts for text in self._texts(prompt)]
        states = text_features(self.loaded, [*texts, *self.reference])
        generated, reference = states[: len(texts)], states[len(texts) :]
        groups = np.split(generated, np.cumsum(counts)[:-1])
        return mauve(groups, reference, buckets=self.buckets, scaling=self.scaling, seed=self.seed)

    def _texts(self, prompt: PromptSamples) -> list[str]:
        before = prompt.prompt if self.whole_texts else ""
        return [before + text if text.strip() else "" for text in prompt.texts]


def text_features(loaded: LoadedModel, texts: Sequence[str], *, max_tokens: int = 4096) -> NDArray[Any]:
    """Return the model's last normed state of each text's last token, (n, d) float32; NaN for no token.

    A text longer than the context is cut at its end. Equal texts are read once and get equal rows.
    max_tokens: most padded positions in a pass.
    """
    lm = loaded.lm
    rows = {text: i for i, text in enumerate(dict.fromkeys(text for text in texts if text.strip()))}
    ids = [encode(loaded.tokenizer, Prompt(id="", text=text), chat=False) for text in rows]
    found = np.full((len(rows) + 1, lm.identity.hidden_size), np.nan, dtype=np.float32)  # last: no token
    spoken = [row for row, tokens in enumerate(ids) if tokens]
    cut = [ids[row][: lm.context_length()] for row in spoken]
    last = lm.identity.num_layers
    for batch, reading in read_texts(lm, cut, (last,), max_tokens=max_tokens):
        found[[spoken[i] for i in batch]] = reading.taps[last][:, -1].float().cpu().numpy()
    return found[[rows.get(text, len(rows)) for text in texts]]


def mauve(
    features: Sequence[NDArray[Any]],
    reference: NDArray[Any],
    *,
    buckets: int | None = None,
    scaling: float = 5.0,
    seed: int = 0,
) -> MauveScore:
    """Return MAUVE, between 0 and 1, higher when the generations are nearer to the reference.

    features: one (N, d) array a prompt. reference: (n, d). A row that is not finite is left out.
    States of both are normalised, reduced to 90 % of their variance and put into buckets by k-means
    together; the figure is the area under the divergence curve of the two histograms, made by the
    authors' package mauve-text. Compare only figures with the same model, reference and sizes.

    The interval resamples prompts with buckets and reference held. A resample leaves buckets empty that
    the whole set fills and so scores lower than the set; of the percentile interval only the width is
    kept, laid around the figure. Another seed of k-means may move the figure as much: try several.
    Raises UserError for fewer than two scored texts a side, impossible buckets, or no mauve-text.
    """
    curve = _divergence_curve()
    kept = [prompt[np.isfinite(prompt).all(axis=1)] for prompt in features]
    wanted = reference[np.isfinite(reference).all(axis=1)]
    sizes = [len(prompt) for prompt in kept]
    number = _bucket_number(buckets, sum(sizes), len(wanted))
    labels = _buckets(np.concatenate([*kept, wanted]), number, seed)
    groups = np.split(labels, np.cumsum(sizes))
    *counts, wanted_counts = [np.bincount(group, minlength=number) for group in groups]
    units = np.array([count for count in counts if count.any()], dtype=float)  # (P, buckets)
    found = bootstrap(units, lambda rows: _area(rows.sum(axis=0), wanted_counts, scaling, curve))
    return MauveScore(_centred(found), sum(sizes), sum(map(len, features)))


def _centred(found: Estimate) -> Estimate:
    half = (found.high - found.low) / 2
    return Estimate(found.value, max(0.0, found.value - half), min(1.0, found.value + half), found.n)


def _area(
    generated: NDArray[Any], reference: NDArray[Any], scaling: float, curve: Callable[..., Any]
) -> float:
    """Return the area under the divergence curve of two histograms of counts, (k,) each."""
    weights = np.linspace(1e-6, 1 - 1e-6, 25)  # of the mixtures, spaced as the package spaces them
    points = curve(generated / generated.sum(), reference / reference.sum(), weights, scaling)
    x, y = np.asarray(points).T  # from (0, 1) or (1, 0) to the other, monotone in both
    return min(1.0, float(abs(np.trapezoid(y, x))))  # rounding may pass 1


def _divergence_curve() -> Callable[..., Any]:
    try:
        from mauve.compute_mauve import get_divergence_curve_for_multinomials
    except ModuleNotFoundError as error:
        raise UserError(
            f"MAUVE needs the package {error.name}, which is missing: pip install 'tiller-lm[mauve]'"
        ) from None
    found: Callable[..., Any] = get_divergence_curve_for_multinomials
    return found


def _bucket_number(asked: int | None, generated: int, reference: int) -> int:
    """Return the number of buckets; UserError where the texts cannot fill them."""
    if min(generated, reference) < 2:
        raise UserError(
            f"MAUVE got {generated} generated and {reference} reference texts that are not empty: "
            "give at least 2 of each, better 1000"
        )
    number = max(2, round(min(generated, reference) / 10)) if asked is None else asked
    if not 2 <= number <= generated + reference:
        raise UserError(
            f"MAUVE was asked for {number} buckets: give 2 to {generated + reference}, the number of texts"
        )
    return number


def _buckets(features: NDArray[Any], number: int, seed: int) -> NDArray[Any]:
    """Return the bucket of each row, (n,) int64; fewer than `number` are used if fewer rows differ."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    rows = normalize(features.astype(np.float64))
    number = min(number, len(np.unique(rows, axis=0)))
    if number == 1:
        return np.zeros(len(rows), dtype=np.int64)
    reduced = PCA(EXPLAINED, random_state=seed).fit_transform(rows)
    labels = KMeans(number, n_init=RESTARTS, random_state=seed).fit_predict(reduced)
    return np.asarray(labels, dtype=np.int64)
