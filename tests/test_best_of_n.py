"""Best-of-N from the command line and from Python: candidates, winners, resuming, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForSequenceClassification

from decoder.best_of import Selection
from decoder.best_of_n import app
from decoder.cli import run
from decoder.contracts import UserError
from decoder.decoder import Decoder
from decoder.dropping import DropSchedule
from decoder.lm import identify
from decoder.replay import score_samples
from prompts.answers import extract, is_correct
from rewards import text_reward
from rewards.elhsr import Elhsr, ElhsrConfig, save_pretrained
from rewards.likelihood import MeanLogProbability
from tests.heads import save_arm, tiny_arm
from tests.test_probes import random_head
from tests.tiny import BOS, CONTEXT, EOS, PAD, VOCAB, tiny_llama, tiny_tokenizer

REPO = Path(__file__).resolve().parent.parent
TEXTS = ["The kettle sang", "Rain", "A good morning begins with bread", "She thought the film was bad"]
N, LENGTH = 5, 10
NUMBERS: dict[str, Any] = {"max_new_tokens": LENGTH, "temperature": 1.2, "seed": 1, "batch_size": 7}
Json = dict[str, Any]


class Made(NamedTuple):
    """A model with its tokenizer, probes, a steering reward and reward models by text, on disk."""

    model: Path
    probe: Path
    arm: Path
    text: Path
    short: Path  # a reward model that reads no more than eight tokens
    prompts: Path


@pytest.fixture(scope="module")
def made(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    with contextlib.redirect_stderr(io.StringIO()):
        lm = Decoder.from_pretrained(str(tiny_dir), dtype="float32").lm
        save_pretrained(random_head(ElhsrConfig((0, 2, 4), 32)), folder / "probe", lm.identity, {})
        save_arm(folder / "arm", tiny_llama(), tiny_tokenizer())
        for name, length in (("text", CONTEXT), ("short", 8)):
            _save_reward_model(folder / name, length)
    lines = [json.dumps({"id": f"q{i}", "prompt": text}) for i, text in enumerate(TEXTS)]
    (folder / "p.jsonl").write_text("\n".join(lines) + "\n")
    names = ("probe", "arm", "text", "short", "p.jsonl")
    return Made(tiny_dir, *(folder / name for name in names))


def _save_reward_model(folder: Path, length: int) -> None:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=length, initializer_range=0.4, num_labels=1,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


class Done(NamedTuple):
    code: int
    out: list[Json]
    error: str


def call(made: Made, *arguments: str | Path, n: int = N, prompts: str | Path | None = None) -> Done:
    """Run the command in this process, from its arguments to its exit."""
    given = ["--n", str(n), *command_numbers(made)]
    if prompts != "":
        given += ["--prompts", str(prompts or made.prompts)]
    given += map(str, arguments)  # last, so that they win
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), pytest.raises(SystemExit) as end:
        run(app, given)
    return Done(int(end.value.code or 0), read(out.getvalue()), error.getvalue())


def command_numbers(made: Made) -> list[str]:
    numbers = [part for k, v in NUMBERS.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    return ["--model", str(made.model), "--dtype", "float32", *numbers]


def read(text: str) -> list[Json]:
    return [json.loads(line) for line in text.split("\n") if line]  # texts may hold U+2028


def told(done: Done) -> str:
    """Return the summary of a run that went well."""
    assert done.code == 0, done.error
    return done.error


def refused(done: Done, *said: str) -> None:
    lines = [line for line in done.error.splitlines() if line.strip()]
    assert (done.code, len(lines)) == (2, 1), done.error
    assert lines[0].startswith("error: ")
    for words in said:
        assert words in lines[0]


def as_python(made: Made, **given: Any) -> list[Selection]:
    decoder = Decoder.from_pretrained(str(made.model), dtype="float32")
    return decoder.best_of_n(TEXTS, **{"n": N, **NUMBERS, **given})


# Files.


def test_candidates_and_winners(made: Made, tmp_path: Path) -> None:
    """Every candidate once, scored as its text read again is; the winner has the highest score."""
    done = call(made, "--scorer", made.probe, "--output", tmp_path / "g.jsonl")
    assert f"4 prompts, {4 * N} samples" in told(done)
    assert not done.out
    groups, winners = (read((tmp_path / f"g{end}.jsonl").read_text()) for end in ("", ".best"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.best.jsonl", "g.jsonl", "run.json"]
    decoder = Decoder.from_pretrained(str(made.model), dtype="float32")
    probe = Elhsr.from_pretrained(made.probe, decoder.lm)
    samples = [[record["token_ids"] for record in group["generations"]] for group in groups]
    prompts = [decoder.tokenizer(text).input_ids for text in TEXTS]
    for i, scores in score_samples(decoder.lm, [probe], prompts, samples):
        records = groups[i]["generations"]
        assert (groups[i]["id"], groups[i]["prompt"]) == (f"q{i}", {"text": TEXTS[i]})
        assert [record["sample_index"] for record in records] == list(range(N))
        streamed = [record["scores"]["probe"] for record in records]
        assert streamed == pytest.approx(scores[:, 0].tolist(), rel=1e-5, abs=1e-5)
        best = records[streamed.index(max(streamed))]
        assert winners[i] == {
            "id": f"q{i}",
            "prompt": {"text": TEXTS[i]},
            "best": {key: best[key] for key in ("text", "sample_index", "finish_reason")},
            "scores": streamed,
            "tokens": sum(len(record["token_ids"]) for record in records),
        }


def test_standard_output_and_python_say_the_same(made: Made, tmp_path: Path) -> None:
    """One choice, whether it goes to a file, to standard output or to Python, of steered samples too."""
    scorers = [str(made.probe), "logprob", "self-certainty", str(made.arm), f"hf:{made.text}"]
    given = [part for name in scorers for part in ("--scorer", name)]
    steering = ["--reward", str(made.arm), "--beta", "3", "--combine", "rank_sum", "--stop", "t"]
    told(call(made, *given, *steering, "--output", tmp_path / "g.jsonl"))
    printed = call(made, *given, *steering)
    assert printed.out == read((tmp_path / "g.best.jsonl").read_text())
    found = as_python(made, scorer=scorers, reward=str(made.arm), beta=3, combine="rank_sum", stop="t")
    assert [line["best"]["sample_index"] for line in printed.out] == [each.winner for each in found]
    assert [line["best"]["text"] for line in printed.out] == [each.best.text for each in found]
    for line, each in zip(printed.out, found, strict=True):
        assert line["scores"] == pytest.approx(each.scores)
    assert len({each.winner for each in found}) > 1


def test_steered_samples_are_those_of_generate(made: Made, tmp_path: Path) -> None:
    """--beta and --n together: the samples that the reward steers, with its own r of every token."""
    told(
        call(
            made,
            "--scorer",
            made.probe,
            "--reward",
            made.arm,
            "--beta",
            "3",
            "--output",
            tmp_path / "g.jsonl",
        )
    )
    decoder = Decoder.from_pretrained(str(made.model), dtype="float32")
    steered = decoder.generate(TEXTS, reward=str(made.arm), beta=3, num_return_sequences=N, **NUMBERS)
    plain = decoder.generate(TEXTS, num_return_sequences=N, **NUMBERS)
    groups = read((tmp_path / "g.jsonl").read_text())
    for group, expected in zip(groups, steered, strict=True):
        for record, sample in zip(group["generations"], expected.samples, strict=True):
            assert tuple(record["token_ids"]) == sample.token_ids
            assert record["token_rewards"]["arm"] == pytest.approx(sample.token_rewards["arm"], abs=2e-5)
    assert [each.text for each in plain] != [each.text for each in steered]


def test_a_reward_model_reads_prompt_and_text(made: Made, tmp_path: Path) -> None:
    told(call(made, "--scorer", f"hf:{made.text}", "--stop", "t", "--output", tmp_path / "g.jsonl"))
    reward = text_reward.load(str(made.text), dtype="float32", device="cpu")
    for text, group in zip(TEXTS, read((tmp_path / "g.jsonl").read_text()), strict=True):
        for record in group["generations"]:
            (expected,) = reward.score([text], [record["text"]])
            assert record["scores"][f"hf:{made.text}"] == pytest.approx(expected, abs=1e-4)


def test_questions_pass_the_chat_template(made: Made, tmp_path: Path) -> None:
    """A question is a user's message to the generator, and to the reward model before the sample."""
    lines = [json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) for i in range(2)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    given = ["--problems", str(tmp_path / "q.jsonl"), "--scorer", f"hf:{made.text}", "--max-new-tokens", "4"]
    told(call(made, *given, "--output", tmp_path / "g.jsonl", prompts=""))
    reward = text_reward.load(str(made.text), dtype="float32", device="cpu")
    for group in read((tmp_path / "g.jsonl").read_text()):
        for record in group["generations"]:
            (expected,) = reward.score([group["prompt"]["messages"]], [record["text"]])
            assert record["scores"][f"hf:{made.text}"] == pytest.approx(expected, abs=1e-4)
            assert record["correct"] in (0, 1)


def printing_to(made: Made, stream: io.TextIOWrapper) -> Done:
    """Run the command with this standard output."""
    error = io.StringIO()
    with (
        pytest.raises(SystemExit) as end,
        contextlib.redirect_stderr(error),
        contextlib.redirect_stdout(stream),
    ):
        run(app, ["--n", "3", "--prompts", str(made.prompts), *command_numbers(made)])
    return Done(int(end.value.code or 0), [], error.getvalue())


def test_an_output_that_takes_no_unicode(made: Made) -> None:
    """Standard output in ASCII has the same JSON."""
    plain, raw = call(made, n=3).out, io.BytesIO()
    assert not json.dumps(plain, ensure_ascii=False).isascii()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    told(printing_to(made, stream))
    assert read(raw.getvalue().decode("ascii")) == plain


def test_an_output_that_is_full(made: Made) -> None:
    with pytest.raises(OSError, match="No space"), Path("/dev/full").open("w", encoding="utf-8") as full:
        done = printing_to(made, full)  # closing it fails again, after the command has ended
    refused(done, "standard output", "No space left", "--output")


# Rules.


def ranks(row: Sequence[float]) -> list[int]:
    """Return ranks from 1, the best first; of a tie the earlier is better."""
    return [1 + sum(y > x or (y == x and j < i) for j, y in enumerate(row)) for i, x in enumerate(row)]


def mean_ranks(row: Sequence[float]) -> list[float]:
    return [1 + sum(y > x for y in row) + (row.count(x) - 1) / 2 for x in row]  # type: ignore[attr-defined]


def by_hand(rule: str, table: list[list[float]], weights: Sequence[float]) -> list[float]:
    """Return the combined scores of one prompt's samples from (scorers, samples)."""
    samples = range(len(table[0]))
    if rule == "ranking":
        return [-max(ranks(row)[i] for row in table) for i in samples]
    parts = []
    for row in table:
        low, high, mean, spread = min(row), max(row), float(np.mean(row)), float(np.std(row))
        parts.append(
            {
                "rank_sum": [-rank for rank in mean_ranks(row)],
                "scaling": [(x - low) / (high - low) if high > low else 1.0 for x in row],
                "zscore": [(x - mean) / spread if high > low else 0.0 for x in row],
            }[rule]
        )
    return [sum(w * part[i] for w, part in zip(weights, parts, strict=True)) / sum(weights) for i in samples]


def test_every_rule_over_several_scorers(made: Made, tmp_path: Path) -> None:
    """Each rule by hand from the candidates of one file, which another rule or other weights leave alone."""
    names = [str(made.probe), "logprob", str(made.arm), f"hf:{made.text}", "majority"]
    columns = ["probe", "logprob", "arm", f"hf:{made.text}"]
    kept = None
    chosen = set()
    for rule, weights in [
        ("ranking", None), ("rank_sum", None), ("scaling", None), ("zscore", None),
        ("rank_sum", (1, 0, 0, 0, 0)), ("scaling", (1, 2, 3, 4, 5)), ("zscore", (0.5, 0, 2, 1, 1)),
    ]:  # fmt: skip
        spelt = [f"{name}:{w}" for name, w in zip(names, weights, strict=True)] if weights else names
        given = [part for name in spelt for part in ("--scorer", name)]
        told(call(made, *given, "--combine", rule, "--output", tmp_path / "g.jsonl"))
        kept = kept or (tmp_path / "g.jsonl").read_bytes()
        assert (tmp_path / "g.jsonl").read_bytes() == kept
        winners = read((tmp_path / "g.best.jsonl").read_text())
        for group, line in zip(read(kept.decode()), winners, strict=True):
            records = group["generations"]
            table = [[record["scores"][name] for record in records] for name in columns]
            answers = [extract(record["text"]) for record in records]
            table.append([0.0 if a is None else answers.count(a) / N for a in answers])
            expected = by_hand(rule, table, weights or [1.0] * 5)
            assert line["scores"] == pytest.approx(expected, abs=1e-9)
            assert line["best"]["sample_index"] == max(range(N), key=lambda i: (line["scores"][i], -i))
        chosen.add(tuple(line["best"]["sample_index"] for line in winners))
    assert len(chosen) > 2


# Answers.


def problems(path: Path, answers: Sequence[str]) -> Path:
    lines = [json.dumps({"prompt": t, "answer": a}) for t, a in zip(TEXTS, answers, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_majority_vote_and_oracle(made: Made, tmp_path: Path) -> None:
    """On problems whose answer some sample gives: what is right, what most say, and what votes say."""
    many = 24
    drawn = call(made, "--output", tmp_path / "g.jsonl", n=many)
    told(drawn)
    groups = [group["generations"] for group in read((tmp_path / "g.jsonl").read_text())]
    said = [[extract(record["text"]) for record in records] for records in groups]
    asked = problems(tmp_path / "a.jsonl", [next((a for a in each if a), "7")[:40] for each in said])
    answers = [json.loads(line)["answer"] for line in asked.read_text().splitlines()]

    def lines(*arguments: str) -> tuple[list[Json], str]:
        done = call(made, "--problems", asked, *arguments, n=many, prompts="")
        return done.out, told(done)

    oracle, summary = lines("--scorer", "oracle")
    right = [[int(bool(is_correct(r["text"], a))) for r in rs] for rs, a in zip(groups, answers, strict=True)]
    assert any(map(any, right))
    assert not all(map(all, right))
    for line, flags in zip(oracle, right, strict=True):
        assert line["candidates_correct"] == flags == line["scores"]
        assert line["best"]["sample_index"] == flags.index(max(flags))
        assert line["correct"] == max(flags)
    single, best = np.mean([np.mean(flags) for flags in right]), np.mean([max(flags) for flags in right])
    assert f"right: chosen {best:.3f}, a single sample {single:.3f}, at best {best:.3f}" in summary

    for line, each in zip(lines("--scorer", "majority")[0], said, strict=True):
        counts = [0 if a is None else each.count(a) for a in each]
        assert line["scores"] == pytest.approx([count / many for count in counts])
        assert line["best"]["sample_index"] == counts.index(max(counts))

    voted = lines("--scorer", "logprob", "--combine", "vote")[0]
    for line, each, records in zip(voted, said, groups, strict=True):
        found = np.array([record["scores"]["logprob"] for record in records])
        votes = np.exp(2 * (found - found.mean()) / found.std()).tolist()
        shares = [
            0 if a is None else sum(v for v, b in zip(votes, each, strict=True) if b == a) / sum(votes)
            for a in each
        ]
        assert line["scores"] == pytest.approx(shares, abs=2e-6)
        best_share = max(shares)
        among = [i for i, share in enumerate(shares) if share == pytest.approx(best_share)]
        assert line["best"]["sample_index"] == max(among, key=lambda i: votes[i])


def test_ties_go_to_the_lowest(made: Made) -> None:
    """Without a single answer, the majority ties at 0 and the first sample stands."""
    done = call(made, "--scorer", "majority", "--max-new-tokens", "1", "--stop", "0123456789")
    told(done)
    for line in done.out:
        assert (line["scores"], line["best"]["sample_index"]) == ([0.0] * N, 0)


# Sizes.


def test_sixty_four_samples_of_one_prompt(made: Made) -> None:
    """In one batch or in many, dropped by halves or not: the same samples, and fewer tokens."""
    decoder = Decoder.from_pretrained(str(made.model), dtype="float32")
    given = {"n": 64, **NUMBERS, "scorer": str(made.probe)}
    (one,) = decoder.best_of_n(TEXTS[0], **{**given, "batch_size": 64})
    (many,) = decoder.best_of_n(TEXTS[0], **given)
    assert [each.sample for each in one.samples] == list(range(64))
    assert [each.token_ids for each in one.samples] == [each.token_ids for each in many.samples]
    assert one.winner == many.winner
    assert one.scores == pytest.approx(many.scores, rel=1e-5, abs=1e-5)
    (cut,) = decoder.best_of_n(TEXTS[0], **{**given, "batch_size": 64, "drop": DropSchedule((2, 4, 6, 8))})
    lengths = sorted(len(each.token_ids) for each in cut.samples)
    assert lengths == [2] * 32 + [4] * 16 + [6] * 8 + [8] * 4 + [LENGTH] * 4
    for dropped, whole in zip(cut.samples, one.samples, strict=True):
        assert dropped.token_ids == whole.token_ids[: len(dropped.token_ids)]


def test_options_may_be_spelt_with_underscores(made: Made) -> None:
    """Those that take several values in a row, too."""
    either = [call(made, f"--drop{sign}schedule", "2", "4") for sign in "-_"]
    assert told(either[0]) == told(either[1])
    assert either[0].out == either[1].out
    assert [line["tokens"] for line in either[0].out] == [5 * 2 + 3 * 2 + 2 * (LENGTH - 4)] * 4


def test_one_sample_is_the_best_of_one(made: Made) -> None:
    for rule in ("ranking", "rank_sum", "scaling", "zscore"):
        done = call(made, "--scorer", made.probe, "--scorer", "logprob", "--combine", rule, n=1)
        assert [line["best"]["sample_index"] for line in (told(done), done.out)[1]] == [0] * 4


def test_objects_as_scorers(made: Made) -> None:
    """Probes and rewards in Python, two of one class among them; each has a name of its own."""
    decoder = Decoder.from_pretrained(str(made.model), dtype="float32")
    arms = [tiny_arm(decoder.lm, seed=seed) for seed in (0, 1)]
    found = decoder.best_of_n(
        TEXTS[:2], scorer=[*arms, MeanLogProbability()], n=3, combine="scaling", **NUMBERS
    )
    assert set(found[0].best.scores) == {"TapArm", "TapArm#2", "MeanLogProbability"}
    assert found[0].best.scores["TapArm"] != found[0].best.scores["TapArm#2"]
    with pytest.raises(UserError, match="'TapArm' is given twice"):
        decoder.best_of_n(TEXTS[:2], scorer=[arms[0], arms[0]], n=3)


# Resuming.


def everything(made: Made, *more: str) -> list[str]:
    return [
        "--scorer", str(made.probe), "--scorer", "logprob", "--scorer", f"hf:{made.text}",
        "--scorer", "majority", "--reward", f"{made.arm}:2", "--stop", "t", *more, "--output",
    ]  # fmt: skip


def test_a_killed_run_ends_the_same(made: Made, tmp_path: Path) -> None:
    """Killed with -9 again and again, then left alone: the bytes of a run that nobody disturbed."""
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"{text} {i}\n" for i in range(10) for text in TEXTS))
    given = [*everything(made), str(tmp_path / "cut" / "g.jsonl"), "--n", str(N), "--prompts", str(prompts)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    told(call(made, *everything(made), whole / "g.jsonl", prompts=prompts))
    size = (whole / "g.jsonl").stat().st_size
    command = [sys.executable, "-m", "decoder.best_of_n", *given, *command_numbers(made)]
    for share in (0.2, 0.6):
        process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and written(cut) < share * size:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert 0 < written(cut) < size
        assert not (cut / "g.best.jsonl").exists()
    subprocess.run(command, cwd=REPO, check=True, capture_output=True)
    for name in ("g.jsonl", "g.best.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    for line in read((cut / "g.jsonl").read_text()):
        assert [record["sample_index"] for record in line["generations"]] == list(range(N))
    assert sorted(path.name for path in cut.iterdir()) == ["g.best.jsonl", "g.jsonl", "run.json"]


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("g.jsonl*"))


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_a_torn_file_is_completed(made: Made, tmp_path: Path, keep: float, drops: bool) -> None:
    """With early dropping too, where a prompt's samples have to meet again to drop the same ones."""
    dropping = ["--drop-schedule", "2", "5", "--drop-margin", "0.8", "--drop-first", "3"]
    given = everything(made, *dropping * drops)
    told(call(made, *given, tmp_path / "whole" / "g.jsonl"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    raw = (tmp_path / "whole" / "g.jsonl").read_bytes()
    (tmp_path / "cut" / "g.jsonl").write_bytes(raw[: int(keep * len(raw))])
    (tmp_path / "cut" / "g.best.jsonl").unlink()
    told(call(made, *given, tmp_path / "cut" / "g.jsonl"))
    for name in ("g.jsonl", "g.best.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    reasons = [r["finish_reason"] for line in read(raw.decode()) for r in line["generations"]]
    assert set(reasons) >= ({"dropped", "stop"} if drops else {"stop", "length"})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("--stop", "e"), ('stop: "t" in the file, "e" now',)),
        (("--scorer", "logprob"), ("scorers.logprob",)),
        (("--drop-schedule", "4"), ("drop.at: [] in the file, [4] now",)),
        (("--beta", "2", "--reward", "ARM"), ("rewards",)),
    ],
)
def test_other_settings_are_not_mixed_in(
    made: Made, tmp_path: Path, other: tuple[str, ...], said: tuple[str, ...]
) -> None:
    output = ["--output", str(tmp_path / "g.jsonl")]
    told(call(made, "--scorer", made.probe, "--stop", "t", *output))
    before = (tmp_path / "g.jsonl").read_bytes()
    given = [str(made.arm) if part == "ARM" else part for part in other]
    stop = [] if "--stop" in other else ["--stop", "t"]
    refused(call(made, "--scorer", made.probe, *stop, *given, *output), "other settings", *said)
    assert (tmp_path / "g.jsonl").read_bytes() == before


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--n", "0"), ("n is 0", "at least 1")),
        (("--n", "-3"), ("n is -3",)),
        (("--scorer", "logprop"), ("unknown scorer 'logprop'", "did you mean logprob?")),
        (("--scorer", "self_certainty"), ("did you mean self-certainty?",)),
        (("--scorer", "positve"), ("did you mean positive?", "logprob, self-certainty, majority, oracle")),
        (("--scorer", "/no/such/folder"), ("unknown scorer '/no/such/folder'",)),
        (("--scorer", ""), ("unknown scorer ''",)),
        (("--scorer", "logprob", "--scorer", "logprob:2"), ("'logprob' is given twice",)),
        (("--scorer", "logprob:much"), ("'much' is no weight", "NAME:WEIGHT")),
        (("--scorer", "logprob:-1"), ("'-1' is no weight",)),
        (("--scorer", "logprob:nan"), ("'nan' is no weight",)),
        (("--scorer", "logprob:2", "--scorer", "self-certainty"), ("no use for weights [2.0, 1.0]",)),
        (
            ("--scorer", "logprob:0", "--scorer", "majority:0", "--combine", "zscore"),
            ("weights [0.0, 0.0]", "not all of them 0"),
        ),
        (("--combine", "best"), ("'best'", "ranking, rank_sum, scaling, zscore, vote")),
        (
            ("--scorer", "logprob:0", "--scorer", "majority:0", "--combine", "vote"),
            ("weights [0.0, 0.0]", "not all of them 0"),
        ),
        (("--scorer", "oracle"), ("prompt 'q0' has no answer",)),
        (("--scorer", "oracle:2", "--scorer", "logprob", "--combine", "scaling"), ("'q0' has no answer",)),
        (("--beta", "2"), ("beta is 2.0", "no --reward")),
        (("--beta", "nan", "--reward", "positive"), ("nan", "finite")),
        (("--style", "nonsense"), ("style is 'nonsense'", "chat or plain")),
        (("--style", "chat"), ("no --problems",)),
        (("--drop-schedule", "8", "4"), ("[8, 4]", "ascending")),
        (("--drop-schedule", "0"), ("[0]",)),
        (("--drop-schedule", "4", "--batch-size", "4"), ("all 5 samples", "batch_size is 4: raise it to 5")),
        (("--drop-schedule", "4", "--scorer", "majority"), ("'majority' has none",)),
        (("--drop-margin", "1", "--scorer", "hf:some/model"), ("'hf:some/model' has none",)),
        (("--drop-margin", "nan"), ("margin is nan",)),
        (("--drop-keep", "1.5"), ("keep is 1.5",)),
        (("--drop-first", "0"), ("first is 0",)),
        (("--temperature", "0"), ("temperature is 0.0",)),
    ],
)
def test_refused_before_a_model_is_loaded(
    made: Made, arguments: tuple[str, ...], said: tuple[str, ...]
) -> None:
    """One line, exit 2; the model named does not exist, and nobody gets to see that."""
    absent = made._replace(model=Path("/no/such/model"))
    refused(call(absent, *arguments), *said)


def test_problems_without_answers(made: Made, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?"}\n')
    refused(call(made, "--problems", tmp_path / "a.jsonl", prompts=""), "a.jsonl, line 2", "no answer")
    refused(call(made, "--problems", tmp_path / "a.jsonl"), "choose one")
    refused(call(made, "--problems", tmp_path / "none.jsonl", prompts=""), "none.jsonl", "No such file")


def test_what_ends_no_text_is_refused(made: Made) -> None:
    refused(call(made, "--stop", "é"), "no token has 'é'")


def test_a_probe_does_not_steer(made: Made) -> None:
    """It scores whole samples; that is said instead of a traceback, for either sign."""
    for beta in ("1", "-1"):
        refused(call(made, "--reward", made.probe, "--beta", beta), "cannot steer", "--scorer")


@pytest.mark.parametrize(
    ("sizes", "said"),
    [({"hidden": 16}, "hidden_size 16"), ({"layers": 3}, "num_layers 3"), ({"vocab": 310}, "vocab_size 310")],
)
def test_probes_of_other_models(made: Made, tmp_path: Path, sizes: dict[str, int], said: str) -> None:
    hidden = sizes.get("hidden", 32)
    other = identify("another", tiny_llama(**sizes), tiny_tokenizer())
    save_pretrained(random_head(ElhsrConfig((1, 3), hidden)), tmp_path / "p", other, {})
    refused(call(made, "--scorer", tmp_path / "p"), "'another'", said, "does not fit")


def _nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["weight"][0, 3, 1] = math.nan
    save_file(tensors, folder / "model.safetensors")


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return change


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_nan, ("'weight' holds NaN",)),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), ("cannot be read",)),
        (lambda folder: (folder / "config.json").write_text("{"), ("not valid JSON",)),
        (_config(layers=[1]), ("disagree",)),
        (_config(layers=[]), ("names no layers",)),
        (_config(layers=None), ("lacks or garbles 'layers'",)),
        (_config(layers=[0, 2, 9]), ("layer 9 does not exist",)),
        (_config(hidden_size="many"), ("garbles",)),
        (_config(norm="max"), ("unknown norm 'max'",)),
        (_config(features="logits"), ("disagree",)),
        (_config(base_model=None), ("does not name its base_model",)),
        (_config(kind="elhsr2"), ("unknown kind 'elhsr2'",)),
        (_config(format_version=9), ("format_version 9",)),
    ],
)
def test_spoilt_probes(
    made: Made, tmp_path: Path, spoil: Callable[[Path], None], said: tuple[str, ...]
) -> None:
    shutil.copytree(made.probe, tmp_path / "p")
    spoil(tmp_path / "p")
    refused(call(made, "--scorer", tmp_path / "p"), *said)


def test_a_logits_probe_reads_the_last_layer(made: Made, tmp_path: Path) -> None:
    lm = Decoder.from_pretrained(str(made.model), dtype="float32").lm
    head = random_head(ElhsrConfig((2,), 32, norm="none", features="logits"))
    save_pretrained(head, tmp_path / "p", lm.identity, {})
    refused(call(made, "--scorer", tmp_path / "p"), "reads the last layer alone, 4, not [2]")


def test_scores_that_never_come_out(made: Made, tmp_path: Path) -> None:
    """A reward model that cannot read the texts of some prompts: the others have their winners, and all
    candidates are kept."""
    given = ["--scorer", f"hf:{made.short}", "--max-new-tokens", "3"]
    # Rain and two tokens fit into eight; the others are longer by themselves.
    done = call(made, *given, "--output", tmp_path / "g.jsonl")
    refused(done, "prompt 'q0'", f"all {N} scores are NaN", "3 of 4 prompts have no winner")
    assert [line["id"] for line in read((tmp_path / "g.best.jsonl").read_text())] == ["q1"]
    groups = read((tmp_path / "g.jsonl").read_text())
    assert [len(group["generations"]) for group in groups] == [N] * 4
    assert [r["scores"] for r in groups[0]["generations"]] == [{f"hf:{made.short}": None}] * N
    done = call(made, *given)
    assert [line["id"] for line in done.out] == ["q1"]
    refused(done, "3 of 4 prompts")
    found = call(made, *given, "--scorer", "logprob")
    refused(found, "prompt 'q0'")  # what one scorer cannot score does not win by another


def test_winners_that_cannot_be_written(made: Made, tmp_path: Path) -> None:
    (tmp_path / "g.best.jsonl").mkdir()
    refused(
        call(made, "--output", tmp_path / "g.jsonl"), "cannot write", "g.best.jsonl", "candidates are kept"
    )
    assert len(read((tmp_path / "g.jsonl").read_text())) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.best.jsonl", "g.jsonl", "run.json"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"n": 0}, "n is 0"),
        ({"scorer": []}, "no scorer given"),
        ({"scorer": "logprop"}, "did you mean logprob"),
        ({"combine": "best"}, "no rule is called 'best'"),
        ({"scorer": ["logprob:2", "majority"]}, "no use for weights"),
        ({"scorer": "oracle"}, "prompt '0' has no answer"),
        ({"drop": DropSchedule((2,)), "batch_size": 2}, "batch_size is 2: raise it to 5"),
        ({"beta": 2.0}, "there is no reward"),
    ],
)
def test_python_refuses_the_same(made: Made, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        as_python(made, **given)


def test_the_command_itself(made: Made, tmp_path: Path) -> None:
    """As a user runs it: one line of error and exit 2, from the real process."""
    shutil.copytree(made.probe, tmp_path / "p")
    _nan(tmp_path / "p")
    command = [sys.executable, "-m", "decoder.best_of_n", "Hello", "--scorer", str(tmp_path / "p")]
    done = subprocess.run(
        [*command, *command_numbers(made)],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    refused(Done(done.returncode, [], done.stderr), "holds NaN")
    assert not done.stdout
