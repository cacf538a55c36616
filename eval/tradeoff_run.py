"""Generate and judge every reward at every strength."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from decoder.config import DecodeConfig
from decoder.contracts import UserError
from decoder.decoder import Decoder
from decoder.generate import write
from eval.curves import AXES, RELATIVE_TIME, Curve, Example, Point, worst_first
from eval.evaluation import Evaluation, evaluate
from eval.generations import read_generations
from eval.metric import Metric
from prompts.reading import Prompt
from rewards.output_folder import safe_name

EXAMPLES = 8  # a point and attribute
COST = "cost.json"


@dataclass(frozen=True, slots=True)
class Method:
    """A reward (name or directory) and the strengths to try it at."""

    reward: str
    betas: tuple[float, ...]

    def strengths(self) -> list[float]:
        """Return the betas that steer, in order."""
        return sorted({beta for beta in self.betas if beta})


@dataclass(frozen=True, slots=True)
class Plan:
    """Rewards with their strengths, prompts and the numbers of the decode."""

    methods: tuple[Method, ...]
    prompts: Sequence[Prompt]
    config: DecodeConfig

    def __post_init__(self) -> None:
        """Refuse rewards that would share a file: they are named after the last part of their path."""
        names = [Path(method.reward).absolute().name for method in self.methods]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise UserError(f"two rewards are called {name!r}: name each once, or rename a folder")


def run_plan(
    decoder: Decoder,
    plan: Plan,
    metrics: Sequence[Metric],
    attributes: Sequence[str],
    folder: Path,
    *,
    overwrite: bool,
) -> tuple[list[Curve], dict[str, Any]]:
    """Return one curve a reward, all starting from the same unsteered point, and the settings.

    Unsteered samples are drawn from the same number of candidates and with the same random numbers.
    Raises UserError for a reward that does not fit before anything is generated.
    """
    weighted = {method: decoder.weigh(method.reward, 1.0)[0].name for method in plan.methods}
    at = _Bench(decoder, plan, metrics, attributes, folder, overwrite)
    plain = at.point("unsteered", None, 0.0)
    curves = []
    for method, name in weighted.items():
        file = safe_name(name)
        points = [at.point(f"{file}_beta{beta:g}", method.reward, beta) for beta in method.strengths()]
        curves.append(Curve(name, tuple(_relative(point, plain) for point in [plain, *points])))
    settings = {
        "samples a prompt": plan.config.num_return_sequences,
        "max_new_tokens": plan.config.max_new_tokens,
        "candidates": plan.config.sampling.reward_top_k,
        "seed": plan.config.seed,
        "dtype": str(decoder.lm.model.dtype).removeprefix("torch."),
        **{metric.name: ", ".join(f"{k} {v}" for k, v in metric.about.items()) for metric in metrics},
    }
    return curves, settings


@dataclass(frozen=True, slots=True)
class _Bench:
    """What every point of a plan shares."""

    decoder: Decoder
    plan: Plan
    metrics: Sequence[Metric]
    attributes: Sequence[str]
    folder: Path
    overwrite: bool

    def point(self, name: str, reward: str | None, beta: float) -> Point:
        """Return the judged point of one file of samples, generated as far as it is not there."""
        file = self.folder / f"{name}.jsonl"
        seconds = self._generate(file, reward, beta)
        prompts = read_generations(file)
        done = evaluate(prompts, self.metrics, self.folder / name, resume=not self.overwrite)
        tokens = sum(int(record["num_tokens"]) for prompt in prompts for record in prompt.records)
        cost = {} if seconds is None else {"tokens/s": tokens / seconds}
        examples = [each for kind in self.attributes for each in _examples(kind, done)]
        return Point(f"β {beta:g}" if reward else "unsteered", beta, _estimates(done), cost, tuple(examples))

    def _generate(self, file: Path, reward: str | None, beta: float) -> float | None:
        """Write the samples; return the seconds that all of the file took, over all runs that wrote it.

        None where a run that wrote some of it did not say.
        """
        config, weighted = self.plan.config, self.decoder.weigh(reward, beta) if reward else []
        if not weighted:  # plain decoding is open to every token unless told otherwise
            config = replace(config, sampling=replace(config.sampling, top_k=config.sampling.reward_top_k))
        settings = {"model": self.decoder.lm.identity.name, "chat": False, "trace": False}
        costs = _read_costs(self.folder / COST)
        held = 0 if self.overwrite or not file.exists() else file.stat().st_size
        before = costs.get(file.name) if held else 0.0
        begin = time.perf_counter()
        prompts = list(self.plan.prompts)
        write(self.decoder, prompts, weighted, config, settings, file, overwrite=self.overwrite)
        took = time.perf_counter() - begin
        if before is None or file.stat().st_size == held:  # a finished file is only read through
            return before
        costs[file.name] = before + took
        (self.folder / COST).write_text(json.dumps(costs, indent=2) + "\n", encoding="utf-8")
        return costs[file.name]


def _examples(attribute: str, done: Evaluation) -> list[Example]:
    """Return the worst-judged samples of one point."""
    found = [
        Example(prompt.prompt, text, record[attribute], AXES[attribute].measure)
        for prompt, records in zip(done.prompts, done.scores[attribute], strict=True)
        for text, record in zip(prompt.texts, records, strict=True)
    ]
    return worst_first(found, AXES[attribute].better)[:EXAMPLES]


def _estimates(done: Evaluation) -> dict[str, Any]:
    return {measure.name: measure.estimate() for measure in done.all_measures()}


def _relative(point: Point, plain: Point) -> Point:
    """Return the point with its time a token as a multiple of the unsteered one's, if both are known."""
    if not plain.cost or not point.cost:
        return point
    relative = plain.cost["tokens/s"] / point.cost["tokens/s"]
    return replace(point, cost={**point.cost, RELATIVE_TIME: relative})


def _read_costs(path: Path) -> dict[str, float]:
    try:
        found: Mapping[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(f"{path} is broken: delete it; times of finished files are lost with it") from None
    return {str(name): float(seconds) for name, seconds in found.items()}
