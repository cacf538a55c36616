"""Whole language models as token rewards: expert minus anti-expert, or one autoregressive reward model.

    r(v | x) = log P_expert(v | x) - log P_anti(v | x)

Either side may be left out. The models need the generator's tokenizer; each reads a token a step, whatever
the number of candidates. With the one formula z' = z + beta * r:

- DExperts is both, its alpha our beta: it adds logits where this adds log P, which are the same up to a
  number that is one for all candidates.
- GenARM is an expert alone: its alpha, 1 over the paper's beta, is our beta. What it does at temperature T
  is a decode at temperature T / (1 + alpha).

Source: "DExperts: Decoding-Time Controlled Text Generation with Experts and Anti-Experts" (arXiv 2105.03023),
"GenARM: Reward Guided Generation with Autoregressive Reward Model for Test-time Alignment" (arXiv
2410.08193).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from decoder.contracts import ModelIdentity, Reading, UserError
from decoder.lm import CausalLM
from rewards import artefact
from rewards.backbone import (
    Adaptation,
    BackboneConfig,
    check_tokenizer,
    file_digests,
    load_backbone,
    parse,
    save_backbone,
)
from rewards.backbone_session import Backbone, with_bos
from rewards.compose import Composable

KIND = "expert"
EXPERT, ANTI_EXPERT = "expert", "anti_expert"
NO_HEAD = {"outputs": ["language_model"], "use": "language_model", "link": "sigmoid"}


@dataclass(frozen=True, slots=True)
class LanguageModelReward(Composable):
    """A `TokenReward` of one or two language models, at least one of them there.

    digest: of their weights. sign: -1 for the opposite, -r: expert and anti-expert trade places. An
    anti-expert alone knows no bound: it favours whatever its model finds least likely among the candidates.
    """

    expert: Backbone | None
    anti_expert: Backbone | None
    digest: str
    sign: int = 1

    @property
    def layers(self) -> tuple[int, ...]:
        """Return (): nothing of the generator is read."""
        return ()

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> LanguageModelSession:
        """Open a session: every model reads the prompts (B, T). Raises UserError if they are too long."""
        return LanguageModelSession(self, prompt_ids, prompt_mask)

    def opposite(self) -> LanguageModelReward:
        """Return -r, the reward with expert and anti-expert swapped."""
        return replace(self, sign=-self.sign)

    @classmethod
    def from_models(
        cls,
        expert: CausalLM | None = None,
        anti_expert: CausalLM | None = None,
        *,
        generator: CausalLM,
        bos_token_id: int | None = None,
    ) -> LanguageModelReward:
        """Return the reward of models that are loaded already.

        bos_token_id: what they read before a text that does not begin with it; None for nothing, which is
        right for models trained on texts as the generator's tokenizer encodes them. Raises UserError
        without any model, and for one that does not read the generator's tokens.
        """
        models = [lm for lm in (expert, anti_expert) if lm is not None]
        if not models:
            raise UserError("a language model reward of no model: give an expert, an anti_expert or both")
        for lm in models:
            check_tokenizer(Path(lm.identity.name), lm.identity, generator.identity)
        first, second = (None if lm is None else Backbone(lm, bos_token_id) for lm in (expert, anti_expert))
        told = [lm and lm.identity.weights for lm in (expert, anti_expert)]
        return cls(first, second, _digest([told, bos_token_id]))

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, lm: CausalLM, form: str | None = None
    ) -> LanguageModelReward:
        """Load a saved one for this generator, in its dtype and place.

        Raises UserError if it is broken or does not fit, and for any form: r is neither P nor log P of an
        attribute.
        """
        directory = Path(directory)
        if form is not None:
            raise UserError(f"{directory} is the log-ratio of two models, never a {form}: leave @{form} out")
        raw = artefact.read_config(directory)
        if raw["kind"] != KIND:
            raise UserError(f"{directory} is of kind {raw['kind']!r}, not {KIND}")
        config = parse(directory, {**raw, **NO_HEAD}, None)
        check_tokenizer(directory, config.backbone, lm.identity)
        names = _saved_models(directory, raw, config)
        bos = config.bos_token_id
        loaded = {name: Backbone(load_backbone(directory / name, config, lm), bos) for name in names}
        told = {name: file_digests(directory / name, config) for name in sorted(names)}
        digest = _digest([told, config.backbone.weights, bos])
        return cls(loaded.get(EXPERT), loaded.get(ANTI_EXPERT), digest)


class LanguageModelSession:
    """One decode: each model's cache and what it says of the next token."""

    def __init__(self, reward: LanguageModelReward, prompt_ids: Tensor, prompt_mask: Tensor) -> None:
        sides = ((reward.expert, reward.sign), (reward.anti_expert, -reward.sign))
        self._texts = [
            (NextToken(side.lm, *with_bos(prompt_ids, prompt_mask, side.bos_token_id)), sign)
            for side, sign in sides
            if side is not None
        ]

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        """Return r (B, K) float32 of the candidates (B, K); no forward pass, any number of them."""
        return torch.stack([sign * texts.log_p(candidate_ids) for texts, sign in self._texts]).sum(0)

    def advance(self, token_ids: Tensor) -> None:
        """Let every model read the tokens chosen, (B,) int64: one forward pass each."""
        for texts, _ in self._texts:
            texts.feed(token_ids)

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        for texts, _ in self._texts:
            texts.select(rows)


class NextToken:
    """The texts of one decode as a language model reads them, and its logits (B, V) of the next token."""

    def __init__(self, lm: CausalLM, ids: Tensor, mask: Tensor) -> None:
        self._lm = lm
        self._session = lm.start()
        self._longest = int(mask.sum(-1).max())  # at least as many tokens as any row has
        self._refuse_beyond(self._longest)
        self._logits = self._session.prefill(ids, mask).logits
        self._normalizer = self._logits.logsumexp(-1, keepdim=True)  # over the model's own V

    def log_p(self, candidate_ids: Tensor) -> Tensor:
        """Return log P (B, K) float32 of candidates (B, K) as the next token."""
        return self._logits.gather(1, candidate_ids) - self._normalizer  # (B, K) - (B, 1)

    def feed(self, token_ids: Tensor) -> None:
        """Read one more token a row, (B,) int64. Raises UserError where the model can read no more."""
        self._longest += 1
        limit = self._lm.context_length()
        if limit is not None and self._longest > limit:
            self._longest = int(self._session.lengths.max()) + 1  # the longest rows may have left
            self._refuse_beyond(self._longest)
        self._logits = self._session.feed(token_ids).logits
        self._normalizer = self._logits.logsumexp(-1, keepdim=True)

    def select(self, rows: Tensor) -> None:
        """Keep the rows (B',) int64, in that order; a row may repeat."""
        self._session.select(rows)
        self._logits, self._normalizer = self._logits[rows], self._normalizer[rows]

    def _refuse_beyond(self, length: int) -> None:
        limit = self._lm.context_length()
        if limit is not None and length > limit:
            raise UserError(
                f"the reward's language model {self._lm.identity.name!r} reads at most {limit} tokens, and a "
                f"text has {length} with what is put before it: shorten the prompt or max_new_tokens"
            )


def save_pretrained(
    directory: Path,
    models: Mapping[str, Any],
    *,
    backbone: ModelIdentity,
    adaptation: Adaptation,
    revision: str | None,
    tokenizer: PreTrainedTokenizerBase,
    bos_token_id: int | None,
    base_model: ModelIdentity,
    about: Mapping[str, Any],
) -> None:
    """Write trained models by name, "expert" and "anti_expert", one at least, into folders of these names.

    models: peft's for "lora", whose adapters alone are written; `adaptation` is "lora" or "full". backbone:
    the base model before training, revision: of a hub id. base_model: the generator they were made for.
    about: of the training. The `model.safetensors` beside them is empty: there is no head.
    """
    for name, model in models.items():
        save_backbone(directory / name, adaptation, model, tokenizer)
    told = {
        "models": list(models), "backbone": asdict(backbone), "adaptation": adaptation, "revision": revision,
        "bos_token_id": bos_token_id, "base_model": asdict(base_model), **about,
    }  # fmt: skip
    artefact.save(directory, KIND, told, {})


def _saved_models(directory: Path, raw: Mapping[str, Any], config: BackboneConfig) -> Sequence[str]:
    """Return which of the two models there are."""
    names = raw.get("models")
    if not isinstance(names, list) or not names or set(map(str, names)) - {EXPERT, ANTI_EXPERT}:
        raise UserError(
            f"{directory}/config.json: models is {names!r}, not {EXPERT}, {ANTI_EXPERT} or both: train "
            "it again"
        )
    if config.adaptation == "none":
        raise UserError(f"{directory}/config.json: adaptation is 'none', not lora or full: train it again")
    return names


def _digest(told: object) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
