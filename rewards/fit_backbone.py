"""Train a backbone and its head: minibatches of texts, best weights restored, interrupted runs resumed."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import set_seed  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from decoder.contracts import UserError
from decoder.terminal import progress
from rewards.backbone_heads import ActionValueHead, ValueHead
from rewards.backbone_losses import mean_square, random_tokens
from rewards.backbone_texts import Batch, TokenTexts, in_order, make_batch, plan_epoch
from rewards.checkpoints import Checkpoints, Progress, fill, trained_weights

MixedPrecision = Literal["no", "bf16"]
VALIDATION_TOKENS = 8192  # padded, at once: nothing is kept for a gradient
MOST_DRAWS = 1 << 32


@dataclass(frozen=True, slots=True)
class Recipe:
    """The numbers of one fit.

    batch_size: texts a step, read in `accumulate` parts. warmup: share of the steps. eval_every, save_every:
    steps; evaluated after the last one too. clip: of the gradient's norm.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    eval_every: int
    save_every: int
    accumulate: int = 1
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 2.0
    mixed_precision: MixedPrecision = "no"
    seed: int = 0


class Scorer(nn.Module):
    """A causal LM as a reward's backbone, and the head on it."""

    def __init__(self, backbone: PreTrainedModel, head: ValueHead | ActionValueHead) -> None:
        """Take both as they are; what requires a gradient is trained."""
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the states h (B, T, d) float32 after each token of right-padded ids (B, T)."""
        output = self.backbone.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        states: Tensor = output.last_hidden_state.float()
        return states

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return e(v), the backbone's output embeddings, (..., d) float32 of ids (...)."""
        rows: Tensor = self.backbone.get_output_embeddings().weight[token_ids]
        return rows.float()

    def values(self, states: Tensor, ids: Tensor) -> Tensor:
        """Return r (B, T - 1, F) of every scored token: of states and ids (B, T, ...), BOS first.

        RAD's is the value of the text that ends with the token, the ARM's that of the token after its prefix.
        """
        if isinstance(self.head, ValueHead):
            value: Tensor = self.head(states[:, 1:])
            return value
        return self.candidates(states[:, :-1], ids[:, 1:, None])[..., 0, :]

    def candidates(self, states: Tensor, candidate_ids: Tensor) -> Tensor:
        """Return an ARM's r (..., K, F) of candidates (..., K) after states (..., d)."""
        value: Tensor = self.head(states, self.embed(candidate_ids))
        return value


Error = Callable[[Scorer, Tensor, Batch, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """What a step makes smaller.

    error: of (scorer, states, batch, generator), also what validation tells. regularise: coefficient of the
    squared marginal of one random token a position.
    """

    error: Error
    regularise: float = 0.0

    def loss(self, scorer: Scorer, states: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the error with the regulariser."""
        error = self.error(scorer, states, batch, generator)
        return (
            error + self.regularise * penalty(scorer, states, batch, generator) if self.regularise else error
        )


def penalty(scorer: Scorer, states: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """Return the mean squared marginal <W h, e(v)> of one random token v at each position."""
    assert isinstance(scorer.head, ActionValueHead), "only an ARM has a marginal"
    random_ids = random_tokens(
        batch.scored, scorer.backbone.get_output_embeddings().weight.shape[0], generator
    )
    marginal = scorer.head.marginal(states[:, :-1], scorer.embed(random_ids[..., None]))[..., 0, :]
    return mean_square(marginal, batch.scored)


@dataclass(frozen=True, slots=True)
class Fitted:
    """How a fit went: the weights kept are those of step `best_step`.

    history: (step, mean training loss since the one before, validation loss). resumed_at: step, 0 for none.
    """

    best_step: int
    best_loss: float
    n_steps: int
    n_tokens: int
    seconds: float
    resumed_at: int
    history: list[tuple[int, float, float]]

    def about(self) -> dict[str, Any]:
        """Return what the saved reward tells of its fit, ready for JSON."""
        return {
            "steps": self.n_steps,
            "step_kept": self.best_step,
            "validation_loss": self.best_loss,
            "history": [
                {"step": step, "training_loss": round(train, 5), "validation_loss": round(validation, 5)}
                for step, train, validation in self.history
            ],
            "seconds": round(self.seconds, 1),
            "tokens": self.n_tokens,
            "tokens_per_second": round(self.n_tokens / self.seconds, 1) if self.seconds else None,
            "resumed_at_step": self.resumed_at,
        }


def count_steps(n_texts: int, epochs: int, batch_size: int) -> int:
    """Return how many steps so many epochs take."""
    return epochs * -(-n_texts // batch_size)


def make_accelerator(device: torch.device, mixed_precision: MixedPrecision) -> Accelerator:
    """Return accelerate's placement on this device. Raises UserError for several processes."""
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed_precision)
    if accelerator.num_processes > 1:
        raise UserError(f"{accelerator.num_processes} processes were launched: run one, it takes one device")
    return accelerator


def fit(
    scorer: Scorer,
    objective: Objective,
    train: TokenTexts,
    validation: TokenTexts,
    recipe: Recipe,
    accelerator: Accelerator,
    partial: Path,
) -> Fitted:
    """Train the scorer in place, leave it with the weights of the lowest validation loss; tell how it went.

    partial: folder of checkpoints; a run that stopped goes on from the last one, with the weights that an
    uninterrupted run would have (bit for bit on a CPU in float32). Raises UserError for a loss that is no
    number.
    """
    n_steps = count_steps(len(train.rows), recipe.epochs, recipe.batch_size)
    set_seed(recipe.seed)  # of dropout; everything else draws from generators of its own
    weights = [weight for weight in scorer.parameters() if weight.requires_grad]
    optimiser: Any = torch.optim.AdamW(
        weights, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    schedule: Any = get_linear_schedule_with_warmup(optimiser, round(recipe.warmup * n_steps), n_steps)
    model, optimiser, schedule = accelerator.prepare(scorer, optimiser, schedule)
    checkpoints = Checkpoints(partial, accelerator, model, Progress())
    state = checkpoints.state
    resumed_at = checkpoints.resume()
    with progress("training", n_steps, done=state.step) as advance:
        for rows in _plan(train, recipe, state.step):
            begin = time.perf_counter()
            state.loss_sum += _step(model, objective, train, rows, recipe, accelerator, state.step)
            accelerator.clip_grad_norm_(weights, recipe.clip)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            state.step += 1
            state.n_tokens += sum(len(train.rows[row]) - 1 for row in rows)
            if state.step % recipe.eval_every == 0 or state.step == n_steps:
                _evaluate(model, objective, validation, recipe, accelerator, state, n_steps)
            state.seconds += time.perf_counter() - begin
            if state.step % recipe.save_every == 0 and state.step < n_steps:
                checkpoints.save()
            advance()
    fill(model, state.best_weights)
    best = state.best_step, state.best_loss
    return Fitted(*best, state.step, state.n_tokens, state.seconds, resumed_at, state.history)


def _plan(train: TokenTexts, recipe: Recipe, done: int) -> Iterator[list[int]]:
    """Yield the batches that come after `done` of them."""
    lengths = [len(row) for row in train.rows]
    an_epoch = -(-len(lengths) // recipe.batch_size)
    for epoch in range(done // an_epoch, recipe.epochs):
        batches = plan_epoch(lengths, recipe.batch_size, recipe.seed, epoch)
        yield from batches[max(0, done - epoch * an_epoch) :]


def _step(
    model: Scorer,
    objective: Objective,
    train: TokenTexts,
    rows: list[int],
    recipe: Recipe,
    accelerator: Accelerator,
    step: int,
) -> float:
    """Add up the gradient of one batch, part by part, each weighing as many texts; return the loss."""
    model.train()
    generator = torch.Generator().manual_seed((recipe.seed * MOST_DRAWS + step) % (1 << 63))
    size, total = -(-len(rows) // recipe.accumulate), 0.0
    for i in range(0, len(rows), size):
        part = rows[i : i + size]
        batch = make_batch(train, part, accelerator.device)
        loss = objective.loss(model, model(batch.ids, batch.mask), batch, generator)
        share = len(part) / len(rows)
        total += share * loss.item()
        if not math.isfinite(total):
            raise UserError(f"the loss is {total} at step {step + 1}: give a lower --learning-rate")
        accelerator.backward(loss * share)
    return total


def _evaluate(
    model: Scorer,
    objective: Objective,
    validation: TokenTexts,
    recipe: Recipe,
    accelerator: Accelerator,
    state: Progress,
    n_steps: int,
) -> None:
    """Note both losses, and the weights if they are the best so far."""
    loss = validation_loss(model, objective, validation, recipe.seed, accelerator.device)
    last = state.history[-1][0] if state.history else 0
    state.history.append((state.step, state.loss_sum / (state.step - last), loss))
    state.loss_sum = 0.0
    if loss < state.best_loss:
        state.best_loss, state.best_step = loss, state.step
        state.best_weights = trained_weights(model)
    shown = f"step {state.step}/{n_steps}: training loss {state.history[-1][1]:.4f}, validation {loss:.4f}"
    print(shown, file=sys.stderr)


@torch.no_grad()
def validation_loss(
    model: Scorer, objective: Objective, texts: TokenTexts, seed: int, device: torch.device
) -> float:
    """Return the mean error over the texts, without the regulariser; the same random draws every time."""
    model.eval()
    generator, total = torch.Generator().manual_seed(seed), 0.0
    for rows in in_order(texts, VALIDATION_TOKENS):
        batch = make_batch(texts, rows, device)
        error = objective.error(model, model(batch.ids, batch.mask), batch, generator)
        total += len(rows) * error.item()
    return total / len(texts.rows)


@torch.no_grad()
def read_values(model: Scorer, texts: TokenTexts, device: torch.device, title: str) -> list[Tensor]:
    """Return r after every scored token of each text, M times (l, F) float32 on the CPU."""
    model.eval()
    found: list[Tensor] = [torch.empty(0)] * len(texts.rows)
    with progress(title, len(texts.rows)) as advance:
        for rows in in_order(texts, VALIDATION_TOKENS):
            batch = make_batch(texts, rows, device)
            values = model.values(model(batch.ids, batch.mask), batch.ids).float().cpu()
            for row, value in zip(rows, values, strict=True):
                found[row] = value[: len(texts.rows[row]) - 1].clone()
            advance(len(rows))
    return found
