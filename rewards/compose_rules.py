"""The rules by which several rewards become one, and what each rule's opposite is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from decoder.contracts import TokenReward, UserError

if TYPE_CHECKING:
    from rewards.arm import Output

FLOOR = 1e-4  # what a probability is raised to before its logarithm is taken
Members = tuple[TokenReward, ...]


@runtime_checkable
class Declares(Protocol):
    """A reward that says what its numbers are: log P(attribute), P(attribute), or neither (None)."""

    @property
    def output(self) -> Output | None: ...


@runtime_checkable
class Signed(Protocol):
    """A reward whose digest tells its weights alone, and its sign, 1 or -1, the direction."""

    @property
    def sign(self) -> int: ...


class Rule(Protocol):
    """How the rewards of the members become one."""

    def reduce(self, rewards: Tensor) -> Tensor:
        """Return r (B, K) float32 from the members' (B, K, M) float32."""
        ...

    def describe(self, digests: Sequence[str]) -> str:
        """Return what tells this composition of members with these digests from every other."""
        ...

    def output(self, members: Sequence[TokenReward]) -> Output | None:
        """Return what r is."""
        ...

    def opposite(self, members: Sequence[TokenReward]) -> tuple[Members, Rule]:
        """Return the members and the rule of the opposite attribute."""
        ...


@dataclass(frozen=True, slots=True)
class Sum:
    """sum_i w_i r_i. Its opposite is the sum of the opposites: what negating every beta asks for."""

    weights: tuple[float, ...]

    def reduce(self, rewards: Tensor) -> Tensor:
        """Return the weighted sum."""
        return rewards @ torch.tensor(self.weights, device=rewards.device, dtype=rewards.dtype)

    def describe(self, digests: Sequence[str]) -> str:
        """Return every weight, whole, with its digest."""
        terms = [f"{weight!r}*{digest}" for weight, digest in zip(self.weights, digests, strict=True)]
        return f"sum({', '.join(terms)})"

    def output(self, members: Sequence[TokenReward]) -> Output | None:
        """Return None: a sum is no probability."""
        return None

    def opposite(self, members: Sequence[TokenReward]) -> tuple[Members, Rule]:
        """Return the same sum of the opposites."""
        return _opposites(members), self


@dataclass(frozen=True, slots=True)
class Extreme:
    """min_i r_i or max_i r_i, of rewards in one form.

    "Not all of them" is "one of them not", so the opposite of the minimum is the maximum of the opposites,
    exactly, since an opposite falls where the reward rises. That holds for P and log P only.
    """

    largest: bool

    def reduce(self, rewards: Tensor) -> Tensor:
        """Return the extreme."""
        return rewards.amax(-1) if self.largest else rewards.amin(-1)

    def describe(self, digests: Sequence[str]) -> str:
        """Return the digests under the name of the extreme."""
        return f"{'maximum' if self.largest else 'minimum'}({', '.join(digests)})"

    def output(self, members: Sequence[TokenReward]) -> Output | None:
        """Return the members' form."""
        return form(members[0])

    def opposite(self, members: Sequence[TokenReward]) -> tuple[Members, Rule]:
        """Return the other extreme of the opposites; a `UserError` where r is no probability."""
        if self.output(members) is None:
            named = self.describe([type(each).__name__ for each in members])
            raise UserError(
                f"{named} has no opposite: its rewards are neither P nor log P of an attribute; "
                "compose their opposites yourself"
            )
        return _opposites(members), Extreme(not self.largest)


@dataclass(frozen=True, slots=True)
class Product:
    """log prod_i P_i; negated, log(1 - prod_i P_i).

    is_probability: which members give P; it is raised to `floor` before its logarithm is taken.
    """

    is_probability: tuple[bool, ...]
    floor: float = FLOOR
    negated: bool = False

    def reduce(self, rewards: Tensor) -> Tensor:
        """Return the log-probability."""
        given = torch.tensor(self.is_probability, device=rewards.device)
        total = torch.where(given, rewards.clamp(min=self.floor).log(), rewards).sum(-1)
        return _log_not(total) if self.negated else total

    def describe(self, digests: Sequence[str]) -> str:
        """Return the digests; those of probabilities with the floor."""
        terms = [
            f"log max({digest}, {self.floor!r})" if given else digest
            for given, digest in zip(self.is_probability, digests, strict=True)
        ]
        return f"{'not ' if self.negated else ''}product({', '.join(terms)})"

    def output(self, members: Sequence[TokenReward]) -> Output | None:
        """Return that r is a log-probability."""
        return "log_probability"

    def opposite(self, members: Sequence[TokenReward]) -> tuple[Members, Rule]:
        """Return log P(not all of the attributes), of the same members."""
        return tuple(members), replace(self, negated=not self.negated)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """mean_i r_i - kappa * std_i r_i, the standard deviation that of the M members themselves (over M).

    Its opposite is as sceptical: the same of the members' opposites.
    """

    kappa: float

    def reduce(self, rewards: Tensor) -> Tensor:
        """Return the penalised mean."""
        return rewards.mean(-1) - self.kappa * rewards.std(-1, correction=0)

    def describe(self, digests: Sequence[str]) -> str:
        """Return kappa and the digests."""
        return f"ensemble(kappa={self.kappa!r}, {', '.join(digests)})"

    def output(self, members: Sequence[TokenReward]) -> Output | None:
        """Return None: a penalised mean is no probability."""
        return None

    def opposite(self, members: Sequence[TokenReward]) -> tuple[Members, Rule]:
        """Return the same of the opposites."""
        return _opposites(members), self


def describe(reward: TokenReward) -> str:
    """Return what tells a member from others in a composition's digest: weights and direction."""
    return f"not {reward.digest}" if isinstance(reward, Signed) and reward.sign < 0 else reward.digest


def form(reward: TokenReward) -> Output | None:
    return reward.output if isinstance(reward, Declares) else None


def _opposites(members: Sequence[TokenReward]) -> tuple[TokenReward, ...]:
    return tuple(member.opposite() for member in members)


def _log_not(log_p: Tensor) -> Tensor:
    """Return log(1 - P) of log P, finite also where P rounds to 1, in the form that cancels least."""
    below = log_p.clamp(max=-torch.finfo(log_p.dtype).tiny)
    return torch.where(below > -math.log(2), (-below.expm1()).log(), (-below.exp()).log1p())
