"""From labelled texts and a generator to calibrated tap ARMs, one for each label column."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from decoder.models import LoadedModel
from rewards.arm import ArmConfig
from rewards.arm_material import Material
from rewards.candidate_values import CandidateValues
from rewards.features import TokenStates, progress_bar, read_states, tokenise
from rewards.fit_arm import Recipe, Task, score_texts
from rewards.labelled_text import LabelledTexts
from rewards.measure_arm import Measures, measure
from rewards.select_arm import Choice, choose, count_fits


@dataclass(frozen=True, slots=True)
class Search:
    """What may vary, and what is tried. fixed_layers: read all `layers` instead of choosing among them."""

    arm: ArmConfig
    recipe: Recipe
    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    weight_decays: tuple[float, ...]
    fixed_layers: bool


@dataclass(frozen=True, slots=True)
class ReadMaterial:
    """The states of all texts: those to learn from, and of each test. seconds: of reading them.

    soft: (N, L) float32, a teacher's P(attribute) of each column at the states to learn from. candidates:
    its values of other tokens there.
    """

    states: TokenStates
    tests: dict[str, TokenStates]
    seconds: float
    soft: torch.Tensor | None = None
    candidates: CandidateValues | None = None


@dataclass(frozen=True, slots=True)
class TrainedArm:
    """A head for one label column, and how it did: set of texts -> measures by prefix."""

    column: str
    choice: Choice
    measures: dict[str, list[Measures]]

    def about(self) -> dict[str, Any]:
        """Return what the saved head tells of its making, ready for JSON."""
        found = self.choice.fit
        return {
            "label_column": self.column,
            "metrics": {name: [asdict(row) for row in rows] for name, rows in self.measures.items()},
            "calibration": {"temperature": found.temperature, "bias": found.bias, "classes": "balanced"},
            "recipe": {
                **asdict(self.choice.recipe),
                "epoch_kept": found.epoch,
                "validation_loss": found.loss,
            },
            "selection": [asdict(trial) for trial in self.choice.trials],
        }


def read_material(
    loaded: LoadedModel, material: Material, layers: tuple[int, ...], cache: Path, max_length: int
) -> ReadMaterial:
    """Return the states of all texts at `layers`, from the cache as far as it has them."""
    begin = time.perf_counter()

    def states(labelled: LabelledTexts, title: str) -> TokenStates:
        rows = tokenise(loaded.tokenizer, labelled.texts, max_length)
        return read_states(loaded.lm, rows, layers, cache, title=title)

    main = states(material.labelled, "reading states")
    tests = {name: states(labelled, f"reading {name}") for name, labelled in material.tests.items()}
    return ReadMaterial(main, tests, time.perf_counter() - begin)


def train(
    loaded: LoadedModel, material: Material, read: ReadMaterial, search: Search
) -> Iterator[TrainedArm]:
    """Yield a head for each label column as it is ready."""
    embeddings = loaded.lm.output_embeddings.detach().cpu()
    labelled = material.labelled
    for number, column in enumerate(labelled.columns):
        task = Task(
            read.states,
            embeddings,
            labelled.labels[:, number],
            torch.from_numpy(material.train),
            torch.from_numpy(material.validation),
            None if read.soft is None else read.soft[:, number],
            None if read.candidates is None else read.candidates.label(number),
        )
        choice = _search(task, search, f"fitting {column}")
        yield TrainedArm(column, choice, _measure(choice, task, material, read, number))


def _search(task: Task, search: Search, title: str) -> Choice:
    layers, ranks, decays, fixed = search.layers, search.ranks, search.weight_decays, search.fixed_layers
    with progress_bar() as progress:
        bar = progress.add_task(title, total=count_fits(layers, ranks, decays, fixed))
        return choose(
            task,
            search.arm,
            search.recipe,
            layers=layers,
            ranks=ranks,
            weight_decays=decays,
            fixed_layers=fixed,
            on_fit=lambda: progress.advance(bar),
        )


def _measure(
    choice: Choice, task: Task, material: Material, read: ReadMaterial, column: int
) -> dict[str, list[Measures]]:
    """Return the measures on the validation texts and on every test."""
    found = {"validation": _measures(choice, task, task.validation)}
    for name, labelled in material.tests.items():
        test = replace(task, states=read.tests[name], labels=labelled.labels[:, column])
        found[name] = _measures(choice, test, torch.arange(len(labelled.texts)))
    return found


def _measures(choice: Choice, task: Task, texts: torch.Tensor) -> list[Measures]:
    scores = score_texts(choice.fit.head, task, texts).double().numpy()
    return measure(scores, task.states.lengths[texts].numpy(), task.labels[texts.numpy()])
