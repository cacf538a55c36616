"""The benchmark of an embedding store at size, small here; and that it finds what a store may lose."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from decoder.cli import run
from decoder.records import process_peak
from eval import bench_store as module
from eval.bench import app
from eval.bench_store import StorePlan, bench_store, peak_mib
from eval.store_crash import (
    BLOCK,
    Shards,
    append_next,
    child,
    damage,
    finish,
    kill_a_writer,
    link_store,
    recover,
    rows_of,
)
from eval.synthetic_embeddings import make_synthetic
from rewards.store import open_store
from rewards.store_manifest import read_manifest
from rewards.store_writer import open_writer
from tests.stores import refusal

pytest.importorskip("pyarrow")

N_BASE, D, SEED = 40, 5, 3
TINY = {"rows": 2000, "dimension": 16, "pairs": 300, "head": "bt-linear", "crashes": 2, "rounds": 1}


def benchmark(capsys: pytest.CaptureFixture[str], **options: object) -> tuple[int, str, str]:
    capsys.readouterr()
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with pytest.raises(SystemExit) as ended:
        run(app, ["store", *arguments])
    found = capsys.readouterr()
    return int(ended.value.code or 0), found.out, found.err


def test_a_small_store_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole run, its children real processes, two of them really killed."""
    code, out, error = benchmark(capsys, **TINY, folder=tmp_path)
    assert code == 0, error
    found = json.loads(out.splitlines()[-1])
    written, opened, trained, crashed = found["rows"]
    assert [row["part"] for row in found["rows"]] == ["write", "open", "train", "crash"]
    assert written["rows_per_second"] == pytest.approx(2000 / written["seconds"])
    assert 0 < opened["seconds"] < 1
    assert 100 < trained["peak_mib"] < 4000
    assert trained["test_prompts"] == 40
    assert trained["spearman_interval"][0] <= trained["spearman"] <= trained["spearman_interval"][1]
    assert crashed["crashes"] == crashed["survived"] == 2
    assert crashed["committed_rows_lost"] == 0
    assert crashed["rows_compared"] >= 4 * BLOCK  # each crash: a commit waited for, and a block after it
    assert crashed["rows_compared"] % BLOCK == 0
    assert crashed["fault"] == ""
    assert all(check["ok"] for check in found["checks"].values())
    assert "committed rows lost" in error
    # What is kept is the synthetic store and nothing else, untouched by the crashes, and is found again.
    assert os.listdir(tmp_path) == ["store"]
    fresh = make_synthetic(tmp_path / "fresh", [10] * 200, 16, seed=0)
    assert open_store(tmp_path / "store").digest == fresh.digest
    open_store(tmp_path / "store").verify()
    assert module._write(tmp_path / "store", StorePlan(**TINY))["seconds"] is None  # type: ignore[arg-type]


def test_another_store_in_the_folder_is_refused(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "store", [4] * 20, D, seed=0)
    same = StorePlan(80, D, 4, 50)
    for plan, theirs in (
        (StorePlan(160, D, 4, 50), "160 x 5"),
        (StorePlan(80, D, 8, 50), "8 a prompt"),
        (StorePlan(80, D, 4, 50, seed=1), "synthetic-1"),
        (StorePlan(80, 6, 4, 50), "80 x 6"),
    ):
        said = refusal(lambda plan=plan: bench_store(tmp_path, plan))
        assert "holds 80 x 5 float16 of synthetic-0, 4 a prompt" in said
        assert theirs in said
    assert module._is_there(tmp_path / "store", same)


def test_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything is written."""
    (tmp_path / "file").touch()
    for more, why in (
        ({"rows": 2001}, "2001 rows are no whole number of prompts of 10 samples"),
        ({"pairs": 7201}, "7201 pairs asked for, and the 160 prompts to train on have 7200"),
        ({"head": "bt-mpl"}, "bt-mlp"),
        ({"folder": tmp_path / "file"}, "cannot make --folder"),
        ({"crashes": 0}, "--crashes"),
    ):
        code, _, error = benchmark(capsys, **{**TINY, "folder": tmp_path / "new", **more})
        assert code == 2, more
        assert why in error
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    code, _, error = benchmark(capsys, **TINY, folder=tmp_path / "new")
    assert code == 2
    assert "0.00 GB free" in error
    assert not os.listdir(tmp_path / "new")


def test_the_peak_is_the_childs_and_its_failure_ends_the_run() -> None:
    with child(["-c", "held = b'x' * (1200 << 20); print('done')"]) as process:
        printed, usage = finish(process, "holding")
    assert printed == "done\n"
    assert 1200 < peak_mib(usage) < 1300 + process_peak() / 2**20  # which it may begin with
    for code, why in (
        ("raise SystemExit(3)", "3: its own"),
        ("import os; os.kill(os.getpid(), 9)", "-9: was memory"),
    ):
        with child(["-c", code]) as process:
            assert f"working ended with exit code {why}" in refusal(lambda: finish(process, "working"))


@pytest.fixture
def appended(tmp_path: Path) -> tuple[Path, Shards]:
    """A store of 40 rows and three appended blocks, and the shards of the 40."""
    make_synthetic(tmp_path / "base", [4] * 10, D, SEED)
    folder = tmp_path / "store"
    folder.mkdir()
    base = link_store(tmp_path / "base", folder)
    with open_writer(folder, read_manifest(folder)) as writer:
        for _ in range(3):
            append_next(writer, N_BASE, SEED)
    return folder, base


def committed(n_blocks: int) -> int:
    return N_BASE + n_blocks * BLOCK


def test_nothing_lost_is_survived(appended: tuple[Path, Shards]) -> None:
    """Also with what a crash does leave: a torn line, a shard without a line, a commit not yet told."""
    folder, base = appended
    with (folder / "shards.jsonl").open("a") as log:
        log.write('{"name": "00004", "ro')
    (folder / "00004.parquet").write_bytes(b"half")
    for n_blocks, told in ((3, 3), (4, 3)):
        crash = recover(folder, base, committed(told), SEED)
        assert (crash.found, crash.compared, crash.fault) == (committed(n_blocks), (n_blocks + 1) * BLOCK, "")
        assert crash.survived
    assert open_store(folder).n_rows == committed(5)
    assert damage(folder) == ""
    # Linked shards are shared, the log is not.
    assert open_store(folder.parent / "base").n_rows == N_BASE


def cut_last_line(folder: Path) -> None:
    lines = (folder / "shards.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "shards.jsonl").write_bytes(b"".join(lines[:-1]))


def cut_two_lines(folder: Path) -> None:
    cut_last_line(folder)
    cut_last_line(folder)


def cut_all_blocks(folder: Path) -> None:
    for path in folder.glob("0000[0123].*"):
        path.unlink()
    (folder / "shards.jsonl").write_bytes(b"")


def cut_shard(folder: Path) -> None:
    content = (folder / "00002.safetensors").read_bytes()
    (folder / "00002.safetensors").write_bytes(content[:-1])


def lose_shard(folder: Path) -> None:
    (folder / "00003.parquet").unlink()


def flip_byte(folder: Path) -> None:
    content = bytearray((folder / "00002.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "00002.safetensors").write_bytes(content)


def write_last_block(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Put other rows in the place of the third block, with sizes and checksums that agree."""
    cut_last_line(folder)
    rows = rows_of(2, D, SEED)
    change(rows)
    with open_writer(folder, read_manifest(folder)) as writer:
        writer.append(**rows)


def change_embedding(folder: Path) -> None:
    def change(rows: dict[str, object]) -> None:
        found = np.array(rows["embeddings"])
        found[7, 1] = np.nextafter(np.float16(found[7, 1]), np.float16(100))  # the last bit
        rows["embeddings"] = found

    write_last_block(folder, change)


def change_text(folder: Path) -> None:
    write_last_block(folder, lambda rows: rows.update(texts=["another"] * BLOCK))


def change_label(folder: Path) -> None:
    write_last_block(folder, lambda rows: rows.update(labels={"golden": np.zeros(BLOCK)}))


def lose_rows(folder: Path) -> None:
    """A shard of fewer rows than were committed together."""
    write_last_block(
        folder,
        lambda rows: rows.update(
            {k: v[:9] for k, v in rows.items() if k != "labels"},
            labels={"golden": np.zeros(9)},  # type: ignore[index]
        ),
    )


def change_base(folder: Path) -> None:
    (folder / "shards.jsonl").write_text(
        (folder / "shards.jsonl").read_text().replace('columns_sha256": "', 'columns_sha256": "0', 1)
    )


@pytest.mark.parametrize(
    ("plant", "found", "why"),
    [
        (cut_last_line, 2 * BLOCK, ""),
        (cut_two_lines, -N_BASE, "is not in shards.jsonl, and a crash leaves only"),
        (cut_all_blocks, -N_BASE, "0 rows are there, 40 were before any block of 256: rows are lost"),
        (cut_shard, -N_BASE, "00002.safetensors has"),
        (lose_shard, -N_BASE, "00003.parquet is missing"),
        (flip_byte, 3 * BLOCK, "00002.safetensors has changed"),
        (change_embedding, 3 * BLOCK, f"embeddings of appended row {2 * BLOCK + 7} are not"),
        (change_text, 3 * BLOCK, f"texts of appended row {2 * BLOCK} are not"),
        (change_label, 3 * BLOCK, f"golden of appended row {2 * BLOCK} are not"),
        (lose_rows, 2 * BLOCK + 9, "rows are lost"),
        (change_base, 3 * BLOCK, "does not list the shards that were there before"),
    ],
)
def test_a_planted_loss_is_found(
    appended: tuple[Path, Shards], plant: Callable[[Path], None], found: int, why: str
) -> None:
    folder, base = appended
    plant(folder)
    crash = recover(folder, base, committed(3), SEED)
    assert not crash.survived
    assert crash.found == N_BASE + found
    assert (why in crash.fault) if why else not crash.fault
    row = module._crash_row([crash], 1.0)
    assert row["survived"] == 0
    assert row["committed_rows_lost"] == 3 * BLOCK - found
    worst, share = list(module._checks([0.5], 100.0, [crash]).values())[2:]
    assert not share.as_json()["ok"]
    assert worst.as_json()["ok"] == (found == 3 * BLOCK)


def test_rows_that_nobody_wrote_and_a_changed_base_are_found(appended: tuple[Path, Shards]) -> None:
    folder, base = appended
    crash = recover(folder, base, committed(1), SEED)
    assert "808 rows are there where 552 at most" in crash.fault
    path = folder / "00000.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # or the original of the link changes too
    path.write_bytes(content)
    assert "00000.parquet has changed" in damage(folder)
    assert damage(folder.parent / "base") == ""


def test_a_child_that_ends_by_itself_is_no_crash(
    appended: tuple[Path, Shards], capfd: pytest.CaptureFixture[str]
) -> None:
    """It says why in one line."""
    folder, base = appended
    with open_writer(folder, read_manifest(folder)):
        said = refusal(lambda: kill_a_writer(folder, base, SEED, np.random.default_rng(0)))
    assert "appending ended with exit code 1: its own message is above" in said
    error = capfd.readouterr().err
    assert error.startswith("error: another process is writing")
    assert error.count("\n") == 1


def test_no_links_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_synthetic(tmp_path / "base", [4] * 10, D, SEED)
    (tmp_path / "store").mkdir()

    def fail(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("eval.store_crash.os.link", fail)
    said = refusal(lambda: link_store(tmp_path / "base", tmp_path / "store"))
    assert "cannot hold hard links" in said
    assert "Operation not permitted" in said
