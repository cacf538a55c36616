"""The ELHSR probe: a gated linear score of a whole sample, read off the generator's own hidden states.

    [a_t, r_t] = sum over taps l of A_l h_t^l + c log p_t + b, R = sum_t sigmoid(a_t) r_t / sum_t sigmoid(a_t)

over the generated tokens t, where h_t^l is the state of layer l that has read token t, the last token
included, and log p_t, where the probe reads it (c = 0 in the paper), how likely the generator found that
token. Two running sums a row are enough, so the score exists as soon as the last token does. Each
tap's share is a product of its own, and no states are kept.

Source: "Efficient Best-of-N from Language Model Hidden States" (arXiv 2505.12225), its reward formula;
gate off is its ablation, a plain mean of r_t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from decoder.contracts import Drawn, ModelIdentity, Reading, UserError
from decoder.lm import CausalLM
from rewards import artefact
from rewards.fold import GatedMean
from rewards.likelihood import log_probabilities

AT_ONCE = 1 << 20  # numbers of states in float32 that `project` holds at a time

Norm = Literal["rms", "none"]
Features = Literal["hidden", "logits"]


@dataclass(frozen=True, slots=True)
class ElhsrConfig:
    """The shape of a probe.

    layers: the taps read, 0 the embeddings. hidden_size: d of the generator. gate: False for a plain mean.
    norm: "rms" divides each tap by its root mean square, "none" takes it as it is. The final norm of an
        RMSNorm model is "rms" times a vector, which the weights absorb.
    features: "hidden", or "logits" for one weight a vocabulary entry. Logits are E h of the last layer,
        so the probe reads A E off that tap and never makes the vocabulary-wide vector.
    likelihood: whether log p_t is read too, which takes a logsumexp over the vocabulary a step.
    """

    layers: tuple[int, ...]
    hidden_size: int
    gate: bool = True
    norm: Norm = "rms"
    features: Features = "hidden"
    likelihood: bool = False


class ElhsrHead(nn.Module):
    """The weights: (L, d, 2), or (V, 2) over logits, a bias (2,) and, where log p is read, (2,) for that.

    Column 0 is the gate, 1 the reward.
    """

    def __init__(self, config: ElhsrConfig, vocab_size: int = 0) -> None:
        """Make a head whose every score is 0."""
        super().__init__()
        self.config = config
        shape = (vocab_size,) if config.features == "logits" else (len(config.layers), config.hidden_size)
        self.weight = nn.Parameter(torch.zeros(*shape, 2))
        self.bias = nn.Parameter(torch.zeros(2))
        self.likelihood = nn.Parameter(torch.zeros(2)) if config.likelihood else None


def scale(h: Tensor, norm: Norm) -> Tensor:
    """Return what states h (..., d) float32 are multiplied by, (..., 1): 1 / root mean square, or 1."""
    if norm == "none":
        return h.new_ones(*h.shape[:-1], 1)
    length: Tensor = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
    return length.square_().div_(h.shape[-1]).add_(1e-6).rsqrt_()


def project(taps: Mapping[int, Tensor], weight: Tensor, bias: Tensor, config: ElhsrConfig) -> Tensor:
    """Return (..., 2) float32, a_t and r_t, from taps (..., d), weight (L, d, 2) and bias (2,).

    As many taps at a time as AT_ONCE numbers hold: all of them for one token of a small batch, where
    calls cost more than arithmetic, one by one in a replay. The root mean square divides the products,
    not the d numbers.
    """
    shape, width = taps[config.layers[0]].shape, max(1, AT_ONCE // taps[config.layers[0]].numel())
    total = bias.expand(*shape[:-1], 2)
    for start in range(0, len(config.layers), width):
        group = slice(start, start + width)
        h = torch.stack([taps[layer] for layer in config.layers[group]]).float()  # (G, ..., d)
        shares = (h.flatten(1, -2) @ weight[group]).unflatten(1, shape[:-1]) * scale(h, config.norm)
        total = total + shares.sum(0)
    return total


@dataclass(frozen=True, slots=True)
class Elhsr:
    """A trained head bound to one generator: a `Probe`.

    weight: (L, d, 2) float32 and bias: (2,), with the unembedding folded in where it reads logits.
    likelihood: (2,) float32 on log p, or None where that is not read.
    """

    config: ElhsrConfig
    weight: Tensor
    bias: Tensor
    digest: str
    likelihood: Tensor | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """The taps its sessions read."""
        return self.config.layers

    @property
    def reads_logits(self) -> bool:
        """Whether it reads log p; what else it says about logits, it reads off the last tap."""
        return self.likelihood is not None

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, reading: Reading) -> GatedMean:
        """Open a session: two running sums a row."""
        return GatedMean(self.read, len(prompt_ids), prompt_ids.device)

    def read(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Return gates (B, T) in [0, 1] and rewards (B, T) of the tokens."""
        both = project(drawn.taps, self.weight, self.bias, self.config)
        if self.likelihood is not None:
            both = both + log_probabilities(drawn)[..., None] * self.likelihood
        gates = both[..., 0].sigmoid() if self.config.gate else torch.ones_like(both[..., 0])
        return gates, both[..., 1]

    @classmethod
    def bind(cls, head: ElhsrHead, lm: CausalLM, digest: str = "") -> Elhsr:
        """Return the head on this generator. Raises UserError for logits that are not linear in a state."""
        weight, bias = head.weight.detach().to(lm.device), head.bias.detach().to(lm.device)
        if head.config.features == "logits":
            if head.config.layers != (lm.identity.num_layers,):
                raise UserError(
                    f"a probe on logits reads the last layer alone, {lm.identity.num_layers}, not "
                    f"{list(head.config.layers)}: train it again"
                )
            weight, bias = fold_unembedding(weight, bias, lm)
        # The same (L, d, 2), laid out so that the product is several times as fast.
        by_rows = weight.float().mT.contiguous().mT
        likelihood = None if head.likelihood is None else head.likelihood.detach().float().to(lm.device)
        return cls(head.config, by_rows, bias.float(), digest, likelihood)

    @classmethod
    def from_pretrained(cls, directory: str | Path, lm: CausalLM, form: str | None = None) -> Elhsr:
        """Load a saved probe for this generator. Raises UserError if it is broken or does not fit."""
        directory = Path(directory)
        if form is not None:
            raise UserError(f"{directory} is a probe and has no form {form!r}: leave out @{form}")
        config = artefact.read_config(directory)
        artefact.check_identity(directory, config.get("base_model"), lm.identity)
        head = ElhsrHead(_shape(directory, config), lm.identity.vocab_size)
        return cls.bind(head, lm, artefact.load_weights(head, directory))


@torch.no_grad()
def fold_unembedding(weight: Tensor, bias: Tensor, lm: CausalLM) -> tuple[Tensor, Tensor]:
    """Return (1, d, 2) and (2,) that read off the last tap what weight (V, 2), bias (2,) read off logits.

    <A, E h + c> = <E' A, h> + <A, c>, exactly. Raises UserError for a model that caps or scales its logits.
    """
    layer, unembedding = lm.identity.num_layers, lm.model.get_output_embeddings()
    one = torch.zeros(1, 1, dtype=torch.long, device=lm.device)
    reading = lm.start((layer,)).prefill(one, one == 0)  # no list of models tells which of them scale
    plain = unembedding(reading.taps[layer][:, -1]).float()
    capped = getattr(lm.model.config.get_text_config(), "final_logit_softcapping", None)
    if capped or not torch.allclose(plain, reading.logits, rtol=1e-2, atol=1e-2 * float(plain.abs().max())):
        raise UserError(
            f"{lm.identity.name} caps or scales its logits, so they are no plain product of its states: "
            "use --features hidden"
        )
    shift = getattr(unembedding, "bias", None)
    offset = 0.0 if shift is None else shift.float() @ weight
    return (lm.output_embeddings.float().T @ weight)[None], bias + offset


def save_pretrained(
    head: ElhsrHead, directory: Path, base_model: ModelIdentity, about: Mapping[str, Any]
) -> None:
    """Write a trained probe; `about` holds the training data's fingerprint, metrics and the like."""
    config = {**asdict(head.config), "base_model": asdict(base_model), **about}
    artefact.save(directory, "elhsr", config, head.state_dict())


def _shape(directory: Path, config: Mapping[str, Any]) -> ElhsrConfig:
    try:
        layers = tuple(int(layer) for layer in config["layers"])
        size = int(config["hidden_size"])
        found = ElhsrConfig(
            layers, size, config["gate"], config["norm"], config["features"], config.get("likelihood", False)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{directory}/config.json lacks or garbles {error}: train the probe again") from None
    if not layers:
        raise UserError(f"{directory}/config.json names no layers: train the probe again")
    if found.norm not in get_args(Norm) or found.features not in get_args(Features):
        raise UserError(
            f"{directory}/config.json: unknown norm {found.norm!r} or features {found.features!r}"
        )
    return found
