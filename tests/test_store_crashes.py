"""Whatever happens to an embedding store, no committed row is lost and no damage goes unseen."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from decoder.contracts import UserError
from rewards.store import open_store
from rewards.store_writer import Writer, create, open_writer
from tests.stores import MANIFEST, N, assert_holds, refusal, rows_of, work

pytest.importorskip("pyarrow")

KILL_EVERY = 37  # lines; 1 takes minutes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished store of 14 rows in four shards: 4, 4, 4 and 2."""
    work(tmp_path / "store")
    return tmp_path / "store"


def killed_at(line: int, folder: Path, shared: mmap.mmap, n: int) -> bool:
    """Do the work in a child that is killed with -9 at that executed line of ours; tell if it was."""
    watched = ("store_writer.py", "store_shards.py", "store_manifest.py", "durable.py", "append_file.py")
    of_keys = ("has", "_add_keys", "_require_new")  # loops that touch no file, most of the lines
    count = 0

    def trace(frame: Any, event: str, arg: object) -> Any:
        nonlocal count
        name = frame.f_code.co_name
        if not frame.f_code.co_filename.endswith(watched) or name in of_keys:
            return None
        if event == "line":
            count += 1
            if count == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def tell(n_rows: int) -> None:
        shared[0] = n_rows

    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads; this child runs no other code of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(30)
            sys.settrace(trace)
            work(folder, n, tell=tell)
            status = 0
        finally:
            os._exit(status)  # never back into pytest
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("begun", [0, 6], ids=["new", "resumed"])
def test_a_kill_anywhere_loses_no_committed_row(tmp_path: Path, begun: int) -> None:
    """Killed at lines all over what a writer executes, from the making of the folder to the end."""
    shared = mmap.mmap(-1, 1)
    whole = sorted(
        ["manifest.json", "shards.jsonl"]
        + [f"{i:05d}{e}" for i in range(4) for e in (".parquet", ".safetensors")]
    )
    line, seen = 1, set()
    while True:
        folder = tmp_path / f"killed at {line}"
        if begun:
            work(folder, begun)
        shared[0] = 0
        was_killed = killed_at(line, folder, shared, N)
        if (folder / "manifest.json").exists():
            n_rows = open_store(folder).n_rows
            assert n_rows >= shared[0]
            assert_holds(open_store(folder), list(range(n_rows)))
            seen.add(n_rows)
        if not was_killed:
            break
        work(folder)
        assert_holds(open_store(folder), list(range(N)))
        open_store(folder).verify()
        if not begun:
            assert sorted(os.listdir(folder)) == whole
        shutil.rmtree(folder)
        line += KILL_EVERY
    assert seen == ({0, 4, 8, 12, 14} if not begun else {6, 10, 14})
    assert line > 300, "the tracing must really have reached the writer"


def test_a_torn_last_line_counts_for_nothing_and_is_cut_off(folder: Path) -> None:
    whole = (folder / "shards.jsonl").read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for size in range(last, len(whole)):
        (folder / "shards.jsonl").write_bytes(whole[:size])
        assert open_store(folder).n_rows == 12
    for size in (last, last + 1, (last + len(whole)) // 2, len(whole) - 1):
        (folder / "shards.jsonl").write_bytes(whole[:size])
        open_writer(folder, MANIFEST).close()
        assert (folder / "shards.jsonl").read_bytes() == whole[:last]
        assert not (folder / "00003.parquet").exists()
        work(folder)
        assert_holds(open_store(folder), list(range(N)))
    (folder / "shards.jsonl").write_bytes(whole[:last] + b"\0" * 40)  # as some file systems leave it
    assert open_store(folder).n_rows == 12


def test_leftovers_of_a_crash_are_removed_and_nothing_else(folder: Path) -> None:
    for name in (
        "00004.parquet",
        "00004.safetensors.tmp",
        "00003.parquet.tmp",
        "manifest.json.tmp",
        "notes.md",
    ):
        (folder / name).write_text("x")
    open_writer(folder, MANIFEST).close()
    assert not {"00004.parquet", "00004.safetensors.tmp", "00003.parquet.tmp"} & set(os.listdir(folder))
    assert (folder / "notes.md").exists()
    assert_holds(open_store(folder), list(range(N)))


def test_a_lost_log_never_costs_the_shards(folder: Path) -> None:
    (folder / "shards.jsonl").write_bytes((folder / "shards.jsonl").read_bytes().split(b"\n")[0] + b"\n")
    said = refusal(lambda: open_writer(folder, MANIFEST))
    assert "is not in shards.jsonl, and a crash leaves only 00001" in said
    (folder / "shards.jsonl").unlink()
    for act in (lambda: open_writer(folder, MANIFEST), lambda: open_store(folder)):
        assert "copy the store again" in refusal(act)
    assert len([*folder.glob("0000?.*")]) == 8


@pytest.mark.parametrize("name", ["00001.safetensors", "00001.parquet"])
def test_damaged_shards_are_refused_with_what_to_do(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for damage, state in ((content[:-1], f"has {len(content) - 1} bytes"), (None, "is missing")):
        (folder / name).unlink()
        if damage is not None:
            (folder / name).write_bytes(damage)
        for act in (lambda: open_store(folder), lambda: open_writer(folder, MANIFEST)):
            said = refusal(act)
            assert f"{name} {state}, shards.jsonl says {len(content)}" in said
            assert "delete the shards from 00001 on and their lines" in said
    # What the message offers: the same rows again.
    lines = (folder / "shards.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "shards.jsonl").write_bytes(lines[0])
    for path in folder.glob("0000[123].*"):
        path.unlink()
    work(folder)
    assert_holds(open_store(folder), list(range(N)))


@pytest.mark.parametrize("name", ["00002.safetensors", "00002.parquet"])
def test_a_changed_byte_is_found(folder: Path, name: str) -> None:
    open_store(folder).verify()
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2 if name.endswith("parquet") else -3] ^= 0x10
    (folder / name).write_bytes(content)
    assert f"{name} has changed" in refusal(open_store(folder).verify)


def test_a_damaged_page_of_a_column_is_found_on_reading(folder: Path) -> None:
    content = bytearray((folder / "00000.parquet").read_bytes())
    start = content.index("p0 é".encode())
    content[start] ^= 0x01
    (folder / "00000.parquet").write_bytes(content)
    assert "00000.parquet cannot be read" in refusal(open_store(folder).prompt_ids)


def test_a_file_of_other_embeddings_is_refused_on_reading(folder: Path, tmp_path: Path) -> None:
    with create(tmp_path / "other", replace(MANIFEST, dtype="bfloat16"), shard_rows=4) as writer:
        writer.append(**rows_of([0, 1, 2, 3]))
    size = (folder / "00000.safetensors").stat().st_size
    other = (tmp_path / "other" / "00000.safetensors").read_bytes()
    shutil.copy(tmp_path / "other" / "00000.safetensors", folder / "00000.safetensors")
    lines = (
        (folder / "shards.jsonl")
        .read_text()
        .replace(f'"embeddings_bytes": {size}', f'"embeddings_bytes": {len(other)}')
    )
    (folder / "shards.jsonl").write_text(lines)
    for shard in range(1, 4):  # the same size everywhere, so that only the reading can tell
        path = folder / f"0000{shard}.safetensors"
        path.write_bytes(path.read_bytes())
    said = refusal(lambda: open_store(folder).embeddings([0]))
    assert "torch.bfloat16 where (4, 6) torch.float16 is expected" in said


def test_an_error_leaves_only_what_was_committed(folder: Path) -> None:
    def fail() -> None:
        with open_writer(folder, MANIFEST, shard_rows=4) as writer:
            writer.append(**rows_of(list(range(14, 20))))
            raise UserError("the encoder failed")

    assert refusal(fail) == "the encoder failed"
    assert_holds(open_store(folder), list(range(18)))
    work(folder, 20)
    assert_holds(open_store(folder), list(range(20)))


def test_rows_do_not_wait_longer_than_asked(tmp_path: Path) -> None:
    with open_writer(tmp_path / "s", MANIFEST, commit_seconds=0.0) as writer:
        writer.append(**rows_of([0, 1]))
        assert open_store(tmp_path / "s").n_rows == writer.n_rows == 2
    with open_writer(tmp_path / "s", MANIFEST) as writer:
        writer.append(**rows_of([2, 3]))
        assert open_store(tmp_path / "s").n_rows == 2
        writer.commit()
        assert_holds(open_store(tmp_path / "s"), [0, 1, 2, 3])


def test_two_writers_at_once_are_refused(folder: Path) -> None:
    with open_writer(folder, MANIFEST) as writer:
        assert "another process is writing" in refusal(lambda: open_writer(folder, MANIFEST))
        assert_holds(open_store(folder), list(range(N)))
        writer.append(**rows_of([14]))
    work(folder, 16)
    assert_holds(open_store(folder), list(range(16)))
    with pytest.raises(ValueError, match="is closed"):
        writer.append(**rows_of([16]))


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    writer: Writer = open_writer(folder, MANIFEST)
    writer.append(**rows_of([14, 15]))
    with monkeypatch.context() as patch:
        patch.setattr("rewards.durable.os.fsync", full)
        assert "No space left on device; committed rows are kept: make room" in refusal(writer.close)
    assert_holds(open_store(folder), list(range(N)))
    work(folder, 16)
    assert_holds(open_store(folder), list(range(16)))


def test_a_bad_line_of_the_log_is_named(folder: Path) -> None:
    lines = (folder / "shards.jsonl").read_bytes().splitlines(keepends=True)
    for bad in (b"{}\n", b"[]\n", b"x\n", lines[2]):
        (folder / "shards.jsonl").write_bytes(lines[0] + bad + lines[2])
        assert "shards.jsonl, line 2" in refusal(lambda: open_store(folder))
