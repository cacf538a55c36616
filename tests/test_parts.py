"""The small parts around the loop: rewards and betas, batches, records, how commands end."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder import cli
from decoder.batching import WINDOW, plan_batches
from decoder.config import DecodeConfig
from decoder.contracts import Completion, UserError
from decoder.decoder import Decoder
from decoder.models import LoadedModel
from decoder.records import about, fingerprint, git_commit, to_record
from decoder.sampling import SamplingConfig
from decoder.tokenise import as_prompts, tokenise
from decoder.weighting import WeightedReward, pair_betas, weigh_rewards
from prompts.reading import Prompt
from tests.heads import Favours, as_lm
from tests.source import ROOT
from tests.tiny import tiny_llama, tiny_tokenizer

KIND, CALM = Favours((1,)), Favours((2,))


# Rewards and their betas.


@pytest.mark.parametrize(
    ("rewards", "beta", "expected"),
    [
        (None, None, []),
        ("kind", None, [("kind", 1.0)]),
        ("kind", 3, [("kind", 3.0)]),
        ("kind:2.5", None, [("kind", 2.5)]),
        ("kind:-2", 9.0, [("kind", -2.0)]),
        ("kind:1e1", None, [("kind", 10.0)]),
        (["kind", "calm:4"], 0.5, [("kind", 0.5), ("calm", 4.0)]),
        (["kind", "calm"], [1, 2], [("kind", 1.0), ("calm", 2.0)]),
        ({"kind": 2, "calm": -1}, None, [("kind", 2.0), ("calm", -1.0)]),
        (KIND, 2.0, [(KIND, 2.0)]),
        ([KIND, "calm"], None, [(KIND, 1.0), ("calm", 1.0)]),
        (Path("some/kind"), 2.0, [(Path("some/kind"), 2.0)]),
        ([], 1.0, []),
    ],
    ids=str,
)
def test_pairs(rewards: Any, beta: Any, expected: list[Any]) -> None:
    """Every way to say which reward how strongly; a reward's own beta wins over the common one."""
    assert pair_betas(rewards, beta) == expected


def test_a_directory_with_a_colon_is_left_whole(tmp_path: Path) -> None:
    """`name:beta` is split only where no such file exists."""
    folder = tmp_path / "run:2"
    folder.mkdir()
    assert pair_betas(str(folder), None) == [(str(folder), 1.0)]
    assert pair_betas(f"{folder}:3", None) == [(str(folder), 3.0)]


@pytest.mark.parametrize(
    ("rewards", "beta", "said"),
    [
        ("kind", math.nan, "beta of reward 'kind' is nan"),
        ("kind:inf", None, "beta of reward 'kind' is inf"),
        ({"kind": -math.inf}, None, "beta of reward 'kind' is -inf"),
        ("kind:much", None, r"'kind:much': 'much' is no number; .*kind:2"),
        ("kind:", None, "'' is no number"),
        (["kind", "calm"], [1.0], "1 betas for 2 rewards"),
        ("kind", [1.0, 2.0], "2 betas for 1 rewards"),
        (None, 2.0, "beta is 2.0, but there is no reward"),
        ({"kind": 1.0}, 2.0, "the mapping of rewards has its own"),
    ],
)
def test_pairs_that_are_refused(rewards: Any, beta: Any, said: str) -> None:
    """Strengths that are no numbers, too many, too few, or for nothing."""
    with pytest.raises(UserError, match=said):
        pair_betas(rewards, beta)


def test_what_acts() -> None:
    """Beta 0 drops a reward after it was loaded, a negative beta takes the opposite."""
    loaded: list[Any] = []

    def load(reward: Any) -> Favours:
        loaded.append(reward)
        return KIND

    found = weigh_rewards([("a", 2.0), ("b", 0.0), ("c", -3.0)], load)
    assert loaded == ["a", "b", "c"]
    assert found == [WeightedReward("a", KIND, 2.0), WeightedReward("c", KIND.opposite(), -3.0)]


def test_names_are_unique_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are reported by name: no two rewards share one, and a path gives its last part."""
    (tmp_path / "kind").mkdir()
    monkeypatch.chdir(tmp_path / "kind")
    given = ["kind", "x/kind/", Path("y/kind"), ".", KIND, CALM]
    found = weigh_rewards([(reward, 1.0) for reward in given], lambda reward: KIND)
    assert [w.name for w in found] == ["kind", "kind#2", "kind#3", "kind#4", "Favours", "Favours#2"]


# Batches.


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), max_size=60),
    samples=st.integers(1, 9),
    batch_size=st.integers(1, 12),
)
def test_batches_cover_everything_once(lengths: list[int], samples: int, batch_size: int) -> None:
    """Every (prompt, sample) once, no batch too large, rows as the loop wants them, always the same."""
    batches = list(plan_batches(lengths, samples, batch_size))
    pairs = [(batch.prompts[position], sample) for batch in batches for position, sample in batch.rows]
    assert sorted(pairs) == [(p, s) for p in range(len(lengths)) for s in range(samples)]
    for batch in batches:
        assert 1 <= len(batch.rows) <= batch_size
        positions = [position for position, _ in batch.rows]
        assert positions == sorted(positions)
        assert set(positions) == set(range(len(batch.prompts)))
    assert list(plan_batches(lengths, samples, batch_size)) == batches


def test_batches_are_of_like_lengths_and_finish_in_order() -> None:
    """Sorting pads less, but only inside a window: no prompt waits for more than a few batches."""
    lengths = [100, 1] * 200
    batches = list(plan_batches(lengths, 1, 4))
    mixed = [batch for batch in batches if len({lengths[p] for p in batch.prompts}) > 1]
    assert not mixed
    for number, batch in enumerate(batches):
        for prompt in batch.prompts:
            assert abs(number - prompt // 4) < WINDOW


# Records.


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    tokenizer = tiny_tokenizer()
    return Decoder(LoadedModel(as_lm(tiny_llama(), tokenizer), tokenizer))


def completion(**changes: Any) -> Completion:
    whole: dict[str, Any] = {
        "prompt": 3, "sample": 1, "text": "ok", "token_ids": (5, 1), "finish_reason": "stop",
        "token_rewards": {"kind": (-0.123456789, -2.0)}, "reward": 4.000004, "trace": None,
    }  # fmt: skip
    return Completion(**whole | changes)


def test_a_record() -> None:
    """A sample in a file: every field, rewards to five decimals; the prompt's number is the line's."""
    assert to_record(completion(), seed=7) == {
        "text": "ok",
        "sample_index": 1,
        "seed": 7,
        "finish_reason": "stop",
        "num_tokens": 2,
        "reward": 4.0,
        "rewards": {"kind": -2.0},
        "token_ids": [5, 1],
        "token_rewards": {"kind": [-0.12346, -2.0]},
    }


def test_a_record_of_a_plain_sample_and_of_a_trace() -> None:
    """Without a reward there is none, not zero; numbers inside a trace are rounded too; all of it is JSON."""
    plain = to_record(completion(token_rewards={}, reward=None), seed=0)
    assert (plain["reward"], plain["rewards"]) == (None, {})
    step = {
        "token_id": 5,
        "rank_before": None,
        "base_logprobs": [-1.000001],
        "rewards": {"kind": [0.1234567]},
    }
    record = to_record(completion(trace=(step,)), seed=0)
    expected = {"token_id": 5, "rank_before": None, "base_logprobs": [-1.0], "rewards": {"kind": [0.12346]}}
    assert json.loads(json.dumps(record))["trace"] == [expected]


SETTINGS = {"model": "tiny", "chat": False, "trace": False}
ACTING = [WeightedReward("kind", KIND, 2.0)]
CONFIG = DecodeConfig()


def replaced(**changes: Any) -> DecodeConfig:
    return dataclasses.replace(CONFIG, **changes)


def sampling(**changes: Any) -> DecodeConfig:
    return replaced(sampling=SamplingConfig(**changes))


@pytest.mark.parametrize(
    "config",
    [
        sampling(do_sample=False),
        sampling(temperature=0.9),
        sampling(top_k=3),
        sampling(top_p=0.9),
        sampling(reward_top_k=19),
        replaced(max_new_tokens=33),
        replaced(num_return_sequences=2),
        replaced(seed=1),
    ],
    ids=str,
)
def test_fingerprint_changes_with_each_number(decoder: Decoder, config: DecodeConfig) -> None:
    """A resumed file may not continue with any number changed that changes a sample."""
    assert fingerprint(decoder, ACTING, config, SETTINGS) != fingerprint(decoder, ACTING, CONFIG, SETTINGS)


def test_every_number_is_in_the_fingerprint(decoder: Decoder) -> None:
    """A field added to the configuration is fingerprinted unless it is known to change nothing."""
    numbers = {f.name for f in (*dataclasses.fields(DecodeConfig), *dataclasses.fields(SamplingConfig))}
    found = fingerprint(decoder, ACTING, CONFIG, SETTINGS)
    assert numbers - {"sampling", "batch_size"} <= set(found)
    assert fingerprint(decoder, ACTING, replaced(batch_size=1), SETTINGS) == found


@pytest.mark.parametrize(
    "rewards",
    [
        [],
        [WeightedReward("kind", KIND, 2.5)],
        [WeightedReward("kind", CALM, 2.0)],
        [WeightedReward("calm", KIND, 2.0)],
        [*ACTING, WeightedReward("calm", CALM, 1.0)],
    ],
    ids=str,
)
def test_fingerprint_changes_with_each_reward(decoder: Decoder, rewards: list[WeightedReward]) -> None:
    """Another reward, other weights under the same name, another strength, one more or one less."""
    assert fingerprint(decoder, rewards, CONFIG, SETTINGS) != fingerprint(decoder, ACTING, CONFIG, SETTINGS)


def test_fingerprint_changes_with_the_model(decoder: Decoder) -> None:
    """Other weights, precision, vocabulary, template or end tokens; the same again gives the same."""

    def of(model: Any, tokenizer: Any) -> str:
        other = Decoder(LoadedModel(as_lm(model, tokenizer), tokenizer))
        return json.dumps(fingerprint(other, ACTING, CONFIG, SETTINGS), sort_keys=True)

    words, template, ends = tiny_tokenizer(), tiny_tokenizer(), tiny_llama()
    words.add_tokens(["new"])
    template.chat_template = "{{ messages[0]['content'] }}"
    ends.generation_config.eos_token_id = [1, 7]
    found = [
        of(tiny_llama(), tiny_tokenizer()),
        of(tiny_llama(seed=1), tiny_tokenizer()),
        of(tiny_llama().bfloat16(), tiny_tokenizer()),
        of(tiny_llama(), words),
        of(tiny_llama(), template),
        of(ends, tiny_tokenizer()),
    ]
    assert len(set(found)) == len(found)
    assert found[0] == json.dumps(fingerprint(decoder, ACTING, CONFIG, SETTINGS), sort_keys=True)
    assert found[0] != json.dumps(
        fingerprint(decoder, ACTING, CONFIG, SETTINGS | {"chat": True}), sort_keys=True
    )


def test_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run remembers its command, the versions and the commit of the source tree."""
    monkeypatch.setattr(sys, "argv", ["/some/where/generate.py", "--beta", "4"])
    found = json.loads(json.dumps(about()))
    assert found["command"] == ["generate.py", "--beta", "4"]
    assert found["versions"]["python"] == sys.version.split()[0]
    assert {"torch", "transformers", "tiller-lm", "numpy"} <= set(found["versions"])
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert git_commit() == found["git_commit"]
    assert found["git_commit"] in (None, head.stdout.strip())


# Prompts to ids.


def test_room_is_counted_in_tokens() -> None:
    """Prompt and new tokens together may reach the context, and a model without a limit takes all."""
    prompts = [Prompt("a", text="x" * 20, source="here")]
    n = len(tiny_tokenizer()("x" * 20).input_ids)

    def ids(room: int, limit: int | None) -> list[list[int]]:
        return tokenise(tiny_tokenizer(), prompts, chat=False, room=room, context_length=limit)

    assert ids(5, n + 5) == ids(10**9, None)
    with pytest.raises(UserError, match=f"here: prompt 'a' has {n} tokens; with 6 new ones"):
        ids(6, n + 5)


def test_a_prompt_that_gives_no_token() -> None:
    """A tokenizer may swallow a text whole: there is nothing to continue then."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.chat_template = ""
    with pytest.raises(UserError, match="prompt '0' gives no token"):
        tokenise(tokenizer, as_prompts("hello"), chat=True, room=1, context_length=None)


# How commands end.


def ends(command: Any, arguments: Sequence[str] = ()) -> Any:
    with pytest.raises(SystemExit) as caught:
        cli.run(cli.make_app(command), list(arguments))
    return caught.value.code


def refuses() -> None:
    raise UserError("the number\nis 7:   give 8")


def interrupts() -> None:
    raise KeyboardInterrupt


def aborts() -> None:
    raise typer.Abort


def counts(many: int = 3) -> int:
    return many


def fails() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("command", "arguments", "code", "said"),
    [
        (counts, ["--many", "0"], 0, ""),
        (counts, ["--many", "1"], 1, ""),
        (counts, ["--many", "x"], 2, "error: Invalid value for '--many'"),
        (counts, ["--much", "1"], 2, "error: No such option: --much"),
        (refuses, [], 2, "error: the number is 7: give 8\n"),
        (interrupts, [], 130, "error: interrupted; what was finished is kept\n"),
        (aborts, [], 130, "error: interrupted"),
    ],
)
def test_exit_codes(
    capsys: pytest.CaptureFixture[str], command: Any, arguments: list[str], code: int, said: str
) -> None:
    """0 for success, 1 for a failed check, 2 for what the user can mend, 130 for Ctrl-C; one line each."""
    assert ends(command, arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert err.count("\n") == bool(said)


def test_our_own_mistakes_keep_their_traceback() -> None:
    """An error nobody foresaw is not dressed up as the user's."""
    with pytest.raises(ZeroDivisionError):
        cli.run(cli.make_app(fails), [])


def test_options_are_spelt_either_way(capsys: pytest.CaptureFixture[str]) -> None:
    """GenerationConfig's names work as options: `--max_new_tokens` is `--max-new-tokens`."""
    seen: list[int] = []

    def command(max_new_tokens: int = 1) -> None:
        seen.append(max_new_tokens)

    assert ends(command, ["--max_new_tokens", "5"]) == ends(command, ["--max-new-tokens", "6"]) == 0
    assert seen == [5, 6]


def test_groups() -> None:
    """A group runs the subcommand named, and nothing else."""
    with pytest.raises(SystemExit) as caught:
        cli.run(cli.make_group({"count": counts, "fail": fails}), ["count", "--many", "1"])
    assert caught.value.code == 1
    with pytest.raises(SystemExit) as caught:
        cli.run(cli.make_group({"count": counts}), ["discount"])
    assert caught.value.code == 2


def test_a_reader_that_leaves_is_no_error() -> None:
    """`tiller generate | head` ends quietly when head has seen enough."""
    script = (
        "from decoder.cli import make_app, run\n"
        "def command() -> None:\n"
        "    for number in range(100_000): print(number)\n"
        "run(make_app(command), [])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "0\n"
        child.stdout.close()
        assert child.stderr
        assert child.stderr.read() == ""
    assert child.returncode == 0


@dataclass
class Tiller:
    """What `tiller` printed and how it ended."""

    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *arguments: str) -> tuple[Any, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["tiller", *arguments])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        return code, *self.capsys.readouterr()


@pytest.fixture
def tiller(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tiller:
    return Tiller(capsys, monkeypatch)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_tiller_lists_its_commands(tiller: Tiller, arguments: tuple[str, ...]) -> None:
    """Without a command, or asked for help, it says what there is."""
    code, out, err = tiller(*arguments)
    assert (code, err) == (0, "")
    assert all(f"  {name} " in out for name in cli.COMMANDS)


def test_tiller_refuses_other_commands(tiller: Tiller) -> None:
    """An unknown command is one line with the known ones, exit 2."""
    code, out, err = tiller("generat")
    assert (code, out) == (2, "")
    assert err.startswith("error: unknown command 'generat': choose one of generate, best-of-n, ")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_tiller_finds_every_command(tiller: Tiller, name: str) -> None:
    """Each name in the table leads to a module with an app, which calls itself by that name."""
    code, out, err = tiller(name, "--help")
    assert (code, err) == (0, "")
    assert f"tiller {name} [OPTIONS]" in out


def test_tiller_hands_on_arguments_and_exit_codes(tiller: Tiller, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows the name is the command's, and its exit code is tiller's."""
    module = types.ModuleType("counting")
    module.app = cli.make_app(counts)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counting", module)
    monkeypatch.setitem(cli.COMMANDS, "count", ("counting", "Counts."))
    assert tiller("count", "--many", "1")[0] == 1
    assert tiller("count", "--many", "x")[0] == 2
