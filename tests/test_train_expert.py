"""Training an expert and an anti-expert, as a user runs it, and what is saved of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM

import rewards.expert_run
from decoder.cli import run
from decoder.contracts import Reading, UserError
from decoder.models import LoadedModel, load_model
from rewards.backbone_texts import encode, make_batch
from rewards.expert_run import make_expert, negative_log_likelihood, read_log_p
from rewards.language_model_reward import LanguageModelReward, save_pretrained
from rewards.load import load_reward
from rewards.train_expert import app as train_expert
from rewards.training_options import BackboneOptions
from tests.backbone_texts import labelled_texts
from tests.backbones import PROMPTS
from tests.heads import pad
from tests.tiny import BOS, CONTEXT, EOS, VOCAB, save_tiny, tiny_tokenizer

CPU = torch.device("cpu")
NOTHING = Reading(torch.empty(3, 0), {}, torch.ones(3, 1).bool())
CANDIDATES = torch.tensor([[60, 61, 62, 60], [70, 71, 72, 73], [80, 81, 82, 83]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    save_tiny(folder / "tiny")
    lines = [f"{text}\t{label}\n" for text, label in labelled_texts(320)]
    (folder / "train.tsv").write_text("".join(lines))
    twice = [f"{text}\t{label}\t{label}\n" for text, label in labelled_texts(320)]
    (folder / "twice.tsv").write_text("".join(twice))
    return folder


@pytest.fixture(scope="module")
def generator(folder: Path) -> LoadedModel:
    return load_model(str(folder / "tiny"), dtype="float32", device="cpu")


def train(folder: Path, output: Path, *more: str, data: str = "train.tsv") -> int:
    """Run the command in this process; return how it ended."""
    given = ["--model", str(folder / "tiny"), "--dtype", "float32", "--device", "cpu", "--batch-size", "16"]
    given += ["--learning-rate", "3e-2", "--lora-rank", "16", "--output", str(output)]
    with pytest.raises(SystemExit) as ended:
        run(train_expert, [str(folder / data), *given, *more])
    return int(str(ended.value.code))


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """LoRA experts on the tiny Llama."""
    assert train(folder, folder / "expert", "--epochs", "9") == 0
    return folder / "expert"


def test_learns_and_tells(trained: Path) -> None:
    """Each side's loss falls, the log-ratio tells the classes apart, and the config says how."""
    config = json.loads((trained / "config.json").read_text())
    assert (config["kind"], config["models"]) == ("expert", ["expert", "anti_expert"])
    assert config["metrics"]["validation"][-1]["auc"] > 0.9
    for side in config["models"]:
        history = config["fit"][side]["history"]
        assert history[-1]["validation_loss"] < 0.7 * history[0]["validation_loss"]
        assert config["fit"][side]["n_texts"] == {"train": 140, "validation": 20}
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    adapters = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    sides = {f"{side}/{name}" for side in config["models"] for name in adapters}
    assert names == {"config.json", "model.safetensors"} | sides
    assert not trained.with_name("expert.partial").exists()


def test_steers_as_it_was_trained(trained: Path, generator: LoadedModel) -> None:
    """Loaded and merged, r is the log-ratio of the two; it prefers the word that made the label."""
    reward = load_reward(trained, generator.lm)
    assert isinstance(reward, LanguageModelReward)
    assert reward.expert is not None
    assert reward.anti_expert is not None
    assert reward.expert.bos_token_id == BOS
    good, bad = (generator.tokenizer(f" {word}")["input_ids"] for word in ("good", "bad"))
    ids, mask = pad([generator.tokenizer("the film it was")["input_ids"]])
    candidates = torch.tensor([[good[0], bad[0]]])
    found = reward.start(ids, mask).score(candidates, NOTHING)[0]
    wanted = torch.zeros(2)
    text = torch.tensor([[BOS, *ids[0].tolist()]])
    for side, sign in ((reward.expert, 1), (reward.anti_expert, -1)):
        wanted += sign * side.lm.model(input_ids=text).logits[0, -1].log_softmax(-1)[candidates[0]]
    torch.testing.assert_close(found, wanted, rtol=0, atol=3e-5)
    assert found[0] > found[1] + 1


def test_goes_on_where_it_stopped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between the two: other settings are refused, and the end is the same, to the bit."""
    short = ("--limit", "64", "--epochs", "2")
    whole, n_calls = rewards.expert_run.fit, []

    def stop_second(*arguments: Any) -> Any:
        n_calls.append(1)
        if len(n_calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    assert train(folder, tmp_path / "once", *short) == 0
    with monkeypatch.context() as patch:
        patch.setattr(rewards.expert_run, "fit", stop_second)
        assert train(folder, tmp_path / "again", *short) == 130
    assert next((tmp_path / "again.partial" / "expert").glob("step-*"))
    assert train(folder, tmp_path / "again", *short, "--max-length", "20") == 2
    assert train(folder, tmp_path / "again", *short) == 0
    for side in ("expert", "anti_expert"):
        path = f"{side}/adapter/adapter_model.safetensors"
        one, other = load_file(tmp_path / "once" / path), load_file(tmp_path / "again" / path)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["fit"]["expert"]["resumed_at_step"] > 0
    assert config["fit"]["anti_expert"]["resumed_at_step"] == 0


def test_loss_is_the_libraries_own(folder: Path, generator: LoadedModel) -> None:
    """The mean over texts of transformers' loss of each text alone; log P of its tokens likewise."""
    student = make_expert(str(folder / "tiny"), None, CPU, generator.lm, BackboneOptions(), 0)
    texts = encode(student.tokenizer, [text for text, _ in labelled_texts(5)], torch.zeros(5, 1), 64, None)
    batch = make_batch(texts, range(5), CPU)
    with torch.no_grad():
        found = negative_log_likelihood(student.scorer, student.scorer(batch.ids, batch.mask), batch)
        each = [student.scorer.backbone(input_ids=(row := torch.tensor([ids])), labels=row).loss
                for ids in texts.rows]  # fmt: skip
    torch.testing.assert_close(found, torch.stack(each).mean())
    for log_p, ids, loss in zip(read_log_p(student.scorer, texts, "reading"), texts.rows, each, strict=True):
        assert len(log_p) == len(ids) - 1
        assert float(-log_p.mean()) == pytest.approx(float(loss), abs=1e-5)
    trained = {name for name, weight in student.scorer.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_models_saved_whole(folder: Path, generator: LoadedModel, tmp_path: Path) -> None:
    """One model, all its weights: the reward is its log P, and any change of a weight shows in the digest."""
    arm = load_model(str(save_tiny(tmp_path / "arm", seed=5)), dtype="float32", device="cpu")
    save_pretrained(
        tmp_path / "saved", {"expert": arm.lm.model}, backbone=arm.lm.identity, adaptation="full",
        revision=None, tokenizer=arm.tokenizer, bos_token_id=BOS, base_model=generator.lm.identity, about={},
    )  # fmt: skip
    reward = load_reward(tmp_path / "saved", generator.lm)
    direct = LanguageModelReward.from_models(arm.lm, generator=generator.lm, bos_token_id=BOS)
    found, wanted = (one.start(*pad(PROMPTS)).score(CANDIDATES, NOTHING) for one in (reward, direct))
    torch.testing.assert_close(found, wanted)
    path = tmp_path / "saved" / "expert" / "backbone" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][-1] += 1e-3
    save_file(weights, path, {"format": "pt"})
    assert load_reward(tmp_path / "saved", generator.lm).digest != reward.digest


def garble(**changes: Any) -> Callable[[Path], None]:
    def change(reward: Path) -> None:
        path = reward / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (garble(models=["expert", "judge"]), "not expert, anti_expert or both"),
        (garble(models=[]), "not expert, anti_expert or both"),
        (garble(adaptation="none"), "not lora or full"),
        (garble(bos_token_id=-1), "bos_token_id is -1"),
        (garble(kind="rad"), "lacks or garbles"),
        (
            lambda reward: shutil.rmtree(reward / "anti_expert"),
            "anti_expert/adapter/adapter_config.json is mis",
        ),
    ],
    ids=["unknown", "none", "head alone", "bos", "kind", "missing"],
)
def test_broken_folders_are_refused(
    trained: Path, generator: LoadedModel, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    broken = shutil.copytree(trained, tmp_path / "broken")
    change(broken)
    with pytest.raises(UserError, match=said):
        load_reward(broken, generator.lm)


def test_what_it_is_not_for(
    folder: Path, trained: Path, generator: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options of heads, several labels, forms, and models whose logits are more than states times rows."""
    for more, said in (
        (["--loss", "ce"], "leave it out"),
        (["--adapt", "none"], "give lora or full"),
        (["--label-column", "1", "--label-column", "2"], "2 label columns"),
    ):
        assert train(folder, tmp_path / "not", *more, data="twice.tsv") == 2
        assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="leave @probability out"):
        load_reward(f"{trained}@probability", generator.lm)
    config = Gemma2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=CONTEXT, final_logit_softcapping=0.5,
        bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    tiny_tokenizer().save_pretrained(tmp_path / "gemma")
    with pytest.raises(UserError, match="a soft cap or a scale"):
        make_expert(str(tmp_path / "gemma"), None, CPU, generator.lm, BackboneOptions(), 0)
