"""A head on embeddings as a scorer by path: it says of a sample what it says of the same embedded text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decoder.best_of_n import app
from decoder.contracts import Probe, UserError
from decoder.decoder import Decoder
from decoder.lm import CausalLM
from decoder.models import LoadedModel
from decoder.replay import running_scores, score_samples
from rewards.embed_rows import Columns, read_rows
from rewards.embed_tokens import TextForm, TokenRow
from rewards.embedding_scorer import EmbeddingScorer
from rewards.encoder import EncoderOptions, ModelEncoder, encoder_of
from rewards.head_ensemble import HeadEnsemble
from rewards.head_store import encoder_record
from rewards.heads import Head, make_head
from rewards.load import load_token_reward
from rewards.mlp_head import MlpHead
from rewards.score import app as score_app
from rewards.scorers import load_probe
from rewards.store_manifest import Encoder, Manifest
from tests.heads import as_lm
from tests.test_train_head import call, refused
from tests.tiny import EOS, save_tiny, tiny_llama, tiny_tokenizer

PROMPTS = [[5, 17, 200], [9], [33, 44, 55, 66]]
SAMPLES = [[[7, 8, 9, 10, 11], [250], [3, 4]], [[40, 41, 42]], [[12, 13], [14, 15, 16, 17]]]
N, LENGTH = 6, 10


@pytest.fixture(scope="module")
def decoder(tiny_dir: Path) -> Decoder:
    return Decoder.from_pretrained(str(tiny_dir), dtype="float32", device="cpu")


def encoder_with(decoder: Decoder, **options: Any) -> ModelEncoder:
    return encoder_of(LoadedModel(decoder.lm, decoder.tokenizer), EncoderOptions(**options))


def fitted(dimension: int, seed: int = 0, sign: int = 1) -> MlpHead:
    """Return a linear head fitted on noise; sign -1 gives its opposite."""
    rng = np.random.default_rng(seed)
    X, pairs = rng.normal(size=(60, dimension)), rng.permutation(60).reshape(30, 2)
    return MlpHead(widths=(), lr=0.1, epochs=1).fit(X.astype(np.float32), pairs[:, ::sign])


def saved(folder: Path, head: Head, manifest: Manifest) -> Path:
    head.save_pretrained(folder, encoder_record(manifest))
    return folder


def embedded(encoder: ModelEncoder, prompt: list[int], sample: list[int]) -> Tensor:
    """Return what the store has of a sample as it was drawn: its embedding (1, D)."""
    whole, all_of_it = prompt + sample, encoder.tokeniser.form.pooled == "all"
    return encoder.embed([TokenRow(whole, 0 if all_of_it else len(prompt), len(whole))])


@pytest.mark.parametrize("pooled", ["all", "response"])
@pytest.mark.parametrize(("pooling", "layers"), [("last", (-1,)), ("mean", (0, 2)), ("mean", (-1,))])
def test_a_sample_scores_as_its_embedding(
    pooled: Any, pooling: Any, layers: tuple[int, ...], decoder: Decoder, tmp_path: Path
) -> None:
    """In a replay of whole samples, and token by token; prompts and samples are ragged."""
    encoder = encoder_with(decoder, layers=layers, pooling=pooling, form=TextForm(pooled))
    head, manifest = fitted(encoder.dimension), encoder.manifest("float32")
    probe = load_probe(saved(tmp_path / "head", head, manifest), decoder.lm)
    assert isinstance(probe, Probe)
    assert not probe.reads_logits
    for prompt, scores in score_samples(decoder.lm, [probe], PROMPTS, SAMPLES):
        for sample, found in zip(SAMPLES[prompt], scores[:, 0].tolist(), strict=True):
            expected = float(head.predict(embedded(encoder, PROMPTS[prompt], sample))[0])
            assert found == pytest.approx(expected, abs=1e-4)
    for prompt, running in running_scores(decoder.lm, probe, PROMPTS, SAMPLES):
        for sample, steps in zip(SAMPLES[prompt], running, strict=True):
            for n, found in enumerate(steps, start=1):
                expected = float(head.predict(embedded(encoder, PROMPTS[prompt], sample[:n]))[0])
                assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("pooled", ["all", "response"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_end_token_is_no_part_of_a_text(
    pooled: Any, pooling: Any, decoder: Decoder, tmp_path: Path
) -> None:
    """As in a store; a sample that ends at once is scored by the prompt's last state."""
    encoder = encoder_with(decoder, layers=(2, 4), pooling=pooling, form=TextForm(pooled))
    folder = saved(tmp_path / "head", fitted(encoder.dimension), encoder.manifest("float32"))
    probe = load_probe(folder, decoder.lm)
    samples = [[[7, 8], [7, 8, EOS], [EOS]]]
    (_, scores), = score_samples(decoder.lm, [probe], PROMPTS[:1], samples)  # fmt: skip
    assert scores[0, 0] == pytest.approx(float(scores[1, 0]), abs=1e-5)
    stopping = load_probe(folder, decoder.lm, ends=torch.tensor([8, EOS]))  # as with characters that stop
    (_, stopped), = score_samples(decoder.lm, [stopping], PROMPTS[:1], [[[7], [7, 8]]])  # fmt: skip
    assert stopped[0, 0] == pytest.approx(float(stopped[1, 0]), abs=1e-5)
    assert stopped[1, 0] != pytest.approx(float(scores[0, 0]), abs=1e-3)
    whole = encoder.tokenise(read_rows([_line(tmp_path, "The rain", "")], Columns()))[0]
    assert whole is not None
    (_, empty), = score_samples(decoder.lm, [probe], [whole.ids], [[[EOS]]])  # fmt: skip
    assert float(empty) == pytest.approx(
        float(fitted(encoder.dimension).predict(encoder.embed([whole]))[0]), abs=1e-4
    )


def _line(folder: Path, prompt: str, text: str) -> str:
    path = folder / "line.jsonl"
    path.write_text(json.dumps({"prompt": prompt, "generations": [{"text": text}]}) + "\n")
    return str(path)


def test_rounding_is_that_of_the_store(decoder: Decoder, tmp_path: Path) -> None:
    encoder = encoder_with(decoder)
    head = fitted(encoder.dimension)
    probe = load_probe(saved(tmp_path / "head", head, encoder.manifest("bfloat16")), decoder.lm)
    (_, scores), = score_samples(decoder.lm, [probe], PROMPTS[:1], SAMPLES[:1])  # fmt: skip
    exact = torch.cat([embedded(encoder, PROMPTS[0], sample) for sample in SAMPLES[0]])
    assert scores[:, 0].tolist() == pytest.approx(head.predict(exact.bfloat16()).tolist(), abs=1e-3)
    assert not np.allclose(scores[:, 0].numpy(), head.predict(exact), atol=1e-3)


@pytest.mark.parametrize("kind", ["head_mlp", "head_ensemble", "head_lightgbm"])
def test_every_kind_loads_by_path(kind: str, decoder: Decoder, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X, pairs = rng.normal(size=(60, 32)).astype(np.float32), rng.permutation(60).reshape(30, 2)
    if kind == "head_lightgbm":
        pytest.importorskip("lightgbm")
    head: Head = fitted(32)
    if kind != "head_mlp":
        head = make_head("lgb-clf", trees=3, min_leaf_rows=2) if kind == "head_lightgbm" else HeadEnsemble()
        head.fit(X, pairs)
    encoder = encoder_with(decoder)
    probe = load_probe(saved(tmp_path / "head", head, encoder.manifest("float32")), decoder.lm)
    assert json.loads((tmp_path / "head" / "config.json").read_text())["kind"] == kind
    assert head.digest in probe.digest
    (_, scores), = score_samples(decoder.lm, [probe], PROMPTS[:1], SAMPLES[:1])  # fmt: skip
    exact = torch.cat([embedded(encoder, PROMPTS[0], sample) for sample in SAMPLES[0]])
    assert scores[:, 0].tolist() == pytest.approx(head.predict(exact).tolist(), abs=1e-4)


def test_digests_tell_heads_apart(decoder: Decoder, tmp_path: Path) -> None:
    """By their weights, and by what is pooled for them."""
    forms = {pooled: encoder_with(decoder, form=TextForm(pooled)) for pooled in ("all", "response")}
    made = [
        saved(tmp_path / f"{seed}{pooled}", fitted(32, seed), encoder.manifest("float32"))
        for seed in (0, 1)
        for pooled, encoder in forms.items()
    ]
    assert len({load_probe(folder, decoder.lm).digest for folder in made}) == 4
    assert load_probe(made[0], decoder.lm).digest == load_probe(made[0], decoder.lm).digest


def candidates(model: Path, scorer: Path | str, folder: Path) -> tuple[list[Any], list[Any]]:
    """Draw samples through the command line; return every prompt's candidates and its winner's line."""
    done = call(
        app, "The kettle", "A good morning", "She thought", "--scorer", scorer, "--model", model, "--n", N,
        "--max-new-tokens", LENGTH, "--temperature", 1.2, "--dtype", "float32", "--seed", 3,
        "--output", folder / "samples.jsonl",
    )  # fmt: skip
    assert done.code == 0, done.error
    lines, winners = (
        [json.loads(line) for line in (folder / name).read_text().split("\n") if line]
        for name in ("samples.jsonl", "samples.best.jsonl")
    )
    return lines, winners


@pytest.mark.parametrize("pooled", ["all", "response"])
def test_reranking_by_path(pooled: Any, decoder: Decoder, tiny_dir: Path, tmp_path: Path) -> None:
    """The highest score wins, another sample by the opposite head; `rewards.score` says the same."""
    manifest = encoder_with(decoder, form=TextForm(pooled)).manifest("float16")
    heads = [saved(tmp_path / name, fitted(32, sign=sign), manifest) for name, sign in (("a", 1), ("b", -1))]
    for folder in heads:
        (tmp_path / f"out-{folder.name}").mkdir()
        lines, winners = candidates(tiny_dir, folder, tmp_path / f"out-{folder.name}")
        for line, winner in zip(lines, winners, strict=True):
            scores = [sample["scores"][folder.name] for sample in line["generations"]]
            assert winner["best"]["sample_index"] == int(np.argmax(scores))
            assert len(set(scores)) == N
    one, other = (
        [
            json.loads(line)
            for line in (tmp_path / f"out-{name}" / "samples.jsonl").read_text().split("\n")
            if line
        ]
        for name in ("a", "b")
    )
    for line, again in zip(one, other, strict=True):
        texts = [[sample["text"] for sample in each["generations"]] for each in (line, again)]
        assert texts[0] == texts[1]
        scores = [
            [s["scores"][name] for s in each["generations"]] for each, name in ((line, "a"), (again, "b"))
        ]
        assert np.argmax(scores[0]) == np.argmin(scores[1])
    file = tmp_path / "out-a" / "samples.jsonl"
    done = call(score_app, file, "--head", heads[0], "--output", tmp_path / "s.jsonl", "--dtype", "float32")
    assert done.code == 0, done.error
    scored = [json.loads(line)["score"] for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    drawn = [sample["scores"]["a"] for line in one for sample in line["generations"]]
    assert scored == pytest.approx(drawn, abs=5e-3)


def test_another_generator_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    manifest = encoder_with(decoder).manifest("float32")
    head = saved(tmp_path / "head", fitted(32), manifest)
    model = save_tiny(tmp_path / "other", seed=1)
    done = call(app, "The kettle", "--scorer", head, "--model", model, "--dtype", "float32", "--n", 2)
    refused(done, "encoder weights", "in the head", "here", f"--model {manifest.encoder.name}")
    wide = as_lm(tiny_llama(hidden=64), tiny_tokenizer())
    with pytest.raises(UserError, match="dimension 32 in the head, 64 here"):
        EmbeddingScorer.from_pretrained(head, wide)


def test_what_else_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    lm: CausalLM = decoder.lm
    head = fitted(32)
    head.save_pretrained(tmp_path / "unknown")
    with pytest.raises(UserError, match="does not say what made its embeddings"):
        load_probe(tmp_path / "unknown", lm)
    known = saved(tmp_path / "known", head, encoder_with(decoder).manifest("float32"))
    with pytest.raises(UserError, match="has no form 'probability'"):
        load_probe(f"{known}@probability", lm)
    with pytest.raises(UserError, match="cannot steer"):
        load_token_reward(known, lm)
    deep = Manifest(Encoder(lm.identity.name), 32, (9,), dtype="float32")
    with pytest.raises(UserError, match="9"):
        load_probe(saved(tmp_path / "deep", head, deep), lm)
    config = json.loads((known / "config.json").read_text())
    (known / "config.json").write_text(json.dumps({**config, "dimension": 64}))
    with pytest.raises(UserError, match="the head reads 64 numbers, its encoder gives 32"):
        load_probe(known, lm)
