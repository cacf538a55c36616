"""The commands with --backend vllm write what they write on transformers, also after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.material import PROMPTS

ENGINE = [
    "--backend", "vllm", "--engine", "enforce_eager=true", "--engine", "max_model_len=256",
    "--engine", "max_num_seqs=32",
]  # fmt: skip
WAIT = 300  # seconds for a run to write something


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, "--dtype", "float32", *arguments]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS[:64]) + "\n")
    return path


def test_a_killed_run_goes_on_and_ends_as_on_transformers(prompts: Path, tmp_path: Path) -> None:
    given = [
        "--prompts", str(prompts), "--reward", "positive:6", "--max-new-tokens", "40",
        "--batch-size", "4",
    ]  # fmt: skip
    inside, whole = tmp_path / "inside.jsonl", tmp_path / "whole.jsonl"
    running = command("decoder.generate", *given, *ENGINE, "--output", str(inside))
    killed = subprocess.Popen(running, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + WAIT
    while killed.poll() is None and time.monotonic() < deadline:
        if inside.exists() and inside.read_bytes().count(b"\n") > 2:
            killed.send_signal(signal.SIGKILL)
            break
        time.sleep(0.05)
    assert killed.wait() == -signal.SIGKILL
    before = inside.read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    assert 2 < kept.count(b"\n") < 64
    subprocess.run(running, check=True, capture_output=True)
    assert inside.read_bytes().startswith(kept), "what was written before the kill stays"
    subprocess.run(
        command("decoder.generate", *given, "--limit", "12", "--output", str(whole)),
        check=True,
        capture_output=True,
    )
    assert len(read(inside)) == 64
    for ours, theirs in zip(read(inside)[:12], read(whole), strict=True):
        assert ours["prompt"] == theirs["prompt"]
        for one, other in zip(ours["generations"], theirs["generations"], strict=True):
            assert one.keys() == other.keys()
            assert (one["text"], one["finish_reason"]) == (other["text"], other["finish_reason"])


def test_best_of_n_writes_the_same_choice(prompts: Path, tmp_path: Path) -> None:
    given = [
        "--prompts", str(prompts), "--limit", "8", "--n", "4", "--max-new-tokens", "12",
        "--scorer", "logprob",
    ]  # fmt: skip
    for name, more in (("inside", ENGINE), ("whole", [])):
        asked = command("decoder.best_of_n", *given, *more, "--output", str(tmp_path / f"{name}.jsonl"))
        subprocess.run(asked, check=True, capture_output=True)
    for ours, theirs in zip(
        read(tmp_path / "inside.best.jsonl"), read(tmp_path / "whole.best.jsonl"), strict=True
    ):
        assert ours.keys() == theirs.keys()
        assert ours["best"]["text"] == theirs["best"]["text"]


def test_bad_engine_arguments_end_with_a_line(prompts: Path, tmp_path: Path) -> None:
    for more, message in (
        (["--engine", "pipeline_parallel_size=2"], "pipeline_parallel_size cannot be above 1"),
        (["--engine", "no_such_thing=2"], "no_such_thing"),
        (["--trace", "--output", str(tmp_path / "t.jsonl")], "trace needs"),
    ):
        asked = command("decoder.generate", "--prompts", str(prompts), "--backend", "vllm", *more)
        done = subprocess.run(asked, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
