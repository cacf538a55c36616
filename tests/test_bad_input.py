"""Bad input through the real command line: one line that says what to do, exit 2, no traceback."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from decoder.lm import identify
from rewards.arm import ArmConfig, ArmHead, save_pretrained
from tests.tiny import tiny_llama, tiny_tokenizer

REPO = Path(__file__).resolve().parent.parent


def command(*arguments: str | Path) -> list[str]:
    """Return the command line of decoder.generate."""
    return [sys.executable, "-m", "decoder.generate", *map(str, arguments)]


def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run the command as a user does; standard output and error are captured."""
    return subprocess.run(command(*arguments), cwd=REPO, capture_output=True, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


def refused(done: subprocess.CompletedProcess[bytes], *said: str, code: int = 2) -> None:
    """Assert that the run ended with this code and one line of error that says all of `said`."""
    error = done.stderr.decode()
    assert done.returncode == code, error
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    for words in said:
        assert words in lines[0]


@pytest.fixture(scope="module")
def head(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved reward that fits the tiny model."""
    directory = tmp_path_factory.mktemp("head") / "kind"
    torch.manual_seed(0)
    return _save_head(directory, hidden=32)


def _save_head(directory: Path, hidden: int, layers: tuple[int, ...] = (1, 3)) -> Path:
    model = tiny_llama(hidden=hidden)
    arm = ArmHead(ArmConfig(layers, hidden, rank=4))
    save_pretrained(arm, directory, identify("tiny", model, tiny_tokenizer()), {})
    return directory


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", ("empty.txt is empty",)),
        ("blank.txt", b"One\n\nTwo\n", ("blank.txt", "line 2", "empty")),
        ("empty.jsonl", b'{"prompt": "a"}\n{"prompt": ""}\n', ("line 2", "empty")),
        ("long.txt", b"x" * 1_200_000 + b"\n", ("line 1", "more than 1000000 bytes")),
        ("latin.txt", b"good\ncaf\xe9\n", ("line 2", "UTF-8")),
        ("broken.jsonl", b'{"prompt": "a"}\n' * 6 + b'{"prompt": \n', ("line 7", "JSON")),
        ("other.jsonl", b'{"text": "a"}\n', ("line 1", '{"prompt"')),
        ("twice.jsonl", b'{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n', ("line 2", "'a'")),
    ],
)
def test_prompt_files(tmp_path: Path, name: str, content: bytes, said: tuple[str, ...]) -> None:
    """A mistake in a prompt file is found before a model is loaded, and its line is named."""
    path = tmp_path / name
    path.write_bytes(content)
    refused(run("--prompts", path, "--model", "/no/such/model"), *said)


def test_standard_input_and_arguments() -> None:
    """The same holds for standard input and for prompts given as arguments."""
    refused(run("--prompts", "-", input=b""), "standard input is empty")
    refused(run(""), "empty")
    refused(run("--prompts", "/no/such/file"), "/no/such/file", "No such file")
    refused(run("Hello", "--prompts", "x.txt"), "choose one")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--reward", "positve"), ("'positve'", "did you mean positive")),
        (("--beta", "nan"), ("nan", "finite")),
        (("--beta", "inf"), ("inf", "finite")),
        (("--reward", "positive:much"), ("'much'", "positive:2")),
        (("--temperature", "0"), ("temperature is 0.0",)),
        (("--top-p", "1.5"), ("top_p is 1.5",)),
        (("--top-k", "-1"), ("top_k is -1",)),
        (("--reward-top-k", "0"), ("reward_top_k is 0",)),
        (("--max-new-tokens", "0"), ("max_new_tokens is 0",)),
        (("--num-return-sequences", "0"), ("num_return_sequences is 0",)),
        (("--seed", "x"), ("--seed",)),
        (("--beta", "much"), ("--beta",)),
        (("--no-such-option",), ("--no-such-option",)),
        (("--model", "/no/such/model"), ("/no/such/model",)),
        (("--model", "no-such/hub-model"), ("no-such/hub-model", "local directory")),
        (("--dtype", "float7"), ("'float7'", "bfloat16")),
        (("--device", "toaster"), ("'toaster'",)),
    ],
)
def test_arguments(arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    """Numbers, names and options out of range are refused with the value seen."""
    refused(run("Hello", *arguments), *said)


def test_more_candidates_than_tokens(tiny_dir: Path, head: Path) -> None:
    """More candidates than the vocabulary has is refused before anything is decoded."""
    done = run("Hello", "--model", tiny_dir, "--reward", head, "--reward-top-k", "301")
    refused(done, "reward_top_k is 301", "300")
    done = run("Hello", "--model", tiny_dir, "--reward", head, "--top-k", "301")
    refused(done, "top_k is 301", "300")


def test_prompt_longer_than_the_context(tiny_dir: Path, head: Path) -> None:
    """A prompt that leaves no room names its length and the context's."""
    done = run("word " * 200, "--model", tiny_dir, "--reward", head)
    refused(done, "context of 128", "shorten")


def _other_size(directory: Path) -> None:
    shutil.rmtree(directory)
    _save_head(directory, hidden=64)


def _other_tokenizer(directory: Path) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["base_model"]["tokenizer_hash"] = "0" * 16
    path.write_text(json.dumps(config))


def _corrupt(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def _nan(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["state.weight"][0, 0] = float("nan")
    save_file(tensors, path)


def _no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _broken_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def _missing_weight(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["vocabulary.bias"]
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_other_size, ("hidden_size 64 in the reward, 32 in the model", "rewards.train_arm")),
        (_other_tokenizer, ("tokenizer_hash '0000000000000000' in the reward",)),
        (_corrupt, ("model.safetensors", "cannot be read")),
        (_nan, ("'state.weight'", "NaN")),
        (_no_config, ("config.json",)),
        (_broken_config, ("config.json", "JSON")),
        (_missing_weight, ("vocabulary.bias",)),
    ],
)
def test_rewards(
    tiny_dir: Path, head: Path, tmp_path: Path, spoil: Callable[[Path], None], said: tuple[str, ...]
) -> None:
    """A reward for another model or tokenizer, or a spoilt one, is refused with both sides."""
    spoilt = tmp_path / "spoilt"
    shutil.copytree(head, spoilt)
    spoil(spoilt)
    refused(run("Hello", "--model", tiny_dir, "--reward", spoilt), *said)


def test_corrupt_model(tiny_dir: Path, tmp_path: Path) -> None:
    """A model whose weights are cut short is named, with the reason."""
    model = tmp_path / "model"
    shutil.copytree(tiny_dir, model)
    (model / "model.safetensors").write_bytes(b"no")
    refused(run("Hello", "--model", model), str(model))


def test_output_that_cannot_be_written(tiny_dir: Path, head: Path, tmp_path: Path) -> None:
    """An output in a place that is no folder, or a full disk behind a pipe, is named."""
    (tmp_path / "file").write_text("")
    given = ("Hello", "--model", tiny_dir, "--reward", head, "--max-new-tokens", "4")
    refused(run(*given, "--output", tmp_path / "file" / "g.jsonl"), str(tmp_path / "file"))
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command(*given), cwd=REPO, stdout=full, stderr=subprocess.PIPE, timeout=120, check=False
        )
    refused(done, "No space left")


def test_output_of_another_configuration(tiny_dir: Path, head: Path, tmp_path: Path) -> None:
    """Going on with other settings is refused with both values, and the file keeps what it has."""
    output = tmp_path / "g.jsonl"
    given = ("Hello", "--model", tiny_dir, "--max-new-tokens", "4", "--output", output)
    assert run(*given, "--reward", f"{head}:1").returncode == 0
    before = output.read_bytes()
    refused(run(*given, "--reward", f"{head}:2"), "1.0 in the file, 2.0 now", "--overwrite")
    assert output.read_bytes() == before
    assert run(*given, "--reward", f"{head}:2", "--overwrite").returncode == 0
    assert output.read_bytes() != before


def test_disk_full_keeps_what_is_finished(tiny_dir: Path, head: Path, tmp_path: Path) -> None:
    """When the disk fills up, the error says so, whole lines stay, and a rerun completes the file."""
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"Prompt number {i}\n" for i in range(40)))
    given = (
        "--prompts",
        prompts,
        "--model",
        tiny_dir,
        "--reward",
        head,
        "--max-new-tokens",
        "4",
        "--batch-size",
        "4",
    )
    assert run(*given, "--output", tmp_path / "whole" / "g.jsonl").returncode == 0
    output = tmp_path / "cut" / "g.jsonl"
    whole = (tmp_path / "whole" / "g.jsonl").read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, len(whole) // 2))

    # Without coverage in the child: its own data file would meet the limit first.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    refused(run(*given, "--output", output, preexec_fn=limit, env=plain), "g.jsonl", "File too large", "kept")
    kept = output.read_bytes()
    assert kept
    assert whole.startswith(kept[: kept.rindex(b"\n") + 1])
    assert run(*given, "--output", output).returncode == 0
    assert output.read_bytes() == whole


def test_interrupt_keeps_what_is_finished(tiny_dir: Path, head: Path, tmp_path: Path) -> None:
    """Ctrl-C ends with one line and exit code 130; the file holds whole lines and can be resumed."""
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"Prompt number {i}\n" for i in range(4000)))
    output = tmp_path / "g.jsonl"
    given = (
        "--prompts",
        prompts,
        "--model",
        tiny_dir,
        "--reward",
        head,
        "--max-new-tokens",
        "8",
        "--output",
        output,
    )

    def hear() -> None:  # a test run in the background has inherited deafness to Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(command(*given), cwd=REPO, stderr=subprocess.PIPE, preexec_fn=hear)
    deadline = time.monotonic() + 90
    while not (output.exists() and output.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert b"Traceback" not in error
    assert b"interrupted" in error
    lines = output.read_bytes().splitlines(keepends=True)
    assert 0 < len(lines) < 4000
    assert all(json.loads(line)["generations"] for line in lines)
