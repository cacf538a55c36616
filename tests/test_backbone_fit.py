"""The fit of rewards with their own backbone: what is trained, on which texts, and which weights stay."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from decoder.contracts import ModelIdentity, UserError
from decoder.models import load_model
from rewards.adapt import Shape, Student, make_student
from rewards.backbone_texts import TokenTexts, encode, make_batch, plan_epoch
from rewards.checkpoints import Checkpoints, trained_weights
from rewards.fit_backbone import Fitted, Objective, Recipe, fit, validation_loss
from rewards.lesson import label_error, make_lesson
from rewards.training_options import BackboneOptions, TeacherOptions
from tests.backbone_texts import labelled_texts
from tests.tiny import BOS, EOS, save_tiny, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama."""
    folder = tmp_path_factory.mktemp("backbone")
    save_tiny(folder / "tiny")
    save_tiny(folder / "gpt2", "gpt2")
    return folder


def tiny_fit(folder: Path, tmp_path: Path, **recipe: object) -> tuple[Student, TokenTexts, Objective, Fitted]:
    """Fit an ARM to the toy labels and return it with its validation texts."""
    generator = ModelIdentity("", "", 32, 4, 300, hash_of(folder), "")
    student = make_student(str(folder / "tiny"), None, CPU, generator, Shape("backbone_arm", "lora", 1), 0)
    labelled = labelled_texts(80)
    labels = torch.tensor([[float(label)] for _, label in labelled])
    rows = encode(student.tokenizer, [text for text, _ in labelled], labels, 64, student.context)
    parts = [TokenTexts(rows.rows[a:b], rows.labels[a:b], rows.read[a:b]) for a, b in ((0, 60), (60, 80))]
    objective = Objective(label_error("ce"))
    given = {"learning_rate": 1e-2, "epochs": 3, "batch_size": 10, "eval_every": 2, "save_every": 1000}
    found = fit(
        student.scorer,
        objective,
        *parts,
        Recipe(**{**given, **recipe}),  # type: ignore[arg-type]
        Accelerator(cpu=True),
        tmp_path,
    )
    return student, parts[1], objective, found


def hash_of(folder: Path) -> str:
    return load_model(str(folder / "tiny"), dtype="float32", device="cpu").lm.identity.tokenizer_hash


def test_best_weights_are_restored(folder: Path, tmp_path: Path) -> None:
    """A learning rate too high spoils what was learnt; the weights kept are those of the best evaluation."""
    student, validation, objective, found = tiny_fit(folder, tmp_path, learning_rate=0.2, epochs=5)
    losses = {step: loss for step, _, loss in found.history}
    assert found.best_step == min(losses, key=losses.__getitem__) < found.n_steps == max(losses)
    assert found.best_loss == losses[found.best_step] < losses[found.n_steps]
    assert validation_loss(student.scorer, objective, validation, 0, CPU) == pytest.approx(found.best_loss)


def test_parts_of_a_batch_add_up(folder: Path, tmp_path: Path) -> None:
    """A batch read in four unequal parts gives the step of the whole batch."""
    fits = [tiny_fit(folder, tmp_path / str(n), accumulate=n, epochs=1, learning_rate=1e-3) for n in (1, 4)]
    assert fits[1][3].history[0][1] == pytest.approx(fits[0][3].history[0][1], rel=1e-4)
    found = [trained_weights(student.scorer) for student, *_ in fits]
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], atol=3e-5, rtol=1e-3)


def test_best_weights_outlive_a_stop(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best evaluation came before the checkpoint: a resumed run still ends with its weights."""
    spoilt = {"learning_rate": 0.2, "epochs": 5}
    whole, _, _, expected = tiny_fit(folder, tmp_path / "whole", **spoilt)
    save = Checkpoints.save

    def save_and_stop(self: Checkpoints) -> None:
        save(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            tiny_fit(folder, tmp_path / "stopped", save_every=29, **spoilt)
    again, _, _, found = tiny_fit(folder, tmp_path / "stopped", save_every=29, **spoilt)
    assert found.resumed_at == 29 > expected.best_step
    assert (found.best_step, found.history) == (expected.best_step, expected.history)
    for name, weight in trained_weights(whole.scorer).items():
        assert torch.equal(weight, trained_weights(again.scorer)[name]), name


def test_what_is_trained(folder: Path) -> None:
    """LoRA trains adapters, `full` all but the embeddings unless asked, `none` the head; always the head."""
    generator = ModelIdentity("", "", 32, 4, 300, hash_of(folder), "")

    def names(adapt: str, freeze: bool = True) -> set[str]:
        shape = Shape("rad", adapt, 1, freeze_embeddings=freeze)  # type: ignore[arg-type]
        student = make_student(str(folder / "tiny"), None, CPU, generator, shape, 0)
        return set(trained_weights(student.scorer))

    head = {"head.linear.weight", "head.linear.bias"}
    everything, frozen = names("full", freeze=False), names("full")
    assert names("none") == head
    assert everything - frozen == {"backbone.model.embed_tokens.weight"}  # tied: the output ones too
    assert head < frozen
    adapters = names("lora") - head
    assert len(adapters) == 4 * 7 * 2
    assert all("lora_" in name for name in adapters)
    with pytest.raises(UserError, match="--train-embeddings needs --adapt full"):
        names("lora", freeze=False)


def test_a_student_is_the_same_for_a_seed(folder: Path) -> None:
    generator = ModelIdentity("", "", 32, 4, 300, hash_of(folder), "")
    weights = [
        trained_weights(
            make_student(
                str(folder / "tiny"), None, CPU, generator, Shape("backbone_arm", "lora", 2), seed
            ).scorer
        )
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert any(not torch.equal(weight, weights[2][name]) for name, weight in weights[0].items())


def test_loss_that_is_no_number(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d+: give a lower --learning-rate"):
        tiny_fit(folder, tmp_path, learning_rate=1e30)


def test_encode() -> None:
    """BOS stands before every text once, the end token after those that are whole."""
    plain, adding = tiny_tokenizer(), tiny_tokenizer(adds_bos=True)
    labels = torch.zeros(2, 1)
    whole = plain(["the rain", "it was late again"]).input_ids
    for tokenizer in (plain, adding):
        found = encode(tokenizer, ["the rain", "it was late again"], labels, 64, None)
        assert found.rows == [[BOS, *ids, EOS] for ids in whole]
        assert found.n_scored() == sum(map(len, whole)) + 2
    assert encode(plain, ["the rain"], labels, 3, None).rows == [[BOS, *whole[0][:4]]]
    assert encode(plain, ["the rain"], labels, 3, None).read == [3]
    with pytest.raises(UserError, match="takes 5 tokens with BOS and end, the backbone reads 4: give --max"):
        encode(plain, ["the rain"], labels, 3, 4)
    plain.bos_token = None
    with pytest.raises(UserError, match="no begin token"):
        encode(plain, ["the rain"], labels, 3, 4)


def test_plan_takes_every_text_once() -> None:
    lengths = [length for _, length in zip(range(1003), [5, 3, 9, 7, 1] * 300, strict=False)]
    batches = plan_epoch(lengths, 10, seed=1, epoch=0)
    assert sorted(row for batch in batches for row in batch) == list(range(1003))
    assert len(batches) == 101
    assert batches == plan_epoch(lengths, 10, seed=1, epoch=0)
    assert batches != plan_epoch(lengths, 10, seed=1, epoch=1)
    assert batches != plan_epoch(lengths, 10, seed=2, epoch=0)
    padding = [max(lengths[row] for row in batch) - lengths[row] for batch in batches for row in batch]
    assert sum(padding) < 0.1 * sum(lengths)


def test_make_batch() -> None:
    found = make_batch(TokenTexts([[0, 5, 6], [0, 7]], torch.tensor([[0.5], [1.0]]), [1, 1]), [1, 0], CPU)
    assert found.ids.tolist() == [[0, 7, 0], [0, 5, 6]]
    assert found.mask.tolist() == [[True, True, False], [True] * 3]
    assert found.scored.tolist() == [[True, False], [True, True]]
    assert found.labels.tolist() == [[1.0], [0.5]]


def test_without_peft(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    generator = ModelIdentity("", "", 32, 4, 300, hash_of(folder), "")
    with pytest.raises(UserError, match=r"pip install 'tiller-lm\[train\]'"):
        make_student(str(folder / "tiny"), None, CPU, generator, Shape("rad", "lora", 1), 0)


def test_students_sums_and_clamped_values_as_log_odds() -> None:
    """A student of differences is measured by their running sum; a clamped value by its log-odds."""
    values = [torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([[0.5], [0.25]])]
    plain = make_lesson(BackboneOptions(loss="mse"), TeacherOptions(), None, None, BOS)  # type: ignore[arg-type]
    found = plain.log_odds(values, [2, 1])[:, 0]
    p = torch.tensor([1 - 1e-4, 1e-4, 0.25], dtype=torch.float64)
    torch.testing.assert_close(torch.from_numpy(found), (p / (1 - p)).log())
    sums = type(plain)(plain.objective, "sigmoid", "sigmoid", torch.tensor([0.5]))
    assert sums.log_odds(values, [2, 1])[:, 0].tolist() == [3.5, 2.5, 1.25]
