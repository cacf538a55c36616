"""`rewards.lens` on a small store: what it writes, that heads train on it, what it tells and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.augment_methods import METHODS
from rewards.lens import app
from rewards.store import Store, open_store
from rewards.train_head import app as head_app
from tests.test_train_head import PROMPTS, SAMPLES, call, held_out, make_store, refused

LENS = ("--method", "lens")
QUICK = ("--set", "steps=30", "--set", "hidden=8", "--set", "latent=4")
HEAD = ("--set", "widths=16", "--set", "steps=40")
N = 300


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("made") / "store")


def augmented(store: Path, output: Path, *options: object) -> dict[str, Any]:
    """Augment through the command line; return what the folder tells of itself."""
    done = call(app, store, "--output", output, "--pairs", N, *options)
    assert done.code == 0, done.error
    told: dict[str, Any] = json.loads((output / "augmentation.json").read_text())
    assert (
        f"{told['ratio']:g} = {told['n_pairs']} pairs to learn from / {told['n_original']} original"
        in done.out
    )
    return told


def trained(output: Path, *said: object) -> dict[str, Any]:
    done = call(head_app, *said, "--output", output, *HEAD)
    assert done.code == 0, done.error
    told: dict[str, Any] = json.loads((output / "config.json").read_text())
    return told


def given(folder: Path) -> tuple[object, ...]:
    return (folder, "--pairs-file", folder / "pairs.jsonl", "--stop-pairs", folder / "stop.jsonl")


@pytest.fixture(scope="module")
def lens(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store augmented by LENS, four times."""
    folder = tmp_path_factory.mktemp("lens") / "augmented"
    augmented(store, folder, *LENS, *QUICK)
    return folder


def rows_of(found: Store, path: Path) -> np.ndarray[Any, Any]:
    """Read pairs of rows by hand."""
    keys = zip(found.prompt_ids().tolist(), found.sample_indices().tolist(), strict=True)
    number = {key: row for row, key in enumerate(keys)}
    pairs = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        sides = [record["chosen"], record["rejected"]]
        if isinstance(sides[0], int):
            sides = [{"prompt_id": record["prompt_id"], "sample_index": side} for side in sides]
        pairs.append([number[side["prompt_id"], side["sample_index"]] for side in sides])
    return np.array(pairs)


def test_the_store_holds_the_old_rows_and_the_new(store: Path, lens: Path) -> None:
    told = json.loads((lens / "augmentation.json").read_text())
    old, new = open_store(store), open_store(lens)
    new.verify()
    n = PROMPTS * SAMPLES
    assert (new.embeddings(np.arange(n)) == old.embeddings(np.arange(n))).all()
    assert (new.column("golden")[:n] == old.column("golden")).all()
    assert np.isnan(new.column("golden")[n:]).all()
    assert new.n_rows == n + 2 * told["n_synthetic"]
    assert told["n_synthetic"] == 3 * told["n_original"]
    assert told["n_original"] + told["n_stop"] == N
    assert (store / "00000.safetensors").samefile(lens / "00000.safetensors")


def test_the_pairs_are_of_training_prompts_alone(store: Path, lens: Path) -> None:
    told, new = json.loads((lens / "augmentation.json").read_text()), open_store(lens)
    pairs, stop = (rows_of(new, lens / name) for name in ("pairs.jsonl", "stop.jsonl"))
    assert len(pairs) == told["n_pairs"] == 4 * told["n_original"]
    assert len(stop) == told["n_stop"]
    prompts = new.groups()[0]
    tested = set(held_out(open_store(store))[2])
    learnt, stopped = set(prompts[pairs].ravel()), set(prompts[stop].ravel())
    assert not learnt & tested
    assert not stopped & tested
    assert not learnt & stopped
    synthetic = np.arange(PROMPTS * SAMPLES, new.n_rows)
    assert not set(prompts[synthetic]) & (tested | stopped)
    golden = new.column("golden")
    originals = golden[pairs[: told["n_original"]]]
    assert (originals[:, 0] > originals[:, 1]).all()


def test_a_head_trains_on_it(lens: Path, tmp_path: Path) -> None:
    told = json.loads((lens / "augmentation.json").read_text())
    head = trained(tmp_path / "head", *given(lens))
    assert head["training"]["n_pairs"] == told["n_pairs"]
    assert head["training"]["n_pairs_left_out"] == 0
    assert head["training"]["test"]["n_prompts"] == 24
    assert head["training"]["test"]["n_rows"] == 192  # no synthetic row is judged on
    assert head["metrics"]["spearman"]["value"] > 0.5
    for kind in (("--members", 2, "--bootstrap"), ("--head", "clf-mlp")):
        trained(tmp_path / str(kind[1]), *given(lens), *kind)


def test_the_heads_report_tells_the_ratio(lens: Path, tmp_path: Path) -> None:
    told = json.loads((lens / "augmentation.json").read_text())
    done = call(head_app, *given(lens), "--output", tmp_path / "head", *HEAD)
    said = f"augmentation ratio 4 x {told['n_original']}, lens, combined cartesian"
    assert said in " ".join(done.out.split())
    for name in ("pairs", "stop"):
        (tmp_path / f"{name}.jsonl").write_text((lens / f"{name}.jsonl").read_text())
    (tmp_path / "augmentation.json").write_text("{}")
    done = call(head_app, lens, "--pairs-file", tmp_path / "pairs.jsonl", "--output", tmp_path / "x", *HEAD)
    assert done.code == 2
    assert "augment the store again" in done.error


def test_ratio_one_is_the_head_of_the_store(store: Path, tmp_path: Path) -> None:
    """The same bits, through the command line and the files."""
    told = augmented(store, tmp_path / "same", "--method", "none", "--ratio", 1, "--seed", 3)
    assert told["ratio"] == 1
    one = trained(tmp_path / "one", store, "--pairs", N, "--seed", 3)
    other = trained(tmp_path / "other", *given(tmp_path / "same"), "--seed", 3)
    assert one["metrics"] == other["metrics"]
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert saved[0] == saved[1]


def test_the_report_tells_what_was_found_and_what_to_run(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    options = ("--test-share", 0.3, "--set", "steps=200", "--set", "beta=500", "--set", "residual=true")
    done = call(app, store, "--output", folder, "--pairs", N, *LENS, *options)
    assert done.code == 0, done.error
    for said in ("reconstruction R2", "peak memory", "of 16 active", "warning: posterior collapse"):
        assert said in done.out
    assert "over-separation" not in done.out
    assert f"python -m rewards.train_head {folder} --pairs-file {folder}/pairs.jsonl" in done.out
    assert "--test-share 0.3" in done.out
    told = json.loads((folder / "augmentation.json").read_text())
    assert told["options"]["residual"] is True
    assert set(told["seconds"]) == {"gather", "fit", "synthesise", "pairs"}
    assert told["figures"]["r2"] < 0.5


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("none", "lens")])
def test_every_method_writes_a_store(method: str, store: Path, tmp_path: Path) -> None:
    options: tuple[object, ...] = QUICK if method.startswith("lens") else ()
    if method == "lens-shrinkage":
        options = ("--set", "shrinkage=0.5")
    if method == "lens-consistent":
        inner = " ".join(said for said in QUICK if said != "--set")
        options = ("--set", f"inner_options={inner}", "--set", "head=bt-linear", "--set", "members=2")
    told = augmented(store, tmp_path / "x", "--method", method, "--ratio", 2, "--combine", "within", *options)
    assert told["n_pairs"] == 2 * told["n_original"]
    new = open_store(tmp_path / "x")
    pairs = rows_of(new, tmp_path / "x" / "pairs.jsonl")
    prompts = new.groups()[0][pairs]
    assert (prompts[:, 0] == prompts[:, 1]).all()
    assert (method == "pairing") == (new.n_rows == PROMPTS * SAMPLES)
    assert bool(told["figures"]) == (method not in ("pairing", "perturbation", "mixup"))


def test_the_default_is_combined_as_it_is_made(store: Path, tmp_path: Path) -> None:
    told = augmented(store, tmp_path / "x")
    assert (told["method"], told["combine"], told["options"]) == (
        "lens-shrinkage", "own", {"shrinkage": 1.0, "anchor": "middle"}
    )  # fmt: skip


def test_pairs_of_two_prompts(store: Path, tmp_path: Path) -> None:
    told = augmented(store, tmp_path / "x", "--pairing", "cross", "--ratio", 3, *LENS, *QUICK)
    assert told["n_pairs"] == 3 * told["n_original"]
    done = call(app, store, "--output", tmp_path / "y", "--pairing", "cross", "--combine", "cross")
    refused(done, "these have two")
    assert not (tmp_path / "y").exists()


def test_preferences_of_your_own(lens: Path, tmp_path: Path) -> None:
    """Given pairs, of rows without a golden reward too, and given pairs to stop on."""
    done = call(app, *given(lens), "--output", tmp_path / "x", "--ratio", 2, "--method", "perturbation")
    assert done.code == 0, done.error
    told, first = (json.loads((f / "augmentation.json").read_text()) for f in (tmp_path / "x", lens))
    assert told["n_original"] == first["n_pairs"]
    assert told["n_stop"] == first["n_stop"]
    assert told["n_pairs"] == 2 * first["n_pairs"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "lans"), "unknown method 'lans': did you mean lens"),
        (("--ratio", 0.5), "ratio 0.5 must be 1 or more"),
        (("--combine", "all"), "unknown --combine 'all'"),
        ((*LENS, "--set", "gama=1"), "unknown option 'gama': did you mean gamma"),
        ((*LENS, "--set", "residual=yes"), "neither true nor false"),
        ((*LENS, "--set", "filter=best"), "filter 'best'"),
        (("--method", "lens-consistent", "--set", "inner=pairing"), "inner 'pairing' makes no embeddings"),
        (("--method", "lens-consistent", "--set", "inner_options=gama=1"), "did you mean gamma"),
        (("--method", "lens-difference", "--set", "anchor=both"), "anchor 'both'"),
        (("--method", "none"), "method none adds no pairs"),
        (("--method", "pairing", "--copies", 2), "copies 2 of a method that makes no embeddings"),
        (("--stop-pairs", "x"), "--stop-pairs x belongs to pairs that are given"),
        (("--pairs", 100_000), "100000 pairs asked for"),
        (("--combine", "own", "--method", "pairing", "--pairs", 50), "have only 0 under 'own'"),
    ],
)
def test_what_is_refused(options: tuple[object, ...], said: str, store: Path, tmp_path: Path) -> None:
    refused(call(app, store, "--output", tmp_path / "x", *options), said)
    assert not (tmp_path / "x").exists()


def test_nothing_is_written_over(store: Path, lens: Path) -> None:
    refused(call(app, store, "--output", lens), "is there already")
