"""Characters that end a text: where it ends, what of it is shown, and what is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decoder.best_of_n import unescape
from decoder.config import make_config
from decoder.contracts import TokenEvent, UserError
from decoder.decoder import Decoder
from decoder.endings import TextStream, cut, to_text
from decoder.models import LoadedModel
from decoder.records import fingerprint
from tests.heads import as_lm, tiny_arm
from tests.tiny import EOS, tiny_llama, tiny_tokenizer

PROMPTS = ["The kettle sang", "A good morning", "Rain"]
NUMBERS: dict[str, Any] = {"max_new_tokens": 16, "num_return_sequences": 4, "temperature": 1.5, "seed": 3}
STOPS = ["e", " ", "aeiou", "\N{REPLACEMENT CHARACTER}", "the ", "\nt."]


@pytest.fixture(scope="module")
def decoder(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Decoder:
    return Decoder(LoadedModel(as_lm(tiny_model, tokenizer), tokenizer))


def has_any(text: str, stop: str) -> bool:
    return any(character in text for character in stop)


@pytest.mark.parametrize("stop", [*STOPS, "\n", "."])
def test_the_ids_are_those_that_spell_a_character(decoder: Decoder, stop: str) -> None:
    """Every token of the vocabulary looked at, and the end token; special tokens show nothing."""
    found = decoder.backend.endings.ids(stop).tolist()
    tokenizer = decoder.tokenizer
    pieces = {i: tokenizer.decode([i]) for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids}
    assert set(found) == {EOS} | {i for i, piece in pieces.items() if has_any(piece, stop)}
    assert decoder.backend.endings.ids("").tolist() == [EOS]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("steered", [False, True])
def test_texts_end_where_free_ones_first_have_it(decoder: Decoder, stop: str, steered: bool) -> None:
    """The tokens are those of a run without stop up to the one with the character, which is kept; the text
    ends before the character."""
    given = {"reward": tiny_arm(decoder.lm), "beta": 2.0} if steered else {}
    free = decoder.generate(PROMPTS, **given, **NUMBERS)
    stopped = decoder.generate(PROMPTS, stop=stop, **given, **NUMBERS)
    ended = 0
    for before, after in zip(free, stopped, strict=True):
        for plain, found in zip(before.samples, after.samples, strict=True):
            pieces = [
                decoder.tokenizer.decode([token], skip_special_tokens=True) for token in plain.token_ids
            ]
            places = [i for i, piece in enumerate(pieces) if has_any(piece, stop)]
            length = places[0] + 1 if places else len(pieces)
            assert found.token_ids == plain.token_ids[:length]
            assert found.finish_reason == ("stop" if places else plain.finish_reason)
            text = decoder.tokenizer.decode(list(found.token_ids), skip_special_tokens=True)
            while has_any(text, stop):
                text = text[:-1]
            assert found.text == text
            ended += bool(places)
    assert ended


@pytest.mark.parametrize("stop", STOPS)
def test_a_stream_shows_what_generate_returns(decoder: Decoder, stop: str) -> None:
    (expected,) = decoder.generate(PROMPTS[0], stop=stop, **NUMBERS)
    events: list[list[TokenEvent]] = [[] for _ in expected.samples]
    for event in decoder.stream(PROMPTS[0], stop=stop, **NUMBERS):
        events[event.row].append(event)
    for found, sample in zip(events, expected.samples, strict=True):
        assert "".join(event.text for event in found) == sample.text
        assert tuple(event.token_id for event in found) == sample.token_ids
        assert [event.finish_reason for event in found] == [None] * (len(found) - 1) + [sample.finish_reason]


def test_a_character_in_several_tokens_ends_what_is_shown() -> None:
    """Where a character can be one token or several, the text is cut before it either way, streamed too."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Ã©"])  # as a byte-level tokenizer writes é
    whole = tokenizer.convert_tokens_to_ids(["a", "Ã©", "b"])
    split = tokenizer.convert_tokens_to_ids(["a", "Ã", "©", "<pad>", "b", "c"])
    assert to_text(tokenizer, split) == "aébc"
    for ids in (whole, split):
        stream = TextStream(tokenizer, "é")
        assert "".join(stream.add(token, last=i == len(ids) - 1) for i, token in enumerate(ids)) == "a"
        assert cut(to_text(tokenizer, ids), "é") == "a"
    free = TextStream(tokenizer)
    assert "".join(free.add(token, last=i == 5) for i, token in enumerate(split)) == "aébc"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("a.b,c", ",.", "a"),
        ("a.b", "", "a.b"),
        ("", ".", ""),
        (".a", ".", ""),
        ("a\nb", "\n", "a"),
        ("abc", "xyz", "abc"),
    ],
)
def test_cut(text: str, stop: str, expected: str) -> None:
    assert cut(text, stop) == expected


def test_options_spell_line_breaks() -> None:
    assert unescape(r"\n") == "\n"
    assert unescape(r".\t\n!") == ".\t\n!"
    assert unescape("n") == "n"


def test_the_last_token_of_a_full_text_may_end_it(decoder: Decoder) -> None:
    """A text that is full with the very token that has the character has ended by itself."""
    (free,) = decoder.generate(PROMPTS[0], **NUMBERS)
    sample = free.samples[0]
    piece = decoder.tokenizer.decode([sample.token_ids[-1]])
    new = next(c for c in piece if c not in sample.text[: -len(piece)])
    (found,) = decoder.generate(PROMPTS[0], stop=new, **NUMBERS)
    assert found.samples[0].token_ids == sample.token_ids
    assert (sample.finish_reason, found.samples[0].finish_reason) == ("length", "stop")


def test_it_is_part_of_what_made_a_file(decoder: Decoder) -> None:
    """A run is not resumed with another stop."""
    made = [fingerprint(decoder, [], make_config({"stop": stop}), {}) for stop in ("", "\n", ".")]
    assert [each["stop"] for each in made] == ["", "\n", "."]
    assert made[0] != made[1] != made[2]


def test_what_cannot_end_a_text(decoder: Decoder) -> None:
    """A character without a token would never end one; several strings are not several characters."""
    with pytest.raises(UserError, match=r"stop is 'aé': no token has 'é'"):
        decoder.generate(PROMPTS[0], stop="aé", **NUMBERS)
    with pytest.raises(UserError, match=r"no token has 'é'"):
        list(decoder.stream(PROMPTS[0], stop="é", **NUMBERS))
    with pytest.raises(UserError, match=r"stop is \['a'\]: give the characters"):
        decoder.generate(PROMPTS[0], stop=["a"])
    with pytest.raises(UserError, match=r"stop is None"):
        decoder.generate(PROMPTS[0], stop=None)


def test_a_model_without_an_end_token_stops_too(tokenizer: PreTrainedTokenizerBase) -> None:
    model, plain = tiny_llama(), tiny_tokenizer()
    model.generation_config.eos_token_id, plain.eos_token = None, None
    decoder = Decoder(LoadedModel(as_lm(model, plain), plain))
    assert decoder.backend.endings.ids("").tolist() == []
    assert decoder.backend.endings.ids("").dtype == torch.int64
    (found,) = decoder.generate(PROMPTS[0], stop="aeiou", **NUMBERS)
    assert all(each.finish_reason == "length" or len(each.token_ids) < 16 for each in found.samples)
    assert "stop" in {each.finish_reason for each in found.samples}
