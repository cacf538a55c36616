"""A server of `decoder.serve` in a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from decoder.contracts import UserError

WAIT = 300  # seconds for it to come up
GRACE = 30  # seconds for it to end


@dataclass(frozen=True, slots=True)
class Server:
    """One that answers. url: of its OpenAI interface. pid: of its first process."""

    url: str
    pid: int


@contextmanager
def run_server(options: Sequence[str], engine: Sequence[str]) -> Iterator[Server]:
    """Start `decoder.serve OPTIONS -- ENGINE`, wait until it answers, and end it with all its processes.

    Raises UserError if it ends, or does not answer in time.
    """
    port = _free_port()
    words = [*options, "--", "--host", "127.0.0.1", "--port", str(port), *engine]
    child = subprocess.Popen([sys.executable, "-m", "decoder.serve", *words], start_new_session=True)
    try:
        _await(child, f"http://127.0.0.1:{port}/health")
        yield Server(f"http://127.0.0.1:{port}/v1", child.pid)
    finally:
        _end(child)


def _await(child: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise UserError(f"the server ended with status {child.returncode}: its messages above say why")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise UserError(f"the server did not answer within {WAIT} s: its messages above may say why")


def _end(child: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
            child.wait(GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
