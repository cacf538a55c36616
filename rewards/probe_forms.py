"""The forms a Best-of-N probe is trained in; each fits on the same material and scores any rollouts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoder.contracts import ModelIdentity, UserError
from decoder.models import LoadedModel
from rewards import embedding_head, fit_embedding_head, fit_top_logprobs
from rewards.elhsr import ElhsrConfig, ElhsrHead, Features, Norm, save_pretrained
from rewards.elhsr_material import RolloutSet
from rewards.fit_elhsr import Fit, Recipe, Tokens, completions_of, fit, scores
from rewards.fold import gated_mean
from rewards.reduction import LikelihoodScale, Reduction, find_reduction


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained probe: its scores (M,) of any set, how it is saved, and the epoch it is from."""

    score: Callable[[RolloutSet], Tensor]
    save: Callable[[Path, ModelIdentity, Mapping[str, Any]], None]
    validation_loss: float
    epoch: int
    n_parameters: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What is fitted. config: of an ELHSR probe; its layers are those of an embedding head too.

    components: directions a layer that an ELHSR probe is fitted in. pooling, widths: of an embedding head.
    alternatives: log-probabilities a token that a top-logprobs probe reads.
    """

    form: str
    config: ElhsrConfig
    components: int = 64
    pooling: embedding_head.Pooling = "mean"
    widths: tuple[int, ...] = (256, 256)
    alternatives: int = 5


def make_shape(
    form: str,
    layers: tuple[int, ...],
    gate: bool,
    norm: Norm,
    features: Features,
    likelihood: bool,
    components: int,
    pooling: embedding_head.Pooling,
    alternatives: int,
) -> Shape:
    """Return the shape that options ask for, still without a model's numbers; components 0 means all."""
    config = ElhsrConfig(layers, 0, gate, norm, features, likelihood)
    return Shape(form, config, components or sys.maxsize, pooling, alternatives=alternatives)


def fit_form(
    shape: Shape, recipe: Recipe, material: RolloutSet, loaded: LoadedModel, train: Tensor, validation: Tensor
) -> Fitted:
    """Return a probe of that form, fitted on the prompts `train` (P,), stopped by those of `validation`."""
    return FORMS[shape.form](shape, recipe, material, loaded, train, validation)


def _fit_elhsr(
    shape: Shape, recipe: Recipe, material: RolloutSet, loaded: LoadedModel, train: Tensor, validation: Tensor
) -> Fitted:
    config, states = shape.config, material.states
    rows = states.rows_of(completions_of(material.groups, train))[0]
    reduction = find_reduction(states.taps, rows, config.layers, config.norm, shape.components)
    scale = LikelihoodScale.of(_log_probabilities(material)[rows]) if config.likelihood else None
    fitted = fit(_tokens(material, reduction, scale, config), train, validation, recipe)
    head = to_head(fitted, reduction, scale, config, loaded)

    def score(rollouts: RolloutSet) -> Tensor:
        tokens = _tokens(rollouts, reduction, scale, config)
        with torch.no_grad():
            return scores(fitted.linear, tokens, torch.arange(len(tokens.labels)), recipe.gate)

    def save(folder: Path, identity: ModelIdentity, about: Mapping[str, Any]) -> None:
        save_pretrained(head, folder, identity, about)

    return Fitted(score, save, fitted.validation_loss, fitted.epoch, _count(head))


def _tokens(
    material: RolloutSet, reduction: Reduction, scale: LikelihoodScale | None, config: ElhsrConfig
) -> Tokens:
    lengths = material.states.lengths
    rows, _ = material.states.rows_of(torch.arange(len(lengths)))
    features = reduction.apply(material.states.taps, config.layers, config.norm, rows)
    if scale is not None:
        features = torch.cat([features, scale.apply(_log_probabilities(material)[rows])], 1)
    return Tokens(features, lengths.cumsum(0) - lengths, lengths, material.groups, material.labels)


def _log_probabilities(material: RolloutSet) -> Tensor:
    assert material.log_probabilities is not None  # read with the states, where the config asks for them
    return material.log_probabilities


def to_head(
    fitted: Fit,
    reduction: Reduction,
    scale: LikelihoodScale | None,
    config: ElhsrConfig,
    loaded: LoadedModel,
) -> ElhsrHead:
    """Return the probe on whole states, or on logits, that scores as the fit on features does."""
    with torch.no_grad():
        head = ElhsrHead(config, loaded.lm.identity.vocab_size)
        weight, bias = fitted.linear.weight.T, fitted.linear.bias.detach()
        if scale is not None and head.likelihood is not None:
            likelihood, bias = scale.fold_back(weight[-1], bias)
            head.likelihood.copy_(likelihood)
            weight = weight[:-1]
        weight, bias = reduction.fold_back(weight, bias)
        if config.features == "logits":
            weight, bias = unfold_unembedding(weight[0], bias, loaded)
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


def unfold_unembedding(weight: Tensor, bias: Tensor, loaded: LoadedModel) -> tuple[Tensor, Tensor]:
    """Return the smallest (V, 2) on logits that says what (d, 2) says on the states: E (E'E)^-1 w."""
    embeddings = loaded.lm.output_embeddings.double().cpu()
    wide = embeddings @ torch.linalg.solve(embeddings.T @ embeddings, weight.double())
    shift = getattr(loaded.lm.model.get_output_embeddings(), "bias", None)
    offset = 0.0 if shift is None else shift.double().cpu() @ wide
    return wide.float(), (bias.double() - offset).float()


def _fit_embedding(
    shape: Shape, recipe: Recipe, material: RolloutSet, loaded: LoadedModel, train: Tensor, validation: Tensor
) -> Fitted:
    layers = shape.config.layers

    def embed(rollouts: RolloutSet) -> Tensor:
        return fit_embedding_head.pool(rollouts.states, layers, shape.pooling)

    mlp, value, epoch = fit_embedding_head.fit(
        embed(material), material.labels, material.groups, *_masks(material, train, validation),
        widths=shape.widths, lr=recipe.learning_rate, batch_groups=recipe.batch_prompts, **_shared(recipe),
    )  # fmt: skip
    config = embedding_head.EmbeddingConfig(layers, shape.config.hidden_size, shape.pooling, shape.widths)

    def score(rollouts: RolloutSet) -> Tensor:
        with torch.no_grad():
            found: Tensor = mlp(embed(rollouts))
        return found

    def save(folder: Path, identity: ModelIdentity, about: Mapping[str, Any]) -> None:
        embedding_head.save_pretrained(mlp, config, folder, identity, about)

    return Fitted(score, save, value, epoch, _count(mlp))


def _fit_top_logprobs(
    shape: Shape, recipe: Recipe, material: RolloutSet, loaded: LoadedModel, train: Tensor, validation: Tensor
) -> Fitted:
    probe, value, epoch = fit_top_logprobs.fit(
        material.logprobs(loaded, shape.alternatives), material.labels, material.groups,
        *_masks(material, train, validation),
        lr=recipe.learning_rate, batch_groups=recipe.batch_prompts, **_shared(recipe),
    )  # fmt: skip

    def score(rollouts: RolloutSet) -> Tensor:
        features = rollouts.logprobs(loaded, shape.alternatives)
        return torch.stack([gated_mean(*probe.weigh(each)) for each in features])

    def save(folder: Path, identity: ModelIdentity, about: Mapping[str, Any]) -> None:
        probe.save_pretrained(folder, identity, about)

    return Fitted(score, save, value, epoch, probe.weight.numel() + probe.bias.numel())


def _masks(material: RolloutSet, train: Tensor, validation: Tensor) -> tuple[Tensor, Tensor]:
    return torch.isin(material.groups, train), torch.isin(material.groups, validation)


def _shared(recipe: Recipe) -> dict[str, Any]:
    return {
        "loss": recipe.loss, "epochs": recipe.epochs, "patience": recipe.patience,
        "weight_decay": recipe.weight_decay, "seed": recipe.seed,
    }  # fmt: skip


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


FORMS = {"elhsr": _fit_elhsr, "embedding": _fit_embedding, "top-logprobs": _fit_top_logprobs}


def bind_shape(shape: Shape, loaded: LoadedModel) -> Shape:
    """Return the shape with this model's numbers: no layers means all, negative ones count from the end.

    Raises UserError for a layer the model lacks, and for layers where there is no choice.
    """
    config, identity = shape.config, loaded.lm.identity
    last = identity.num_layers
    layers = tuple(sorted({layer + last + 1 if layer < 0 else layer for layer in config.layers}))
    loaded.lm.start(layers)
    if shape.form == "top-logprobs" or config.features == "logits":
        own = () if shape.form == "top-logprobs" else (last,)
        if layers not in ((), own):
            raise UserError(
                f"layers {list(layers)} cannot be chosen where logits are read: leave out --layers"
            )
        layers = own
    elif not layers:
        layers = (last,) if shape.form == "embedding" else tuple(range(last + 1))
    if config.likelihood and shape.form != "elhsr":
        raise UserError(f"--likelihood is for --form elhsr, not {shape.form}: leave it out")
    norm = "none" if config.features == "logits" else config.norm
    return replace(shape, config=replace(config, layers=layers, hidden_size=identity.hidden_size, norm=norm))
