"""Which rewards a call uses and how strongly: names, directories or objects, each with its own beta."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from decoder.contracts import TokenReward, UserError

RewardLike = str | Path | TokenReward
Rewards = RewardLike | Sequence[RewardLike] | Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """A reward in use. `reward` is already the opposite one where beta is negative."""

    name: str
    reward: TokenReward
    beta: float


def pair_betas(rewards: Rewards, beta: float | Sequence[float] | None) -> list[tuple[RewardLike, float]]:
    """Return (reward, beta) pairs of a call.

    A text may carry its own strength, "positive:2"; a mapping gives name -> beta; otherwise `beta` is
    one number for all, or one each. Without any, beta is 1. Raises UserError for beta = nan or inf, for
    a beta without a reward or beside a mapping, and for lists of different lengths.
    """
    if beta is not None and (rewards is None or isinstance(rewards, Mapping)):
        why = "there is no reward" if rewards is None else "the mapping of rewards has its own"
        raise UserError(f"beta is {beta}, but {why}: leave out beta, or name the reward it is for")
    if rewards is None:
        return []
    if isinstance(rewards, Mapping):
        beta = list(rewards.values())
        rewards = list(rewards)
    several = isinstance(rewards, Sequence) and not isinstance(rewards, str)
    listed: list[RewardLike] = [*rewards] if several else [rewards]  # type: ignore[misc, list-item]
    betas = list(beta) if isinstance(beta, Sequence) else [1.0 if beta is None else beta] * len(listed)
    if len(betas) != len(listed):
        raise UserError(
            f"{len(betas)} betas for {len(listed)} rewards: give one number, or one for each reward"
        )
    pairs = [_split(reward, beta) for reward, beta in zip(listed, betas, strict=True)]
    for reward, strength in pairs:
        if not math.isfinite(strength):
            raise UserError(f"beta of reward {str(reward)!r} is {strength}: give a finite number")
    return pairs


def _split(reward: RewardLike, beta: float) -> tuple[RewardLike, float]:
    """Return the reward and its strength from "name:beta"; a path that exists is left whole."""
    if not isinstance(reward, str) or ":" not in reward or Path(reward).exists():
        return reward, float(beta)
    name, _, strength = reward.rpartition(":")
    try:
        return name, float(strength)
    except ValueError:
        raise UserError(
            f"reward {reward!r}: {strength!r} is no number; write name:beta, such as {name or 'positive'}:2"
        ) from None


def weigh_rewards(
    pairs: Sequence[tuple[RewardLike, float]], load: Callable[[RewardLike], TokenReward]
) -> list[WeightedReward]:
    """Return the rewards that act, loaded: beta 0 drops one, a negative beta takes the opposite one.

    Names come out unique: a second reward of the same name is numbered.
    """
    active: list[WeightedReward] = []
    for reward, beta in pairs:
        loaded = load(reward)  # also at beta 0: a wrong name or a reward that does not fit is still wrong
        if beta == 0:
            continue
        name = _name(reward)
        taken = sum(other.name.split("#")[0] == name for other in active)
        label = f"{name}#{taken + 1}" if taken else name
        active.append(WeightedReward(label, loaded if beta > 0 else loaded.opposite(), beta))
    return active


def _name(reward: RewardLike) -> str:
    return Path(reward).absolute().name if isinstance(reward, str | Path) else type(reward).__name__
