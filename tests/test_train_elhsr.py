"""`rewards.train_elhsr`: what it learns, that it scores as a decode does, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from decoder.contracts import UserError
from decoder.decoder import Decoder
from decoder.replay import score_samples
from rewards.fit_elhsr import Fit, Recipe, Tokens, completions_of, fit, scores
from rewards.measure_choice import measure_choice
from rewards.reduction import find_reduction
from rewards.scorers import load_probe
from rewards.train_elhsr import parse_layers
from tests.source import ROOT

WORDS = ("The kettle", "A good morning", "The train", "She thought", "The rain", "Bread and butter")


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rewards.train_elhsr", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def decoder(tiny_dir: Path) -> Decoder:
    return Decoder.from_pretrained(str(tiny_dir), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def rollouts(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of the tiny model; good ones have tokens whose embeddings point one way, on average."""
    prompts = [f"{word} {i}" for word in WORDS for i in range(6)]
    found = decoder.generate(prompts, num_return_sequences=8, max_new_tokens=12, seed=3)
    way = decoder.lm.output_embeddings @ torch.randn(32, generator=torch.Generator().manual_seed(0))
    lines = []
    for i, generation in enumerate(found):
        samples = [
            {
                "text": each.text,
                "token_ids": list(each.token_ids),
                "correct": int(way[list(each.token_ids)].mean() > way.mean()),
            }
            for each in generation.samples
        ]
        prompt = {"text": generation.prompt.text}
        lines.append(json.dumps({"id": str(i), "prompt": prompt, "generations": samples}))
    path = tmp_path_factory.mktemp("rollouts") / "rollouts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def replayed(decoder: Decoder, folder: Path, rollouts: Path) -> list[torch.Tensor]:
    """Return each prompt's scores (N,) by the saved probe."""
    probe = load_probe(str(folder), decoder.lm)
    records = [json.loads(line) for line in rollouts.read_text().splitlines()]
    prompts = [decoder.tokenizer(record["prompt"]["text"]).input_ids for record in records]
    samples = [[each["token_ids"] for each in record["generations"]] for record in records]
    return [found[:, 0] for _, found in score_samples(decoder.lm, [probe], prompts, samples)]


FORMS: dict[str, tuple[str, ...]] = {
    "gated": ("--components", "0"),
    "reduced": ("--components", "8", "--layers", "last-four"),
    "no gate": ("--no-gate", "--loss", "dpo", "--norm", "none", "--layers", "2,4"),
    "logits": ("--features", "logits"),
    "likelihood": ("--likelihood", "--components", "8", "--layers", "2,4", "--loss", "dpo"),
    "embedding": ("--form", "embedding", "--layers", "4"),
    "top-logprobs": ("--form", "top-logprobs", "--alternatives", "3"),
}


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_training_says_what_a_replay_says(
    options: tuple[str, ...], decoder: Decoder, rollouts: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    """The figures of the run, from its own features, are those of the saved probe read by replay."""
    folder = tmp_path / "probe"
    done = train(
        rollouts, "--output", folder, "--model", tiny_dir, "--test", rollouts, "--cache", tmp_path / "cache",
        "--dtype", "float32", "--epochs", "8", *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads((folder / "config.json").read_text())
    records = [json.loads(line) for line in rollouts.read_text().splitlines()]
    labels = [torch.tensor([s["correct"] for s in r["generations"]]).double().numpy() for r in records]
    found = [each.double().numpy() for each in replayed(decoder, folder, rollouts)]
    measured = measure_choice(found, labels)
    assert told["metrics"]["rollouts.jsonl"]["auc"] == pytest.approx(measured.auc, abs=1e-3)
    assert told["metrics"]["rollouts.jsonl"]["within_auc"] == pytest.approx(measured.within_auc, abs=1e-3)
    assert "decoder.best_of_n --scorer" in done.stdout


def test_it_learns(rollouts: Path, tiny_dir: Path, tmp_path: Path) -> None:
    """What the label depends on is in the states: held-out prompts are ranked far better than by chance."""
    done = train(
        rollouts, "--output", tmp_path / "probe", "--model", tiny_dir, "--cache", tmp_path / "cache",
        "--layers", "0,1", "--learning-curve", "10", "20", "--repeat", "2", "--learning-rate", "0.01",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "probe" / "config.json").read_text())
    assert [each["prompts"] for each in told["fits"]] == [10, 10, 20, 20, 36, 36]
    assert [each["seed"] for each in told["fits"]] == [0, 1] * 3
    assert told["metrics"]["validation"]["within_auc"] > 0.75
    assert told["training"]["n_completions"] == {"training": 288}


def tokens(n_prompts: int = 12, seed: int = 0) -> Tokens:
    """Return material whose label is the sign of the mean of feature 0."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (n_prompts * 4,), generator=generator)
    features = torch.randn(int(lengths.sum()), 5, generator=generator)
    owner = torch.arange(len(lengths)).repeat_interleave(lengths)
    labels = (torch.zeros(len(lengths)).index_add(0, owner, features[:, 0]) > 0).float()
    groups = torch.arange(n_prompts).repeat_interleave(4)
    return Tokens(features, lengths.cumsum(0) - lengths, lengths, groups, labels)


def test_the_best_epoch_is_kept() -> None:
    """The weights returned have the loss reported: they are a copy, not what training went on with."""
    material, sides = tokens(), (torch.arange(8), torch.arange(8, 12))
    found: Fit = fit(material, *sides, Recipe(learning_rate=0.5, epochs=30, patience=30))
    assert found.epoch < 30
    held_out = completions_of(material.groups, sides[1])
    with torch.no_grad():
        again = scores(found.linear, material, held_out, gate=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(again, material.labels[held_out])
    assert float(loss) == pytest.approx(found.validation_loss, abs=1e-6)


def test_a_fit_depends_on_its_seed_alone() -> None:
    material, sides = tokens(), (torch.arange(8), torch.arange(8, 12))
    first, second, other = (
        fit(material, *sides, Recipe(epochs=3, batch_prompts=2, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)


def test_scores_are_the_gated_mean() -> None:
    material, linear = tokens(), torch.nn.Linear(5, 2)
    with torch.no_grad():
        for gate in (True, False):
            found = scores(linear, material, torch.tensor([3, 0]), gate)
            for score, i in zip(found.tolist(), (3, 0), strict=True):
                start, length = int(material.starts[i]), int(material.lengths[i])
                a, r = linear(material.features[start : start + length]).unbind(-1)
                g = a.sigmoid() if gate else torch.ones_like(a)
                assert score == pytest.approx(float((g * r).sum() / g.sum()), abs=1e-6)


def test_a_reduction_folds_back() -> None:
    """Weights on features and the same weights on states say the same."""
    generator = torch.Generator().manual_seed(0)
    taps = {layer: torch.randn(200, 16, generator=generator) * (1 + layer) for layer in (0, 3)}
    reduction = find_reduction(taps, torch.arange(150), (0, 3), "none", 6)
    features = reduction.apply(taps, (0, 3), "none", torch.arange(200))
    assert features.shape == (200, 12)
    inside = features[:150]
    assert torch.allclose(inside.mean(0), torch.zeros(12), atol=1e-4)
    assert torch.allclose(inside.var(0, correction=0), torch.ones(12), atol=1e-3)
    weight, bias = torch.randn(12, 2, generator=generator), torch.randn(2, generator=generator)
    folded, shift = reduction.fold_back(weight, bias)
    on_states = sum(taps[layer] @ folded[i] for i, layer in enumerate((0, 3))) + shift
    assert torch.allclose(on_states, features @ weight + bias, atol=1e-4)


def test_names_of_layers() -> None:
    assert parse_layers("all") == ()
    assert parse_layers("last-four") == (-4, -3, -2, -1)
    assert parse_layers("20, 16") == (16, 20)
    with pytest.raises(UserError, match="--layers is 'top'"):
        parse_layers("top")


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "layer": ({}, ("--layers", "99"), "layer 99 does not exist"),
    "label": ({}, ("--label", "good"), "good"),
    "curve": ({}, ("--learning-curve", "500"), "needs more than"),
    "logits at a layer": ({}, ("--features", "logits", "--layers", "1"), "leave out --layers"),
    "likelihood": ({}, ("--form", "embedding", "--likelihood"), "--likelihood is for --form elhsr"),
    "alternatives": ({}, ("--form", "top-logprobs", "--alternatives", "5000"), "5000"),
    "one class": ({"correct": 1}, (), "one class"),
    "no label": ({"correct": None}, (), "correct"),
}


@pytest.mark.parametrize(("change", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input(
    change: dict[str, Any],
    options: tuple[str, ...],
    message: str,
    rollouts: Path,
    tiny_dir: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "rollouts.jsonl"
    records = [json.loads(line) for line in rollouts.read_text().splitlines()]
    for record in records:
        for sample in record["generations"]:
            sample.update(change)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    done = train(path, "--output", tmp_path / "p", "--model", tiny_dir, "--cache", tmp_path / "c", *options)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "p").exists()
