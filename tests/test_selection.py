"""Choosing among samples, measured: against brute force over subsets, closed forms and naive decoding."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from decoder.contracts import UserError
from decoder.dropping import Dropping, DropSchedule
from decoder.halving import is_decided, survivors
from eval.dropping_curve import dropping_curve, full_run, schedule_text, simulate
from eval.selection import (
    best_of_curve,
    best_of_difference,
    best_of_units,
    gap_closed,
    is_binary,
    kl_bound,
    pooled_auc,
    scorer_figures,
    share_of_gap,
    winner_agreement,
    within_auc,
    within_spearman,
)
from eval.stats import bootstrap, expected_best_of, paired_difference

NAN = float("nan")


def brute_best_of(scores: Sequence[float], gold: Sequence[float], k: int) -> float:
    """Walk all subsets; a tie shares its mean gold, a NaN score is below all others."""
    keys = [(not math.isnan(score), 0 if math.isnan(score) else score) for score in scores]
    found = []
    for subset in combinations(range(len(keys)), k):
        best = max(keys[i] for i in subset)
        tied = [i for i in subset if keys[i] == best]
        found.append(np.mean([gold[i] for i in tied]))
    return float(np.mean(found))


def groups(seed: int, prompts: int = 30, samples: int = 8, skill: float = 1.0) -> tuple[Any, Any]:
    """Scores (P, N) that know something of gold (P, N), which is 0 or 1."""
    random = np.random.default_rng(seed)
    gold = (random.random((prompts, samples)) < random.random((prompts, 1))).astype(float)
    return skill * gold + random.normal(size=gold.shape), gold


# BoN@k.


@pytest.mark.parametrize("values", [3, 1000])  # many ties, hardly any
def test_best_of_units_is_brute_force(values: int) -> None:
    random = np.random.default_rng(values)
    scores, gold = random.integers(values, size=(5, 6)).astype(float), random.normal(size=(5, 6))
    scores[1, 2] = scores[1, 4] = scores[2, 0] = NAN
    scores[2, 1], scores[3] = -np.inf, NAN
    found = best_of_units(scores, gold, range(1, 7))
    expected = [[brute_best_of(s, g, k) for k in range(1, 7)] for s, g in zip(scores, gold, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_best_of_units_is_expected_best_of() -> None:
    scores, gold = groups(1, prompts=20, samples=40)
    scores = scores.round(1)  # some ties
    ks = (1, 2, 7, 39, 40)
    expected = [[expected_best_of(s, g, k) for k in ks] for s, g in zip(scores, gold, strict=True)]
    np.testing.assert_allclose(best_of_units(scores, gold, ks), expected, atol=1e-12)


def test_the_oracle_has_a_closed_form() -> None:
    """Of c right samples among N, k drawn miss them all with C(N - c, k) / C(N, k)."""
    gold = np.array([[1.0] * right + [0.0] * (8 - right) for right in range(9)])
    for k in (1, 3, 8):
        expected = [1 - math.comb(8 - right, k) / math.comb(8, k) for right in range(9)]
        np.testing.assert_allclose(best_of_units(gold, gold, (k,))[:, 0], expected)


def test_a_constant_scorer_chooses_at_random() -> None:
    _, gold = groups(2)
    curve = best_of_curve(np.zeros_like(gold), gold, (1, 4, 8))
    assert [each.value for each in curve.estimates] == pytest.approx([gold.mean()] * 3)
    assert gap_closed(np.zeros_like(gold), gold).value == pytest.approx(0, abs=1e-12)


def test_the_curve_has_stats_intervals() -> None:
    scores, gold = groups(3)
    units = best_of_units(scores, gold, (1, 8))
    curve = best_of_curve(scores, gold, (1, 8))
    assert curve.at(8) == bootstrap(units[:, 1])
    assert curve.at(1).value == pytest.approx(gold.mean())
    assert curve.at(8).n == len(gold)


def test_groups_may_be_ragged() -> None:
    """A sample without gold is as if it had not been; a prompt with too few samples is left out at that k."""
    scores = [[1.0, 2.0, 9.0], [3.0], [5.0, 4.0], [1.0]]
    gold = [[0.0, 1.0, NAN], [1.0], [1.0, 0.0], [NAN]]
    units = best_of_units(scores, gold, (1, 2, 3))
    np.testing.assert_array_equal(units, [[0.5, 1, NAN], [1, NAN, NAN], [0.5, 1, NAN], [NAN, NAN, NAN]])
    curve = best_of_curve(scores, gold, (1, 2, 3))
    assert [each.n for each in curve.estimates] == [3, 2, 0]
    assert math.isnan(curve.at(3).value)
    assert gap_closed(scores, gold).value == 1.0
    assert gap_closed(scores, gold).n == 3


def test_speed() -> None:
    """Twelve scorers of 400 prompts with 16 samples, every k: the units alone, without intervals."""
    scores, gold = groups(4, prompts=400, samples=16)
    began = time.process_time()
    for _ in range(12):
        best_of_units(scores, gold, range(1, 17))
    assert time.process_time() - began < 3


# The gap, and differences.


def test_gap_closed_by_hand() -> None:
    """BoN@1 is 0.5, the oracle 1, and the scorer right in three of four."""
    gold = np.array([[0.0, 1.0]] * 4)
    scores = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [2.0, 1.0]])
    found = gap_closed(scores, gold)
    assert found.value == pytest.approx(0.5)
    assert found.n == 4
    units = np.stack([[1, 1, 1, 0], [0.5] * 4, [1] * 4], axis=1)
    assert found == bootstrap(units, share_of_gap)
    assert gap_closed(gold, gold).value == 1.0
    assert gap_closed(-gold, gold).value == -1.0
    assert gap_closed(scores, gold, k=2).value == found.value


def test_there_may_be_no_gap() -> None:
    found = gap_closed(np.ones((3, 4)), np.ones((3, 4)))
    assert math.isnan(found.value)
    assert found.n == 0
    assert math.isnan(gap_closed([[1.0]], [[1.0]]).value)


def test_a_gap_in_one_prompt_of_two_has_no_interval() -> None:
    """A quarter of the resamples have no gap at all, so nothing is claimed."""
    found = gap_closed([[1.0, 2.0], [1.0, 2.0]], [[0.0, 1.0], [1.0, 1.0]])
    assert found.value == 1.0
    assert math.isnan(found.low)


def test_differences_are_paired() -> None:
    scores, gold = groups(5, prompts=40)
    worse = scores - 1.5 * gold
    found = best_of_difference(scores, worse, gold)
    picked = [gold[np.arange(40), each.argmax(axis=1)] for each in (scores, worse)]
    assert found == paired_difference(*picked)
    assert best_of_difference(scores, scores, gold).value == 0
    assert math.isnan(best_of_difference(scores, worse, gold, k=9).value)


# AUC, rank correlation, agreement.


def test_aucs_are_sklearns() -> None:
    scores, gold = groups(6)
    scores = scores.round(1)
    scores[0, :3] = NAN
    scored = ~np.isnan(scores)
    found = pooled_auc(scores, gold)
    assert found.value == pytest.approx(roc_auc_score(gold[scored], scores[scored]))
    assert found.low < found.value < found.high
    inside = [
        roc_auc_score(g[s], v[s]) for v, g, s in zip(scores, gold, scored, strict=True) if 0 < g[s].mean() < 1
    ]
    assert within_auc(scores, gold).value == pytest.approx(np.mean(inside))
    assert within_auc(scores, gold).n == len(inside)


def test_the_pooled_interval_resamples_prompts() -> None:
    scores, gold = groups(7, prompts=12, samples=4)
    scores = scores.round()

    def naive(picks: NDArray[Any]) -> float:
        drawn, right = scores[picks.astype(int)].ravel(), gold[picks.astype(int)].ravel() == 1
        ahead = drawn[right][:, None] - drawn[~right]
        return float(((ahead > 0) + (ahead == 0) / 2).mean())

    found, expected = pooled_auc(scores, gold), bootstrap(np.arange(12), naive)
    assert [found.value, *found.interval] == pytest.approx([expected.value, *expected.interval])


def test_spearman_is_scipys() -> None:
    random = np.random.default_rng(8)
    gold = random.integers(4, size=(10, 6)).astype(float)
    scores = gold + random.integers(4, size=(10, 6))
    scores[3], gold[4], scores[5, 0] = 1.0, 2.0, NAN
    whole = [i for i in range(10) if i not in (3, 4)]
    expected = [stats.spearmanr(scores[i], gold[i], nan_policy="omit").statistic for i in whole]
    found = within_spearman(scores, gold)
    assert found.value == pytest.approx(np.mean(expected))
    assert found.n == 8


def test_one_class_has_no_auc() -> None:
    assert math.isnan(pooled_auc([[1.0, 2.0]], [[1.0, 1.0]]).value)
    assert math.isnan(within_auc([[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [0.0, 0.0]]).value)
    assert pooled_auc([[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [0.0, 0.0]]).value == 0


def test_auc_needs_right_and_wrong() -> None:
    assert is_binary([[0.0, 1.0], [NAN]])
    assert not is_binary([[0.0, 0.5]])
    for measure in (pooled_auc, within_auc):
        with pytest.raises(UserError, match="AUC needs a gold of 0 or 1"):
            measure([[1.0, 2.0]], [[0.2, 0.8]])


def test_winner_agreement() -> None:
    first = [[1.0, 2.0], [2.0, 2.0], [NAN, NAN], [1.0, NAN]]
    second = [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    found = winner_agreement(first, second)
    assert found.value == pytest.approx(1 / 3)
    assert found.n == 3
    assert math.isnan(winner_agreement([[NAN]], [[1.0]]).value)


def test_kl_bound() -> None:
    assert kl_bound(1) == 0
    assert kl_bound(16) == pytest.approx(math.log(16) - 15 / 16)
    with pytest.raises(UserError, match="best of 0 samples"):
        kl_bound(0)


def test_all_figures_of_a_scorer() -> None:
    scores, gold = groups(9)
    found = scorer_figures(scores, gold, (1, 8))
    assert found.curve == best_of_curve(scores, gold, (1, 8))
    assert found.pooled_auc == pooled_auc(scores, gold)
    golden = scorer_figures(scores, gold + 0.5, (1, 8))
    assert math.isnan(golden.pooled_auc.value)
    assert golden.within_spearman.value == pytest.approx(found.within_spearman.value)


@pytest.mark.parametrize(
    ("scores", "gold", "said"),
    [
        ([], [], "scores of 0 and 0 prompts; give both for the same, at least 1"),
        ([[1.0]], [[1.0], [0.0]], "scores of 1 and 2 prompts"),
        ([[1.0], [1.0, 2.0]], [[1.0], [1.0]], r"prompt 1: scores of shape \(2,\) and \(1,\)"),
    ],
)
def test_groups_that_do_not_match_are_refused(scores: Any, gold: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        best_of_curve(scores, gold, (1,))


def test_best_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="best of 0 samples; give 1 or more"):
        best_of_curve([[1.0]], [[1.0]], (0, 1))


# The rules of early dropping.


@pytest.mark.parametrize(
    ("scores", "alive", "keep", "kept"),
    [
        ([1, 3, 2, 4], [1, 1, 1, 1], 0.5, [0, 1, 0, 1]),
        ([1, 3, 2, 4], [1, 1, 1, 0], 0.5, [0, 1, 1, 0]),  # half of three is two
        ([2, 2, 2, 2], [1, 1, 1, 1], 0.5, [1, 1, 0, 0]),
        ([2, 2, 2, 2], [0, 1, 1, 1], 0.3, [0, 1, 0, 0]),
        ([NAN, 1, -np.inf], [1, 1, 1], 0.6, [0, 1, 1]),
        ([NAN, NAN], [1, 1], 0.5, [1, 0]),
        (range(25), [1] * 25, 0.28, [0] * 18 + [1] * 7),  # 0.28 * 25 is more than 7 in floats
        ([1], [1], 0.01, [1]),
        ([1, 2], [0, 0], 0.5, [0, 0]),
        ([1, 2], [1, 1], 1, [1, 1]),
    ],
)
def test_survivors(scores: Any, alive: Any, keep: float, kept: Any) -> None:
    found = survivors(np.array(scores, dtype=float), np.array(alive, dtype=bool), keep)
    assert found.tolist() == [bool(each) for each in kept]


@pytest.mark.parametrize(
    ("scores", "alive", "margin", "decided"),
    [
        ([1.0, 0.5, 0.0], [1, 1, 1], 0.5, True),
        ([1.0, 0.5, 0.0], [1, 1, 1], 0.51, False),
        ([1.0, 0.5, 0.0], [1, 0, 1], 0.51, True),
        ([1.0, 1.0], [1, 1], 0.0, True),
        ([NAN, 1.0], [1, 1], 0.1, False),
        ([NAN, 1.0], [0, 1], 0.1, True),
        ([NAN], [1], 0.1, False),
        ([np.inf, np.inf], [1, 1], 0.1, False),
        ([np.inf, -np.inf], [1, 1], 0.1, True),
        ([1.0], [0], 0.1, False),
    ],
)
def test_is_decided(scores: Any, alive: Any, margin: float, decided: bool) -> None:
    assert is_decided(np.array(scores), np.array(alive, dtype=bool), margin) is decided


def test_rules_refuse_what_makes_no_sense() -> None:
    one = np.ones(1)
    for keep in (0, -0.5, 1.5, NAN):
        with pytest.raises(UserError, match="above 0, at most 1"):
            survivors(one, one == 1, keep)
    for margin in (-1, NAN):
        with pytest.raises(UserError, match="give a margin of 0 or more"):
            is_decided(one, one == 1, margin)


# Early dropping.

SCHEDULES = [
    DropSchedule(),
    DropSchedule(at=(3,)),
    DropSchedule(at=(1, 2, 5, 40), keep=0.6),
    DropSchedule(margin=0.8, first=2),
    DropSchedule(at=(4,), margin=0.5, first=1),
    DropSchedule(at=(2, 4), keep=0.3, margin=2.0, first=3),
]


def make_runs(seed: int, samples: int = 6) -> list[NDArray[Any]]:
    """Random walks of several lengths, coarse enough to tie."""
    random = np.random.default_rng(seed)
    return [random.normal(size=random.integers(1, 9)).cumsum().round(1) for _ in range(samples)]


def naive_run(runs: Sequence[NDArray[Any]], schedule: DropSchedule) -> tuple[int, int]:
    """Draw token after token; count each one that somebody still in the race draws."""
    racing, tokens = list(range(len(runs))), 0
    for count in range(1, max(map(len, runs)) + 1):
        tokens += sum(len(runs[i]) >= count for i in racing)
        best_first = sorted(racing, key=lambda i: (-runs[i][min(count, len(runs[i])) - 1], i))
        now = [runs[i][min(count, len(runs[i])) - 1] for i in best_first]
        if count in schedule.at:
            best_first = best_first[: math.ceil(round(schedule.keep * len(best_first), 9))]
        if schedule.margin is not None and count >= schedule.first and len(best_first) > 1:
            best_first = best_first[:1] if now[0] - now[1] >= schedule.margin else best_first
        racing = sorted(best_first)
    return tokens, max(racing, key=lambda i: (runs[i][-1], -i))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=schedule_text)
def test_simulate_is_decoding_token_by_token(schedule: DropSchedule) -> None:
    for seed in range(60):
        found = simulate(make_runs(seed), schedule)
        assert (found.tokens, found.winner) == naive_run(make_runs(seed), schedule), seed


@pytest.mark.parametrize("schedule", SCHEDULES, ids=schedule_text)
def test_simulate_is_what_the_decoder_does(schedule: DropSchedule) -> None:
    """The decoder's own referee, asked after every token of two prompts in one batch."""
    prompts = [make_runs(seed) for seed in (70, 71)]
    runs = [run for prompt in prompts for run in prompt]
    referee = Dropping(schedule, [0] * 6 + [1] * 6)
    live, cost, dropped, index = list(range(12)), [0] * 12, set(), 0
    while live:
        scores = torch.tensor([runs[row][index] for row in live])
        ended = [len(runs[row]) == index + 1 for row in live]
        out = referee.give_up(index, torch.tensor(live), scores, ended)
        for row in live:
            cost[row] += 1
        dropped |= {row for row, gone in zip(live, out, strict=True) if gone}
        live = [row for row, gone, end in zip(live, out, ended, strict=True) if not (gone or end)]
        index += 1
    for number, prompt in enumerate(prompts):
        found = simulate(prompt, schedule)
        assert found.tokens == sum(cost[6 * number : 6 * number + 6])
        assert 6 * number + found.winner not in dropped


def test_simulate_by_hand() -> None:
    """Sample 1 would have won, and is behind after two tokens; sample 2 has ended and costs nothing more."""
    runs = [[0.5, 0.6, 0.6, 0.6], [0.1, 0.2, 0.9, 0.9], [0.7], [0.0, 0.0, 0.0]]
    assert full_run(runs).winner == 1
    assert full_run(runs).tokens == 12
    found = simulate(runs, DropSchedule(at=(2,)))
    assert (found.tokens, found.winner) == (4 + 2 + 1 + 2, 2)


def test_simulate_one_sample_and_nan() -> None:
    assert simulate([[0.1, 0.2]], DropSchedule(at=(1,), margin=1.0)).tokens == 2
    found = simulate([[NAN, NAN, 0.9], [0.1, 0.1, 0.1]], DropSchedule(at=(1,)))
    assert (found.tokens, found.winner) == (4, 1)
    waits = simulate([[NAN, NAN, 0.9], [0.1, 0.1, 0.1]], DropSchedule(margin=0.1))
    assert (waits.tokens, waits.winner) == (6, 0)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([], r"no sample to choose from \(N = 0\)"),
        ([[1.0], []], "sample 1 has no running score"),
        ([[NAN], [NAN]], "all 2 scores are NaN"),
    ],
)
def test_simulate_refuses(runs: Any, said: str) -> None:
    for run in (full_run, lambda runs: simulate(runs, DropSchedule())):
        with pytest.raises(UserError, match=said):
            run(runs)


def test_dropping_curve_by_hand() -> None:
    runs = [[[0.1, 0.9], [0.5, 0.5]], [[0.5, 0.9], [0.1, 0.1]]]
    gold = [[1.0, 0.0], [1.0, 0.0]]
    drop_nothing, halve = dropping_curve(runs, gold, [DropSchedule(), DropSchedule(at=(1,))])
    assert [drop_nothing.tokens.value, drop_nothing.gain.value, drop_nothing.agreement.value] == [1, 1, 1]
    assert halve.tokens.value == 6 / 8
    assert halve.gain.value == 0  # (0.5 - 0.5) / (1 - 0.5)
    assert halve.agreement.value == 0.5
    assert halve.tokens.n == halve.gain.n == halve.agreement.n == 2


def test_dropping_curve_is_the_sum_of_its_prompts() -> None:
    prompts = [make_runs(seed) for seed in range(25)]
    gold = [np.array([run[-1] + (seed % 3) for run in runs]) for seed, runs in enumerate(prompts)]
    gold[3][1] = NAN
    (point,) = dropping_curve(prompts, gold, [SCHEDULES[1]])
    naive = [naive_run(runs, SCHEDULES[1]) for runs in prompts]
    whole = [naive_run(runs, DropSchedule()) for runs in prompts]
    assert point.tokens.value == sum(n for n, _ in naive) / sum(n for n, _ in whole)
    assert point.agreement.value == np.mean([a[1] == b[1] for a, b in zip(naive, whole, strict=True)])
    used = [i for i in range(25) if i != 3]
    start = sum(gold[i].mean() for i in used)
    reached, goal = (sum(gold[i][runs[i][1]] for i in used) for runs in (naive, whole))
    assert point.gain.value == pytest.approx((reached - start) / (goal - start))
    assert point.gain.low <= point.gain.value <= point.gain.high


def test_dropping_curve_without_a_gain() -> None:
    (point,) = dropping_curve([[[1.0], [2.0]]], [[1.0, 1.0]], [DropSchedule()])
    assert math.isnan(point.gain.value)
    assert point.agreement.value == 1


@pytest.mark.parametrize(
    ("runs", "gold", "said"),
    [
        ([], [], "scores of 0 and gold of 0 prompts"),
        ([[[1.0]]], [[1.0, 0.0]], r"prompt 0: 1 runs and gold of shape \(2,\)"),
        ([[[1.0]], [[NAN]]], [[1.0], [1.0]], "prompt 1: all 1 scores are NaN"),
    ],
)
def test_dropping_curve_refuses(runs: Any, gold: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        dropping_curve(runs, gold, [DropSchedule()])


def test_schedules_are_named() -> None:
    assert schedule_text(SCHEDULES[0]) == "drop nothing"
    assert schedule_text(SCHEDULES[5]) == "keep 30 % at 2, 4; stop at a lead of 2 from 3"
