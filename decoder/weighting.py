"""Which rewards a call uses and how strongly: names, directories or objects, each with its own beta."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from decoder.contracts import TokenReward, UserError
from prompts.reading import Prompt

RewardLike = str | Path | TokenReward
Rewards = RewardLike | Sequence[RewardLike] | Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """A reward in use. `reward` is already the opposite one where its betas are negative.

    beta: the call's strength. own: index of a prompt -> the strength it asks for instead.
    """

    name: str
    reward: TokenReward
    beta: float
    own: Mapping[int, float] = field(default_factory=dict)

    def strength(self, prompt: int) -> float:
        """Return the beta in force for the prompt of that index."""
        return self.own.get(prompt, self.beta)


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
    pairs: Sequence[tuple[RewardLike, float]],
    load: Callable[[RewardLike], TokenReward],
    prompts: Sequence[Prompt] = (),
) -> list[WeightedReward]:
    """Return the rewards that act, loaded: beta 0 drops one, a negative beta takes the opposite one.

    A prompt's own betas count instead of the call's, for the rewards they name. Where both signs occur, the
    opposite stands beside the reward as "not NAME", and each prompt uses one of the two. Raises UserError as
    `label_rewards`.
    """
    active: list[WeightedReward] = []
    for (reward, beta), label in zip(pairs, label_rewards(pairs, prompts), strict=True):
        loaded = load(reward)  # also where it does not act: a wrong name or a misfit is still wrong
        if label is not None:
            own = {i: p.betas[label] for i, p in enumerate(prompts) if p.betas and label in p.betas}
            in_force = len(own) < len(prompts) or not prompts
            active += _directions(label, loaded, beta, own, in_force=in_force)
    return active


def label_rewards(
    pairs: Sequence[tuple[RewardLike, float]], prompts: Sequence[Prompt] = ()
) -> list[str | None]:
    """Return each reward's name in the output; None for one at beta 0 that no prompt asks for.

    Names come out unique: a second reward of the same name is numbered. Raises UserError naming the prompt
    whose betas name a reward that is not there.
    """
    asked = {name.split("#")[0] for prompt in prompts for name in prompt.betas or ()}
    seen: Counter[str] = Counter()
    labels: list[str | None] = []
    for reward, beta in pairs:
        name = _name(reward)
        acts = beta != 0 or name in asked
        seen[name] += acts
        labels.append(None if not acts else name if seen[name] == 1 else f"{name}#{seen[name]}")
    _check_names(prompts, [label for label in labels if label])
    return labels


def _directions(
    name: str, reward: TokenReward, beta: float, own: Mapping[int, float], *, in_force: bool
) -> list[WeightedReward]:
    """Return the reward, its opposite, or both, each with the strengths of its sign and 0 for the others.

    in_force: whether any prompt uses the call's beta.
    """
    used = [*own.values(), *[beta] * in_force]
    negative = any(each < 0 for each in used)
    positive = any(each > 0 for each in used) or not (negative or beta < 0)
    found = []
    if positive:
        up = {prompt: max(each, 0.0) for prompt, each in own.items()}
        found.append(WeightedReward(name, reward, max(beta, 0.0), up))
    if negative or not positive:
        down = {prompt: min(each, 0.0) for prompt, each in own.items()}
        label = f"not {name}" if positive else name
        found.append(WeightedReward(label, reward.opposite(), min(beta, 0.0), down))
    return found


def _check_names(prompts: Sequence[Prompt], known: Sequence[str]) -> None:
    for prompt in prompts:
        for name in prompt.betas or ():
            if name not in known:
                there = f"the rewards are {', '.join(known)}" if known else "there is no reward"
                raise UserError(
                    f"{prompt.source}: prompt {prompt.id!r} has a beta for {name!r}, but {there}: "
                    "give the call that reward, or take the beta out"
                )


def require_own_betas(prompts: Sequence[Prompt], rewards: Sequence[WeightedReward]) -> None:
    """Raise UserError if a prompt has betas of its own that these rewards were not weighed with."""
    for index, prompt in enumerate(prompts):
        if prompt.betas and not any(index in reward.own for reward in rewards):
            raise UserError(
                f"{prompt.source}: prompt {prompt.id!r} has betas of its own ({', '.join(prompt.betas)}), "
                "which cannot count here: take them out of the prompts"
            )


def beta_multipliers(schedule: str, length: int) -> tuple[float, ...] | None:
    """Return what betas are multiplied by at each of `length` tokens; None for "constant", which is 1.

    "linear:START:END:STEPS" begins with START at the first token, goes on in equal steps, and from the
    token after the first STEPS ones on stays at END. Raises UserError for anything else.
    """
    kind, *numbers = schedule.split(":") if isinstance(schedule, str) else [repr(schedule)]
    if (kind, numbers) == ("constant", []):
        return None
    try:
        start, end, steps = float(numbers[0]), float(numbers[1]), int(numbers[2])
        sound = kind == "linear" and len(numbers) == 3 and steps >= 1
    except (ValueError, IndexError):
        sound = False
    if not sound or not all(math.isfinite(each) and each >= 0 for each in (start, end)):
        raise UserError(
            f"beta_schedule is {schedule!r}: give constant, or linear:START:END:STEPS with two finite "
            "multipliers of at least 0 and a whole number of tokens, such as linear:1:0:20"
        )
    return tuple(start + (end - start) * min(index / steps, 1.0) for index in range(length))


def _name(reward: RewardLike) -> str:
    return Path(reward).absolute().name if isinstance(reward, str | Path) else type(reward).__name__
