"""Unsteered and steered text side by side on a terminal, while it is generated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table
from rich.text import Text

COLUMNS = ("unsteered", "steered")
_BRIGHT = Style(dim=False)
REFRESH_SECONDS = 0.1
_NARROW = 60  # below this many characters the columns stand one above the other
_GREY, _BLUE, _ORANGE = (138, 138, 138), (30, 136, 255), (245, 124, 0)  # legible on dark and on light
_CONTROL: dict[int, str] = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
_CONTROL |= {ord("\n"): "\n", ord("\t"): " ", ord("\r"): ""}


def style_of(shift: float, full_shift: float = 1.0) -> Style:
    """Return the style of a token whose reward is `shift` above the mean of its step's candidates.

    Blue and bold where the reward raised it, orange and underlined where it lowered it, the more
    saturated the nearer to `full_shift`; plain under a twentieth of that, and for NaN.
    """
    strength = min(abs(shift) / full_shift, 1.0)
    if math.isnan(strength) or strength < 0.05:
        return Style()
    end = _BLUE if shift > 0 else _ORANGE
    red, green, blue = (
        round(a + (b - a) * (0.35 + 0.65 * strength)) for a, b in zip(_GREY, end, strict=True)
    )
    return Style(color=f"rgb({red},{green},{blue})", bold=shift > 0 or None, underline=shift < 0 or None)


class PromptRow:
    """One prompt and its continuations; what `add` and `finish` are told shows up in the view."""

    def __init__(self, prompt: str, view: SideBySide) -> None:
        self._view = view
        self._cells = [Text(view.printable(prompt), style="dim") for _ in COLUMNS]
        self._open = set(range(len(COLUMNS)))

    @property
    def finished(self) -> bool:
        """Return whether no column of it grows any more."""
        return not self._open

    def add(self, column: int, text_piece: str, shift: float) -> None:
        """Append the text of one token (it may be empty) to column 0, unsteered, or 1, steered."""
        piece = self._view.printable(text_piece)
        blank = len(piece) - len(piece.lstrip())
        self._cells[column].append(piece[:blank], _BRIGHT)
        self._cells[column].append(piece[blank:], _BRIGHT + style_of(shift, self._view.full_shift))
        self._view.count_token()

    def finish(self, column: int, reward: float | None, reason: str) -> None:
        """Close a column with the mean reward of its text, None if there is none, and why it ended."""
        score = "" if reward is None else f"reward {reward:+.2f}, "
        self._cells[column].append(f"\n({score}{self._view.printable(reason)})", "dim italic")
        self._open.discard(column)
        self._view.count_end(column, reward)

    def __rich__(self) -> RenderableType:
        return Group(self._view.beside(*self._cells), "")


class _Tail:
    """The last lines of the rows, as many as leave room for legend and footer."""

    def __init__(self, rows: Group) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._rows, options.update(height=None), pad=False)
        yield Segments(
            segment for line in lines[-max(console.height - 4, 1) :] for segment in (*line, Segment.line())
        )


class SideBySide:
    """A live view with a header, one row a prompt, a legend and a footer; enter it, then ask for rows.

    model, rewards: for the header, rewards as (name, beta). full_shift: the difference in reward that
    gets the full colour; 1 suits log-probabilities. Rows that are finished scroll away upwards.
    """

    def __init__(
        self,
        model: str,
        rewards: Sequence[tuple[str, float]],
        *,
        console: Console | None = None,
        full_shift: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.full_shift = full_shift
        self._console, self._clock = console or Console(), clock
        mix = ", ".join(f"{name} (beta {beta:g})" for name, beta in rewards) or "no reward"
        self._header = Text.assemble((self.printable(model), "bold"), "  ", self.printable(mix))
        self._rows: list[PromptRow] = []
        self._ended: list[list[float]] = [[] for _ in COLUMNS]
        self._tokens, self._began, self._drawn = 0, clock(), -math.inf
        self._live = Live(self._body(), console=self._console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._console.print(self._header)
        if self._console.width >= _NARROW:
            self._console.print(self.beside(*(Text(name, style="bold") for name in COLUMNS)))
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.update(self._body(), refresh=True)
        self._live.stop()

    def row(self, prompt: str) -> PromptRow:
        """Return a new row below the others, with the prompt before both continuations."""
        if not self._tokens:
            self._began = self._clock()
        self._rows.append(PromptRow(prompt, self))
        return self._rows[-1]

    def printable(self, text: str) -> str:
        """Return the text without control characters or letters the terminal's encoding lacks."""
        encoding = self._console.encoding
        return text.translate(_CONTROL).encode(encoding, "replace").decode(encoding)

    def beside(self, left: Text, right: Text) -> RenderableType:
        """Return the two columns; on a narrow terminal one above the other, named."""
        if self._console.width < _NARROW:
            return Group(
                *(Text.assemble((f"{n}: ", "bold"), t) for n, t in zip(COLUMNS, (left, right), strict=True))
            )
        table = Table.grid(expand=True, padding=(0, 2, 0, 0))
        for _ in COLUMNS:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(left, right)
        return table

    def count_token(self) -> None:
        """Count a token for the speed, and draw if it is time."""
        self._tokens += 1
        now = self._clock()
        if now - self._drawn >= REFRESH_SECONDS:
            self._drawn = now
            self._live.update(self._body(), refresh=True)

    def count_end(self, column: int, reward: float | None) -> None:
        """Count a finished text for the means; print the rows that are complete above the others."""
        if reward is not None and not math.isnan(reward):
            self._ended[column].append(reward)
        while self._rows and self._rows[0].finished:
            done = self._rows.pop(0)
            self._live.update(self._body())
            self._console.print(done)

    def _body(self) -> Group:
        return Group(_Tail(Group(*self._rows)), self._legend(), self._footer())

    def _legend(self) -> Text:
        raised, lowered = style_of(self.full_shift), style_of(-self.full_shift)
        marks = (("raised (blue, bold)", raised), ", ", ("lowered (orange, underlined)", lowered))
        return Text.assemble(("tokens the reward ", "dim"), *marks)

    def _footer(self) -> Text:
        means = [f"{sum(ended) / len(ended):+.2f}" if ended else "none yet" for ended in self._ended]
        named = ", ".join(f"{name} {mean}" for name, mean in zip(COLUMNS, means, strict=True))
        speed = self._tokens / max(self._clock() - self._began, 1e-9) if self._tokens else 0.0
        return Text(f"mean reward: {named}; {speed:.1f} tokens/s", style="bold")
