"""The numbers of a call: named as in `GenerationConfig`, checked once, read from one where it is given."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import GenerationConfig

from decoder.contracts import UserError
from decoder.sampling import SamplingConfig
from decoder.weighting import beta_multipliers


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """The numbers of a call, validated on construction; names are `GenerationConfig`'s and ours.

    stop: characters that end a text, such as a line break; the text is cut before them.
    beta_schedule: how betas change along the text, as `decoder.weighting.beta_multipliers` has it.
    Raises UserError naming the field, the value seen and what to give instead.
    """

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_new_tokens: int = 32
    num_return_sequences: int = 1
    seed: int = 0
    batch_size: int = 32
    stop: str = ""
    beta_schedule: str = "constant"

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        for name in ("max_new_tokens", "num_return_sequences", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give at least 1")
        if not isinstance(self.stop, str):
            raise UserError(f"stop is {self.stop!r}: give the characters that end a text, as one string")
        beta_multipliers(self.beta_schedule, self.max_new_tokens)


def make_config(generation: Mapping[str, Any]) -> DecodeConfig:
    """Return the numbers of a call from keyword arguments, after those of a `generation_config`.

    Raises UserError for a name that is not known, with the nearest ones, and for a config that asks for
    what this loop does not do (beams, penalties, stop strings and the like).
    """
    given = dict(generation)
    base = given.pop("generation_config", None)
    given = {**({} if base is None else _from_generation_config(base)), **given}
    sampling = {field.name for field in dataclasses.fields(SamplingConfig)}
    known = sampling | {field.name for field in dataclasses.fields(DecodeConfig)} - {"sampling"}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"unknown generation argument {name!r}: {hint}known are {', '.join(sorted(known))}"
            )
    chosen = SamplingConfig(**{k: v for k, v in given.items() if k in sampling})
    return DecodeConfig(chosen, **{k: v for k, v in given.items() if k not in sampling})


def _from_generation_config(config: GenerationConfig) -> dict[str, Any]:
    honoured = {"max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "num_return_sequences"}
    told = {k: v for k, v in config.to_diff_dict().items() if v is not None}
    harmless = {
        "transformers_version", "_from_model_config", "use_cache", "output_attentions",
        "output_hidden_states",
    }  # fmt: skip
    ids = {"bos_token_id", "eos_token_id", "pad_token_id"}
    other = sorted(set(told) - honoured - harmless - ids)
    if other:
        raise UserError(
            f"generation_config asks for {', '.join(other)}, which this loop does not do: unset it"
        )
    return {"do_sample": False, **{k: v for k, v in told.items() if k in honoured}}
