"""What a request may say of rewards, and what it is told where it is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from decoder.contracts import UserError
from decoder.sampling import SamplingConfig
from rewards.vllm_requests import Asked, Kind, Order, read_request

KNOWN = ["positive", "nontoxic"]


@pytest.mark.parametrize(
    ("told", "betas", "top_k"),
    [
        ({"rewards": {"positive": 2.0}}, {"positive": 2.0}, 20),
        (
            {"rewards": {"positive": 2, "nontoxic": -1.5}, "reward_top_k": 5},
            {"positive": 2.0, "nontoxic": -1.5},
            5,
        ),
        ({"rewards": ["positive:2", "nontoxic:-1.5"]}, {"positive": 2.0, "nontoxic": -1.5}, 20),
        ({"rewards": "positive"}, {"positive": 1.0}, 20),
        ({"rewards": ["positive:0"]}, {"positive": 0.0}, 20),
    ],
)
def test_spellings(told: dict[str, Any], betas: dict[str, float], top_k: int) -> None:
    assert read_request(told, KNOWN) == Asked(betas, top_k)


@pytest.mark.parametrize("told", [None, {}, {"other": 1}, {"rewards": {}}, {"rewards": []}])
def test_nothing_asked(told: dict[str, Any] | None) -> None:
    assert read_request(told, KNOWN) is None


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"rewards": {"friendly": 1}}, "unknown reward 'friendly': this engine has positive, nontoxic"),
        ({"rewards": ["positive:lots"]}, "beta of reward 'positive' is 'lots': give a finite number"),
        ({"rewards": {"positive": float("nan")}}, "beta of reward 'positive' is nan"),
        ({"rewards": {"positive": True}}, "beta of reward 'positive' is True"),
        ({"rewards": {"positive": [1]}}, "beta of reward 'positive' is \\[1\\]"),
        ({"rewards": 3}, "rewards is 3: give"),
        ({"rewards": [1.0]}, "rewards is \\[1.0\\]: give"),
        ({"rewards": ["positive:1"], "reward_top_k": 0}, "reward_top_k is 0"),
        ({"rewards": ["positive:1"], "reward_top_k": 1.5}, "reward_top_k is 1.5"),
        ({"rewards": ["positive:1"], "reward_top_k": "many"}, "reward_top_k is 'many'"),
        ({"reward_top_k": 5}, "reward_top_k is given without rewards"),
        ({"tiller_order": "mine"}, "tiller_order is for a Decoder's own requests"),
    ],
)
def test_what_is_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_request(told, KNOWN)


def test_an_order_survives_the_way_to_the_worker() -> None:
    acts, sampling = (("positive", 1), ("positive", -1)), SamplingConfig(top_k=5, temperature=0.5)
    kind = Kind(acts, sampling, 7, (1.0, 0.5), frozenset({3, 2}), ("probe",))
    order = Order("key", kind, (1.0, -2.0), (3.0, 4.0), seed=5, sample=6)
    assert read_request(json.loads(json.dumps(order.arguments())), KNOWN) == order
