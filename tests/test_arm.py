"""The tap ARM against formulas written out here; saved heads, and those that do not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decoder.contracts import Reading, TokenReward, UserError
from decoder.lm import CausalLM
from decoder.replay import score_path
from rewards.arm import ArmConfig, ArmHead, TapArm, features
from rewards.load import load_reward
from tests.heads import LAYERS, as_lm, pad, random_head, save_arm, tiny_arm
from tests.tiny import tiny_llama, tiny_tokenizer

SUMMARIES = ("none", "text", "generated")
TEXTS = ([5, 9, 31, 200, 7], [77, 13], [120, 4, 4, 250])


@pytest.fixture(scope="module")
def lm(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> CausalLM:
    return as_lm(tiny_model, tokenizer)


def states_of(lm: CausalLM, ids: Sequence[int]) -> Tensor:
    """Return every token's taps, each over its root mean square, (T, n_taps * d), one text at a time."""
    with torch.no_grad():
        hidden = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    rows = []
    for t in range(len(ids)):
        taps = [hidden[layer][0, t] for layer in LAYERS]
        rows.append(torch.cat([tap / math.sqrt(float((tap * tap).mean()) + 1e-6) for tap in taps]))
    return torch.stack(rows)


def naive_log_odds(arm: TapArm, lm: CausalLM, ids: Sequence[int], v: int, *, prompt: int = 1) -> float:
    """Return <w, h> + <A h, B e(v)> + <c, e(v)> + b after `ids`, the first `prompt` of them the prompt's."""
    head, h, e = arm.head, states_of(lm, ids), lm.output_embeddings[v].detach()
    state = head.state.weight @ h[-1] + head.state.bias
    if head.summary is not None:
        seen = h if head.config.summary == "text" else h[prompt - 1 :]
        state = state + head.summary.weight @ (sum(seen) / len(seen))
    vocabulary = head.vocabulary.weight @ e + head.vocabulary.bias
    return float(state[0] + vocabulary[0] + sum(state[1:] * vocabulary[1:]))


@pytest.mark.parametrize("summary", SUMMARIES)
def test_streamed_is_naive(lm: CausalLM, summary: str) -> None:
    """Prefill and steps of a ragged left-padded batch give what the formula gives for each prefix alone."""
    arm = tiny_arm(lm, summary=summary)
    ids, mask = pad(TEXTS)
    more = torch.tensor([[8, 9, 10], [60, 61, 62], [200, 100, 50]])
    candidates = torch.tensor([[3, 50, 299], [4, 5, 6], [7, 100, 8]])
    session, rewarder = lm.start(arm.layers), arm.start(ids, mask)
    with torch.inference_mode():
        reading = session.prefill(ids, mask)
        for step in range(4):
            found = rewarder.score(candidates, reading)
            for row, text in enumerate(TEXTS):
                prefix = [*text, *more[row, :step].tolist()]
                expected = [
                    math.log(1 / (1 + math.exp(-naive_log_odds(arm, lm, prefix, v, prompt=len(text)))))
                    for v in candidates[row].tolist()
                ]
                assert found[row].tolist() == pytest.approx(expected, abs=1e-4)
            if step < 3:
                rewarder.advance(more[:, step])
                reading = session.feed(more[:, step])


@pytest.mark.parametrize("summary", SUMMARIES)
def test_gathered_is_full_vocabulary(lm: CausalLM, summary: str) -> None:
    """Scoring K candidates gives those columns of scoring all of them."""
    arm = tiny_arm(lm, summary=summary)
    ids, mask = pad(TEXTS)
    with torch.inference_mode():
        reading = lm.start(arm.layers).prefill(ids, mask)
        everything = torch.arange(lm.identity.vocab_size).expand(3, -1)
        full = arm.start(ids, mask).score(everything, reading)
        candidates = torch.tensor([[3, 50, 299], [4, 5, 6], [7, 100, 8]])
        some = arm.start(ids, mask).score(candidates, reading)
    torch.testing.assert_close(some, full.gather(1, candidates))


@pytest.mark.parametrize("summary", SUMMARIES)
def test_select_is_starting_with_those_rows(lm: CausalLM, summary: str) -> None:
    """Rows kept, reordered and repeated after some steps go on as if nothing else had been there."""
    arm, rows = tiny_arm(lm, summary=summary), [2, 0, 2]
    completions = [[11, 12, 13], [21, 22, 23], [31, 32, 33]]
    ids, mask = pad(TEXTS)
    session, rewarder = lm.start(arm.layers), arm.start(ids, mask)
    with torch.inference_mode():
        reading = session.prefill(ids, mask)
        rewarder.score(torch.tensor([[row[0]] for row in completions]), reading)
        for part in (session, rewarder):
            part.select(torch.tensor(rows))
        tokens = torch.tensor([completions[row][0] for row in rows])
        rewarder.advance(tokens)
        found = rewarder.score(torch.tensor([[completions[row][1]] for row in rows]), session.feed(tokens))
    alone = [score_path(lm, arm, [TEXTS[row]], [completions[row][:2]])[0][1] for row in rows]
    assert found[:, 0].tolist() == pytest.approx(alone, abs=1e-5)


def test_states_on_padding_never_count(lm: CausalLM) -> None:
    """Whatever a model computes on padding, NaN included, stays out of the running mean."""
    arm = tiny_arm(lm, summary="text")
    ids, mask = pad(TEXTS)
    with torch.inference_mode():
        reading = lm.start(arm.layers).prefill(ids, mask)
        taps = {layer: tap.masked_fill(~mask[..., None], math.nan) for layer, tap in reading.taps.items()}
        candidates = torch.tensor([[3], [4], [7]])
        expected = arm.start(ids, mask).score(candidates, reading)
        found = arm.start(ids, mask).score(candidates, Reading(reading.logits, taps, mask))
    torch.testing.assert_close(found, expected)


def test_opposite_is_the_other_event(lm: CausalLM) -> None:
    """P(attribute) + P(not attribute) = 1, in either output; the opposite of the opposite is the reward."""
    for output in ("log_probability", "probability"):
        arm = tiny_arm(lm, output=output)
        log_odds = torch.linspace(-30, 30, 61)
        here, there = arm.to_reward(log_odds), arm.opposite().to_reward(log_odds)
        if output == "log_probability":
            assert bool((here <= 0).all())
            here, there = here.exp(), there.exp()
        torch.testing.assert_close(here + there, torch.ones(61))
        torch.testing.assert_close(arm.opposite().opposite().to_reward(log_odds), arm.to_reward(log_odds))
    assert isinstance(arm, TokenReward)


def test_either_output_may_be_asked_for(tmp_path: Path, lm: CausalLM) -> None:
    """NAME@OUTPUT reads the same weights in the other form, and counts as another reward."""
    saved = save_arm(tmp_path / "a", lm.model, tiny_tokenizer())
    declared, asked = load_reward(saved, lm), load_reward(f"{saved}@probability", lm)
    logs = score_path(lm, declared, [TEXTS[0]], [TEXTS[1]])[0]
    assert score_path(lm, asked, [TEXTS[0]], [TEXTS[1]])[0] == pytest.approx([math.exp(r) for r in logs])
    assert declared.digest != asked.digest
    with pytest.raises(UserError, match="'odds' is no form of a reward: choose log_probability or"):
        load_reward(f"{saved}@odds", lm)
    (tmp_path / "b@home").mkdir()
    with pytest.raises(UserError, match="b@home"):  # a folder of that name is the folder
        load_reward(tmp_path / "b@home", lm)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_outputs_stay_in_range(values: list[float]) -> None:
    log_odds = torch.tensor(values)
    for output in ("log_probability", "probability"):
        arm = TapArm(random_head(output=output), torch.empty(0), "")  # type: ignore[arg-type]
        reward = arm.to_reward(log_odds)
        low, high = (-math.inf, 0.0) if output == "log_probability" else (0.0, 1.0)
        assert bool(((reward >= low) & (reward <= high)).all())


def test_features_are_over_their_root_mean_square() -> None:
    taps = {3: torch.full((2, 1, 4), 100.0), 1: torch.full((2, 1, 4), -0.5)}
    expected = torch.tensor([-1.0] * 4 + [1.0] * 4).expand(2, 1, 8)
    torch.testing.assert_close(features(taps, (1, 3)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("summary", SUMMARIES)
@pytest.mark.parametrize("output", ["log_probability", "probability"])
def test_saved_is_loaded(tmp_path: Path, lm: CausalLM, summary: str, output: str) -> None:
    saved = save_arm(tmp_path / "a", lm.model, tiny_tokenizer(), summary=summary, output=output)
    loaded = load_reward(saved, lm)
    assert isinstance(loaded, TapArm)
    assert loaded.head.config == ArmConfig(LAYERS, 32, 4, summary, output)  # type: ignore[arg-type]
    assert len(loaded.digest) == 16
    rewards = [
        score_path(lm, arm, [TEXTS[0]], [TEXTS[1]])
        for arm in (loaded, tiny_arm(lm, summary=summary, output=output))
    ]
    assert rewards[0] == rewards[1]


def test_loading_says_which_weights(tmp_path: Path, lm: CausalLM) -> None:
    digests = [
        TapArm.from_pretrained(
            save_arm(tmp_path / str(seed), lm.model, tiny_tokenizer(), seed=seed), lm
        ).digest
        for seed in (0, 1)
    ]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 64}, "hidden_size 32 in the reward, 64 in the model"),
        ({"num_layers": 2}, "num_layers 4 in the reward, 2 in the model"),
        ({"vocab_size": 301}, "vocab_size 300 in the reward, 301 in the model"),
        ({"tokenizer_hash": "f00"}, "'f00' in the model"),
    ],
)
def test_another_model_is_refused(
    tmp_path: Path, lm: CausalLM, changes: dict[str, object], said: str
) -> None:
    saved = save_arm(tmp_path / "a", lm.model, tiny_tokenizer())
    other = CausalLM(lm.model, replace(lm.identity, **changes))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said):
        load_reward(saved, other)


def test_other_weights_are_warned_of(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, lm: CausalLM
) -> None:
    """A head for the quantised model serves its full-precision twin, with one line said."""
    saved = save_arm(tmp_path / "a", lm.model, tokenizer)
    with pytest.warns(UserWarning, match="has other weights but the same shapes and tokenizer"):
        load_reward(saved, as_lm(tiny_llama(seed=5), tokenizer))


def test_bfloat16_is_no_other_model(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, lm: CausalLM) -> None:
    saved = save_arm(tmp_path / "a", lm.model, tokenizer)
    load_reward(saved, as_lm(tiny_llama().bfloat16(), tokenizer))


def _no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def _torn_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def _nan_weights(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["state.weight"][0, 0] = math.nan
    save_file(tensors, directory / "model.safetensors")


def _other_shape(directory: Path) -> None:
    _edit(directory, rank=5)


def _no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _torn_config(directory: Path) -> None:
    (directory / "config.json").write_text('{"kind": "tap_arm", ')


def _edit(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_no_weights, "model.safetensors cannot be read"),
        (_torn_weights, "model.safetensors cannot be read"),
        (_nan_weights, "'state.weight' holds NaN"),
        (_other_shape, "weights and config disagree"),
        (_no_config, "cannot read config.json"),
        (_torn_config, "not valid JSON"),
        (lambda d: _edit(d, kind=None), "has no 'kind'"),
        (lambda d: _edit(d, kind="oracle"), "unknown kind 'oracle'"),
        (lambda d: _edit(d, format_version=99), "format_version 99"),
        (lambda d: _edit(d, base_model=None), "does not name its base_model"),
        (lambda d: _edit(d, layers=None), "lacks or garbles 'layers'"),
        (lambda d: _edit(d, rank="many"), "lacks or garbles"),
        (lambda d: _edit(d, summary="all"), "unknown summary 'all'"),
        (lambda d: _edit(d, hidden_size=16), "reads 16 numbers a tap, the model has 32"),
    ],
)
def test_broken_heads(tmp_path: Path, lm: CausalLM, harm: Callable[[Path], None], said: str) -> None:
    saved = save_arm(tmp_path / "a", lm.model, tiny_tokenizer())
    harm(saved)
    with pytest.raises(UserError, match=said):
        load_reward(saved, lm)


def test_an_untrained_head_knows_nothing() -> None:
    """Log-odds near 0 for any state: the reward is the same for every candidate."""
    head = ArmHead(ArmConfig((1,), 32, rank=4, summary="none"))
    h, e = torch.randn(5, 32), torch.randn(5, 7, 32)
    assert head.score(head.state(h), head.vocabulary(e)).abs().max() < 1.5


def test_unknown_reward_names_the_near_ones(
    lm: CausalLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rewards.load.SHIPPED", tmp_path)
    save_arm(tmp_path / "positive", lm.model, tiny_tokenizer())
    assert load_reward("positive", lm)
    with pytest.raises(UserError, match="unknown reward 'postive': did you mean positive"):
        load_reward("postive", lm)
    arm = tiny_arm(lm)
    assert load_reward(arm, lm) is arm
