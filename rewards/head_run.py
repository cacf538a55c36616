"""One run of `rewards.train_head`: gather, fit, measure, save, report."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from decoder.models import versions
from decoder.records import process_peak
from eval.head_measures import NS, head_measures
from eval.metric import Measure
from rewards.head_ensemble import HeadEnsemble
from rewards.head_material import HeadMaterial, HeldOut, gather
from rewards.head_options import HeadOptions, PairOptions
from rewards.head_store import encoder_record, score_store
from rewards.heads import RULES, Embeddings, Head, make_head
from rewards.output_folder import write_folder
from rewards.pair_draws import Ints
from rewards.report_head import report


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A fitted head, what it is worth on held-out prompts, and the seconds of each part of the work."""

    head: Head
    measures: list[Measure]
    seconds: dict[str, float]


def train_and_save(folder: Path, pairs: PairOptions, wanted: HeadOptions, output: Path) -> None:
    """Write a head on the embeddings of the store in `folder` into `output`, and print what it is worth.

    Raises UserError for unusable stores, pairs, hyper-parameters or output.
    """
    begin = time.perf_counter()
    material = gather(folder, pairs, wanted.seed)
    trained = train(material, wanted, gathering=time.perf_counter() - begin)
    about = describe(trained, material, wanted)
    encoder = encoder_record(material.store.manifest)
    write_folder(output, lambda half: trained.head.save_pretrained(half, encoder, about))
    report(output, folder, material.store.manifest.encoder.name, about)


def train(material: HeadMaterial, wanted: HeadOptions, gathering: float = 0.0) -> TrainedHead:
    """Return a head fitted on the material's pairs. gathering: seconds that the material took."""
    head, begin = build(wanted), time.perf_counter()
    source: Embeddings = material.store.embeddings
    with Console(stderr=True).status(f"fitting {wanted.head} on {len(material.pairs)} pairs"):
        head.fit(source, material.targets, material.groups)
    fitted = time.perf_counter()
    measures = measure(head, material.held_out)
    seconds = {"gather": gathering, "fit": fitted - begin, "measure": time.perf_counter() - fitted}
    return TrainedHead(head, measures, seconds)


def build(wanted: HeadOptions) -> Head:
    """Return an unfitted head, or an ensemble of it. Raises UserError for what cannot be."""
    head = make_head(wanted.head, **wanted.hyperparameters())
    if wanted.members == 1:
        return head
    kappa = 0.5 if wanted.kappa is None else wanted.kappa
    return HeadEnsemble(
        head, wanted.members, wanted.rule or RULES[0], kappa, bootstrap=wanted.bootstrap, seed=wanted.seed
    )


def measure(head: Head, held_out: HeldOut) -> list[Measure]:
    """Return the figures of a head on held-out rows, one unit a prompt.

    Those of `eval.head_measures` where golden rewards are known; "preference_accuracy", the share of given
    pairs that the scores order as they are given, where there are some.
    """
    scores = score_store(head, held_out.store, held_out.rows)
    found: list[Measure] = []
    if len(held_out.golden):
        largest = int(np.bincount(held_out.groups).max())
        ns = [1, *(n for n in NS if n < largest), *([largest] if largest > 1 else [])]
        found = head_measures(scores, held_out.golden, held_out.groups, ns)
    if len(held_out.pairs):
        found.append(preference_accuracy(scores, held_out))
    return found


def preference_accuracy(scores: np.ndarray[Any, Any], held_out: HeldOut) -> Measure:
    """Return the share of given pairs that scores (m,) order so, ties one half; by the chosen's prompt."""
    order = np.argsort(held_out.rows)
    chosen, rejected = scores[order[np.searchsorted(held_out.rows, held_out.pairs.T, sorter=order)]]
    right = (chosen > rejected) + (chosen == rejected) / 2
    prompt: Ints = np.unique(held_out.store.groups()[0][held_out.pairs[:, 0]], return_inverse=True)[1]
    units = np.bincount(prompt, weights=right) / np.bincount(prompt)
    return Measure("preference_accuracy", units, len(units), len(units), better="higher")


def describe(trained: TrainedHead, material: HeadMaterial, wanted: HeadOptions) -> dict[str, Any]:
    """Return what the saved head tells of its making, as JSON values."""
    store, held_out = material.store, material.held_out
    return {
        "head": wanted.head,
        "metrics": {each.name: _figure(each) for each in trained.measures},
        "training": {
            "command": shlex.join(["python", "-m", "rewards.train_head", *map(_name, sys.argv[1:])]),
            "store": store.folder.resolve().name,
            "store_digest": store.digest,
            "seed": wanted.seed,
            "n_pairs": len(material.pairs),
            **material.about,
            "test": {
                "store": held_out.store.folder.resolve().name,
                "store_digest": held_out.store.digest,
                "n_rows": len(held_out.rows),
                "n_prompts": len(np.unique(held_out.groups)),
                "n_pairs": len(held_out.pairs),
            },
            "seconds": {name: round(value, 2) for name, value in trained.seconds.items()},
            "peak_memory_mib": process_peak() // 2**20,
            "versions": versions(),
        },
    }


def _figure(found: Measure) -> dict[str, Any]:
    """Return a figure with its interval over prompts; null where nothing was scored."""
    figure: Mapping[str, Any] = asdict(found.estimate())
    known = {name: None if math.isnan(value) else value for name, value in figure.items()}
    return {**known, "scored": found.scored, "total": found.total}


def _name(argument: str) -> str:
    return Path(argument).name if "/" in argument else argument
