"""One training run of an expert and an anti-expert: load, learn each, measure, save, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy

from decoder.contracts import UserError
from decoder.lm import CausalLM
from decoder.models import pick_device, versions
from decoder.terminal import progress
from rewards.adapt import Shape, Student, make_student
from rewards.arm_material import Material
from rewards.arm_run import ModelOptions, about_data, load_generator
from rewards.backbone_run import make_recipe
from rewards.backbone_texts import Batch, TokenTexts, encode, in_order, make_batch
from rewards.checkpoints import check_settings, partial_folder
from rewards.fit_backbone import (
    VALIDATION_TOKENS,
    Fitted,
    Objective,
    Recipe,
    Scorer,
    fit,
    make_accelerator,
)
from rewards.labelled_text import LabelledTexts
from rewards.language_model_reward import ANTI_EXPERT, EXPERT, save_pretrained
from rewards.measure_arm import Measures, measure
from rewards.output_folder import write_folder
from rewards.training_options import BackboneOptions, GeneratorOptions

CLOSE = 1e-3  # how far logits of states may be from the model's own, over their size


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to read the texts and how often. seed: of the fit and of the split of the texts."""

    epochs: int
    max_length: int
    seed: int


@dataclass(frozen=True, slots=True)
class Trained:
    """One of the two: what was trained, on which texts, and how it went. held_out: its validation texts."""

    student: Student
    texts: TokenTexts
    held_out: TokenTexts
    recipe: Recipe
    fitted: Fitted

    def about(self) -> dict[str, Any]:
        """Return the texts and the fit, ready for JSON."""
        counts = {"train": len(self.texts.rows), "validation": len(self.held_out.rows)}
        return {"n_texts": counts, "recipe": asdict(self.recipe), **self.fitted.about()}


def train_experts(
    material: Material,
    wanted: Wanted,
    options: BackboneOptions,
    generator: GeneratorOptions,
    output: Path,
) -> None:
    """Write an expert and an anti-expert into `output` and print how well the two tell the classes apart.

    Raises UserError for an unusable model or output folder, and for a run of other settings that stopped
    with the same output.
    """
    begin = time.perf_counter()
    lm = load_generator(ModelOptions(*generator.values())).lm
    name, revision = options.backbone or generator.model, None if options.backbone else generator.revision
    partial = partial_folder(output.resolve())
    trained: dict[str, Trained] = {}
    for side, positive in ((EXPERT, True), (ANTI_EXPERT, False)):
        device = make_accelerator(pick_device(generator.device), options.mixed_precision).device
        student = make_expert(name, revision, device, lm, options, wanted.seed)
        texts, held_out = (
            _side(material.labelled.take(rows), positive) for rows in (material.train, material.validation)
        )
        trained[side] = _train(student, texts, held_out, wanted, options, partial / side)
    judged = {"validation": material.labelled.take(material.validation), **material.tests}
    measures = {
        title: _measure(trained, _encode(trained[EXPERT].student, labelled, wanted.max_length), title)
        for title, labelled in judged.items()
    }
    about = _about(material, trained, wanted, measures, time.perf_counter() - begin)
    _save(output, trained, options, revision, lm, about)
    shutil.rmtree(partial)
    _report(output, trained, measures)


def make_expert(
    name: str, revision: str | None, device: torch.device, lm: CausalLM, options: BackboneOptions, seed: int
) -> Student:
    """Return an untrained expert in float32.

    Raises UserError for a base that cannot be used, see `make_student`, and for one whose logits are not
    its states times its output embeddings, for those are what is trained.
    """
    shape = Shape("rad", options.adapt, 1, None, options.lora_rank, options.freeze_embeddings)
    student = make_student(name, revision, device, lm.identity, shape, seed)
    student.scorer.head.requires_grad_(False)  # an expert has none; the fit leaves this one as it is
    student.scorer.eval()
    with torch.no_grad():
        ids = torch.arange(8, device=device)[None]
        own = student.scorer.backbone(input_ids=ids, use_cache=False).logits.float()
        found = logits(student.scorer, student.scorer(ids, torch.ones_like(ids)))
    if (own - found).abs().max() > CLOSE * own.abs().max():
        raise UserError(
            f"backbone {name} changes its logits after the output embeddings (a soft cap or a scale), "
            "which this training does not: give another --backbone"
        )
    return student


def logits(scorer: Scorer, states: Tensor) -> Tensor:
    """Return the language model's logits (..., V) float32 of its states (..., d) float32."""
    found: Tensor = scorer.backbone.get_output_embeddings()(states)
    return found.float()


def negative_log_likelihood(
    scorer: Scorer, states: Tensor, batch: Batch, generator: torch.Generator | None = None
) -> Tensor:
    """Return the mean over texts of each text's mean -log P of a scored token, in nats."""
    return -torch.stack([log_p.mean() for log_p in token_log_p(scorer, states, batch)]).mean()


def token_log_p(scorer: Scorer, states: Tensor, batch: Batch) -> list[Tensor]:
    """Return log P of the scored tokens of each text, B times (l,); states (B, T + 1, d) float32.

    Text by text, so that logits exist of no padding and, without gradients, of one text at a time.
    """
    found = []
    for row, ids, n_scored in zip(states, batch.ids, batch.scored.sum(-1).tolist(), strict=True):
        row_logits = logits(scorer, row[:n_scored])
        found.append(-cross_entropy(row_logits, ids[1 : n_scored + 1], reduction="none"))
    return found


@torch.no_grad()
def read_log_p(scorer: Scorer, texts: TokenTexts, title: str) -> list[Tensor]:
    """Return log P of the scored tokens of each text, M times (l,) float32 on the CPU."""
    scorer.eval()
    found: list[Tensor] = [torch.empty(0)] * len(texts.rows)
    with progress(title, len(texts.rows)) as advance:
        for rows in in_order(texts, VALIDATION_TOKENS):
            batch = make_batch(texts, rows, scorer.backbone.device)
            values = token_log_p(scorer, scorer(batch.ids, batch.mask), batch)
            for row, value in zip(rows, values, strict=True):
                found[row] = value.cpu()
            advance(len(rows))
    return found


def _side(labelled: LabelledTexts, positive: bool) -> LabelledTexts:
    return labelled.take(np.flatnonzero((labelled.labels[:, 0] >= 0.5) == positive))


def _encode(student: Student, labelled: LabelledTexts, max_length: int) -> TokenTexts:
    labels = torch.from_numpy(labelled.labels)
    return encode(student.tokenizer, labelled.texts, labels, max_length, student.context)


def _train(
    student: Student,
    texts: LabelledTexts,
    held_out: LabelledTexts,
    wanted: Wanted,
    options: BackboneOptions,
    partial: Path,
) -> Trained:
    """Train one side, or go on where a run of the same settings stopped."""
    recipe = make_recipe(options, wanted.epochs, wanted.seed, len(texts.texts))
    depends = {**asdict(recipe), "max_length": wanted.max_length, "backbone": student.base.weights}
    depends |= {name: getattr(options, name) for name in ("adapt", "lora_rank", "freeze_embeddings")}
    depends |= {"train": texts.fingerprint(), "validation": held_out.fingerprint()}
    del depends["save_every"]
    check_settings(partial, depends)
    parts = [_encode(student, part, wanted.max_length) for part in (texts, held_out)]
    accelerator = make_accelerator(student.scorer.backbone.device, options.mixed_precision)
    objective = Objective(negative_log_likelihood)
    fitted = fit(student.scorer, objective, parts[0], parts[1], recipe, accelerator, partial)
    return Trained(student, parts[0], parts[1], recipe, fitted)


def _measure(trained: Mapping[str, Trained], texts: TokenTexts, title: str) -> list[Measures]:
    """Return measures by prefix of the log-odds that Bayes' rule gives the two, classes equally likely."""
    expert, anti = (
        read_log_p(trained[side].student.scorer, texts, f"measuring {title}, {side}")
        for side in (EXPERT, ANTI_EXPERT)
    )
    ratios = [(one - other).cumsum(0) for one, other in zip(expert, anti, strict=True)]
    log_odds: NDArray[np.float64] = (
        torch.cat([ratio[-count:] for ratio, count in zip(ratios, texts.read, strict=True)]).double().numpy()
    )
    return measure(log_odds, np.array(texts.read), texts.labels[:, 0].double().numpy())


def _about(
    material: Material,
    trained: Mapping[str, Trained],
    wanted: Wanted,
    measures: Mapping[str, list[Measures]],
    seconds: float,
) -> dict[str, Any]:
    """Return what the saved reward tells of its making, ready for JSON."""
    n_tokens = sum(each.texts.n_scored() + each.held_out.n_scored() for each in trained.values())
    return {
        "metrics": {title: [asdict(row) for row in rows] for title, rows in measures.items()},
        "recipe": asdict(wanted),
        "fit": {side: each.about() for side, each in trained.items()},
        "training": {
            **about_data("rewards.train_expert", material, n_tokens),
            "split_seed": wanted.seed,
            "seconds": round(material.seconds + seconds, 1),
            "versions": versions(),
        },
    }


def _save(
    output: Path,
    trained: Mapping[str, Trained],
    options: BackboneOptions,
    revision: str | None,
    lm: CausalLM,
    about: Mapping[str, Any],
) -> None:
    student = trained[EXPERT].student
    models = {side: each.student.model for side, each in trained.items()}
    write_folder(
        output,
        lambda half: save_pretrained(
            half, models, backbone=student.base, adaptation=options.adapt, revision=revision,
            tokenizer=student.tokenizer, bos_token_id=student.tokenizer.bos_token_id,
            base_model=lm.identity, about=about,
        ),
    )  # fmt: skip


def _report(folder: Path, trained: Mapping[str, Trained], measures: Mapping[str, list[Measures]]) -> None:
    console = Console()
    for side, each in trained.items():
        fitted, counts = each.fitted, each.about()["n_texts"]
        console.print(
            f"{side}: {counts['train']} training and {counts['validation']} validation texts; step "
            f"{fitted.best_step} of {fitted.n_steps} kept, validation loss {fitted.best_loss:.4f} nats/token",
            highlight=False,
        )
    for title, rows in measures.items():
        shown = ", ".join(f"{row.prefix} {row.auc:.3f}" for row in rows if row.auc is not None)
        console.print(f"AUC of the log-ratio on {title}, by what was read: {shown}", highlight=False)
    console.print("Steer with it:", highlight=False)
    console.print(f"  python -m decoder.generate --reward {folder}", highlight=False, soft_wrap=True)
