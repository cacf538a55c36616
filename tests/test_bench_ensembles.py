"""Ensembles under label noise: their figures by the slow way, what is said of them, and their picture."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

pytest.importorskip("pyarrow")

from decoder.cli import make_group, run
from decoder.contracts import UserError
from eval.bench_ensembles import (
    EnsembleBench,
    EnsemblePlan,
    JudgedRows,
    RuleFigures,
    bench_ensembles,
    judged_rows,
    rule_figures,
    rule_scores,
    score_figures,
)
from eval.bench_ensembles_command import LISTS, ensembles
from eval.ensembles_report import checks, lines, panels, summarise
from eval.head_measures import head_measures
from eval.overoptimisation_picture import GainCurve, _figure, draw_overoptimisation
from eval.selection import kl_bound
from eval.stats import Estimate, paired_difference
from eval.synthetic_embeddings import make_synthetic
from rewards.head_inputs import split_targets
from rewards.heads import make_head
from rewards.store import Store, open_store
from rewards.sweep_cells import Bench, run_group, targets_of
from rewards.sweep_grid import Grid
from tests.sweeps import make_store

Floats = NDArray[Any]
NS = (1, 2, 4, 8)
KAPPA = 0.7
PLAN = EnsemblePlan(
    head="bt-linear", n_pairs=80, flip_rates=(0.2,), members=3, kappas=(KAPPA,), seeds=2, ns=NS
)
APP = make_group({"ensembles": ensembles}, lists={"ensembles": LISTS})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """40 prompts of 6 samples to train on, 7 of 8 and one of 9 to test on."""
    return make_store(tmp_path_factory.mktemp("ensembles") / "store", [6] * 40 + [8] * 7 + [9])


@pytest.fixture(scope="module")
def found(store: Store) -> EnsembleBench:
    return bench_ensembles(store.folder, None, PLAN)


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(APP, ["ensembles", *map(str, arguments)])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


# The slow way.


def naive_rules(members: Floats) -> dict[str, Floats]:
    """Scores (V, M) of members' (E, M), a number at a time."""
    found: dict[str, list[float]] = {"mean": [], "min": [], "mean-var 0.7": [], "mean-std 0.7": []}
    for scores in members.T.tolist():
        mean = sum(scores) / len(scores)
        variance = sum((score - mean) ** 2 for score in scores) / len(scores)
        found["mean"].append(mean)
        found["min"].append(min(scores))
        found["mean-var 0.7"].append(mean - KAPPA * variance)
        found["mean-std 0.7"].append(mean - KAPPA * math.sqrt(variance))
    return {"single": members} | {rule: np.array([scores]) for rule, scores in found.items()}


def naive_best_of(scores: Floats, values: Floats, n: int) -> float:
    """The mean value of the highest score, over every subset of n."""
    subsets = list(itertools.combinations(range(len(scores)), n))
    return float(np.mean([values[max(subset, key=lambda row: scores[row])] for subset in subsets]))


def naive_figures(scores: Floats, golden: Floats, prompts: Floats, ns: tuple[int, ...]) -> dict[str, Floats]:
    """Figures (P,) of one head's scores (M,), every subset looked at."""
    deviations = (scores - scores.mean()) / scores.std()
    own = [prompts == prompt for prompt in dict.fromkeys(prompts.tolist())]
    found = {"spearman": np.array([spearmanr(scores[mine], golden[mine]).statistic for mine in own])}
    for n in ns:
        for name, values in (("golden", golden), ("proxy", deviations)):
            units = [naive_best_of(scores[mine], values[mine], n) for mine in own]
            found[f"{name}_at_{n}"] = np.array(units)
    return found


def member_scores(store: Store, plan: EnsemblePlan, seed: int, test: JudgedRows) -> Floats:
    """Members' scores (E, M) from heads that are fitted one by one on the pairs of a sweep's cell."""
    bench, first = sweep(store, plan), seed * plan.members
    targets, found = targets_of(bench, bench.grid.cells()[seed]), []
    learnt = np.unique(split_targets(targets.pairs, targets.owners, 0.05, first).rows)
    for number in range(first, first + plan.members):
        head = make_head(plan.head, seed=number)
        head.fit(store.embeddings(np.arange(len(store))), targets.pairs, targets.owners)
        seen = head.predict(store.embeddings(learnt)).astype(float)
        found.append((head.predict(test.store.embeddings(test.rows)) - seen.mean()) / seen.std())
    return np.array(found)


def sweep(store: Store, plan: EnsemblePlan) -> Bench:
    grid = Grid(
        heads=(plan.head,), pairing=(plan.pairing,), n_pairs=(plan.n_pairs,), seeds=tuple(range(plan.seeds)),
        noise=plan.flip_rates, noise_kind="flip_rate", test_samples=plan.ns[-1], best_of=plan.ns,
    )  # fmt: skip
    return Bench(store, grid, head_measures)


def test_every_figure_is_that_of_the_slow_way(store: Store, found: EnsembleBench) -> None:
    test, left_out = judged_rows(sweep(store, PLAN), PLAN)
    assert (len(np.unique(test.prompts)), len(test.rows), left_out) == (8, 7 * 8 + 9, 0)
    assert test.golden == pytest.approx(store.column("golden")[test.rows])
    (rules,) = found.blocks.values()
    assert list(rules) == ["single", "mean", "min", "mean-var 0.7", "mean-std 0.7"]
    for seed in range(PLAN.seeds):
        for rule, heads in naive_rules(member_scores(store, PLAN, seed, test)).items():
            for head, scores in enumerate(heads):
                slow = naive_figures(scores, test.golden, test.prompts, NS)
                for name, units in slow.items():
                    fast = rules[rule].by_name[name][seed, head]
                    np.testing.assert_allclose(fast, units, atol=1e-4, err_msg=f"{rule} {name}")
    assert np.ptp(rules["single"].by_name["spearman"], axis=1).max() > 0, "members must differ"


def test_the_first_member_is_the_head_of_a_sweep(store: Store, found: EnsembleBench) -> None:
    """Same split, pairs, labels and weights: a sweep's cell of seed 0 is the first member of ensemble 0."""
    bench = sweep(store, PLAN)
    (cell,) = run_group(bench, bench.grid.cells()[:1])
    (rules,) = found.blocks.values()
    single = rules["single"]
    assert single.by_seed("spearman")[0, 0] == pytest.approx(cell.measures["spearman"], abs=1e-6)
    for n in NS:
        assert single.by_seed(f"golden_at_{n}")[0, 0] == pytest.approx(
            cell.measures[f"best_of_{n}"], abs=1e-6
        )
    rates = [result.flip_rate for result in run_group(bench, bench.grid.cells())]
    assert single.flips == pytest.approx(np.mean(rates))
    assert 0.05 < single.flips < 0.4


def test_bounds_are_the_best_and_the_mean(found: EnsembleBench, store: Store) -> None:
    upper, anyone = found.bounds
    golden, prompts = store.column("golden"), store.groups()[0]
    means = [golden[prompts == prompt].mean() for prompt in range(40, 48)]
    best = [golden[prompts == prompt].max() for prompt in range(40, 47)]
    assert anyone.best_n == 1
    for n in NS:
        np.testing.assert_allclose(anyone.by_name[f"golden_at_{n}"][0, 0], means, atol=1e-6)
    np.testing.assert_allclose(upper.by_name["golden_at_8"][0, 0, :7], best, atol=1e-6)
    np.testing.assert_array_equal(upper.by_name["spearman"], 1)
    (rules,) = found.blocks.values()
    for figures in rules.values():
        for n in NS:
            assert (figures.by_name[f"golden_at_{n}"] <= upper.by_name[f"golden_at_{n}"] + 1e-9).all()


# Ensembles of equals, and other heads.


def test_identical_members_give_one_figure_by_every_rule(store: Store) -> None:
    test, _ = judged_rows(sweep(store, PLAN), PLAN)
    one = np.random.default_rng(0).normal(size=len(test.rows))
    scores = rule_scores(np.stack([one] * 4), (0.5, 3.0))
    assert len(scores) == 3 + 4
    single = score_figures(scores["single"], test, NS)
    for rule, heads in scores.items():
        for name, units in score_figures(heads, test, NS).items():
            np.testing.assert_allclose(units, single[name][: len(heads)], atol=1e-6, err_msg=f"{rule} {name}")


def test_one_tree_ensemble_of_one_member_is_that_member(store: Store, tmp_path: Path) -> None:
    """Boosted trees, pairs of two prompts drawn with replacement, another store to test on."""
    pytest.importorskip("lightgbm")
    test = make_store(tmp_path / "test", [8] * 5 + [3], seed=5, prefix="t")
    plan = EnsemblePlan(
        head="lgb-clf", pairing="cross", n_pairs=150, flip_rates=(0.0,), members=1, bootstrap=True, seeds=1,
        ns=(1, 8),
    )  # fmt: skip
    found = bench_ensembles(store.folder, test.folder, plan)
    (rules,) = found.blocks.values()
    for figures in rules.values():
        for name, units in figures.by_name.items():
            np.testing.assert_allclose(units, rules["single"].by_name[name], atol=1e-5)
    assert rules["mean"].estimate("spearman").value > 0.2
    assert rules["mean"].flips == 0
    assert math.isnan(rules["mean"].deviation("spearman")), "one seed deviates from nothing"
    assert found.settings["n_test_prompts"] == 5
    spearman = rules["min"].by_name["spearman"]
    for bootstrap in (True, False):
        again = bench_ensembles(store.folder, test.folder, plan_with(plan, bootstrap=bootstrap))
        same = np.array_equal(again.blocks[0.0]["min"].by_name["spearman"], spearman)
        assert same == bootstrap, "the same seeds give the same figures, and other pairs give others"


def test_prompts_with_unknown_rewards_are_left_out(store: Store) -> None:
    plan = EnsemblePlan(golden="partial", test_samples=8, ns=(1, 7))
    test, left_out = judged_rows(sweep(store, plan_with(plan, ns=(1, 8))), plan)
    known = np.isfinite(store.column("partial"))
    counts = np.bincount(store.groups()[0][known])[40:]
    assert len(np.unique(test.prompts)) == (counts >= 7).sum() > 0
    assert left_out == (counts < 7).sum() > 0
    assert np.isfinite(test.golden).all()


def plan_with(plan: EnsemblePlan, **changes: Any) -> EnsemblePlan:
    return EnsemblePlan(**{name: getattr(plan, name) for name in plan.__slots__} | changes)


# Overoptimisation.


def test_overoptimisation_is_seen_where_it_is() -> None:
    """The score is the golden reward but for one sample, which it likes best and which is worst."""
    prompts = np.repeat(np.arange(6), 8)
    scores = np.tile(np.arange(8.0), 6)
    golden = np.where(scores == 7, -3.0, scores) + prompts
    test = JudgedRows(None, np.arange(48), golden, prompts)  # type: ignore[arg-type]  # nothing is read of it
    figures = rule_figures("single", [score_figures(scores[None], test, NS)], 0.25, 0.25)
    curve = [naive_best_of(scores[:8], golden[:8], n) for n in NS]
    assert [figures.by_name[f"golden_at_{n}"][0, 0, 0] for n in NS] == pytest.approx(curve)
    assert figures.best_n == NS[int(np.argmax(curve))] == 2
    assert figures.estimate("lost").value == pytest.approx(max(curve) - curve[-1])
    assert figures.estimate("last_rise").value == pytest.approx(curve[-1] - curve[-2])
    assert curve[-1] < curve[-2]
    proxy = [figures.estimate(f"proxy_gain_at_{n}").value for n in NS]
    assert proxy == sorted(proxy)
    assert proxy[0] == 0


# Averages, deviations and differences.


def made(rule: str, golden: Floats) -> RuleFigures:
    """A rule whose figures are given: golden (S, V, P, 3), for n 1, 2, 4."""
    seeds = [
        {
            f"{name}_at_{n}": each[..., place]
            for name in ("golden", "proxy")
            for place, n in enumerate((1, 2, 4))
        }
        | {"spearman": each[..., 0] / 10}
        for each in golden
    ]
    return rule_figures(rule, seeds, 0.25, 0.24)


def test_seeds_are_averaged_before_prompts_are_resampled() -> None:
    rng = np.random.default_rng(3)
    one, many = rng.normal(size=(4, 1, 20, 3)) + 1, rng.normal(size=(4, 3, 20, 3))
    mean, single = made("mean", one), made("single", many)
    assert single.estimate("golden_at_4").value == pytest.approx(many[..., 2].mean())
    assert single.estimate("golden_at_4").n == 20
    difference, seeds = mean.minus(single, "golden_at_4")
    slow = paired_difference(
        [one[:, 0, p, 2].mean() for p in range(20)], [many[:, :, p, 2].mean() for p in range(20)]
    )
    assert (difference.value, difference.low, difference.high) == pytest.approx(
        (slow.value, slow.low, slow.high)
    )
    assert seeds == pytest.approx([one[s, 0, :, 2].mean() - many[s, :, :, 2].mean() for s in range(4)])
    lone = [np.std([many[s, v, :, 2].mean() for s in range(4)], ddof=1) ** 2 for v in range(3)]
    assert single.deviation("golden_at_4") == pytest.approx(math.sqrt(sum(lone) / 3))
    assert mean.deviation("golden_at_4") == pytest.approx(one[:, 0, :, 2].mean(1).std(ddof=1))


def test_prompts_that_one_seed_cannot_score_are_left_out() -> None:
    golden = np.random.default_rng(4).normal(size=(2, 1, 6, 3))
    golden[1, 0, 2, 0] = math.nan
    figures = made("mean", golden)
    assert (figures.measure("spearman").scored, figures.measure("spearman").total) == (5, 6)
    kept = [0, 1, 3, 4, 5]
    assert figures.estimate("spearman").value == pytest.approx(golden[:, 0, kept, 0].mean() / 10)
    assert figures.by_seed("spearman")[:, 0] == pytest.approx(np.nanmean(golden[:, 0, :, 0], axis=1) / 10)


def test_what_is_claimed(found: EnsembleBench) -> None:
    """Every rule is compared with both others but itself; claims read those very figures."""
    rng = np.random.default_rng(5)
    rules = {
        rule: made(rule, rng.normal(size=(2, heads, 12, 3)))
        for rule, heads in (("single", 3), ("mean", 1), ("min", 1), ("mean-var 0.5", 1), ("mean-std 0.5", 1))
    }
    plan = EnsemblePlan(flip_rates=(0.25,), ns=(1, 2, 4))
    bench = EnsembleBench(plan, {0.25: rules}, [], {})
    summaries = {each.figures.rule: each for each in summarise(bench)}
    assert {rule: set(each.differences) for rule, each in summaries.items()} == {
        "single": set(), "mean": {"single"}, "min": {"single", "mean"}, "mean-var 0.5": {"single", "mean"},
        "mean-std 0.5": {"single", "mean"},
    }  # fmt: skip
    targets = checks(bench, list(summaries.values()))
    assert len(targets) == 2 * 3
    better = targets["25 % flips: golden at n = 4, min minus single"].measured
    units = [rules[rule].by_name["golden_at_4"].mean(axis=(0, 1)) for rule in ("min", "single")]
    assert better.value == pytest.approx(units[0].mean() - units[1].mean())
    rise = targets["25 % flips: golden at n = 4 minus n = 2, mean"].measured
    assert rise.value == pytest.approx(rules["mean"].by_name["last_rise"].mean())
    (line,) = lines(bench, [summaries["min"]])
    assert line["minus single"].startswith(f"{better.value:.3f} [{better.low:.3f}")
    assert (line["flips"], line["rule"], line["best n"]) == ("25 %", "min", str(rules["min"].best_n))


# The command.


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(
        tmp_path_factory.mktemp("synthetic") / "store", [6] * 40 + [8] * 9, 16, seed=2
    ).folder


def test_the_command_tells_and_writes(
    synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "new" / "out"
    small = ["--head", "bt-linear", "--pairs", 100, "--members", 2, "--seeds", 2]
    noise = ["--flip-rate", 0.1, "--kappa", 2]
    code, out, told = command(capsys, synthetic, *small, *noise, "--ns", 8, 2, 8, "--output", output)
    assert code == 0, told
    report = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    record = json.loads((output / "ensembles.json").read_text())
    assert record == report
    assert report["settings"]["ns"] == [1, 2, 8]
    assert open_store(synthetic).digest == report["settings"]["store_digest"]
    rows = {row["rule"]: row for row in report["rows"]}
    assert list(rows) == [
        "single",
        "mean",
        "min",
        "mean-var 2",
        "mean-std 2",
        "golden itself",
        "random sample",
    ]
    assert rows["single"]["spearman"] < rows["golden itself"]["spearman"] == 1
    assert [point["kl_bound"] for point in rows["min"]["curve"]] == [kl_bound(n) for n in (1, 2, 8)]
    last = rows["min"]["curve"][-1]
    assert last["golden_minus_single"] == pytest.approx(
        last["golden"] - rows["single"]["curve"][-1]["golden"]
    )
    assert rows["min"]["minus_single"]["golden_at_8"]["value"] == last["golden_minus_single"]
    assert np.mean(rows["min"]["minus_single"]["golden_at_8"]["by_seed"]) == pytest.approx(
        last["golden_minus_single"]
    )
    assert rows["random sample"]["spearman"] is None
    page = (output / "ensembles.md").read_text()
    assert "| 10 % | mean-var 2 |" in page
    assert "(overoptimisation.png)" in page
    assert (output / "overoptimisation.png").read_bytes().startswith(b"\x89PNG")
    assert "ensembles" in told


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--flip-rate", 0.6], "flip rate 0.6"),
        (["--kappa", -1], "kappa -1.0"),
        (["--ns", 0, 4], "ns [0, 1, 4] must rise from 1"),
        (["--ns", 1], "ns [1] must rise from 1"),
        (["--head", "bt-mpl"], "did you mean bt-mlp"),
        (["--golden", "gold"], "has no label 'gold'"),
        (["--ns", 64], "leaves 312 rows to train on and 0 to test on"),
        (["--ns", 9, "--test-samples", 8], "no test prompt of store"),
        (["--ns", 8, "--pairs", 100_000], "100000 pairs asked for"),
        (["--ns", 8, "--pairing", "withn"], "'withn'"),
        (["--test", "SAME"], "holds the rows that heads learn from"),
        (["--output", "FILE"], "cannot write to output"),
    ],
)
def test_bad_input(
    synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[object], said: str
) -> None:
    (tmp_path / "file").write_text("")
    named = {"SAME": synthetic, "FILE": tmp_path / "file"}
    code, out, error = command(capsys, synthetic, *(named.get(str(each), each) for each in given))
    assert (code, out) == (2, "")
    assert said in error
    assert error.count("\n") == 1


def test_values_that_are_given_twice() -> None:
    with pytest.raises(UserError, match=r"a flip rate is given twice: 0\.1, 0\.1"):
        EnsemblePlan(flip_rates=(0.1, 0.1))
    with pytest.raises(UserError, match="a kappa is given twice"):
        EnsemblePlan(kappas=(1.0, 1))
    with pytest.raises(UserError, match="members 0"):
        EnsemblePlan(members=0)


# The picture.


def curve(slope: float, baseline: bool = False, ns: tuple[int, ...] = NS) -> GainCurve:
    line = tuple(Estimate(slope * n, slope * n - 1, slope * n + 1, 9) for n in ns)
    return GainCurve(ns, line, () if baseline else line, line)


PANELS = {
    title: {"single": curve(1.0, baseline=True), "mean": curve(2.0), "min": curve(-1.0)}
    for title in ("0 % of labels flipped", "25 % of labels flipped")
}


def test_lines_of_the_picture() -> None:
    pytest.importorskip("matplotlib")
    figure = _figure(PANELS, "single")
    panels = [axes for axes in figure.axes if axes.get_ylabel()]
    assert [axes.get_ylabel()[:8] for axes in panels] == ["golden r", "golden, ", "score ga"] * 2
    xs = [kl_bound(n) for n in NS]
    drawn = [line for line in panels[3].lines if len(line.get_xdata()) == 4]
    assert [list(line.get_ydata()) for line in drawn] == [[s * n for n in NS] for s in (1.0, 2.0, -1.0)]
    assert all(list(line.get_xdata()) == xs for line in drawn)
    rings = [line for line in panels[3].lines if len(line.get_xdata()) == 1]
    assert [float(line.get_xdata()[0]) for line in rings] == [xs[3], xs[3], xs[0]]
    assert len([line for line in panels[1].lines if len(line.get_xdata()) == 4]) == 2
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"single", "mean", "min"}


def test_equal_figures_give_equal_bytes() -> None:
    pytest.importorskip("matplotlib")
    one, other = io.BytesIO(), io.BytesIO()
    draw_overoptimisation(PANELS, one)
    draw_overoptimisation(PANELS, other)
    assert one.getvalue() == other.getvalue()
    assert b"25 % of labels flipped" in one.getvalue()


def test_pictures_that_cannot_be(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for wrong in ({}, {"a": {}}, {"a": {"single": curve(1.0, ns=())}}):
        with pytest.raises(UserError, match="no curve to draw"):
            draw_overoptimisation(wrong, tmp_path / "a.svg")
    with pytest.raises(UserError, match="0 rules have no difference"):
        draw_overoptimisation({"a": {"mean": curve(1.0)}}, tmp_path / "a.svg")
    with pytest.raises(UserError, match=r"end its name in \.svg"):
        draw_overoptimisation(PANELS, tmp_path / "a.gif")


def test_only_learnt_rules_are_drawn(found: EnsembleBench) -> None:
    bench = EnsembleBench(PLAN, {}, found.bounds[1:], {})
    assert panels(bench, summarise(bench)) == {}
