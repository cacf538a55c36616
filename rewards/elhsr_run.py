"""One run of `rewards.train_elhsr`: load, read the states, fit once or several times, save, report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoder.contracts import UserError
from decoder.models import LoadedModel, cache_directory, versions
from rewards.arm_run import ModelOptions, load_generator
from rewards.elhsr import ElhsrConfig
from rewards.elhsr_material import DataOptions, RolloutSet, read_sets, split, with_states
from rewards.fit_elhsr import Recipe
from rewards.measure_choice import ChoiceMeasures, measure_choice
from rewards.output_folder import write_folder
from rewards.probe_forms import Fitted, Shape, bind_shape, fit_form
from rewards.report_elhsr import report


@dataclass(frozen=True, slots=True)
class Trained:
    """A fitted probe and its measures: "validation" and each test file -> `ChoiceMeasures`."""

    fitted: Fitted
    n_prompts: int
    seed: int
    seconds: float
    measures: dict[str, ChoiceMeasures]


@dataclass(frozen=True, slots=True)
class Search:
    """What to fit, how, on how many prompts beside all of them, and with how many seeds."""

    shape: Shape
    recipe: Recipe
    sizes: tuple[int, ...] = ()
    repeat: int = 1


def train_and_save(
    data: DataOptions, search: Search, model: ModelOptions, output: Path, *, chat: bool, cache: Path | None
) -> None:
    """Write a probe into `output` and print how well it chooses, first on fewer prompts where asked.

    Raises UserError for unusable data, model, layers, cache or output folder.
    """
    sets = read_sets(data)
    loaded = load_generator(model)
    search = replace(search, shape=bind_shape(search.shape, loaded))
    read = _read(data, sets, search.shape.config, loaded, cache, chat=chat)
    runs = [train(read, loaded, search, size, seed) for size, seed in _plan(search, read["training"])]
    kept = next(run for run in runs if run.n_prompts == max(each.n_prompts for each in runs))
    about = describe(kept, runs, search, read)
    write_folder(output, lambda half: kept.fitted.save(half, loaded.lm.identity, about))
    report(output, about)


def _read(
    data: DataOptions,
    sets: Sequence[Any],
    config: ElhsrConfig,
    loaded: LoadedModel,
    cache: Path | None,
    *,
    chat: bool,
) -> dict[str, RolloutSet]:
    """Return "training" and each test file -> its rollouts with their states."""
    folder = cache or cache_directory() / "states"
    names = ["training", *(Path(test).name for test in data.tests)]
    if len(set(names)) < len(names):
        raise UserError(f"test files {', '.join(names[1:])} share a name: rename one, or leave it out")
    return {
        name: with_states(
            loaded, rollouts, config.layers, folder,
            chat=chat, title=f"reading states of {name}", likelihood=config.likelihood,
        )
        for name, rollouts in zip(names, sets, strict=True)
    }  # fmt: skip


def _plan(search: Search, material: RolloutSet) -> list[tuple[int | None, int]]:
    """Return (number of training prompts, None for all; seed) of every fit."""
    seeds = range(search.recipe.seed, search.recipe.seed + search.repeat)
    too_many = [size for size in search.sizes if size > len(material.rollouts)]
    if too_many:
        raise UserError(
            f"a learning curve of {too_many[0]} prompts needs more than the {len(material.rollouts)} there "
            "are: leave it out"
        )
    return [(size, seed) for size in (*search.sizes, None) for seed in seeds]


def train(
    read: Mapping[str, RolloutSet], loaded: LoadedModel, search: Search, size: int | None, seed: int
) -> Trained:
    """Return a probe fitted on `size` of the prompts, validation ones included, and its measures."""
    begin = time.perf_counter()
    material, recipe = read["training"], replace(search.recipe, seed=seed)
    sides = split(material.rollouts, seed, recipe.loss)
    if size is not None:
        sides = _first(*sides, size, seed)
    fitted = fit_form(search.shape, recipe, material.subset(torch.cat(sides)), loaded, *sides)
    seconds = time.perf_counter() - begin
    measured = {"validation": material.subset(sides[1]), **{k: v for k, v in read.items() if k != "training"}}
    measures = {name: measure_choice(*each.by_prompt(fitted.score(each))) for name, each in measured.items()}
    return Trained(fitted, sum(map(len, sides)), seed, seconds, measures)


def _first(train: Tensor, validation: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a seeded choice of `size` prompts, a fifth of them for validation."""
    generator = torch.Generator().manual_seed(seed)
    held_out = max(1, size // 5)
    picked = train[torch.randperm(len(train), generator=generator)[: size - held_out]]
    return picked.sort().values, validation[torch.randperm(len(validation), generator=generator)[:held_out]]


def describe(
    kept: Trained, runs: Sequence[Trained], search: Search, read: Mapping[str, RolloutSet]
) -> dict[str, Any]:
    """Return what the saved probe tells of its making, as JSON values."""
    shape = search.shape
    return {
        "recipe": asdict(search.recipe) | {"form": shape.form, "components": shape.components},
        "n_parameters": kept.fitted.n_parameters,
        "validation_loss": kept.fitted.validation_loss,
        "epoch": kept.fitted.epoch,
        "metrics": {name: asdict(found) for name, found in kept.measures.items()},
        "fits": [
            {
                "prompts": run.n_prompts,
                "seed": run.seed,
                "epoch": run.fitted.epoch,
                "seconds": round(run.seconds, 1),
            }
            | {name: asdict(found) for name, found in run.measures.items()}
            for run in runs
        ],
        "training": {
            "command": shlex.join(["python", "-m", "rewards.train_elhsr", *map(_name, sys.argv[1:])]),
            "n_prompts": {name: len(each.rollouts) for name, each in read.items()},
            "n_completions": {name: len(each.labels) for name, each in read.items()},
            "n_tokens": {name: int(each.states.lengths.sum()) for name, each in read.items()},
            "seconds_reading_states": {name: round(each.seconds, 1) for name, each in read.items()},
            "versions": versions(),
        },
    }


def _name(argument: str) -> str:
    return Path(argument).name if "/" in argument else argument
