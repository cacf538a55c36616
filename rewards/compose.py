"""Token rewards made of others: weighted sum, minimum, product of probabilities, pessimistic ensemble.

    positive * 2 + nontoxic                     sum_i w_i r_i
    minimum(positive, nontoxic)                 min_i r_i, as much as the worst of them
    product(positive, nontoxic)                 sum_i log P_i, all of them if they are independent
    ensemble(first, second, third, kappa=1)     mean_i r_i - kappa * std_i r_i, what the members agree on

A composition is a `TokenReward` like its members: it steers, is traced and can be composed again.

Source of the ensemble: uncertainty-weighted optimisation in "Reward Model Ensembles Help Mitigate
Overoptimization" (arXiv 2310.02743), with the standard deviation in place of the variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from decoder.contracts import Reading, RewardSession, TokenReward, UserError
from rewards.compose_rules import FLOOR, Ensemble, Extreme, Product, Rule, Sum, describe, form

if TYPE_CHECKING:
    from rewards.arm import Output


class Composable(Protocol):
    """What lets a reward be added to others and be weighted; a reward inherits it and needs nothing more."""

    __slots__ = ()

    def __add__(self, other: TokenReward) -> Composition:
        """Return the sum; sums of sums are one sum."""
        return weighted_sum((_reward(self), 1.0), (other, 1.0)) if _is_reward(other) else NotImplemented

    def __radd__(self, other: TokenReward) -> Composition:
        """Return the sum with a reward that has no operators of its own."""
        return weighted_sum((other, 1.0), (_reward(self), 1.0)) if _is_reward(other) else NotImplemented

    def __mul__(self, weight: float) -> Composition:
        """Return the reward at this weight; a negative one takes the opposite reward, as a negative beta."""
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        return weighted_sum((_reward(self), float(weight))) if is_number else NotImplemented

    def __rmul__(self, weight: float) -> Composition:
        """Return the reward at this weight."""
        return self.__mul__(weight)


@dataclass(frozen=True, slots=True)
class Composition(Composable):
    """Several rewards as one `TokenReward`; made by the functions below and by `+` and `*`."""

    members: tuple[TokenReward, ...]
    rule: Rule

    @property
    def digest(self) -> str:
        """Return the rule with the members' digests."""
        return self.rule.describe([describe(member) for member in self.members])

    @property
    def layers(self) -> tuple[int, ...]:
        """The taps that any member reads."""
        return tuple(sorted({layer for member in self.members for layer in member.layers}))

    @property
    def output(self) -> Output | None:
        """Whether r is a log-probability, a probability or neither (None)."""
        return self.rule.output(self.members)

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> CompositionSession:
        """Open a session of every member."""
        return CompositionSession([each.start(prompt_ids, prompt_mask) for each in self.members], self.rule)

    def opposite(self) -> Composition:
        """Return the reward of the opposite attribute; a `UserError` where the members do not define one."""
        return Composition(*self.rule.opposite(self.members))


class CompositionSession:
    """One decode of all members."""

    def __init__(self, sessions: Sequence[RewardSession], rule: Rule) -> None:
        self._sessions, self._rule = sessions, rule

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        """Return r (B, K) float32 of the candidates (B, K)."""
        scores = [session.score(candidate_ids, reading).float() for session in self._sessions]
        return self._rule.reduce(torch.stack(scores, -1))  # (B, K, M) -> (B, K)

    def advance(self, token_ids: Tensor) -> None:
        """Tell every member the tokens chosen."""
        for session in self._sessions:
            session.advance(token_ids)

    def select(self, rows: Tensor) -> None:
        """Keep these rows in every member."""
        for session in self._sessions:
            session.select(rows)


def weighted_sum(*terms: tuple[TokenReward, float]) -> Composition:
    """Return sum_i w_i r_i of (reward, weight) pairs, at least one.

    Sums among them are taken apart, and the weights of one and the same object are added, so that it runs
    once. A negative weight takes the opposite reward, as a negative beta does: log P(not attribute), not
    minus log P(attribute). Raises UserError for weights that are not finite.
    """
    if not terms:
        raise UserError("a sum of no rewards: give at least one (reward, weight)")
    found: list[tuple[TokenReward, float]] = []
    for reward, weight in (flat for term in terms for flat in _flatten(*term)):
        if not math.isfinite(weight):
            raise UserError(f"weight {weight} of {type(reward).__name__}: give a finite number")
        acting, size = (reward, weight) if weight >= 0 else (reward.opposite(), -weight)
        places = [i for i, (other, _) in enumerate(found) if other is acting]
        if places:
            found[places[0]] = (acting, found[places[0]][1] + size)
        else:
            found.append((acting, size))
    return Composition(tuple(reward for reward, _ in found), Sum(tuple(weight for _, weight in found)))


def minimum(*rewards: TokenReward) -> Composition:
    """Return min_i r_i; at least two, all of them P or all log P, else a `UserError`."""
    return Composition(_alike("minimum", rewards), Extreme(largest=False))


def maximum(*rewards: TokenReward) -> Composition:
    """Return max_i r_i; at least two, all of them P or all log P, else a `UserError`."""
    return Composition(_alike("maximum", rewards), Extreme(largest=True))


def product(*rewards: TokenReward, floor: float = FLOOR) -> Composition:
    """Return sum_i log P_i; at least two, each of which declares whether it gives P or log P.

    floor: what a P is raised to before its logarithm is taken, above 0 and below 1.
    """
    if not 0 < floor < 1:
        raise UserError(f"floor is {floor}: give a number above 0 and below 1")
    forms = [form(each) for each in _several("product", rewards)]
    if None in forms:
        name = type(rewards[forms.index(None)]).__name__
        raise UserError(
            f"product: {name} does not declare whether it gives P or log P; take one whose `output` says so"
        )
    return Composition(rewards, Product(tuple(each == "probability" for each in forms), floor))


def ensemble(*rewards: TokenReward, kappa: float = 1.0) -> Composition:
    """Return mean_i r_i - kappa * std_i r_i; at least two, in one form, kappa finite and at least 0."""
    if not (math.isfinite(kappa) and kappa >= 0):
        raise UserError(f"kappa is {kappa}: give a finite number of at least 0")
    return Composition(_alike("ensemble", rewards), Ensemble(float(kappa)))


def _flatten(reward: TokenReward, weight: float) -> list[tuple[TokenReward, float]]:
    if not (isinstance(reward, Composition) and isinstance(reward.rule, Sum)):
        return [(reward, weight)]
    return [(each, weight * own) for each, own in zip(reward.members, reward.rule.weights, strict=True)]


def _several(name: str, rewards: tuple[TokenReward, ...]) -> tuple[TokenReward, ...]:
    for each in rewards:
        if not _is_reward(each):
            raise UserError(
                f"{name} was given {each!r}: give token rewards, loaded, such as decoder.load_reward's"
            )
    if len(rewards) < 2:
        raise UserError(f"{name} was given {len(rewards)} rewards: give at least two")
    return rewards


def _alike(name: str, rewards: tuple[TokenReward, ...]) -> tuple[TokenReward, ...]:
    forms = dict.fromkeys(str(form(each)) for each in _several(name, rewards))
    if len(forms) > 1:
        raise UserError(
            f"{name} was given rewards of several forms ({', '.join(forms)}), which cannot be compared: load "
            "them in one, such as NAME@log_probability"
        )
    return rewards


def _is_reward(value: object) -> bool:
    return isinstance(value, TokenReward)


def _reward(value: Any) -> TokenReward:
    return cast(TokenReward, value)
