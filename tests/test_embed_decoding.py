"""Embeddings of a decode are those of a second pass over its texts, and the decode is not changed by them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AddedToken

from decoder.batching import Batch, plan_batches
from decoder.cli import run
from decoder.config import DecodeConfig, make_config
from decoder.contracts import Completion, Drawn, ProbeSession, Reading
from decoder.decoder import Decoder
from decoder.dropping import Dropping, DropSchedule
from decoder.generate import app as generate
from decoder.models import LoadedModel
from decoder.records import to_record
from prompts.reading import from_arguments
from rewards.embed import app as embed
from rewards.embed_decoding import DecodeSink, PooledRows
from rewards.embed_rows import Columns, read_rows
from rewards.embed_run import StoreOptions, embed_rows
from rewards.embed_tokens import TextForm
from rewards.encoder import EncoderOptions, encoder_of
from rewards.likelihood import MeanLogProbability
from rewards.store import Store, open_store
from rewards.store_writer import open_writer
from tests.heads import as_lm, save_arm
from tests.stores import refusal
from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer

pytest.importorskip("pyarrow")

N, SIZE = 3, 5  # samples a prompt, rows a batch: prompts are split between batches
PROMPTS = from_arguments(["The kettle", "A good morning begins with", "x", "The train was late"])


class Run:
    """Three samples of each of four ragged prompts; many end on the way, some at once."""

    def __init__(self, options: EncoderOptions, *, stop: str = "", chat: bool = False) -> None:
        tokenizer, ends = tiny_tokenizer(), [*range(3, 300, 9)]
        pieces = tokenizer.convert_ids_to_tokens(ends)
        tokenizer.add_tokens([AddedToken(piece, special=True, normalized=False) for piece in pieces])
        assert len(tokenizer) == 300
        self.decoder = Decoder(LoadedModel(as_lm(tiny_llama(), tokenizer), tokenizer))
        self.decoder.backend.endings.stop_ids = torch.tensor([1, *ends])
        numbers = {
            "max_new_tokens": 12,
            "num_return_sequences": N,
            "seed": 4,
            "stop": stop,
            "temperature": 1.5,
        }
        self.config: DecodeConfig = make_config(numbers)
        self.token_ids = self.decoder.tokenise(PROMPTS, self.config, chat=chat)
        self.encoder = encoder_of(LoadedModel(self.decoder.lm, tokenizer), options)

    def batches(self) -> list[Batch]:
        return [*plan_batches([*map(len, self.token_ids)], N, SIZE)]

    def draw(self, batch: Batch) -> Any:
        return partial(self.decoder.complete, batch, self.token_ids, [], self.config)

    def into(self, folder: Path, n_batches: int = 99) -> tuple[list[Completion], DecodeSink]:
        with open_writer(folder, self.encoder.manifest("float32", ("n",))) as writer:
            ends = self.decoder.backend.endings.ids(self.config.stop)
            sink = DecodeSink(self.encoder, writer, ends, labels=lambda _, done: {"n": len(done.text)})
            done = [
                each
                for batch in [*sink.lacking(self.batches(), PROMPTS)][:n_batches]
                for each in sink.complete(batch, PROMPTS, self.token_ids, self.draw(batch))
            ]
        return done, sink

    def file(self, path: Path, done: list[Completion]) -> str:
        """Write the samples as decoder.generate does, with a label."""
        records = [
            {
                "id": prompt.id,
                "prompt": prompt.record(),
                "generations": [
                    to_record(each, 4) | {"n": len(each.text)} for each in done if each.prompt == i
                ],
            }
            for i, prompt in enumerate(PROMPTS)
        ]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)


def in_order(store: Store) -> tuple[list[Any], Tensor]:
    """Return id, sample, text and labels of every row, and the embeddings, by id and sample."""
    labels = (store.column(name).tolist() for name in store.manifest.labels)
    columns = store.prompt_ids(), store.sample_indices().tolist(), store.texts(), *labels
    keys = [*zip(*columns, strict=True)]
    order = sorted(range(len(keys)), key=lambda i: keys[i][:2])
    return [keys[i] for i in order], store.embeddings(order)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("pooled", ["all", "response"])
@pytest.mark.parametrize("template", ["none", "chat"])
def test_a_decode_gives_the_embeddings_of_a_second_pass(
    tmp_path: Path, pooling: Any, pooled: Any, template: Any
) -> None:
    run = Run(EncoderOptions((1, 4), pooling, TextForm(pooled, template)), chat=template == "chat")
    done, sink = run.into(tmp_path / "decoded")
    assert len(done) == 12
    assert {each.finish_reason for each in done} == {"stop", "length"}
    assert min(len(each.token_ids) for each in done) == 1, "a sample without a token of text is among them"
    assert len(sink.read_again) < 4, "most come from the decode itself"
    rows = read_rows([run.file(tmp_path / "g.jsonl", done)], Columns(labels=("n",)))
    options = StoreOptions("float32", ("n",))
    embed_rows(rows, run.encoder, tmp_path / "again", options)
    (decoded, first), (again, second) = (
        in_order(open_store(tmp_path / name)) for name in ("decoded", "again")
    )
    assert decoded == again
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)
    assert embed_rows(rows, run.encoder, tmp_path / "decoded", options).there == 12


def test_the_samples_are_those_of_a_plain_decode(tmp_path: Path) -> None:
    run = Run(EncoderOptions())
    plain = [each for batch in run.batches() for each in run.draw(batch)()]
    assert run.into(tmp_path / "s")[0] == plain
    probes = {"logprob": MeanLogProbability()}
    batch = run.batches()[0]
    with open_writer(tmp_path / "t", run.encoder.manifest("float16")) as writer:
        sink = DecodeSink(run.encoder, writer, run.decoder.backend.endings.stop_ids)

        def draw(*, probes: Mapping[str, Any], beside: Mapping[str, Any] = probes) -> Any:
            return run.draw(batch)(probes={**beside, **probes})

        scored = [*sink.complete(batch, PROMPTS, run.token_ids, draw)]
    for ours, plain_one in zip(scored, run.draw(batch)(probes=probes), strict=True):
        assert replace(ours, scores={}) == replace(plain_one, scores={})
        assert ours.scores == pytest.approx(plain_one.scores)


def test_a_run_in_parts_is_one_run(tmp_path: Path) -> None:
    """Also one that ended in the middle of a batch: it keeps the samples that had ended."""
    run = Run(EncoderOptions((2,), "mean"))
    run.into(tmp_path / "whole")
    run.into(tmp_path / "parts", n_batches=1)
    assert open_store(tmp_path / "parts").n_rows == SIZE
    batch = run.batches()[1]
    with open_writer(tmp_path / "parts", run.encoder.manifest("float32", ("n",))) as writer:
        sink = DecodeSink(
            run.encoder, writer, run.decoder.backend.endings.stop_ids, lambda _, done: {"n": len(done.text)}
        )
        drawn = sink.complete(batch, PROMPTS, run.token_ids, run.draw(batch))
        next(drawn), next(drawn)
        drawn.close()
    assert open_store(tmp_path / "parts").n_rows == SIZE + 2
    rest, _ = run.into(tmp_path / "parts")
    assert len(rest) == 12 - SIZE, "a batch begun is drawn whole"
    whole, parts = (in_order(open_store(tmp_path / name)) for name in ("whole", "parts"))
    assert whole[0] == parts[0]
    assert torch.equal(whole[1], parts[1])


def test_a_text_cut_inside_its_last_token_is_read_again(tmp_path: Path) -> None:
    """The character that ends a text may share a token with letters of it, which a second pass reads."""
    run = Run(EncoderOptions((4,), "last"), stop="e")
    done, sink = run.into(tmp_path / "s")
    cut = [each for each in done if each.finish_reason == "stop" and not plain_end(run, each)]
    assert cut, "some text ends inside a token"
    assert {each.token_ids for each in cut} <= {each.token_ids for each in sink.read_again}
    store = open_store(tmp_path / "s")
    rows = read_rows([run.file(tmp_path / "g.jsonl", done)], Columns(labels=("n",)))
    embed_rows(rows, run.encoder, tmp_path / "again", StoreOptions("float32", ("n",)))
    torch.testing.assert_close(
        in_order(store)[1], in_order(open_store(tmp_path / "again"))[1], atol=1e-4, rtol=0
    )


def plain_end(run: Run, done: Completion) -> bool:
    """Return whether the last token says nothing of the text."""
    return bool(run.decoder.tokenizer.decode(done.token_ids[:-1], skip_special_tokens=True) == done.text)


def test_samples_that_were_given_up_are_not_kept(tmp_path: Path) -> None:
    run = Run(EncoderOptions())
    batch = next(plan_batches([*map(len, run.token_ids)], N, 12))
    numbers = [batch.prompts[position] for position, _ in batch.rows]
    probe = {"logprob": MeanLogProbability()}
    with open_writer(tmp_path / "s", run.encoder.manifest("float32")) as writer:
        sink = DecodeSink(run.encoder, writer, run.decoder.backend.endings.stop_ids)

        def draw(*, probes: Mapping[str, Any]) -> Any:
            referee = Dropping(DropSchedule(at=(2, 4)), numbers)
            return run.draw(batch)(probes={**probe, **probes}, referee=referee)

        done = [*sink.complete(batch, PROMPTS, run.token_ids, draw)]
    kept = {(PROMPTS[each.prompt].id, each.sample) for each in done if each.finish_reason != "dropped"}
    store = open_store(tmp_path / "s")
    assert 0 < len(kept) < 12
    assert {*zip(store.prompt_ids(), store.sample_indices().tolist(), strict=True)} == kept


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_rows_fork_leave_and_are_remembered(pooling: Any) -> None:
    """Against lists: a session by the letter of its contract, with padding, forks and rows that leave."""
    run = Run(EncoderOptions((1, 3), pooling, TextForm("response")))
    generator = torch.Generator().manual_seed(0)

    def taps(n_rows: int, length: int) -> dict[int, Tensor]:
        return {layer: torch.randn(n_rows, length, 32, generator=generator) for layer in (1, 3)}

    ends = torch.tensor([7])
    prompt = Reading(torch.zeros(2, 9), taps(2, 3), torch.tensor([[0, 1, 1], [1, 1, 1]]).bool())
    session = PooledRows(run.encoder, ends, prompt)
    assert isinstance(session, ProbeSession)
    session.select(torch.tensor([0, 0, 1, 1]))
    before = [torch.cat([prompt.taps[layer][row, -1] for layer in (1, 3)]) for row in (0, 0, 1, 1)]
    seen: list[list[Tensor]] = [[], [], [], []]
    live = [0, 1, 2, 3]
    for ids, mask, keep in (
        ([[1, 2], [7, 0], [3, 4], [5, 7]], [[1, 1], [1, 0], [0, 1], [1, 1]], [3, 0, 2]),
        ([[7], [8], [9]], [[1], [1], [0]], [1]),
        ([[4]], [[1]], [0]),
    ):
        drawn = Drawn(torch.tensor(ids), torch.tensor(mask).bool(), taps(len(ids), len(ids[0])), None)
        session.update(drawn)
        for place, row in enumerate(live):
            for t in range(len(ids[0])):
                if mask[place][t] and ids[place][t] != 7:
                    seen[row].append(torch.cat([drawn.taps[layer][place, t] for layer in (1, 3)]))
        assert session.score().shape == (len(live),)
        assert session.score().isnan().all()
        session.select(torch.tensor(keep))
        live = [live[place] for place in keep]
    pooled = [
        (torch.stack(states).mean(0) if pooling == "mean" else states[-1]) if states else start
        for states, start in zip(seen, before, strict=True)
    ]
    assert [len(states) for states in seen] == [4, 0, 1, 1]
    torch.testing.assert_close(session.vectors(), torch.stack(pooled))


def test_prompts_that_are_read_otherwise_are_refused(tmp_path: Path) -> None:
    run = Run(EncoderOptions((4,), "last", TextForm("all", "chat")), chat=False)
    assert "prompt '2' is not decoded as the encoder reads it" in refusal(lambda: run.into(tmp_path / "s"))


def test_labels_must_be_those_of_the_store(tmp_path: Path) -> None:
    run, batch = Run(EncoderOptions()), 0
    with open_writer(tmp_path / "s", run.encoder.manifest("float32", ("golden",))) as writer:
        sink = DecodeSink(run.encoder, writer, run.decoder.backend.endings.stop_ids)
        first = run.batches()[batch]
        said = refusal(lambda: [*sink.complete(first, PROMPTS, run.token_ids, run.draw(first))])
    assert said == "labels [] given, the store has ['golden']: give exactly those"


def command(app: Any, *arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(app, [str(argument) for argument in arguments])
    assert ended.value.code == 0


def test_generate_embeds_as_it_draws(tmp_path: Path) -> None:
    """--embed gives the rows that rewards.embed makes of the output; a second run adds none."""
    save_tiny(tmp_path / "tiny")
    arm = save_arm(tmp_path / "arm", tiny_llama(), tiny_tokenizer())
    (tmp_path / "prompts.txt").write_text("The kettle\nA good morning begins with\nx\n")
    model = ["--model", tmp_path / "tiny", "--device", "cpu"]
    drawing = ["--prompts", tmp_path / "prompts.txt", "--beta", "0", "--reward", arm, "-n", "2"]
    drawing += ["--max-new-tokens", "6", "--output", tmp_path / "g.jsonl", "--embed", tmp_path / "drawn"]
    for _ in range(2):
        command(generate, *model, "--dtype", "float32", *drawing)
    command(embed, tmp_path / "g.jsonl", *model, "--model-dtype", "float32", "--output", tmp_path / "read")
    drawn, read = open_store(tmp_path / "drawn"), open_store(tmp_path / "read")
    assert drawn.n_rows == read.n_rows == 6
    assert drawn.manifest.encoder == read.manifest.encoder
    (keys, embeddings), (expected_keys, expected) = in_order(drawn), in_order(read)
    assert keys == expected_keys
    torch.testing.assert_close(embeddings, expected, atol=2e-3, rtol=2e-3)  # both rounded to float16
