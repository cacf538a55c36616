"""Strengths of a prompt's own, from the file to the tokens, and strengths that change along the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import decoder as tiller
from decoder.config import make_config
from decoder.contracts import UserError
from decoder.decoder import Decoder, Generation
from decoder.generate import write
from decoder.models import LoadedModel
from decoder.records import fingerprint
from decoder.weighting import WeightedReward, beta_multipliers, weigh_rewards
from prompts.reading import Prompt, from_value, read
from tests.heads import Favours, as_lm, save_arm, tiny_arm

TEXTS = ["The kettle sang", "A", "She thought the film was bad, but", "Rain", "A good morning"]
KIND, CALM = Favours((3, 4)), Favours((5, 6))
SETTINGS = {"model": "tiny", "chat": False, "trace": False}


@pytest.fixture(scope="module")
def decoder(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Decoder:
    return Decoder(LoadedModel(as_lm(tiny_model, tokenizer), tokenizer))


def asked(betas: Sequence[dict[str, float] | None]) -> list[Prompt]:
    """Return a prompt for each of the betas."""
    pairs = zip(TEXTS, betas, strict=False)
    return [
        Prompt(str(i), text=text, source=f"p.jsonl, line {i + 1}", betas=own)
        for i, (text, own) in enumerate(pairs)
    ]


def tokens(found: Sequence[Generation]) -> list[list[tuple[int, ...]]]:
    return [[sample.token_ids for sample in generation.samples] for generation in found]


# Reading.


def test_betas_stand_beside_the_prompt(tmp_path: Path) -> None:
    """On the line or inside the prompt, where our own output has them; no betas is none."""
    lines = [
        {"prompt": "a", "betas": {"positive": 2, "x": -0.5}, "answer": 1},
        {"prompt": {"text": "b", "betas": {"positive": 0}}},
        {"messages": [{"role": "user", "content": "c"}], "betas": {"positive": 1.5}},
        {"prompt": {"text": "d", "betas": {"x": 1}}, "betas": {"y": 2}},
        {"prompt": "e", "betas": {}},
        {"prompt": "f", "betas": None},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    prompts = read(path)
    found = [prompt.betas for prompt in prompts]
    assert found == [
        {"positive": 2.0, "x": -0.5},
        {"positive": 0.0},
        {"positive": 1.5},
        {"y": 2.0},
        None,
        None,
    ]
    assert prompts[0].record() == {"text": "a", "answer": "1", "betas": {"positive": 2.0, "x": -0.5}}
    assert prompts[4].record() == {"text": "e"}
    written = (json.dumps({"id": prompt.id, "prompt": prompt.record()}) for prompt in prompts)
    path.write_text("\n".join(written))
    assert read(path) == prompts
    assert from_value({"text": "a", "betas": {"x": 1}}, prompt_id="0", source="").betas == {"x": 1.0}


@pytest.mark.parametrize(
    ("betas", "said"),
    [
        ("2", '"betas" must be like {"positive": 2.0}, not 2'),
        ("[1.0]", '"betas" must be like'),
        ('{"positive": "2"}', "the beta of 'positive' must be a finite number, not '2'"),
        ('{"positive": true}', "the beta of 'positive' must be a finite number, not true"),
        ('{"positive": null}', "not null"),
        ('{"positive": NaN}', "the beta of 'positive' must be a finite number, not NaN"),
        ('{"positive": -1e999}', "the beta of 'positive' must be a finite number"),
        ('{"positive": 1' + "0" * 400 + "}", "the beta of 'positive' must be a finite number"),
    ],
)
def test_a_mistake_names_its_line(tmp_path: Path, betas: str, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "betas": ' + betas + "}\n")
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# Which rewards act.


def weigh(
    pairs: Sequence[tuple[Any, float]], betas: Sequence[dict[str, float] | None]
) -> list[WeightedReward]:
    return weigh_rewards(pairs, lambda name: KIND if "kind" in str(name) else CALM, asked(betas))


def test_own_betas_replace_the_calls() -> None:
    """For the rewards they name; the others keep the call's. 0 is a strength like any other."""
    found = weigh([("kind", 2.0), ("calm", 1.0)], [None, {"kind": 3.0}, {"kind": 0.0, "calm": 5.0}])
    assert found == [
        WeightedReward("kind", KIND, 2.0, {1: 3.0, 2: 0.0}),
        WeightedReward("calm", CALM, 1.0, {2: 5.0}),
    ]
    assert [[reward.strength(prompt) for prompt in range(3)] for reward in found] == [[2, 3, 0], [1, 1, 5]]


def test_a_reward_that_one_prompt_wants() -> None:
    """At beta 0 in the call it acts for that prompt; without such a prompt it is dropped as ever."""
    assert weigh([("kind", 0.0)], [None, {"kind": 3.0}]) == [WeightedReward("kind", KIND, 0.0, {1: 3.0})]
    assert weigh([("kind", 0.0)], [None, None]) == []
    assert weigh([("kind", 2.0)], []) == [WeightedReward("kind", KIND, 2.0)]


def test_both_signs_make_two_rewards() -> None:
    """The reward for those above 0 and its opposite for those below, of which a prompt uses one."""
    found = weigh([("kind", 2.0)], [None, {"kind": -3.0}, {"kind": 0.0}])
    assert found == [
        WeightedReward("kind", KIND, 2.0, {1: 0.0, 2: 0.0}),
        WeightedReward("not kind", KIND.opposite(), 0.0, {1: -3.0, 2: 0.0}),
    ]
    table = [[reward.strength(prompt) for reward in found] for prompt in range(3)]
    assert table == [[2, 0], [0, -3], [0, 0]]


@pytest.mark.parametrize("call", [1.0, -1.0, 0.0])
def test_one_sign_makes_one_reward(call: float) -> None:
    """Where every prompt has its own, the call's sign asks for nothing; all 0 keeps the call's side."""
    up, down = weigh([("kind", call)], [{"kind": 2.0}]), weigh([("kind", call)], [{"kind": -2.0}])
    assert [(w.name, w.reward, w.own) for w in up] == [("kind", KIND, {0: 2.0})]
    assert [(w.name, w.reward, w.own) for w in down] == [("kind", KIND.opposite(), {0: -2.0})]
    (none,) = weigh([("kind", call)], [{"kind": 0.0}])
    assert none == WeightedReward("kind", KIND.opposite() if call < 0 else KIND, call, {0: 0.0})


def test_names_are_those_of_the_call() -> None:
    """A second reward of a name is meant by its number; nothing else is."""
    found = weigh([("kind", 1.0), ("a/kind", 1.0)], [{"kind": 2.0}, {"kind#2": 3.0}])
    assert [(reward.name, dict(reward.own)) for reward in found] == [("kind", {0: 2.0}), ("kind#2", {1: 3.0})]


@pytest.mark.parametrize(
    ("pairs", "name", "said"),
    [
        ([("kind", 1.0)], "kidn", "the rewards are kind"),
        ([("kind", 1.0)], "kind#2", "the rewards are kind"),
        ([], "kind", "there is no reward"),
    ],
)
def test_an_unknown_name_is_refused_with_its_line(pairs: Any, name: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"p.jsonl, line 2: prompt '1' has a beta for '{name}', but {said}"):
        weigh(pairs, [None, {name: 2.0}])


# Decoding.


@pytest.mark.parametrize("do_sample", [True, False])
def test_rows_of_different_betas_are_as_alone(decoder: Decoder, do_sample: bool) -> None:
    """One batch of five prompts, each with strengths of its own, of both signs: the tokens and rewards of
    five calls that give those strengths."""
    first, second = tiny_arm(decoder.lm), tiny_arm(decoder.lm, (2,), seed=1)
    own = [None, {"TapArm": 4.0}, {"TapArm": 0.0}, {"TapArm": -3.0, "TapArm#2": 0.0}, {"TapArm#2": 2.5}]
    betas = [(2.0, 1.0), (4.0, 1.0), (0.0, 1.0), (-3.0, 0.0), (2.0, 2.5)]
    options = {"max_new_tokens": 6, "num_return_sequences": 2, "do_sample": do_sample}
    given = {"reward": [first, second], "beta": [2.0, 1.0], **options}
    together = decoder.generate(asked(own), **given)
    for number, (text, strengths) in enumerate(zip(TEXTS, betas, strict=True)):
        (alone,) = decoder.generate(text, reward=[first, second], beta=list(strengths), **options)
        assert tokens([together[number]]) == tokens([alone])
        for one, two in zip(together[number].samples, alone.samples, strict=True):
            assert one.reward == pytest.approx(two.reward, rel=1e-4)
    assert tokens(together) != tokens(decoder.generate(TEXTS, **given))
    names = set(together[0].samples[0].token_rewards)
    assert names == {"TapArm", "not TapArm", "TapArm#2"}
    one_by_one = decoder.generate(asked(own), batch_size=1, **given)
    assert tokens(one_by_one) == tokens(together)


def test_a_stream_has_its_prompts_betas(decoder: Decoder) -> None:
    """The steered rows, and the shift that is shown for plain ones, are those of the prompt's own beta."""
    arm = tiny_arm(decoder.lm)
    prompt = Prompt("0", text=TEXTS[0], betas={"TapArm": 3.0})
    options: dict[str, Any] = {"reward": arm, "max_new_tokens": 5, "unsteered": True}
    own = list(decoder.stream(prompt, beta=1.0, **options))
    assert own == list(decoder.stream(TEXTS[0], beta=3.0, **options))
    assert own != list(decoder.stream(TEXTS[0], beta=1.0, **options))


def test_best_of_n_draws_with_them(decoder: Decoder) -> None:
    arm = tiny_arm(decoder.lm)
    options: dict[str, Any] = {"reward": arm, "n": 3, "max_new_tokens": 4}
    mixed = decoder.best_of_n(asked([None, {"TapArm": 4.0}]), beta=1.0, **options)
    strong = decoder.best_of_n(TEXTS[:2], beta=4.0, **options)
    weak = decoder.best_of_n(TEXTS[:2], beta=1.0, **options)
    drawn = [[sample.token_ids for sample in each.samples] for each in mixed]
    assert drawn == [[s.token_ids for s in each.samples] for each in (weak[0], strong[1])]


# Files.


def run(decoder: Decoder, prompts: list[Prompt], output: Path, **numbers: Any) -> list[dict[str, Any]]:
    """Write the file as the command does; return its lines."""
    arm = tiny_arm(decoder.lm)
    config = make_config({"max_new_tokens": 4, "num_return_sequences": 2, **numbers})
    write(decoder, prompts, decoder.weigh(arm, 1.0, prompts), config, SETTINGS, output, overwrite=False)
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_a_changed_beta_is_not_resumed(decoder: Decoder, tmp_path: Path) -> None:
    """Each line keeps its betas: a run with others is refused, where samples of that prompt are there."""
    output, own = tmp_path / "g.jsonl", [None, {"TapArm": 4.0}, {"TapArm": 2.0}]
    lines = run(decoder, asked(own), output)
    assert [line["prompt"].get("betas") for line in lines] == own
    for changed in ([None, {"TapArm": 3.0}, own[2]], [None, None, own[2]], [{"TapArm": 1.0}, *own[1:]]):
        with pytest.raises(UserError, match="was made with other prompts"):
            run(decoder, asked(changed), output)
    with pytest.raises(UserError, match=r"rewards\.not TapArm"):  # the opposite is another reward
        run(decoder, asked([None, own[1], {"TapArm": -2.0}]), output)
    assert run(decoder, asked(own), output) == lines


def test_an_interrupted_run_goes_on(decoder: Decoder, tmp_path: Path) -> None:
    """The lines that are missing are decoded with the betas that are given now, and say so."""
    output, own = tmp_path / "g.jsonl", [None, {"TapArm": 4.0}, {"TapArm": 2.0}]
    whole = run(decoder, asked(own), output)
    kept = output.read_bytes().splitlines(keepends=True)[:2]
    output.write_bytes(b"".join(kept))
    assert run(decoder, asked(own), output) == whole
    output.write_bytes(b"".join(kept))
    lines = run(decoder, asked([*own[:2], {"TapArm": 30.0}]), output)
    assert lines[:2] == whole[:2]
    assert lines[2]["prompt"]["betas"] == {"TapArm": 30.0}
    assert lines[2]["generations"] != whole[2]["generations"]


def test_what_would_ignore_them_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    """Whoever weighs rewards without the prompts may not write a file that claims their betas."""
    prompts, rewards = asked([None, {"TapArm": 4.0}]), decoder.weigh(tiny_arm(decoder.lm), 1.0)
    config = make_config({"max_new_tokens": 2})
    with pytest.raises(UserError, match="line 2: prompt '1' has betas of its own"):
        write(decoder, prompts, rewards, config, SETTINGS, tmp_path / "g.jsonl", overwrite=False)
    assert not (tmp_path / "g.jsonl").exists()


# The schedule.


def test_multipliers() -> None:
    """Equal steps from the first to the last, which stays."""
    assert beta_multipliers("constant", 5) is None
    assert beta_multipliers("linear:2:0:4", 7) == (2.0, 1.5, 1.0, 0.5, 0.0, 0.0, 0.0)
    assert beta_multipliers("linear:0:1:1", 3) == (0.0, 1.0, 1.0)
    assert beta_multipliers("linear:1:1:9", 2) == (1.0, 1.0)


@pytest.mark.parametrize(
    "schedule",
    ["", "line", "linear", "linear:1:0", "linear:1:0:2:3", "linear:1:x:2", "linear:1:0:0", "linear:1:0:2.5",
     "linear:-1:1:2", "linear:1:nan:2", "linear:inf:1:2", "constant:1", "cosine:1:0:2", None, 3],
)  # fmt: skip
def test_schedules_that_are_refused(schedule: Any) -> None:
    with pytest.raises(UserError, match=r"beta_schedule is .*: give constant, or linear") as caught:
        make_config({"beta_schedule": schedule})
    assert "\n" not in str(caught.value)


def test_a_schedule_acts_token_by_token(decoder: Decoder) -> None:
    """z' is z + beta m_t r at every position, with the betas of the row; and rows stay their own."""
    arm = tiny_arm(decoder.lm)
    options: dict[str, Any] = {
        "reward": arm,
        "beta": 4.0,
        "max_new_tokens": 6,
        "beta_schedule": "linear:1.5:0:3",
    }
    found = decoder.generate(asked([None, {"TapArm": -2.0}, {"TapArm": 8.0}]), trace=True, **options)
    multipliers, strengths = [1.5, 1.0, 0.5, 0.0, 0.0, 0.0], [(4.0, 0.0), (0.0, 2.0), (8.0, 0.0)]
    for generation, (up, down) in zip(found, strengths, strict=True):
        for multiplier, step in zip(multipliers, generation.samples[0].trace or (), strict=False):
            said: Any = step["rewards"]
            rises = torch.tensor(step["scores"]) - torch.tensor(step["base_logprobs"])
            added = up * torch.tensor(said["TapArm"]) + down * torch.tensor(said["not TapArm"])
            # log P(v) is z minus the row's normaliser, the same for every candidate.
            torch.testing.assert_close(
                rises - rises[0], multiplier * (added - added[0]), rtol=1e-4, atol=1e-4
            )
    alone = decoder.generate(TEXTS[2], **{**options, "beta": 8.0})
    assert tokens(alone) == tokens([found[2]])


def test_constant_is_what_it_was(decoder: Decoder) -> None:
    """The default and multipliers of 1 give the same tokens and rewards, bit for bit."""
    options: dict[str, Any] = {
        "reward": tiny_arm(decoder.lm),
        "beta": 3.0,
        "max_new_tokens": 6,
        "trace": True,
    }
    plain = decoder.generate(TEXTS, **options)
    assert decoder.generate(TEXTS, beta_schedule="constant", **options) == plain
    assert decoder.generate(TEXTS, beta_schedule="linear:1:1:4", **options) == plain
    assert decoder.generate(TEXTS, beta_schedule="linear:1:0:2", **options) != plain


def test_the_stream_shifts_as_the_schedule_says(decoder: Decoder) -> None:
    """Nothing is shifted where the multiplier is 0, in plain rows and in steered ones."""
    options: dict[str, Any] = {"reward": tiny_arm(decoder.lm), "beta": 3.0, "max_new_tokens": 6}
    events = list(decoder.stream(TEXTS[0], unsteered=True, beta_schedule="linear:1:0:2", **options))
    assert {event.index for event in events if event.shift} == {0, 1}
    constant = list(decoder.stream(TEXTS[0], unsteered=True, **options))
    assert constant[0].shift == events[0].shift


def test_a_schedule_is_in_the_fingerprint(decoder: Decoder, tmp_path: Path) -> None:
    config = make_config({})
    other = replace(config, beta_schedule="linear:1:0:8")
    assert fingerprint(decoder, [], other, SETTINGS) != fingerprint(decoder, [], config, SETTINGS)
    run(decoder, asked([None]), tmp_path / "g.jsonl")
    with pytest.raises(UserError, match='beta_schedule: "constant" in the file, "linear:1:0:8" now'):
        run(decoder, asked([None]), tmp_path / "g.jsonl", beta_schedule="linear:1:0:8")


def test_a_schedule_inside_transformers(tiny_model: PreTrainedModel, decoder: Decoder) -> None:
    """`custom_generate` takes the same schedule and gives the tokens of `Decoder`."""
    arm, schedule = tiny_arm(decoder.lm), "linear:2:0:3"
    ids = torch.tensor([decoder.tokenizer(TEXTS[0]).input_ids])
    given: dict[str, Any] = {"reward": arm, "beta": 3.0, "max_new_tokens": 6, "do_sample": False}
    out = tiny_model.generate(ids, custom_generate=tiller.custom_generate, beta_schedule=schedule, **given)
    (expected,) = decoder.generate(TEXTS[0], beta_schedule=schedule, **given)[0].samples
    assert out[0, ids.shape[1] :].tolist() == list(expected.token_ids)
    constant = tiny_model.generate(ids, custom_generate=tiller.custom_generate, **given)
    assert out.tolist() != constant.tolist()


def test_the_command(tmp_path: Path, tiny_dir: Path, tiny_model: PreTrainedModel) -> None:
    """From a prompts file to the output; what is wrong is said before a model is loaded."""
    from typer.testing import CliRunner

    from decoder.generate import app

    head = save_arm(tmp_path / "kind", tiny_model, Decoder.from_pretrained(str(tiny_dir)).tokenizer)
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "The kettle"}\n{"prompt": "A", "betas": {"kind": 5}}\n')
    given = ["--prompts", str(prompts), "--model", str(tiny_dir), "--reward", f"{head}:1"]
    output = tmp_path / "out" / "g.jsonl"
    numbers = ["--max-new-tokens", "4", "--no-do-sample", "--dtype", "float32"]
    done = CliRunner().invoke(app, [*given, *numbers, "--output", str(output)])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["prompt"].get("betas") for line in lines] == [None, {"kind": 5.0}]
    records = [line["generations"][0] for line in lines]
    for record, beta in zip(records, (1, 5), strict=True):
        assert record["reward"] == pytest.approx(beta * record["rewards"]["kind"], abs=1e-4)
    prompts.write_text('{"prompt": "The kettle"}\n{"prompt": "A", "betas": {"kidn": 5}}\n')
    for options, said in (
        (
            ["--model", "no-such-model"],
            f"{prompts}, line 2: prompt '1' has a beta for 'kidn', but the rewards are",
        ),
        (["--beta-schedule", "lin"], "beta_schedule is 'lin'"),
    ):
        done = CliRunner().invoke(app, [*given, *options])
        assert done.exit_code != 0
        assert said in str(done.exception)
