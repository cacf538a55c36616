"""Experts, prompting and text reward models as token rewards: each is what reading every text anew says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from decoder.contracts import Drawn, Reading, TokenReward, UserError
from decoder.decoder import Decoder
from decoder.lm import CausalLM
from decoder.models import LoadedModel
from decoder.replay import score_path
from rewards.compose import minimum, product
from rewards.language_model_reward import LanguageModelReward
from rewards.load import load_reward
from rewards.path_reward import PathReward
from rewards.prompted import PromptedReward
from rewards.text_reward import TextReward
from rewards.text_token_reward import TextTokenReward
from tests.backbones import PROMPTS, assert_rewards, decode_steps
from tests.heads import as_lm, pad
from tests.tiny import ARCHITECTURES, BOS, CONTEXT, EOS, PAD, VOCAB, tiny_llama, tiny_tokenizer

ROWS = (0, 0, 1, 2, 2)
NOTHING = Reading(torch.empty(3, 0), {}, torch.ones(3, 1).bool())
CANDIDATES = torch.tensor([[60, 61, 62, 60], [70, 71, 72, 73], [80, 81, 82, 83]])  # one stands twice
INSTRUCTION = "A good story:\n"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def lm(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> CausalLM:
    return as_lm(tiny_model, tokenizer)


@pytest.fixture(scope="module")
def decoder(lm: CausalLM, tokenizer: PreTrainedTokenizerFast) -> Decoder:
    return Decoder(LoadedModel(lm, tokenizer))


def make_lm(architecture: str, seed: int) -> CausalLM:
    return as_lm(ARCHITECTURES[architecture](hidden=40, layers=3, seed=seed), tiny_tokenizer())


def log_p(model: Any, text: Sequence[int], token: int) -> float:
    """Return log P of the token after the text: no cache, no padding, the plain model."""
    logits = model(input_ids=torch.tensor([list(text)]), use_cache=False).logits[0, -1].double()
    return float(logits.log_softmax(-1)[token])


def behind_bos(text: Sequence[int]) -> list[int]:
    return list(text) if text[0] == BOS else [BOS, *text]


def pair(lm: CausalLM, architecture: str = "llama") -> LanguageModelReward:
    sides = (make_lm(architecture, seed) for seed in (7, 8))
    return LanguageModelReward.from_models(*sides, generator=lm, bos_token_id=BOS)


def naive_ratio(reward: LanguageModelReward, text: list[int], token: int) -> float:
    assert reward.expert is not None
    assert reward.anti_expert is not None
    models = (reward.expert.lm.model, reward.anti_expert.lm.model)
    expert, anti = (log_p(model, behind_bos(text), token) for model in models)
    return expert - anti


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_experts_are_read_as_from_scratch(lm: CausalLM, architecture: str) -> None:
    """In a ragged batch that is forked and loses rows, r is the log-ratio of the whole texts."""
    reward = pair(lm, architecture)
    assert_rewards(decode_steps(lm, reward, ROWS), ROWS, lambda text, v: naive_ratio(reward, text, v))


def test_one_model_alone(lm: CausalLM) -> None:
    """An ARM that is a language model reads the generator's own tokens; its opposite is its negative."""
    arm = make_lm("gpt2", 7)
    reward = LanguageModelReward.from_models(arm, generator=lm)
    assert_rewards(decode_steps(lm, reward, ROWS), ROWS, lambda text, v: log_p(arm.model, text, v))
    anti = LanguageModelReward.from_models(anti_expert=arm, generator=lm)
    for other in (reward.opposite(), anti):
        found = other.start(*pad(PROMPTS)).score(CANDIDATES, NOTHING)
        assert torch.equal(found, -reward.start(*pad(PROMPTS)).score(CANDIDATES, NOTHING))
    assert len({reward.digest, anti.digest, pair(lm).digest}) == 3


@pytest.mark.parametrize("kind", ["experts", "prompted", "text"])
def test_rows_are_selected_before_they_advance(lm: CausalLM, decoder: Decoder, kind: str) -> None:
    """A fork with repeats and a row that leaves: the same as sessions of the rows alone."""
    reward = make(kind, lm, decoder)
    texts = [[*PROMPTS[2], 82], [*PROMPTS[0], 61], [*PROMPTS[1], 70]]
    reading = Reading(torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0)), {}, NOTHING.mask)
    session = reward.start(*pad(PROMPTS))
    session.score(CANDIDATES, reading)
    session.select(torch.tensor([2, 0, 0, 1]))
    session.select(torch.tensor([0, 2, 3]))
    session.advance(torch.tensor([82, 61, 70]))
    found = session.score(CANDIDATES, reading)
    alone = [
        reward.start(*pad([text])).score(CANDIDATES[[i]], reading.select(torch.tensor([i])))
        for i, text in enumerate(texts)
    ]
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=3e-5)


def make(kind: str, lm: CausalLM, decoder: Decoder) -> TokenReward:
    if kind == "experts":
        return pair(lm)
    if kind == "prompted":
        return PromptedReward.from_text(INSTRUCTION, lm, decoder.tokenizer)
    return TextTokenReward(text_model(), decoder.tokenizer)


def test_an_expert_minus_itself_is_nothing(lm: CausalLM, decoder: Decoder) -> None:
    """r is 0 everywhere, exactly, and a greedy decode goes as it does without it."""
    expert = make_lm("qwen2", 7)
    reward = LanguageModelReward.from_models(expert, expert, generator=lm)
    assert all((step.rewards == 0).all() for step in decode_steps(lm, reward, ROWS))
    given = {"max_new_tokens": 6, "do_sample": False}
    (plain,), (steered,) = (decoder.generate("Rain", reward=one, **given) for one in (None, reward))
    assert plain.samples[0].token_ids == steered.samples[0].token_ids


def test_they_compose_and_steer(lm: CausalLM, decoder: Decoder) -> None:
    """Sums and negative weights are what they are for other rewards; P and log P they are not."""
    experts, text = pair(lm), make("text", lm, decoder)
    terms = [one.start(*pad(PROMPTS)).score(CANDIDATES, NOTHING) for one in (experts, text)]
    mixed = (experts * 2 + text * -0.5).start(*pad(PROMPTS)).score(CANDIDATES, NOTHING)
    torch.testing.assert_close(mixed, 2 * terms[0] - 0.5 * terms[1])
    with pytest.raises(UserError, match="does not declare whether it gives P or log P"):
        product(experts, experts)
    assert minimum(experts, experts.opposite()).start(*pad(PROMPTS)).score(CANDIDATES, NOTHING).max() <= 0
    (toward,) = decoder.generate("Rain", reward=experts, beta=2, max_new_tokens=4, trace=True)
    (away,) = decoder.generate("Rain", reward=experts, beta=-2, max_new_tokens=4, trace=True)
    assert toward.samples[0].token_ids != away.samples[0].token_ids
    ids = decoder.tokenizer("Rain")["input_ids"]
    path = score_path(lm, experts, [ids], [toward.samples[0].token_ids])[0]
    (found,) = toward.samples[0].token_rewards.values()
    assert found == pytest.approx(path, abs=1e-4)


def test_prompted_is_the_generator_with_an_instruction(lm: CausalLM, decoder: Decoder) -> None:
    """r is the log-ratio with and without the instruction, which stands after a BOS that is there."""
    reward = make("prompted", lm, decoder)
    said = decoder.tokenizer(INSTRUCTION)["input_ids"]

    def naive(text: list[int], token: int) -> float:
        n_bos = int(text[0] == BOS)
        told = [*text[:n_bos], *said, *text[n_bos:]]
        return log_p(lm.model, told, token) - log_p(lm.model, text, token)

    assert_rewards(decode_steps(lm, reward, ROWS), ROWS, naive)
    given = {"max_new_tokens": 8, "do_sample": False, "reward_top_k": VOCAB, "top_k": 0}
    steered = decoder.generate("Rain", reward=reward, beta=1, **given)[0].samples[0]
    told = decoder.generate(INSTRUCTION + "Rain", **given)[0].samples[0]
    assert steered.token_ids == told.token_ids
    away = reward.opposite().start(*pad(PROMPTS)).score(CANDIDATES, lm.start().prefill(*pad(PROMPTS)))
    toward = reward.start(*pad(PROMPTS)).score(CANDIDATES, lm.start().prefill(*pad(PROMPTS)))
    assert torch.equal(away, -toward)


def test_prompted_is_saved_and_refuses(lm: CausalLM, decoder: Decoder, tmp_path: Path) -> None:
    """The folder is read as any reward's; another tokenizer, a broken file and blind readings are refused."""
    reward = PromptedReward.from_text(INSTRUCTION, lm, decoder.tokenizer)
    reward.save_pretrained(tmp_path / "told")
    assert load_reward(tmp_path / "told", lm) == reward
    with pytest.raises(UserError, match="leave @probability out"):
        load_reward(f"{tmp_path / 'told'}@probability", lm)
    with pytest.raises(UserError, match="gives no token"):
        PromptedReward.from_text("", lm, decoder.tokenizer)
    probe = PathReward(reward).start(*pad(PROMPTS), lm.start().prefill(*pad(PROMPTS)))
    with pytest.raises(UserError, match="cannot score samples"):
        probe.update(Drawn(torch.tensor([[1], [2], [3]]), torch.ones(3, 1).bool(), {}, None))
    path = tmp_path / "told" / "config.json"
    whole = json.loads(path.read_text())
    for name, value, said in (
        ("prefix_ids", [VOCAB], "not tokens 0 to 299"),
        ("base_model", {**whole["base_model"], "tokenizer_hash": "other"}, "made for the tokenizer"),
        ("instruction", None, ""),
    ):
        changed = {**whole, name: value} if said else {k: v for k, v in whole.items() if k != name}
        path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=said or "lacks or garbles 'instruction'"):
            load_reward(tmp_path / "told", lm)


def text_model(n_labels: int = 1) -> TextReward:
    """Return a random text reward model with wide weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
            initializer_range=0.4, num_labels=n_labels, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
        )  # fmt: skip
        model = LlamaForSequenceClassification(config).eval()
    return TextReward(model, tiny_tokenizer(), "tiny", n_labels - 1, CONTEXT)


def bare_logits(reward: TextTokenReward, ids: Sequence[int]) -> Tensor:
    """Return the classifier's logits (L,) of one decoded text, alone."""
    text = reward.tokenizer.decode(list(ids), skip_special_tokens=True)
    return reward.model.model(**reward.model.tokenizer(text, return_tensors="pt")).logits[0]


@pytest.mark.parametrize("max_tokens", [1, 40, 4096])
def test_text_reward_is_that_of_each_decoded_text(lm: CausalLM, decoder: Decoder, max_tokens: int) -> None:
    """However many texts are read at once; an end candidate leaves the text as it is."""
    reward = TextTokenReward(text_model(), decoder.tokenizer, max_tokens=max_tokens)
    steps = decode_steps(lm, reward, ROWS)
    assert_rewards(steps, ROWS, lambda text, v: float(bare_logits(reward, [*text, v])))
    ends = torch.tensor([[EOS], [60], [61]])
    found = reward.start(*pad(PROMPTS)).score(ends, NOTHING)[0, 0]
    torch.testing.assert_close(found, bare_logits(reward, PROMPTS[0])[0], rtol=0, atol=3e-5)


def test_text_reward_as_a_probability(decoder: Decoder) -> None:
    """With two labels it is the softmax's; the opposite is that of the other label."""
    plain = TextTokenReward(text_model(2), decoder.tokenizer)
    found = {
        form: TextTokenReward(text_model(2), decoder.tokenizer, form)
        for form in ("log_probability", "probability")
    }
    wanted = torch.stack(
        [
            bare_logits(plain, [*text, v])
            for text, ids in zip(PROMPTS, CANDIDATES.tolist(), strict=True)
            for v in ids
        ]
    ).softmax(-1)
    for form, reward in found.items():
        for one, label in ((reward, 1), (reward.opposite(), 0)):
            got = one.start(*pad(PROMPTS)).score(CANDIDATES, NOTHING)
            got = got.exp() if form == "log_probability" else got
            torch.testing.assert_close(got.flatten(), wanted[:, label], rtol=0, atol=3e-5)
    assert len({plain.digest, *(reward.digest for reward in found.values())}) == 3
    assert product(*found.values()) is not None  # both say what they are


def test_what_cannot_be_read_is_refused(lm: CausalLM, decoder: Decoder) -> None:
    """Too long, empty, or in other tokens: one line that says which."""
    reward = TextTokenReward(text_model(), decoder.tokenizer)
    with pytest.raises(UserError, match="it reads 1 to 128 tokens"):
        reward.start(*pad([[60] * CONTEXT])).score(torch.tensor([[60]]), NOTHING)
    with pytest.raises(UserError, match="gives no score to ''"):
        reward.start(*pad([[BOS]])).score(torch.tensor([[EOS]]), NOTHING)
    experts = pair(lm)
    with pytest.raises(UserError, match="reads at most 128 tokens, and a text has 129"):
        experts.start(*pad([[60] * CONTEXT]))
    session = experts.start(*pad([[60] * (CONTEXT - 1)]))
    with pytest.raises(UserError, match="shorten the prompt"):
        session.advance(torch.tensor([61]))
    with pytest.raises(UserError, match="give an expert, an anti_expert or both"):
        LanguageModelReward.from_models(generator=lm)
    with pytest.raises(UserError, match="reads other tokens than the model"):
        LanguageModelReward.from_models(as_lm(tiny_llama(vocab=280), tiny_tokenizer()), generator=lm)
