"""Benchmarks: error bars against known answers, figures against slow ones, the one JSON line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from decoder.config import make_config
from decoder.decoder import Decoder
from decoder.job import Job
from decoder.models import LoadedModel
from decoder.replay import score_path
from decoder.sampling import SamplingConfig
from eval.bench_decode import Timing, bench_decode, run_generate, run_loop, take_turns
from eval.bench_steer import bench_steer, sample
from eval.report import Target, emit
from eval.stats import STATISTICS, Estimate, bootstrap, expected_best_of, paired_difference
from prompts import builtin
from tests.heads import as_lm, save_arm, tiny_arm
from tests.source import ROOT
from tests.tiny import tiny_llama, tiny_tokenizer

TEXTS = ["The kettle sang", "A", "She thought the film was bad, but"]


def numbers(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, n)


# Error bars.


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    """For many normal numbers the bootstrap gives mean +- 1.96 standard errors."""
    units = numbers(400)
    found = bootstrap(units)
    error = units.std(ddof=1) / math.sqrt(len(units))
    assert found.value == pytest.approx(units.mean())
    assert found.n == 400
    assert found.low == pytest.approx(units.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(units.mean() + 1.96 * error, abs=0.1 * error)
    assert found.interval == [found.low, found.high]


def test_the_interval_is_scipys() -> None:
    """Against another implementation of the same percentile bootstrap, for a mean and a median."""
    stats = pytest.importorskip("scipy.stats")
    units = numbers(60) ** 2
    for statistic in (np.mean, np.median):
        theirs = stats.bootstrap(
            (units,), statistic, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
        ).confidence_interval
        ours = bootstrap(units, statistic)
        width = theirs.high - theirs.low
        assert ours.low == pytest.approx(theirs.low, abs=0.08 * width)
        assert ours.high == pytest.approx(theirs.high, abs=0.08 * width)


def test_the_interval_covers_the_truth() -> None:
    """In 95 of 100 experiments, give or take, the interval holds the true mean."""
    held = sum(
        found.low <= 3.0 <= found.high for found in (bootstrap(numbers(80, seed)) for seed in range(100))
    )
    assert 88 <= held <= 99


def test_units_are_rows_not_entries() -> None:
    """Samples of one prompt are drawn together: copies of a unit's numbers do not narrow the interval."""
    units = numbers(50)
    assert bootstrap(np.repeat(units[:, None], 8, axis=1)) == bootstrap(units)


def test_pairs_are_compared_pair_by_pair() -> None:
    """What the pairs share cancels: a small constant gain shows in numbers that vary a hundred times more."""
    before = 100 * numbers(40)
    gain = np.full(40, 0.5) + 0.01 * numbers(40, seed=1)
    found = paired_difference(before + gain, before)
    assert found.value == pytest.approx(gain.mean())
    assert 0.5 < found.low < found.value < found.high < 0.6


def test_the_p_of_a_difference_is_the_t_test_s() -> None:
    """Against scipy's paired t test, for differences of every size; 1 where nothing differs."""
    stats = pytest.importorskip("scipy.stats")
    before, noise = numbers(200), numbers(200, seed=1) - 3.0
    for shift in (0.0, 0.1, 0.2, 0.3, 0.5):
        after = before + shift + noise
        expected = stats.ttest_rel(after, before).pvalue
        assert paired_difference(after, before).p == pytest.approx(expected, abs=0.03)
    assert paired_difference(before, before).p == 1.0
    with pytest.raises(ValueError, match="do not pair"):
        paired_difference(before, before[1:])


def test_a_ratio_is_resampled_as_a_ratio() -> None:
    """Perplexity from sums: the figure is exact, and pairing keeps what both share out of the interval."""
    tokens = np.random.default_rng(0).integers(5, 40, 300).astype(float)
    units = np.stack([2.0 * tokens + numbers(300), tokens], axis=1)
    found = bootstrap(units, STATISTICS["exp_ratio"])
    assert found.value == pytest.approx(math.exp(units[:, 0].sum() / tokens.sum()))
    worse = units + [[0.1, 0.0]] * tokens[:, None] ** np.array([[1.0, 0.0]])
    paired = paired_difference(worse, units, STATISTICS["exp_ratio"])
    assert paired.value == pytest.approx(found.value * (math.exp(0.1) - 1))
    assert paired.high - paired.low < found.high - found.low
    assert paired.p < 0.001


@pytest.mark.parametrize("ties", [False, True])
def test_expected_best_of_n_is_the_mean_over_all_subsets(ties: bool) -> None:
    """Against every subset in turn; a tie counts the tied ones alike."""
    draw = np.random.default_rng(0)
    proxy = draw.integers(0, 3, 8).astype(float) if ties else draw.normal(size=8)
    gold = draw.normal(size=8)
    for n in range(1, 9):
        best = [
            gold[list(chosen)][proxy[list(chosen)] == proxy[list(chosen)].max()].mean()
            for chosen in combinations(range(8), n)
        ]
        assert expected_best_of(proxy, gold, n) == pytest.approx(np.mean(best))
    for n in (0, 9):
        with pytest.raises(ValueError, match=f"best of {n}"):
            expected_best_of(proxy, gold, n)


def test_expected_best_of_many_uniform_samples() -> None:
    """The mean of the highest of n among N evenly spread scores is n (N + 1) / ((n + 1) N)."""
    scores = np.arange(1, 2001) / 2000
    assert expected_best_of(scores, scores, 25) == pytest.approx(25 * 2001 / (26 * 2000))


def test_an_estimate_is_reproducible_and_needs_units() -> None:
    """The same units give the same interval, another seed another; none are an error; one is a point."""
    units = numbers(30)
    assert bootstrap(units) == bootstrap(list(units)) != bootstrap(units, seed=1)
    with pytest.raises(ValueError, match="no units"):
        bootstrap([])
    assert bootstrap([4.0]) == Estimate(4.0, 4.0, 4.0, 1)


# The report.


def last_line(out: str) -> dict[str, Any]:
    """Return the JSON object of the last line, which is the whole of standard output."""
    assert out.endswith("\n")
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(found) == ["benchmark", "versions", "settings", "rows", "checks"]
    assert {"python", "torch", "transformers", "tiller-lm"} <= set(found["versions"])
    for check in found["checks"].values():
        assert list(check) == ["value", "interval", "target", "ok"]
    return found


def test_a_report_is_a_table_and_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    """People read standard error, programs one line of standard output; `ok` says value >= target."""
    rows = [
        {"batch": 1, "rate": 12.3456, "interval": [12.0, 13.0]},
        {"batch": 8, "rate": 2.0, "interval": [1.0, 3.0]},
    ]
    reached, missed = Target(Estimate(0.97, 0.9, 1.0, 7), 0.97), Target(Estimate(0.9, 0.8, 1.1, 7), 1.0)
    emit("toy", rows, {"reached": reached, "missed": missed}, {"seed": 0})
    out, err = capsys.readouterr()
    found = last_line(out)
    assert (found["benchmark"], found["rows"], found["settings"]) == ("toy", rows, {"seed": 0})
    assert found["checks"]["reached"] == {"value": 0.97, "interval": [0.9, 1.0], "target": 0.97, "ok": True}
    assert found["checks"]["missed"]["ok"] is False
    assert "12.35" in err
    assert "MISS missed: 0.900 [0.800, 1.100], target 1" in err
    assert "ok  reached" in err


def test_a_narrow_terminal_loses_no_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    emit("toy", [{"one": "0.12345678 [0.1, 0.2]", "two": "0.87654321 [0.8, 0.9]"}], {}, {})
    cells = [line.split("│")[1:3] for line in capsys.readouterr().err.splitlines() if line.startswith("│")]
    one, two = ("".join(cell.strip() for cell in column) for column in zip(*cells, strict=True))
    assert one.replace(" ", "") == "0.12345678[0.1,0.2]"
    assert two.replace(" ", "") == "0.87654321[0.8,0.9]"


# Speed.


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """A tiny model that ends its texts at every second token: a benchmark must not let it."""
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.generation_config.eos_token_id = list(range(0, 300, 2))
    model.generation_config.repetition_penalty = 1.3
    return Decoder(LoadedModel(as_lm(model, tokenizer), tokenizer))


@pytest.fixture(scope="module")
def reward(tiny_model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_arm(tmp_path_factory.mktemp("heads") / "kind", tiny_model, tiny_tokenizer())


@pytest.mark.parametrize("run", [run_generate, run_loop], ids=["generate", "loop"])
def test_every_method_does_the_same_work(decoder: Decoder, run: Callable[[Decoder, Job], Timing]) -> None:
    """One row a token and prompt, to the full length: no end token and no penalty favours either side."""
    ids = [decoder.tokenizer(text).input_ids for text in TEXTS]
    job = Job(ids, [(i, 0) for i in range(3)], range(3), [], SamplingConfig(top_k=20), 9, seed=0)
    timing = run(decoder, job)
    assert timing.rows == 3 * 9
    assert 0 < timing.first < timing.total


def test_methods_take_turns() -> None:
    """Each method runs once a round, the first round is dropped, and none always goes first."""
    order: list[str] = []

    def method(name: str) -> Callable[[], Timing]:
        def run() -> Timing:
            order.append(name)
            return Timing(0.0, float(len(order)), 1, 0)

        return run

    ticks: list[int] = []
    times = take_turns({name: method(name) for name in "abc"}, 3, lambda: ticks.append(1))
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert {name: [t.total for t in found] for name, found in times.items()} == {
        "a": [6.0, 8.0, 10.0],
        "b": [4.0, 9.0, 11.0],
        "c": [5.0, 7.0, 12.0],
    }
    assert len(ticks) == 12


def test_bench_decode(decoder: Decoder, reward: Path) -> None:
    """A row for each method and batch size, a check for each promise, with its target."""
    rows, checks, settings = bench_decode(decoder, str(reward), [1, 32], 3, 2, 20)
    assert [(row["batch"], row["method"]) for row in rows] == [
        (size, name) for size in (1, 32) for name in ("generate", "plain", "steered")
    ]
    for row in rows:
        assert row["rows_per_token"] == 1.0
        assert row["interval"][0] <= row["tokens_per_second"] <= row["interval"][1]
        assert row["first_token_ms"] > 0
    assert {name: check.at_least for name, check in checks.items()} == {
        "steered/unsteered throughput, batch 1": 0.95,
        "unsteered/generate throughput, batch 1": 1.0,
        "steered/unsteered throughput, batch 32": 0.97,
        "unsteered/generate throughput, batch 32": 1.0,
    }
    assert all(0 < check.measured.value < 100 for check in checks.values())
    assert settings["process_peak_mb"] > 10
    json.dumps(settings)


# The effect of beta.


@pytest.mark.parametrize("output", ["log_probability", "probability"])
@pytest.mark.parametrize("beta", [-2.0, 0.0, 3.0])
def test_figures_are_those_of_the_texts(tiny_model: PreTrainedModel, beta: float, output: str) -> None:
    """P(attribute), log-probability and length of each sample, against the finished texts read again."""
    tokenizer = tiny_tokenizer()
    decoder = Decoder(LoadedModel(as_lm(tiny_model, tokenizer), tokenizer))
    arm = tiny_arm(decoder.lm, output=output)
    config = make_config({"max_new_tokens": 5, "num_return_sequences": 3, "batch_size": 4})
    ids = [tokenizer(text).input_ids for text in TEXTS]
    found = sample(decoder, arm, beta, ids, config, lambda: None)
    assert found.shape == (3, 3, 3)
    if beta:
        texts = decoder.generate(TEXTS, reward=arm, beta=beta, max_new_tokens=5, num_return_sequences=3)
    else:
        texts = decoder.generate(TEXTS, top_k=20, max_new_tokens=5, num_return_sequences=3)
    for p, generation in enumerate(texts):
        for s, done in enumerate(generation.samples):
            tokens = list(done.token_ids)
            (values,) = score_path(decoder.lm, arm, [ids[p]], [tokens])
            expected = math.exp(values[-1]) if output == "log_probability" else values[-1]
            with torch.no_grad():
                logits = tiny_model(torch.tensor([ids[p] + tokens])).logits[0, len(ids[p]) - 1 : -1]
            logprob = float(logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum())
            assert found[p, s] == pytest.approx([expected, logprob, len(tokens)], abs=1e-3)


def test_bench_steer(tiny_model: PreTrainedModel, reward: Path) -> None:
    """A row for each beta and for 0, a gain over it by pairs, and the check at beta 1 if it was run."""
    tokenizer = tiny_tokenizer()
    decoder = Decoder(LoadedModel(as_lm(tiny_model, tokenizer), tokenizer))
    config = make_config({"max_new_tokens": 4, "num_return_sequences": 2, "batch_size": 16})
    asked = builtin("neutral")[:12]
    rows, checks, settings = bench_steer(decoder, str(reward), asked, config, [4.0, -4.0, 1.0])
    assert [row["beta"] for row in rows] == [-4.0, 0.0, 1.0, 4.0]
    means = [row["mean_p"] for row in rows]
    assert means == sorted(means)
    assert (rows[1]["gain"], rows[1]["gain_interval"]) == (0.0, [0.0, 0.0])
    assert rows[3]["gain"] == pytest.approx(means[3] - means[1])
    assert all(row["perplexity"] > 1 and row["tokens_per_second"] > 0 for row in rows)
    (check,) = checks.values()
    assert check.measured.value == pytest.approx(rows[2]["gain"])
    assert check.at_least == pytest.approx(rows[2]["gain_interval"][1] - rows[2]["gain_interval"][0])
    assert bench_steer(decoder, str(reward), asked, config, [4.0])[1] == {}
    assert settings["prompts"] == 12
    json.dumps([rows, settings])


# The commands.


@pytest.mark.parametrize(
    ("arguments", "benchmark", "rows"),
    [
        (["decode", "--batch-size", "2", "--max-new-tokens", "3", "--rounds", "2"], "decode", 3),
        (
            ["steer", "--limit", "4", "-n", "2", "--max-new-tokens", "3", "--beta", "1", "--beta", "-1"],
            "steer",
            3,
        ),
    ],
    ids=["decode", "steer"],
)
def test_the_commands(tiny_dir: Path, reward: Path, arguments: list[str], benchmark: str, rows: int) -> None:
    """Nothing but the JSON line on standard output, a table on standard error, exit 0 whatever it says."""
    done = subprocess.run(
        [sys.executable, "-m", "eval.bench", *arguments, "--model", str(tiny_dir), "--reward", str(reward)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = last_line(done.stdout)
    assert found["benchmark"] == benchmark
    assert len(found["rows"]) == rows
    assert found["checks"]
    assert "Traceback" not in done.stderr
