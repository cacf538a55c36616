"""The embedding head: pooling and MLP against loops, streams against replays, fits, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decoder.contracts import Drawn, Probe, ProbeSession, Reading, UserError
from decoder.lm import CausalLM
from decoder.replay import score_samples
from rewards.elhsr_losses import LOSSES, ce
from rewards.elhsr_losses import loss as loss_of
from rewards.embedding_head import EmbeddingConfig, EmbeddingHead, EmbeddingMLP, Pooling, save_pretrained
from rewards.fit_embedding_head import fit, pool, standardisation
from rewards.load import load_reward
from rewards.rollout_states import read_rollout_states
from rewards.scorers import load_probe
from tests.heads import LAYERS, as_lm
from tests.tiny import tiny_llama

WIDTHS = [(), (7,), (8, 5)]
POOLINGS: list[Pooling] = ["mean", "last"]
PROMPTS = [[5, 17, 200], [9], [33, 44, 55, 66]]
SAMPLES = [[[7, 8, 9, 10, 11], [250], [3, 4]], [[40, 41, 1]], [[12, 13], [14, 15, 16, 17]]]


@pytest.fixture(scope="module")
def lm(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> CausalLM:
    return as_lm(tiny_model, tokenizer)


def random_mlp(widths: tuple[int, ...], n_inputs: int = 64, seed: int = 0) -> EmbeddingMLP:
    mlp = EmbeddingMLP(n_inputs, widths)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in mlp.parameters():
            weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)  # scores of size 1
    mlp.mean = torch.randn(n_inputs, generator=generator)
    mlp.scale = torch.rand(n_inputs, generator=generator) + 0.5
    return mlp


def head_of(lm: CausalLM, pooling: Pooling, widths: tuple[int, ...] = (8, 5)) -> EmbeddingHead:
    return EmbeddingHead.bind(random_mlp(widths), EmbeddingConfig(LAYERS, 32, pooling, widths), lm)


def naive_score(mlp: EmbeddingMLP, embedding: list[float]) -> float:
    """Return the MLP's output number by number."""
    x = [(v - m) / s for v, m, s in zip(embedding, mlp.mean.tolist(), mlp.scale.tolist(), strict=True)]
    tensors = {name: value.tolist() for name, value in mlp.named_parameters()}
    for i in range(len(mlp.widths) + 1):
        weight, bias = tensors[f"linears.{i}.weight"], tensors[f"linears.{i}.bias"]
        x = [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        x = [max(0.0, v) for v in x] if i < len(mlp.widths) else x
    (score,) = x
    return float(score)


def naive_pool(states: list[list[list[float]]], pooling: Pooling) -> list[float]:
    """Return the pooled vector of one text from its taps, [layer][token][d]."""
    if pooling == "last":
        return [v for tap in states for v in tap[-1]]
    return [sum(each) / len(tap) for tap in states for each in zip(*tap, strict=True)]


def random_tokens(mask: Tensor, seed: int = 0) -> Drawn:
    generator = torch.Generator().manual_seed(seed)
    taps = {layer: torch.randn(*mask.shape, 32, generator=generator) for layer in LAYERS}
    taps = {layer: h.masked_fill(~mask[..., None], math.nan) for layer, h in taps.items()}
    return Drawn(torch.zeros_like(mask, dtype=torch.long), mask, taps, None)


def started(head: EmbeddingHead, n_rows: int) -> ProbeSession:
    ids = torch.zeros(n_rows, 2, dtype=torch.long)
    return head.start(ids, ids == 0, Reading(torch.zeros(n_rows, 300), {}, ids == 0))


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_score_is_the_formula(lm: CausalLM, pooling: Pooling, widths: tuple[int, ...]) -> None:
    """At once and token by token; padding in front, between and behind, NaN there; a row without tokens."""
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    drawn, head = random_tokens(mask), head_of(lm, pooling, widths)
    whole, stepped = started(head, 4), started(head, 4)
    assert whole.score().isnan().all()
    whole.update(drawn)
    for t in range(4):
        taps = {layer: h[:, t : t + 1] for layer, h in drawn.taps.items()}
        stepped.update(Drawn(drawn.ids[:, t : t + 1], mask[:, t : t + 1], taps, None))
    for row in range(3):
        states = [drawn.taps[layer][row][mask[row]].tolist() for layer in LAYERS]
        expected = naive_score(head.mlp, naive_pool(states, pooling))
        assert float(whole.score()[row]) == pytest.approx(expected, abs=1e-5)
        assert float(stepped.score()[row]) == pytest.approx(expected, abs=1e-5)
    assert whole.score()[3].isnan()
    assert whole.score().dtype == torch.float32
    assert isinstance(head, Probe)
    assert isinstance(whole, ProbeSession)
    assert (head.layers, head.reads_logits) == (LAYERS, False)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_forked_rows_go_on_alone(lm: CausalLM, pooling: Pooling) -> None:
    head, rows = head_of(lm, pooling), torch.tensor([2, 0, 0])
    first = random_tokens(torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool())
    then = random_tokens(torch.tensor([[1, 1], [0, 0], [1, 0]]).bool(), seed=1)
    forked, alone = started(head, 3), started(head, 3)
    forked.update(first)
    forked.select(rows)
    alone.update(Drawn(first.ids[rows], first.mask[rows], {k: h[rows] for k, h in first.taps.items()}, None))
    for session in (forked, alone):
        session.update(then)
    assert forked.score().tolist() == alone.score().tolist()
    assert len(set(alone.score().tolist())) == 3


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.inference_mode()
def test_stream_replay_and_training_agree(
    any_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pooling: Pooling, tmp_path: Path
) -> None:
    """Token by token after the prompt, all at once, and from the states a fit pools."""
    lm = as_lm(any_model, tokenizer)
    pooled = pool(read_rollout_states(lm, PROMPTS, SAMPLES, LAYERS, tmp_path), LAYERS, pooling)
    assert pooled.shape == (6, 64)
    mlp = random_mlp((8, 5))
    mlp.mean, mlp.scale = standardisation(pooled)
    head = EmbeddingHead.bind(mlp, EmbeddingConfig(LAYERS, 32, pooling, (8, 5)), lm)
    fitted = head.mlp(pooled).tolist()
    replayed = [float(x) for _, scores in score_samples(lm, [head], PROMPTS, SAMPLES) for x in scores[:, 0]]
    streamed = []
    for prompt, rows in zip(PROMPTS, SAMPLES, strict=True):
        for row in rows:
            ids = torch.tensor([prompt])
            session = lm.start(LAYERS)
            reading = session.prefill(ids, torch.ones_like(ids).bool())
            scorer = head.start(ids, torch.ones_like(ids).bool(), reading)
            for token in row:
                after = session.feed(torch.tensor([token]))
                scorer.update(Drawn(torch.tensor([[token]]), after.mask, after.taps, None))
            streamed.append(float(scorer.score()))
    assert streamed == pytest.approx(replayed, abs=1e-5)
    assert fitted == pytest.approx(replayed, abs=1e-5)


def test_pooling_crosses_chunks(lm: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of completions are the same however many are pooled at a time, in the order asked of layers."""
    states = read_rollout_states(lm, PROMPTS, SAMPLES, LAYERS, tmp_path)
    monkeypatch.setattr("rewards.fit_embedding_head.CHUNK", 2)
    for pooling in POOLINGS:
        found = pool(states, (3, 1), pooling)
        for number in range(6):
            rows = states.rows_of(torch.tensor([number]))[0]
            expected = naive_pool([states.taps[layer][rows].tolist() for layer in (3, 1)], pooling)
            assert found[number].tolist() == pytest.approx(expected, abs=1e-5)


# Saving.


@pytest.fixture
def saved(lm: CausalLM, tmp_path: Path) -> Path:
    config = EmbeddingConfig(LAYERS, 32, "last", (8, 5))
    save_pretrained(random_mlp((8, 5)), config, tmp_path / "head", lm.identity, {"metrics": {"auc": 0.5}})
    return tmp_path / "head"


def test_a_saved_head_is_the_same(lm: CausalLM, saved: Path) -> None:
    head, again = head_of(lm, "last"), load_reward(str(saved), lm)
    assert isinstance(again, EmbeddingHead)
    assert load_probe(saved, lm).digest == head.digest
    assert again.config == head.config
    drawn = random_tokens(torch.ones(2, 3).bool())
    sessions = started(head, 2), started(again, 2)
    for session in sessions:
        session.update(drawn)
    assert sessions[0].score().tolist() == sessions[1].score().tolist()
    assert json.loads((saved / "config.json").read_text())["metrics"] == {"auc": 0.5}


def test_the_digest_tells_heads_apart(lm: CausalLM) -> None:
    assert len({head_of(lm, pooling, widths).digest for pooling in POOLINGS for widths in WIDTHS}) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": [8]}, r"weights and config disagree"),
        ({"layers": [1]}, r"weights and config disagree"),
        ({"layers": []}, r"layers \[\], widths \[8, 5\] and hidden size 32 make no head"),
        ({"widths": [0, 5]}, r"widths \[0, 5\] .* make no head"),
        ({"pooling": "max"}, r"unknown pooling 'max'"),
        ({"pooling": None}, r"unknown pooling None"),
        ({"layers": "ab"}, r"lacks or garbles"),
        ({"base_model": None}, r"does not name its base_model"),
    ],
)
def test_a_broken_head_is_refused(lm: CausalLM, saved: Path, change: dict[str, Any], message: str) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        EmbeddingHead.from_pretrained(saved, lm)


def test_a_head_of_another_model_is_refused(saved: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    other = as_lm(tiny_llama(hidden=16, layers=3, heads=2), tokenizer)
    with pytest.raises(UserError, match=r"hidden_size 32 in the reward, 16 in the model"):
        EmbeddingHead.from_pretrained(saved, other)
    with pytest.raises(UserError, match="has no form 'probability'"):
        EmbeddingHead.from_pretrained(saved, other, "probability")


# Fitting.


def task(seed: int = 0, prompts: int = 40, per_prompt: int = 6) -> dict[str, Any]:
    """Return separable data: the label is the sign of one heavy input, on an offset, with useless others."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(prompts).repeat_interleave(per_prompt)
    groups = groups[torch.randperm(len(groups), generator=generator)]
    inputs = torch.randn(len(groups), 5, generator=generator) * torch.tensor([50.0, 1, 1, 0.01, 0])
    labels = (inputs[:, 0] > 0).float()
    inputs = inputs + torch.tensor([1000.0, 0, -3, 0, 7])
    held_out = groups % 4 == 0
    return {
        "embeddings": inputs,
        "labels": labels,
        "groups": groups,
        "train": ~held_out,
        "validation": held_out,
    }


def accuracy(mlp: EmbeddingMLP, data: dict[str, Any]) -> float:
    with torch.no_grad():
        scores = mlp(data["embeddings"][data["validation"]])
    good = data["labels"][data["validation"]] > 0.5
    return float((scores[good, None] > scores[~good]).float().mean())


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns(loss: str) -> None:
    data = task()
    mlp, value, _ = fit(**data, loss=loss, widths=(8,), lr=1e-2)
    assert accuracy(mlp, data) > 0.97
    untrained = torch.zeros(int(data["validation"].sum()))
    on = data["labels"][data["validation"]], data["groups"][data["validation"]]
    assert value < 0.9 * float(loss_of(loss)(untrained, *on))


@pytest.mark.parametrize("widths", WIDTHS)
def test_the_best_weights_come_back(widths: tuple[int, ...]) -> None:
    """The loss reported is that of the weights returned, though they went on learning noise after it."""
    data = task(prompts=24)
    noise = torch.rand(len(data["labels"]), generator=torch.Generator().manual_seed(1)) < 0.3
    data["labels"] = torch.where(noise, 1 - data["labels"], data["labels"])
    mlp, value, epoch = fit(**data, widths=widths, lr=0.1, patience=6, epochs=40, weight_decay=0)
    last, last_value, last_epoch = fit(
        **data, widths=widths, lr=0.1, patience=6, epochs=epoch, weight_decay=0
    )
    assert epoch < 34  # it was stopped early
    assert (last_value, last_epoch) == (value, epoch)
    on = data["validation"]
    with torch.no_grad():
        found = float(ce(mlp(data["embeddings"][on]), data["labels"][on], data["groups"][on]))
    assert found == value
    assert all(torch.equal(a, b) for a, b in zip(mlp.parameters(), last.parameters(), strict=True))


def test_a_seed_settles_the_fit() -> None:
    data = task()
    torch.manual_seed(1)
    first = fit(**data, widths=(8,), epochs=2, seed=3)
    torch.manual_seed(2)
    again, other = fit(**data, widths=(8,), epochs=2, seed=3), fit(**data, widths=(8,), epochs=2, seed=4)
    assert all(map(torch.equal, first[0].parameters(), again[0].parameters()))
    assert first[1] == again[1] != other[1]


def test_only_training_prompts_teach() -> None:
    """Scale, mean and weights of one epoch do not change with what is held out or left out."""
    data = task()
    data["train"] = data["train"] & (data["groups"] < 20)
    changed = dict(data)
    changed["embeddings"] = torch.where(data["train"][:, None], data["embeddings"], 5.0)
    mlps = [fit(**each, widths=(8,), epochs=1)[0] for each in (data, changed)]
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in mlps), strict=True))
    rows = data["embeddings"][data["train"]]
    assert mlps[0].mean.tolist() == pytest.approx(rows.mean(0).tolist(), rel=1e-5)
    expected = [*rows.std(0, correction=0).tolist()[:4], 1.0]  # the last input never varies
    assert mlps[0].scale.tolist() == pytest.approx(expected, rel=1e-4)


def test_what_cannot_be_fitted() -> None:
    data = task(prompts=8)
    nothing = torch.zeros_like(data["train"])
    with pytest.raises(UserError, match="no completion is for training"):
        fit(**{**data, "train": nothing})
    with pytest.raises(UserError, match="no completion is for validation"):
        fit(**{**data, "validation": nothing})
    with pytest.raises(UserError, match="2 prompts, such as number 0, are on both sides"):
        fit(**{**data, "train": ~nothing})
    with pytest.raises(UserError, match="inputs to fit on are not finite"):
        fit(**{**data, "embeddings": data["embeddings"] / 0})
    with pytest.raises(UserError, match="labels to fit on are not finite"):
        fit(**{**data, "labels": data["labels"] * math.nan})
    with pytest.raises(UserError, match="there is no loss 'mse'"):
        fit(**data, loss="mse")
    with pytest.raises(UserError, match="lower the learning rate, now 1e\\+30"):
        fit(**data, lr=1e30, widths=(8, 8))
