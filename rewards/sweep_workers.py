"""Where the groups of a sweep are run: in this process, in processes of this machine, or on Ray.

Each place is a `Pool` and calls the same function with one thread, so that the results are the same. The
store travels as the path of its folder; its pages are shared by all processes of a machine.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Protocol

import torch

from decoder.contracts import UserError
from rewards.sweep_cells import Bench, run_group
from rewards.sweep_grid import Group
from rewards.sweep_results import Result, failure

DIED = "the process that trained it {how}: was memory short? --retry-failed tries it again"


@dataclass(frozen=True, slots=True)
class Died:
    """How the process of a group ended before the group did."""

    how: str


Outcome = tuple[Group, list[Result] | Died]


class Pool(Protocol):
    """Runs groups, at most `n_slots` at a time; usable until closed."""

    @property
    def n_slots(self) -> int: ...
    def submit(self, group: Group) -> None: ...
    def wait(self) -> list[Outcome]: ...
    def close(self) -> None: ...


def run_groups(pool: Pool, groups: Iterable[Group]) -> Iterator[list[Result]]:
    """Yield the results of every group as they come, in any order.

    Where a group's process dies, its cells are run one by one, and a cell whose own process dies has failed.
    """
    waiting, running = deque(groups), 0
    while waiting or running:
        while waiting and running < pool.n_slots:
            pool.submit(waiting.popleft())
            running += 1
        for group, found in pool.wait():
            running -= 1
            if not isinstance(found, Died):
                yield found
            elif len(group) == 1:
                yield [failure(group[0], DIED.format(how=found.how))]
            else:
                waiting.extendleft((cell,) for cell in reversed(group))


class InProcess:
    """Runs groups in this process, one when it is asked for: for tests, notebooks and debuggers."""

    n_slots = 1

    def __init__(self, bench: Bench) -> None:
        """Take what all groups share."""
        bench.warm()
        self._bench, self._next = bench, deque[Group]()

    def submit(self, group: Group) -> None:
        """Take the group that `wait` will run."""
        self._next.append(group)

    def wait(self) -> list[Outcome]:
        """Run the group on one thread."""
        group, threads = self._next.popleft(), torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return [(group, run_group(self._bench, group))]
        finally:
            torch.set_num_threads(threads)

    def close(self) -> None:
        """Nothing is left open."""


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    connection: Connection
    group: Group | None = None
    began: bool = False


class Processes:
    """Runs groups in processes of this machine, started anew, with a new one for each that dies."""

    def __init__(self, bench: Bench, n_workers: int) -> None:
        """Take what all groups share and the number of processes; they start when groups come."""
        self.n_slots, self._bench = n_workers, bench
        self._workers: list[_Worker] = []

    def submit(self, group: Group) -> None:
        """Hand the group to a process that has none."""
        idle = [worker for worker in self._workers if worker.group is None and worker.process.is_alive()]
        worker = idle[0] if idle else self._start()
        worker.group = group
        worker.connection.send(group)

    def wait(self) -> list[Outcome]:
        """Return what the first of the busy processes have finished, or how they died.

        Raises UserError if one dies before it has begun, because then no other would fare better.
        """
        busy = [worker for worker in self._workers if worker.group is not None]
        ready = wait([worker.connection for worker in busy])
        heard = [self._hear(worker) for worker in busy if worker.connection in ready]
        return [outcome for outcome in heard if outcome is not None]

    def close(self) -> None:
        """End the processes, whatever they do."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def _hear(self, worker: _Worker) -> Outcome | None:
        """Return what came of the worker's group, or None if it has only begun."""
        assert worker.group is not None
        try:
            found: list[Result] | None = worker.connection.recv()
        except (EOFError, ConnectionError):  # the other end is gone
            return worker.group, self._buried(worker)
        if found is None:
            worker.began = True
            return None
        group, worker.group = worker.group, None
        return group, found

    def _buried(self, worker: _Worker) -> Died:
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)
        how = _ending(worker.process.exitcode)
        if not worker.began:
            raise UserError(f"a process of the sweep {how} before it began: its own message says why")
        return Died(how)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._bench), daemon=True)
        with _one_thread():
            process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]


def _serve(connection: Connection, bench: Bench) -> None:
    """Say that it has begun, then run groups until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C for all
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    bench.warm()
    with suppress(EOFError, ConnectionError):  # the sweep has ended
        connection.send(None)
        while True:
            connection.send(run_group(bench, connection.recv()))


def _leave_with_parent() -> None:
    """End this process with its parent, so that a killed sweep leaves none behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start here have libraries of linear algebra with one thread."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _ending(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"was killed by signal {-exit_code}"
    return f"ended with exit code {exit_code}"
