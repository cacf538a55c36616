"""Several stores as one: all their rows, none twice, no file copied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from decoder.cli import run
from rewards.merge import app
from rewards.store import open_store
from rewards.store_manifest import Manifest
from rewards.store_writer import open_writer
from tests.stores import MANIFEST, N, assert_holds, rows_of

pytest.importorskip("pyarrow")


def part(folder: Path, indices: list[int], manifest: Manifest = MANIFEST) -> str:
    with open_writer(folder, manifest, shard_rows=3) as writer:
        rows = rows_of(indices)
        writer.append(
            **{
                **rows,
                "labels": {name: rows["labels"].get(name, [0.0] * len(indices)) for name in manifest.labels},
            }
        )
    return str(folder)


def merged(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        run(app, list(arguments))
    said = capsys.readouterr()
    return int(exit_.value.code or 0), said.out + said.err


def test_the_rows_of_all_parts_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [part(tmp_path / str(i), rows) for i, rows in enumerate((list(range(5)), [], list(range(5, N))))]
    code, said = merged(capsys, *parts, "--output", str(tmp_path / "all"))
    assert (code, f"{N} rows of 3 stores" in said) == (0, True)
    store = open_store(tmp_path / "all")
    assert_holds(store, list(range(N)))
    store.verify()
    assert [shard.name for shard in store.shards] == [f"{i:05d}" for i in range(5)]
    for folder, name, new in (("0", "00001", "00001"), ("2", "00000", "00002")):
        for suffix in (".safetensors", ".parquet"):
            old = tmp_path / folder / (name + suffix)
            assert old.stat().st_ino == (tmp_path / "all" / (new + suffix)).stat().st_ino


def test_the_merged_store_grows_and_its_parts_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [part(tmp_path / "a", [0, 1]), part(tmp_path / "b", [2, 3])]
    before = [open_store(each).digest for each in parts]
    merged(capsys, *parts, "--output", str(tmp_path / "all"))
    part(tmp_path / "all", [4, 5])
    assert_holds(open_store(tmp_path / "all"), list(range(6)))
    assert [open_store(each).digest for each in parts] == before


@pytest.mark.parametrize(
    ("second", "manifest", "expected"),
    [
        ([1, 2], MANIFEST, "prompt 'p0 é', sample 1 is in"),
        ([2, 3], replace(MANIFEST, pooling="mean"), "pooling 'mean' in the store, 'last' asked for"),
        ([2, 3], replace(MANIFEST, dtype="float32"), "dtype 'float32' in the store, 'float16' asked for"),
        ([2, 3], replace(MANIFEST, labels=("golden",)), "has the labels ['golden', 'length'] and"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: list[int], manifest: Manifest, expected: str
) -> None:
    parts = [part(tmp_path / "a", [0, 1]), part(tmp_path / "b", second, manifest)]
    code, said = merged(capsys, *parts, "--output", str(tmp_path / "all"))
    assert code == 2
    assert expected in said
    assert not (tmp_path / "all").exists()


def test_an_output_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [part(tmp_path / "a", [0, 1]), part(tmp_path / "b", [2, 3])]
    code, said = merged(capsys, *parts, "--output", parts[0])
    assert code == 2
    assert "is there already: give a new folder" in said
    assert_holds(open_store(parts[0]), [0, 1])
