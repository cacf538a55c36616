"""What rewards read off a forward pass inside vLLM: projected states and running means of every token.

A tap ARM needs of the states no more than R + 1 numbers a token and, where it keeps a summary, their running
sum over the text. The sum stands beside the keys and values: one entry a slot of their cache, in the same
blocks. So whatever vLLM does with a text (prefix caching, chunked prefill, preemption, blocks shared by
many texts), the sum up to a token is where its keys are, and nothing has to be tracked by request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from decoder.contracts import Drawn
from rewards.arm import ArmHead, TapArm, features


class FoldProbe(Protocol):
    """A probe whose score is a gated mean over tokens: what it says of each token alone."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The taps it reads, () for none."""
        ...

    def read(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Return gates and rewards (B, T) float32 of drawn tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the T tokens of a forward pass stand: what attention knows of B texts and their cache.

    starts: (B + 1,) int64, where each text's tokens begin among the T. lengths: (B,) int64, tokens of each
    text after this pass. slots: (T,) int64 in the cache. blocks: (B, ?) the blocks of each text.
    single: whether every text has one token in this pass.
    """

    starts: Tensor
    lengths: Tensor
    slots: Tensor
    blocks: Tensor
    block_size: int
    single: bool


class PagedSums:
    """Sums over each text up to and with every cached token, float32, (slots, C)."""

    def __init__(self, n_slots: int, columns: int, device: torch.device) -> None:
        # One more than there are, so that -1, the slot of a captured graph's padding, is nobody's.
        self._sums = torch.zeros(n_slots + 1, columns, device=device)

    def fold(self, values: Tensor, at: Placement) -> Tensor:
        """Take in the values of T tokens (T, C) float32; return the sums up to and with each, (T, C)."""
        counts = at.starts.diff()
        first = at.lengths - counts  # the position of each text's first token of this pass
        last = (first - 1).clamp(min=0)
        block = at.blocks.gather(1, (last // at.block_size)[:, None].long())[:, 0].long()
        slot = torch.where(first > 0, block * at.block_size + last % at.block_size, -1)  # of the token before
        before = torch.where(slot[:, None] >= 0, self._sums[slot], 0.0)
        if at.single:
            sums = before + values
        else:
            # In double precision: the sum runs through all texts of the pass before each takes its own part.
            n_tokens, running = len(values), values.double().cumsum(0)
            start = torch.cat([torch.zeros_like(running[:1]), running])[at.starts[:-1]]
            inside = running - _repeat(start, counts, n_tokens)
            before = _before(before.double(), slot, inside, counts, at)
            sums = (inside + _repeat(before, counts, n_tokens)).float()
        self._sums[at.slots] = sums
        return sums


def _before(stored: Tensor, slot: Tensor, inside: Tensor, counts: Tensor, at: Placement) -> Tensor:
    """Return the sums (B, C) before each text's first token of a pass.

    stored: those of earlier passes. vLLM lets a text go on from a block that another text fills in the very
    same pass, and a third from a block of that one; such a chain is followed by doubling its links.
    """
    n = len(slot)
    hits = at.slots == slot[:, None]  # (B, T)
    found, token = hits.any(1), hits.int().argmax(1)
    owner = torch.arange(n, device=slot.device).repeat_interleave(counts, output_size=len(inside))
    link = torch.where(found, owner[token], n)  # n: the end of a chain
    sums = torch.cat(
        [torch.where(found[:, None], inside[token], stored), stored.new_zeros(1, stored.shape[1])]
    )
    link = torch.cat([link, link.new_full((1,), n)])
    for _ in range(n.bit_length()):
        sums, link = sums + sums[link], link[link]
    return sums[:n]


def _repeat(rows: Tensor, counts: Tensor, n_tokens: int) -> Tensor:
    return rows.repeat_interleave(counts, 0, output_size=n_tokens)  # told, so that no device is waited for


class Readout:
    """All rewards and probes of an engine, and the columns that a forward pass hands out for them.

    A row of columns, float32: for each reward the R + 1 numbers of its state, for each probe that reads
    states its gate times reward and its gate, and last the token's position.
    """

    def __init__(self, arms: Mapping[str, TapArm], probes: Mapping[str, FoldProbe]) -> None:
        self.arms, self.probes = dict(arms), dict(probes)
        self._readers = {name: probe for name, probe in probes.items() if probe.layers}
        self._widths = [arm.head.config.rank + 1 for arm in arms.values()]
        self._layers = tuple(sorted({layer for arm in arms.values() for layer in arm.layers}))
        self._weight, self._bias = _stack([arm.head for arm in arms.values()], self._layers)

    @property
    def averaged(self) -> int:
        """How many columns hold means over the text: those of the rewards, which come first."""
        return sum(self._widths)

    def project(self, taps: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what each of T tokens says alone, (T, C - 1), and what of it is averaged, (T, averaged)."""
        terms = [_terms(probe, taps) for probe in self._readers.values()]
        if not self.arms:
            empty = next(iter(taps.values()))[:, :0].float()
            return torch.cat([empty, *terms], -1), empty
        own, averaged = torch.addmm(self._bias, features(taps, self._layers), self._weight).chunk(2, -1)
        return torch.cat([own, *terms], -1), averaged

    def split(self, columns: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Return reward -> (n, R + 1), probe -> (n, 2) and positions (n,) int64 from columns (n, C)."""
        parts = columns.split([*self._widths, *[2] * len(self._readers), 1], -1)
        states = dict(zip(self.arms, parts, strict=False))
        probes = dict(zip(self._readers, parts[len(states) :], strict=False))
        return states, probes, parts[-1][:, 0].long()


def _stack(heads: Sequence[ArmHead], layers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return weight (n_layers * d, 2C) and bias (2C,) of all heads as one: C own columns, C averaged ones.

    A step has few tokens, and the time of its small products is that of starting them: one takes the place of
    two a head.
    """
    own: list[Tensor] = []
    averaged: list[Tensor] = []
    bias: list[Tensor] = []
    for head in heads:
        size = head.config.hidden_size
        for columns, linear in ((own, head.state), (averaged, head.summary)):
            whole = head.state.weight.new_zeros(head.config.rank + 1, len(layers), size)
            if linear is not None:
                at = [layers.index(layer) for layer in head.config.layers]
                whole[:, at] = linear.weight.detach().unflatten(1, (len(at), size))
            columns.append(whole.flatten(1))
        bias.append(head.state.bias.detach())
    if not heads:
        return torch.zeros(0, 0), torch.zeros(0)
    weight = torch.cat([*own, *averaged]).T.contiguous()
    return weight, torch.cat([*bias, torch.zeros_like(torch.cat(bias))])


def _terms(probe: FoldProbe, taps: Mapping[int, Tensor]) -> Tensor:
    """Return gate times reward and gate (T, 2) of every token that was read."""
    one = {layer: states[None] for layer, states in taps.items()}
    mask = torch.ones(1, len(next(iter(taps.values()))), dtype=torch.bool)
    gates, rewards = probe.read(Drawn(mask.long(), mask, one, None))
    return torch.stack([gates * rewards, gates], -1)[0]


def average(sums: Tensor, positions: Tensor) -> Tensor:
    """Return means (T, C) from the sums up to and with the tokens at positions (T,)."""
    return sums / (positions + 1)[:, None]
