"""What a metric is: scores of every sample on one side, measures with error bars on the other.

A `Metric` scores prompts in chunks, so that long work can be saved as it goes; its `measures` are taken
afterwards from the saved scores alone. NaN is a score that failed: it is left out of every measure, and
`scored` of `total` says how many were left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from eval.generations import PromptSamples
from eval.stats import STATISTICS, Difference, Estimate, Statistic, bootstrap, paired_difference

Record = Mapping[str, float]  # the columns of one sample, or of one prompt


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a report, before its interval is taken.

    units: (P,) or (P, k) float64, a row a prompt in file order; a row with NaN was not scored.
    statistic: the name, in `eval.stats.STATISTICS`, of what turns units into the figure.
    scored, total: samples (for a measure of whole prompts, prompts) behind it, and those asked for.
    better: "higher", "lower" or "" where neither is.
    """

    name: str
    units: NDArray[Any]
    scored: int
    total: int
    better: str = ""
    statistic: str = "mean"

    def estimate(self) -> Estimate:
        """Return the figure with its bootstrap interval over prompts; NaN if nothing was scored."""
        kept = self.units[_whole(self.units)]
        if not len(kept):
            return Estimate(np.nan, np.nan, np.nan, 0)
        return bootstrap(kept, STATISTICS[self.statistic])

    def minus(self, other: Measure) -> Difference:
        """Return this figure minus the other's, paired over the prompts that both have scored."""
        both = _whole(self.units) & _whole(other.units)
        if not both.any():
            return Difference(np.nan, np.nan, np.nan, 0, np.nan)
        return paired_difference(self.units[both], other.units[both], STATISTICS[self.statistic])


@runtime_checkable
class Metric(Protocol):
    """Scores prompts; immutable. Names may stand in file names."""

    @property
    def name(self) -> str:
        """What reports and files call it, such as "sentiment" or "toxicity.detoxify"."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """Everything that changes its scores, as JSON values: judge, version, threshold, model."""
        ...

    @property
    def per_sample(self) -> bool:
        """True if it gives one record a sample, False if one a prompt."""
        ...

    def score(self, prompts: Sequence[PromptSamples]) -> list[list[Record]]:
        """Return for each prompt its records: one a sample in order, or one for the prompt."""
        ...

    def measures(self, scores: Sequence[Sequence[Record]]) -> list[Measure]:
        """Return the figures, from what `score` returned for all prompts."""
        ...


def column(scores: Sequence[Sequence[Record]], name: str) -> list[NDArray[Any]]:
    """Return a column as one float64 array a prompt."""
    return [np.array([record[name] for record in records], dtype=float) for records in scores]


def mean_measure(name: str, values: Sequence[NDArray[Any]], better: str = "") -> Measure:
    """Return the mean over prompts of each prompt's mean over what was scored."""
    return reduced_measure(name, values, np.mean, better)


def reduced_measure(
    name: str, values: Sequence[NDArray[Any]], reduce: Statistic, better: str = ""
) -> Measure:
    """Return the mean over prompts of `reduce` over each prompt's scored values."""
    kept = [prompt[~np.isnan(prompt)] for prompt in values]
    units = np.array([reduce(prompt) if len(prompt) else np.nan for prompt in kept])
    return Measure(name, units, sum(map(len, kept)), sum(map(len, values)), better)


def _whole(units: NDArray[Any]) -> NDArray[Any]:
    """Return (P,) bool, True where a prompt was scored."""
    missing: NDArray[Any] = np.isnan(units.reshape(len(units), -1)).any(axis=1)
    return ~missing
