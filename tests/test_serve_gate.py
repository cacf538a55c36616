"""What the server turns away by its body alone."""

from __future__ import annotations

import json

import pytest

from decoder.serve_gate import asks_for_beams

REWARDS = {"vllm_xargs": {"rewards": ["positive:2"]}}


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({"use_beam_search": True, **REWARDS}, True),
        ({"use_beam_search": False, **REWARDS}, False),
        ({"use_beam_search": True}, False),
        ({"use_beam_search": True, "vllm_xargs": {"seed": 3}}, False),
        ({"use_beam_search": True, "vllm_xargs": None}, False),
        (REWARDS, False),
        (["use_beam_search"], False),
    ],
)
def test_beams_with_rewards_alone(body: object, refused: bool) -> None:
    assert asks_for_beams(json.dumps(body).encode()) is refused


def test_what_is_no_json_is_for_vllm_to_refuse() -> None:
    assert not asks_for_beams(b"{use_beam_search: ")
