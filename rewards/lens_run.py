"""One run of `rewards.lens`: gather, hold out, fit, synthesise into a store, name the pairs, report."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from decoder.models import versions
from decoder.records import process_peak
from decoder.terminal import progress
from rewards.augment import combined_pairs, synthetic_blocks
from rewards.augment_methods import Synthesiser, make_synthesiser, method_options
from rewards.augment_plan import Plan, plan
from rewards.augmentation_record import ABOUT, PAIRS, STOP
from rewards.head_material import HeadMaterial, gather
from rewards.head_options import PairOptions
from rewards.lens_options import AugmentOptions
from rewards.output_folder import write_folder
from rewards.pair_draws import Ints
from rewards.pair_rows import PairRows, hold_out, pair_rows
from rewards.report_lens import report
from rewards.store import Store
from rewards.store_manifest import write_manifest
from rewards.store_shards import share_shards
from rewards.store_writer import open_writer


def augment_store(folder: Path, pairs: PairOptions, wanted: AugmentOptions, output: Path) -> None:
    """Write an augmented copy of the store in `folder` into `output`, and print what it holds.

    Beside the store: pairs.jsonl, stop.jsonl and augmentation.json. Raises UserError for unusable stores,
    pairs, options or output.
    """
    clock = _Clock()
    material = gather(folder, pairs, wanted.seed)
    seeds, stop = _seeds(material, wanted.seed)
    synthesiser = make_synthesiser(wanted.method, **wanted.values())
    planned = plan(
        wanted.method, len(seeds), wanted.ratio, wanted.combination, wanted.copies,
        synthesises=synthesiser is not None,
    )  # fmt: skip
    combined = combined_pairs(seeds, planned, wanted.combination, wanted.seed)
    clock.mark("gather")
    if synthesiser is not None and planned.n_synthetic:
        with Console(stderr=True).status(f"fitting {wanted.method} on {len(seeds)} pairs"):
            synthesiser.fit(seeds, stop, wanted.seed)
        clock.mark("fit")

    def fill(half: Path) -> None:
        keys = _Keys(material.store, seeds, planned)
        _write_store(material.store, half, synthesiser, planned, wanted.seed, keys)
        clock.mark("synthesise")
        keys.write(half / PAIRS, combined)
        keys.write(half / STOP, stop.pairs)
        clock.mark("pairs")
        about = _describe(wanted, planned, stop, synthesiser, material) | clock.told()
        (half / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    write_folder(output, fill)
    report(output, pairs, json.loads((output / ABOUT).read_text(encoding="utf-8")))


class _Clock:
    """Seconds of each part of the work."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[name], self._last = round(now - self._last, 2), now

    def told(self) -> dict[str, Any]:
        return {"seconds": self._seconds, "peak_memory_mib": process_peak() // 2**20}


class _Keys:
    """Prompt and sample index of each row of the new store: the old one's, then the synthetic."""

    def __init__(self, store: Store, seeds: PairRows, planned: Plan) -> None:
        numbers, self._ids = store.groups()
        samples = store.sample_indices()
        made = numbers[seeds.pairs[planned.sources]].ravel()  # each has the prompt of the row it is made from
        first = np.zeros(len(self._ids), dtype=np.int64)
        np.maximum.at(first, numbers, samples + 1)
        self.n_old = len(numbers)
        self._prompts = np.concatenate([numbers, made])
        self._samples = np.concatenate([samples, first[made] + _nth(made)])

    def of(self, rows: slice) -> tuple[list[str], Ints]:
        """Return the prompt ids and sample indices of rows."""
        return [self._ids[number] for number in self._prompts[rows].tolist()], self._samples[rows]

    def write(self, path: Path, pairs: Ints) -> None:
        """Write pairs (n, 2) of rows as preferences, a line each."""
        prompts, samples = self._prompts[pairs].tolist(), self._samples[pairs].tolist()
        with path.open("w", encoding="utf-8") as stream:
            for (one, other), (chosen, rejected) in zip(prompts, samples, strict=True):
                record: dict[str, Any] = {"prompt_id": self._ids[one], "chosen": chosen, "rejected": rejected}
                if one != other:
                    sides = (("chosen", one, chosen), ("rejected", other, rejected))
                    record = {n: {"prompt_id": self._ids[p], "sample_index": s} for n, p, s in sides}
                stream.write(json.dumps(record) + "\n")


def _nth(values: Ints) -> Ints:
    """Return (n,): how many equal values stand before each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    places = np.empty(len(values), dtype=np.int64)
    places[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return places


def _seeds(material: HeadMaterial, seed: int) -> tuple[PairRows, PairRows]:
    """Return the pairs to augment and those to stop on: what a head of this seed would hold out."""
    store = material.store
    every = pair_rows(store.embeddings, material.pairs, material.groups, store.n_rows)
    if material.stop is None:
        return hold_out(every, seed=seed)
    every.reader.keep(np.concatenate([material.pairs, material.stop]))
    return every, replace(every, pairs=material.stop, prompts=None)


def _write_store(
    store: Store, folder: Path, synthesiser: Synthesiser | None, planned: Plan, seed: int, keys: _Keys
) -> None:
    """Fill the folder with links to the store's files and with the synthetic rows, unlabelled."""
    share_shards([(store.folder, shard) for shard in store.shards], folder)
    write_manifest(folder, store.manifest)
    if synthesiser is None or not planned.n_synthetic:
        return
    bar = progress("synthesising", planned.n_synthetic)
    with open_writer(folder, store.manifest) as writer, bar as advance:
        for first, block in synthetic_blocks(synthesiser, planned, seed):
            rows = slice(keys.n_old + 2 * first, keys.n_old + 2 * (first + len(block)))
            ids, samples = keys.of(rows)
            labels = {name: np.full(len(ids), np.nan) for name in store.manifest.labels}
            writer.append(ids, samples, [""] * len(ids), labels, block.flatten(0, 1))
            advance(len(block))


def _describe(
    wanted: AugmentOptions,
    planned: Plan,
    stop: PairRows,
    synthesiser: Synthesiser | None,
    material: HeadMaterial,
) -> dict[str, Any]:
    """Return what the folder tells of its making, as JSON values."""
    made = synthesiser is not None and planned.n_synthetic
    return {
        "method": wanted.method,
        "options": asdict(method_options(wanted.method, wanted.values())),
        "combine": wanted.combination,
        "ratio": planned.ratio,
        "n_original": planned.n_original,
        "n_pairs": planned.n_pairs,
        "n_synthetic": planned.n_synthetic,
        "n_stop": len(stop),
        "figures": synthesiser.figures() if synthesiser is not None and made else {},
        "warnings": synthesiser.warnings() if synthesiser is not None and made else [],
        "seed": wanted.seed,
        "store": material.store.folder.resolve().name,
        "store_digest": material.store.digest,
        "pairs": material.about,
        "command": shlex.join(["python", "-m", "rewards.lens", *map(_name, sys.argv[1:])]),
        "versions": versions(),
    }


def _name(argument: str) -> str:
    return Path(argument).name if "/" in argument else argument
