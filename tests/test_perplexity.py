"""Perplexity against transformers' own loss, a naive loop and closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import eval.perplexity
from decoder.contracts import UserError
from decoder.models import LoadedModel
from eval.generations import PromptSamples
from eval.metric import Metric, Record
from eval.perplexity import ConditionedText, Perplexity, nll_of
from tests.heads import as_lm
from tests.tiny import BOS, VOCAB, tiny_gpt2, tiny_llama, tiny_tokenizer

MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2}
PROMPTS = (
    ("The kettle", (" sang while the rain went on", " was late", "s")),
    ("A good morning begins with bread, butter and", (" a quiet street.", "", " the film")),
    ("She", (" thought the film was bad, but the music in the end was good and nobody was surprised.",)),
)


def samples(prompt: str, texts: Sequence[str], **fields: object) -> PromptSamples:
    return PromptSamples(
        "7", prompt, tuple(texts), tuple({"text": t, **fields} for t in texts), "g.jsonl, line 1"
    )


@pytest.fixture(scope="module", params=MODELS)
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return load(MODELS[request.param]())


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return load(tiny_llama())


def load(model: PreTrainedModel, *, adds_bos: bool = False) -> LoadedModel:
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    return LoadedModel(as_lm(model, tokenizer), tokenizer)


def split_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> tuple[list[int], int]:
    """Return the ids of the full text and where the continuation begins."""
    before, whole = tokenizer(prompt).input_ids, tokenizer(prompt + text).input_ids
    first = 0
    while first < min(len(before), len(whole)) and before[first] == whole[first]:
        first += 1
    return whole, max(first, 1)


def theirs(loaded: LoadedModel, prompt: str, text: str) -> tuple[float, int]:
    """Return transformers' own mean loss of the continuation and its number of tokens."""
    ids, first = split_ids(loaded.tokenizer, prompt, text)
    labels = torch.tensor([[-100] * first + ids[first:]])
    with torch.no_grad():
        loss = loaded.lm.model(input_ids=torch.tensor([ids]), labels=labels).loss
    return float(loss), len(ids) - first


def flat(scores: Sequence[Sequence[Record]]) -> np.ndarray:
    return np.array([[r["nll"], r["tokens"], r["perplexity"]] for records in scores for r in records])


def all_samples() -> list[PromptSamples]:
    return [samples(prompt, texts) for prompt, texts in PROMPTS]


def test_it_is_a_metric(llama: LoadedModel) -> None:
    metric = Perplexity(llama)
    assert isinstance(metric, Metric)
    assert metric.name == "perplexity"
    assert metric.per_sample
    assert metric.about["weights"] == llama.lm.identity.weights
    assert metric.about["context_length"] == 128
    assert metric.about["dtype"] == "float32"


def test_it_is_transformers_own_loss(loaded: LoadedModel) -> None:
    """All texts in one batch, each against the loss of the model on that text alone."""
    found = Perplexity(loaded).score(all_samples())
    for (prompt, texts), records in zip(PROMPTS, found, strict=True):
        for text, record in zip(texts, records, strict=True):
            if not text:
                continue
            loss, tokens = theirs(loaded, prompt, text)
            assert record["tokens"] == tokens
            assert record["nll"] / tokens == pytest.approx(loss, abs=1e-4)
            assert record["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 10_000])
def test_batches_change_nothing(loaded: LoadedModel, batch_tokens: int) -> None:
    alone = [Perplexity(loaded).score([samples(p, [text])]) for p, texts in PROMPTS for text in texts]
    expected = np.concatenate([flat(scores) for scores in alone])
    found = flat(Perplexity(loaded, batch_tokens=batch_tokens).score(all_samples()))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_order_changes_nothing(loaded: LoadedModel) -> None:
    found = Perplexity(loaded).score(all_samples()[::-1])[::-1]
    np.testing.assert_allclose(flat(found), flat(Perplexity(loaded).score(all_samples())), rtol=1e-4)


def test_padding_changes_nothing(loaded: LoadedModel) -> None:
    """A short text beside ever longer ones is padded ever more."""
    short = ConditionedText((40, 50, 60), 1)
    expected = nll_of(loaded.lm, [short])[0]
    for length in (4, 30, 128):
        longer = ConditionedText(tuple(range(length)), 2)
        assert nll_of(loaded.lm, [short, longer])[0] == pytest.approx(expected, abs=1e-4)


def test_few_logits_at_a_time_change_nothing(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the vocabulary is large, passes are cut by the number of logits, and texts in pieces."""
    expected = flat(Perplexity(loaded).score(all_samples()))
    widest = []
    actual = eval.perplexity._logits

    def watch(*arguments: object) -> torch.Tensor:
        logits = actual(*arguments)  # type: ignore[arg-type]
        widest.append(logits.numel())
        return logits

    monkeypatch.setattr(eval.perplexity, "MAX_LOGITS", 5 * VOCAB)
    monkeypatch.setattr(eval.perplexity, "_logits", watch)
    np.testing.assert_allclose(flat(Perplexity(loaded).score(all_samples())), expected, rtol=1e-4, atol=1e-4)
    assert max(widest) <= 5 * VOCAB


def naive_windows(model: PreTrainedModel, ids: list[int], first: int, context: int) -> float:
    """Every token by a pass of its own: in the first window, of those that begin at 0, half a context, one
    context, ..., that reaches it."""
    total = 0.0
    for index in range(first, len(ids)):
        begin = 0
        while begin + context <= index:
            begin += context // 2
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[begin:index]])).logits[0, -1]
        total -= float(logits.log_softmax(-1)[ids[index]])
    return total


@pytest.mark.parametrize(("first", "length"), [(1, 8), (1, 9), (3, 29), (11, 30), (20, 21)])
def test_windows_past_the_context(first: int, length: int) -> None:
    model = tiny_llama()
    model.config.max_position_embeddings = 8  # rotary positions have no table: only the limit moves
    lm = as_lm(model)
    ids = torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    others = [ConditionedText(tuple(ids[:5]), 1), ConditionedText(tuple(ids), first)]
    found = nll_of(lm, others)
    assert found[1] == pytest.approx(naive_windows(model, ids, first, 8), abs=1e-3)
    assert found[0] == pytest.approx(naive_windows(model, ids[:5], 1, 8), abs=1e-3)


def test_a_learnt_position_table_is_never_left() -> None:
    """GPT-2 cannot even read position 128."""
    loaded = load(tiny_gpt2())
    text = " the rain went on and on" * 40
    ids, first = split_ids(loaded.tokenizer, "She", text)
    assert len(ids) > 300
    [[record]] = Perplexity(loaded).score([samples("She", [text])])
    assert record["tokens"] == len(ids) - first
    expected = naive_windows(loaded.lm.model, ids, first, 128)
    assert record["nll"] == pytest.approx(expected, rel=1e-5)


def test_a_token_merged_over_the_boundary_is_continuation(llama: LoadedModel) -> None:
    tokenizer = llama.tokenizer
    assert len(tokenizer(" was").input_ids) == 1  # the tokenizer learnt it whole
    before, whole = tokenizer("The film wa").input_ids, tokenizer("The film was").input_ids
    assert whole[: len(before)] != before
    common = len(tokenizer("The film").input_ids)
    [[record]] = Perplexity(llama).score([samples("The film wa", ["s"])])
    assert record["tokens"] == 1
    [expected] = nll_of(llama.lm, [ConditionedText(tuple(whole), common)])
    assert record["nll"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_no_prompt(adds_bos: bool) -> None:
    """Without a prompt the first token is counted only if a BOS stands before it."""
    loaded = load(tiny_llama(), adds_bos=adds_bos)
    ids = loaded.tokenizer("The film", add_special_tokens=False).input_ids
    [[record, single]] = Perplexity(loaded).score([samples("", ["The film", "T"])])
    expected = [BOS, *ids] if adds_bos else ids
    assert record["tokens"] == len(expected) - 1
    assert record["nll"] == pytest.approx(naive_windows(loaded.lm.model, expected, 1, 128), abs=1e-4)
    assert single["tokens"] == int(adds_bos)
    assert math.isnan(single["perplexity"]) is not adds_bos


def test_empty_continuations_are_counted_but_not_scored(llama: LoadedModel) -> None:
    metric = Perplexity(llama)
    scores = metric.score([samples("The film", ["", " was good"]), samples("The train", [""])])
    empty = scores[0][0]
    assert empty["tokens"] == 0
    assert math.isnan(empty["nll"])
    assert math.isnan(empty["perplexity"])
    for measure in metric.measures(scores):
        assert (measure.scored, measure.total) == (1, 3)
        assert measure.estimate().n == 1
        assert measure.estimate().value == pytest.approx(scores[0][1]["perplexity"])


def test_a_model_without_numbers_is_not_scored() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = math.nan
    [[record]] = Perplexity(load(model)).score([samples("The film", [" was good"])])
    assert record["tokens"] > 0
    assert math.isnan(record["nll"])
    assert math.isnan(record["perplexity"])


def test_token_weighted_and_mean_in_closed_form(llama: LoadedModel) -> None:
    """Two prompts: 2 nats over 1 token and 2 over 4; 9 over 3."""
    nats = [[(2.0, 1), (2.0, 4)], [(9.0, 3)]]
    scores = [[{"nll": n, "tokens": t, "perplexity": math.exp(n / t)} for n, t in rows] for rows in nats]
    weighted, mean = Perplexity(llama).measures(scores)
    assert (weighted.name, weighted.better) == ("perplexity", "lower")
    assert (mean.name, mean.better) == ("perplexity_mean", "lower")
    assert weighted.estimate().value == pytest.approx(math.exp(13 / 8))
    assert mean.estimate().value == pytest.approx(((math.exp(2) + math.exp(0.5)) / 2 + math.exp(3)) / 2)
    assert weighted.units.tolist() == [[4, 5], [9, 3]]


def test_own_token_ids(llama: LoadedModel) -> None:
    """They stand after the prompt as they are, end token included."""
    prompt = llama.tokenizer("The film").input_ids
    own = [40, 50, 1]
    [[record]] = Perplexity(llama, use_token_ids=True).score([samples("The film", ["x"], token_ids=own)])
    assert record["tokens"] == 3
    expected = naive_windows(llama.lm.model, prompt + own, len(prompt), 128)
    assert record["nll"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "g.jsonl, line 1: sample 0 of prompt '7' has no list of integers \"token_ids\""),
        ({"token_ids": [1.5]}, "no list of integers"),
        ({"token_ids": [3, 300]}, "token id 300, but tiny has ids 0 to 299"),
        ({"token_ids": [-1]}, "token id -1"),
    ],
)
def test_wrong_token_ids(llama: LoadedModel, fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        Perplexity(llama, use_token_ids=True).score([samples("The film", ["x"], **fields)])
    assert message in str(error.value)
