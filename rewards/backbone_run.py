"""One training run of a reward with its own backbone: load, learn, measure, save, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from decoder.contracts import ModelIdentity, UserError
from decoder.lm import CausalLM
from decoder.models import pick_device, versions
from rewards.adapt import Shape, Student, make_student
from rewards.arm import Output
from rewards.arm_material import Material
from rewards.arm_run import ModelOptions, about_data, load_generator
from rewards.backbone import DEFAULT_OUTPUT, BackboneConfig, save_pretrained
from rewards.backbone_texts import TokenTexts, encode
from rewards.checkpoints import check_settings, partial_folder
from rewards.distil import Teacher, load_teacher
from rewards.fit_backbone import (
    Fitted,
    Recipe,
    Scorer,
    count_steps,
    fit,
    make_accelerator,
    read_values,
)
from rewards.labelled_text import LabelledTexts
from rewards.lesson import Lesson, make_lesson
from rewards.measure_arm import Measures, measure
from rewards.output_folder import write_folder
from rewards.report_backbone import report
from rewards.training_options import BackboneOptions, GeneratorOptions, TeacherOptions

LEARNING_RATES = {"lora": 2e-4, "full": 2e-5, "none": 1e-3}
N_EVALUATIONS = 10  # of a run, where --eval-every does not say


@dataclass(frozen=True, slots=True)
class Wanted:
    """The reward wanted. output: None for the one that goes with the loss."""

    kind: Literal["rad", "backbone_arm"]
    rank: int | None
    epochs: int
    output: Output | None
    max_length: int
    seed: int


def train_backbone(
    material: Material,
    wanted: Wanted,
    options: BackboneOptions,
    teaching: TeacherOptions,
    generator: GeneratorOptions,
    output: Path,
) -> None:
    """Write a reward with its own backbone into `output` and print how good it is.

    Raises UserError for an unusable model, teacher or output folder, and for a run of other settings that
    stopped with the same output.
    """
    begin = time.perf_counter()
    device = pick_device(generator.device)
    accelerator = make_accelerator(device, options.mixed_precision)
    lm = load_generator(ModelOptions(*generator.values())).lm
    columns = material.labelled.columns
    shape = Shape(
        wanted.kind, options.adapt, len(columns), wanted.rank, options.lora_rank, options.freeze_embeddings
    )
    name, revision = options.backbone or generator.model, None if options.backbone else generator.revision
    student = make_student(name, revision, accelerator.device, lm.identity, shape, wanted.seed)
    texts = _read(material, student, wanted.max_length)
    teacher = _teacher(teaching, lm, student, columns)
    lesson = make_lesson(options, teaching, teacher, lm, student.tokenizer.bos_token_id)
    recipe = make_recipe(options, wanted.epochs, wanted.seed, len(material.train))
    partial = partial_folder(output.resolve())
    check_settings(
        partial, _settings(material, student, lm.identity, shape, recipe, wanted, teaching, teacher)
    )
    seconds = {"load": material.seconds + time.perf_counter() - begin}
    fitted = fit(
        student.scorer, lesson.objective, texts["train"], texts["validation"], recipe, accelerator, partial
    )
    seconds["fit"], begin = fitted.seconds, time.perf_counter()
    measures = _measure(student.scorer, lesson, texts, columns, accelerator.device)
    seconds["measure"] = time.perf_counter() - begin
    config = BackboneConfig(
        student.base, options.adapt, columns, columns[0], lesson.link,
        wanted.output or DEFAULT_OUTPUT[lesson.link], student.tokenizer.bos_token_id, wanted.rank, revision,
    )  # fmt: skip
    about = _about(material, texts, wanted, recipe, teaching, teacher, fitted, measures, seconds)
    _save(output, wanted.kind, student, config, lm.identity, about)
    shutil.rmtree(partial)
    report(output, config, about)


def _read(material: Material, student: Student, max_length: int) -> dict[str, TokenTexts]:
    """Return the texts to train on, to choose on, and of every test, under its name."""

    def read(labelled: LabelledTexts) -> TokenTexts:
        labels = torch.from_numpy(labelled.labels)
        return encode(student.tokenizer, labelled.texts, labels, max_length, student.context)

    main = material.labelled
    parts = {"train": read(main.take(material.train)), "validation": read(main.take(material.validation))}
    return parts | {f"test {name}": read(labelled) for name, labelled in material.tests.items()}


def _teacher(
    teaching: TeacherOptions, lm: CausalLM, student: Student, columns: tuple[str, ...]
) -> Teacher | None:
    if not teaching.teacher:
        return None
    if len(teaching.teacher) > 1:
        names = ", ".join(map(str, teaching.teacher))
        raise UserError(
            f"--form backbone learns from one teacher, not from {names}: only a tap ARM from several"
        )
    return load_teacher(teaching.teacher[0], lm, student.tokenizer.bos_token_id, columns)


def make_recipe(options: BackboneOptions, epochs: int, seed: int, n_texts: int) -> Recipe:
    """Return the numbers of a fit on so many texts, with the defaults that depend on them filled in."""
    share = max(1, count_steps(n_texts, epochs, options.batch_size) // N_EVALUATIONS)
    return Recipe(
        LEARNING_RATES[options.adapt] if options.learning_rate is None else options.learning_rate,
        epochs,
        options.batch_size,
        options.eval_every or share,
        options.save_every or share,
        options.accumulate,
        options.warmup,
        mixed_precision=options.mixed_precision,
        seed=seed,
    )


def _settings(
    material: Material,
    student: Student,
    generator: ModelIdentity,
    shape: Shape,
    recipe: Recipe,
    wanted: Wanted,
    teaching: TeacherOptions,
    teacher: Teacher | None,
) -> dict[str, Any]:
    """Return all that the trained weights depend on."""
    labelled = material.labelled
    parts = {"train": material.train, "validation": material.validation}
    found = {**asdict(shape), **asdict(recipe), **asdict(teaching), "max_length": wanted.max_length}
    found |= {name: labelled.take(rows).fingerprint() for name, rows in parts.items()}
    found |= {"backbone": student.base.weights, "teacher": teacher and teacher.digest}
    found |= {"model": generator.weights} if teacher and teaching.distil == "candidates" else {}
    return {name: value for name, value in found.items() if name != "save_every"}


def _measure(
    scorer: Scorer,
    lesson: Lesson,
    texts: Mapping[str, TokenTexts],
    columns: tuple[str, ...],
    device: torch.device,
) -> dict[str, dict[str, list[Measures]]]:
    """Return measures by prefix: label column -> set of texts -> rows of the table."""
    found: dict[str, dict[str, list[Measures]]] = {column: {} for column in columns}
    for name, part in texts.items():
        if name == "train":
            continue
        values = read_values(scorer, part, device, f"measuring {name}")
        log_odds = lesson.log_odds(values, part.read)
        for number, column in enumerate(columns):
            rows = measure(log_odds[:, number], np.array(part.read), part.labels[:, number].double().numpy())
            found[column][name.removeprefix("test ")] = rows
    return found


def _about(
    material: Material,
    texts: Mapping[str, TokenTexts],
    wanted: Wanted,
    recipe: Recipe,
    teaching: TeacherOptions,
    teacher: Teacher | None,
    fitted: Fitted,
    measures: Mapping[str, Mapping[str, list[Measures]]],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return what the saved reward tells of its making, ready for JSON."""
    module = "rewards.train_rad" if wanted.kind == "rad" else "rewards.train_arm"
    n_tokens = texts["train"].n_scored() + texts["validation"].n_scored()
    taught = None
    if teaching.teacher and teacher is not None:
        taught = {**asdict(teaching), "teacher": teaching.teacher[0].name, "digest": teacher.digest}
    return {
        "metrics": {
            column: {name: [asdict(row) for row in rows] for name, rows in parts.items()}
            for column, parts in measures.items()
        },
        "recipe": {**asdict(recipe), "max_length": wanted.max_length, "regularise": teaching.regularise},
        "teacher": taught,
        "fit": fitted.about(),
        "training": {
            **about_data(module, material, n_tokens),
            "split_seed": wanted.seed,
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "versions": {**versions(), **_training_versions()},
        },
    }


def _training_versions() -> dict[str, str | None]:
    return {name: version(name) if find_spec(name) else None for name in ("accelerate", "peft")}


def _save(
    output: Path,
    kind: str,
    student: Student,
    config: BackboneConfig,
    generator: ModelIdentity,
    about: Mapping[str, Any],
) -> None:
    def write(half: Path) -> None:
        save_pretrained(
            half,
            kind,
            student.scorer.head,
            config,
            model=student.model,
            tokenizer=student.tokenizer,
            base_model=generator,
            about=about,
        )

    write_folder(output, write)
