"""Fit many MLPs at once: each on its own pairs, in its own order, stopped where it itself is best.

AdamW with a constant rate, and a running average of the weights about an epoch long, which is what is
measured and kept: it does for a head what a falling rate does, without knowing in advance when the head will
be best, and with noisy labels that is early. Members share a step, never a number: each of them ends with
the weights it would have in a stack of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from decoder.contracts import UserError
from rewards.embedding_head import EmbeddingMLP
from rewards.fit_embedding_head import standardisation
from rewards.head_inputs import Ints, RowReader, Split
from rewards.heads import MlpOptions
from rewards.stacked_mlp import StackedMLP, bradley_terry, calibrated_loss, classification

BETAS = (0.9, 0.95)  # a short memory of squared gradients: gradients shrink fast on few pairs
WARM_UP = 50  # steps
AVERAGE_EVERY = 4  # steps; averaging at each of them costs a tenth of the time and changes nothing
FEWEST_STEPS = 400  # where few pairs make short epochs
SHORTEST_HORIZON = 40  # steps
STATISTICS_ROWS = 8192  # whose mean and deviation inputs are standardised by


@dataclass(frozen=True, slots=True)
class MlpFit:
    """One trained MLP.

    loss: its held-out loss, -log sigma(s1 - s2) a pair. step: where it was best. steps: it made in all.
    """

    mlp: EmbeddingMLP
    loss: float
    step: int
    steps: int


@dataclass(slots=True)
class _Member:
    """Where one head stands in its own training."""

    place: int
    split: Split
    items: Ints  # (m, k) rows: winner and loser, or one response
    labels: Tensor  # (m,), of the responses
    rng: np.random.Generator
    epoch_steps: int
    order: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    best: MlpFit | None = None
    waited: int = 0

    def draw(self, n: int) -> Ints:
        """Return the next n items (n,) of an endless row of epochs, each in an order of its own."""
        while len(self.order) < n:
            self.order = np.concatenate([self.order, self.rng.permutation(len(self.items))])
        taken, self.order = self.order[:n], self.order[n:]
        return taken


def fit_stack(
    reader: RowReader, splits: Sequence[Split], seeds: Sequence[int], options: MlpOptions
) -> list[MlpFit]:
    """Return one trained MLP for each split and seed; all share the options but for their seed.

    A member's weights are scaled so that sigma(s1 - s2) fits its held-out pairs, and do not depend on who
    else is in the stack. Raises UserError for embeddings that are not finite, labels where the loss needs
    pairs, and a loss that is not finite.
    """
    stack = _Stack(reader, splits, seeds, options)
    while stack.members:
        stack.step()
        stack.measure()
    return stack.found


class _Stack:
    """The members still in training, their common optimiser, and their averaged weights."""

    def __init__(
        self, reader: RowReader, splits: Sequence[Split], seeds: Sequence[int], options: MlpOptions
    ) -> None:
        self.reader, self.options, self.steps, self.averaged = reader, options, 0, 0
        self.batch = options.batch_pairs * (1 if options.loss == "bt" else 2)
        both = [_statistics(reader, split) for split in splits]
        mean, scale = (torch.stack(side) for side in zip(*both, strict=True))
        self.model = StackedMLP(mean, scale, options.widths, seeds)
        self.views = _views(self.model)
        self.optimiser = _optimiser(self.views, options)
        self.average = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.members = [self._member(*each) for each in zip(range(len(seeds)), splits, seeds, strict=True)]
        self._found: dict[int, MlpFit] = {}

    @property
    def found(self) -> list[MlpFit]:
        """Return the finished members, in the order they were given."""
        return [self._found[place] for place in sorted(self._found)]

    def step(self) -> None:
        """Make one step with every member."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["full_lr"] * min(1.0, (self.steps + 1) / WARM_UP)
        drawn = [member.draw(self.batch) for member in self.members]
        rows = np.stack([m.items[i].T.ravel() for m, i in zip(self.members, drawn, strict=True)])
        with _precision(self.options):
            scores = self.model(self.reader(rows)).float()  # (S, B)
        if self.options.loss == "bt":
            losses = bradley_terry(scores)
        else:
            losses = classification(
                scores, torch.stack([m.labels[i] for m, i in zip(self.members, drawn, strict=True)])
            )
        self.model.zero_grad()
        losses.sum().backward()
        self._update()
        self.steps += 1
        if self.steps % AVERAGE_EVERY == 0:
            self._add_to_average()

    @torch.no_grad()
    def measure(self) -> None:
        """Measure the members whose half epoch ends here, and let those go that are done."""
        done = [n for n, member in enumerate(self.members) if self._is_due(member) and self._is_done(n)]
        if done:
            for n in done:
                self._found[self.members[n].place] = self._finished(self.members[n])
            self._keep([n for n in range(len(self.members)) if n not in done])

    def _member(self, place: int, split: Split, seed: int) -> _Member:
        if self.options.loss == "bt" and split.pairs is None:
            raise UserError("the Bradley-Terry loss compares rows and was given labels: give pairs (n, 2)")
        items = split.rows[:, None] if self.options.loss == "clf" or split.pairs is None else split.pairs
        rng = np.random.default_rng((seed, 2))
        labels = torch.from_numpy(split.labels)
        return _Member(place, split, items, labels, rng, math.ceil(len(items) / self.batch))

    def _update(self) -> None:
        """Move every member's weights along the gradients."""
        for views, parameter in zip(self.views, self.model.parameters(), strict=True):
            assert parameter.grad is not None
            for number, view in enumerate(views):
                view.grad = parameter.grad[number]
        self.optimiser.step()

    def _add_to_average(self) -> None:
        """Move each member's average towards its weights: a mean over all steps, later over an epoch."""
        self.averaged += 1
        for number, member in enumerate(self.members):
            horizon = max(member.epoch_steps, SHORTEST_HORIZON)
            share = max(AVERAGE_EVERY / horizon, 2 / (self.averaged + 1))
            for average, parameter in zip(self.average, self.model.parameters(), strict=True):
                average[number].lerp_(parameter.detach()[number], share)

    def _is_due(self, member: _Member) -> bool:
        every = self._most(member) / (2 * self.options.epochs)
        return self.steps % AVERAGE_EVERY == 0 and self.steps % _multiple(every) == 0

    def _is_done(self, number: int) -> bool:
        """Measure a member; return whether it has waited or worked long enough."""
        member = self.members[number]
        mlp = self.model.member(number, self.average)
        winners, losers = mlp(self.reader(member.split.held_out)).T
        loss, factor = calibrated_loss(winners - losers)
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {self.steps}: lower lr, now {self.options.lr:g}")
        if member.best is None or loss < member.best.loss:
            mlp.linears[-1].weight.mul_(factor)  # type: ignore[operator]
            mlp.linears[-1].bias.mul_(factor)  # type: ignore[operator]
            member.best, member.waited = MlpFit(mlp, loss, self.steps, self.steps), 0
        else:
            member.waited += 1
        return member.waited >= self.options.patience or self.steps >= self._most(member)

    def _most(self, member: _Member) -> int:
        """Return how many steps a member makes at most."""
        return self.options.steps or max(self.options.epochs * member.epoch_steps, FEWEST_STEPS)

    def _finished(self, member: _Member) -> MlpFit:
        assert member.best is not None
        return MlpFit(member.best.mlp, member.best.loss, member.best.step, self.steps)

    def _keep(self, kept: Sequence[int]) -> None:
        """Go on with these members alone, so that finished ones cost nothing."""
        self.members = [self.members[n] for n in kept]
        if not kept:
            return
        chosen = torch.tensor(kept, dtype=torch.long)
        moments = [[self.optimiser.state.get(views[n]) for n in kept] for views in self.views]
        self.model.keep(chosen)
        self.views = _views(self.model)
        self.optimiser = _optimiser(self.views, self.options)
        for views, states in zip(self.views, moments, strict=True):
            for view, state in zip(views, states, strict=True):
                if state is not None:
                    self.optimiser.state[view] = state
        self.average = [average[chosen] for average in self.average]


def _views(model: StackedMLP) -> list[list[Tensor]]:
    """Return for each parameter its members' parts, which share its memory: weights first, then biases.

    They are what the optimiser sees. It rounds the last few numbers of a tensor in another way than the
    others, so that of a whole stack's tensor a member would get other bits than of its own.
    """
    return [list(parameter.detach().unbind(0)) for parameter in model.parameters()]


def _optimiser(views: Sequence[Sequence[Tensor]], options: MlpOptions) -> torch.optim.AdamW:
    """Return AdamW with rates in units of a layer's weights, n^-0.5 for n inputs; biases do not decay.

    So the same options fit embeddings of any dimension: AdamW moves every weight by about its rate a step,
    whatever the gradient's size, and keeps it within 1 / decay. A Bradley-Terry loss says nothing about the
    last bias, whose gradient would be rounding errors: it stays 0.
    """
    n_layers = len(views) // 2
    groups = []
    for layer, (weights, biases) in enumerate(zip(views[:n_layers], views[n_layers:], strict=True)):
        unit = weights[0].shape[0] ** -0.5
        lr, decay = options.lr * unit, options.weight_decay / unit
        groups.append({"params": weights, "full_lr": lr, "weight_decay": decay})
        if layer < n_layers - 1 or options.loss == "clf":
            groups.append({"params": biases, "full_lr": lr, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, betas=BETAS, fused=True)


def _multiple(steps: float) -> int:
    """Return the number of steps nearest to this that is a multiple of AVERAGE_EVERY."""
    return max(1, round(steps / AVERAGE_EVERY)) * AVERAGE_EVERY


def _statistics(reader: RowReader, split: Split) -> tuple[Tensor, Tensor]:
    """Return mean and scale (D,) of the training rows, at most STATISTICS_ROWS of them, evenly chosen."""
    rows = np.unique(split.rows)
    if len(rows) > STATISTICS_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, STATISTICS_ROWS).astype(np.int64)]
    return standardisation(reader(rows))


def _precision(options: MlpOptions) -> AbstractContextManager[None]:
    """Return the context in which products are made."""
    return torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16")
