"""Rewards in plain `generate`: the tokens of our own loop, and of a processor that keeps nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

from decoder.contracts import Reading, TokenReward, UserError
from decoder.lm import CausalLM
from decoder.loop import Rows, decode
from decoder.sampling import SamplingConfig
from rewards.backbone_arm import BackboneArm
from rewards.backbone_heads import ActionValueHead, ValueHead
from rewards.compose import minimum
from rewards.logits_processor import RewardLogitsProcessor
from rewards.rad import Rad
from tests.backbones import tiny_backbone, tiny_config, widen
from tests.heads import as_lm, pad, tiny_arm
from tests.tiny import EOS, PAD, tiny_gpt2, tiny_llama, tiny_qwen2

PROMPTS = [[5, 17, 200], [9], [33, 44, 55, 66, 77, 88, 99]]
NEW = 7


@dataclass(frozen=True)
class SecondModel:
    """log P(v) of another model, left-padded, cached: a reward that owns its backbone."""

    lm: CausalLM
    sign: float = 1.0
    layers: tuple[int, ...] = ()
    digest: str = "second"

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> SecondSession:
        return SecondSession(self, prompt_ids, prompt_mask)

    def opposite(self) -> SecondModel:
        return replace(self, sign=-self.sign)


class SecondSession:
    def __init__(self, reward: SecondModel, ids: Tensor, mask: Tensor) -> None:
        self.reward, self.session = reward, reward.lm.start()
        self.reading = self.session.prefill(ids, mask)

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        return self.reward.sign * self.reading.logits.log_softmax(-1).gather(1, candidate_ids)

    def advance(self, token_ids: Tensor) -> None:
        self.reading = self.session.feed(token_ids)

    def select(self, rows: Tensor) -> None:
        self.session.select(rows)


@dataclass
class Naive:
    """What the processor should do, without a cache or a session: every text read whole, alone, unpadded."""

    model: PreTrainedModel
    beta: float
    k: int
    pads: Sequence[int]  # on the left of each prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        found = torch.full_like(scores, -torch.inf)
        beams = len(input_ids) // len(self.pads)
        for row, ids in enumerate(input_ids):
            text = ids[self.pads[row // beams] :]
            rewards = self.model(text[None], use_cache=False).logits[0, -1].log_softmax(-1)
            best = scores[row].topk(self.k).indices
            found[row, best] = scores[row, best] + self.beta * rewards[best]
        return found


@pytest.fixture(scope="module")
def second() -> SecondModel:
    return SecondModel(as_lm(tiny_gpt2(hidden=16, layers=2, heads=2, seed=3)))


def generated(
    model: PreTrainedModel, processor: Any, prompts: Any = PROMPTS, **options: Any
) -> list[list[int]]:
    """Return the new tokens of each row from transformers' own `generate`."""
    ids, mask = pad(prompts, PAD)
    given = {"do_sample": False, "max_new_tokens": NEW, **options}
    processors = LogitsProcessorList([processor] if processor else [])
    out = model.generate(input_ids=ids, attention_mask=mask.long(), logits_processor=processors, **given)
    return out[:, ids.shape[1] :].tolist()


def ours(model: PreTrainedModel, reward: Any, beta: float, k: int) -> list[list[int]]:
    """Return the new tokens of each row from our own loop, padded as transformers pads them."""
    rows = Rows(*pad(PROMPTS), torch.arange(3), torch.zeros(3, NEW), torch.full((3, 1), beta))
    tokens: list[list[int]] = [[] for _ in PROMPTS]
    greedy = SamplingConfig(do_sample=False, reward_top_k=k)
    for step in decode(as_lm(model), rows, [reward], greedy, stop_ids=torch.tensor([EOS])):
        for row, token in zip(step.rows.tolist(), step.token_ids.tolist(), strict=True):
            tokens[row].append(token)
    width = max(map(len, tokens))
    return [row + [PAD] * (width - len(row)) for row in tokens]


def mask_of(prompts: Sequence[Sequence[int]] = PROMPTS) -> Tensor:
    return pad(prompts)[1].long()


@pytest.mark.parametrize("beta", [2.0, -1.0])
def test_greedy_is_our_own_loop(any_model: PreTrainedModel, second: SecondModel, beta: float) -> None:
    """A ragged, left-padded batch, token for token; and the reward does change the text."""
    processor = RewardLogitsProcessor(second, beta, 12, attention_mask=mask_of())
    found = generated(any_model, processor)
    acting = second if beta > 0 else second.opposite()
    assert found == ours(any_model, acting, beta, 12)
    assert found != generated(any_model, None)


def test_rows_that_end_early_trouble_nobody(second: SecondModel) -> None:
    """transformers goes on feeding pads to finished rows; the others are what they are alone."""
    model = tiny_llama()
    whole = generated(model, RewardLogitsProcessor(second, 2.0, 12, attention_mask=mask_of()))
    model.generation_config.eos_token_id = [EOS, whole[1][2]]
    found = generated(model, RewardLogitsProcessor(second, 2.0, 12, attention_mask=mask_of()))
    assert found[1] == whole[1][:3] + [PAD] * (len(found[1]) - 3)
    assert len(found[1]) > 3
    for row, prompt in zip(found, PROMPTS, strict=True):
        (alone,) = generated(model, RewardLogitsProcessor(second, 2.0, 12), [prompt])
        assert row == alone + [PAD] * (len(row) - len(alone))


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
def test_beam_search_is_that_of_a_processor_without_state(second: SecondModel, make: Any, beams: int) -> None:
    """Beams are reordered at every step: sessions follow them, on ragged prompts and several results."""
    model = make()
    options = {"num_beams": beams, "num_return_sequences": 2, "length_penalty": 0.0}
    found = generated(model, RewardLogitsProcessor(second, 1.5, 9, attention_mask=mask_of()), **options)
    naive = Naive(second.lm.model, 1.5, 9, pads=[7 - len(prompt) for prompt in PROMPTS])
    assert found == generated(model, naive, **options)
    assert found != generated(model, None, **options)
    assert len(found) == 6


def test_beams_do_move(second: SecondModel) -> None:
    """The test above would prove nothing if every beam stayed in its row."""
    moves = []

    class Watched(RewardLogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            if self._call is not None:
                moves.append(not torch.equal(self._call.ids, input_ids[:, :-1]))
            return super().__call__(input_ids, scores)

    generated(tiny_llama(), Watched(second, 1.5, 9, attention_mask=mask_of()), num_beams=4)
    assert sum(moves) > 2


def test_samples_are_those_of_a_processor_without_state(
    tiny_model: PreTrainedModel, second: SecondModel
) -> None:
    """Sampling with several sequences a prompt: the mask of the prompts is repeated as `generate` does it."""
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 3, "temperature": 1.3, "top_k": 0}
    naive = Naive(second.lm.model, 2.0, 12, pads=[7 - len(prompt) for prompt in PROMPTS])
    found = []
    for processor in (RewardLogitsProcessor(second, 2.0, 12, attention_mask=mask_of()), naive):
        torch.manual_seed(4)
        found.append(generated(tiny_model, processor, **options))
    assert found[0] == found[1]
    assert len({tuple(row) for row in found[0]}) > 3


def test_no_state_across_calls(tiny_model: PreTrainedModel, second: SecondModel) -> None:
    """One processor, many calls: prompts longer, shorter, one token longer than what it saw, and again."""
    shared = RewardLogitsProcessor(second, 2.0, 12)
    lengths = [3, 3, 3 + NEW, 4 + NEW, 1, 2, NEW + 2]
    for number, length in enumerate(lengths):
        prompts = [[(31 * number + 7 * i) % 290 + 3 for i in range(length)]]
        fresh = generated(tiny_model, RewardLogitsProcessor(second, 2.0, 12), prompts)
        assert generated(tiny_model, shared, prompts) == fresh, f"call {number}"


def test_a_call_that_goes_on_where_the_last_ended(tiny_model: PreTrainedModel, second: SecondModel) -> None:
    """The text of one call as the prompt of the next, as in a chat: as a fresh processor says."""
    shared, prompt = RewardLogitsProcessor(second, 2.0, 12), PROMPTS[0]
    for _ in range(3):
        fresh = generated(tiny_model, RewardLogitsProcessor(second, 2.0, 12), [prompt], max_new_tokens=3)
        assert generated(tiny_model, shared, [prompt], max_new_tokens=3) == fresh
        prompt = prompt + fresh[0]


def test_an_interrupted_call_leaves_nothing(tiny_model: PreTrainedModel, second: SecondModel) -> None:
    """A call that ended early is forgotten when the next begins, and `reset` frees its caches at once."""
    shared = RewardLogitsProcessor(second, 2.0, 12, attention_mask=mask_of())
    ids, _ = pad(PROMPTS, PAD)
    first = shared(ids, torch.randn(3, 300, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(first).sum(1).tolist() == [12, 12, 12]
    fresh = generated(tiny_model, RewardLogitsProcessor(second, 2.0, 12, attention_mask=mask_of()))
    assert generated(tiny_model, shared) == fresh
    assert shared._call is not None
    shared.reset()
    assert shared._call is None
    assert generated(tiny_model, shared) == fresh


def test_pads_are_told_by_the_mask_alone(second: SecondModel) -> None:
    """A prompt that begins with the pad id, unpadded, beside a padded one: only the mask tells them apart."""
    ids = torch.tensor([[PAD, 5, 17], [PAD, 5, 17]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    scores = torch.randn(1, 300, generator=torch.Generator().manual_seed(1)).expand(2, -1)
    found = RewardLogitsProcessor(second, 1.0, 9, attention_mask=mask)(ids, scores)
    whole = second.lm.model(ids[:1]).logits[0, -1].log_softmax(-1)
    short = second.lm.model(ids[:1, 1:]).logits[0, -1].log_softmax(-1)
    best = scores[0].topk(9).indices
    for row, rewards in zip(found, (whole, short), strict=True):
        torch.testing.assert_close(row[best], scores[0, best] + rewards[best], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole[best], short[best], atol=0.1)


def test_rows_may_come_back_in_any_order(second: SecondModel) -> None:
    """Rows repeated, swapped and fewer: each goes on from its own text."""
    ids, mask = pad(PROMPTS, PAD)
    processor = RewardLogitsProcessor(second, 1.0, 300, attention_mask=mask.long())
    scores = torch.zeros(3, 300)
    processor(ids, scores)
    order, drawn = [2, 0, 2], torch.tensor([[50], [60], [70]])
    moved = torch.cat([ids[order], drawn], 1)
    check(
        second, processor(moved, scores), [[*PROMPTS[r], int(t)] for r, t in zip(order, drawn, strict=True)]
    )
    fewer = torch.cat([moved[:2], torch.tensor([[80], [90]])], 1)
    check(second, processor(fewer, scores[:2]), [[*PROMPTS[2], 50, 80], [*PROMPTS[0], 60, 90]])


def check(second: SecondModel, found: Tensor, texts: Sequence[Sequence[int]]) -> None:
    for row, text in zip(found, texts, strict=True):
        expected = second.lm.model(torch.tensor([text])).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)


def test_compositions_and_several_rewards(tiny_model: PreTrainedModel, second: SecondModel) -> None:
    """A composition of rewards that own their backbones is one; the sum is the two of them."""
    other = SecondModel(as_lm(tiny_llama(hidden=16, layers=2, heads=2, seed=5)))
    both = RewardLogitsProcessor([second, other], [1.0, 2.0], 12, attention_mask=mask_of())
    worst = RewardLogitsProcessor(minimum(second, other), 2.0, 12, attention_mask=mask_of())
    assert generated(tiny_model, worst) == ours(tiny_model, minimum(second, other), 2.0, 12)
    ids, _ = pad(PROMPTS, PAD)
    scores = torch.zeros(3, 300)
    apart = [
        RewardLogitsProcessor(one, beta, 300, attention_mask=mask_of())(ids, scores)
        for one, beta in ((second, 1.0), (other, 2.0))
    ]
    whole = RewardLogitsProcessor([second, other], [1.0, 2.0], 300, attention_mask=mask_of())(ids, scores)
    torch.testing.assert_close(whole, apart[0] + apart[1])
    assert generated(tiny_model, both) != generated(tiny_model, worst)


class Forgetful:
    """A processor that reads every row whole, alone and unpadded, at every step, in a new session."""

    def __init__(self, reward: TokenReward, beta: float, k: int, pads: Sequence[int]) -> None:
        self.reward, self.beta, self.k, self.pads = reward, beta, k, pads

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        found, beams = torch.full_like(scores, -torch.inf), len(input_ids) // len(self.pads)
        for row, ids in enumerate(input_ids):
            text, best = ids[None, self.pads[row // beams] :], scores[row].topk(self.k).indices
            mask = torch.ones_like(text, dtype=torch.bool)
            rewards = self.reward.start(text, mask).score(
                best[None], Reading(scores[row : row + 1], {}, mask)
            )
            found[row, best] = scores[row, best] + self.beta * rewards[0]
        return found


@pytest.mark.parametrize("kind", ["arm", "rad"])
def test_backbone_rewards(tiny_model: PreTrainedModel, kind: str) -> None:
    """Our own rewards with a backbone: greedy as in our loop, and beams, whose tokens RAD has not always
    scored (pads of finished rows), as without a state."""
    backbone = tiny_backbone()
    reward: Any
    if kind == "arm":
        head = widen(ActionValueHead(backbone.lm.identity.hidden_size))
        reward = BackboneArm.bind(head, backbone, tiny_config(backbone))
    else:
        reward = Rad.bind(widen(ValueHead(backbone.lm.identity.hidden_size)), backbone, tiny_config(backbone))
    processor = RewardLogitsProcessor(reward, 4.0, 8, attention_mask=mask_of())
    assert generated(tiny_model, processor) == ours(tiny_model, reward, 4.0, 8)
    assert generated(tiny_model, processor) != generated(tiny_model, None)
    options = {"num_beams": 3, "num_return_sequences": 2}
    forgetful = Forgetful(reward, 4.0, 8, pads=[7 - len(prompt) for prompt in PROMPTS])
    assert generated(tiny_model, processor, **options) == generated(tiny_model, forgetful, **options)


def test_beta_zero_is_the_plain_model(tiny_model: PreTrainedModel, second: SecondModel) -> None:
    """Nothing is touched, the tokens outside the candidates included."""
    processor = RewardLogitsProcessor(second, 0.0)
    scores = torch.randn(1, 300)
    assert processor(torch.tensor([[5]]), scores) is scores
    assert generated(tiny_model, processor) == generated(tiny_model, None)


def test_half_precision_scores_stay_so(second: SecondModel) -> None:
    found = RewardLogitsProcessor(second, 1.0)(torch.tensor([[5]]), torch.randn(1, 300).bfloat16())
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda arm, s: RewardLogitsProcessor(arm), r"TapArm reads .*\(layers 1, 3\).*custom_generate"),
        (lambda arm, s: RewardLogitsProcessor(minimum(s, s) + arm), r"Composition reads .*\(layers 1, 3\)"),
        (lambda arm, s: RewardLogitsProcessor([s, arm], [1.0, 0.0]), "TapArm reads"),
        (lambda arm, s: RewardLogitsProcessor("positive"), "reward 'positive' is a name"),
        (lambda arm, s: RewardLogitsProcessor(7), "int is no token reward"),
        (lambda arm, s: RewardLogitsProcessor({"positive": 1.0}), "rewards is a mapping"),
        (lambda arm, s: RewardLogitsProcessor([s], [1.0, 2.0]), "2 betas for 1 rewards"),
        (lambda arm, s: RewardLogitsProcessor(s, float("nan")), "is nan"),
        (lambda arm, s: RewardLogitsProcessor(s, 1.0, 0), "reward_top_k is 0"),
    ],
)
def test_what_it_cannot_do_is_refused(
    tiny_model: PreTrainedModel, second: SecondModel, make: Any, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make(tiny_arm(as_lm(tiny_model)), second)
    assert "\n" not in str(caught.value)


def test_prompts_it_cannot_tell_from_padding(tiny_model: PreTrainedModel, second: SecondModel) -> None:
    """Several prompts without a mask, a mask of another batch, and no ids at all."""
    with pytest.raises(UserError, match="3 rows of several prompts, without a mask"):
        generated(tiny_model, RewardLogitsProcessor(second))
    other = RewardLogitsProcessor(second, attention_mask=mask_of([[1, 2], [3]]))
    with pytest.raises(UserError, match=r"2 prompts of 2 tokens, generate began with 3 rows of 7"):
        generated(tiny_model, other)
    embeds = tiny_model.get_input_embeddings()(torch.tensor([[5, 17]]))
    processors = LogitsProcessorList([RewardLogitsProcessor(second)])
    with pytest.raises(UserError, match="no prompt ids"):
        tiny_model.generate(inputs_embeds=embeds, max_new_tokens=2, logits_processor=processors)


def test_a_broken_reward_names_its_row(second: SecondModel) -> None:
    """A score that is no number ends the call, as in our own loop."""
    model = copy.deepcopy(second.lm.model)
    model.transformer.wpe.weight.data[1] = float("nan")  # the second position, which the padded row has not
    processor = RewardLogitsProcessor(
        SecondModel(as_lm(model)), attention_mask=torch.tensor([[0, 1], [1, 1]])
    )
    with pytest.raises(UserError, match="row 1: a score is NaN"):
        processor(torch.tensor([[5, 6], [5, 7]]), torch.zeros(2, 300))
