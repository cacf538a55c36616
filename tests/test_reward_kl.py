"""Rewards and KL: closed forms on traces made by hand, and a real trace against the model's logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from decoder.contracts import UserError
from decoder.decoder import Decoder
from decoder.models import LoadedModel
from decoder.records import to_record
from eval.generations import PromptSamples
from eval.metric import Metric
from eval.reward_kl import RewardAndKL, step_kl
from tests.heads import as_lm, tiny_arm
from tests.tiny import tiny_llama, tiny_tokenizer

HALVES = {"base_logprobs": [math.log(0.25), math.log(0.25)], "rewards": {"toy": [0.0, 1.0]}}


def samples(*records: dict[str, Any]) -> PromptSamples:
    return PromptSamples("0", "The film", ("x",) * len(records), records, "g.jsonl, line 3")


def step(scores: list[float], **fields: Any) -> dict[str, Any]:
    return {**HALVES, "scores": scores, **fields}


def test_it_is_a_metric() -> None:
    metric = RewardAndKL()
    assert isinstance(metric, Metric)
    assert metric.name == "reward_kl"
    assert metric.per_sample


def test_kl_in_closed_form() -> None:
    """Base 1/4 and 1/4 of the whole, policy 1/4 and 3/4: log 2 nats more against the whole base."""
    whole, among = step_kl(np.log([0.25, 0.25]), np.log([1.0, 3.0]))
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert among == pytest.approx(expected)
    assert whole == pytest.approx(0.25 * math.log(0.25 / 0.25) + 0.75 * math.log(0.75 / 0.25))
    assert whole == pytest.approx(expected + math.log(2))


def test_a_constant_score_changes_nothing() -> None:
    base, scores = np.log([0.5, 0.2, 0.1]), np.array([1.0, 2.0, 4.0])
    assert step_kl(base, scores + 100) == pytest.approx(step_kl(base, scores))
    assert step_kl(base, base + 7)[1] == pytest.approx(0, abs=1e-12)
    assert step_kl(base, base + 7)[0] == pytest.approx(-math.log(0.8))


def test_kl_sums_over_the_tokens() -> None:
    [[one, two, free]] = RewardAndKL().score(
        [
            samples(
                {"trace": [step([0.0, 1.0])]},
                {"trace": [step([0.0, 1.0]), step([0.0, -2.0])]},
                {"trace": [step([0.0, 1.0], rewards={})]},
            )
        ]
    )
    steps = [step_kl(np.array(HALVES["base_logprobs"]), np.array(s)) for s in ([0.0, 1.0], [0.0, -2.0])]
    assert (one["kl"], one["kl_candidates"]) == pytest.approx(steps[0])
    assert two["kl"] == pytest.approx(steps[0][0] + steps[1][0])
    assert two["kl_candidates"] == pytest.approx(steps[0][1] + steps[1][1])
    assert (free["kl"], free["kl_candidates"]) == (0, 0)  # no reward acted: the base model drew it


@pytest.mark.parametrize("beta", [3.0, -1.5])
def test_a_real_trace_against_the_models_logits(beta: float) -> None:
    """The policy over the whole vocabulary, built again from the model and the traced rewards."""
    tokenizer, model = tiny_tokenizer(), tiny_llama()
    lm = as_lm(model, tokenizer)
    [done] = Decoder(LoadedModel(lm, tokenizer)).generate(
        "The film", reward=tiny_arm(lm), beta=beta, trace=True, max_new_tokens=5, num_return_sequences=2
    )
    records = [to_record(completion, seed=0) for completion in done.samples]
    found = RewardAndKL().score([samples(*records)])[0]
    prompt = tokenizer("The film").input_ids
    for record, scored in zip(records, found, strict=True):
        whole = among = 0.0
        for i, traced in enumerate(record["trace"]):
            ids = torch.tensor([prompt + record["token_ids"][:i]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, -1].double()
            candidates = logits.topk(20).indices
            assert candidates.tolist() == traced["candidate_ids"]
            [rewards] = traced["rewards"].values()
            steered = torch.full_like(logits, -math.inf)
            steered[candidates] = logits[candidates] + abs(beta) * torch.tensor(rewards).double()
            kept = torch.full_like(logits, -math.inf)
            kept[candidates] = logits[candidates]
            whole += kl(steered, logits)
            among += kl(steered, kept)
        assert scored["kl"] == pytest.approx(whole, abs=1e-3)
        assert scored["kl_candidates"] == pytest.approx(among, abs=1e-3)
        assert scored["kl_candidates"] > 0.01
        assert scored["reward"] == record["reward"]
        assert [scored[f"reward.{name}"] for name in record["rewards"]] == list(record["rewards"].values())


def kl(policy: torch.Tensor, base: torch.Tensor) -> float:
    p, q = policy.log_softmax(-1), base.log_softmax(-1)
    open_ = policy.isfinite()
    return float((p[open_].exp() * (p[open_] - q[open_])).sum())


def test_what_a_sample_lacks_is_not_scored() -> None:
    metric = RewardAndKL()
    scores = metric.score(
        [
            samples({"reward": 2.0, "rewards": {"toy": 1.0}}, {"reward": None, "rewards": {}, "trace": None}),
            samples({"text": "x"}, {"reward": 4, "rewards": {"other": 3.0}, "trace": [step([0.0, 0.0])]}),
        ]
    )
    found = {measure.name: measure for measure in metric.measures(scores)}
    assert list(found) == ["reward", "reward.other", "reward.toy", "kl", "kl_candidates"]
    assert {name: (m.scored, m.total) for name, m in found.items()} == {
        "reward": (2, 4), "reward.other": (1, 4), "reward.toy": (1, 4), "kl": (1, 4), "kl_candidates": (1, 4),
    }  # fmt: skip
    assert found["reward"].estimate().value == 3
    assert found["kl"].estimate().value == pytest.approx(math.log(2))
    assert found["kl"].better == "lower"
    assert found["reward.toy"].better == "higher"


def test_a_file_without_any_of_it_scores_nothing() -> None:
    metric = RewardAndKL()
    found = metric.measures(metric.score([samples({"text": "x"}), samples({"text": "y"})]))
    assert [(measure.name, measure.scored, measure.total) for measure in found] == [
        ("reward", 0, 2), ("kl", 0, 2), ("kl_candidates", 0, 2),
    ]  # fmt: skip
    assert all(math.isnan(measure.estimate().value) for measure in found)


def test_infinite_is_not_scored() -> None:
    [[record]] = RewardAndKL().score(
        [samples({"reward": math.inf, "trace": [step([0.0, 1.0], base_logprobs=[-math.inf, -1.0])]})]
    )
    assert math.isnan(record["reward"])
    assert math.isnan(record["kl"])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"reward": "high"}, "g.jsonl, line 3, sample 0: \"reward\" must be a number or null, not 'high'"),
        ({"reward": True}, "must be a number or null, not True"),
        ({"rewards": [1.0]}, '"rewards" must be an object of name and number, not [1.0]'),
        ({"rewards": {"toy": "x"}}, "reward 'toy' must be a number"),
        ({"trace": "yes"}, "\"trace\" must be a list of steps, not 'yes'"),
        ({"trace": [3]}, 'step 0 of its trace has no "rewards"'),
        ({"trace": [{"rewards": {"toy": [1.0]}, "scores": [1.0]}]}, 'has no "base_logprobs"'),
        ({"trace": [step([0.0])]}, "has 2 base_logprobs but 1 scores"),
        ({"trace": [step([])]}, "scores must be a list of numbers, not []"),
        ({"trace": [step([0.0, 1.0]), step(["a", 1])]}, "step 1 of its trace: scores must be a number"),  # type: ignore[list-item]
    ],
)
def test_another_shape_is_an_error(record: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        RewardAndKL().score([samples(record)])
    assert message in str(error.value)
    assert "g.jsonl, line 3, sample 0" in str(error.value)
