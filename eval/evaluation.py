"""Evaluate generations by several metrics: the scores, the units of the figures, and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decoder.records import about as about_run
from decoder.terminal import progress
from eval.generations import PromptSamples
from eval.metric import Measure, Metric, Record
from eval.score_store import digest, score_metric


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured, by metric name: each prompt's records, the figures, and judge, version and so on."""

    prompts: Sequence[PromptSamples]
    digest: str
    scores: Mapping[str, Sequence[Sequence[Record]]]
    measures: Mapping[str, list[Measure]]
    about: Mapping[str, Mapping[str, Any]]

    def all_measures(self) -> list[Measure]:
        """Return the figures of every metric in order."""
        return [measure for found in self.measures.values() for measure in found]


def evaluate(
    prompts: Sequence[PromptSamples], metrics: Sequence[Metric], folder: Path, *, resume: bool = True
) -> Evaluation:
    """Score every sample by every metric and write the folder: scores, units.jsonl and report.json.

    Scores that an interrupted run left in the folder are taken over, unless they were made otherwise
    (then UserError, with the difference).
    """
    key = digest(prompts)
    scores: dict[str, list[list[Record]]] = {}
    total = sum(len(prompt.texts) for prompt in prompts)
    for metric in metrics:
        with progress(f"scoring {metric.name}", total) as advance:
            scores[metric.name] = score_metric(
                metric, prompts, folder / f"{metric.name}.jsonl", generations_digest=key,
                advance=advance, resume=resume,
            )  # fmt: skip
    measures = {metric.name: metric.measures(scores[metric.name]) for metric in metrics}
    about = {metric.name: dict(metric.about) for metric in metrics}
    done = Evaluation(prompts, key, scores, measures, about)
    write_units(folder / "units.jsonl", done)
    report = json.dumps(to_json(done), ensure_ascii=False, indent=2, allow_nan=False)
    (folder / "report.json").write_text(report + "\n", encoding="utf-8")
    return done


def to_json(done: Evaluation) -> dict[str, Any]:
    """Return the report: what was measured, by what, and every figure with interval, n and coverage."""
    return {
        "generations": {
            "source": done.prompts[0].source.rpartition(", line")[0],
            "digest": done.digest,
            "prompts": len(done.prompts),
            "samples": sum(len(prompt.texts) for prompt in done.prompts),
        },
        "run": about_run(),
        "metrics": done.about,
        "measures": [figure(metric, measure) for metric, found in done.measures.items() for measure in found],
    }


def figure(metric: str, measure: Measure) -> dict[str, Any]:
    """Return one figure as JSON values; what was not scored is null."""
    estimate = measure.estimate()
    return {
        "name": measure.name,
        "metric": metric,
        "value": _number(estimate.value),
        "interval": [_number(end) for end in estimate.interval],
        "n": estimate.n,
        "scored": measure.scored,
        "total": measure.total,
        "better": measure.better,
        "statistic": measure.statistic,
    }


def write_units(path: Path, done: Evaluation) -> None:
    """Write what intervals and comparisons are computed from: each prompt's unit of every figure."""
    measures = done.all_measures()
    with path.open("w", encoding="utf-8") as file:
        for row, prompt in enumerate(done.prompts):
            units = {measure.name: _plain(measure.units[row]) for measure in measures}
            file.write(json.dumps({"prompt_id": prompt.id, **units}, ensure_ascii=False) + "\n")


def _plain(unit: Any) -> Any:
    values = [_number(value) for value in np.atleast_1d(unit)]
    return values if np.ndim(unit) else values[0]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
