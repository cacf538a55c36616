"""Where a worker's model leaves what a step said of its rows, for the logits processor beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rewards.vllm_group import Group
from rewards.vllm_requests import Kind
from rewards.vllm_spec import EngineSpec, read_spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rewards.vllm_readout import PagedSums, Readout

_BOARDS: dict[int, tuple[Any, Board]] = {}


class Board:
    """One worker's. columns: (n, C) of the rows to sample; sums: of means, made with the first pass."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.columns: Tensor | None = None
        self.sums: PagedSums | None = None
        self._readout: Readout | None = None
        self._groups: dict[Kind, Group] = {}

    @staticmethod
    def of(vllm_config: Any) -> Board:
        """Return the board of the worker with this configuration, one for its model and its processor."""
        shared = vllm_config.compilation_config  # the same object wherever a worker has it
        _BOARDS.setdefault(id(shared), (shared, Board(read_spec(vllm_config))))
        return _BOARDS[id(shared)][1]

    @property
    def readout(self) -> Readout:
        """The rewards, which are there when the model's weights are."""
        if self._readout is None:
            raise RuntimeError("the model was not loaded by rewards.vllm_model: its rewards are missing")
        return self._readout

    @readout.setter
    def readout(self, readout: Readout) -> None:
        self._readout = readout

    def group(self, kind: Kind, device: torch.device) -> Group:
        """Return the group of this kind; groups that became empty are dropped."""
        if kind not in self._groups:
            self._groups = {each: group for each, group in self._groups.items() if len(group)}
            self._groups[kind] = Group(kind, self.readout, device)
        return self._groups[kind]

    def order(self, key: str) -> Group:
        """Return the group that holds an order. Raises KeyError."""
        return next(group for group in self._groups.values() if group.holds(key))

    def close(self, keys: Sequence[str]) -> None:
        """Forget these orders."""
        for group in self._groups.values():
            for key in keys:
                group.close(key)

    def count(self) -> int:
        """Return how many orders are remembered."""
        return sum(len(group) for group in self._groups.values())
