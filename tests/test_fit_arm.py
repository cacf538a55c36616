"""Reading states, fitting, folding, calibrating and measuring, each against a plain reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decoder import replay
from decoder.contracts import UserError
from decoder.lm import CausalLM
from decoder.replay import score_path
from rewards import features as features_module
from rewards import select_arm
from rewards.arm import ArmConfig, TapArm, features
from rewards.arm_losses import cumulative_loss, position_weights
from rewards.features import TokenRows, read_states, tokenise
from rewards.fit_arm import (
    Recipe,
    Scale,
    Task,
    calibrate,
    fit,
    fold,
    log_odds,
    measure_scale,
    project_states,
    rescale,
    running_mean,
    score_texts,
)
from rewards.measure_arm import balance, calibration_error, measure, rank_auc
from rewards.select_arm import candidate_auc, choose, count_fits, default_layers
from tests.heads import as_lm, random_head
from tests.tiny import EOS, tiny_llama

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def lm(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> CausalLM:
    return as_lm(tiny_model, tokenizer)


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    """Sixty texts of 1 to 12 tokens; those with token 9 in them are positive."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(20, 300, rng.integers(1, 13)).tolist() for _ in range(60)]
    for row in ids[::2]:
        row[len(row) // 2] = 9
    return TokenRows(ids, torch.tensor([token for row in ids for token in [*row[1:], EOS]]))


@pytest.fixture(scope="module")
def task(lm: CausalLM, rows: TokenRows, tmp_path_factory: pytest.TempPathFactory) -> Task:
    states = read_states(lm, rows, LAYERS, tmp_path_factory.mktemp("states"))
    labels = np.array([1.0, 0.0] * 30)
    every = torch.arange(60)
    return Task(states, lm.output_embeddings.detach(), labels, every[:45], every[45:])


# --- states -------------------------------------------------------------------------------------


def test_tokens_and_what_follows(tokenizer: PreTrainedTokenizerBase) -> None:
    """The end token is the last candidate of a whole text; of a cut one, the token that came next."""
    whole = tokenizer("The rain went on and on").input_ids
    found = tokenise(tokenizer, ["The rain went on and on"], 100)
    assert found.ids == [whole]
    assert found.next_ids.tolist() == [*whole[1:], EOS]
    cut = tokenise(tokenizer, ["The rain went on and on"], 4)
    assert cut.ids == [whole[:4]]
    assert cut.next_ids.tolist() == whole[1:5]


def test_end_token_is_never_read(tokenizer: PreTrainedTokenizerBase) -> None:
    found = tokenise(tokenizer, ["bread" + tokenizer.eos_token], 100)
    assert found.ids == [tokenizer("bread").input_ids]


def test_texts_without_tokens_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="gives no token"):
        tokenise(tokenizer, ["rain", ""], 100)


def test_states_are_those_of_each_text_alone(lm: CausalLM, rows: TokenRows, task: Task) -> None:
    for text in (0, 7, 59):
        with torch.no_grad():
            hidden = lm.model(torch.tensor([rows.ids[text]]), output_hidden_states=True).hidden_states
        where, positions = task.states.rows_of(torch.tensor([text]))
        assert positions.tolist() == list(range(len(rows.ids[text])))
        for layer in LAYERS:
            expected = features({layer: hidden[layer][0]}, (layer,))
            torch.testing.assert_close(task.states.taps[layer][where].float(), expected, atol=5e-3, rtol=0)


def test_rows_of_several_texts(task: Task, rows: TokenRows) -> None:
    where, _ = task.states.rows_of(torch.tensor([3, 0]))
    starts = np.cumsum([0, *map(len, rows.ids)])
    assert where.tolist() == [*range(starts[3], starts[4]), *range(starts[0], starts[1])]


def test_second_run_reads_nothing(
    lm: CausalLM, rows: TokenRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only layers not yet in the cache are read, and other weights or texts have files of their own."""
    asked: list[tuple[int, ...]] = []

    def counting(lm: CausalLM, texts: object, layers: tuple[int, ...]) -> Iterator[object]:
        asked.append(layers)
        return replay.read_texts(lm, texts, layers)  # type: ignore[arg-type]

    monkeypatch.setattr(features_module, "read_texts", counting)
    first = read_states(lm, rows, (1, 3), tmp_path)
    again = read_states(lm, rows, (3, 2, 1), tmp_path)
    assert asked == [(1, 3), (2,)]
    assert torch.equal(first.taps[3], again.taps[3])
    other = as_lm(tiny_llama(seed=1))
    read_states(other, rows, (1,), tmp_path)
    read_states(
        lm, TokenRows(rows.ids[:2], rows.next_ids[: len(rows.ids[0]) + len(rows.ids[1])]), (1,), tmp_path
    )
    assert len(asked) == 4
    assert len(list(tmp_path.iterdir())) == 5


def test_a_broken_reading_leaves_no_file(
    lm: CausalLM, rows: TokenRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(lm: CausalLM, texts: object, layers: tuple[int, ...]) -> Iterator[object]:
        yield next(replay.read_texts(lm, texts, layers))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(features_module, "read_texts", breaks)
    with pytest.raises(KeyboardInterrupt):
        read_states(lm, rows, LAYERS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_unusable_cache_folders(
    lm: CausalLM, rows: TokenRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot use the cache folder"):
        read_states(lm, rows, LAYERS, tmp_path / "file" / "cache")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(features_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="GB free: give another folder with --cache"):
        read_states(lm, rows, LAYERS, tmp_path)


def test_states_that_are_no_numbers_are_refused(
    lm: CausalLM, rows: TokenRows, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_llama()
    torch.nn.init.constant_(model.model.layers[0].mlp.down_proj.weight, math.nan)
    with pytest.raises(UserError, match=r"not finite: try --dtype float32"):
        read_states(as_lm(model, tokenizer), rows, LAYERS, tmp_path)


# --- the fit ------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_position_weights(lengths: list[int]) -> None:
    """2t / (l(l+1)), which sum to one over each text."""
    expected = [2 * t / (length * (length + 1)) for length in lengths for t in range(1, length + 1)]
    assert position_weights(torch.tensor(lengths)).tolist() == pytest.approx(expected, rel=1e-5)
    assert sum(expected) == pytest.approx(len(lengths))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_running_mean(lengths: list[int]) -> None:
    values = torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in lengths])
    expected, start = [], 0
    for length in lengths:
        expected += [values[start : start + t + 1].mean(0) for t in range(length)]
        start += length
    torch.testing.assert_close(running_mean(values, positions), torch.stack(expected))


def test_loss_is_the_formula() -> None:
    scores, lengths = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1, 2])
    targets, weights = torch.tensor([1.0, 0.25]), torch.tensor([2.0, 0.5])

    def entropy(score: float, target: float) -> float:
        p = 1 / (1 + math.exp(-score))
        return -target * math.log(p) - (1 - target) * math.log(1 - p)

    expected = 2.0 * entropy(0.5, 1) + 0.5 * (entropy(-1, 0.25) / 3 + entropy(2, 0.25) * 2 / 3)
    assert float(cumulative_loss(scores, lengths, targets, weights)) == pytest.approx(expected / 2, rel=1e-5)


@pytest.mark.parametrize("summary", ["none", "text", "generated"])
def test_fitted_is_what_a_decode_sees(lm: CausalLM, task: Task, rows: TokenRows, summary: str) -> None:
    """The log-odds of training, batched over ragged texts, are those of a decode, token by token."""
    head = random_head(32, LAYERS, summary=summary, output="log_probability")  # type: ignore[arg-type]
    texts = torch.tensor([4, 0, 13])
    found = torch.nn.functional.logsigmoid(log_odds(head, task.states, task.embeddings, texts)).tolist()
    arm = TapArm.bind(head, lm)
    expected: list[float] = []
    for text in texts.tolist():
        ids = rows.ids[text]
        expected += score_path(lm, arm, [ids[:1]], [[*ids[1:], EOS]])[0]
    assert found == pytest.approx(expected, abs=0.05)  # the cache holds float16
    assert np.corrcoef(found, expected)[0, 1] > 0.9999


@pytest.mark.parametrize("summary", ["none", "text"])
def test_folded_is_unfolded(task: Task, summary: str) -> None:
    """The saved head reads plain features and says what the fitted one said of standardised ones."""
    head = random_head(32, LAYERS, summary=summary)  # type: ignore[arg-type]
    scale, texts = measure_scale(task, LAYERS), torch.arange(60)
    before = score_texts(head, task, texts, scale)
    after = score_texts(fold(head, scale).requires_grad_(False), task, texts)
    assert before.abs().max() > 1
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_scale_is_that_of_training_tokens_and_vocabulary(task: Task) -> None:
    scale = measure_scale(task, (3,))
    h = task.states.taps[3][task.states.rows_of(task.train)[0]].float()
    expected = Scale(
        h.mean(0), h.std(0, correction=0), task.embeddings.mean(0), task.embeddings.std(0, correction=0)
    )
    for name in Scale.__slots__:
        torch.testing.assert_close(getattr(scale, name), getattr(expected, name), atol=1e-4, rtol=1e-3)


def test_rescaled_log_odds(task: Task) -> None:
    head = random_head(32, LAYERS).requires_grad_(False)
    before = score_texts(head, task, task.validation)
    rescale(head, 2.5, -0.75)
    torch.testing.assert_close(
        score_texts(head, task, task.validation), before / 2.5 - 0.75, atol=1e-5, rtol=1e-5
    )


def test_calibration_minimises_the_loss(task: Task) -> None:
    """No other temperature or bias nearby gives a lower validation loss."""
    head = random_head(32, LAYERS).requires_grad_(False)
    weights, targets = task.balanced()
    texts, lengths = task.validation, task.states.lengths[task.validation]

    def loss(temperature: float = 1.0, bias: float = 0.0) -> float:
        scores = score_texts(head, task, texts).double() / temperature + bias
        return float(cumulative_loss(scores, lengths, targets[texts], weights[texts]))

    before = loss()
    temperature, _ = calibrate(head, task)
    assert temperature > 1  # wide random weights are far too sure
    assert loss() < before
    assert min(loss(1.1), loss(0.9), loss(1, 0.1), loss(1, -0.1)) > loss()


def test_fit_learns_and_repeats_itself(task: Task) -> None:
    """Which texts hold token 9 can be read off the states; the same seed gives the same head."""
    arm = ArmConfig(LAYERS, 32, rank=4)
    epochs: list[int] = []
    first, again = (fit(task, arm, Recipe(epochs=5, learning_rate=1e-2), epochs.append) for _ in range(2))
    assert epochs == [1, 2, 3, 4, 5] * 2
    assert first.loss == again.loss
    assert torch.equal(first.head.state.weight, again.head.state.weight)
    assert first.loss < math.log(2)
    assert first.head.config == arm
    assert not any(p.requires_grad for p in first.head.parameters())


@pytest.mark.parametrize("n_texts", [14, 45])
def test_few_steps_are_enough(task: Task, n_texts: int) -> None:
    """One epoch of two steps, as of the fewest texts allowed, or of ten."""
    few = replace(task, train=torch.arange(n_texts))
    assert math.isfinite(
        fit(few, ArmConfig(LAYERS, 32, rank=2), Recipe(epochs=1, batch_size=n_texts // 2)).loss
    )


def test_best_epoch_is_kept(task: Task) -> None:
    """A fit that goes astray later returns what it had at its best."""
    arm = ArmConfig(LAYERS, 32, rank=4)
    wild = fit(task, arm, Recipe(epochs=12, learning_rate=0.3))
    assert wild.epoch <= 12
    weights, targets = task.balanced()
    scores = (score_texts(wild.head, task, task.validation) - wild.bias) * wild.temperature
    lengths = task.states.lengths[task.validation]
    kept = cumulative_loss(scores, lengths, targets[task.validation], weights[task.validation])
    assert float(kept) == pytest.approx(wild.loss, rel=1e-3)


# --- choosing -----------------------------------------------------------------------------------


def test_default_layers() -> None:
    assert default_layers(30) == (12, 15, 18, 21, 24)
    assert default_layers(4) == (2, 3)
    assert default_layers(1) == (1,)


def test_choice(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trial is reported; the lowest loss wins; a fit on few texts is repeated on all."""
    arm, recipe, ticks = ArmConfig((), 32), Recipe(epochs=1), []
    found = choose(task, arm, recipe, layers=LAYERS, ranks=(2, 3), on_fit=lambda: ticks.append(1))
    assert len(ticks) == count_fits(LAYERS, (2, 3), select_arm.WEIGHT_DECAYS, False) == 8
    assert [trial.layers for trial in found.trials[:3]] == [(1,), (3,), (1, 3)]
    last = found.trials[3:]
    near = [trial for trial in last if trial.loss <= 1.02 * min(other.loss for other in last)]
    best = max(near, key=lambda trial: trial.candidate_auc)
    assert (found.arm.rank, found.recipe.weight_decay) == (best.rank, best.weight_decay)
    assert found.fit.loss == best.loss
    monkeypatch.setattr(select_arm, "MAX_TEXTS", 20)
    fixed = choose(task, arm, recipe, layers=(3,), ranks=(2,), weight_decays=(1.0,), fixed_layers=True)
    assert len(fixed.trials) == 1
    assert fixed.arm == replace(arm, layers=(3,), rank=2)
    assert fixed.fit.loss != fixed.trials[0].loss


def test_candidate_auc_is_of_the_difference_between_tokens(task: Task) -> None:
    """What the state says of every candidate alike does not count, and neither does the end token."""
    head = random_head(32, LAYERS).requires_grad_(False)
    before = candidate_auc(head, task)
    head.state.weight[0].normal_()
    head.state.bias[0] += 5
    assert candidate_auc(head, task) == before
    scores = (
        score_texts(head, task, task.validation) - project_states(head, task.states, task.validation)[:, 0]
    )
    generator = torch.Generator().manual_seed(0)
    others = task.states.next_ids[torch.randint(len(task.states.next_ids), (256,), generator=generator)]
    numbers, start = [], 0
    for text in task.validation.tolist():
        state = project_states(head, task.states, torch.tensor([text]))
        rest = [head.score(row, head.vocabulary(task.embeddings[others])) - row[0] for row in state]
        own = scores[start : (start := start + len(state))]
        margins = [float(own[t] - rest[t].mean()) for t in range(len(state) - 1)]
        numbers.append(np.mean(margins) if margins else 0.0)
    positive = task.labels[task.validation.numpy()] == 1
    assert before == pytest.approx(rank_auc(np.array(numbers), positive), abs=0.02)


# --- measures -----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
@settings(deadline=None, max_examples=60)
def test_auc_is_the_share_of_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([float(score) for score, _ in pairs])
    positive = np.array([label for _, label in pairs])
    wins = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    found = rank_auc(scores, positive)
    assert math.isnan(found) if not wins else found == pytest.approx(np.mean(wins))


def test_auc_is_that_of_sklearn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=500).round(1), rng.random(500) < 0.2
    assert rank_auc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores))


def test_calibration_error() -> None:
    """Right probabilities have none; probabilities of 0.9 on a coin have 0.4."""
    ones = np.ones(4)
    assert calibration_error(np.full(4, 0.5), ones, np.array([1.0, 0, 1, 0])) == pytest.approx(0)
    assert calibration_error(np.full(4, 0.9), ones, np.array([1.0, 0, 1, 0])) == pytest.approx(0.4)


def test_balance() -> None:
    """Both classes have the same total weight, and soft labels split between them."""
    labels = np.array([1.0, 0, 0, 0, 0.5])
    weights, targets = balance(labels, float(labels.mean()))
    assert (weights * targets).sum() == pytest.approx((weights * (1 - targets)).sum())
    assert targets[:4].tolist() == [1, 0, 0, 0]
    assert targets[4] == pytest.approx(0.7)


def test_measures_by_prefix() -> None:
    """The state that scores a prefix's last token is read, the end token's for the whole text."""
    lengths, labels = np.array([4] * 20 + [8] * 20), np.array([1.0, 0.0] * 20)
    log_odds_ = np.zeros(lengths.sum())
    ends = lengths.cumsum()
    log_odds_[ends - 1] = np.where(labels == 1, 2, -2)  # only the end tells
    found = {row.prefix: row for row in measure(log_odds_, lengths, labels)}
    assert list(found) == ["5 tokens", "25%", "50%", "75%", "100%"]
    assert found["5 tokens"].n_texts == 20
    assert found["100%"].auc == 1
    assert found["100%"].accuracy == found["100%"].balanced_accuracy == 1
    assert found["100%"].calibration_error == pytest.approx(1 / (1 + math.exp(2)), abs=1e-6)
    assert found["75%"].auc == 0.5
    log_odds_[(ends - lengths) + 3] = np.where(labels == 1, 1, -1)  # the state that scores token 5
    assert {row.prefix: row for row in measure(log_odds_, lengths, labels)}["5 tokens"].auc == 1


def test_measures_of_one_class() -> None:
    found = measure(np.zeros(8), np.array([4, 4]), np.ones(2))
    assert found[0].auc is None
    assert found[0].balanced_accuracy is None
    assert found[0].accuracy == 0
