"""A probe that reads only log-probabilities of a few tokens a step: all that closed APIs return.

    a_t, r_t = W [log p(token), log p of the m likeliest] + b,    R = sum sigmoid(a) r / sum sigmoid(a)

It reads no hidden states and costs no forward pass; it can score an API's answer as well as a decode.
Source: the logits mode of ELHSR (arXiv 2505.12225), cut to the m highest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoder.contracts import Drawn, ModelIdentity, Reading, UserError
from decoder.lm import CausalLM
from prompts.lines import shown
from rewards import artefact
from rewards.fold import GatedMean
from rewards.likelihood import drawn_logits

FLOOR = -30.0  # APIs write -9999 for "very unlikely": a line through that would see nothing else


@dataclass(frozen=True, slots=True, eq=False)
class TopLogprobs:
    """A trained gate and reward on log p of the token and of the m likeliest: all that closed APIs tell.

    weight: (2, m + 1) float32, bias: (2,) float32; row 0 makes the gate's log-odds, row 1 the reward.
    """

    weight: Tensor
    bias: Tensor
    layers: tuple[int, ...] = ()
    reads_logits: bool = True

    @property
    def m(self) -> int:
        """Return how many alternatives it reads."""
        return self.weight.shape[1] - 1

    @property
    def digest(self) -> str:
        """Return a digest of the weights."""
        return f"top-logprobs:{artefact.digest({'weight': self.weight, 'bias': self.bias})}"

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, reading: Reading) -> GatedMean:
        """Open a session of two sums a row. Raises UserError if the vocabulary has fewer than m tokens."""
        require_alternatives(reading.logits.shape[-1], self.m)
        device = prompt_ids.device
        here = replace(self, weight=self.weight.to(device), bias=self.bias.to(device))
        return GatedMean(here.read, len(prompt_ids), device)

    def read(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Return the gates in (0, 1) and the rewards, both (B, T) float32."""
        return self.weigh(self.features(drawn_logits(drawn), drawn.ids, self.m))

    def weigh(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return gates and rewards (...) of features (..., m + 1)."""
        gate, reward = (features @ self.weight.T + self.bias).unbind(-1)
        return gate.sigmoid(), reward

    def score_records(self, logprobs: Any) -> float:
        """Return the score of a text from an API's answer; see `features_of_records` for its shapes."""
        features = features_of_records(logprobs, self.m).to(self.weight.device)[None]
        ids = torch.zeros(features.shape[:2], dtype=torch.long, device=features.device)
        session = GatedMean(lambda drawn: self.weigh(features), 1, features.device)
        session.update(Drawn(ids, torch.ones_like(ids, dtype=torch.bool), {}, None))
        return float(session.score())

    def save_pretrained(
        self, directory: Path, base_model: ModelIdentity | None, about: Mapping[str, Any]
    ) -> None:
        """Write the probe. base_model: None if it learnt from an API; about: metrics and the like."""
        named = {} if base_model is None else {"base_model": asdict(base_model)}
        tensors = {"weight": self.weight, "bias": self.bias}
        artefact.save(directory, "top_logprobs", {"m": self.m, **named, **about}, tensors)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, lm: CausalLM | None = None, form: str | None = None
    ) -> TopLogprobs:
        """Load a saved probe; `lm` is the generator it will read, None for an API's answers.

        Raises UserError if it is broken, or was trained on a model of another vocabulary or tokenizer.
        """
        directory = Path(directory)
        if form is not None:
            raise UserError(f"{directory} is a probe and has no form {form!r}: leave out @{form}")
        config = artefact.read_config(directory)
        if lm is not None and "base_model" in config:
            _check_vocabulary(directory, config["base_model"], lm.identity)
        tensors = artefact.read_tensors(directory)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        m = config.get("m")
        if type(m) is not int or m < 1:
            raise UserError(f'{directory}/config.json: "m" must be 1 or more, not {shown(m)}: train it again')
        if found != {"weight": (2, m + 1), "bias": (2,)}:
            raise UserError(f"{directory}: weights and config disagree ({found}, m {m}): train it again")
        device = "cpu" if lm is None else lm.device
        return cls(tensors["weight"].to(device), tensors["bias"].to(device))

    @staticmethod
    def features(logits: Tensor, ids: Tensor, m: int) -> Tensor:
        """Return (B, T, m + 1) float32: log p of ids (B, T), then the m highest log p, best first.

        logits: (B, T, V) float32. What is below -30 counts as -30, here as in `features_of_records`.
        """
        top = logits.topk(m).values
        both = torch.cat([logits.gather(-1, ids[..., None]), top], -1)
        return (both - logits.logsumexp(-1, keepdim=True)).clamp(min=FLOOR)


def features_of_records(logprobs: Any, m: int) -> Tensor:
    """Return (T, m + 1) float32, the same as `TopLogprobs.features`, of the log-probabilities of one answer.

    logprobs: the chat shape, [{"logprob": x, "top_logprobs": [{"logprob": y}, ...]}, ...] or {"content":
    that list}; or the older one of completions, {"token_logprobs": [x, ...], "top_logprobs": [{token: y},
    ...]}. They have to be the raw ones, before temperature. An API that leaves out the end token gives one
    row less than a decode: train the probe on what it will read.
    Raises UserError for another shape, no tokens, a value that is no number, and fewer than m alternatives.
    """
    pairs = _chat_pairs(logprobs) if _is_chat(logprobs) else _flat_pairs(logprobs)
    if not pairs:
        raise UserError("these log-probabilities hold no token: leave out answers that are empty")
    rows = [_features_of(chosen, others, m, f"token {i}") for i, (chosen, others) in enumerate(pairs)]
    return torch.tensor(rows, dtype=torch.float32).clamp(min=FLOOR)


def require_alternatives(found: int, m: int, where: str = "the model's vocabulary") -> None:
    """Raise UserError where fewer than the m alternatives that a probe reads are there."""
    if found < m:
        raise UserError(
            f"{where} has {found} alternatives, the probe reads {m}: ask for {m} or more (top_logprobs in "
            "chats, logprobs in completions), or train a probe that reads fewer"
        )


def _is_chat(logprobs: Any) -> bool:
    return isinstance(logprobs, list) or (isinstance(logprobs, Mapping) and "content" in logprobs)


def _chat_pairs(logprobs: Any) -> list[tuple[Any, list[Any]]]:
    """Return each token's log-probability and those of the alternatives, unchecked, of the chat shape."""
    tokens = logprobs["content"] if isinstance(logprobs, Mapping) else logprobs
    try:
        return [
            (token["logprob"], [other["logprob"] for other in token.get("top_logprobs") or ()])
            for token in tokens or ()
        ]
    except (TypeError, KeyError, AttributeError):
        raise _unknown_shape(logprobs) from None


def _flat_pairs(logprobs: Any) -> list[tuple[Any, list[Any]]]:
    """Return the same of the completions shape."""
    try:
        chosen = logprobs["token_logprobs"]
        others = logprobs.get("top_logprobs") or [None] * len(chosen)
        return [(x, list((each or {}).values())) for x, each in zip(chosen, others, strict=True)]
    except (TypeError, KeyError, AttributeError, ValueError):
        raise _unknown_shape(logprobs) from None


def _features_of(chosen: Any, others: Sequence[Any], m: int, where: str) -> list[float]:
    values = [_number(value, where) for value in (chosen, *others)]
    require_alternatives(len(others), m, where)
    return [values[0], *sorted(values[1:], reverse=True)[:m]]


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise UserError(
            f"{where}: the log-probability {shown(value)} is no number: ask for the answer's own tokens, "
            "without the prompt (no echo)"
        )
    return float(value)


def _unknown_shape(logprobs: Any) -> UserError:
    return UserError(
        f"these are no log-probabilities of tokens: {shown(logprobs)}; give the 'logprobs' of one choice of "
        'a chat ({"content": [...]}) or of a completion ({"token_logprobs": [...], "top_logprobs": [...]})'
    )


def _check_vocabulary(directory: Path, saved: object, generator: ModelIdentity) -> None:
    """Refuse another vocabulary or tokenizer; the shapes inside the model do not matter here."""
    if isinstance(saved, Mapping):
        inside = {"hidden_size": generator.hidden_size, "num_layers": generator.num_layers}
        saved = {**saved, **inside}
    artefact.check_identity(directory, saved, generator)  # type: ignore[arg-type]  # it refuses what is none
