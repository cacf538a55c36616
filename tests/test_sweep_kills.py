"""A sweep that is killed with -9 at any moment goes on, and ends with the bytes it would have ended with."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("lightgbm")

from decoder.contracts import UserError
from eval.head_measures import head_measures
from rewards.store import Store
from rewards.sweep_cells import Bench, run_group
from rewards.sweep_results import SweepResults
from rewards.sweep_run import pending, run_sweep
from rewards.sweep_yaml import read_grid
from tests.source import ROOT
from tests.sweeps import finish, grid, small_store

KILL_EVERY = 23  # lines; 1 takes minutes
GRID = """
heads: [lgb-clf]
pairing: [cross, within, random]
beta: [1, .inf]
n_pairs: [60]
seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
test_samples: 16
options: {lgb-clf: {trees: 100, leaves: 8, min_leaf_rows: 5}}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("sweep") / "store")


def killed_at(line: int, folder: Path, store: Store) -> bool:
    """Sweep in a child that is killed with -9 at that executed line of ours; tell if it was."""
    watched = ("sweep_results.py", "sweep_run.py", "durable.py", "append_file.py")
    count = 0

    def trace(frame: Any, event: str, arg: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.endswith(watched) or frame.f_code.co_name.startswith("<"):
            return None
        if event == "line":
            count += 1
            if count == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads; this child runs no other code of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(60)
            sys.settrace(trace)
            run_sweep(Bench(store, grid(), head_measures), folder, workers=0)
            status = 0
        finally:
            os._exit(status)  # never back into pytest
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def journalled(folder: Path) -> set[int]:
    """Return the cells that stand in whole lines of the journal."""
    path = folder / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return {result["cell"] for line in lines for result in json.loads(line)}


def test_a_kill_at_any_line_changes_no_byte(store: Store, tmp_path: Path) -> None:
    whole, line, seen = finish(tmp_path / "whole", store, grid()), 1, set()
    while killed_at(line, tmp_path / "killed", store):
        done = journalled(tmp_path / "killed")
        seen.add(len(done))
        assert finish(tmp_path / "killed", store, grid()) == whole
        assert journalled(tmp_path / "killed") >= done
        shutil.rmtree(tmp_path / "killed")
        line += KILL_EVERY
    assert {0, 8} < seen, "it must have been killed before, between and after all groups"
    assert (tmp_path / "killed/results.parquet").read_bytes() == whole


@pytest.mark.slow
def test_the_command_killed_at_random_moments(store: Store, tmp_path: Path) -> None:
    """The real command, with a process of its own, killed twice while it commits groups."""
    (tmp_path / "grid.yaml").write_text(GRID)
    command = [sys.executable, "-m", "rewards.sweep", "grid.yaml", "--store", str(store.folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed, wait, counts = tmp_path / "killed", random.Random(os.urandom(8)), []
    for _ in range(2):
        least = 2 + max(counts, default=0)
        child = subprocess.Popen(
            [*command, "--output", str(killed), "--workers", "1"], cwd=tmp_path, env=environment,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        while child.poll() is None and len(journalled(killed)) < least:
            time.sleep(0.001)
        time.sleep(wait.random() * 0.1)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        assert not (killed / "results.parquet").exists(), "it must have been killed on the way"
        counts.append(len(journalled(killed)))
    assert 0 < counts[0] < counts[1] < 72
    axes = read_grid(tmp_path / "grid.yaml")
    assert finish(killed, store, axes) == finish(tmp_path / "whole", store, axes)


def test_a_torn_line_is_cut_off_and_a_broken_one_is_refused(store: Store, tmp_path: Path) -> None:
    whole = finish(tmp_path, store, grid())
    journal = (tmp_path / "journal.jsonl").read_bytes()
    for size in (len(journal) - 1, len(journal) - 300, 1):
        (tmp_path / "journal.jsonl").write_bytes(journal[:size])
        assert finish(tmp_path, store, grid()) == whole
    (tmp_path / "journal.jsonl").write_bytes(journal[:100] + b"\n" + journal)
    with pytest.raises(UserError, match=r"journal\.jsonl, line 1 is not as it was written"):
        finish(tmp_path, store, grid())


def test_one_sweep_at_a_time(store: Store, tmp_path: Path) -> None:
    with (
        SweepResults.open(tmp_path, grid(), [store.digest], {}),
        pytest.raises(UserError, match="another process is writing"),
    ):
        finish(tmp_path, store, grid())
    finish(tmp_path, store, grid())


def test_what_is_left_after_a_group_was_begun(store: Store, tmp_path: Path) -> None:
    """Only a group whose process died is committed in part: the rest of it is run cell by cell."""
    axes = grid()
    group = next(group for group in axes.groups() if len(group) > 1)
    bench = Bench(store, axes, head_measures)
    with SweepResults.open(tmp_path, axes, [store.digest], {}) as results:
        results.add(run_group(bench, group[:1]))
        left = list(pending(results, retry_failed=False))
    assert [(cell,) for cell in group[1:]] == [each for each in left if len(each) < len(group)]
    assert {cell for each in left for cell in each} == set(axes.cells()) - {group[0]}
