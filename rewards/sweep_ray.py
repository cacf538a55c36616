"""The groups of a sweep as tasks of a Ray cluster: beyond one machine, by the same function."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch

from decoder.contracts import UserError
from rewards.sweep_cells import Bench, run_group
from rewards.sweep_grid import Group
from rewards.sweep_results import Result
from rewards.sweep_workers import Died, Outcome

LOCAL, LOCAL_WORKERS = "local", 2
PATIENCE = 10  # seconds for a cluster to answer
AHEAD = 2  # groups a core that are with the cluster, so that no core waits for the next


class RayTasks:
    """Runs groups as Ray tasks of one core each.

    Every node needs this package and the store under the same path. Ray starts tasks again elsewhere only
    where we ask: a group whose worker died is reported.
    """

    def __init__(self, bench: Bench, address: str) -> None:
        """Join the cluster at this address, "auto" for the one of this machine; "local" starts one here.

        Raises UserError if Ray is not installed or the cluster cannot be reached.
        """
        self._ray = _ray()
        _join(self._ray, address)
        self._bench = self._ray.put(bench)
        self._task = self._ray.remote(num_cpus=1, max_retries=0)(_run)
        self.n_slots = AHEAD * max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._running: dict[Any, Group] = {}

    def submit(self, group: Group) -> None:
        """Hand the group to the cluster."""
        self._running[self._task.remote(self._bench, group)] = group

    def wait(self) -> list[Outcome]:
        """Return what the first tasks have finished, or how they died."""
        ready, _ = self._ray.wait(list(self._running), num_returns=1)
        return [(self._running.pop(task), self._result(task)) for task in ready]

    def close(self) -> None:
        """Leave the cluster, which ends its tasks, and a local cluster with them."""
        self._ray.shutdown()

    def _result(self, task: Any) -> list[Result] | Died:
        errors = self._ray.exceptions
        try:
            found: list[Result] = self._ray.get(task)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            return Died(f"was lost by Ray ({type(error).__name__})")
        return found


def _run(bench: Bench, group: Group) -> list[Result]:
    torch.set_num_threads(1)
    bench.warm()
    return run_group(bench, group)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray: pip install 'tiller-lm[cluster]'") from None
    return ray


def _join(ray: Any, address: str) -> None:
    quiet = {"configure_logging": False, "log_to_driver": False}
    if address == LOCAL:
        ray.init(
            address=LOCAL,
            num_cpus=LOCAL_WORKERS,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
        return
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster at {address!r} ({str(error).splitlines()[0]}): give the address that `ray start "
            "--head` printed, or local; where it asks for a token, set RAY_AUTH_MODE=token here too"
        ) from None


def _knock(address: str) -> None:
    """Raise OSError where nobody listens, which Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
