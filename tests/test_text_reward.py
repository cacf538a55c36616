"""Reward models by text against the bare model on one text: batches, templates, labels, lengths."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from decoder.contracts import UserError
from prompts.reading import Prompt
from rewards.text_reward import TextReward, find_label, load
from tests.tiny import BOS, CONTEXT, EOS, PAD, VOCAB, save_tiny, tiny_tokenizer

PROMPTS = ["The kettle sang", "A good morning", "Rain", "She thought the film was bad, but the music"]
COMPLETIONS = [" while the rain went on and on.", ".", "", " in the end was good; so the train was late."]
CHAT = ({"role": "user", "content": "Was the film good?"},)
OPTIONS = {"dtype": "float32", "device": "cpu"}
Make = Callable[..., Path]


def llama(labels: int = 1, **config: Any) -> PreTrainedModel:
    """Return a Llama with a score head and wide weights."""
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
            initializer_range=0.4, num_labels=labels, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
        )
    )  # fmt: skip


def gpt2() -> PreTrainedModel:
    """Return a GPT-2 with a score head: learnt positions, shorter than the tokenizer's limit."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2ForSequenceClassification(
        GPT2Config(vocab_size=VOCAB, initializer_range=0.4, num_labels=1, pad_token_id=PAD, **sizes)
    )


def roberta() -> PreTrainedModel:
    """Return a RoBERTa with a classification head, whose positions begin after its pad id."""
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=80, initializer_range=0.4, num_labels=1,
            pad_token_id=PAD, type_vocab_size=1,
        )
    )  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Make:
    """Write a model, changed by `change`, and the tiny tokenizer; return the folder."""

    def save(
        make: Callable[..., PreTrainedModel] = llama,
        *,
        template: bool = True,
        change: Callable[[PreTrainedModel], Any] = lambda model: None,
        **config: Any,
    ) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make(**config).eval()
        change(model)
        model.save_pretrained(tmp_path / "model")
        tokenizer = tiny_tokenizer()
        if not template:
            tokenizer.chat_template = None
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def bare(reward: TextReward, text: str) -> list[float]:
    """Return the model's logits on one text, without a batch, a mask or padding."""
    ids = tiny_tokenizer()(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits: list[float] = reward.model(input_ids=ids).logits[0].tolist()
    return logits


@pytest.mark.parametrize("make", [llama, gpt2, roberta])
@pytest.mark.parametrize("max_tokens", [1, 40, 4096])
def test_batches_score_as_single_texts(saved: Make, make: Any, max_tokens: int) -> None:
    """Whatever the batch, a score is the bare model's logit on prompt and completion alone."""
    reward = load(str(saved(make)), **OPTIONS)
    scores = reward.score(PROMPTS, COMPLETIONS, max_tokens=max_tokens)
    expected = [bare(reward, prompt + text)[0] for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert max(expected) - min(expected) > 0.1
    assert scores == pytest.approx(expected, abs=1e-4)
    assert all(type(score) is float for score in scores)


def test_a_model_that_knows_no_padding_reads_texts_one_by_one(saved: Make) -> None:
    """Without a pad id transformers' decoders refuse batches; and the last token is then always read."""

    def forget(model: PreTrainedModel) -> None:
        model.config.pad_token_id = None

    reward = load(str(saved(change=forget)), **OPTIONS)
    expected = [bare(reward, prompt + text)[0] for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert reward.model.config.pad_token_id is None
    assert reward.score(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-4)


def test_conversations_pass_the_models_own_template(saved: Make) -> None:
    """Messages, bare or in a prompt, with the completion as the answer; texts beside them stay texts."""
    reward = load(str(saved()), **OPTIONS)
    prompts = [CHAT, Prompt("0", messages=CHAT), Prompt("1", text="The film"), "The film"]
    whole = "<s>user: Was the film good?\nassistant: It was bad.\n"
    chat, text = bare(reward, whole)[0], bare(reward, "The film It was bad.")[0]
    scores = reward.score(prompts, ["It was bad.", "It was bad.", " It was bad.", " It was bad."])
    assert scores == pytest.approx([chat, chat, text, text], abs=1e-4)


def test_conversations_without_a_template_are_their_contents(saved: Make) -> None:
    reward = load(str(saved(template=False)), **OPTIONS)
    expected = bare(reward, "Was the film good?\nIt was bad.")
    assert reward.score([CHAT], ["It was bad."]) == pytest.approx(expected, abs=1e-4)


def test_a_conversation_that_the_template_refuses(saved: Make) -> None:
    folder = saved()
    template = "{{ raise_exception('roles must alternate') }}"
    (folder / "chat_template.jinja").write_text(template)
    reward = load(str(folder), **OPTIONS)
    prompt = Prompt("0", messages=CHAT, source="chats.jsonl, line 3")
    with pytest.raises(UserError, match=r"^chats.jsonl, line 3: .*refuses it \(roles must alternate\)"):
        reward.score([prompt], ["yes"])


def tokens(n: int) -> str:
    """Return a text of n tokens."""
    text = "!" * n
    assert len(tiny_tokenizer()(text)["input_ids"]) == n
    return text


@pytest.mark.parametrize(("make", "longest"), [(llama, CONTEXT), (gpt2, 64), (roberta, 80 - PAD - 1)])
def test_what_is_too_long_or_empty_has_no_score(saved: Make, make: Any, longest: int) -> None:
    """A text is read whole or not at all: the longest one has its score, one token more has none."""
    reward = load(str(saved(make)), **OPTIONS)
    assert reward.max_tokens == longest
    scores = reward.score([""] * 4, [tokens(longest), tokens(longest + 1), "", "Rain"])
    assert [math.isnan(score) for score in scores] == [False, True, True, False]
    assert scores[0] == pytest.approx(bare(reward, tokens(longest))[0], abs=1e-4)
    assert reward.score([], []) == []


def test_a_score_that_is_no_number_stays_one(saved: Make) -> None:
    """Broken weights give NaN, a failed score, and stop nothing."""

    def spoil(model: PreTrainedModel) -> None:
        with torch.no_grad():
            model.score.weight.fill_(math.nan)

    scores = load(str(saved(change=spoil)), **OPTIONS).score(PROMPTS, COMPLETIONS)
    assert [math.isnan(score) for score in scores] == [True] * 4


# Labels.


def test_several_labels_need_a_name(saved: Make) -> None:
    """The log-odds of the label asked for, by number or name, with or without hf:."""
    folder = saved(labels=3)
    with pytest.raises(UserError, match=r"none is named of its 3 \(0 LABEL_0, .*as in hf:.*model#2"):
        load(str(folder), **OPTIONS)
    for name in (f"{folder}#1", f"hf:{folder}#label_1"):
        reward = load(name, **OPTIONS)
        p = torch.tensor(bare(reward, "Rain.")).double().softmax(-1)[1]
        assert reward.score(["Rain"], ["."]) == pytest.approx([float(p.logit())], abs=1e-4)
        assert reward.name == f"hf:{folder}#1"
    digests = {load(f"{folder}#{label}", **OPTIONS).digest for label in range(3)}
    assert len(digests) == 3
    for wrong in ("3", "best", "-1"):
        with pytest.raises(UserError, match=rf"no label '{wrong}' among its 3 \(0 LABEL_0, 1 LABEL_1"):
            load(f"{folder}#{wrong}", **OPTIONS)


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_labels_that_do_not_compete_are_read_as_they_are(saved: Make, kind: str) -> None:
    """And the config may say which one is the reward."""
    folder = saved(labels=2)
    config = json.loads((folder / "config.json").read_text())
    names = {"problem_type": kind, "id2label": {"0": "Length", "1": "Reward"}}
    (folder / "config.json").write_text(
        json.dumps({**config, **names, "label2id": {"Length": 0, "Reward": 1}})
    )
    reward = load(str(folder), **OPTIONS)
    assert reward.score(["Rain"], ["."]) == pytest.approx([bare(reward, "Rain.")[1]], abs=1e-4)


@pytest.mark.parametrize(
    ("names", "wanted", "index"),
    [(["LABEL_0"], "", 0), (["a", "Score"], "", 1), (["b", "1"], "1", 1), (["1", "b"], "1", 0)],
)
def test_labels_go_by_name_before_number(names: Sequence[str], wanted: str, index: int) -> None:
    assert find_label(dict(enumerate(names)), wanted, "m") == index


def test_one_digest_for_the_same_weights_alone(saved: Make) -> None:
    folder = saved()
    before = load(str(folder), **OPTIONS)
    assert before.name == f"hf:{folder}"
    assert before.digest == load(f"hf:{folder}", dtype="bfloat16", device="cpu").digest

    def turn(model: PreTrainedModel) -> None:
        with torch.no_grad():
            model.score.weight.neg_()

    assert before.digest != load(str(saved(change=turn)), **OPTIONS).digest


# Models that do not do.


def test_a_language_model_has_no_score_head(tmp_path: Path) -> None:
    """transformers would give it a random one."""
    with pytest.raises(UserError, match=r"cannot load reward model .*missing, score.weight among them"):
        load(str(save_tiny(tmp_path / "lm")), **OPTIONS)


def test_models_that_are_not_there(tmp_path: Path, saved: Make) -> None:
    with pytest.raises(UserError, match=r"directory '.*none' does not exist"):
        load(f"hf:{tmp_path}/none", **OPTIONS)
    with pytest.raises(UserError, match=r"cannot load reward model 'nobody/nothing' \("):
        load("nobody/nothing", **OPTIONS)
    folder = saved()
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"cannot load reward model"):
        load(str(folder), **OPTIONS)
    with pytest.raises(UserError, match=r"unknown dtype 'float8'"):
        load(str(folder), dtype="float8", device="cpu")


def test_a_folder_with_a_hash_in_its_name(tmp_path: Path, saved: Make) -> None:
    folder = saved().rename(tmp_path / "model#1")
    assert load(str(folder), **OPTIONS).name == f"hf:{folder}"


def test_prompts_and_completions_must_pair(saved: Make) -> None:
    with pytest.raises(ValueError, match="shorter"):
        load(str(saved()), **OPTIONS).score(["a", "b"], ["c"])
