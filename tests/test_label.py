"""Labels from a teacher: its verdict on each whole text, whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from decoder.contracts import UserError
from decoder.models import LoadedModel, load_model
from decoder.replay import score_path
from eval.label import label
from eval.whole_text import probabilities
from rewards.load import load_reward
from tests.backbones import save_reward
from tests.heads import as_lm, save_arm
from tests.tiny import tiny_llama, tiny_tokenizer

TEXTS = ["The kettle sang", "A", "She thought the film was bad, but it went on and on", "Good"]


@pytest.mark.parametrize("output", ["log_probability", "probability"])
@pytest.mark.parametrize("summary", ["text", "none"])
def test_labels_are_the_reward_of_the_end(tiny_dir: Path, tmp_path: Path, output: str, summary: str) -> None:
    """As a decode would score the end token after each text, alone and unpadded."""
    loaded = load_model(str(tiny_dir), dtype="float32")
    save_arm(tmp_path / "t", tiny_llama(), tiny_tokenizer(), output=output, summary=summary)
    found = probabilities(loaded, str(tmp_path / "t"), TEXTS)
    reward, end = load_reward(str(tmp_path / "t"), loaded.lm), loaded.tokenizer.eos_token_id
    for text, value in zip(TEXTS, found, strict=True):
        ids = loaded.tokenizer(text).input_ids
        (((r,),)) = score_path(loaded.lm, reward, [ids], [[end]])
        expected = torch.tensor(r).exp() if output == "log_probability" else torch.tensor(r)
        assert value == pytest.approx(float(expected), abs=1e-5)
    assert max(found) - min(found) > 0.01


@pytest.mark.parametrize("kind", ["rad", "backbone_arm"])
def test_a_reward_with_its_own_backbone_labels(tiny_dir: Path, tmp_path: Path, kind: str) -> None:
    """Batched or one text at a time, P of the end token after the text."""
    loaded = load_model(str(tiny_dir), dtype="float32")
    folder = save_reward(tmp_path, kind, "none", loaded.lm)[0]
    found = probabilities(loaded, str(folder), TEXTS)
    reward, end = load_reward(f"{folder}@probability", loaded.lm), loaded.tokenizer.eos_token_id
    for text, value in zip(TEXTS, found, strict=True):
        (((r,),)) = score_path(loaded.lm, reward, [loaded.tokenizer(text).input_ids], [[end]])
        assert value == pytest.approx(r, abs=1e-5)
    assert max(found) - min(found) > 0.01


def test_a_temperature_divides_the_log_odds(tiny_dir: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_dir), dtype="float32")
    save_arm(tmp_path / "t", tiny_llama(), tiny_tokenizer())
    plain, sharp = (torch.tensor(probabilities(loaded, str(tmp_path / "t"), TEXTS, t)) for t in (1.0, 0.5))
    torch.testing.assert_close(sharp.logit(), 2 * plain.logit(), rtol=1e-3, atol=1e-3)


def test_the_command_writes_what_training_reads(tiny_dir: Path, tmp_path: Path) -> None:
    """Prompt and continuation as one text; empty ones are left out."""
    save_arm(tmp_path / "t", tiny_llama(), tiny_tokenizer())
    row = {"prompt": {"text": "The kettle"}, "generations": [{"text": " sang"}, {"text": " fell"}]}
    (tmp_path / "g.jsonl").write_text(json.dumps(row) + '\n{"prompt": "", "generations": [""]}\n')
    label(
        [str(tmp_path / "g.jsonl")], str(tmp_path / "t"), tmp_path / "out.jsonl", "kind", 1.0, str(tiny_dir)
    )
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["The kettle sang", "The kettle fell"]
    assert all(0 < line["kind"] < 1 for line in lines)


def test_what_has_no_end_cannot_be_labelled(tmp_path: Path) -> None:
    tokenizer, model = tiny_tokenizer(), tiny_llama()
    save_arm(tmp_path / "t", model, tokenizer)
    loaded = LoadedModel(as_lm(model, tokenizer), tiny_tokenizer())
    loaded.tokenizer.eos_token = None
    with pytest.raises(UserError, match="cannot label whole texts"):
        probabilities(loaded, str(tmp_path / "t"), TEXTS)
