"""The saved and fitted top log-probability probe: against loops, replays against streams, bad files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decoder.contracts import Drawn, UserError
from decoder.lm import CausalLM
from decoder.replay import score_samples
from rewards.elhsr_losses import LOSSES, ce
from rewards.fit_top_logprobs import features_by_records, features_by_replay, fit
from rewards.load import load_reward
from rewards.scorers import load_probe
from rewards.top_logprobs import TopLogprobs
from tests.heads import as_lm
from tests.tiny import tiny_gpt2, tiny_llama

M = 4
PROMPTS = [[5, 17, 200], [9], [33, 44, 55, 66]]
SAMPLES = [[[7, 8, 9, 10, 11], [250], [3, 4]], [[40, 41, 1]], [[12, 13], [14, 15, 16, 17]]]


@pytest.fixture(scope="module")
def lm(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> CausalLM:
    return as_lm(tiny_model, tokenizer)


def random_probe(m: int = M, seed: int = 0) -> TopLogprobs:
    generator = torch.Generator().manual_seed(seed)
    return TopLogprobs(torch.randn(2, m + 1, generator=generator), torch.randn(2, generator=generator))


def naive_score(probe: TopLogprobs, features: Tensor) -> float:
    """Return the gated mean of one text's features (T, m + 1), token by token."""
    weight, bias = probe.weight.tolist(), probe.bias.tolist()
    above = below = 0.0
    for row in features.tolist():
        a, r = (sum(w * x for w, x in zip(weight[k], row, strict=True)) + bias[k] for k in range(2))
        gate = 1 / (1 + math.exp(-a))
        above, below = above + gate * r, below + gate
    return above / below


# Features of the generator.


@pytest.mark.parametrize("max_tokens", [1, 512])
def test_replayed_features_are_those_of_plain_forwards(
    any_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> None:
    """Ragged completions in their order, whatever is read together; each token by what it was drawn from."""
    lm = as_lm(any_model, tokenizer)
    found = features_by_replay(lm, PROMPTS, SAMPLES, M, max_tokens=max_tokens)
    texts = [(prompt, row) for prompt, rows in zip(PROMPTS, SAMPLES, strict=True) for row in rows]
    assert [len(each) for each in found] == [len(row) for _, row in texts]
    for features, (prompt, row) in zip(found, texts, strict=True):
        with torch.no_grad():
            logs = lm.model(torch.tensor([[*prompt, *row]])).logits[0].double().log_softmax(-1)
        for t, token in enumerate(row):
            before = logs[len(prompt) + t - 1].tolist()
            expected = [max(-30.0, x) for x in (before[token], *sorted(before)[::-1][:M])]
            assert features[t].tolist() == pytest.approx(expected, abs=1e-4)


@torch.inference_mode()
def test_stream_replay_and_training_agree(lm: CausalLM) -> None:
    probe = random_probe()
    fitted = [naive_score(probe, each) for each in features_by_replay(lm, PROMPTS, SAMPLES, M)]
    replayed = [float(x) for _, scores in score_samples(lm, [probe], PROMPTS, SAMPLES) for x in scores[:, 0]]
    streamed = []
    for prompt, rows in zip(PROMPTS, SAMPLES, strict=True):
        for row in rows:
            ids = torch.tensor([prompt])
            session = lm.start()
            reading = session.prefill(ids, torch.ones_like(ids).bool())
            scorer = probe.start(ids, torch.ones_like(ids).bool(), reading)
            for token in row:
                drawn = torch.tensor([[token]])
                scorer.update(Drawn(drawn, torch.ones_like(drawn).bool(), {}, reading.logits[:, None]))
                reading = session.feed(drawn[0])
            streamed.append(float(scorer.score()))
    assert streamed == pytest.approx(replayed, abs=1e-5)
    assert fitted == pytest.approx(replayed, abs=1e-5)


def test_more_alternatives_than_tokens(lm: CausalLM) -> None:
    with pytest.raises(UserError, match="vocabulary has 300 alternatives, the probe reads 301"):
        features_by_replay(lm, PROMPTS, SAMPLES, 301)


# Features of an API's answers.


def answer(*chosen: float) -> dict[str, object]:
    return {"token_logprobs": list(chosen), "top_logprobs": [{"a": -0.5, "b": -2.5, "c": x} for x in chosen]}


def rollouts_file(path: Path, *samples: list[dict[str, Any]]) -> Path:
    records = [{"prompt": "p", "generations": [{"text": "t", **each} for each in row]} for row in samples]
    path.write_text("\n\n".join(json.dumps(record) for record in records), encoding="utf-8-sig")
    return path


def test_features_of_a_file(tmp_path: Path) -> None:
    path = rollouts_file(
        tmp_path / "r.jsonl",
        [{"logprobs": answer(-1.0, -3.0)}, {"logprobs": answer(-99.0)}],
        [{"logprobs": answer(-0.1)}],
    )
    found = features_by_records(path, 2)
    assert found is not None
    expected = [[[-1, -0.5, -1], [-3, -0.5, -2.5]], [[-30, -0.5, -2.5]], [[-0.1, -0.1, -0.5]]]
    for features, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(features, torch.tensor(wanted))


def test_a_file_without_log_probabilities(tmp_path: Path) -> None:
    assert features_by_records(rollouts_file(tmp_path / "r.jsonl", [{}, {"logprobs": None}]), 2) is None


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (
            [[{"logprobs": answer(-1)}], [{"logprobs": answer(-1)}, {}]],
            r'line 3, generation 2: no "logprobs"',
        ),
        ([[{"logprobs": {"token_logprobs": [-1]}}]], r"line 1, generation 1: token 0 has 0 alternatives"),
        ([[{"logprobs": answer(math.nan)}]], r"line 1, generation 1: token 0: .* NaN is no number"),
    ],
)
def test_files_that_do_not_do(tmp_path: Path, samples: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"r\.jsonl, {message}"):
        features_by_records(rollouts_file(tmp_path / "r.jsonl", *samples), 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"generations": 3}', r"line 1: no rollout"), ("[1]", r"no rollout"), ("{", r"line 1: broken JSON")],
)
def test_lines_that_are_no_rollouts(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        features_by_records(tmp_path / "r.jsonl", 2)
    with pytest.raises(UserError, match=r"cannot read rollouts from .*none\.jsonl"):
        features_by_records(tmp_path / "none.jsonl", 2)


# Saving.


def test_a_saved_probe_is_the_same(lm: CausalLM, tmp_path: Path) -> None:
    probe = random_probe()
    probe.save_pretrained(tmp_path, lm.identity, {"metrics": {"auc": 0.5}})
    again = load_reward(str(tmp_path), lm)
    assert isinstance(again, TopLogprobs)
    assert load_probe(tmp_path, lm).digest == probe.digest
    assert torch.equal(again.weight, probe.weight)
    assert torch.equal(again.bias, probe.bias)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["kind"], config["m"], config["metrics"]) == ("top_logprobs", M, {"auc": 0.5})


def test_a_probe_of_an_api_fits_any_model(lm: CausalLM, tmp_path: Path) -> None:
    random_probe().save_pretrained(tmp_path, None, {})
    assert TopLogprobs.from_pretrained(tmp_path, lm).digest == random_probe().digest
    assert TopLogprobs.from_pretrained(tmp_path).digest == random_probe().digest


def test_only_vocabulary_and_tokenizer_must_agree(
    lm: CausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    random_probe().save_pretrained(tmp_path, lm.identity, {})
    with pytest.warns(UserWarning, match="has other architecture and weights"):
        TopLogprobs.from_pretrained(tmp_path, as_lm(tiny_gpt2(hidden=16, layers=2), tokenizer))
    larger = as_lm(tiny_llama(vocab=310), tokenizer)
    with pytest.raises(UserError, match="vocab_size 300 in the reward, 310 in the model"):
        TopLogprobs.from_pretrained(tmp_path, larger)
    assert TopLogprobs.from_pretrained(tmp_path).m == M


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": 5}, r"weights and config disagree"),
        ({"m": None}, r'"m" must be 1 or more, not null'),
        ({"m": 0}, r'"m" must be 1 or more, not 0'),
        ({"base_model": 3}, r"does not name its base_model"),
        ({"format_version": 9}, r"format_version 9"),
    ],
)
def test_a_broken_probe_is_refused(
    lm: CausalLM, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    random_probe().save_pretrained(tmp_path, lm.identity, {})
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        TopLogprobs.from_pretrained(tmp_path, lm)
    with pytest.raises(UserError, match="has no form 'probability'"):
        TopLogprobs.from_pretrained(tmp_path, lm, "probability")


# Fitting.


def task(seed: int = 0, prompts: int = 40, per_prompt: int = 6) -> dict[str, Any]:
    """Return texts of 2 to 9 tokens, good where the mean of their first column is high."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(prompts).repeat_interleave(per_prompt)
    groups = groups[torch.randperm(len(groups), generator=generator)]
    lengths = torch.randint(2, 10, (len(groups),), generator=generator).tolist()
    labels = torch.rand(len(groups), generator=generator).gt(0.5).float()
    features = [
        -5 + torch.randn(length, M + 1, generator=generator) + torch.eye(M + 1)[0] * 2 * label
        for length, label in zip(lengths, labels, strict=True)
    ]
    held_out = groups % 4 == 0
    return {
        "features": features,
        "labels": labels,
        "groups": groups,
        "train": ~held_out,
        "validation": held_out,
    }


def scores_of(probe: TopLogprobs, data: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    numbers = data["validation"].nonzero()[:, 0]
    scores = torch.tensor([naive_score(probe, data["features"][i]) for i in numbers.tolist()])
    return scores, data["labels"][numbers], data["groups"][numbers]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns(loss: str) -> None:
    data = task()
    probe, value, _ = fit(**data, loss=loss, lr=0.05)
    scores, labels, groups = scores_of(probe, data)
    good = labels > 0.5
    assert float((scores[good, None] > scores[~good]).float().mean()) > 0.95
    assert value < 0.9 * float(LOSSES[loss](torch.zeros_like(scores), labels, groups))


def test_the_loss_is_that_of_the_probe_returned() -> None:
    """On plain features, by the formula: scales are folded back, and the best weights are kept."""
    data = task(prompts=16)
    probe, value, epoch = fit(**data, lr=0.5, epochs=30)
    assert float(ce(*scores_of(probe, data))) == pytest.approx(value, abs=1e-5)
    again = fit(**data, lr=0.5, epochs=epoch)
    assert again[0].digest == probe.digest
    assert again[1:] == (value, epoch)
    assert epoch < 27  # it was stopped early
    seeds = [fit(**data, epochs=1, batch_groups=4, seed=seed)[0].digest for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_completions_left_out_do_not_teach() -> None:
    """Not even those whose prompt is for training."""
    data = task(prompts=16)
    data["train"] = data["train"] & (torch.arange(96) % 3 > 0)
    changed = dict(data)
    changed["features"] = [
        each if train or held_out else each * 100
        for each, train, held_out in zip(data["features"], data["train"], data["validation"], strict=True)
    ]
    assert fit(**data, epochs=3)[0].digest == fit(**changed, epochs=3)[0].digest


def test_what_cannot_be_fitted() -> None:
    data = task(prompts=8)
    nothing = torch.zeros_like(data["train"])
    with pytest.raises(UserError, match="no completion is for training"):
        fit(**{**data, "train": nothing})
    with pytest.raises(UserError, match="2 prompts, such as number 0, are on both sides"):
        fit(**{**data, "train": ~nothing})
    with pytest.raises(UserError, match="inputs to fit on are not finite"):
        fit(**{**data, "features": [each / 0 for each in data["features"]]})
    with pytest.raises(UserError, match="there is no loss 'mse'"):
        fit(**data, loss="mse")
