"""An embedding store gives back what was put in."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards import store as store_module
from rewards.store import open_store
from rewards.store_writer import create, open_writer
from tests.stores import MANIFEST, D, N, assert_holds, refusal, rows_of, work

pytest.importorskip("pyarrow")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished store of 14 rows in four shards: 4, 4, 4 and 2."""
    work(tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_store_gives_back_its_rows_in_every_dtype(tmp_path: Path, dtype: Any) -> None:
    manifest = replace(MANIFEST, dtype=dtype)
    with create(tmp_path / "a" / "s", manifest, shard_rows=5) as writer:
        writer.append(**rows_of(list(range(9))))
        assert writer.n_rows == 5
        numpy_rows = rows_of(list(range(9, 14)))
        read_only = numpy_rows["embeddings"].numpy()
        read_only.flags.writeable = False  # as a mapped file is
        writer.append(**{**numpy_rows, "embeddings": read_only, "sample_indices": np.array([1, 0, 1, 0, 1])})
    store = open_store(tmp_path / "a" / "s", expect=manifest)
    assert_holds(store, list(range(14)))
    assert store.manifest == manifest
    assert sorted(os.listdir(store.folder)) == sorted(
        [
            "manifest.json",
            "shards.jsonl",
            *(f"0000{i}.{e}" for i in range(3) for e in ("parquet", "safetensors")),
        ]
    )
    assert torch.equal(torch.cat([*store.iter_embeddings(3)]), store.embeddings(torch.arange(14)))
    assert [len(batch) for batch in store.iter_embeddings(3)] == [3, 2, 3, 2, 3, 1]


def test_what_is_given_may_be_changed_afterwards(tmp_path: Path) -> None:
    rows = rows_of([0, 1])
    kept = rows["embeddings"].clone()
    with create(tmp_path / "s", replace(MANIFEST, dtype="float32")) as writer:
        writer.append(**rows)
        rows["embeddings"].zero_()
    store = open_store(tmp_path / "s")
    next(store.iter_embeddings()).zero_()
    assert torch.equal(store.embeddings([0, 1]), kept)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells what is mapped")
@pytest.mark.parametrize("keep", [0, 1 << 30])
def test_gathering_equals_picking_row_by_row(
    folder: Path, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "KEEP_MAPPED_BYTES", keep)
    store, rng = open_store(folder), random.Random(1)
    every = rows_of(list(range(N)))
    for size in (0, 1, 5, 40):
        rows = [rng.randrange(N) for _ in range(size)]
        naive = [every["embeddings"][row].half().float() for row in rows]
        found = store.embeddings(np.array(rows, np.int32))
        assert found.dtype == torch.float32
        assert found.shape == (size, D)
        assert all(torch.equal(a, b) for a, b in zip(found, naive, strict=True))
        assert store.texts(rows) == [every["texts"][row] for row in rows]
    is_mapped = f"{folder}/00000.safetensors" in Path("/proc/self/maps").read_text()
    assert is_mapped == (keep > 0), "a large store must not stay mapped: it would count as memory"


@pytest.mark.parametrize("rows", [[14], [-1], [0, 99]])
def test_rows_outside_are_an_index_error(folder: Path, rows: list[int]) -> None:
    with pytest.raises(IndexError, match="of a store of 14"):
        open_store(folder).embeddings(rows)
    with pytest.raises(ValueError, match="whole numbers"):
        open_store(folder).embeddings(np.array([0.5]))


def test_groups_and_grid(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, labels=())
    order = [("b", 1), ("a", 7), ("b", 0), ("c", 3), ("a", 2), ("c", 0)]
    with create(tmp_path / "s", manifest, shard_rows=2) as writer:
        for prompt, sample in order:
            writer.append([prompt], [sample], [""], {}, torch.ones(1, D))
    store = open_store(tmp_path / "s")
    numbers, ids = store.groups()
    assert (numbers.tolist(), ids) == ([0, 1, 0, 2, 1, 2], ["b", "a", "c"])
    assert store.grid().tolist() == [[2, 0], [4, 1], [5, 3]]
    with open_writer(tmp_path / "s", manifest) as writer:
        writer.append(["c"], [1], [""], {}, torch.ones(1, D))
    uneven = refusal(open_store(tmp_path / "s").grid)
    assert "2 of prompt 'b'" in uneven
    assert "3 of prompt 'c'" in uneven


def test_grid_needs_the_label_everywhere(folder: Path) -> None:
    store = open_store(folder)
    assert store.column("length")[store.grid("length")].tolist() == [[2.0 * i, 2.0 * i + 1] for i in range(7)]
    assert "unknown (NaN) in row 5, prompt 'p2 é'" in refusal(lambda: store.grid("golden"))
    assert "has no label 'gold': it has golden, length" in refusal(lambda: store.column("gold"))


def test_an_empty_store(tmp_path: Path) -> None:
    create(tmp_path / "s", MANIFEST).close()
    store = open_store(tmp_path / "s")
    assert_holds(store, [])
    assert store.groups()[1] == []
    assert [*store.iter_embeddings()] == []
    assert "has none where every prompt needs" in refusal(store.grid)


def test_an_open_store_does_not_grow(folder: Path) -> None:
    before = open_store(folder)
    work(folder, n=20)
    assert_holds(before, list(range(N)))
    assert_holds(pickle.loads(pickle.dumps(before)), list(range(N)))
    assert_holds(open_store(folder), list(range(20)))
    assert before.digest != open_store(folder).digest


def test_another_process_opens_a_pickled_store(folder: Path, tmp_path: Path) -> None:
    store = open_store(folder)
    store.embeddings([0])  # mapped now, which must not travel
    (tmp_path / "pickled").write_bytes(pickle.dumps(store))
    assert (tmp_path / "pickled").stat().st_size < 5000
    code = (
        "import pickle, sys; s = pickle.load(open(sys.argv[1], 'rb'));"
        "print(s.embeddings([13, 0]).tolist(), s.digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pickled")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{store.embeddings([13, 0]).tolist()} {store.digest}"


def test_opening_a_large_store_reads_no_embeddings(tmp_path: Path) -> None:
    """Files of the right size with nothing in them are enough to open it and to read its columns."""
    manifest = replace(MANIFEST, dimension=64, layers=(1,), labels=("golden",))
    n = 200_000
    with create(tmp_path / "s", manifest) as writer:
        for first in range(0, n, 50_000):
            rows = np.arange(first, first + 50_000)
            writer.append(
                [f"{row // 10}" for row in rows],
                rows % 10,
                [""] * len(rows),
                {"golden": rows},
                torch.full((len(rows), 64), first / n),
            )
    store = open_store(tmp_path / "s")
    assert store.embeddings([0, 199_999])[:, 0].tolist() == [0.0, 0.75]
    for path in (tmp_path / "s").glob("*.safetensors"):
        size = path.stat().st_size
        path.unlink()
        path.touch()
        os.truncate(path, size)
    began = time.perf_counter()
    store = open_store(tmp_path / "s")
    assert time.perf_counter() - began < 0.5
    assert store.n_rows == n
    np.testing.assert_array_equal(store.column("golden"), np.arange(n))
    assert store.grid("golden").shape == (20_000, 10)
    assert "00000.safetensors cannot be read" in refusal(lambda: store.embeddings([0]))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells resident memory")
def test_a_few_rows_of_a_large_shard_take_little_memory(tmp_path: Path) -> None:
    def resident() -> int:  # kB, of files and of our own
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile")))

    manifest = replace(MANIFEST, dimension=4096, layers=(1,), labels=(), dtype="float32")
    with create(tmp_path / "s", manifest) as writer:
        writer.append([str(i) for i in range(2000)], [0] * 2000, [""] * 2000, {}, torch.zeros(2000, 4096))
    assert (tmp_path / "s" / "00000.safetensors").stat().st_size > 32_000_000
    store = open_store(tmp_path / "s")
    store.embeddings([0])
    before = resident()
    store.embeddings([1, 500, 1999])
    assert resident() - before < 4_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sample_indices": [0, 0, 1]}, "prompt 'p0 é', sample 0 is twice in what was given"),
        ({"sample_indices": [0, -1, 1]}, "whole numbers from 0 on"),
        ({"sample_indices": [0.0, 1.0, 2.0]}, "whole numbers from 0 on"),
        ({"embeddings": torch.full((3, D), float("nan"))}, "prompt 'p0 é', sample 0 holds NaN or infinity"),
        ({"embeddings": torch.full((3, D), 7e4)}, "is too large for float16: make the store in bfloat16"),
        ({"embeddings": torch.zeros(3, 5)}, "(3, 5) do not fit a store of dimension 6"),
        ({"embeddings": torch.zeros(3, 1, 6)}, "(3, 1, 6) do not fit"),
        ({"embeddings": torch.zeros(2, 6)}, "3 prompt ids, 3 sample indices, 3 texts"),
        ({"labels": {"golden": [1, 2, 3]}}, "labels ['golden'] given, the store has ['golden', 'length']"),
        ({"labels": {"golden": [1, 2, 3], "length": [1, 2]}}, "'length': (2,)"),
        ({"prompt_ids": ["p0 é", 7, "p1 é"]}, "row 1: the prompt id 7 is no text"),
        ({"texts": ["a", "b", "\ud83d"]}, "a text holds '\\ud83d'"),
    ],
)
def test_bad_rows_are_refused_and_leave_the_writer_as_it_was(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with open_writer(tmp_path / "s", MANIFEST) as writer:
        assert said in refusal(lambda: writer.append(**(rows_of([0, 1, 2]) | change)))
        writer.append(**rows_of([0, 1, 2]))
    assert_holds(open_store(tmp_path / "s"), [0, 1, 2])


def test_the_row_with_the_bad_value_is_named(tmp_path: Path) -> None:
    rows = rows_of([0, 1, 2, 3])
    rows["embeddings"][2, 4] = float("inf")
    with open_writer(tmp_path / "s", MANIFEST) as writer:
        assert "prompt 'p1 é', sample 0 holds NaN or infinity" in refusal(lambda: writer.append(**rows))


def test_a_row_that_is_there_is_refused(folder: Path) -> None:
    with open_writer(folder, MANIFEST) as writer:
        assert "sample 1 is in the store already" in refusal(lambda: writer.append(**rows_of([15, 3])))
        writer.append(**rows_of([14, 15]))
        assert writer.has("p7 é", 1)
        assert not writer.has("p7 é", 2)
        assert "in the store already" in refusal(lambda: writer.append(**rows_of([15])))
    assert_holds(open_store(folder), list(range(16)))


def test_folders_of_something_else_are_left_alone(tmp_path: Path, folder: Path) -> None:
    assert "is an embedding store already" in refusal(lambda: create(folder, MANIFEST))
    (tmp_path / "notes.md").write_text("mine")
    assert "is not empty and has no manifest.json" in refusal(lambda: open_writer(tmp_path, MANIFEST))
    assert sorted(os.listdir(tmp_path)) == ["notes.md", "store"]
    assert "is a file" in refusal(lambda: open_writer(tmp_path / "notes.md", MANIFEST))
    assert "is no embedding store" in refusal(lambda: open_store(tmp_path))


def test_a_missing_pyarrow_names_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for act in (lambda: open_store(folder), lambda: open_writer(folder / "new", MANIFEST)):
        assert "pip install 'tiller-lm[embeddings]'" in refusal(act)
