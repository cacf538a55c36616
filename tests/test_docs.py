"""The reward that CONTRIBUTING.md teaches by is real code: this runs it."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from decoder.best_of import Selection
from decoder.contracts import Reading, RewardSession, TokenReward
from tests.source import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)


def run(*blocks: str) -> dict[str, object]:
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def taught() -> SimpleNamespace:
    """What the page's first block defines: the reward and its session."""
    return SimpleNamespace(**run(BLOCKS[0]))


@pytest.fixture
def reading() -> Reading:
    return Reading(torch.zeros(2, 8), {}, torch.ones(2, 3, dtype=torch.bool))


def open_session(reward: TokenReward) -> RewardSession:
    prompt_ids = torch.tensor([[0, 3, 4], [1, 2, 5]])
    return reward.start(prompt_ids, torch.tensor([[False, True, True], [True, True, True]]))


def test_toy_reward_keeps_the_contract(taught: SimpleNamespace) -> None:
    reward = taught.Prefers(torch.tensor([5, 6]))
    assert isinstance(reward, TokenReward)
    assert isinstance(open_session(reward), RewardSession)
    assert reward.layers == ()


def test_toy_reward_scores_what_it_says(taught: SimpleNamespace, reading: Reading) -> None:
    session = open_session(taught.Prefers(torch.tensor([5, 6])))
    candidate_ids = torch.tensor([[5, 6, 7], [5, 6, 7]])
    # row 1's prompt ends in 5, which was therefore just said
    assert session.score(candidate_ids, reading).tolist() == [[1, 1, 0], [0, 1, 0]]
    session.advance(torch.tensor([6, 7]))
    assert session.score(candidate_ids, reading).tolist() == [[1, 0, 0], [1, 1, 0]]


def test_toy_reward_forks_and_drops_rows(taught: SimpleNamespace, reading: Reading) -> None:
    session = open_session(taught.Prefers(torch.tensor([5, 6])))
    session.select(torch.tensor([1, 1, 0]))
    assert session.score(torch.full((3, 1), 5), reading).tolist() == [[0], [0], [1]]


def test_toy_reward_has_an_opposite(taught: SimpleNamespace, reading: Reading) -> None:
    reward = taught.Prefers(torch.tensor([5, 6]))
    candidate_ids = torch.tensor([[5, 7], [6, 7]])
    here, there = (open_session(r).score(candidate_ids, reading) for r in (reward, reward.opposite()))
    assert torch.equal(there, -here)


@pytest.mark.model
def test_toy_reward_steers_the_real_model(capsys: pytest.CaptureFixture[str]) -> None:
    run(*BLOCKS[:2])
    text = capsys.readouterr().out
    assert any(word in text for word in (" sea", " ship", " storm", " wind")), text


@pytest.mark.model
def test_toy_probe_chooses_among_samples_of_the_real_model() -> None:
    """The share of likeliest tokens is a number of eighths, and the winner has the most of them."""
    names = run(BLOCKS[2])
    best = names["best"]
    assert isinstance(best, Selection)
    assert len(best.scores) == 4
    assert all(
        (score * len(sample.token_ids)).is_integer()
        for score, sample in zip(best.scores, best.samples, strict=True)
    )
    assert best.scores[best.winner] == max(best.scores)
