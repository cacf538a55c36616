"""`rewards.score`: a store's rows, texts that are embedded, going on after a kill, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rewards import score_run
from rewards.embed_rows import Columns, read_rows
from rewards.embed_run import StoreOptions, embed_rows
from rewards.encoder import EncoderOptions, ModelEncoder, load_encoder
from rewards.head_store import encoder_record
from rewards.heads import Head, load_head, make_head
from rewards.score import app
from rewards.store import RowNumbers, Store, open_store
from rewards.store_manifest import Encoder
from tests.test_train_head import SMALL, call, make_store, refused, trained
from tests.tiny import save_tiny

LINES = [
    {"id": "a", "prompt": "The kettle", "generations": [{"text": " sang"}, {"text": " was bad, and late"}]},
    {
        "id": "b",
        "prompt": "A train",
        "generations": [{"text": ""}, {"text": " again"}, {"text": " in the rain"}],
    },
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("made") / "store")


@pytest.fixture(scope="module")
def head(store: Path) -> Path:
    folder = store.parent / "head"
    trained(store, folder, "--pairs", 300, *SMALL)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture(scope="module")
def encoder(tiny_dir: Path) -> ModelEncoder:
    return load_encoder(str(tiny_dir), EncoderOptions((2, -1), "mean"), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def text_store(texts: Path, encoder: ModelEncoder) -> Path:
    """A store of the texts, by the tiny model."""
    embed_rows(read_rows([str(texts)], Columns()), encoder, texts.parent / "store", StoreOptions())
    return texts.parent / "store"


@pytest.fixture(scope="module")
def text_head(text_store: Path) -> Path:
    """A head that reads such embeddings."""
    manifest = open_store(text_store).manifest
    folder = text_store.parent / "head"
    fitted(manifest.dimension).save_pretrained(folder, encoder_record(manifest))
    return folder


def fitted(dimension: int, seed: int = 0) -> Head:
    """Return a linear head fitted on noise: its weights are of all sizes and signs."""
    rng = np.random.default_rng(seed)
    X, pairs = rng.normal(size=(60, dimension)), rng.permutation(60).reshape(30, 2)
    return make_head("bt-linear", epochs=1).fit(X.astype(np.float32), pairs)  # type: ignore[no-any-return]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores_of(path: Path) -> NDArray[np.float32]:
    return np.array([line["score"] for line in read(path)], dtype=np.float32)


@pytest.mark.parametrize("kind", [(), ("--members", 2), ("--head", "lgb-clf", "--set", "trees=5")])
def test_a_store_is_scored_as_predict_says(kind: tuple[object, ...], store: Path, tmp_path: Path) -> None:
    if "lgb-clf" in kind:
        pytest.importorskip("lightgbm")
    trained(store, tmp_path / "head", "--pairs", 200, *kind, *(SMALL if "lgb-clf" not in kind else ()))
    done = call(app, store, "--head", tmp_path / "head", "--output", tmp_path / "scores.jsonl")
    assert done.code == 0, done.error
    assert done.out == ""
    assert "960/960 scored, mean" in done.error
    found, lines = open_store(store), read(tmp_path / "scores.jsonl")
    assert [line["prompt_id"] for line in lines] == found.prompt_ids().tolist()
    assert [line["sample_index"] for line in lines] == found.sample_indices().tolist()
    expected = load_head(tmp_path / "head").predict(found.embeddings(np.arange(960)))
    assert np.array_equal(scores_of(tmp_path / "scores.jsonl"), expected)


@pytest.mark.parametrize("size", [0, 1, 3000, 20_000, 59_000])
def test_a_killed_run_goes_on_to_the_same_bytes(
    size: int, store: Path, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole chunks are kept, a torn end is cut off, and only what is missing is read again."""
    monkeypatch.setattr(score_run, "CHUNK", 100)
    path, arguments = (
        tmp_path / "scores.jsonl",
        (store, "--head", head, "--output", tmp_path / "scores.jsonl"),
    )
    assert call(app, *arguments).code == 0
    whole = path.read_bytes()
    assert len(whole) > 59_000
    path.write_bytes(whole[:size])
    begun: list[int] = []
    plain = Store.embeddings

    def counting(self: Store, rows: RowNumbers) -> torch.Tensor:
        begun.append(int(rows[0]))
        return plain(self, rows)

    monkeypatch.setattr(Store, "embeddings", counting)
    assert call(app, *arguments).code == 0
    assert path.read_bytes() == whole
    kept = whole[:size].count(b"\n") // 100 * 100
    assert begun == list(range(kept, 960, 100))


def test_a_finished_file_is_left_as_it_is(store: Path, head: Path, tmp_path: Path) -> None:
    arguments = (store, "--head", head, "--output", tmp_path / "scores.jsonl")
    assert call(app, *arguments).code == 0
    before = (tmp_path / "scores.jsonl").read_bytes()
    again = call(app, *arguments)
    assert again.code == 0
    assert "960/960 scored" in again.error
    assert (tmp_path / "scores.jsonl").read_bytes() == before
    assert "resumed" not in json.loads((tmp_path / "run.json").read_text())["scores.jsonl"]


def test_other_work_is_not_continued(store: Path, head: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    arguments = (store, "--head", head, "--output", path)
    assert call(app, *arguments).code == 0
    trained(store, tmp_path / "other", "--pairs", 200, "--head", "bt-linear")
    other = (store, "--head", tmp_path / "other", "--output", path)
    refused(call(app, *other), "made with other settings", "head:")
    assert call(app, *other, "--overwrite").code == 0
    refused(call(app, *arguments), "made with other settings")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[1], *lines[1:]]))
    refused(call(app, *other), "line 1 is no score of prompt 'p0', sample 0")
    path.write_bytes(b"".join([*lines, lines[-1]]))
    refused(call(app, *other), "more lines than the 960 items")
    (tmp_path / "run.json").unlink()
    refused(call(app, *other), "does not say how it was made")


def test_texts_are_embedded_as_the_store_was(
    texts: Path, text_store: Path, text_head: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    """What a file scores is what the store of the same file scores, whatever order its rows have."""
    settings = ("--dtype", "float32", "--device", "cpu", "--batch-tokens", 16)
    done = call(app, texts, "--head", text_head, "--output", tmp_path / "texts.jsonl", *settings)
    assert done.code == 0, done.error
    done = call(app, text_store, "--head", text_head, "--output", tmp_path / "store.jsonl")
    assert done.code == 0, done.error
    by_texts, by_store = (
        {(line["prompt_id"], line["sample_index"]): line["score"] for line in read(tmp_path / name)}
        for name in ("texts.jsonl", "store.jsonl")
    )
    assert list(by_texts) == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)]
    assert by_store == pytest.approx({key: by_texts[key] for key in by_store}, abs=2e-3)
    assert len(set(by_store.values())) == 5


def test_a_table_of_texts_is_scored(text_head: Path, encoder: ModelEncoder, tmp_path: Path) -> None:
    (tmp_path / "answers.tsv").write_text("answer\tgrade\nIt rains\t1\nA film\t0\n\t0\n")
    done = call(
        app, tmp_path / "answers.tsv", "--head", text_head, "--output", tmp_path / "scores.jsonl",
        "--text-column", "answer", "--dtype", "float32",
    )  # fmt: skip
    assert done.code == 0, done.error
    assert "2/3 scored" in done.error
    table = f"{tmp_path / 'answers.tsv'}::text=answer"
    rows = encoder.tokenise(read_rows([table], Columns()))
    expected = [load_head(text_head).predict(encoder.embed([row]).half())[0] for row in rows[:2] if row]
    found = [line["score"] for line in read(tmp_path / "scores.jsonl")]
    assert found[:2] == pytest.approx(expected, abs=2e-3)
    assert found[2] is None


def test_the_encoder_may_have_moved_but_not_changed(
    texts: Path, text_head: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_dir, tmp_path / "moved")
    arguments = (texts, "--head", text_head, "--output", tmp_path / "scores.jsonl", "--dtype", "float32")
    assert call(app, *arguments, "--model", tmp_path / "moved").code == 0
    save_tiny(tmp_path / "other", seed=1)
    done = call(app, *arguments, "--model", tmp_path / "other", "--overwrite")
    refused(done, "in the head", "here", "encoder weights", str(tmp_path / "other"))


def test_embeddings_of_others_are_refused(store: Path, head: Path, tmp_path: Path) -> None:
    output = ("--head", head, "--output", tmp_path / "scores.jsonl")
    other = make_store(tmp_path / "other", prompts=2, encoder=Encoder("big", weights="w2", tokenizer="t1"))
    refused(call(app, other, *output), "'tiny'", "'big'", "encoder weights 'w1' in the head, 'w2' here")
    unknown = make_store(tmp_path / "unknown", prompts=2, encoder=Encoder("big"))
    refused(call(app, unknown, *output), "encoder name 'tiny' in the head, 'big' here")
    wide = make_store(tmp_path / "wide", prompts=2, dimension=15)
    refused(call(app, wide, *output), "dimension 12 in the head, 15 here")
    assert not (tmp_path / "scores.jsonl").exists()


def test_a_head_that_does_not_know_its_encoder(store: Path, texts: Path, tmp_path: Path) -> None:
    """It scores a store of its dimension, with a warning, and no texts."""
    fitted(12).save_pretrained(tmp_path / "head")
    output = ("--head", tmp_path / "head", "--output", tmp_path / "scores.jsonl")
    with pytest.warns(UserWarning, match="does not say what made its embeddings"):
        assert call(app, store, *output).code == 0
    refused(call(app, texts, *output, "--overwrite"), "does not say what made its embeddings")
    wide = make_store(tmp_path / "wide", prompts=2, dimension=15)
    with pytest.warns(UserWarning, match="does not say"):
        refused(call(app, wide, *output, "--overwrite"), "reads embeddings of 12 numbers, these have 15")


def test_what_else_is_refused(store: Path, head: Path, texts: Path, text_head: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "scores.jsonl")
    refused(call(app, store, "--head", tmp_path / "nowhere", *output), "is no folder")
    refused(call(app, store, "--head", store, *output), "is not a saved reward")
    refused(call(app, tmp_path / "no.jsonl", "--head", head, *output), "does not exist")
    refused(call(app, texts, "--head", head, *output), "cannot load model 'tiny'")
    refused(
        call(app, texts, "--head", text_head, *output, "--text-column", "x", "--device", "no"), "device 'no'"
    )
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "generations": [{"text": 3}]}\n')
    said = ("broken.jsonl, line 1, generation 1", '"text" must be a string')
    refused(call(app, tmp_path / "broken.jsonl", "--head", text_head, *output), *said)
    refused(call(app, store, "--head", head, "--output", tmp_path / "run.json"), "the name of the run record")
    (tmp_path / "garbled").mkdir()
    shutil.copytree(head, tmp_path / "garbled", dirs_exist_ok=True)
    config = json.loads((head / "config.json").read_text())
    del config["encoder"]["layers"]
    (tmp_path / "garbled" / "config.json").write_text(json.dumps(config))
    refused(call(app, store, "--head", tmp_path / "garbled", *output), "garbles its encoder")
