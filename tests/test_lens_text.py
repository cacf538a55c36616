"""Augmentation in text beside LENS: new samples, what the generator says of them, and pairs out of that."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")

from decoder.batching import plan_batches
from decoder.cli import make_group, run
from decoder.config import make_config
from decoder.contracts import UserError
from decoder.decoder import Decoder
from decoder.models import LoadedModel
from eval.bench_lens_command import LENS_LISTS, lens
from eval.lens_text import Question, draw_texts, judge, judged_pairs, make_question, samples_needed
from prompts.reading import read
from rewards.embed_decoding import DecodeSink
from rewards.embed_tokens import TextForm
from rewards.encoder import EncoderOptions, encoder_of
from rewards.store import Store, open_store
from rewards.store_writer import open_writer

APP = make_group({"lens": lens}, lists={"lens": LENS_LISTS})
TRAIN, TEST = 40, 6  # prompts, of 6 and of 16 samples


@pytest.fixture(scope="module")
def decoder(tiny_dir: Path) -> Decoder:
    return Decoder.from_pretrained(str(tiny_dir), dtype="float32")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [{"id": f"p{i}", "prompt": {"text": f"The {i}th train is"}} for i in range(TRAIN + TEST)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def store(decoder: Decoder, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Samples of the prompts, embedded, whose golden reward is the sum of their letters' numbers."""
    prompts, folder = read(file), tmp_path_factory.mktemp("text") / "store"
    loaded = LoadedModel(decoder.lm, decoder.tokenizer)
    encoder = encoder_of(loaded, EncoderOptions(form=TextForm("all", "none")))
    with open_writer(folder, encoder.manifest("float16", ("golden",))) as writer:
        for some, samples in ((prompts[:TRAIN], 6), (prompts[TRAIN:], 16)):
            config = make_config({"max_new_tokens": 8, "num_return_sequences": samples})
            sink = DecodeSink(
                encoder, writer, decoder.backend.endings.ids(config.stop),
                labels=lambda prompt, done: {"golden": float(sum(map(ord, done.text)))},
            )  # fmt: skip
            token_ids = decoder.tokenise(some, config, chat=False)
            for batch in plan_batches([*map(len, token_ids)], samples, 64):
                list(
                    sink.complete(
                        batch, some, token_ids, partial(decoder.complete, batch, token_ids, [], config)
                    )
                )
    return open_store(folder)


def test_the_judge_reads_the_next_token(decoder: Decoder) -> None:
    """Batched and padded as one by one; the good word less the bad one."""
    question, texts = Question("Is {text} good? It is", " a", " b"), ["The train", "x", "The kettle was late"]
    found = judge(decoder, texts, question)
    for text, value in zip(texts, found, strict=True):
        ids = torch.tensor([decoder.tokenizer(f"Is {text} good? It is")["input_ids"]])
        logits = decoder.lm.start().prefill(ids, torch.ones_like(ids, dtype=torch.bool)).logits[0].detach()
        good, bad = (decoder.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in (" a", " b"))
        assert value == pytest.approx(float(logits[good] - logits[bad]), abs=1e-4)
    with pytest.raises(UserError, match="begin with the same token"):
        judge(decoder, texts, Question("{text}", " a", " a"))


def test_new_texts_are_new_and_embedded(decoder: Decoder, store: Store, file: Path, tmp_path: Path) -> None:
    drawn = draw_texts(decoder, read(file)[:3], 2, tmp_path / "new")
    assert len(drawn) == 6
    assert len(set(drawn.texts()) & set(store.texts())) < 3
    assert drawn.embeddings(np.arange(6)).isfinite().all()


def test_judged_pairs_are_of_one_prompt_the_preferred_first(store: Store) -> None:
    scores = np.random.default_rng(0).normal(size=len(store))
    scores[store.groups()[0] == 0] = 0  # of the first prompt no pair can be told
    pairs, prompts = judged_pairs(store, scores, 10**6)
    assert len(pairs) == (TRAIN - 1) * 15 + TEST * 120
    assert (scores[pairs[:, 0]] > scores[pairs[:, 1]]).all()
    assert (store.groups()[0][pairs] == prompts[:, None]).all()
    assert len(judged_pairs(store, scores, 7)[0]) == 7


def test_the_command_counts_and_times(
    store: Store, file: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(store.folder), "--part", "text", "--prompts", str(file), "--model", str(tiny_dir),
                 "--size", "20", "--ratio", "4", "--limit", "30", "--seeds", "1", "--head", "bt-linear",
                 "--steps", "20", "--answers", "a,b"]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        run(APP, ["lens", *arguments])
    told = capsys.readouterr()
    assert not ended.value.code, told.err
    found: dict[str, Any] = json.loads(told.out.splitlines()[-1])
    assert found["settings"]["new_pairs"] == 30
    rows = {row["method"]: row for row in found["rows"]}
    assert list(rows) == ["none", "lens", "lens-shrinkage", "text", "real"]
    assert rows["none"]["minus_none"] == 0
    spent = rows["text"]["sampling"] + rows["text"]["judging"]
    assert rows["text"]["synthesis_seconds"] == pytest.approx(spent)
    for method in ("lens", "lens-shrinkage"):
        ratio = found["checks"][f"seconds of text synthesis over those of {method}"]
        assert ratio["interval"][0] <= ratio["value"] <= ratio["interval"][1]
    assert 0 <= found["settings"]["judge_agreement"] <= 1


def test_prompts_that_are_missing(store: Store, file: Path, tiny_dir: Path, tmp_path: Path) -> None:
    from eval.lens_material import open_material
    from eval.lens_plan import LensPlan
    from eval.lens_text_run import _prompts_of, text_part

    plan = LensPlan(sizes=(20,), ratios=(4,), head="bt-linear")
    few = tmp_path / "few.jsonl"
    few.write_text("".join(file.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(UserError, match="5 of the 40 prompts"):
        _prompts_of(open_material(store.folder, plan), few)
    with pytest.raises(UserError, match="give one of each"):
        text_part(store.folder, LensPlan(), file, str(tiny_dir), None, None)


def test_samples_of_a_prompt_and_the_question() -> None:
    assert [samples_needed(n, 100) for n in (1, 100, 101, 300, 301, 1000)] == [2, 2, 3, 3, 4, 5]
    asked = make_question("Is {text} good?", "yes, no")
    assert (asked.good, asked.bad) == (" yes", " no")
    for text, answers, said in ((None, "yes", "two words"), ("Is it good?", "yes,no", "does not show")):
        with pytest.raises(UserError, match=said):
            make_question(text, answers)
