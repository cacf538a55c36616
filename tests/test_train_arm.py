"""`python -m rewards.train_arm` as a user runs it: labels in, a steering reward out, or one line of error."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from decoder.contracts import UserError
from decoder.models import load_model
from decoder.replay import score_path
from rewards.arm import TapArm
from rewards.load import load_reward
from rewards.output_folder import write_folder

REPO = Path(__file__).resolve().parent.parent
GOOD = ("good", "fine", "great", "lovely", "superb")
BAD = ("bad", "poor", "awful", "dull", "dire")
FILLER = (
    "the film",
    "a street",
    "the rain",
    "morning",
    "the music",
    "a train",
    "it was",
    "and then",
    "they saw",
)


def texts(n: int, seed: int = 0) -> list[tuple[str, int]]:
    """Return n different texts of filler and four words that give the label away."""
    rng = random.Random(seed)
    found = {}
    while len(found) < n:
        label = len(found) % 2
        words = rng.choices(FILLER, k=3) + rng.choices(GOOD if label else BAD, k=4)
        rng.shuffle(words)
        found.setdefault(" ".join(words), label)
    return list(found.items())


def write_tsv(path: Path, rows: list[tuple[str, int]]) -> Path:
    path.write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    return path


def train(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command from the root of the project, with a cache of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rewards.train_arm", *map(str, arguments)],
        cwd=REPO,
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def trained(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A reward trained from a file, and what the command printed."""
    folder = tmp_path_factory.mktemp("train")
    data = write_tsv(folder / "train.tsv", texts(400))
    test = write_tsv(folder / "test.tsv", texts(500)[400:])
    done = train(
        data, "--test", test, "--model", tiny_dir, "--output", folder / "out", "--cache", folder / "cache",
        "--epochs", "40", "--dtype", "float32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


def test_learns_and_tells(trained: tuple[Path, str]) -> None:
    """Held-out texts are told apart, and the saved config says how the head came about."""
    folder, printed = trained
    config = json.loads((folder / "config.json").read_text())
    whole = {name: rows[-1] for name, rows in config["metrics"].items()}
    assert whole["test.tsv"]["prefix"] == "100%"
    assert whole["test.tsv"]["auc"] > 0.9
    assert whole["validation"]["auc"] > 0.9
    assert f"{whole['test.tsv']['auc']:.3f}" in printed
    assert "350 training and 50 validation texts" in printed
    training = config["training"]
    assert training["files"] == ["train.tsv"]
    assert training["n_texts"] == {"train": 350, "validation": 50}
    assert set(training["seconds"]) == {"load", "features", "selection", "fit"}
    assert training["command"].startswith("python -m rewards.train_arm train.tsv --test test.tsv --model")
    assert len(config["selection"]) == 7  # two layers, their pair, two ranks by two weight decays
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_no_folder_of_this_machine_is_saved(trained: tuple[Path, str]) -> None:
    config = json.loads((trained[0] / "config.json").read_text())
    assert str(trained[0].parent) not in json.dumps(config)


def test_prefers_the_right_words(trained: tuple[Path, str], tiny_dir: Path) -> None:
    """Loaded for decoding, the reward ranks good words over bad ones it is about to write."""
    loaded = load_model(str(tiny_dir), dtype="float32", device="cpu")
    reward = load_reward(trained[0], loaded.lm)
    assert isinstance(reward, TapArm)

    def end(text: str) -> float:
        """Return r of the end token: what the reward says of the whole text."""
        ids = loaded.tokenizer(text).input_ids
        return score_path(loaded.lm, reward, [ids], [[loaded.tokenizer.eos_token_id]])[0][0]

    margins = [
        end(f"the rain {good} {good} the music {good} {good}")
        - end(f"the rain {bad} {bad} the music {bad} {bad}")
        for good, bad in zip(GOOD, BAD, strict=True)
    ]
    assert sum(margin > 0 for margin in margins) >= 4
    assert all(end(f"the rain {word} it was") <= 0 for word in GOOD)


def test_second_run_is_the_same(tiny_dir: Path, tmp_path: Path) -> None:
    """The same command gives the same weights, from the cache; no output is overwritten unasked."""
    data = write_tsv(tmp_path / "a.tsv", texts(80))
    command = (
        data, "--model", tiny_dir, "--cache", tmp_path / "cache", "--layers", "2", "--rank", "2",
        "--weight-decay", "1", "--epochs", "1", "--dtype", "float32", "--device", "cpu",
    )  # fmt: skip
    weights = []
    for name in ("one", "two"):
        done = train(*command, "--output", tmp_path / name)
        assert done.returncode == 0, done.stderr
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    refused(train(*command, "--output", tmp_path / "one"), "not empty", "--overwrite")
    (tmp_path / "one" / "notes.txt").touch()
    refused(train(*command, "--output", tmp_path / "one", "--overwrite"), "notes.txt", "not replaced")
    (tmp_path / "one" / "notes.txt").unlink()
    done = train(*command, "--output", tmp_path / "one", "--overwrite", "--summary", "none")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "one" / "config.json").read_text())["summary"] == "none"
    assert not list(tmp_path.glob(".*"))


def test_several_labels_and_a_validation_file(tiny_dir: Path, tmp_path: Path) -> None:
    """A reward for each column, chosen on the file named for it, in the output asked for."""
    rows = [{"say": text, "kind": bool(label), "long": len(text) % 10 / 10} for text, label in texts(120)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:90]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[90:]))
    done = train(
        tmp_path / "a.jsonl", "--validation", tmp_path / "b.jsonl", "--text-column", "say",
        "--label-column", "kind", "--label-column", "long", "--output", tmp_path / "out", "--model", tiny_dir,
        "--layers", "1,3", "--rank", "2", "--epochs", "1", "--limit", "60", "--summary", "generated",
        "--output-form", "probability",
        TILLER_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for column in ("kind", "long"):
        config = json.loads((tmp_path / "out" / column / "config.json").read_text())
        assert config["layers"] == [1, 3]
        assert (config["summary"], config["output"]) == ("generated", "probability")
        assert config["training"]["n_texts"] == {"train": 60, "validation": 30}
        assert config["label_column"] == column
    assert (tmp_path / "cache" / "states").is_dir()


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """Assert exit code 2 and one line of error that says all of `said`."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for words in said:
        assert words in lines[0]


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (None, (), ("does not exist",)),
        ("", (), ("is empty",)),
        ("a\t1\nb\tx\n", (), ("line 2", "'x'", "--positive-label")),
        ("a\t1\nb\t3\n", (), ("line 2", "outside [0, 1]")),
        ("a\t1\nb\t1\n", (), ("one class only, 1",)),
        ("a\t1\nb\t0\n", (), ("1 texts of one class", "at least 8")),
        ("text\tx\na\t1\n", ("--label-column", "mood"), ("no column 'mood': it has text, x",)),
        ("a\t1\n", ("--layers", "1,x"), ("--layers", "'1,x'")),
        ("a\t1\n", ("--epochs", "0"), ("--epochs",)),
        ("a\t1\n", ("--summary", "all"), ("--summary",)),
        ("good", ("--layers", "9"), ("layer 9 does not exist",)),
        ("good", ("--dtype", "int8"), ("unknown dtype 'int8'",)),
        ("good", ("--model", "./nowhere"), ("'./nowhere' does not exist",)),
        ("good", ("--output", "rewards/arm.py"), ("is a file",)),
        ("good", ("--output", "/proc/reward"), ("cannot write to output",)),
        ("good", ("--cache", "/proc/cache"), ("cannot use the cache folder",)),
        ("good", ("--device", "warp"), ("device 'warp'",)),
    ],
)
def test_bad_input(
    tiny_dir: Path, tmp_path: Path, content: str | None, options: tuple[str, ...], said: tuple[str, ...]
) -> None:
    data = tmp_path / "data.tsv"
    if content == "good":
        write_tsv(data, texts(40))
    elif content is not None:
        data.write_text(content)
    defaults = {
        "--model": str(tiny_dir),
        "--output": str(tmp_path / "out"),
        "--cache": str(tmp_path / "cache"),
    }
    given = {**defaults, **dict(zip(options[::2], options[1::2], strict=True))}
    refused(train(data, *(word for option in given.items() for word in option)), *said)
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_kept(tmp_path: Path) -> None:
    """A disk that fills while a head is written: the old head stays, no half is left."""

    def fills(half: Path) -> None:
        (half / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    old = tmp_path / "head"
    write_folder(old, lambda half: (half / "config.json").write_text("{}") and None)
    with pytest.raises(UserError, match="No space left on device"):
        write_folder(old, fills)
    assert (old / "config.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["head"]
