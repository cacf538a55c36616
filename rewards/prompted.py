"""Simple prompting as a token reward: what an instruction before the text makes the generator prefer.

    r(v | x) = log P(v | instruction, x) - log P(v | x)

Both are the generator's own, the second from the pass it makes anyway. So beta = 1 draws as the generator
would with the instruction in front, among the candidates it offers without one; beta > 1 exaggerates it,
and a negative beta leads away from it. Nothing is trained.

Source: "Stay on topic with Classifier-Free Guidance" (arXiv 2306.17806), whose gamma is our beta.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from decoder.contracts import Reading, UserError
from decoder.lm import CausalLM
from decoder.models import config_digest
from rewards import artefact
from rewards.compose import Composable
from rewards.language_model_reward import NextToken

KIND = "prompted"


@dataclass(frozen=True, slots=True)
class PromptedReward(Composable):
    """A `TokenReward`: the generator, read a second time with an instruction in front.

    instruction: the text, as it was given. prefix_ids: its tokens; they stand after a BOS that begins the
    prompt, else first. A conversation has them before its first turn. sign: -1 for the opposite, -r.
    """

    lm: CausalLM
    instruction: str
    prefix_ids: tuple[int, ...]
    bos_token_id: int | None
    sign: int = 1

    @property
    def digest(self) -> str:
        """Return a digest of instruction and generator."""
        return config_digest([self.prefix_ids, self.bos_token_id, self.lm.identity.weights])

    @property
    def layers(self) -> tuple[int, ...]:
        """Return (): no hidden states are read."""
        return ()

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> PromptedSession:
        """Open a session: reads instruction and prompts (B, T). Raises UserError if they are too long."""
        return PromptedSession(self, prompt_ids, prompt_mask)

    def opposite(self) -> PromptedReward:
        """Return -r, which leads away from the instruction."""
        return replace(self, sign=-self.sign)

    @classmethod
    def from_text(cls, instruction: str, lm: CausalLM, tokenizer: PreTrainedTokenizerBase) -> PromptedReward:
        """Return the reward of an instruction, put before the text as it is, with its spaces and breaks.

        Raises UserError for one that gives no token.
        """
        ids = tokenizer(instruction, add_special_tokens=False)["input_ids"]
        if not ids:
            raise UserError(f"instruction {instruction!r} gives no token: write one, ending in a line break")
        return cls(lm, instruction, tuple(ids), tokenizer.bos_token_id)

    @classmethod
    def from_pretrained(cls, directory: str | Path, lm: CausalLM, form: str | None = None) -> PromptedReward:
        """Load a saved one for this generator. Raises UserError if it is broken or for another tokenizer,
        and for any form: r is neither P nor log P of an attribute."""
        directory = Path(directory)
        if form is not None:
            raise UserError(f"{directory} is a log-ratio, never a {form}: leave @{form} out")
        raw = artefact.read_config(directory)
        if raw["kind"] != KIND:
            raise UserError(f"{directory} is of kind {raw['kind']!r}, not {KIND}")
        try:
            ids, bos, made_for = tuple(raw["prefix_ids"]), raw["bos_token_id"], raw["base_model"]
            saved, size = made_for["tokenizer_hash"], lm.identity.vocab_size
            found = cls(lm, str(raw["instruction"]), ids, bos)
        except (KeyError, TypeError) as error:
            raise UserError(f"{directory}/config.json lacks or garbles {error}: save it again") from None
        if lm.identity.tokenizer_hash not in ("", saved):
            raise UserError(
                f"{directory} was made for the tokenizer of {made_for.get('name')!r} ({saved}), "
                f"{lm.identity.name!r} has {lm.identity.tokenizer_hash}: save it again for this model"
            )
        if not ids or any(not isinstance(token, int) or not 0 <= token < size for token in ids):
            raise UserError(
                f"{directory}/config.json: prefix_ids are not tokens 0 to {size - 1}: save it again"
            )
        return found

    def save_pretrained(self, directory: str | Path) -> None:
        """Write it as a reward's folder, without weights, for this generator's tokenizer."""
        told = {
            "instruction": self.instruction,
            "prefix_ids": list(self.prefix_ids),
            "bos_token_id": self.bos_token_id,
            "base_model": asdict(self.lm.identity),
        }
        artefact.save(Path(directory), KIND, told, {})


class PromptedSession:
    """One decode: the generator's second cache."""

    def __init__(self, reward: PromptedReward, prompt_ids: Tensor, prompt_mask: Tensor) -> None:
        prefix = torch.tensor(reward.prefix_ids, device=prompt_ids.device)
        placed = with_prefix(prompt_ids, prompt_mask, prefix, reward.bos_token_id)
        self._sign = reward.sign
        self._texts = NextToken(reward.lm, *placed)

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        """Return r (B, K) float32 of the candidates (B, K); no forward pass.

        Raises UserError for a reading without logits: this reward steers and cannot score samples.
        """
        if not reading.logits.shape[1]:
            raise UserError("a prompted reward steers tokens and cannot score samples: take another scorer")
        plain = reading.logits.gather(1, candidate_ids) - reading.logits.logsumexp(-1, keepdim=True)
        return self._sign * (self._texts.log_p(candidate_ids) - plain)

    def advance(self, token_ids: Tensor) -> None:
        """Read the tokens chosen, (B,) int64: the step's one forward pass."""
        self._texts.feed(token_ids)

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self._texts.select(rows)


def with_prefix(ids: Tensor, mask: Tensor, prefix: Tensor, bos_token_id: int | None) -> tuple[Tensor, Tensor]:
    """Return left-padded ids (B, P + T) int64 and mask with the prefix (P,) before each row's text.

    It stands behind the BOS where a row begins with one.
    """
    first = mask.long().argmax(-1)  # (B,): where a row begins, before and after, for it grows leftwards
    begins = ids[torch.arange(len(ids), device=ids.device), first]  # (B,), each row's first token
    has_bos = begins == -1 if bos_token_id is None else begins == bos_token_id
    ids = torch.cat([torch.zeros_like(ids[:, :1]).expand(-1, len(prefix)), ids], 1)
    columns = torch.arange(ids.shape[1], device=ids.device)[None]
    place = columns - (first + has_bos.long())[:, None]  # (B, P + T), in the prefix from 0
    inside = (place >= 0) & (place < len(prefix))
    ids = torch.where(inside, prefix[place.clamp(0, len(prefix) - 1)], ids)
    ids = torch.where(has_bos[:, None] & (columns == first[:, None]), begins[:, None], ids)
    return ids, columns >= first[:, None]
