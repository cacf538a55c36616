"""One training run: load the generator, read the states, search, save, report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from decoder.models import LoadedModel, cache_directory, load_model, quiet_transformers, versions
from decoder.records import process_peak
from rewards.arm import ArmConfig, Output, Summary, save_pretrained
from rewards.arm_material import Material
from rewards.arm_training import ReadMaterial, Search, TrainedArm, read_material, train
from rewards.ask_teacher import ask_teachers
from rewards.fit_arm import Recipe
from rewards.output_folder import write_folder
from rewards.report_arm import report
from rewards.select_arm import RANKS, WEIGHT_DECAYS, default_layers
from rewards.training_options import TeacherOptions


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """What to fit. No layers, rank or weight decay: chosen on validation."""

    layers: tuple[int, ...] = ()
    rank: int | None = None
    weight_decay: float | None = None
    summary: Summary = "text"
    output: Output = "log_probability"
    epochs: int = 6
    max_length: int = 256
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The generator, as `load_model` takes it."""

    name: str
    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False


def train_and_save(
    material: Material,
    head: HeadOptions,
    model: ModelOptions,
    output: Path,
    *,
    places: Mapping[str, Path],
    cache: Path | None,
    teaching: TeacherOptions,
) -> None:
    """Write a reward into `output`, or for several labels into their `places`, and print how good it is.

    teaching: teachers whose values are learnt in place of the labels, if it names any. Raises UserError for
    an unusable model, layer, cache, teacher or output folder.
    """
    begin = time.perf_counter()
    loaded = load_generator(model)
    search = _search(head, loaded)
    load_seconds = material.seconds + time.perf_counter() - begin
    folder = cache or cache_directory() / "states"
    taught = None
    if teaching.teacher:
        taught = ask_teachers(teaching, loaded, material, folder, head.max_length, head.seed)
    read = read_material(loaded, material, search.layers, folder, head.max_length)
    if taught is not None:
        read = replace(read, soft=taught.soft, candidates=taught.candidates)
    for trained in train(loaded, material, read, search):
        seconds = {
            "load": load_seconds,
            "features": read.seconds,
            "selection": trained.choice.selection_seconds,
            "fit": trained.choice.fit_seconds,
        }
        if taught is not None:
            seconds["teacher"] = taught.seconds
        provenance = _provenance(material, read, head.seed, seconds)
        if taught is not None:
            provenance["teacher"] = taught.about
        _save(places.get(trained.column, output), trained, loaded, provenance)


def load_generator(model: ModelOptions) -> LoadedModel:
    """Return the generator, without transformers' own notices. UserError if it cannot be loaded."""
    quiet_transformers()
    return load_model(
        model.name,
        dtype=model.dtype,
        device=model.device,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
    )


def _search(head: HeadOptions, loaded: LoadedModel) -> Search:
    """Return what to try. Raises UserError for a layer the model lacks."""
    loaded.lm.start(head.layers)
    return Search(
        ArmConfig((), loaded.lm.identity.hidden_size, summary=head.summary, output=head.output),
        Recipe(epochs=head.epochs, seed=head.seed),
        head.layers or default_layers(loaded.lm.identity.num_layers),
        RANKS if head.rank is None else (head.rank,),
        WEIGHT_DECAYS if head.weight_decay is None else (head.weight_decay,),
        fixed_layers=bool(head.layers),
    )


def _save(folder: Path, trained: TrainedArm, loaded: LoadedModel, provenance: Mapping[str, Any]) -> None:
    about = {**trained.about(), "training": provenance}
    write_folder(
        folder, lambda half: save_pretrained(trained.choice.fit.head, half, loaded.lm.identity, about)
    )
    report(folder, trained, provenance)


def _provenance(
    material: Material, read: ReadMaterial, seed: int, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Return where a head came from; names of files without their folders."""
    return {
        **about_data("rewards.train_arm", material, len(read.states.next_ids)),
        "split_seed": seed,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "versions": versions(),
    }


def about_data(module: str, material: Material, n_tokens: int) -> dict[str, Any]:
    """Return the command of that module and the data it was given, without folders, ready for JSON."""
    labelled = material.labelled
    shares = labelled.labels.mean(0).round(4).tolist()
    return {
        "command": shlex.join(["python", "-m", module, *map(_without_folder, sys.argv[1:])]),
        "files": labelled.files,
        "sha256": labelled.fingerprint(),
        "n_texts": {"train": len(material.train), "validation": len(material.validation)},
        "n_tokens": n_tokens,
        "peak_memory_mib": process_peak() // 2**20,
        "n_rows_empty": labelled.n_empty,
        "n_rows_repeated": labelled.n_repeated,
        "positive_share": dict(zip(labelled.columns, shares, strict=True)),
    }


def _without_folder(argument: str) -> str:
    path, marks, settings = argument.partition("::")
    return Path(path).name + marks + settings if "/" in path else argument
