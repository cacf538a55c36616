"""Training rewards with their own backbone, as a user runs it: learning, stopping and going on, refusing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from decoder.cli import run
from decoder.contracts import TokenReward
from decoder.lm import CausalLM
from decoder.models import load_model
from decoder.replay import score_path
from rewards.arm_material import Material
from rewards.ask_teacher import Taught, ask_teachers
from rewards.backbone_texts import encode
from rewards.candidate_values import CandidateValues
from rewards.distil import load_teacher
from rewards.fit_backbone import read_values
from rewards.labelled_text import LabelledTexts
from rewards.load import load_reward
from rewards.train_arm import app as train_arm
from rewards.train_rad import app as train_rad
from rewards.training_options import TeacherOptions
from tests.backbone_texts import labelled_texts
from tests.tiny import BOS, EOS, save_tiny, tiny_tokenizer

REPO = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels, a tiny Llama, and a tiny GPT-2, whose dropout needs the state of the random numbers."""
    folder = tmp_path_factory.mktemp("backbone")
    save_tiny(folder / "tiny")
    save_tiny(folder / "gpt2", "gpt2")
    lines = [f"{text}\t{label}\n" for text, label in labelled_texts(320)]
    (folder / "train.tsv").write_text("".join(lines))
    return folder


def command(app: object, *arguments: str | Path) -> None:
    """Run a command of ours in this process; it must succeed."""
    with pytest.raises(SystemExit) as ended:
        run(app, [str(argument) for argument in arguments])  # type: ignore[arg-type]
    assert ended.value.code == 0


def options(folder: Path, **more: object) -> list[str]:
    """Return the arguments that most runs here share."""
    given = {"model": folder / "tiny", "dtype": "float32", "device": "cpu", "batch-size": 8}
    given["learning-rate"] = 1e-2
    words = [str(folder / "train.tsv")]
    for name, value in {**given, **more}.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


@pytest.fixture(scope="module")
def rad(folder: Path) -> Path:
    """A trained RAD: a LoRA on the tiny Llama."""
    command(train_rad, *options(folder, output=folder / "rad", epochs=4, lora_rank=4))
    return folder / "rad"


def test_learns_and_tells(rad: Path) -> None:
    """A word gives the label away: the loss falls, held-out texts are told apart, the config says how."""
    config = json.loads((rad / "config.json").read_text())
    assert (config["kind"], config["link"], config["output"]) == ("rad", "sigmoid", "log_probability")
    whole = config["metrics"]["1"]["validation"][-1]
    assert (whole["prefix"], whole["n_texts"]) == ("100%", 40)
    assert whole["auc"] > 0.9
    history = config["fit"]["history"]
    assert [entry["step"] for entry in history] == list(range(14, 141, 14))
    assert history[-1]["validation_loss"] < 0.7 * history[0]["validation_loss"]
    assert history[-1]["training_loss"] < 0.6 * history[0]["training_loss"]
    assert config["fit"]["tokens_per_second"] > 0
    training = config["training"]
    assert training["n_texts"] == {"train": 280, "validation": 40}
    assert training["files"] == ["train.tsv"]
    assert {"load", "fit", "measure"} == set(training["seconds"])
    assert 100 < training["peak_memory_mib"] < 100_000
    assert {"torch", "peft", "accelerate"} <= set(training["versions"])
    names = {str(path.relative_to(rad)) for path in rad.rglob("*") if path.is_file()}
    adapter = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert names == {"config.json", "model.safetensors"} | adapter
    assert not rad.with_name("rad.partial").exists()


@pytest.mark.parametrize(
    ("more", "link"),
    [
        ({"adapt": "lora", "loss": "ce", "epochs": 4, "rank": 8}, "sigmoid"),
        ({"adapt": "full", "loss": "mse", "backbone": "gpt2"}, "clamp"),
        ({"adapt": "none", "loss": "ce"}, "sigmoid"),
    ],
    ids=["lora", "full", "none"],
)
def test_decodes_as_it_was_trained(folder: Path, tmp_path: Path, more: dict[str, object], link: str) -> None:
    """A saved ARM gives in a decode, token by token, the values that its training saw."""
    more = {"epochs": 1, **more}
    if "backbone" in more:
        more["backbone"] = folder / str(more["backbone"])
    arguments = options(folder, form="backbone", output=tmp_path / "arm", **more)
    command(train_arm, *arguments)
    config = json.loads((tmp_path / "arm" / "config.json").read_text())
    assert (config["kind"], config["link"]) == ("backbone_arm", link)
    if more["epochs"] == 4:
        assert config["metrics"]["1"]["validation"][-1]["auc"] > 0.9
    generator = load_model(str(folder / "tiny"), dtype="float32", device="cpu")
    text = labelled_texts(3)[1][0]
    seen = load_teacher(tmp_path / "arm", generator.lm, BOS, ["1"]).scorer
    rows = encode(generator.tokenizer, [text], torch.zeros(1, 1), 64, None)
    values = read_values(seen, rows, CPU, "reading")[0][:, 0]
    ids = generator.tokenizer(text).input_ids
    reward = load_reward(tmp_path / "arm", generator.lm)
    found = score_path(generator.lm, reward, [[ids[0]]], [[*ids[1:], EOS]])[0]
    wanted = torch.nn.functional.logsigmoid(values) if link == "sigmoid" else values.clamp(0, 1)
    torch.testing.assert_close(torch.tensor(found), wanted[1:], atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("distil", ["plain", "delta", "candidates"])
def test_learns_from_a_teacher(folder: Path, rad: Path, tmp_path: Path, distil: str) -> None:
    """Every form of distillation comes nearer to the teacher; labels serve for measuring alone."""
    arguments = options(
        folder, form="backbone", output=tmp_path / "arm", teacher=rad, distil=distil,
        epochs=3 if distil == "plain" else 1,
        candidates=5, candidate_positions=2, regularise=0.1,
    )  # fmt: skip
    command(train_arm, *arguments)
    config = json.loads((tmp_path / "arm" / "config.json").read_text())
    history = [entry["validation_loss"] for entry in config["fit"]["history"]]
    assert history[-1] < (0.7 if distil == "plain" else 0.9) * history[0]
    assert config["link"] == "sigmoid"
    assert config["teacher"]["teacher"] == "rad"
    assert config["teacher"]["distil"] == distil
    if distil == "plain":
        assert config["metrics"]["1"]["validation"][-1]["auc"] > 0.9


@pytest.mark.parametrize("distil", ["plain", "candidates"])
def test_teaches_the_tap_form(folder: Path, rad: Path, tmp_path: Path, distil: str) -> None:
    """A tap ARM learns what the teacher says, not the labels: of one that says the opposite, the opposite."""
    shutil.copytree(rad, tmp_path / "opposite")
    weights = load_file(rad / "model.safetensors")
    save_file({name: -weight for name, weight in weights.items()}, tmp_path / "opposite/model.safetensors")
    aucs = []
    for teacher in (rad, tmp_path / "opposite"):
        arguments = ["--model", folder / "tiny", "--dtype", "float32", "--device", "cpu", "--layers", "2,4"]
        arguments += ["--rank", "4", "--weight-decay", "1", "--epochs", "30", "--cache", tmp_path / "cache"]
        output = tmp_path / f"taught-{teacher.name}"
        arguments += ["--teacher", teacher, "--distil", distil]
        command(train_arm, folder / "train.tsv", *arguments, "--output", output)
        config = json.loads((output / "config.json").read_text())
        assert config["training"]["teacher"]["teachers"].keys() == {teacher.name}
        assert config["training"]["teacher"]["distil"] == distil
        assert "teacher" in config["training"]["seconds"]
        aucs.append(config["metrics"]["validation"][-1]["auc"])
    sure = 0.7 if distil == "plain" else 0.6  # candidates teach differences; what a prefix says hardly counts
    assert aucs[0] > sure
    assert aucs[1] < 1 - sure


def test_teacher_speaks_of_the_tokens_that_taps_score(folder: Path, rad: Path, tmp_path: Path) -> None:
    """What the tap ARM is to learn at a state is RAD's P of the token that the state is scored with."""
    generator = load_model(str(folder / "tiny"), dtype="float32", device="cpu")
    lines = [text for text, _ in labelled_texts(3)]
    labelled = LabelledTexts(tuple(lines), np.zeros((3, 1)), ("1",), (), 3, 0, 0)
    material = Material(labelled, np.arange(2), np.arange(2, 3), {}, 0.0)
    soft = ask_teachers(TeacherOptions([rad]), generator, material, tmp_path, 10, 0).soft
    ids = [row[:11] for row in generator.tokenizer(lines).input_ids]
    prompts, rest = [row[:1] for row in ids], [row[1:] for row in ids]
    reward = load_reward(f"{rad}@probability", generator.lm)
    found = score_path(generator.lm, reward, prompts, rest)
    assert all(len(row) == 10 for row in found)
    torch.testing.assert_close(soft[:, 0], torch.tensor(found).flatten(), atol=3e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def tap(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tap ARM on the same labels."""
    output = tmp_path_factory.mktemp("tap") / "tap"
    arguments = ["--model", folder / "tiny", "--dtype", "float32", "--device", "cpu", "--layers", "2"]
    arguments += ["--rank", "4", "--weight-decay", "1", "--epochs", "10", "--cache", output.parent / "cache"]
    command(train_arm, folder / "train.tsv", *arguments, "--output", output)
    return output


@pytest.mark.parametrize("distil", ["plain", "candidates"])
def test_several_teachers_say_their_mean(
    folder: Path, rad: Path, tap: Path, tmp_path: Path, distil: str
) -> None:
    """A tap ARM teaches as it decodes, several teach their mean, and a second asking reads the answers."""
    generator = load_model(str(folder / "tiny"), dtype="float32", device="cpu")
    lines = [text for text, _ in labelled_texts(3)]
    labelled = LabelledTexts(tuple(lines), np.zeros((3, 1)), ("1",), (), 3, 0, 0)
    material = Material(labelled, np.arange(2), np.arange(2, 3), {}, 0.0)

    def ask(*teachers: Path) -> Taught:
        return ask_teachers(
            TeacherOptions(list(teachers), distil, 4, 2),
            generator,
            material,
            tmp_path,
            10,
            0,  # type: ignore[arg-type]
        )

    one, other, both, again = ask(rad), ask(tap), ask(rad, tap), ask(rad, tap)
    torch.testing.assert_close(both.soft, (one.soft + other.soft) / 2)
    assert torch.equal(both.soft, again.soft)
    assert list(both.about["teachers"]) == [rad.name, "tap"]
    assert len(list(tmp_path.glob("*-teacher.safetensors"))) == 1  # a tap ARM's states are what takes time
    ids = [row[:11] for row in generator.tokenizer(lines).input_ids]
    reward = load_reward(f"{tap}@probability", generator.lm)
    found = score_path(generator.lm, reward, [row[:1] for row in ids], [row[1:] for row in ids])
    torch.testing.assert_close(other.soft[:, 0], torch.tensor(found).flatten(), atol=1e-3, rtol=1e-3)
    if distil == "candidates":
        assert one.candidates is not None
        assert other.candidates is not None
        assert both.candidates is not None
        assert again.candidates is not None
        torch.testing.assert_close(both.candidates.soft, (one.candidates.soft + other.candidates.soft) / 2)
        assert torch.equal(both.candidates.soft, again.candidates.soft)
        check_tap_candidates(other.candidates, generator.lm, reward, ids)


def check_tap_candidates(
    values: CandidateValues, lm: CausalLM, reward: TokenReward, ids: list[list[int]]
) -> None:
    """The answer about a candidate is what a decode that stands at its place would give it."""
    asked = values.candidates
    for row, p in np.ndindex(*asked.places.shape):
        prefix = ids[row][: int(asked.places[row, p]) + 1]
        for k, token in enumerate(asked.token_ids[row, p].tolist()):
            [[wanted]] = score_path(lm, reward, [prefix], [[token]])
            assert values.soft[row, p, k, 0].item() == pytest.approx(wanted, abs=1e-3)


def test_a_backbone_has_one_teacher(
    folder: Path, rad: Path, tap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for teachers, why in (([rad, rad], "learns from one teacher"), ([tap], "tap_arm")):
        chosen = [part for teacher in teachers for part in ("--teacher", str(teacher))]
        arguments = [*options(folder, form="backbone", output=tmp_path / "arm"), *chosen]
        assert why in refused(capsys, *arguments)


# Stopping and going on.


def resumable(folder: Path, output: Path) -> list[str]:
    """Return a run with dropout and random tokens: whatever is drawn must be drawn again the same."""
    return options(
        folder, form="backbone", output=output, backbone=folder / "gpt2", regularise=0.3, epochs=5,
        limit=120, batch_size=8, accumulate=2, eval_every=7, save_every=5, lora_rank=2, seed=3,
    )  # fmt: skip


def test_killed_and_resumed_is_uninterrupted(folder: Path, tmp_path: Path) -> None:
    """kill -9 in the midst, the same command again: the weights of a run that nobody stopped, bit for bit."""
    output = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "rewards.train_arm", *resumable(folder, output)],
        cwd=REPO,
        env=os.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    partial = tmp_path / "killed.partial"
    deadline = time.monotonic() + 120
    while not list(partial.glob("step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    stopped_at = max(int(path.name.removeprefix("step-")) for path in partial.glob("step-*"))
    assert 0 < stopped_at < 5 * 14
    other = [*resumable(folder, output), "--learning-rate", "0.5", "--batch-size", "4"]
    with pytest.raises(SystemExit) as ended:
        run(train_arm, other)
    assert ended.value.code == 2
    command(train_arm, *resumable(folder, output))
    command(train_arm, *resumable(folder, tmp_path / "whole"))
    about = [json.loads((path / "config.json").read_text()) for path in (output, tmp_path / "whole")]
    assert about[0]["fit"]["resumed_at_step"] >= stopped_at
    assert about[1]["fit"]["resumed_at_step"] == 0
    assert about[0]["fit"]["history"] == about[1]["fit"]["history"]
    assert about[0]["metrics"] == about[1]["metrics"]
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not partial.exists()


def test_other_settings_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both sides of every difference are printed; what changes no weight is no difference."""
    partial = tmp_path / "out.partial"
    settings = tmp_path / "out.partial" / "settings.json"
    with pytest.raises(SystemExit, match="130"):
        interrupted(folder, tmp_path / "out", at_step=4)
    assert [path.name for path in partial.glob("step-*")] == ["step-4"]
    before = settings.read_bytes()
    arguments = options(folder, form="backbone", output=tmp_path / "out", epochs=2, lora_rank=3, save_every=4)
    error = refused(capsys, *arguments)
    assert "out.partial" in error
    assert "lora_rank 4 there, 3 now" in error
    assert "epochs" not in error
    assert settings.read_bytes() == before
    again = options(folder, form="backbone", output=tmp_path / "out", epochs=2, lora_rank=4, save_every=9)
    command(train_arm, *again)
    fitted = json.loads((tmp_path / "out" / "config.json").read_text())["fit"]
    assert fitted["resumed_at_step"] == 4


def interrupted(folder: Path, output: Path, at_step: int) -> None:
    """Start a run that Ctrl-C ends right after its first checkpoint."""
    from rewards import checkpoints

    save = checkpoints.Checkpoints.save

    def save_and_stop(self: checkpoints.Checkpoints) -> None:
        save(self)
        assert self.state.step == at_step
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "save", save_and_stop)
        arguments = options(folder, form="backbone", output=output, epochs=2, lora_rank=4, save_every=at_step)
        run(train_arm, arguments)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Return the one line that a command of bad input ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(train_arm, [str(argument) for argument in arguments])
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


# Bad input.


def test_bad_input(folder: Path, rad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what was wrong, and nothing written."""
    save_tiny(tmp_path / "words")
    other = tiny_tokenizer()
    other.add_tokens(["unheard"])
    other.save_pretrained(tmp_path / "words")
    base = options(folder, output=tmp_path / "out")
    form = [*base, "--form", "backbone"]
    tap = [str(folder / "train.tsv"), "--output", str(tmp_path / "out"), "--model", str(folder / "tiny")]
    shipped = REPO / "rewards" / "shipped" / "positive"
    expected = {
        ("--teacher", str(rad), "--loss", "mse"): "--loss is about labels, and --teacher takes their place",
        ("--teacher", str(tmp_path / "none")): "unknown reward",
        ("--teacher", str(shipped)): "'tap_arm'",
        ("--backbone", str(tmp_path / "words")): "reads other tokens than --model",
        ("--backbone", "./nowhere"): "'./nowhere' does not exist",
        ("--train-embeddings",): "--train-embeddings needs --adapt full",
        ("--layers", "3"): "--layers is not for --form backbone",
        ("--summary", "none"): "--summary is not for --form backbone",
        ("--device", "warp"): "device 'warp'",
        ("--adapt", "some"): "--adapt",
        ("--warmup", "2"): "--warmup",
    }
    for more, said in expected.items():
        assert said in refused(capsys, *form, *more), more
    assert "--learning-rate is not for --form tap" in refused(capsys, *base)
    for more in (["--adapt", "full"], ["--train-embeddings"], ["--regularise", "1"]):
        assert f"{more[0]} is not for --form tap" in refused(capsys, *tap, *more)
    for more in (["--distil", "candidates"], ["--candidates", "5"], ["--candidate-positions", "2"]):
        assert f"{more[0]} {more[1]} is about a teacher" in refused(capsys, *tap, *more)
    delta = ["--teacher", str(rad), "--distil", "delta", "--dtype", "float32"]
    assert "--distil delta is for --form backbone" in refused(capsys, *tap, *delta)
    assert not list(tmp_path.glob("out*"))


def test_output_that_is_taken(folder: Path, rad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, *options(folder, form="backbone", output=rad))
    assert "is not empty" in error


def test_head_is_saved_whole(rad: Path) -> None:
    assert {name: tuple(t.shape) for name, t in load_file(rad / "model.safetensors").items()} == {
        "linear.weight": (1, 32),
        "linear.bias": (1,),
    }
