"""The loop inside transformers' own `generate`: the same tokens as `Decoder`, and honest about its limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxTimeCriteria,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    StoppingCriteriaList,
)

import decoder
from decoder import Decoder, UserError
from decoder.models import LoadedModel
from tests.heads import as_lm, save_arm, tiny_arm
from tests.tiny import EOS, PAD, tiny_llama, tiny_tokenizer

TEXTS = ["The kettle sang", "A", "She thought the film was bad, but"]


def left_padded(texts: Sequence[str] = TEXTS) -> dict[str, Tensor]:
    """Return the inputs as a user makes them."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    return dict(tokenizer(list(texts), return_tensors="pt", padding=True))


def call(model: PreTrainedModel, texts: Sequence[str] = TEXTS, **options: Any) -> list[list[int]]:
    """Return the new tokens of each row."""
    inputs = left_padded(texts)
    out = model.generate(**inputs, custom_generate=decoder.custom_generate, **options)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(out[:, :width], inputs["input_ids"].repeat_interleave(len(out) // len(texts), 0))
    return out[:, width:].tolist()


def same_as_decoder(
    found: list[list[int]], model: PreTrainedModel, texts: Sequence[str], **options: Any
) -> None:
    """Assert that the rows are the samples of `Decoder.generate`, padded on the right."""
    tokenizer = tiny_tokenizer()
    ours = Decoder(LoadedModel(as_lm(model, tokenizer), tokenizer)).generate(list(texts), **options)
    samples = [list(sample.token_ids) for generation in ours for sample in generation.samples]
    width = max(map(len, samples))
    assert found == [tokens + [PAD] * (width - len(tokens)) for tokens in samples]


def test_greedy_is_the_decoder(any_model: PreTrainedModel) -> None:
    """A left-padded batch under a reward, token for token what `Decoder.generate` makes of the texts."""
    arm = tiny_arm(as_lm(any_model))
    found = call(any_model, reward=arm, beta=2.0, max_new_tokens=6)
    same_as_decoder(found, any_model, TEXTS, reward=arm, beta=2.0, max_new_tokens=6, do_sample=False)


def test_without_a_reward_it_is_generate(any_model: PreTrainedModel) -> None:
    """No reward, greedy: exactly what transformers' own loop gives, pads and end tokens included."""
    theirs = any_model.generate(**left_padded(), max_new_tokens=8, do_sample=False)
    ours = any_model.generate(
        **left_padded(), max_new_tokens=8, do_sample=False, custom_generate=decoder.custom_generate
    )
    assert torch.equal(ours, theirs)


def test_samples_are_the_decoders(tiny_model: PreTrainedModel) -> None:
    """Sampling settings and several sequences a prompt: with a seed, the samples of `Decoder.generate`."""
    settings: dict[str, Any] = {
        "max_new_tokens": 6, "do_sample": True, "temperature": 1.7, "top_k": 9, "top_p": 0.9,
        "num_return_sequences": 3, "seed": 5,
        "reward_top_k": 12, "reward": tiny_arm(as_lm(tiny_model)), "beta": 1.5,
    }  # fmt: skip
    found = call(tiny_model, **settings)
    assert len({tuple(tokens) for tokens in found}) > 3
    same_as_decoder(found, tiny_model, TEXTS, **settings)


def test_torch_manual_seed_governs_it(tiny_model: PreTrainedModel) -> None:
    """Without a seed of its own the call follows torch's generator, as transformers' sampling does."""

    def sampled(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return call(tiny_model, max_new_tokens=6, do_sample=True, top_k=0, num_return_sequences=2)

    first, again, other = sampled(1), sampled(1), sampled(2)
    assert first == again != other
    assert first[0] != first[1], "the two samples of a prompt share their numbers"


def test_rows_that_end_are_padded() -> None:
    """A row that ends early is filled with the pad id, and the batch ends with its last row."""
    model = tiny_llama()
    whole = call(model, max_new_tokens=8)
    model.generation_config.eos_token_id = [EOS, whole[1][2]]
    ended = call(model, max_new_tokens=8)
    assert ended[1] == whole[1][:3] + [PAD] * (len(ended[1]) - 3)
    assert torch.equal(
        torch.tensor(ended), model.generate(**left_padded(), max_new_tokens=8)[:, -len(ended[0]) :]
    )
    alone = call(model, TEXTS[1:2], max_new_tokens=8)
    assert alone == [whole[1][:3]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 2}, "num_beams is 2"),
        ({"repetition_penalty": 1.2}, "RepetitionPenalty"),
        ({"do_sample": True, "min_p": 0.1}, "MinP"),
        ({"min_new_tokens": 3}, "MinLength"),
        ({"logits_processor": LogitsProcessorList([NoRepeatNGramLogitsProcessor(2)])}, "NoRepeatNGram"),
        ({"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(9.0)])}, "MaxTimeCriteria"),
        ({"max_time": 9.0}, "MaxTimeCriteria"),
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": False}, "contrastive search"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"beta": 2.0}, "there is no reward"),
        ({"reward": "no-such-reward"}, "'no-such-reward'"),
        ({"reward_top_k": 0}, "reward_top_k is 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore")  # some of these settings make transformers warn before we refuse
def test_what_it_cannot_do_is_refused(
    tiny_model: PreTrainedModel, options: dict[str, Any], said: str
) -> None:
    """A setting that would change the text and is not honoured is an error, never dropped."""
    with pytest.raises(UserError, match=said):
        call(tiny_model, max_new_tokens=3, **options)


def test_embeddings_are_refused(tiny_model: PreTrainedModel) -> None:
    """A prompt given as embeddings has no ids to seed by or to read again."""
    inputs = left_padded()
    embeds = tiny_model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(UserError, match="inputs_embeds"):
        tiny_model.generate(
            **inputs, inputs_embeds=embeds, custom_generate=decoder.custom_generate, max_new_tokens=3
        )


def test_a_saved_reward_checks_the_tokenizer(tiny_model: PreTrainedModel, tmp_path: Any) -> None:
    """With `processing_class` a head of another tokenizer is refused; without it the sizes alone must fit."""
    stranger = tiny_tokenizer()
    stranger.add_tokens(["new"])
    directory = save_arm(tmp_path / "kind", tiny_model, stranger)
    assert call(tiny_model, reward=directory, beta=2.0, max_new_tokens=3)
    with pytest.raises(UserError, match="tokenizer_hash"):
        call(tiny_model, reward=directory, max_new_tokens=3, processing_class=tiny_tokenizer())


def test_a_generation_config_of_its_own(tiny_model: PreTrainedModel) -> None:
    """Settings in a GenerationConfig count as those given by name."""
    config = GenerationConfig(max_new_tokens=5, do_sample=True, temperature=2.0, top_k=7, pad_token_id=PAD)
    named = call(tiny_model, max_new_tokens=5, do_sample=True, temperature=2.0, top_k=7, seed=3)
    assert call(tiny_model, generation_config=config, seed=3) == named
