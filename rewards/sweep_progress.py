"""The live table of a sweep on standard error: cells by head, failures, cells an hour, time left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.console import Group as RichGroup
from rich.live import Live
from rich.table import Table

from rewards.sweep_grid import Cell, Grid, Group
from rewards.sweep_results import Result

HOUR = 3600


class Progress:
    """Counts of a running sweep, drawn whenever they are asked for."""

    def __init__(self, cells: Sequence[Cell], done: Mapping[int, Result], groups: Sequence[Group]) -> None:
        """Take all cells, the results there are, and what is to run."""
        self._began = time.monotonic()
        self._head = {cell.number: cell.head for cell in cells}
        self._total = Counter(self._head.values())
        self._left = Counter(cell.head for group in groups for cell in group)
        again = {cell.number for group in groups for cell in group}
        self._failed = {n for n, each in done.items() if each.error is not None and n not in again}
        self._seconds = dict.fromkeys(self._total, 0.0)
        self._run = Counter[str]()

    def add(self, results: Sequence[Result]) -> None:
        """Count what has just finished."""
        for result in results:
            head = self._head[result.cell]
            self._left[head] -= 1
            self._run[head] += 1
            self._seconds[head] += result.seconds
            if result.error is not None:
                self._failed.add(result.cell)

    def seconds_left(self) -> float | None:
        """Return the seconds until the end: what is left, by what each head's cells took; None at first."""
        worked, elapsed = sum(self._seconds.values()), time.monotonic() - self._began
        if not worked:
            return None
        overall = worked / self._run.total()
        each = {
            head: self._seconds[head] / self._run[head] if self._run[head] else overall for head in self._left
        }
        return elapsed / worked * sum(each[head] * count for head, count in self._left.items())

    def __rich__(self) -> RenderableType:
        failed = Counter(self._head[number] for number in self._failed)
        table = Table("head", "cells", "failed", "CPU s a cell")
        for head, total in self._total.items():
            done = f"{total - self._left[head]:,} of {total:,}"
            each = f"{self._seconds[head] / self._run[head]:.2f}" if self._run[head] else ""
            table.add_row(head, done, str(failed[head] or ""), each)
        for column in table.columns[1:]:
            column.justify = "right"
        return RichGroup(table, self._told())

    def _told(self) -> str:
        total, left, hours = self._total.total(), self._left.total(), (time.monotonic() - self._began) / HOUR
        told = f"{total - left:,} of {total:,} cells"
        remaining = self.seconds_left()
        if remaining is None:
            return told
        return f"{told}, {self._run.total() / hours:,.0f} an hour, {clock(remaining)} left"


@contextmanager
def watched(
    grid: Grid, done: Mapping[int, Result], groups: Sequence[Group]
) -> Iterator[Callable[[Sequence[Result]], None]]:
    """Show the table on a terminal, and nothing elsewhere; yield the function that takes results."""
    progress, console = Progress(grid.cells(), done, groups), Console(stderr=True)
    if not console.is_terminal:
        yield progress.add
        return
    with Live(progress, console=console, refresh_per_second=2):
        yield progress.add


def clock(seconds: float) -> str:
    """Return seconds as H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
