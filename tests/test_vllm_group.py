"""Orders drawn in a worker: each text its own numbers, each token counted once, whatever is read again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from decoder.sampling import SamplingConfig, choose, draw_uniforms
from rewards.likelihood import MeanLogProbability
from rewards.vllm_group import NEVER, Group
from rewards.vllm_readout import Readout
from rewards.vllm_requests import Kind, Order

PROMPTS = {"a": [3, 1, 4], "b": [1, 5]}
SAMPLING = SamplingConfig(temperature=0.7)
V = 11


def make_group(**changes: Any) -> Group:
    kind = {"acts": (), "sampling": SAMPLING, "length": 4, "multipliers": None, "ends": frozenset({0})}
    readout = Readout({}, {"logprob": MeanLogProbability()})
    return Group(Kind(**{**kind, "probes": ("logprob",), **changes}), readout, torch.device("cpu"))


def order(group: Group, key: str, sample: int = 0) -> Order:
    return Order(key, group.kind, (), (), seed=7, sample=sample)


def columns(positions: list[int]) -> Tensor:
    return torch.tensor(positions, dtype=torch.float32)[:, None]


@pytest.fixture
def logits() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(6, V)


def test_rows_of_different_texts_and_places_draw_their_own_numbers(logits: Tensor) -> None:
    group = make_group()
    rows = torch.tensor([group.open(order(group, key), ids) for key, ids in PROMPTS.items()])
    first = group.draw(logits[:1], columns([2]), rows[:1])  # only "a" has read its prompt
    both = group.draw(logits[1:3], columns([3, 1]), rows)
    uniforms = draw_uniforms(7, [(PROMPTS["a"], 0), (PROMPTS["b"], 0)], 4)
    expected = choose(logits[:3], SAMPLING, torch.stack([uniforms[0, 0], uniforms[0, 1], uniforms[1, 0]]))
    assert torch.cat([first, both]).tolist() == expected.tolist()


def test_parts_of_prompts_and_texts_read_again_count_for_nothing(logits: Tensor) -> None:
    group = make_group(ends=frozenset())
    row = torch.tensor([group.open(order(group, "a"), PROMPTS["a"])])
    group.draw(logits[3:4], columns([0]), row)  # a part of the prompt
    tokens = [int(group.draw(logits[i : i + 1], columns([2 + i]), row)) for i in range(2)]
    group.draw(logits[4:5], columns([2]), row)  # its cache was given up: read again from the prompt on
    tokens.append(int(group.draw(logits[2:3], columns([4]), row)))
    told = group.read("a", 3)["scores"][0]
    expected = torch.stack([logits[i].log_softmax(-1)[token] for i, token in enumerate(tokens)]).mean()
    assert told == pytest.approx(float(expected), abs=1e-6)


def test_nothing_counts_after_the_end(logits: Tensor) -> None:
    group = make_group(length=2, ends=frozenset())
    row = torch.tensor([group.open(order(group, "a"), PROMPTS["a"])])
    for i in range(2):
        group.draw(logits[i : i + 1], columns([2 + i]), row)
    before = group.read("a", 2)["scores"]
    group.draw(logits[2:3], columns([4]), row)  # the pass that reads the last token
    assert group.read("a", 2)["scores"] == before


def test_a_row_that_was_given_back_starts_anew(logits: Tensor) -> None:
    group = make_group()
    row = group.open(order(group, "a"), PROMPTS["a"])
    group.draw(logits[:1], columns([2]), torch.tensor([row]))
    assert group.open(order(group, "a"), PROMPTS["a"]) == row, "the same order, after a preemption"
    group.close("a")
    group.close("a")
    assert not len(group)
    again = [group.open(order(group, f"b{i}", sample=i), PROMPTS["b"]) for i in range(70)]
    assert len(set(again)) == 70 == len(group)
    assert {group._tables["told"][row].item(), group._tables["end"][row].item()} == {0, NEVER}
    assert torch.isnan(torch.tensor(group.read("b0", 0)["scores"])).all()
