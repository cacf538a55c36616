"""Metrics by name, for commands. Imports what a metric needs only when it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from decoder.contracts import UserError
from eval.judge import ATTRIBUTES, EMBEDDED, parse_judge
from eval.metric import Metric

METRICS = {
    "toxicity": "judged toxicity of the continuations",
    "sentiment": "judged positivity of prompt and continuation",
    "perplexity": "conditional perplexity under --model",
    "diversity": "dist-1/2/3, self-BLEU and repetition",
    "recorded": "toxicity scores that the file itself carries, such as Perspective's",
    "reward": "reward, and KL to the base model, from the file's own records and traces",
}
DEFAULT_METRICS = ("toxicity", "sentiment", "perplexity", "diversity")


def check_names(metrics: Sequence[str], judges: Sequence[str], reads: str = "") -> None:
    """Raise UserError for a metric, judge or reading that is not known, before anything is loaded."""
    if reads not in ("", "whole", "continuation"):
        raise UserError(f"judges cannot read {reads!r}: choose whole or continuation, or leave it out")
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
    metrics: Sequence[str], judges: Sequence[str], load: Callable[[], Any], reads: str = ""
) -> list[Metric]:
    """Return the metrics by name, judges loaded; `load` gives perplexity's model, if that is asked for.

    reads: "whole" or "continuation" for every judge, "" for what the protocols have.
    """
    check_names(metrics, judges, reads)
    found: list[Metric] = []
    for name in metrics:
        found += _attribute(name, metrics, judges, reads) if name in ATTRIBUTES else [_other(name, load)]
    return found


def _attribute(name: str, metrics: Sequence[str], judges: Sequence[str], reads: str) -> list[Metric]:
    """Return one metric a judge of the attribute; each but the first carries its judge's name."""
    from eval.attribute import AttributeMetric

    specs = [parse_judge(judge, [m for m in metrics if m in ATTRIBUTES]) for judge in judges]
    mine = [spec for spec in specs if spec.attribute == name] or [parse_judge(EMBEDDED, [name])]
    return [AttributeMetric(spec.load(), spec.name if i else "", reads) for i, spec in enumerate(mine)]


def _other(name: str, load: Callable[[], Any]) -> Metric:
    from eval.diversity import Diversity
    from eval.perplexity import Perplexity
    from eval.recorded import Recorded
    from eval.reward_kl import RewardAndKL

    if name == "perplexity":
        return Perplexity(load())
    return {"diversity": Diversity, "recorded": Recorded, "reward": RewardAndKL}[name]()
