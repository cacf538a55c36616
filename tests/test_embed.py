"""From files to stores: what is read, that nothing is there twice or lost, and the command."""

from __future__ import annotations

import json
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decoder.cli import run
from rewards import embed_run
from rewards.embed import app
from rewards.embed_rows import Columns, TextRow, read_rows
from rewards.embed_run import StoreOptions, embed_rows
from rewards.embed_tokens import TextForm, TokenRow
from rewards.encoder import EncoderOptions, ModelEncoder, load_encoder
from rewards.store import open_store
from tests.stores import refusal
from tests.tiny import SENTENCES, tiny_llama

pytest.importorskip("pyarrow")

FLOAT32 = StoreOptions("float32", batch_tokens=60)


def lines(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def line(prompt_id: str, *texts: str, prompt: Any = "The film", **more: Any) -> dict[str, Any]:
    """A prompt with its generations, as decoder.generate writes it."""
    samples = [{"text": text, "sample_index": i, "reward": i / 4, **more} for i, text in enumerate(texts)]
    return {"id": prompt_id, "prompt": {"text": prompt}, "generations": samples}


@pytest.fixture
def samples(tmp_path: Path) -> str:
    """Twelve samples of four prompts, of all lengths."""
    words = " ".join(SENTENCES).split()
    texts = [" " + " ".join(words[3 * i : 3 * i + 1 + (5 * i) % 9]) for i in range(12)]
    return lines(tmp_path / "samples.jsonl", *(line(f"p{i}", *texts[3 * i : 3 * i + 3]) for i in range(4)))


@pytest.fixture(scope="module")
def encoder(tiny_dir: Path) -> ModelEncoder:
    return load_encoder(str(tiny_dir), EncoderOptions((2, 4), "mean"), dtype="float32")


def content(folder: Path) -> list[tuple[Any, ...]]:
    """Return every row of a store, in its order: id, sample, text, labels, bytes of the embedding."""
    store = open_store(folder)
    labels = [store.column(name).tolist() for name in store.manifest.labels]
    vectors = [each.numpy().tobytes() for each in store.embeddings(range(store.n_rows))]
    return list(zip(store.prompt_ids(), store.sample_indices(), store.texts(), *labels, vectors, strict=True))


def test_a_store_holds_each_text_with_its_own_embedding(
    tmp_path: Path, samples: str, encoder: ModelEncoder
) -> None:
    rows = read_rows([samples], Columns(labels=("golden=reward",)))
    tally = embed_rows(rows, encoder, tmp_path / "s", replace(FLOAT32, labels=("golden",)))
    store = open_store(tmp_path / "s")
    assert (tally.added, tally.there, tally.empty, tally.cut, store.n_rows) == (12, 0, 0, 0, 12)
    place = {row.key: row for row in rows}
    n_tokens = 0
    for number, key in enumerate(zip(store.prompt_ids(), store.sample_indices().tolist(), strict=True)):
        row = place.pop(key)
        ids = encoder.tokeniser.tokenizer("The film" + row.text).input_ids
        n_tokens += len(ids)
        with torch.no_grad():
            states = encoder.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = torch.cat([states[2][0].mean(0), states[4][0].mean(0)])
        torch.testing.assert_close(store.embeddings([number])[0], expected, atol=1e-4, rtol=1e-5)
        assert (store.texts([number]), store.column("golden")[number]) == ([row.text], row.sample_index / 4)
    assert not place
    assert tally.tokens == n_tokens


@pytest.mark.parametrize("window", [5, 2048])
def test_killed_and_resumed_is_uninterrupted(
    tmp_path: Path, samples: str, encoder: ModelEncoder, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended after every number of batches, as Ctrl-C does it, then started again: the same bits in order."""
    monkeypatch.setattr(embed_run, "WINDOW", window)
    rows, options = read_rows([samples], Columns()), replace(FLOAT32, shard_rows=2)
    embed_rows(rows, encoder, tmp_path / "whole", options)
    whole, n_batches = content(tmp_path / "whole"), 0
    for stop in range(20):
        stopping, folder = Stopping(encoder, stop), tmp_path / f"stopped after {stop}"
        try:
            embed_rows(rows, stopping, folder, options)
            break
        except KeyboardInterrupt:
            n_batches += 1
        assert content(folder) == whole[: stopping.n_done], "what was embedded is kept"
        tally = embed_rows(rows, encoder, folder, options)
        assert (tally.there, tally.added) == (stopping.n_done, 12 - stopping.n_done)
        assert content(folder) == whole
    assert n_batches > 3
    tally = embed_rows(rows, encoder, tmp_path / "whole", options)
    assert (tally.there, tally.added, tally.tokens) == (12, 0, 0)
    assert content(tmp_path / "whole") == whole


class Stopping:
    """An encoder that is interrupted after some batches; a `TextEncoder` of our own, too."""

    def __init__(self, encoder: ModelEncoder, n_batches: int) -> None:
        self.encoder, self.left, self.n_done = encoder, n_batches, 0

    def manifest(self, *given: Any) -> Any:
        return self.encoder.manifest(*given)

    def tokenise(self, rows: Sequence[TextRow]) -> list[TokenRow | None]:
        return self.encoder.tokenise(rows)

    def embed(self, rows: Sequence[TokenRow]) -> Tensor:
        if not self.left:
            raise KeyboardInterrupt
        self.left, self.n_done = self.left - 1, self.n_done + len(rows)
        return self.encoder.embed(rows)


def test_a_batch_that_is_there_in_part_is_read_whole(
    tmp_path: Path, samples: str, encoder: ModelEncoder
) -> None:
    """A kill can fall between two shards of one batch; the rest has the same bits, and nothing is twice."""
    rows = read_rows([samples], Columns())
    options = replace(FLOAT32, batch_tokens=10**6, shard_rows=5)
    embed_rows(rows, encoder, tmp_path / "whole", options)
    folder = tmp_path / "cut"
    embed_rows(rows, encoder, folder, options)
    log = (folder / "shards.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "shards.jsonl").write_bytes(log[0])
    for path in folder.glob("0000[12].*"):
        path.unlink()
    assert open_store(folder).n_rows == 5
    again = Stopping(encoder, 99)
    assert embed_rows(rows, again, folder, options).added == 7
    assert again.n_done == 12, "with other neighbours the last bits could differ"
    assert content(folder) == content(tmp_path / "whole")


def test_more_data_is_added(tmp_path: Path, samples: str, encoder: ModelEncoder) -> None:
    more = lines(tmp_path / "more.jsonl", line("p3", " a", " b", " c", " d"), line("p4", " e"))
    embed_rows(read_rows([samples], Columns()), encoder, tmp_path / "s", FLOAT32)
    said = refusal(lambda: embed_rows(read_rows([more], Columns()), encoder, tmp_path / "s", FLOAT32))
    assert "more.jsonl, line 1, generation 1: prompt 'p3', sample 0 is in store" in said
    assert "here ' a'" in said
    tally = embed_rows(read_rows([more], Columns(), id_prefix="x-"), encoder, tmp_path / "s", FLOAT32)
    assert (tally.added, tally.there) == (5, 0)
    store = open_store(tmp_path / "s")
    assert sorted(store.groups()[1]) == ["p0", "p1", "p2", "p3", "x-p3", "x-p4"]
    assert store.n_rows == 17
    assert embed_rows(read_rows([samples], Columns()), encoder, tmp_path / "s", FLOAT32).added == 0


def test_other_labels_of_the_same_rows_are_refused(
    tmp_path: Path, samples: str, encoder: ModelEncoder
) -> None:
    options = replace(FLOAT32, labels=("golden",))
    rows = read_rows([samples], Columns(labels=("golden=reward",)))
    unknown = [replace(row, labels=(math.nan,)) for row in rows]
    embed_rows(unknown, encoder, tmp_path / "s", options)
    assert embed_rows(unknown, encoder, tmp_path / "s", options).there == 12
    assert "labels [nan], here [0.0]" in refusal(lambda: embed_rows(rows, encoder, tmp_path / "s", options))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (EncoderOptions((4,), "mean"), "layers (2, 4) in the store, (4,) asked for"),
        (EncoderOptions((2, 4), "last"), "pooling 'mean' in the store, 'last' asked for"),
        (EncoderOptions((2, 4), "mean", TextForm("response")), "template 'plain' in the store, 'plain, resp"),
        (EncoderOptions((2, 4), "mean", TextForm("all", "chat")), "template 'plain' in the store, 'chat "),
        (EncoderOptions((2, 4), "mean", max_tokens=9), "max_tokens 128 in the store, 9 asked for"),
    ],
)
def test_other_embeddings_are_refused(
    tmp_path: Path, samples: str, encoder: ModelEncoder, tiny_dir: Path, other: EncoderOptions, said: str
) -> None:
    rows = read_rows([samples], Columns())
    embed_rows(rows, encoder, tmp_path / "s", FLOAT32)
    asked = load_encoder(str(tiny_dir), other, dtype="float32")
    assert said in refusal(lambda: embed_rows(rows, asked, tmp_path / "s", FLOAT32))
    labelled = replace(FLOAT32, labels=("golden",))
    assert "labels [] and ['golden']" in refusal(lambda: embed_rows(rows, encoder, tmp_path / "s", labelled))


def test_another_encoder_is_refused(tmp_path: Path, samples: str, encoder: ModelEncoder) -> None:
    rows = read_rows([samples], Columns())
    embed_rows(rows, encoder, tmp_path / "s", FLOAT32)
    other = replace(encoder, model=tiny_llama(seed=1).base_model, about=replace(encoder.about, weights="w2"))
    assert "encoder weights" in refusal(lambda: embed_rows(rows, other, tmp_path / "s", FLOAT32))


def test_texts_are_cut_and_empty_ones_left_out(tmp_path: Path, tiny_dir: Path) -> None:
    data = lines(tmp_path / "t.jsonl", *({"text": text} for text in ("a b", "", SENTENCES[0])))
    asked = load_encoder(str(tiny_dir), EncoderOptions(max_tokens=6), dtype="float32")
    tally = embed_rows(read_rows([data], Columns()), asked, tmp_path / "s", FLOAT32)
    assert (tally.added, tally.empty, tally.cut, tally.tokens) == (2, 1, 1, 6 + 2)
    assert open_store(tmp_path / "s").prompt_ids().tolist() == ["0", "2"]


# Reading


def test_generations_are_read_with_their_labels(tmp_path: Path) -> None:
    first = line("a", " x", " y", scores={"rm.v2": 0.5, "deep": {"er": 2}}, token_ids=[7, 8, 1], correct=True)
    first["generations"][0]["finish_reason"] = "stop"
    first["generations"][1]["scores"] = {"rm.v2": None, "deep": {"er": 3}}
    chat = {
        "prompt": {"messages": [{"role": "user", "content": "hi"}]},
        "generations": first["generations"][:1],
    }
    path = lines(tmp_path / "g.jsonl", first, chat)
    names = ("golden=scores.rm.v2", "scores.deep.er", "correct")
    a, b, c = read_rows([path], Columns(labels=names), id_prefix="t/")
    assert Columns(labels=names).label_names == ("golden", "scores.deep.er", "correct")
    assert (a.key, b.key, c.key) == (("t/a", 0), ("t/a", 1), ("t/1", 0))
    assert (a.labels, b.labels[1:]) == ((0.5, 2.0, 1.0), (3.0, 1.0))
    assert math.isnan(b.labels[0])
    assert (list(a.token_ids or ()), list(b.token_ids or ())) == ([7, 8], [7, 8, 1])
    assert (a.prompt.text if a.prompt else "", a.text, a.source) == (
        "The film",
        " x",
        f"{path}, line 1, generation 1",
    )
    assert c.prompt is not None
    assert c.prompt.messages == ({"role": "user", "content": "hi"},)


def test_the_winners_of_a_best_of_n_run_are_read(tmp_path: Path) -> None:
    won = {"text": " x", "sample_index": 3, "finish_reason": "length"}
    path = lines(
        tmp_path / "g.best.jsonl",
        {"id": "a", "prompt": {"text": "P"}, "best": won, "scores": [1, 2], "correct": 1},
    )
    (row,) = read_rows([path], Columns(labels=("correct",)))
    assert (row.key, row.text, row.labels) == (("a", 3), " x", (1.0,))


def test_tables_are_read_with_prompts_and_ids(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("prompt\tresponse\tgolden\nA\tx\t0.5\nB\ty\t\nA\tz\t-3\n\tw\ttrue\n\tw\t0\n")
    rows = read_rows([str(table)], Columns(labels=("golden",)))
    assert [row.key for row in rows] == [("0", 0), ("1", 0), ("0", 1), ("2", 0), ("3", 0)]
    assert [row.text for row in rows] == ["x", "y", "z", "w", "w"]
    assert [row.prompt.text if row.prompt else None for row in rows] == ["A", "B", "A", None, None]
    assert str([row.labels[0] for row in rows]) == "[0.5, nan, -3.0, 1.0, 0.0]"
    ids = lines(tmp_path / "t.jsonl", {"body": "x", "q": 7, "k": 4}, {"body": "y", "q": 7, "k": 0})
    named = Columns("body", prompt_id="q", sample_index="k")
    assert [row.key for row in read_rows([ids], named)] == [("7", 4), ("7", 0)]
    assert [row.text for row in read_rows([f"{ids}::text=body"], Columns("no"), limit=1)] == ["x"]
    bare = tmp_path / "bare.csv"
    bare.write_text("great,1\nbad,0\n")
    assert [(r.text, r.labels) for r in read_rows([str(bare)], Columns(labels=("1",)))] == [
        ("great", (1.0,)),
        ("bad", (0.0,)),
    ]


def bad(record: Any, **columns: Any) -> Callable[[Path], Any]:
    return lambda folder: read_rows([lines(folder / "g.jsonl", record)], Columns(**columns))


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (bad({"prompt": "P", "generations": "x"}), 'line 1: needs "prompt" and a list of "generations"'),
        (bad({"generations": []}), 'needs "prompt"'),
        (bad({"prompt": "P", "generations": ["x"]}), "line 1, generation 1: a generation must be an object"),
        (bad({"prompt": "P", "generations": [{"t": "x"}]}), 'must be a string, found only the keys ["t"]'),
        (bad({"prompt": "P", "generations": [{"text": 3}]}), '"text" must be a string, found 3'),
        (bad(line("a", "x", sample_index=-1)), "the sample index -1 is no whole number"),
        (bad(line("a", "x", "y", sample_index=1)), "generation 2: prompt 'a', sample 1 was read before, at"),
        (bad(line("a", "x", token_ids=[1.5])), '"token_ids" must be a list of token ids'),
        (bad(line("a", "x"), labels=("g",)), 'no label "g"; the fields with a number are: sample_index'),
        (bad(line("a", "x", gold="no"), labels=("gold",)), "label \"gold\" is 'no', no usable number"),
        (bad(line("a", "x", gold=math.inf), labels=("gold",)), 'label "gold" is inf'),
        (bad(line("a", "x", gold=[1]), labels=("gold",)), 'label "gold" is [1]'),
        (bad(line("a")), "there are no texts in it"),
        (bad({"words": "x"}), "has the columns words: say which to read with --text-column"),
        (bad({"text": "x"}, labels=("gold",)), "has no column 'gold': it has text"),
        (bad({"text": 3}), '"text" must be a string, found 3'),
        (lambda folder: read_rows([str(folder / "no.jsonl")], Columns()), "does not exist"),
        (lambda folder: read_rows(["a.jsonl::label=x"], Columns()), "name labels with --label-column"),
    ],
)  # fmt: skip
def test_bad_data_is_refused_with_its_place(tmp_path: Path, read: Any, said: str) -> None:
    assert said in refusal(lambda: read(tmp_path))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    path.write_text(json.dumps(line("a", "x")) + "\n\n{broken\n")
    assert "g.jsonl, line 3: broken JSON" in refusal(lambda: read_rows([str(path)], Columns()))


# The command


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of `python -m rewards.embed`."""
    with pytest.raises(SystemExit) as ended:
        run(app, [*map(str, arguments)])
    out, error = capsys.readouterr()
    return int(ended.value.code or 0), " ".join(out.split()), error


def test_the_command_makes_a_store_and_goes_on(
    tmp_path: Path, samples: str, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (samples, "--model", tiny_dir, "--output", tmp_path / "s", "--label-column", "golden=reward")
    kind = (
        "--layer",
        "-1",
        "--layer",
        2,
        "--dtype",
        "bfloat16",
        "--max-length",
        20,
        "--model-dtype",
        "float32",
    )
    code, out, error = command(capsys, *asked, *kind, "--limit", 5, "--rows-per-shard", 2)
    assert (code, error) == (0, "")
    assert (
        "rows 5 (5 added, 0 asked for were there) embeddings 64 numbers each, bfloat16 labels golden" in out
    )
    assert f"python -m rewards.train_head {tmp_path / 's'} --output HEAD" in out
    for part in ("texts/s", "tokens/s", "on disk 0.0 MB", "peak memory"):
        assert part in out
    assert len([*(tmp_path / "s").glob("*.parquet")]) == 3
    code, out, _ = command(capsys, *asked, *kind)
    assert "rows 12 (7 added, 5 asked for were there)" in out
    assert "cut " in out
    assert "of 7 texts were longer than 20 tokens" in out
    store = open_store(tmp_path / "s")
    manifest = store.manifest
    assert (manifest.layers, manifest.pooling, manifest.max_tokens) == ((4, 2), "last", 20)
    assert manifest.encoder.name == str(tiny_dir)
    assert sorted(store.column("golden").tolist()) == [0.0] * 4 + [0.25] * 4 + [0.5] * 4
    code, out, error = command(capsys, *asked, "--pooling", "mean", "--model-dtype", "float32")
    assert code == 2
    assert "pooling 'last' in the store, 'mean' asked for" in error
    assert error.count("\n") == 1
    assert store.n_rows == open_store(tmp_path / "s").n_rows == 12


def test_ctrl_c_keeps_what_was_embedded(
    tmp_path: Path,
    samples: str,
    tiny_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = (samples, "--model", tiny_dir, "--output", tmp_path / "s", "--batch-tokens", 40)
    embed, calls = ModelEncoder.embed, 0

    def interrupted(self: ModelEncoder, rows: Sequence[TokenRow]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt  # a signal would be lost where a parent ignores it
        return embed(self, rows)

    monkeypatch.setattr(ModelEncoder, "embed", interrupted)
    code, _, error = command(capsys, *asked)
    assert code == 130
    assert "interrupted; what was finished is kept" in error
    kept = open_store(tmp_path / "s").n_rows
    assert 0 < kept < 12
    monkeypatch.undo()
    assert f"rows 12 ({12 - kept} added, {kept} asked for were there)" in command(capsys, *asked)[1]


def test_a_kill_costs_at_most_what_waits(tmp_path: Path, encoder: ModelEncoder) -> None:
    """A process killed with -9 three times; what comes out in the end is what an undisturbed one makes."""
    data = lines(
        tmp_path / "many.jsonl", *({"text": f"{SENTENCES[i % 4][: 5 + i % 50]} {i}"} for i in range(300))
    )
    rows, options = read_rows([data], Columns()), replace(FLOAT32, batch_tokens=200, shard_rows=20)
    embed_rows(rows, encoder, tmp_path / "whole", options)
    folder, log, n_killed = tmp_path / "killed", tmp_path / "killed" / "shards.jsonl", 0
    for wanted in (1, 4, 9):
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork beside threads; this child runs no other code of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                signal.alarm(30)
                embed_rows(rows, encoder, folder, options)
            finally:
                os._exit(1)  # never back into pytest
        until = time.monotonic() + 30
        while time.monotonic() < until and not (log.exists() and log.read_bytes().count(b"\n") >= wanted):
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        n_killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert open_store(folder).n_rows >= 20 * wanted
    assert n_killed > 0
    assert 0 < open_store(folder).n_rows < 300
    embed_rows(rows, encoder, folder, options)
    assert content(folder) == content(tmp_path / "whole")
    open_store(folder).verify()


def test_the_papers_arrays_become_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    vectors, rewards = rng.standard_normal((5, 3, 4)), rng.standard_normal((5, 3, 1))
    np.save(tmp_path / "e.npy", vectors.astype(np.float32))
    np.save(tmp_path / "r.npy", rewards)
    arrays = ("--paper-arrays", tmp_path / "e.npy", tmp_path / "r.npy", "--output", tmp_path / "s")
    made_by = ("--model", "google/gemma-2b", "--layer", 18, "--dtype", "float32")
    assert "say --layout nk" in command(capsys, *arrays, *made_by)[2]
    code, out, error = command(capsys, *arrays, *made_by, "--layout", "nk")
    assert (code, error) == (0, "")
    assert "rows 15 (15 added, 0 asked for were there)" in out
    store = open_store(tmp_path / "s")
    torch.testing.assert_close(store.embeddings(range(15)), torch.from_numpy(vectors.reshape(15, 4)).float())
    assert store.column("golden").tolist() == rewards.reshape(-1).tolist()
    assert (store.manifest.encoder.name, store.manifest.layers) == ("google/gemma-2b", (18,))
    assert "rows 15 (0 added, 15 asked" in command(capsys, *arrays, *made_by, "--layout", "nk")[1]
    code, _, error = command(capsys, *arrays, "--layout", "nk")
    assert code == 2
    assert "give --model and --layer" in error
    more = ("--label-column", "a", "--label-column", "b", "--layout", "nk")
    assert "have one reward" in command(capsys, *arrays, *made_by, *more)[2]


def test_what_to_embed_must_be_said(tmp_path: Path, samples: str, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ((), (samples, "--paper-arrays", "e.npy", "r.npy")):
        code, _, error = command(capsys, *given, "--output", tmp_path / "s")
        assert code == 2
        assert "give DATA, or --paper-arrays" in error
    assert not (tmp_path / "s").exists()
    code, _, error = command(capsys, samples, "--output", samples, "--limit", 1)
    assert code == 2
    assert "is a file: give a folder for the store" in error
