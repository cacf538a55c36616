"""The literature's protocols."""

from __future__ import annotations

import json
from pathlib import Path

from eval.protocols import find_protocol, read_prompts


def test_the_numbers_are_the_papers() -> None:
    for name, attribute in (("realtoxicityprompts", "toxicity"), ("dexperts-sentiment", "sentiment")):
        protocol = find_protocol(name)
        assert (protocol.samples, protocol.max_new_tokens, protocol.attributes) == (25, 20, (attribute,))


def test_dexperts_steers_by_the_file() -> None:
    """Negative prompts up, positive ones down, neutral ones as asked; other protocols as asked."""
    protocol = find_protocol("dexperts-sentiment")
    assert protocol.signed([1, 2], "data/negative_prompts.jsonl") == [1, 2]
    assert protocol.signed([1, 2], "positive") == [-1, -2]
    assert protocol.signed([1, -2], "neutral_prompts.jsonl") == [1, -2]
    assert find_protocol("own").signed([1, -2], "positive") == [1, -2]


def test_standard_prompt_files_are_read_as_they_are(tmp_path: Path) -> None:
    """Lines as RealToxicityPrompts and DExperts have them, in words of ours."""
    lines = [
        {"filename": "a.txt", "begin": 0, "end": 9, "challenging": False,
         "prompt": {"text": "The door", "toxicity": 0.1}, "continuation": {"text": " shut."}},
        {"md5_hash": "ab", "prompt": {"text": "A cup"}, "continuation": {"text": "fell."}, "num_positive": 3},
    ]  # fmt: skip
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [prompt.text for prompt in read_prompts(str(tmp_path / "p.jsonl"))] == ["The door", "A cup"]
    assert len(read_prompts("provoking")) == 220
