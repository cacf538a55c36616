"""The rewards at work inside vLLM: all requests of a step that ask for them, in one product.

Runs in the worker, on the base model's logits, before temperature and filters, for the rows of the batch that
ask for it; the others are not touched. An order's token is drawn here, by the decode loop's own formula and
random numbers, and stands alone among the logits that go on to vLLM's sampler.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from decoder.contracts import UserError
from rewards.vllm_board import Board
from rewards.vllm_group import Group
from rewards.vllm_requests import Asked, Order, read_request
from rewards.vllm_spec import REWARDS_VARIABLE
from rewards.vllm_steer import Steering, leave_open

Wish = Asked | Order


class RewardProcessor(LogitsProcessor):  # type: ignore[misc]
    """Adds sum_i |beta_i| r_i to the candidates of the requests that ask, and closes all other tokens."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse, where a request comes in, what no worker could honour. Raises ValueError: HTTP 400."""
        try:
            read_request(sampling_params.extra_args, json.loads(os.environ.get(REWARDS_VARIABLE, "[]")))
        except UserError as error:
            raise ValueError(str(error)) from None

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._board, self._device = Board.of(vllm_config), device
        self._known = list(self._board.spec.rewards)
        self._wishes: dict[int, tuple[Wish, list[int]]] = {}  # row of the batch -> wish, prompt
        self._plan: list[Callable[[Tensor, Tensor], None]] = []

    def is_argmax_invariant(self) -> bool:
        """Say that the likeliest token may change."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows of the batch: who left, who came, who moved."""
        if batch_update is None:
            return
        wishes, changed = self._wishes, False
        for row in batch_update.removed:
            changed |= wishes.pop(row, None) is not None
        for row, params, prompt_ids, _ in batch_update.added:
            changed |= wishes.pop(row, None) is not None
            wish = read_request(params.extra_args, self._known)
            if wish is not None:
                wishes[row], changed = (wish, list(prompt_ids or [])), True
        for a, b, direction in batch_update.moved:
            first, second = wishes.pop(a, None), wishes.pop(b, None)
            wishes |= {b: first} if first else {}
            wishes |= {a: second} if second and direction is MoveDirectionality.SWAP else {}
            changed |= bool(first or second)
        if changed:
            self._plan = [*self._steering(), *self._drawing()]

    def apply(self, logits: Tensor) -> Tensor:
        """Return the logits (n, V), the rows of those who asked overwritten."""
        if self._plan:
            columns = self._board.columns
            if columns is None or len(columns) != len(logits):
                raise RuntimeError("the rows to sample are not those the model has read: cannot steer them")
            for act in self._plan:
                act(logits, columns)
        return logits

    def _steering(self) -> list[Callable[[Tensor, Tensor], None]]:
        asked = {row: wish for row, (wish, _) in sorted(self._wishes.items()) if isinstance(wish, Asked)}
        if not asked:
            return []
        return [partial(Steering.of(asked, self._device).act, readout=self._board.readout)]

    def _drawing(self) -> list[Callable[[Tensor, Tensor], None]]:
        groups: dict[int, tuple[Group, list[int], list[int]]] = {}
        for row, (wish, prompt_ids) in sorted(self._wishes.items()):
            if isinstance(wish, Order):
                group = self._board.group(wish.kind, self._device)
                _, rows, places = groups.setdefault(id(group), (group, [], []))
                rows.append(row)
                places.append(group.open(wish, prompt_ids))
        return [
            self._draw(group, self._tensor(rows), self._tensor(places))
            for group, rows, places in groups.values()
        ]

    def _draw(self, group: Group, rows: Tensor, places: Tensor) -> Callable[[Tensor, Tensor], None]:
        def act(logits: Tensor, columns: Tensor) -> None:
            offered = logits if len(rows) == len(logits) else logits[rows]
            tokens = group.draw(offered, columns[rows], places)[:, None]
            leave_open(logits, rows, tokens, torch.zeros_like(tokens, dtype=logits.dtype))

        return act

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


class RewardWorker:
    """What the client may ask of a worker, mixed into vLLM's own by `worker_extension_cls`."""

    model_runner: Any

    def tiller_read(self, asked: dict[str, int]) -> dict[str, dict[str, Any]]:
        """Return key -> what is known of an order's first tokens, from key -> how many."""
        board = Board.of(self.model_runner.vllm_config)
        return {key: board.order(key).read(key, n_tokens) for key, n_tokens in asked.items()}

    def tiller_close(self, keys: list[str]) -> None:
        """Forget these orders."""
        Board.of(self.model_runner.vllm_config).close(keys)

    def tiller_count(self) -> int:
        """Return how many orders are remembered: none, when no text is under way."""
        return Board.of(self.model_runner.vllm_config).count()
