"""Orders that are drawn alike: their random numbers, what was said of their tokens, and their probes' sums.

Every row of a step may be of another text and of another token of it, so all of it is kept in tables with a
row an order, and a step reads and writes the rows it needs at once. A token is taken note of once: vLLM may
read a part of a text again, after it had to give up its cache, or read a prompt in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from decoder.contracts import Drawn
from decoder.sampling import add_rewards, choose, draw_uniforms, pick, shift, top_candidates
from rewards.fold import score_of
from rewards.vllm_readout import Readout
from rewards.vllm_requests import Kind, Order
from rewards.vllm_steer import score

NEVER = 1 << 40  # a token number beyond all
ROWS = 64  # of the tables at first


class Group:
    """The orders of one kind in a worker; S is the number of rows of its tables."""

    def __init__(self, kind: Kind, readout: Readout, device: torch.device) -> None:
        self.kind = kind
        self._readout, self._device = readout, device
        self._ends = torch.tensor(sorted(kind.ends), dtype=torch.long, device=device)
        self._multipliers = torch.tensor(kind.multipliers or [1.0] * kind.length, device=device)
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._tables: dict[str, Tensor] = self._make(0)

    def __len__(self) -> int:
        """Return how many orders it holds."""
        return len(self._rows)

    def holds(self, key: str) -> bool:
        """Return whether the order is here."""
        return key in self._rows

    def _make(self, n: int) -> dict[str, Tensor]:
        shapes = {
            "uniforms": (self.kind.length,), "records": (self.kind.length, len(self.kind.acts) + 1),
            "betas": (len(self.kind.acts),), "shown": (len(self.kind.acts),),
            "sums": (len(self.kind.probes), 2),
        }  # fmt: skip
        tables = {name: torch.zeros(n, *shape, device=self._device) for name, shape in shapes.items()}
        whole = {name: torch.zeros(n, dtype=torch.long, device=self._device) for name in ("prompt", "told")}
        return {**tables, **whole, "end": torch.full((n,), NEVER, device=self._device)}

    def open(self, order: Order, prompt_ids: Sequence[int]) -> int:
        """Return the order's row, a new one where it is not known yet."""
        if order.key in self._rows:
            return self._rows[order.key]
        if not self._free:
            size = len(self._tables["end"])
            more = self._make(max(ROWS, size))
            self._tables = {name: torch.cat([table, more[name]]) for name, table in self._tables.items()}
            self._free = list(range(size, len(self._tables["end"])))
        row = self._rows[order.key] = self._free.pop()
        uniforms = draw_uniforms(order.seed, [(prompt_ids, order.sample)], self.kind.length)[0]
        values: dict[str, Any] = {
            "uniforms": uniforms, "records": 0.0, "sums": 0.0, "betas": torch.tensor(order.betas),
            "shown": torch.tensor(order.shown), "prompt": len(prompt_ids), "told": 0, "end": NEVER,
        }  # fmt: skip
        for name, value in values.items():
            self._tables[name][row] = value
        return row

    def close(self, key: str) -> None:
        """Forget an order; one that is not there is forgotten already."""
        if key in self._rows:
            self._free.append(self._rows.pop(key))

    def read(self, key: str, n_tokens: int) -> dict[str, Any]:
        """Return what is known of an order's first tokens.

        "rewards": n lists of M numbers; "shift": n numbers, log P(token) with rewards minus without;
        "scores": one a probe, after every token that was read.
        """
        row = self._rows[key]
        records = self._tables["records"][row, :n_tokens].tolist()
        return {
            "rewards": [each[:-1] for each in records],
            "shift": [each[-1] for each in records],
            "scores": score_of(self._tables["sums"][row]).tolist(),
        }

    def draw(self, logits: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
        """Return the next token (n,) int64 of the orders in `rows`, from logits (n, V) and columns (n, C)."""
        states, probes, positions = self._readout.split(columns)
        index = positions - self._tables["prompt"][rows] + 1  # of the token to draw; below 0 inside a prompt
        fresh = index == self._tables["told"][rows]
        at = index.clamp(0, self.kind.length - 1)
        ids, base, rewards = self._offer(logits, states)
        betas = self._tables["betas"][rows] * self._multipliers[at, None]
        scores = add_rewards(base, rewards, betas) if self.kind.acts else base
        chosen = choose(scores, self.kind.sampling, self._tables["uniforms"][rows, at])
        tokens = chosen if ids is None else ids.gather(1, chosen[:, None])[:, 0]
        if self.kind.acts:
            shown = self._tables["shown"][rows] * self._multipliers[at, None]
            said = torch.cat([pick(rewards, chosen), shift(base, rewards, shown, chosen)[:, None]], -1)
            inside = fresh & (index < self.kind.length)
            self._tables["records"][rows, at] = torch.where(
                inside[:, None], said, self._tables["records"][rows, at]
            )
        self._fold(logits, probes, rows, index, fresh, tokens)
        self._tables["told"][rows] += fresh
        over = fresh & (torch.isin(tokens, self._ends) | (index == self.kind.length - 1))
        end = self._tables["end"][rows]
        self._tables["end"][rows] = torch.where(over & (end == NEVER), index, end)
        return tokens

    def _offer(self, logits: Tensor, states: dict[str, Tensor]) -> tuple[Tensor | None, Tensor, Tensor]:
        sampling = self.kind.sampling
        width = sampling.reward_top_k if self.kind.acts else sampling.top_k if sampling.do_sample else 0
        if not width:
            return None, logits, logits.new_zeros(len(logits), 1, 0)
        ids, base = top_candidates(logits, width)
        return ids, base, score(ids, states, self._readout, self.kind.acts)

    def _fold(
        self,
        logits: Tensor,
        probes: dict[str, Tensor],
        rows: Tensor,
        index: Tensor,
        fresh: Tensor,
        tokens: Tensor,
    ) -> None:
        """Take the probes a token further: by the states of the one read, or the logits of the one drawn."""
        end = self._tables["end"][rows]
        for number, name in enumerate(self.kind.probes):
            if name in probes:
                terms, counts = probes[name], fresh & (index > 0) & (index <= end + 1)
            else:
                drawn = Drawn(tokens[:, None], torch.ones_like(tokens[:, None]).bool(), {}, logits[:, None])
                gates, values = self._readout.probes[name].read(drawn)
                terms, counts = torch.cat([gates * values, gates], -1), fresh & (index <= end)
            self._tables["sums"][rows, number] += torch.where(counts[:, None], terms, 0.0)
