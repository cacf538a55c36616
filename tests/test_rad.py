"""RAD: a masked block, forked caches and reading every text anew give the same rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from decoder.contracts import Reading, TokenReward, UserError
from decoder.decoder import Decoder
from decoder.lm import CausalLM
from decoder.models import load_model
from decoder.replay import score_path
from rewards.backbone_heads import ValueHead
from rewards.backbone_session import Backbone
from rewards.load import load_reward
from rewards.path_reward import PathReward
from rewards.rad import Mode, Rad
from tests.backbones import (
    HIDDEN,
    PROMPTS,
    assert_rewards,
    decode_steps,
    save_reward,
    state,
    tiny_backbone,
    tiny_config,
    widen,
)
from tests.heads import as_lm, pad
from tests.tiny import ARCHITECTURES, BOS, CONTEXT, tiny_tokenizer

NOTHING = Reading(torch.empty(3, 0), {}, torch.ones(3, 1).bool())
ROWS = (0, 0, 1, 2, 2)
MODES: tuple[Mode, ...] = ("block", "forked")
CANDIDATES = torch.tensor([[60, 61, 62, 60], [70, 71, 72, 73], [80, 81, 82, 83]])  # one stands twice


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def lm(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> CausalLM:
    return as_lm(tiny_model, tokenizer)


def make_rad(backbone: Backbone, mode: Mode | None = None, **changes: Any) -> Rad:
    head = widen(ValueHead(backbone.lm.identity.hidden_size, len(changes.get("outputs", ("good",)))))
    return Rad.bind(head, backbone, tiny_config(backbone, **changes), "made", mode)


def naive(rad: Rad, text: list[int], token: int) -> float:
    """Return log P of the text with the token, read whole and alone."""
    value = float(rad.head.linear(state(rad.backbone.lm.model, [*text, token])))
    return -math.log1p(math.exp(-value))


def naive_scores(rad: Rad, texts: list[list[int]], ids: Tensor) -> Tensor:
    return torch.tensor([[naive(rad, t, v) for v in row] for t, row in zip(texts, ids.tolist(), strict=True)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_is_uncached(lm: CausalLM, architecture: str, mode: Mode) -> None:
    """In a ragged batch that is forked and loses rows, every reward is that of the text read whole."""
    rad = make_rad(tiny_backbone(architecture), mode)
    assert_rewards(decode_steps(lm, rad, ROWS), ROWS, lambda text, token: naive(rad, text, token))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_block_is_forked_is_one_by_one(architecture: str) -> None:
    """All candidates at once, in copies of the cache, and one candidate a call: the same to 3e-5."""
    rads = [make_rad(tiny_backbone(architecture), mode) for mode in MODES]
    block, forked = (rad.start(*pad(PROMPTS)) for rad in rads)
    single = rads[0].start(*pad(PROMPTS))
    for tokens in ([60, 73, 81], [62, 70, 83]):
        scores = [session.score(CANDIDATES, NOTHING) for session in (block, forked)]
        scores.append(torch.cat([single.score(CANDIDATES[:, [k]], NOTHING) for k in range(4)], 1))
        torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=3e-5)
        torch.testing.assert_close(scores[0], scores[2], rtol=0, atol=3e-5)
        for session in (block, forked, single):
            session.advance(torch.tensor(tokens))


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_selected_before_they_advance(mode: Mode) -> None:
    """A fork with repeats, then a row that leaves, between score and advance."""
    rad = make_rad(tiny_backbone(), mode)
    session = rad.start(*pad(PROMPTS))
    session.score(CANDIDATES, NOTHING)
    session.select(torch.tensor([2, 0, 0, 1]))
    session.select(torch.tensor([0, 2, 3]))
    session.advance(torch.tensor([82, 61, 70]))
    texts = [[*PROMPTS[2], 82], [*PROMPTS[0], 61], [*PROMPTS[1], 70]]
    torch.testing.assert_close(
        session.score(CANDIDATES, NOTHING), naive_scores(rad, texts, CANDIDATES), rtol=0, atol=3e-5
    )


@pytest.mark.parametrize("mode", MODES)
def test_tokens_that_were_not_scored_are_read(mode: Mode) -> None:
    """One row's token was no candidate, then none was asked for at all: the texts go on all the same."""
    rad = make_rad(tiny_backbone("gpt2"), mode)
    session = rad.start(*pad(PROMPTS))
    session.score(CANDIDATES, NOTHING)
    session.advance(torch.tensor([61, 200, 83]))
    session.select(torch.tensor([0, 1, 2, 1]))
    session.advance(torch.tensor([20, 21, 22, 23]))
    ids = CANDIDATES[[0, 1, 2, 0]]
    texts = [[*PROMPTS[0], 61, 20], [*PROMPTS[1], 200, 21], [*PROMPTS[2], 83, 22], [*PROMPTS[1], 200, 23]]
    found = session.score(ids, NOTHING)
    torch.testing.assert_close(found, naive_scores(rad, texts, ids), rtol=0, atol=3e-5)


class Counting:
    """How many tokens a model reads, and in how many calls."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.calls: list[int] = []
        model.base_model.register_forward_pre_hook(
            lambda _, __, given: self.calls.append(given["input_ids"].numel()), with_kwargs=True
        )


@pytest.mark.parametrize(("mode", "calls"), [("block", [24, 12, 12]), ("forked", [24, 12, 12])])
def test_the_sampled_branch_is_not_read_again(mode: Mode, calls: list[int]) -> None:
    """The prompts once (8 with BOS, 3 rows), then K tokens a row and step, in one call each."""
    backbone = tiny_backbone()
    seen = Counting(backbone.lm.model)
    session = make_rad(backbone, mode).start(*pad(PROMPTS))
    for _ in range(2):
        session.score(CANDIDATES, NOTHING)
        session.advance(CANDIDATES[:, 2])
    assert seen.calls == calls


def test_models_that_read_no_block() -> None:
    """Bloom and a sliding window are forked without being asked, and right; a block is refused by name."""
    settings = {"vocab_size": 300, "hidden_size": 32, "initializer_range": 0.4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bloom = BloomForCausalLM(BloomConfig(**settings, n_layer=2, n_head=4)).eval()
        mistral = MistralForCausalLM(
            MistralConfig(
                **settings, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=64, sliding_window=4,
            )
        ).eval()  # fmt: skip
    for model in (bloom, mistral):
        backbone = Backbone(as_lm(model, tiny_tokenizer()), BOS)
        rad = make_rad(backbone)
        assert rad.mode == "forked"
        session = rad.start(*pad(PROMPTS))
        texts = [list(prompt) for prompt in PROMPTS]
        for _ in range(2):
            found = session.score(CANDIDATES, NOTHING)
            torch.testing.assert_close(found, naive_scores(rad, texts, CANDIDATES), rtol=0, atol=3e-5)
            session.advance(CANDIDATES[:, 1])
            texts = [[*text, int(token)] for text, token in zip(texts, CANDIDATES[:, 1], strict=True)]
        with pytest.raises(UserError, match=f"mode is 'block', but {type(model).__name__}"):
            make_rad(backbone, "block")
    assert make_rad(tiny_backbone()).mode == "block"


def test_opposite_and_output_used() -> None:
    """The opposite is log P of not having the attribute; of several outputs the named one steers."""
    backbone = tiny_backbone()
    config = tiny_config(backbone, outputs=("one", "two"), use="two", output="probability")
    head = widen(ValueHead(HIDDEN, 2))
    rad = Rad.bind(head, backbone, config)
    h = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rad.value(h), h @ head.linear.weight[1] + head.linear.bias[1])
    p, q = (reward.to_reward(rad.value(h)) for reward in (rad, rad.opposite()))
    torch.testing.assert_close(p + q, torch.ones(5))
    assert rad.opposite().opposite() == rad


def test_in_every_entrance(tiny_dir: Path) -> None:
    """generate, stream and best_of_n take the object; a batch says what one prompt at a time says."""
    decoder, rad = Decoder(load_model(str(tiny_dir), dtype="float32")), make_rad(tiny_backbone("gpt_neox"))
    assert isinstance(rad, TokenReward)
    prompts, settings = (
        ["The rain", "A quiet street and a good morning", "x"],
        {"max_new_tokens": 6, "beta": 3.0},
    )
    together = decoder.generate(prompts, reward=rad, num_return_sequences=2, **settings)
    copies = decoder.generate(prompts, reward=replace(rad, mode="forked"), num_return_sequences=2, **settings)
    for prompt, generation, copied in zip(prompts, together, copies, strict=True):
        alone = decoder.generate(prompt, reward=rad, num_return_sequences=2, **settings)[0]
        for a, b, c in zip(generation.samples, alone.samples, copied.samples, strict=True):
            assert a.token_ids == b.token_ids == c.token_ids
            assert a.token_rewards["Rad"] == pytest.approx(b.token_rewards["Rad"], abs=3e-5)
    streamed = list(decoder.stream(prompts[0], reward=rad, **settings))
    assert [event.token_id for event in streamed] == list(together[0].samples[0].token_ids)
    assert streamed[0].rewards["Rad"] == pytest.approx(
        together[0].samples[0].token_rewards["Rad"][0], abs=3e-5
    )
    (chosen,) = decoder.best_of_n(prompts[0], n=3, scorer=PathReward(rad), max_new_tokens=6)
    ids = decoder.tokenizer(prompts[0]).input_ids
    wanted = score_path(decoder.lm, rad, [ids] * 3, [list(done.token_ids) for done in chosen.samples])
    for done, path in zip(chosen.samples, wanted, strict=True):
        assert next(iter(done.scores.values())) == pytest.approx(path[-1], abs=3e-5)
        assert path[-1] == pytest.approx(
            naive(rad, [*ids, *done.token_ids[:-1]], done.token_ids[-1]), abs=3e-5
        )


def test_a_candidate_beyond_the_backbone_is_refused() -> None:
    """The place of a candidate counts: a text that fills the context has none after it."""
    rad = make_rad(tiny_backbone("gpt2"))
    ids = torch.full((1, CONTEXT - 1), 5)
    with pytest.raises(UserError, match=f"reads at most {CONTEXT} tokens, and a text has {CONTEXT + 1}"):
        rad.start(ids, torch.ones_like(ids).bool()).score(torch.tensor([[6, 7]]), NOTHING)
    fits = ids[:, 1:]
    found = rad.start(fits, torch.ones_like(fits).bool()).score(torch.tensor([[6, 7]]), NOTHING)
    torch.testing.assert_close(
        found, naive_scores(rad, fits.tolist(), torch.tensor([[6, 7]])), rtol=0, atol=3e-5
    )


@pytest.mark.parametrize("adaptation", ["none", "lora", "full"])
def test_saved_and_loaded_is_the_same(tmp_path: Path, lm: CausalLM, adaptation: str) -> None:
    """The folder brings back head and backbone: the rewards of the model as it was trained, unmerged."""
    folder, model, head = save_reward(tmp_path, "rad", adaptation, lm, use="good", rank=None)
    rad = load_reward(folder, lm)
    assert isinstance(rad, Rad)
    found = rad.start(*pad(PROMPTS)).score(torch.tensor([[3, 4]] * 3), NOTHING)
    for row, text in zip(found.tolist(), PROMPTS, strict=True):
        values = [float(head(state(model, [*text, token]))[1]) for token in (3, 4)]
        assert row == pytest.approx([-math.log1p(math.exp(-v)) for v in values], abs=3e-5)
    (raw, clamped) = (load_reward(f"{folder}@{form}", lm) for form in ("probability", "log_probability"))
    assert raw.config.output == "probability"
    assert clamped.digest == rad.digest != raw.digest
