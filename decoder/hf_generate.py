"""Tiller's decode loop inside transformers' own `generate`.

>>> model.generate(**inputs, custom_generate=decoder.custom_generate, reward="positive", beta=2.0)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from decoder.contracts import UserError
from decoder.lm import CausalLM, identify
from decoder.loop import Rows, decode
from decoder.sampling import SamplingConfig, draw_uniforms
from decoder.weighting import Rewards, beta_multipliers, pair_betas, weigh_rewards

# What generate() puts into its lists for settings that this loop honours by itself.
HONOURED = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MaxLengthCriteria, EosTokenCriteria)
# Assisted decoding only promises to be faster than the mode it assists.
MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION)


def custom_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    reward: Rewards = None,
    beta: float | None = None,
    reward_top_k: int = 20,
    beta_schedule: str = "constant",
    seed: int | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    **model_kwargs: Any,
) -> Tensor:
    """Return input_ids (B, T) followed by the steered continuation, padded on the right with the pad id.

    Temperature, top_k, top_p, do_sample, max_new_tokens and end ids are those of the generation config.
    beta_schedule: how beta changes along the text, "constant" or "linear:START:END:STEPS".
    seed: by default drawn from torch's global generator, so `torch.manual_seed` governs the call.
    processing_class: the tokenizer, so that saved rewards can check that it is theirs; without it only
        the sizes are checked.
    Raises UserError for settings this loop does not do: beams, penalties, stop strings, time limits and
    the like. A streamer is handed by transformers to its own loops only: for streams, take Decoder.stream.
    """
    from rewards.load import load_token_reward

    config = generation_config or model.generation_config
    _refuse_unsupported(config, [*(logits_processor or ()), *(stopping_criteria or ())], model_kwargs)
    lm = CausalLM(model, identify(model.name_or_path or "model", model, processing_class))
    rewards = weigh_rewards(pair_betas(reward, beta), lambda found: load_token_reward(found, lm))
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    rows = _rows(lm, input_ids, model_kwargs.get("attention_mask"), [r.beta for r in rewards], seed, config)
    if multipliers := beta_multipliers(beta_schedule, rows.uniforms.shape[1]):
        rows = replace(rows, multipliers=torch.tensor(multipliers, device=lm.device))
    stop_ids = torch.tensor(_as_list(config.eos_token_id), dtype=torch.long, device=input_ids.device)
    pad = next(iter([*_as_list(config.pad_token_id), *_as_list(config.eos_token_id), 0]))
    shape = len(input_ids), rows.uniforms.shape[1]
    new, longest = torch.full(shape, pad, dtype=torch.long, device=input_ids.device), 0
    for step in decode(
        lm, rows, [r.reward for r in rewards], _sampling(config, reward_top_k), stop_ids=stop_ids
    ):
        new[step.rows, step.index] = step.token_ids
        longest = step.index + 1
    return torch.cat([input_ids, new[:, :longest]], dim=1)


def _rows(
    lm: CausalLM,
    input_ids: Tensor,
    mask: Tensor | None,
    betas: list[float],
    seed: int,
    config: GenerationConfig,
) -> Rows:
    mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    prompts = [ids[keep].tolist() for ids, keep in zip(input_ids, mask, strict=True)]
    seen: dict[tuple[int, ...], int] = {}
    streams = []
    for prompt in prompts:  # num_return_sequences repeats a prompt: each repeat is its next sample
        streams.append((prompt, seen.setdefault(tuple(prompt), 0)))
        seen[tuple(prompt)] += 1
    length = config.max_length - input_ids.shape[1]
    uniforms = draw_uniforms(seed, streams, length).to(lm.device)
    strengths = torch.tensor([betas] * len(prompts), device=lm.device).reshape(len(prompts), len(betas))
    return Rows(input_ids, mask, torch.arange(len(prompts), device=lm.device), uniforms, strengths)


def _sampling(config: GenerationConfig, reward_top_k: int) -> SamplingConfig:
    return SamplingConfig(
        do_sample=bool(config.do_sample),
        temperature=config.temperature or 1.0,
        top_k=config.top_k or 0,
        top_p=config.top_p or 1.0,
        reward_top_k=reward_top_k,
    )


def _refuse_unsupported(config: GenerationConfig, acting: list[Any], model_kwargs: dict[str, Any]) -> None:
    if (config.num_beams or 1) > 1:
        raise UserError(f"num_beams is {config.num_beams}: rewards steer samples, not beams; leave it at 1")
    if config.get_generation_mode() not in MODES:
        asked = config.get_generation_mode().value.replace("_", " ")
        raise UserError(f"the settings ask for {asked}: rewards steer greedy search and sampling; unset them")
    for part in acting:
        if not isinstance(part, HONOURED):
            name = type(part).__name__
            raise UserError(f"{name} cannot act beside a reward: unset the option that asks for it")
    if config.return_dict_in_generate:
        raise UserError("return_dict_in_generate is not offered here: leave it off, or use decoder.Decoder")
    if model_kwargs.get("inputs_embeds") is not None:
        raise UserError("inputs_embeds cannot be continued here: give input_ids")


def _as_list(ids: int | list[int] | Tensor | None) -> list[int]:
    if ids is None:
        return []
    return [int(i) for i in torch.as_tensor(ids).flatten().tolist()]
