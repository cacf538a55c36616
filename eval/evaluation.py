"""Evaluate generations by several metrics: which metrics, in what order, and the report that comes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decoder.contracts import UserError
from decoder.models import load_model
from decoder.records import about as about_run
from decoder.terminal import progress
from eval.generations import PromptSamples
from eval.judge import ATTRIBUTES, EMBEDDED, parse_judge
from eval.metric import Measure, Metric
from eval.score_store import digest, score_metric

METRICS = {
    "toxicity": "judged toxicity of the continuations",
    "sentiment": "judged positivity of prompt and continuation",
    "perplexity": "conditional perplexity under --model",
    "diversity": "dist-1/2/3, self-BLEU and repetition",
    "reward": "reward, and KL to the base model, from the file's own records and traces",
}
DEFAULT_METRICS = ("toxicity", "sentiment", "perplexity", "diversity")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured. measures: metric name -> its figures; about: metric name -> judge, version, ..."""

    prompts: Sequence[PromptSamples]
    digest: str
    measures: Mapping[str, list[Measure]]
    about: Mapping[str, Mapping[str, Any]]

    def all_measures(self) -> list[Measure]:
        """Return the figures of every metric in order."""
        return [measure for found in self.measures.values() for measure in found]


def check_names(metrics: Sequence[str], judges: Sequence[str]) -> None:
    """Raise UserError for a metric or judge that is not known, before anything is loaded."""
    for name in metrics:
        if name not in METRICS:
            known = "; ".join(f"{each} ({what})" for each, what in METRICS.items())
            raise UserError(f"unknown metric {name!r}: choose among {known}")
    if len(set(metrics)) < len(metrics):
        raise UserError(f"metrics {', '.join(metrics)} name one twice: name each once")
    asked = [parse_judge(judge, [m for m in metrics if m in ATTRIBUTES]) for judge in judges]
    for spec in asked:
        if spec.attribute not in metrics:
            raise UserError(
                f"judge {spec.name!r} is for {spec.attribute}, which is no metric asked for: add it"
            )
        if asked.count(spec) > 1:
            raise UserError(f"judge {spec.name!r} is named twice for {spec.attribute}: name it once")


def make_metrics(
    metrics: Sequence[str], judges: Sequence[str], load: Callable[[], Any] = load_model
) -> list[Metric]:
    """Return the metrics by name, judges loaded; `load` gives perplexity's model, if that is asked for."""
    check_names(metrics, judges)
    found: list[Metric] = []
    for name in metrics:
        found += _attribute(name, metrics, judges) if name in ATTRIBUTES else [_other(name, load)]
    return found


def _attribute(name: str, metrics: Sequence[str], judges: Sequence[str]) -> list[Metric]:
    """Return one metric a judge of the attribute; each but the first carries its judge's name."""
    from eval.attribute import AttributeMetric

    specs = [parse_judge(judge, [m for m in metrics if m in ATTRIBUTES]) for judge in judges]
    mine = [spec for spec in specs if spec.attribute == name] or [parse_judge(EMBEDDED, [name])]
    return [AttributeMetric(spec.load(), spec.name if i else "") for i, spec in enumerate(mine)]


def _other(name: str, load: Callable[[], Any]) -> Metric:
    from eval.diversity import Diversity
    from eval.perplexity import Perplexity
    from eval.reward_kl import RewardAndKL

    if name == "perplexity":
        return Perplexity(load())
    return Diversity() if name == "diversity" else RewardAndKL()


def evaluate(
    prompts: Sequence[PromptSamples], metrics: Sequence[Metric], folder: Path, *, resume: bool = True
) -> Evaluation:
    """Score every sample by every metric and write the folder: scores, units.jsonl and report.json.

    Scores that an interrupted run left in the folder are taken over, unless they were made otherwise
    (then UserError, with the difference).
    """
    key = digest(prompts)
    measures: dict[str, list[Measure]] = {}
    total = sum(len(prompt.texts) for prompt in prompts)
    for metric in metrics:
        with progress(f"scoring {metric.name}", total) as advance:
            scores = score_metric(
                metric, prompts, folder / f"{metric.name}.jsonl", generations_digest=key,
                advance=advance, resume=resume,
            )  # fmt: skip
        measures[metric.name] = metric.measures(scores)
    done = Evaluation(prompts, key, measures, {metric.name: dict(metric.about) for metric in metrics})
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
        "measures": [
            figure(metric, measure) for metric, found in done.measures.items() for measure in found
        ],
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
