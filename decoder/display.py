"""Unsteered and steered text side by side on a terminal, while it is generated."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table
from rich.text import Text

COLUMNS = ("unsteered", "steered")
REFRESH_SECONDS = 0.1
FULL_SHIFT = 1.0  # the shift that gets the full colour; 1 suits log-probabilities and probabilities
_NARROW = 60  # below this many characters the columns stand one above the other
_BLUES = ("#7797c0", "#4b90df", "#1e88ff")  # weak to strong; legible on dark and on light
_ORANGES = ("#b98a62", "#d88331", "#f57c00")
_CONTROL: dict[int, str] = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
_CONTROL |= {ord("\n"): "\n", ord("\t"): " ", ord("\r"): ""}


def style_of(shift: float) -> Style:
    """Return the style of a token whose reward is `shift` above the mean of its step's candidates.

    Blue and bold where the reward raised it, orange and underlined where it lowered it, the more
    saturated the nearer to `FULL_SHIFT`; plain under a twentieth of that, and for NaN.
    """
    strength = min(abs(shift) / FULL_SHIFT, 1.0)
    if math.isnan(strength) or strength < 0.05:
        return Style()
    color = (_BLUES if shift > 0 else _ORANGES)[min(int(strength * 3), 2)]
    return Style(color=color, bold=shift > 0 or None, underline=shift < 0 or None)


class PromptRow:
    """One prompt and its continuations; what `add` and `finish` are told shows up in the view."""

    def __init__(self, prompt: str, view: SideBySide) -> None:
        self._view = view
        self._cells = [Text.assemble((view.printable(prompt), "dim")) for _ in COLUMNS]
        self.open_columns = set(range(len(COLUMNS)))

    def add(self, column: int, text_piece: str, shift: float) -> None:
        """Append the text of one token (it may be empty) to column 0, unsteered, or 1, steered."""
        piece = self._view.printable(text_piece)
        blank = len(piece) - len(piece.lstrip())
        self._cells[column].append(piece[:blank]).append(piece[blank:], style_of(shift))
        self._view.count_token()

    def finish(self, column: int, reward: float | None, reason: str) -> None:
        """Close a column with the mean reward of its text, None if there is none, and why it ended."""
        score = "" if reward is None else f"reward {reward:+.2f}, "
        self._cells[column].append(f"\n({score}{self._view.printable(reason)})", "dim italic")
        self.open_columns.discard(column)
        self._view.count_end(column, reward)

    def __rich__(self) -> RenderableType:
        return Group(self._view.beside(*self._cells), "")


class SideBySide:
    """A live view with a header, one row a prompt, a legend and a footer; enter it, then ask for rows.

    model, rewards: for the header, rewards as (name, beta). Finished rows scroll away upwards.
    """

    def __init__(
        self, model: str, rewards: Sequence[tuple[str, float]], console: Console | None = None
    ) -> None:
        self._console = console or Console()
        mix = ", ".join(f"{name} (beta {beta:g})" for name, beta in rewards) or "no reward"
        self._header = Text.assemble((self.printable(model), "bold"), "  ", self.printable(mix))
        self._rows: list[PromptRow] = []
        self._ended: list[list[float]] = [[] for _ in COLUMNS]
        self._tokens, self._began, self._drawn = 0, time.monotonic(), -math.inf
        self._live = Live(self._body(), console=self._console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._console.print(self._header)
        if self._console.width >= _NARROW:
            self._console.print(self.beside(*(Text(name, style="bold") for name in COLUMNS)))
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._retire(len(self._rows))
        self._live.stop()

    def row(self, prompt: str) -> PromptRow:
        """Return a new row below the others, with the prompt before both continuations."""
        if not self._tokens:
            self._began = time.monotonic()
        self._rows.append(PromptRow(prompt, self))
        return self._rows[-1]

    def printable(self, text: str) -> str:
        """Return the text without control characters or letters the terminal's encoding lacks."""
        encoding = self._console.encoding
        return text.translate(_CONTROL).encode(encoding, "replace").decode(encoding)

    def beside(self, left: Text, right: Text) -> RenderableType:
        """Return the two columns; on a narrow terminal one above the other, named."""
        if self._console.width < _NARROW:
            named = zip(COLUMNS, (left, right), strict=True)
            return Group(*(Text.assemble((f"{name}: ", "bold"), text) for name, text in named))
        table = Table.grid(expand=True, padding=(0, 2, 0, 0))
        for _ in COLUMNS:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(left, right)
        return table

    def count_token(self) -> None:
        """Count a token for the speed, and draw if it is time."""
        self._tokens += 1
        if time.monotonic() - self._drawn >= REFRESH_SECONDS:
            self._live.update(self._body(), refresh=True)
            self._drawn = time.monotonic()

    def count_end(self, column: int, reward: float | None) -> None:
        """Count a finished text for the means; print the rows that are complete above the others."""
        if reward is not None and not math.isnan(reward):
            self._ended[column].append(reward)
        while self._rows and not self._rows[0].open_columns:
            self._retire(1)

    def _retire(self, count: int) -> None:
        """Print the first rows for good, above the live part."""
        gone, self._rows = self._rows[:count], self._rows[count:]
        self._live.update(self._body())
        if gone:
            self._console.print(Group(*gone))

    def _body(self) -> Group:
        lines = self._console.render_lines(Group(*self._rows), pad=False)
        shown = lines[-max(self._console.height - 5, 1) :]  # the newest text; the footer always fits
        return Group(Segments(part for line in shown for part in (*line, Segment.line())), self._footer())

    def _footer(self) -> Text:
        raised, lowered = style_of(FULL_SHIFT), style_of(-FULL_SHIFT)
        means = [f"{sum(ended) / len(ended):+.2f}" if ended else "none yet" for ended in self._ended]
        named = ", ".join(f"{name} {mean}" for name, mean in zip(COLUMNS, means, strict=True))
        elapsed = time.monotonic() - self._began
        speed = self._tokens / elapsed if elapsed > 0 else 0.0
        marks = (("raised (blue, bold)", raised), ", ", ("lowered (orange, underlined)", lowered))
        return Text.assemble("tokens the reward ", *marks, f"\nmean reward: {named}; {speed:.1f} tokens/s")
