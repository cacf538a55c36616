"""Rows of one batch that differ in all they ask for, each as the decode loop's formula has it alone."""

from __future__ import annotations

import pytest
import torch

from decoder.contracts import Reading
from decoder.sampling import add_rewards, top_candidates
from rewards.arm import ArmConfig, ArmHead, Summary, TapArm
from rewards.vllm_readout import Readout
from rewards.vllm_requests import Asked
from rewards.vllm_steer import Steering

D, V, ROWS = 6, 90, 5
LAYERS = {"good": (1, 3), "kind": (3, 2)}  # one shared, and not in the order of the model


def make_arm(layers: tuple[int, ...], summary: Summary, rank: int, seed: int) -> TapArm:
    torch.manual_seed(seed)
    head = ArmHead(ArmConfig(layers, D, rank, summary))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return TapArm(head.requires_grad_(False), head.vocabulary(torch.randn(V, D)).detach(), "")


@pytest.fixture
def arms() -> dict[str, TapArm]:
    return {"good": make_arm(LAYERS["good"], "text", 4, 0), "kind": make_arm(LAYERS["kind"], "none", 3, 1)}


@pytest.fixture
def taps() -> dict[int, torch.Tensor]:
    torch.manual_seed(2)
    return {layer: torch.randn(ROWS, D) for layer in (1, 2, 3)}


@pytest.fixture
def columns(arms: dict[str, TapArm], taps: dict[int, torch.Tensor]) -> torch.Tensor:
    own, averaged = Readout(arms, {}).project(taps)
    return torch.cat([own + averaged, torch.zeros(ROWS, 1)], -1)  # of texts of one token


def reward(arm: TapArm, taps: dict[int, torch.Tensor], row: int, ids: torch.Tensor) -> torch.Tensor:
    """Return r (1, K) of candidates (1, K) by a session of its own."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    own = {layer: states[row][None, None] for layer, states in taps.items()}
    return arm.start(ids[:, :1], mask).score(ids, Reading(torch.zeros(1, V), own, mask))


@pytest.mark.parametrize("rows", [[0, 2, 3], [0, 1, 2, 3, 4]])
def test_rows_of_a_batch(
    arms: dict[str, TapArm], taps: dict[int, torch.Tensor], columns: torch.Tensor, rows: list[int]
) -> None:
    wishes = [
        Asked({"good": 2.0}, 5), Asked({"good": -1.5, "kind": 0.5}, 3), Asked({"kind": -4.0}, 20),
        Asked({}, 7), Asked({"kind": 0.0}, 1),
    ]  # fmt: skip
    asked = {row: wishes[row] for row in rows}
    logits = torch.randn(ROWS, V)
    found = logits.clone()
    Steering.of(asked, torch.device("cpu")).act(found, columns, Readout(arms, {}))
    for row in range(ROWS):
        if row not in asked:
            assert torch.equal(found[row], logits[row]), "rows that ask for nothing stay"
            continue
        wish = asked[row]
        ids, base = top_candidates(logits[row : row + 1], wish.top_k)
        expected = torch.full((V,), -torch.inf)
        expected[ids[0]] = base[0]
        for name, beta in wish.betas.items():
            arm = arms[name] if beta >= 0 else arms[name].opposite()
            r = reward(arm, taps, row, ids)[:, :, None]
            expected[ids[0]] += (add_rewards(base, r, torch.tensor([[beta]])) - base)[0]
        torch.testing.assert_close(found[row], expected)


def test_an_engine_without_rewards_reads_nothing(taps: dict[int, torch.Tensor]) -> None:
    own, averaged = Readout({}, {}).project(taps)
    assert own.shape == averaged.shape == (ROWS, 0)
