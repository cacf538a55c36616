"""Give up weak candidates while they are still being generated, and free their cache rows.

No source has it: a gated fold scores a text at every token, so the best half can be kept long before the
end (successive halving, Jamieson and Talwalkar 2016, with tokens as the budget).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from decoder.contracts import UserError
from decoder.halving import is_decided, survivors


@dataclass(frozen=True, slots=True)
class DropSchedule:
    """When candidates are dropped; validated on construction.

    at: token counts, ascending, after each of which the best `keep` of a prompt's candidates stay.
    margin: from `first` tokens on, the leader alone stays once it is ahead of the second by so much;
        None never. Raises UserError naming the field, the value and what to give.
    """

    at: tuple[int, ...] = ()
    keep: float = 0.5
    margin: float | None = None
    first: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        if any(count < 1 for count in self.at) or list(self.at) != sorted(set(self.at)):
            raise UserError(f"drop schedule {list(self.at)}: give token counts from 1 on, ascending")
        if not 0 < self.keep < 1:
            raise UserError(f"drop keep is {self.keep}: give a share above 0 and below 1")
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin > 0):
            raise UserError(f"drop margin is {self.margin}: give a finite number above 0")
        if self.first < 1:
            raise UserError(f"drop first is {self.first}: give a token count from 1 on")

    @property
    def drops(self) -> bool:
        """Return whether anything is ever dropped."""
        return bool(self.at) or self.margin is not None


class Dropping:
    """The referee of one batch: every candidate's latest score, and which ones still compete."""

    def __init__(self, schedule: DropSchedule, prompts: Sequence[int]) -> None:
        """prompts: the prompt of each row; all candidates of a prompt must be rows of this batch."""
        self._schedule = schedule
        groups: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(row)
        self._groups = [np.array(group) for group in groups.values()]
        self._scores = np.full(len(prompts), -np.inf)
        self._competing = np.ones(len(prompts), dtype=bool)

    def give_up(self, index: int, rows: Tensor, scores: Tensor, finished: Sequence[bool]) -> tuple[bool, ...]:
        """Return which live rows to drop after token `index`; finished ones compete, and stay."""
        halves, decides = index + 1 in self._schedule.at, self._is_checked(index + 1)
        if not (halves or decides or any(finished)):  # else the scores may stay on the device
            return (False,) * len(finished)
        live = rows.cpu().numpy()
        self._scores[live] = scores.cpu().double().numpy()
        for group in self._groups if halves or decides else ():
            self._compare(group, halves, decides)
        return tuple(bool(out) and not end for out, end in zip(~self._competing[live], finished, strict=True))

    def _is_checked(self, tokens: int) -> bool:
        return self._schedule.margin is not None and tokens >= self._schedule.first

    def _compare(self, group: np.ndarray, halves: bool, decides: bool) -> None:
        scores, competing = self._scores[group], self._competing[group]
        if halves:
            competing = survivors(scores, competing, self._schedule.keep)
        if decides and is_decided(scores, competing, self._schedule.margin or 0.0):
            competing = survivors(scores, competing, 1 / len(group))
        self._competing[group] = competing
