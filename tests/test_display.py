"""The side-by-side view, rendered to a console that remembers what it was sent."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
from rich.console import Console

from decoder import display
from decoder.display import FULL_SHIFT, SideBySide, style_of

COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3[0-7]|9[0-7]|38;[25])[0-9;]*m")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def console(width: int = 80, height: int = 24, **options: Any) -> Console:
    given: dict[str, Any] = {"file": io.StringIO(), "color_system": "truecolor", "force_terminal": True}
    return Console(width=width, height=height, _environ={}, **(given | options))


def sent(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def lines(to: Console) -> list[str]:
    """Return everything that was ever printed, without styles and cursor movements."""
    text = sent(to).replace("\x1b[2K", "\n").replace("\r", "")
    return [CONTROL.sub("", line) for line in text.split("\n")]


def show(to: Console) -> None:
    """One prompt, one token plain, one raised and one lowered."""
    with SideBySide("tiny", [("positive", 2.0), ("nontoxic", -0.5)], to) as view:
        row = view.row("The film was")
        row.add(0, " here", 0.0)
        row.finish(0, -1.25, "length")
        row.add(1, " great", FULL_SHIFT)
        row.add(1, " awful", -FULL_SHIFT)
        row.finish(1, 0.5, "stop")


def test_the_two_texts_stand_side_by_side_within_80_columns() -> None:
    to = console()
    show(to)
    assert max(map(len, lines(to))) <= 80
    assert any(re.match(r"tiny +positive \(beta 2\), nontoxic \(beta -0\.5\)", line) for line in lines(to))
    assert any(re.match(r"unsteered {20,}steered", line) for line in lines(to))
    assert any(re.match(r"The film was here {10,}The film was great awful", line) for line in lines(to))
    assert any(re.match(r"\(reward -1\.25, length\) +\(reward \+0\.50, stop\)", line) for line in lines(to))


def test_colour_says_what_the_reward_did() -> None:
    to = console()
    show(to)
    assert "\x1b[1;38;2;30;136;255mgreat" in sent(to)
    assert "\x1b[4;38;2;245;124;0mawful" in sent(to)
    assert "here" in COLOUR.sub("", sent(to))
    assert not re.search(r"m ?here", COLOUR.sub("<", sent(to)).replace("\x1b[0m", ""))


def test_without_colour_bold_and_underline_say_it() -> None:
    to = console(no_color=True)
    show(to)
    assert not COLOUR.search(sent(to))
    assert "\x1b[1mgreat" in sent(to)
    assert "\x1b[4mawful" in sent(to)
    assert "\x1b[1mraised (blue, bold)" in sent(to)
    assert "\x1b[4mlowered (orange, underlined)" in sent(to)


def test_the_legend_wears_the_styles_it_explains() -> None:
    to = console()
    show(to)
    assert "\x1b[1;38;2;30;136;255mraised (blue, bold)" in sent(to)
    assert "\x1b[4;38;2;245;124;0mlowered (orange, underlined)" in sent(to)


def test_a_larger_shift_is_a_more_saturated_colour() -> None:
    def saturation(shift: float) -> int:
        color = style_of(shift).color
        assert color is not None
        triplet = color.get_truecolor()
        return max(triplet) - min(triplet)

    for sign in (1, -1):
        steps = [saturation(sign * size) for size in (0.1, 0.5, 0.9)]
        assert steps == sorted(set(steps))
        assert saturation(sign * 50.0) == steps[-1]


@pytest.mark.parametrize("shift", [0.0, 0.01, -0.01, math.nan])
def test_a_token_the_reward_left_alone_is_plain(shift: float) -> None:
    assert not style_of(shift)


def test_a_narrow_terminal_shows_one_text_above_the_other() -> None:
    to = console(width=40)
    show(to)
    assert max(map(len, lines(to))) <= 40
    assert "unsteered: The film was here" in [line.rstrip() for line in lines(to)]
    assert "steered: The film was great awful" in [line.rstrip() for line in lines(to)]


def test_the_footer_has_mean_rewards_and_speed(clock: Clock) -> None:
    to = console()
    with SideBySide("tiny", [("positive", 1.0)], to) as view:
        clock.now += 1000  # loading a model before the first row is no part of the speed
        for reward in (0.0, 1.0):
            row = view.row("a")
            for column in (0, 1):
                clock.now += 0.5
                row.add(column, "b", 0.0)
                row.finish(column, reward if column else None, "length")
        row = view.row("a")
        row.finish(1, math.nan, "length")
    assert "mean reward: unsteered none yet, steered +0.50; 2.0 tokens/s" in lines(to)[-2]


def test_a_finished_row_is_printed_once_and_leaves_the_live_part(clock: Clock) -> None:
    to = console()
    with SideBySide("tiny", [], to) as view:
        first, second = view.row("first"), view.row("second")
        for row in (second, first):
            for column in (0, 1):
                row.finish(column, None, "length")
            if row is second:  # it waits for the one before it
                assert "second" not in sent(to)
        before = len(sent(to))
        clock.now += 1
        view.row("third").add(0, "x", 0.0)
        later = sent(to)[before:]
    assert sent(to).count("first") == sent(to).count("second") == 2  # once a column
    assert "third" in later
    assert "first" not in later


def test_the_view_is_not_drawn_for_every_token(clock: Clock) -> None:
    to = console()
    with SideBySide("tiny", [], to) as view:
        row = view.row("a")
        row.add(0, "b", 0.0)
        drawn = len(sent(to))
        row.add(0, "c", 0.0)
        assert len(sent(to)) == drawn
        clock.now += 1.01 * display.REFRESH_SECONDS
        row.add(0, "d", 0.0)
        assert "bcd" in sent(to)[drawn:]


def test_a_text_higher_than_the_screen_keeps_footer_and_newest_words_in_view(clock: Clock) -> None:
    to = console(height=10)
    with SideBySide("tiny", [], to) as view:
        row = view.row("start")
        for word in range(60):
            clock.now += 1
            before = len(sent(to))
            row.add(1, f" word{word}", 0.0)
        frame = [CONTROL.sub("", line) for line in sent(to)[before:].split("\n")]
        assert len(frame) < 10
        assert "tokens/s" in frame[-1]
        assert any("word59" in line for line in frame)
        before = len(sent(to))
    rest = sent(to)[before:]  # on leaving, the whole text is printed although the row never finished
    assert all(f"word{word}" in rest for word in range(60))


def test_an_error_inside_leaves_what_there_was_on_the_screen() -> None:
    to = console()

    def interrupted() -> None:
        with SideBySide("tiny", [], to) as view:
            view.row("a").add(1, " half", 0.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert any("half" in line for line in lines(to))
    assert sent(to).endswith("\x1b[?25h")  # the cursor is back


def test_text_can_neither_command_the_terminal_nor_use_markup() -> None:
    to = console()
    with SideBySide("[red]tiny", [], to) as view:
        row = view.row("[b]x[/b]")
        row.add(1, "\x1b[2J\x9b\x07[u]y[/u]", 0.0)
        row.finish(1, None, "\x1bstop")
    assert "\x1b[2J" not in sent(to)
    assert "\x9b" not in sent(to)
    assert "\x07" not in sent(to)
    for literal in ("[red]tiny", "[b]x[/b]", "[u]y[/u]", "\N{REPLACEMENT CHARACTER}stop"):
        assert literal in sent(to)


def test_an_ascii_terminal_gets_question_marks() -> None:
    file = io.TextIOWrapper(io.BytesIO(), "ascii")
    to = console(file=file)
    with SideBySide("tiny", [], to) as view:
        view.row("caf\N{LATIN SMALL LETTER E WITH ACUTE}").add(1, " \N{SNOWMAN}\ud800", 0.0)
    file.flush()
    assert b"caf? ??" in CONTROL.sub("", file.buffer.getvalue().decode()).encode()


def test_line_breaks_stay_and_returns_go() -> None:
    to = console()
    with SideBySide("tiny", [], to) as view:
        view.row("a").add(0, "b\r\nc\td", 0.0)
    assert any(line.startswith("ab ") for line in lines(to))
    assert any(line.startswith("c d ") for line in lines(to))
