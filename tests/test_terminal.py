"""The driver of the side-by-side view: which text lands in which column, and which reward under it."""

from __future__ import annotations

from typing import Any, Self

import pytest
from transformers import PreTrainedModel

from decoder import terminal
from decoder.config import make_config
from decoder.decoder import Decoder
from decoder.models import LoadedModel
from prompts.reading import Prompt
from tests.heads import Favours, as_lm, tiny_arm
from tests.tiny import tiny_tokenizer

CHAT = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hm"},
    {"role": "user", "content": "So?"},
)
PROMPTS = [Prompt("0", text="The kettle sang"), Prompt("1", messages=CHAT)]


class Row:
    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.texts, self.shifts = ["", ""], [0.0, 0.0]
        self.ends: list[Any] = [None, None]

    def add(self, column: int, text: str, shift: float) -> None:
        assert self.ends[column] is None, "text after its end"
        self.texts[column] += text
        self.shifts[column] += shift

    def finish(self, column: int, reward: float | None, reason: str) -> None:
        self.ends[column] = (reward, reason)


class View:
    """Takes the place of the real view and keeps what it is told."""

    last: View

    def __init__(self, title: str, rewards: list[tuple[str, float]]) -> None:
        self.title, self.rewards = title, rewards
        self.rows: list[Row] = []
        View.last = self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def row(self, prompt: str) -> Row:
        self.rows.append(Row(prompt))
        return self.rows[-1]


@pytest.fixture
def decoder(tiny_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    monkeypatch.setattr(terminal, "SideBySide", View)
    tokenizer = tiny_tokenizer()
    return Decoder(LoadedModel(as_lm(tiny_model, tokenizer), tokenizer))


def test_plain_stands_left_and_steered_right(decoder: Decoder) -> None:
    """Each sample's row holds the plain text and the steered one, each with the reward of its own end."""
    arm, words = tiny_arm(decoder.lm), Favours(tuple(range(150)))
    weighted = decoder.weigh([arm, words], [3.0, -1.0])
    config = make_config({"max_new_tokens": 6, "num_return_sequences": 2})
    terminal.show_side_by_side(decoder, PROMPTS, weighted, config, chat=False, title="tiny")
    view = View.last
    assert (view.title, view.rewards) == ("tiny", [("TapArm", 3.0), ("Favours", -1.0)])
    assert [row.prompt for row in view.rows] == ["The kettle sang"] * 2 + ["So?\n"] * 2
    options = {"max_new_tokens": 6, "num_return_sequences": 2}
    plain = decoder.generate(PROMPTS, top_k=20, **options)
    steered = decoder.generate(PROMPTS, reward=[arm, words], beta=[3.0, -1.0], **options)
    pairs = [
        (p, s) for a, b in zip(plain, steered, strict=True) for p, s in zip(a.samples, b.samples, strict=True)
    ]
    for row, (left, right) in zip(view.rows, pairs, strict=True):
        assert row.texts == [left.text, right.text]
        mean = (3 * right.rewards["TapArm"] + right.rewards["Favours"]) / 4
        assert row.ends[1] == (pytest.approx(mean, abs=1e-4), right.finish_reason)
        assert row.ends[0][1] == left.finish_reason
        assert row.ends[0][0] is not None
        assert row.shifts[1] != 0


def test_without_a_reward_both_sides_are_plain(decoder: Decoder) -> None:
    """Beta 0 alone leaves no reward: two equal columns, no shift, and no reward to report."""
    config = make_config({"max_new_tokens": 5})
    weighted = decoder.weigh(tiny_arm(decoder.lm), 0.0)
    terminal.show_side_by_side(decoder, PROMPTS[:1], weighted, config, chat=True, title="tiny")
    (row,) = View.last.rows
    assert row.texts[0] == row.texts[1] == decoder.generate(PROMPTS[:1], chat=True, max_new_tokens=5)[0].text
    assert row.shifts == [0.0, 0.0]
    assert row.ends[0] == row.ends[1]
    assert row.ends[0][0] is None


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """On a pipe the bar writes nothing, and never to standard output."""
    with terminal.progress("counting", 3, done=1) as advance:
        advance()
        advance()
    assert capsys.readouterr() == ("", "")
