"""The same results from one process, from two and from a Ray cluster; processes that die; what is shown."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("lightgbm")
import pyarrow.parquet as parquet
from rich.console import Console

from decoder.contracts import UserError
from rewards.store import Store
from rewards.sweep import app
from rewards.sweep_cells import Bench
from rewards.sweep_progress import Progress
from rewards.sweep_results import Result, failure
from rewards.sweep_run import run_sweep
from rewards.sweep_workers import Processes
from tests.source import ROOT
from tests.sweeps import TREES, deadly_measures, finish, grid, small_store

GRID = f"""
heads: [bt-linear, lgb-clf]
pairing: [cross, similar]
flip_rate: [0.1, 0.3]
n_pairs: [60]
seeds: [0, 1]
test_samples: 16
golden: [golden, partial]
options: {{bt-linear: {{patience: 1}}, lgb-clf: {json.dumps(TREES)}}}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("sweep") / "store")


def command(folder: Path, store: Store, *arguments: str) -> list[str]:
    """Return the arguments of the command for GRID, which are written into the folder."""
    (folder / "grid.yaml").write_text(GRID)
    return [
        str(folder / "grid.yaml"),
        "--store",
        str(store.folder),
        "--output",
        str(folder / "out"),
        *arguments,
    ]


def ran(folder: Path, store: Store, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command from a folder that is not ours."""
    return subprocess.run(
        [sys.executable, "-m", "rewards.sweep", *command(folder, store, *arguments)], cwd=folder,
        capture_output=True, text=True, timeout=400, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference(store: Store, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The results of GRID from this process."""
    from rewards.sweep_yaml import read_grid

    folder = tmp_path_factory.mktemp("reference")
    (folder / "grid.yaml").write_text(GRID)
    return finish(folder / "out", store, read_grid(folder / "grid.yaml"))


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(store: Store, tmp_path: Path, reference: bytes) -> None:
    done = ran(tmp_path, store, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/results.parquet").read_bytes() == reference
    told = json.loads(done.stdout)
    assert (told["sweep"]["cells"], told["sweep"]["failed"]) == (32, 0)
    assert told["axes"][0]["axis"] == "all"
    assert f"python -m eval.sweep_report {tmp_path / 'out'}\n" in done.stderr
    timings = parquet.read_table(tmp_path / "out/timings.parquet").to_pydict()
    assert timings["cell"] == list(range(32))
    assert min(timings["seconds"]) > 0


@pytest.mark.slow
def test_ray_gives_the_same_bytes(store: Store, tmp_path: Path, reference: bytes) -> None:
    pytest.importorskip("ray")
    done = ran(tmp_path, store, "--ray", "local")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/results.parquet").read_bytes() == reference


@pytest.mark.slow
def test_a_process_that_dies_fails_its_own_cells_alone(store: Store, tmp_path: Path) -> None:
    axes = grid(golden=("golden", "deadly"), pairing=("cross",), noise=(1.0,), seeds=(0,))
    assert run_sweep(Bench(store, axes, deadly_measures), tmp_path / "out", workers=1) == 1
    fine, dead = parquet.read_table(tmp_path / "out/results.parquet").to_pylist()
    assert fine["error"] is None
    assert "the process that trained it ended with exit code 3: was memory short?" in dead["error"]
    alone = grid(pairing=("cross",), noise=(1.0,), seeds=(0,))
    finish(tmp_path / "alone", store, alone)
    assert fine["spearman"] == parquet.read_table(tmp_path / "alone/results.parquet")["spearman"][0].as_py()


def test_processes_that_cannot_begin_end_the_sweep(store: Store) -> None:
    """A function that a new process cannot find is no reason to fail thousands of cells."""
    measure = type(sys)("made_here")
    measure.measure = lambda *arguments: []
    measure.measure.__module__, measure.measure.__qualname__ = "made_here", "measure"
    sys.modules["made_here"] = measure
    axes = grid()
    pool = Processes(Bench(store, axes, measure.measure), 1)
    try:
        pool.submit(axes.groups()[0])
        with pytest.raises(UserError, match="a process of the sweep ended with exit code 1 before it began"):
            pool.wait()
    finally:
        pool.close()
        del sys.modules["made_here"]


def test_a_missing_ray_is_named(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # how Python itself marks what cannot be imported
    with pytest.raises(UserError, match=r"--ray needs Ray: pip install 'tiller-lm\[cluster\]'"):
        app(command(tmp_path, store, "--ray", "local"), standalone_mode=False)


def test_a_cluster_that_is_not_there_is_named(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no Ray cluster at '{address}' .*: give the address that `ray"):
            app(command(tmp_path, store, "--ray", address), standalone_mode=False)


def test_golden_rewards_of_the_command_line_replace_the_grids(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    def cells(*names: str) -> int:
        asked = [word for name in names for word in ("--golden", name)]
        app(command(tmp_path, store, "--dry-run", *asked), standalone_mode=False)
        return int(json.loads(capsys.readouterr().out.splitlines()[-1])["heads"][-1]["cells"])

    assert cells("golden", "partial") == 2 * cells("partial") == 2 * cells("partial", "partial")
    with pytest.raises(UserError, match="has no label 'nowhere'"):
        cells("nowhere")


def test_a_dry_run_tells_and_runs_nothing(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app(command(tmp_path, store, "--dry-run", "--workers", "2"), standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    rows = {row["head"]: row for row in told["heads"]}
    assert told["dry_run"]["processes"] == 2
    assert {head: row["cells"] for head, row in rows.items()} == {"bt-linear": 16, "lgb-clf": 16, "all": 32}
    assert not (tmp_path / "out").exists()
    seconds = [row["estimated seconds"] for row in rows.values()]
    assert seconds[2] == pytest.approx(seconds[0] + seconds[1])
    assert min(seconds) > 0


def test_progress_counts_and_estimates() -> None:
    axes = grid(heads=("bt-linear", "lgb-clf"), pairing=("cross",))
    groups, done = axes.groups(), {0: failure(axes.cells()[0], "bad")}
    left = [tuple(cell for cell in group if cell.number) for group in groups]
    progress = Progress(axes.cells(), done, left)
    assert progress.seconds_left() is None
    progress.add(
        [Result(1, 1.0, 0.1, {}, None, 2.0), Result(4, 1.0, 0.1, {}, None, 6.0), failure(axes.cells()[5], "")]
    )
    shown = io.StringIO()
    Console(file=shown, width=80).print(progress)
    lines = [line.split() for line in shown.getvalue().splitlines()]
    assert ["│", "bt-linear", "│", "2", "of", "4", "│", "1", "│", "2.00", "│"] in lines
    assert ["│", "lgb-clf", "│", "2", "of", "4", "│", "1", "│", "3.00", "│"] in lines
    assert "4 of 8 cells, " in shown.getvalue()
    # Two cells of 2 s and two of 3 s are left, after 8 s of work.
    assert progress.seconds_left() is not None
    progress._began -= 80  # as if twice the work had been waited for ten times over
    assert progress.seconds_left() == pytest.approx(100, rel=0.01)
