"""Early dropping replayed on runs that were never dropped: tokens saved against gain lost, exactly.

Whoever drops samples while decoding changes no token of the samples that stay, so a full run holds every
dropped run. The rules are `decoder.halving`'s, the ones the decoder itself uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decoder.contracts import UserError
from decoder.halving import is_decided, survivors
from eval.curves import NOT_SCORED
from eval.selection import share_of_gap
from eval.stats import Estimate, bootstrap
from rewards.combine import winner

if TYPE_CHECKING:  # its module loads torch
    from decoder.dropping import DropSchedule

Running = Sequence[ArrayLike]  # one prompt: N samples, (T_i,) scores of the text up to and with each token


@dataclass(frozen=True, slots=True)
class Dropped:
    """One prompt: the tokens that its samples cost in all, and the index of the sample chosen."""

    tokens: int
    winner: int


@dataclass(frozen=True, slots=True)
class DroppingPoint:
    """What a schedule saves and loses over all prompts, with intervals over prompts.

    tokens: share of the full run's tokens. gain: share of its gain in gold over BoN@1 that is kept, NaN
    where it gains nothing. agreement: share of prompts whose winner is the full run's.
    """

    schedule: DropSchedule
    tokens: Estimate
    gain: Estimate
    agreement: Estimate


def simulate(running: Running, schedule: DropSchedule) -> Dropped:
    """Return what dropping would have cost and chosen in one prompt.

    A sample that has ended competes with its final score and costs no more tokens. A dropped one has cost
    the tokens up to the count at which it was dropped; those left go to their end. Raises UserError for no
    sample, one without a running score, and where no sample left has a final score.
    """
    table, lengths = _table(running)
    alive, cost = np.ones(len(table), dtype=bool), lengths.copy()
    for count in _counts(schedule, table.shape[1]):
        kept = _kept(schedule, count, table[:, count - 1], alive)
        gone = alive & ~kept
        cost[gone] = np.minimum(lengths, count)[gone]
        alive = kept
        if alive.sum() == 1:
            break
    return Dropped(int(cost.sum()), winner(np.where(alive, table[:, -1], np.nan)))


def full_run(running: Running) -> Dropped:
    """Return what one prompt costs and chooses where nothing is dropped; errors as `simulate`."""
    table, lengths = _table(running)
    return Dropped(int(lengths.sum()), winner(table[:, -1]))


def dropping_curve(
    running: Sequence[Running], gold: Sequence[ArrayLike], schedules: Sequence[DropSchedule]
) -> list[DroppingPoint]:
    """Return a point for each schedule, over P prompts: running scores and gold (N,) of each.

    A prompt with a sample without gold (NaN) counts for tokens and agreement, not for the gain. Raises
    UserError, naming the prompt, where scores and gold are not of the same samples or none can win.
    """
    truth = [np.asarray(group, dtype=float) for group in gold]
    _check_groups(running, truth)
    full = [_named(index, full_run, runs) for index, runs in enumerate(running)]
    points = []
    for schedule in schedules:
        run = partial(simulate, schedule=schedule)
        points.append(_point(schedule, [_named(i, run, runs) for i, runs in enumerate(running)], full, truth))
    return points


def schedule_text(schedule: DropSchedule) -> str:
    """Return what people read: "keep 50 % at 16, 32; stop at a lead of 0.2 from 8", or "drop nothing"."""
    said = []
    if schedule.at:
        said.append(f"keep {100 * schedule.keep:g} % at {', '.join(map(str, schedule.at))}")
    if schedule.margin is not None:
        said.append(f"stop at a lead of {schedule.margin:g} from {schedule.first}")
    return "; ".join(said) or "drop nothing"


def _kept(schedule: DropSchedule, count: int, scores: NDArray[Any], alive: NDArray[Any]) -> NDArray[Any]:
    """Return (N,) bool: who still competes after `count` tokens."""
    kept = survivors(scores, alive, schedule.keep) if count in schedule.at else alive
    stops = schedule.margin is not None and count >= schedule.first
    if stops and is_decided(scores, kept, schedule.margin or 0.0):
        kept = survivors(scores, kept, 1 / len(scores))  # the leader alone
    return kept


def _counts(schedule: DropSchedule, longest: int) -> list[int]:
    """Return the token counts at which samples may be dropped before all of them end."""
    every = range(0) if schedule.margin is None else range(schedule.first, longest)
    return sorted(count for count in {*schedule.at, *every} if count < longest)


def _point(
    schedule: DropSchedule, found: Sequence[Dropped], full: Sequence[Dropped], gold: Sequence[NDArray[Any]]
) -> DroppingPoint:
    pairs = list(zip(found, full, strict=True))
    tokens = np.array([(one.tokens, whole.tokens) for one, whole in pairs])
    same = [one.winner == whole.winner for one, whole in pairs]
    gains = np.array(
        [
            (right[one.winner], right.mean(), right[whole.winner])
            for (one, whole), right in zip(pairs, gold, strict=True)
        ]
    )
    return DroppingPoint(schedule, bootstrap(tokens, _ratio), _gain(gains), bootstrap(same))


def _gain(units: NDArray[Any]) -> Estimate:
    whole = units[~np.isnan(units).any(axis=1)]
    if not len(whole) or np.isnan(share_of_gap(whole)):
        return NOT_SCORED
    return bootstrap(whole, share_of_gap)


def _ratio(units: NDArray[Any]) -> float:
    part, whole = units.sum(axis=0)
    return float(part / whole)


def _named(index: int, run: Callable[[Running], Dropped], running: Running) -> Dropped:
    try:
        return run(running)
    except UserError as error:
        raise UserError(f"prompt {index}: {error}") from None


def _table(running: Running) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return scores (N, longest) after each token, a final one repeated to the end, and lengths (N,)."""
    runs = [np.asarray(run, dtype=float) for run in running]
    lengths = np.array([len(run) for run in runs], dtype=int)
    if not len(runs):
        raise UserError("no sample to choose from (N = 0); generate at least one")
    if not lengths.all():
        empty = int(np.argmin(lengths))
        raise UserError(f"sample {empty} has no running score; score every token of every sample")
    longest = int(lengths.max())
    return np.stack([np.pad(run, (0, longest - len(run)), mode="edge") for run in runs]), lengths


def _check_groups(running: Sequence[Running], gold: Sequence[NDArray[Any]]) -> None:
    if len(running) != len(gold) or not len(gold):
        raise UserError(f"scores of {len(running)} and gold of {len(gold)} prompts; give both for the same")
    for index, (runs, right) in enumerate(zip(running, gold, strict=True)):
        if right.shape != (len(runs),):
            raise UserError(
                f"prompt {index}: {len(runs)} runs and gold of shape {right.shape}; give one each"
            )
