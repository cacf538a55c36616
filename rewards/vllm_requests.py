"""What a request to vLLM asks of the rewards, read from its `extra_args`; everything wrong is refused here.

A client steers by `{"rewards": {"positive": 2.0}, "reward_top_k": 20}`, or, where only lists of texts fit, as
in `vllm_xargs`, `{"rewards": ["positive:2.0"]}`; vLLM then draws from what is left by its own settings. A
`Decoder` sends an order, which also says how the tokens are drawn, so that they are those of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from decoder.contracts import UserError
from decoder.sampling import SamplingConfig

REWARDS, TOP_K, ORDER = "rewards", "reward_top_k", "tiller_order"
DEFAULT_TOP_K = SamplingConfig().reward_top_k


@dataclass(frozen=True, slots=True)
class Asked:
    """Steering alone: reward -> beta, and how many candidates they may reorder."""

    betas: Mapping[str, float]
    top_k: int


@dataclass(frozen=True, slots=True)
class Kind:
    """What orders that are drawn together have in common.

    acts: (reward, sign) of each of the M rewards, sign -1 for the opposite one. length: most tokens.
    multipliers: of betas, one a token, or None for 1. ends: ids that end a text. probes: names.
    """

    acts: tuple[tuple[str, int], ...]
    sampling: SamplingConfig
    length: int
    multipliers: tuple[float, ...] | None
    ends: frozenset[int]
    probes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """A text to draw as the decode loop would. key: what its results are fetched by. betas: M numbers.

    shown: M strengths at which the shift of its tokens is told, which may differ from its betas.
    """

    key: str
    kind: Kind
    betas: tuple[float, ...]
    shown: tuple[float, ...]
    seed: int
    sample: int

    def arguments(self) -> dict[str, Any]:
        """Return the `extra_args` of its request, plain values."""
        told = asdict(self)
        return {ORDER: {**told, "kind": {**told["kind"], "ends": sorted(self.kind.ends)}}}


def read_request(arguments: Mapping[str, Any] | None, known: Sequence[str]) -> Asked | Order | None:
    """Return what a request asks for, None for nothing. known: the engine's rewards.

    Raises UserError naming an unknown reward, a beta that is no finite number, or a count out of range.
    """
    if not arguments:
        return None
    if ORDER in arguments:
        if not isinstance(arguments[ORDER], Mapping):
            raise UserError(f"{ORDER} is for a Decoder's own requests: give {REWARDS} instead")
        return _read_order(arguments[ORDER])
    if TOP_K in arguments and not arguments.get(REWARDS):
        raise UserError(f"{TOP_K} is given without {REWARDS}: name the rewards, such as ['positive:2']")
    if not arguments.get(REWARDS):
        return None
    betas = {name: _beta(name, beta) for name, beta in _pairs(arguments[REWARDS])}
    for name in betas:
        if name not in known:
            raise UserError(f"unknown reward {name!r}: this engine has {', '.join(known) or 'none'}")
    return Asked(betas, _top_k(arguments.get(TOP_K, DEFAULT_TOP_K)))


def _pairs(told: Any) -> list[tuple[str, Any]]:
    if isinstance(told, Mapping):
        return list(told.items())
    texts = [told] if isinstance(told, str) else told
    if not isinstance(texts, Sequence) or not all(isinstance(each, str) for each in texts):
        raise UserError(f'{REWARDS} is {told!r}: give {{"positive": 2.0}} or ["positive:2.0"]')
    named = [each.rpartition(":") if ":" in each else (each, ":", "1") for each in texts]
    return [(name, beta) for name, _, beta in named]


def _beta(name: str, told: Any) -> float:
    try:
        beta = math.nan if isinstance(told, bool) else float(told)
    except (TypeError, ValueError):
        beta = math.nan
    if not math.isfinite(beta):
        raise UserError(f"beta of reward {name!r} is {told!r}: give a finite number")
    return beta


def _top_k(told: Any) -> int:
    if isinstance(told, bool) or not isinstance(told, int | float) or told != int(told) or told < 1:
        raise UserError(f"{TOP_K} is {told!r}: give a whole number of at least 1")
    return int(told)


def _read_order(told: Mapping[str, Any]) -> Order:
    kind = told["kind"]
    acts = tuple((name, sign) for name, sign in kind["acts"])
    multipliers = kind["multipliers"]
    shared = Kind(
        acts, SamplingConfig(**kind["sampling"]), kind["length"],
        None if multipliers is None else tuple(multipliers), frozenset(kind["ends"]), tuple(kind["probes"]),
    )  # fmt: skip
    numbers = tuple(told["betas"]), tuple(told["shown"])
    return Order(told["key"], shared, *numbers, told["seed"], told["sample"])
