"""The self-checks: each compares two ways to the same result and says by how much they differ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from decoder.config import DecodeConfig
from decoder.contracts import Completion, TokenReward
from decoder.decoder import Decoder
from decoder.loop import ScoreError
from decoder.replay import left_pad, score_path
from decoder.tokenise import as_prompts

PROMPTS = ["The report says that", "Yes", "On Monday the team met in the small room behind the kitchen and"]
NEW_TOKENS = 12
# Logits and rewards are of size 1 to 30; float32 sums in another order move them by about 1e-5.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


@dataclass(frozen=True, slots=True)
class Check:
    """One result: what was compared, whether it holds, and the size of the difference."""

    name: str
    passed: bool
    detail: str


def all_checks(decoder: Decoder, reward: str | TokenReward | None) -> Iterator[Check]:
    """Yield every check of a model and, where one is given, a reward. A reward that does not fit raises
    UserError when it is loaded: vocabulary, tokenizer, hidden size and layers are compared there."""
    yield vocabulary_matches(decoder)
    yield single_bos(decoder)
    yield left_padding_is_inert(decoder)
    yield cached_is_uncached(decoder)
    yield plain_is_generate(decoder)
    if reward is None:
        return
    loaded = decoder.load_reward(reward)
    yield Check("reward fits the model", True, f"reads layers {', '.join(map(str, loaded.layers)) or 'none'}")
    try:
        steered = _decode(decoder, PROMPTS, loaded)
    except ScoreError as error:
        yield Check("reward is finite", False, str(error))
        return
    yield reward_is_finite(steered)
    yield batch_is_single(decoder, loaded, steered)
    yield twice_is_the_same(decoder, loaded, steered)
    yield beta_zero_is_plain(decoder, loaded)
    yield stepwise_is_replayed(decoder, loaded, steered)


def vocabulary_matches(decoder: Decoder) -> Check:
    """Every token id of the tokenizer has a row of logits."""
    rows, ids = decoder.lm.identity.vocab_size, len(decoder.tokenizer)
    return Check("tokenizer fits the vocabulary", ids <= rows, f"{ids} ids, {rows} rows of logits")


def single_bos(decoder: Decoder) -> Check:
    """Neither plain nor chat prompts start with two BOS."""
    bos = decoder.tokenizer.bos_token_id
    forms = [False, True] if decoder.tokenizer.chat_template else [False]
    starts = [decoder.tokenise(as_prompts(PROMPTS[0]), DecodeConfig(), chat=chat)[0][:2] for chat in forms]
    doubled = bos is not None and [bos, bos] in starts
    return Check("no double BOS", not doubled, f"prompts start with ids {', '.join(map(str, starts))}")


@torch.inference_mode()
def left_padding_is_inert(decoder: Decoder) -> Check:
    """Next-token logits of a padded batch are those of each prompt alone."""
    rows = _token_ids(decoder)
    together = decoder.lm.start().prefill(*left_pad(rows, decoder.lm.device)).logits
    alone = torch.cat(
        [decoder.lm.start().prefill(*left_pad([row], decoder.lm.device)).logits for row in rows]
    )
    return _close(decoder, "left padding changes nothing", (together - alone).abs().max())


@torch.inference_mode()
def cached_is_uncached(decoder: Decoder) -> Check:
    """Feeding tokens one by one gives the logits of reading the whole text at once."""
    ids, mask = left_pad(_token_ids(decoder)[2:], decoder.lm.device)
    session = decoder.lm.start()
    session.prefill(ids[:, :3], mask[:, :3])
    for position in range(3, ids.shape[1]):
        reading = session.feed(ids[:, position])
    whole = decoder.lm.start().prefill(ids, mask).logits
    return _close(decoder, "cached equals uncached", (reading.logits - whole).abs().max())


def plain_is_generate(decoder: Decoder) -> Check:
    """Greedy decoding without a reward gives the tokens of transformers' generate."""
    ids, mask = left_pad(_token_ids(decoder)[:1], decoder.lm.device)
    model: Any = decoder.lm.model  # generate() comes from a mixin that PreTrainedModel does not declare
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "repetition_penalty": 1.0}  # over its own
    theirs = model.generate(input_ids=ids, attention_mask=mask.long(), **settings)
    new = theirs[0, ids.shape[1] :].tolist()
    try:
        found = decoder.generate(PROMPTS[0], do_sample=False, max_new_tokens=NEW_TOKENS)
    except ScoreError as error:
        return Check("plain equals transformers' generate", False, str(error))
    ours = list(found[0].samples[0].token_ids)
    same = sum(a == b for a, b in zip(ours, new, strict=False))
    return Check("plain equals transformers' generate", ours == new, f"{same} of {len(new)} tokens agree")


def reward_is_finite(steered: list[Completion]) -> Check:
    """No reward is NaN or infinite."""
    values = [value for done in steered for row in done.token_rewards.values() for value in row]
    good = all(math.isfinite(value) for value in values)
    return Check(
        "reward is finite", good, f"{len(values)} values from {min(values):.3g} to {max(values):.3g}"
    )


def batch_is_single(decoder: Decoder, reward: TokenReward, steered: list[Completion]) -> Check:
    """A ragged batch gives every prompt the tokens and rewards it gets alone."""
    alone = [done for text in PROMPTS for done in _decode(decoder, [text], reward)]
    return _same_runs(decoder, "batch equals one by one", steered, alone)


def twice_is_the_same(decoder: Decoder, reward: TokenReward, steered: list[Completion]) -> Check:
    """A second call, after one of another shape, gives what the first gave: nothing leaks between calls."""
    _decode(decoder, PROMPTS[:1], reward)
    return _same_runs(decoder, "called twice, the same", steered, _decode(decoder, PROMPTS, reward))


def beta_zero_is_plain(decoder: Decoder, reward: TokenReward) -> Check:
    """With beta 0 every token is the plain model's, sampled with the same random numbers."""
    plain = decoder.generate(PROMPTS, max_new_tokens=NEW_TOKENS)
    zero = decoder.generate(PROMPTS, max_new_tokens=NEW_TOKENS, reward=reward, beta=0)
    pairs = [(a.samples[0].token_ids, b.samples[0].token_ids) for a, b in zip(plain, zero, strict=True)]
    same = sum(a == b for a, b in pairs)
    return Check("beta 0 equals the plain model", same == len(pairs), f"{same} of {len(pairs)} texts agree")


def stepwise_is_replayed(decoder: Decoder, reward: TokenReward, steered: list[Completion]) -> Check:
    """Rewards seen while decoding are those of reading the finished text again."""
    again = score_path(decoder.lm, reward, _token_ids(decoder), [list(done.token_ids) for done in steered])
    return _close(decoder, "decoded equals replayed reward", torch.tensor(_gap(steered, again)))


def _token_ids(decoder: Decoder) -> list[list[int]]:
    return decoder.tokenise(as_prompts(PROMPTS), DecodeConfig(max_new_tokens=NEW_TOKENS), chat=False)


def _decode(decoder: Decoder, texts: list[str], reward: TokenReward) -> list[Completion]:
    found = decoder.generate(texts, reward=reward, beta=2.0, max_new_tokens=NEW_TOKENS)
    return [generation.samples[0] for generation in found]


def _same_runs(decoder: Decoder, name: str, left: list[Completion], right: list[Completion]) -> Check:
    same = sum(a.token_ids == b.token_ids for a, b in zip(left, right, strict=True))
    gap = _gap(left, [list(next(iter(done.token_rewards.values()))) for done in right])
    passed = same == len(left) and gap <= TOLERANCE[decoder.lm.model.dtype]
    return Check(name, passed, f"{same} of {len(left)} texts agree, rewards differ by {gap:.1e}")


def _gap(runs: list[Completion], others: list[list[float]]) -> float:
    own = [next(iter(done.token_rewards.values())) for done in runs]
    return max(abs(a - b) for x, y in zip(own, others, strict=True) for a, b in zip(x, y, strict=False))


def _close(decoder: Decoder, name: str, gap: torch.Tensor) -> Check:
    limit = TOLERANCE[decoder.lm.model.dtype]
    return Check(name, bool(gap <= limit), f"largest difference {float(gap):.1e}, allowed {limit:.0e}")
