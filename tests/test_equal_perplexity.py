"""eval.equal_perplexity: curves against closed forms, intervals against a slow loop, the real command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray

from decoder.cli import run
from eval.budget import (
    WEIGHTED,
    Outcome,
    Strength,
    Sweep,
    at_budget,
    compare,
    difference_of,
    resampling_weights,
    steering_betas,
)
from eval.curves import Curve, Point
from eval.equal_perplexity import app
from eval.evaluation import Evaluation, to_json, write_units
from eval.generations import PromptSamples
from eval.metric import Measure
from eval.stats import RESAMPLES, STATISTICS, bootstrap, paired_difference
from rewards.output_folder import safe_name
from tests.heads import save_arm
from tests.tiny import tiny_llama, tiny_tokenizer

Units = NDArray[np.float64]
N = 40
ABOUT = {"sentiment": {"judge": "made", "version": 1}, "perplexity": {"model": "made"}}
METRICS = {"positive share": "sentiment", "perplexity": "perplexity", "length": "sentiment"}


# Made-up evaluations.


def measure(name: str, units: Units, better: str) -> Measure:
    statistic = "exp_ratio" if units.ndim == 2 else "mean"
    return Measure(name, units, len(units), len(units), better, statistic)


def strength(beta: float, nats: Units | float, share: Units | float, n: int = N) -> Strength:
    """Return a point with these nats a token and shares; a number stands for every prompt."""
    tokens = np.arange(20.0, 20.0 + n)
    fluency = np.stack([np.broadcast_to(nats, n) * tokens, tokens], axis=1)
    share = np.array(np.broadcast_to(share, n), dtype=float)
    return Strength(beta, measure("perplexity", fluency, "lower"), measure("positive share", share, "higher"))


def drawn(seed: int, beta: float = 0.0, n: int = N) -> Strength:
    """Return a noisy point: one prompt is easy or hard at every beta, so that pairs share much."""
    prompt, noise = np.random.default_rng(99), np.random.default_rng(seed)
    nats = 2 + 0.3 * prompt.normal(size=n) + 0.02 * beta + 0.03 * noise.normal(size=n)
    share = 0.4 + 0.2 * prompt.normal(size=n) + 0.03 * beta + 0.05 * noise.normal(size=n)
    return strength(beta, nats, share, n)


def noisy(seed: int, betas: Sequence[float]) -> dict[float, Strength]:
    return {beta: drawn(seed + index, beta) for index, beta in enumerate(betas)}


PLAIN = drawn(0)
FIRST, SECOND = noisy(10, (2.0, 4.0, 8.0)), noisy(20, (1.0, 6.0))


def outcome(found: Sequence[Outcome], method: str, ratio: float) -> Outcome:
    return next(each for each in found if (each.method, each.ratio) == (method, ratio))


# The curve at a budget.


def sweep(ratios: Sequence[float], values: Sequence[float]) -> Sweep:
    """Return a sweep without resamples, at betas 0, 1, 2, ..."""
    betas = np.arange(float(len(ratios)))
    return Sweep(betas, np.log([ratios]), np.array([values], dtype=float))


def test_a_line_is_interpolated_exactly() -> None:
    """Attribute linear in log perplexity: the value at c is that of the line, and so is beta."""
    points = {beta: strength(beta, 2 + 0.05 * beta, 0.4 + 0.03 * beta) for beta in (1.0, 2.5, 6.0)}
    found, unsteered = compare(strength(0.0, 2.0, 0.4), {"line": points}, [1.1, 1.25], "higher")
    assert unsteered.value == pytest.approx(0.4)
    for each in found:
        beta = math.log(each.ratio) / 0.05
        assert each.reached
        assert each.reached_share == 1.0
        assert each.beta == pytest.approx(beta, rel=1e-12)
        assert each.value.value == pytest.approx(0.4 + 0.03 * beta, rel=1e-12)
        assert each.value.interval == pytest.approx([0.4 + 0.03 * beta] * 2, rel=1e-12)
        assert each.change.value == pytest.approx(0.03 * beta, rel=1e-12)
        assert (each.largest_beta, each.largest_ratio) == (6.0, pytest.approx(math.exp(0.3)))


@pytest.mark.parametrize(
    ("ratios", "values", "budget", "value", "beta", "reached"),
    [
        ([1, 1.05], [0.4, 0.5], 1.1, 0.5, 1, False),  # ends before the budget
        ([1, 1.1], [0.4, 0.5], 1.1, 0.5, 1, True),  # ends right on it
        ([1, 1.21], [0.4, 0.6], 1.1, 0.5, 0.5, True),  # half way in log perplexity
        ([1, 1.21, 1.4], [0.4, 0.3, 0.1], 1.1, 0.4, 0, True),  # steering only harms
        ([1, 1.05, 1.3], [0.4, 0.7, 0.5], 1.3, 0.7, 1, True),  # falls again: best on the way
        ([1, 0.9, 1.3], [0.4, 0.6, 0.8], 1.0, 0.6 + 0.2 * math.log(1 / 0.9) / math.log(1.3 / 0.9),
         1 + math.log(1 / 0.9) / math.log(1.3 / 0.9), True),  # perplexity dips below the unsteered one
        ([1, 1.21, 1.0], [0.4, 0.6, 0.8], 1.1, 0.8, 2, False),  # leaves the budget and comes back
        ([1, 1.21, 1.0], [0.4, 0.9, 0.2], 1.1, 0.65, 0.5, False),  # best where it leaves
        ([1, 1.21, 1.0], [0.1, 0.9, 0.4], 1.1, 0.65, 1.5, False),  # best where it comes back
        ([1], [0.4], 1.1, 0.4, 0, False),
    ],
)  # fmt: skip
def test_any_shape_of_curve(
    ratios: list[float], values: list[float], budget: float, value: float, beta: float, reached: bool
) -> None:
    """The best place within the budget, for an attribute to raise, and mirrored for one to lower."""
    for sign, better in ((1, "higher"), (-1, "lower")):
        mirrored = [sign * each for each in values]
        found = at_budget(sweep(ratios, mirrored), budget, better)  # type: ignore[arg-type]
        assert found.values == pytest.approx([sign * value])
        assert found.beta == pytest.approx(beta)
        assert found.reached.tolist() == [reached]


def walk(ratios: Sequence[float], values: Sequence[float], budget: float) -> float:
    """Return the best value within the budget by clipping one piece of the curve after the other."""
    best, limit, logs = values[0], math.log(budget), [math.log(ratio) for ratio in ratios]
    for a, b, low, high in zip(logs, logs[1:], values, values[1:], strict=False):
        ends = [0.0, 1.0]
        if a != b:
            cut = (limit - a) / (b - a)
            ends = [0.0, min(1.0, cut)] if b > a else [max(0.0, cut), 1.0]
        elif a > limit:
            continue
        if ends[0] <= ends[1]:
            best = max(best, *(low + end * (high - low) for end in ends))
    return best


def test_a_random_curve_is_walked_as_a_slow_loop_walks_it() -> None:
    draw = np.random.default_rng(3)
    rows = np.exp(draw.normal(0, 0.2, (500, 6)).cumsum(axis=1))
    rows /= rows[:, :1]
    values = draw.uniform(size=rows.shape)
    for budget in (1.0, 1.1, 1.4):
        found = at_budget(Sweep(np.arange(6.0), np.log(rows), values), budget, "higher").values
        slow = [walk(list(ratio), list(value), budget) for ratio, value in zip(rows, values, strict=True)]
        assert found == pytest.approx(slow, abs=1e-12)


def test_betas_of_one_side_are_walked_outwards() -> None:
    assert steering_betas([4.0, -1.0, 2.0]) == [2.0, 4.0]
    assert steering_betas([-1.0, -8.0, -4.0]) == [-1.0, -4.0, -8.0]
    assert steering_betas([]) == []
    both = {**FIRST, -3.0: strength(-3.0, 2.1, 0.9)}
    assert compare(PLAIN, {"m": both}, [1.1], "higher") == compare(PLAIN, {"m": FIRST}, [1.1], "higher")
    mirrored = {-beta: replace(point, beta=-beta) for beta, point in FIRST.items()}
    found = compare(PLAIN, {"m": mirrored}, [1.1], "higher")[0][0]
    expected = compare(PLAIN, {"m": FIRST}, [1.1], "higher")[0][0]
    assert (found.beta, found.largest_beta) == (-expected.beta, -8.0)
    assert (found.value, found.change) == (expected.value, expected.change)


# Intervals.


def test_weighted_statistics_are_the_statistics_of_the_drawn_rows() -> None:
    assert set(WEIGHTED) == set(STATISTICS)
    weights, units = resampling_weights(7), np.random.default_rng(1).uniform(1, 2, (7, 2))
    picks = np.random.default_rng(0).integers(7, size=(RESAMPLES, 7))
    for name, rows in (("mean", units[:, 0]), ("exp_ratio", units)):
        found = WEIGHTED[name](rows, weights)
        assert found[0] == pytest.approx(STATISTICS[name](rows))
        assert found[1:] == pytest.approx([STATISTICS[name](rows[pick]) for pick in picks])
    with pytest.raises(ValueError, match="no units"):
        resampling_weights(0)


def test_a_difference_is_that_of_eval_stats() -> None:
    """Of plain means there is nothing to walk: the same value, interval and p, for gaps of every size."""
    weights, noise = resampling_weights(N), 0.1 * np.random.default_rng(4).normal(size=N)
    before = PLAIN.attribute.units
    for shift in (0.0, 0.01, 0.02, 0.1):
        after = before + noise + shift - noise.mean()
        found = difference_of(*(WEIGHTED["mean"](units, weights) for units in (after, before)), N)
        expected = paired_difference(after, before)
        assert found.p == expected.p
        assert [found.value, found.low, found.high] == pytest.approx(
            [expected.value, expected.low, expected.high], abs=1e-12
        )


def test_a_method_of_one_point_has_the_interval_of_that_point() -> None:
    """Far from the budget nothing is interpolated either."""
    point = replace(drawn(5), beta=3.0)
    units = PLAIN.attribute.units + 0.2 + 0.1 * np.random.default_rng(4).uniform(-1, 1, N)
    point = replace(point, attribute=replace(point.attribute, units=units))
    (found,), unsteered = compare(PLAIN, {"m": {3.0: point}}, [2.0], "higher")
    assert (found.reached, found.reached_share, found.beta) == (False, 0.0, 3.0)
    after, change = bootstrap(units), paired_difference(units, PLAIN.attribute.units)
    assert [found.value.value, *found.value.interval] == pytest.approx([after.value, *after.interval])
    assert [found.change.value, *found.change.interval] == pytest.approx([change.value, *change.interval])
    assert unsteered.interval == pytest.approx(bootstrap(PLAIN.attribute.units).interval)


def test_intervals_are_those_of_a_slow_loop() -> None:
    """Every resample anew: all perplexities, all attributes, and the walk of both methods."""
    found, _ = compare(PLAIN, {"a": FIRST, "b": SECOND}, [1.06], "higher", "b")
    at = {name: outcome(found, name, 1.06) for name in "ab"}

    def value(points: Mapping[float, Strength], pick: NDArray[np.int64]) -> float:
        path = [PLAIN, *points.values()]
        spent = [STATISTICS["exp_ratio"](each.fluency.units[pick]) for each in path]
        return walk([p / spent[0] for p in spent], [each.attribute.units[pick].mean() for each in path], 1.06)

    whole = np.arange(N)
    picks = np.random.default_rng(0).integers(N, size=(RESAMPLES, N))
    a, b = (np.array([value(points, pick) for pick in picks]) for points in (FIRST, SECOND))
    gap, difference = value(FIRST, whole) - value(SECOND, whole), at["a"].against
    assert difference is not None
    assert at["b"].against is None
    assert at["a"].value.value == pytest.approx(value(FIRST, whole))
    assert at["a"].value.interval == pytest.approx(np.quantile(a, [0.025, 0.975]))
    assert at["b"].value.interval == pytest.approx(np.quantile(b, [0.025, 0.975]))
    assert difference.value == pytest.approx(gap)
    assert difference.interval == pytest.approx(np.quantile(a - b, [0.025, 0.975]))
    assert difference.p == (1 + (np.abs(a - b - gap) >= abs(gap)).sum()) / (RESAMPLES + 1)
    apart = at["a"].value.high - at["a"].value.low + at["b"].value.high - at["b"].value.low
    assert difference.high - difference.low < 0.6 * apart  # what the prompts share cancels


def test_identical_methods_do_not_differ_at_all() -> None:
    copies = {beta: replace(point, attribute=replace(point.attribute)) for beta, point in FIRST.items()}
    found, _ = compare(PLAIN, {"a": FIRST, "b": copies}, [1.1, 1.25], "higher", "a")
    for ratio in (1.1, 1.25):
        difference = outcome(found, "b", ratio).against
        assert difference is not None
        assert (difference.value, difference.low, difference.high, difference.p) == (0.0, 0.0, 0.0, 1.0)


def test_prompts_that_some_point_does_not_score_are_left_out_everywhere() -> None:
    holed = {**FIRST, 4.0: replace(FIRST[4.0], attribute=_with_hole(FIRST[4.0].attribute, 3))}
    other = {**SECOND, 6.0: replace(SECOND[6.0], fluency=_with_hole(SECOND[6.0].fluency, 7))}
    kept = np.array([row not in (3, 7) for row in range(N)])
    short = [{b: point.kept(kept) for b, point in points.items()} for points in (FIRST, SECOND)]
    found = compare(PLAIN, {"a": holed, "b": other}, [1.1], "higher", "a")
    assert found == compare(PLAIN.kept(kept), dict(zip("ab", short, strict=True)), [1.1], "higher", "a")
    assert found[1].n == N - 2


def _with_hole(measure: Measure, row: int) -> Measure:
    units = measure.units.copy()
    units[row] = np.nan
    return replace(measure, units=units)


# Folders and the command.


@dataclass(frozen=True, slots=True)
class Made:
    """How a folder differs from the usual one."""

    first_id: int = 0
    judge: str = "made"
    perplexity: bool = True
    better: str = "higher"


def save(folder: Path, point: Strength, made: Made) -> None:
    """Write an evaluation through its own writers."""
    folder.mkdir(parents=True)
    prompts = [
        PromptSamples(f"p{i + made.first_id}", "A", ("b",), ({},), f"made, line {i}") for i in range(N)
    ]
    length = measure("length", np.ones(N), "")
    figures = [replace(point.attribute, better=made.better), length, *[point.fluency] * made.perplexity]
    measures: dict[str, list[Measure]] = {"sentiment": [], "perplexity": []}
    for each in figures:
        measures[METRICS[each.name]].append(each)
    about = {**ABOUT, "sentiment": {**ABOUT["sentiment"], "judge": made.judge}}
    done = Evaluation(prompts, "digest", {}, measures, about)
    write_units(folder / "units.jsonl", done)
    (folder / "report.json").write_text(json.dumps(to_json(done)))


def save_tradeoff(
    folder: Path, methods: Mapping[str, Mapping[float, Strength]], also: Sequence[str] = (), *,
    plain: Strength = PLAIN, made: Made | None = None,
) -> Path:  # fmt: skip
    """Write a trade-off folder as eval.tradeoff does; also: curves drawn from elsewhere."""
    save(folder / "unsteered", plain, made or Made())
    curves = []
    for name, points in methods.items():
        for beta, point in points.items():
            if name not in also:
                save(folder / f"{safe_name(name)}_beta{beta:g}", point, made or Made())
        drawn = [_point(each) for each in (plain, *points.values())]
        curves.append(Curve(name, tuple(drawn)).as_json())
    (folder / "report.json").write_text(json.dumps({"settings": {}, "curves": curves}))
    return folder


def _point(point: Strength) -> Point:
    estimates = {each.name: each.estimate() for each in (point.fluency, point.attribute)}
    return Point(f"β {point.beta:g}", point.beta, estimates, {})


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in this process; return exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object, app: typer.Typer = app) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            run(app, [str(each) for each in arguments])
        return (int(stopped.value.code or 0), *capsys.readouterr())

    return call


def rows(found: tuple[int, str, str]) -> dict[tuple[str, float], dict[str, Any]]:
    """Return the JSON line's rows by method and ratio."""
    code, out, err = found
    assert code == 0, err
    return {(row["method"], row["ratio"]): row for row in json.loads(out.splitlines()[-1])["rows"]}


def test_the_command_tells_what_the_functions_do(command: Command, tmp_path: Path) -> None:
    a = save_tradeoff(tmp_path / "a", {"tap@probability": FIRST})
    b = save_tradeoff(tmp_path / "b", {"rad": SECOND, "old": FIRST, "tap@probability": FIRST},
                      also=["old", "tap@probability"])  # fmt: skip
    out = tmp_path / "table"
    found = command(a, b, "--ratios", "1.06", "1.5", "--reference", "rad", "--output", out)
    told, methods = rows(found), {"tap@probability": FIRST, "rad": SECOND}
    outcomes, unsteered = compare(PLAIN, methods, [1.06, 1.5], "higher", "rad")
    assert len(told) == len(outcomes) == 4
    for each in outcomes:
        row = told[each.method, each.ratio]
        assert row == {"measure": "positive share", **each.as_json()}
        assert (row["value"], row["change p"], row["n"]) == (each.value.value, each.change.p, N)
    assert told["tap@probability", 1.06]["reached"]
    assert not told["tap@probability", 1.5]["reached"]
    settings = json.loads(found[1].splitlines()[-1])["settings"]
    assert settings["unsteered"] == {"positive share": [unsteered.value, *unsteered.interval]}
    assert settings["left out"] == [f"old of {b}"]
    assert "largest beta" in found[2]
    assert f"left out: old of {b}" in found[2].replace("\n", " ")
    saved = json.loads((out / "equal_perplexity.json").read_text())
    assert saved["rows"] == list(told.values())
    table = (out / "equal_perplexity.md").read_text()
    assert "### positive share (higher is better), 40 prompts" in table
    cells = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| 1")]
    assert [line[:2] for line in cells] == [
        ["1", "none"],
        *[[f"{r:g}", m] for r in (1.06, 1.5) for m in methods],
    ]
    value, _, against, _ = cells[3][2:]
    tap = told["tap@probability", 1.5]
    assert value == f"≥ {tap['value']:.3f} [{tap['interval'][0]:.3f}, {tap['interval'][1]:.3f}]"
    assert against.startswith(f"{tap['difference']:+.3f} [")
    assert not cells[1][2].startswith("≥")
    assert "largest beta" in table


def test_lower_may_be_better(command: Command, tmp_path: Path) -> None:
    """An attribute to lower is walked downwards, and its bound points the other way."""
    falling = {b: strength(b, 2 + 0.02 * b, 0.8 - 0.05 * b) for b in (2.0, 4.0)}
    folder = save_tradeoff(
        tmp_path / "a", {"m": falling}, plain=strength(0.0, 2.0, 0.8), made=Made(better="lower")
    )
    found = command(folder, "--ratios", "1.05", "1.5")
    told = rows(found)
    assert told["m", 1.05]["value"] == pytest.approx(0.8 - 0.05 * math.log(1.05) / 0.02)
    assert told["m", 1.5]["value"] == pytest.approx(0.6)
    assert "≤ 0.600" in found[2]


def test_folders_join_in_any_order(command: Command, tmp_path: Path) -> None:
    """A method's betas may stand in several folders; the figures are those of one folder with all of them."""
    weak, strong = ({b: FIRST[b] for b in betas} for betas in ((2.0, 8.0), (4.0,)))
    a = save_tradeoff(tmp_path / "a", {"m": weak})
    b = save_tradeoff(tmp_path / "b", {"m": strong, "n": SECOND})
    whole = save_tradeoff(tmp_path / "whole", {"n": SECOND, "m": FIRST})
    told = rows(command(a, b, "--reference", "n"))
    assert told == rows(command(b, a, "--reference", "n"))
    assert told == rows(command(whole, "--reference", "n"))


def test_a_real_trade_off_is_read(command: Command, tmp_path: Path, tiny_dir: Path) -> None:
    """Sub-folders are found under the names that eval.tradeoff gives them, and figures are its own."""
    pytest.importorskip("vaderSentiment")
    pytest.importorskip("matplotlib")
    from eval.tradeoff import app as tradeoff

    save_arm(tmp_path / "my head", tiny_llama(), tiny_tokenizer())
    (tmp_path / "prompts.txt").write_text("The sea\nA cup\nDay\n")
    folder = tmp_path / "out"
    made = command(
        "--reward", tmp_path / "my head", "--betas", 0.5, 3, "--prompts", tmp_path / "prompts.txt",
        "--attributes", "sentiment", "--judge", "vader", "--model", tiny_dir, "--device", "cpu",
        "-n", 2, "--max-new-tokens", 6, "--output", folder, app=tradeoff,
    )  # fmt: skip
    assert made[0] == 0, made[2]
    points = json.loads((folder / "report.json").read_text())["curves"][0]["points"]
    row = rows(command(folder, "--ratios", 1000, "--measure", "mean positivity"))["my head", 1000.0]
    judged, spent = (
        [point["estimates"][name]["value"] for point in points] for name in ("mean positivity", "perplexity")
    )
    assert row["value"] == pytest.approx(max(judged))
    assert row["ratio at largest beta"] == pytest.approx(spent[2] / spent[0])
    assert (row["largest beta"], row["reached"], row["n"]) == (3.0, False, 3)


NEEDLE = replace(PLAIN, attribute=replace(PLAIN.attribute, units=PLAIN.attribute.units + 1e-3))


@pytest.mark.parametrize(
    ("second", "arguments", "said"),
    [
        ({}, ("--reference", "arm"), "no method is called 'arm': choose one of m, n"),
        ({}, ("--ratios", "1.1", "0.9"), "ratio 0.9 is no budget: give a finite number of at least 1"),
        ({}, ("--ratios", "nan"), "ratio nan is no budget"),
        ({}, ("--ratios", "inf"), "ratio inf is no budget"),
        ({}, ("--measure", "joy"), "cannot compare by 'joy', no folder has it; use one of positive share"),
        ({}, ("--measure", "perplexity"), "is what is held equal; use one of positive share"),
        ({}, ("--measure", "length"), "cannot compare by 'length', it has no better end"),
        ({"methods": {"m": {4.0: FIRST[4.0]}}}, (), "are both 'm' at beta 4: give only one"),
        ({"methods": {"n": {}}}, ("--reference", "n"), "no method is called 'n': choose one of m"),
        ({"made": Made(first_id=1)}, (), "are of different prompts: only"),
        ({"made": Made(judge="other")}, (), "(judge: 'made' and 'other'); run eval.tradeoff alike"),
        ({"made": Made(better="lower")}, (), "(better: 'higher' and 'lower')"),
        ({"made": Made(perplexity=False)}, (), "lacks 'perplexity', which others have"),
        ({"plain": NEEDLE}, (), "differ before any steering: positive share is"),
        (
            {"plain": strength(0.0, 2.0, PLAIN.attribute.units)},
            (),
            "differ before any steering: perplexity is",
        ),
    ],
)
def test_what_does_not_compare_is_one_line(
    command: Command, tmp_path: Path, second: dict[str, Any], arguments: tuple[str, ...], said: str
) -> None:
    folders = [
        save_tradeoff(tmp_path / "a", {"m": FIRST}),
        save_tradeoff(tmp_path / "b", **{"methods": {"n": SECOND}, **second}),
    ]
    refused(command(*folders, *arguments), said)


def refused(found: tuple[int, str, str], said: str) -> None:
    code, out, err = found
    assert (code, out) == (2, ""), err
    assert len(err.strip().splitlines()) == 1, err
    assert said in err


def test_a_folder_that_is_no_trade_off_is_named(command: Command, tmp_path: Path) -> None:
    refused(command(tmp_path / "none"), f"{tmp_path / 'none'} holds no trade-off")
    save(tmp_path / "evaluation", PLAIN, Made())
    refused(command(tmp_path / "evaluation"), 'has no "curves": it is no report of eval.tradeoff')
    folder = save_tradeoff(tmp_path / "also", {"m": FIRST}, also=["m"])
    refused(command(folder), "no steered samples to compare")
    (folder / "unsteered" / "units.jsonl").unlink()
    refused(command(folder), f"{folder / 'unsteered'} holds no finished evaluation")


def test_a_folder_that_changed_since_its_report_is_refused(command: Command, tmp_path: Path) -> None:
    folder = save_tradeoff(tmp_path / "a", {"m": FIRST})
    (folder / "m_beta4").rename(folder / "m_beta5")
    refused(command(folder), f"{folder / 'm_beta4'} is missing, but the report.json beside it has it")
    save(folder / "m_beta4", FIRST[8.0], Made())
    refused(command(folder), "run eval.tradeoff again")


def test_what_no_folder_can_tell_is_refused(command: Command, tmp_path: Path) -> None:
    folder = save_tradeoff(tmp_path / "a", {"m": FIRST}, made=Made(perplexity=False))
    refused(command(folder), "cannot compare by 'perplexity', no folder has it")
    empty = replace(FIRST[4.0], attribute=replace(FIRST[4.0].attribute, units=np.full(N, np.nan)))
    folder = save_tradeoff(tmp_path / "b", {"m": {**FIRST, 4.0: empty}})
    refused(command(folder), "no prompt is scored at every point: 'm' at beta 4 has 0 of 40")
    folder = save_tradeoff(tmp_path / "c", {"m": FIRST})
    (tmp_path / "file").write_text("")
    refused(command(folder, "--output", tmp_path / "file"), f"cannot write to output {tmp_path / 'file'}")
