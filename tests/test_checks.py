"""The self-check: it passes on what is right, and each of its lines fails on the mistake it is for."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from decoder.checks import all_checks
from decoder.contracts import Reading, RewardSession, TokenReward, UserError
from decoder.decoder import Decoder
from decoder.models import LoadedModel
from tests.heads import Favours, as_lm, save_arm, tiny_arm
from tests.source import ROOT
from tests.tiny import save_tiny, tiny_gpt2, tiny_llama, tiny_tokenizer

OF_A_MODEL = [
    "tokenizer fits the vocabulary",
    "no double BOS",
    "left padding changes nothing",
    "cached equals uncached",
    "plain equals transformers' generate",
]
OF_A_REWARD = [
    "reward fits the model",
    "reward is finite",
    "batch equals one by one",
    "called twice, the same",
    "beta 0 equals the plain model",
    "decoded equals replayed reward",
]


def make(model: PreTrainedModel, *, adds_bos: bool = False) -> Decoder:
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    return Decoder(LoadedModel(as_lm(model, tokenizer), tokenizer))


def failing(decoder: Decoder, reward: Any = None) -> set[str]:
    """Return the names of the checks that fail; every check must have something to say."""
    found = list(all_checks(decoder, reward))
    assert all(check.detail for check in found)
    return {check.name for check in found if not check.passed}


@pytest.mark.parametrize("adds_bos", [False, True])
def test_all_pass_where_all_is_right(any_model: PreTrainedModel, adds_bos: bool) -> None:
    """No false alarm on any architecture, with or without a BOS, and every check is there by name."""
    decoder = make(any_model, adds_bos=adds_bos)
    found = list(all_checks(decoder, tiny_arm(decoder.lm)))
    assert [check.name for check in found] == OF_A_MODEL + OF_A_REWARD
    assert all(check.passed for check in found), found
    assert [check.name for check in all_checks(decoder, None)] == OF_A_MODEL


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_is_no_false_alarm_for_the_model(dtype: torch.dtype) -> None:
    """Rounding is not a mistake: the model's own checks allow for the precision."""
    assert failing(make(tiny_llama().to(dtype))) <= {"plain equals transformers' generate"}


def test_a_penalty_in_the_models_settings_is_no_false_alarm() -> None:
    """Many chat models ask for a repetition penalty; the plain model is compared without it."""
    model = tiny_llama()
    model.generation_config.repetition_penalty = 1.5
    assert failing(make(model)) == set()


def test_a_tokenizer_too_large() -> None:
    """A tokenizer with ids the model has no logits for."""
    decoder = make(tiny_llama())
    decoder.tokenizer.add_tokens([f"new{i}" for i in range(5)])
    assert failing(decoder) == {"tokenizer fits the vocabulary"}


def test_a_template_that_writes_two_bos() -> None:
    """The template writes what the tokenizer adds: the classic double BOS."""
    decoder = make(tiny_llama())
    decoder.tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}"
    assert failing(decoder) == {"no double BOS"}


def altered(model: PreTrainedModel, change: Callable[[dict[str, Any]], None]) -> PreTrainedModel:
    """Return the model with the arguments of its forward pass changed, as a faulty port would."""
    forward = model.forward

    def wrong(*args: Any, **options: Any) -> Any:
        change(options)
        return forward(*args, **options)

    wrong.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.forward = wrong
    return model


def counts_padding(options: dict[str, Any]) -> None:
    """Positions that count the padding: wrong for every row that has some."""
    if options.get("position_ids") is not None and options["input_ids"].shape[1] > 1:
        options["position_ids"] = torch.arange(options["input_ids"].shape[1]).expand_as(options["input_ids"])


def sees_padding(options: dict[str, Any]) -> None:
    options["attention_mask"] = None


def stands_still(options: dict[str, Any]) -> None:
    """Every token that is fed stands at position 3."""
    if options["input_ids"].shape[1] == 1 and options.get("position_ids") is not None:
        options["position_ids"] = torch.full_like(options["input_ids"], 3)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (counts_padding, "left padding changes nothing"),
        (sees_padding, "left padding changes nothing"),
        (stands_still, "cached equals uncached"),
    ],
)
def test_a_model_that_reads_wrongly(change: Callable[[dict[str, Any]], None], name: str) -> None:
    """Wrong positions, padding that is read, a cache that does not move on."""
    assert name in failing(make(altered(tiny_gpt2(), change)))


def test_a_model_that_generates_otherwise() -> None:
    """Transformers' own loop would do what ours does not: here, suppress the token ours begins with."""
    decoder = make(tiny_llama())
    text = "The report says that"
    first = decoder.generate(text, do_sample=False, max_new_tokens=1)[0].samples[0].token_ids[0]
    decoder.lm.model.generation_config.suppress_tokens = [first]
    assert failing(decoder) == {"plain equals transformers' generate"}


def test_a_model_with_broken_weights() -> None:
    """NaN in the weights fails checks by name; it does not end the command before they are shown."""
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.nan
    assert failing(make(model)) == set(OF_A_MODEL[2:])
    assert "reward is finite" in failing(make(model), Favours((5,)))


@dataclass
class Faulty:
    """A reward with one mistake: what its sessions say is `rule` of the session and what it was asked."""

    rule: Callable[[FaultySession, Tensor, Reading], Tensor]
    layers: tuple[int, ...] = ()
    digest: str = "faulty"
    calls: list[int] = field(default_factory=list)

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> RewardSession:
        self.calls.append(len(prompt_ids))
        return FaultySession(self, prompt_ids)

    def opposite(self) -> TokenReward:
        return self


class FaultySession:
    def __init__(self, reward: Faulty, prompt_ids: Tensor) -> None:
        self.reward, self.prompt_ids, self.last = reward, prompt_ids, prompt_ids[:, -1]

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        return self.reward.rule(self, candidate_ids, reading)

    def advance(self, token_ids: Tensor) -> None:
        self.last = token_ids

    def select(self, rows: Tensor) -> None:
        self.prompt_ids, self.last = self.prompt_ids[rows], self.last[rows]


def wave(number: Tensor) -> Tensor:
    """Return reproducible numbers in [-3, 3] from ids."""
    return 3 * torch.sin(number.float() * 12.9898)


def sound(session: FaultySession, ids: Tensor, reading: Reading) -> Tensor:
    return wave(ids + 7 * session.last[:, None])


def not_a_number(session: FaultySession, ids: Tensor, reading: Reading) -> Tensor:
    return wave(ids).where(ids % 2 == 0, math.nan)


def infinite(session: FaultySession, ids: Tensor, reading: Reading) -> Tensor:
    return wave(ids).where(ids % 2 == 0, math.inf)


def knows_the_padding(session: FaultySession, ids: Tensor, reading: Reading) -> Tensor:
    return wave(ids + session.prompt_ids.shape[1])


def knows_its_neighbours(session: FaultySession, ids: Tensor, reading: Reading) -> Tensor:
    return wave(ids + len(ids))


def remembers_calls(session: FaultySession, ids: Tensor, reading: Reading) -> Tensor:
    return wave(ids + len(session.reward.calls))


def ranks_candidates(session: FaultySession, ids: Tensor, reading: Reading) -> Tensor:
    return wave(ids).argsort(-1).float()


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        (sound, set()),
        (not_a_number, {"reward is finite"}),
        (infinite, {"reward is finite"}),
        (knows_the_padding, {"batch equals one by one"}),
        (knows_its_neighbours, {"batch equals one by one"}),
        (
            remembers_calls,
            {"batch equals one by one", "called twice, the same", "decoded equals replayed reward"},
        ),
        (ranks_candidates, {"decoded equals replayed reward"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_reward_with_a_mistake(tiny_model: PreTrainedModel, rule: Any, names: set[str]) -> None:
    """Each mistake fails its own check, and a sound reward written the same way fails none."""
    assert failing(make(tiny_model), Faulty(rule)) == names


def test_a_beta_zero_that_acts(tiny_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """If beta 0 kept the reward's candidates, plain and steered samples would differ: the check sees it."""
    decoder = make(tiny_model)
    arm, weigh = tiny_arm(decoder.lm), decoder.weigh
    monkeypatch.setattr(
        decoder,
        "weigh",
        lambda reward, beta, prompts: weigh(reward, beta or 1e-9 if reward else None, prompts),
    )
    assert failing(decoder, arm) == {"beta 0 equals the plain model"}


def test_a_reward_that_does_not_fit(tiny_model: PreTrainedModel, tmp_path: Path) -> None:
    """A head of another model is refused when it is loaded: an error with both sides, not a failed check."""
    other = save_arm(tmp_path / "kind", tiny_llama(layers=3), tiny_tokenizer())
    checks: Iterator[Any] = all_checks(make(tiny_model), str(other))
    with pytest.raises(UserError, match="num_layers 3 in the reward, 4 in the model"):
        list(checks)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "decoder.check", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_command(tiny_model: PreTrainedModel, tmp_path: Path) -> None:
    """One line a check on standard output; exit 0 when all pass, 1 when one fails, 2 when it cannot run."""
    model, reward = save_tiny(tmp_path / "model"), save_arm(tmp_path / "kind", tiny_model, tiny_tokenizer())
    good = command("--model", model, "--reward", reward)
    lines = good.stdout.splitlines()
    assert (good.returncode, good.stderr) == (0, "")
    assert lines[-1] == "all passed"
    assert [line[6:].split("  ")[0].strip() for line in lines[:-1]] == OF_A_MODEL + OF_A_REWARD
    assert all(line.startswith("pass  ") for line in lines[:-1])
    settings = model / "tokenizer_config.json"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(model)
    assert settings.is_file()
    bad = command("--model", model)
    assert bad.returncode == 1
    assert [line.split("  ")[1] for line in bad.stdout.splitlines() if line.startswith("FAIL")] == [
        "no double BOS"
    ]
    assert bad.stdout.splitlines()[-1] == "1 failed"
    missing = command("--model", model, "--reward", tmp_path / "no-reward")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: unknown reward")
    assert missing.stderr.count("\n") == 1
