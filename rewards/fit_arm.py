"""Fit a tap ARM to labelled texts whose states have been read.

Loss: binary cross-entropy at every token, weighted 2t / (l(l+1)) over the l tokens of a text (the
cumulative loss of RAD, arXiv 2310.09520), both classes weighing the same. Where a teacher says P(attribute)
after every token, that is the target, and the tokens of a text weigh alike. States and embeddings are
standardised for the fit; that, and the calibration afterwards, is folded into the saved weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewards.arm import ArmConfig, ArmHead
from rewards.arm_losses import candidate_loss, cumulative_loss, soft_loss
from rewards.candidate_values import Candidates, CandidateValues
from rewards.features import TokenStates
from rewards.measure_arm import balance


@dataclass(frozen=True, slots=True)
class Task:
    """Texts, labels, and which of them are for what.

    states: of M texts. embeddings: (V, d) the generator's output embeddings. labels: (M,) float64 in
    [0, 1]. train, validation: int64 text numbers, disjoint. soft: (N,) float32, a teacher's P(attribute)
    after the token that each state is scored with; learnt in place of the labels. candidates: its values of
    other tokens, learnt in place of both.
    """

    states: TokenStates
    embeddings: Tensor
    labels: NDArray[np.float64]
    train: Tensor
    validation: Tensor
    soft: Tensor | None = None
    candidates: CandidateValues | None = None

    def balanced(self) -> tuple[Tensor, Tensor]:
        """Return weights and targets (M,) float32 under which the classes of the training texts balance."""
        weights, targets = balance(self.labels, float(self.labels[self.train.numpy()].mean()))
        return torch.from_numpy(weights).float(), torch.from_numpy(targets).float()


@dataclass(frozen=True, slots=True)
class Recipe:
    """The numbers of one fit.

    batch_size: texts a step; fewer where there are few texts, lest a fit ends after a dozen steps.
    weight_decay: far above what networks take, since a step shrinks weights by learning_rate times it
    and a fit has only hundreds of steps.
    """

    weight_decay: float = 10.0
    epochs: int = 6
    learning_rate: float = 1e-3
    batch_size: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Scale:
    """What standardises states (n_taps * d,) and embeddings (d,)."""

    state_mean: Tensor
    state_std: Tensor
    embedding_mean: Tensor
    embedding_std: Tensor


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted head that reads plain features, calibrated, and how it came about.

    loss: on the validation texts, before calibration. epoch: of the weights kept, from 1.
    """

    head: ArmHead
    loss: float
    epoch: int
    temperature: float
    bias: float


def fit(task: Task, arm: ArmConfig, recipe: Recipe, on_epoch: Callable[[int], None] = lambda _: None) -> Fit:
    """Return the head of the epoch with the lowest validation loss, folded and calibrated."""
    generator = torch.Generator().manual_seed(recipe.seed)
    head, scale = _new_head(arm, generator), measure_scale(task, arm.layers)
    best: tuple[float, int, dict[str, Tensor]] | None = None
    for epoch, _ in enumerate(_epochs(head, scale, task, recipe, generator), start=1):
        loss = validation_loss(head, scale, task)
        if best is None or loss < best[0]:
            best = (loss, epoch, copy.deepcopy(head.state_dict()))
        on_epoch(epoch)
    assert best is not None
    head.load_state_dict(best[2])
    folded = fold(head, scale).eval().requires_grad_(False)
    # A teacher's values of candidates are learnt as they are: their differences are the point.
    temperature, bias = (1.0, 0.0) if task.candidates is not None else calibrate(folded, task)
    return Fit(folded, best[0], best[1], temperature, bias)


def _new_head(arm: ArmConfig, generator: torch.Generator) -> ArmHead:
    """Return a head whose log-odds start near 0 on standardised inputs, however many there are."""
    head = ArmHead(arm)
    for linear in (head.state, head.summary, head.vocabulary):
        if linear is not None:
            torch.nn.init.normal_(linear.weight, std=0.1 * linear.in_features**-0.5, generator=generator)
    if arm.summary == "mean":  # the last state stays out
        torch.nn.init.zeros_(head.state.weight).requires_grad_(False)
    return head


def _epochs(
    head: ArmHead, scale: Scale, task: Task, recipe: Recipe, generator: torch.Generator
) -> Iterator[None]:
    """Train the head in place, stopping after every epoch."""
    weights, targets = task.balanced()
    optimiser = torch.optim.AdamW(head.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    batch_size = min(recipe.batch_size, max(8, len(task.train) // 10))
    n_steps = recipe.epochs * -(-len(task.train) // batch_size)
    rising = max(0.1, 1.5 / n_steps)  # a share of one step or less would be divided by zero
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=n_steps, pct_start=rising
    )
    for _ in range(recipe.epochs):
        order = task.train[torch.randperm(len(task.train), generator=generator)]
        for texts in order.split(batch_size):
            loss = task_loss(head, scale, task, texts, targets, weights)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        yield


def task_loss(
    head: ArmHead, scale: Scale, task: Task, texts: Tensor, targets: Tensor, weights: Tensor
) -> Tensor:
    """Return the loss of the texts (B,): to a teacher's values of candidates, or of their own tokens, or to
    balanced labels (M,)."""
    if task.candidates is not None:
        return _candidate_loss(head, scale, task, task.candidates, texts)
    scores = log_odds(head, task.states, task.embeddings, texts, scale)
    lengths = task.states.lengths[texts]
    if task.soft is None:
        return cumulative_loss(scores, lengths, targets[texts], weights[texts])
    return soft_loss(scores, lengths, task.soft[task.states.rows_of(texts)[0]])


def _candidate_loss(
    head: ArmHead, scale: Scale, task: Task, values: CandidateValues, texts: Tensor
) -> Tensor:
    asked = values.candidates
    scores = candidate_log_odds(head, task.states, task.embeddings, asked, texts, scale)
    return candidate_loss(scores, values.soft[texts], asked.shares[texts])


def candidate_log_odds(
    head: ArmHead,
    states: TokenStates,
    embeddings: Tensor,
    candidates: Candidates,
    texts: Tensor,
    scale: Scale | None = None,
) -> Tensor:
    """Return s of every candidate in the texts (B,), (B, P, K) float32; scale as for `log_odds`."""
    lengths = states.lengths[texts]
    first = lengths.cumsum(0) - lengths
    state = project_states(head, states, texts, scale)[first[:, None] + candidates.places[texts]]
    e = standardise(embeddings[candidates.token_ids[texts]], scale)  # (B, P, K, d)
    return ArmHead.score(state, head.vocabulary(e))


def standardise(embeddings: Tensor, scale: Scale | None) -> Tensor:
    """Return output embeddings (..., d) in float32, as a head fitted under that scale reads them."""
    e = embeddings.float()
    return e if scale is None else (e - scale.embedding_mean) / scale.embedding_std


def log_odds(
    head: ArmHead, states: TokenStates, embeddings: Tensor, texts: Tensor, scale: Scale | None = None
) -> Tensor:
    """Return s of every token of the texts (B,), (n,) float32, as a decode would have seen it.

    scale: what the head was fitted under; None for a folded head.
    """
    e = standardise(embeddings[states.next_ids[states.rows_of(texts)[0]]], scale)  # (n, d)
    return ArmHead.score(project_states(head, states, texts, scale), head.vocabulary(e)[:, None])[:, 0]


def project_states(head: ArmHead, states: TokenStates, texts: Tensor, scale: Scale | None = None) -> Tensor:
    """Return the state side of the head for every token of the texts (B,), (n, R+1) float32."""
    rows, positions = states.rows_of(texts)
    h = torch.cat([states.taps[layer][rows].float() for layer in head.config.layers], -1)  # (n, n_taps * d)
    if scale is not None:
        h = (h - scale.state_mean) / scale.state_std
    state: Tensor = head.state(h)
    return state if head.summary is None else state + running_mean(head.summary(h), positions)


def running_mean(projected: Tensor, positions: Tensor) -> Tensor:
    """Return the mean over each text's rows so far, (n, R+1); positions (n,) start at 0 in every text."""
    total = projected.cumsum(0)
    start = torch.arange(len(positions)) - positions
    before = (total - projected)[start]  # what the texts in front add up to
    return (total - before) / (positions + 1)[:, None]


@torch.no_grad()
def score_texts(head: ArmHead, task: Task, texts: Tensor, scale: Scale | None = None) -> Tensor:
    """Return s of every token of the texts, (n,) float32, in their order."""
    parts = texts.split(256)
    return torch.cat([log_odds(head, task.states, task.embeddings, part, scale) for part in parts])


@torch.no_grad()
def validation_loss(head: ArmHead, scale: Scale, task: Task) -> float:
    """Return the loss over the validation texts."""
    weights, targets = task.balanced()
    parts = task.validation.split(256)
    losses = [len(part) * float(task_loss(head, scale, task, part, targets, weights)) for part in parts]
    return sum(losses) / len(task.validation)


def measure_scale(task: Task, layers: tuple[int, ...]) -> Scale:
    """Return mean and standard deviation of the training states and of the vocabulary's embeddings."""
    total = torch.zeros(2, task.embeddings.shape[1] * len(layers), dtype=torch.float64)
    count = 0
    for texts in task.train.split(256):
        rows = task.states.rows_of(texts)[0]
        h = torch.cat([task.states.taps[layer][rows].float() for layer in layers], -1)
        total += torch.stack([h.sum(0), h.square().sum(0)])
        count += len(rows)
    mean = total[0] / count
    std = (total[1] / count - mean.square()).clamp(min=1e-8).sqrt()
    embeddings = task.embeddings.float()
    return Scale(
        mean.float(), std.float(), embeddings.mean(0), embeddings.std(0, correction=0).clamp(min=1e-6)
    )


@torch.no_grad()
def fold(head: ArmHead, scale: Scale) -> ArmHead:
    """Return the head that says the same of plain features as this one of standardised ones."""
    folded = copy.deepcopy(head).double()
    for linear in (folded.state, folded.summary):
        if linear is not None:
            linear.weight.div_(scale.state_std)
            # The mean of a constant is the constant: the summary's shift joins the state's bias.
            folded.state.bias.sub_(linear.weight @ scale.state_mean.double())
    folded.vocabulary.weight.div_(scale.embedding_std)
    folded.vocabulary.bias.sub_(folded.vocabulary.weight @ scale.embedding_mean.double())
    return folded.float()


def calibrate(head: ArmHead, task: Task) -> tuple[float, float]:
    """Turn s into s / T + b in place, with the T and b of the lowest validation loss; return both."""
    weights, targets = task.balanced()
    texts = task.validation
    scores, lengths = score_texts(head, task, texts).double(), task.states.lengths[texts]
    log_temperature, bias = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimiser = torch.optim.LBFGS([log_temperature, bias], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        calibrated = scores / log_temperature.exp() + bias
        loss = cumulative_loss(calibrated, lengths, targets[texts], weights[texts])
        loss.backward()
        return loss

    optimiser.step(closure)
    found = float(log_temperature.detach().clamp(-3, 3).exp()), float(bias.detach())
    rescale(head, *found)
    return found


@torch.no_grad()
def rescale(head: ArmHead, temperature: float, bias: float) -> None:
    """Make the head say s / temperature + bias. Its products scale with the state side alone."""
    for linear in (head.state, head.summary):
        if linear is not None:
            linear.weight.div_(temperature)
    head.state.bias.div_(temperature)
    head.state.bias[0].add_(bias)
    head.vocabulary.weight[0].div_(temperature)
    head.vocabulary.bias[0].div_(temperature)
