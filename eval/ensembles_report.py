"""What is told of ensembles and overoptimisation: rows, the claims that are checked, a page, a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoder.contracts import UserError
from decoder.models import versions
from eval.bench_ensembles import MEAN, MINIMUM, SINGLE, EnsembleBench, RuleFigures, named
from eval.curves import estimate_text, figure_text
from eval.latency_picture import check_target
from eval.overoptimisation_picture import GainCurve, draw_overoptimisation
from eval.report import Target
from eval.selection import kl_bound
from eval.stats import Difference, Estimate
from eval.sweep_report import table

PAGE, RECORD, PICTURES = "ensembles.md", "ensembles.json", ("overoptimisation.svg", "overoptimisation.png")
CURVES = ("golden", "golden_gain", "proxy", "proxy_gain")
TABLES = {
    "golden": "Golden reward of the best of n",
    "golden_minus_single": "Golden reward of the best of n, minus single",
    "golden_gain": "Golden reward gained over one sample",
    "proxy_gain": "Proxy gained over one sample, in its deviations",
}
OTHERS = (SINGLE, MEAN)  # whom rules are compared with
Row = dict[str, Any]
NOTES = (
    "Brackets hold 95 % bootstrap intervals over test prompts. A prompt's figure is first averaged over "
    "seeds, which draw pairs, labels and weights anew; `over seeds` is the deviation of one head, or one "
    "ensemble, from seed to seed. `single` is the mean over the members of what each alone gets. Golden "
    "rewards are in their own unit, proxies (the rule's own score of what it chose) in deviations of that "
    "score over all test samples; both are exact means over all subsets of n. Choosing the best of n costs "
    "log n - (n - 1) / n nats of KL at most. `last rise` is the golden reward at the largest n less that "
    "at the n before: below 0, the rule is overoptimised. The best n has the highest golden reward on these "
    "very prompts, so that what is lost from there to the largest n is never below 0: an interval that "
    "reaches 0 has not shown a loss."
)


@dataclass(frozen=True, slots=True)
class RuleSummary:
    """One rule under one flip rate, intervals taken.

    curves: of CURVES, an estimate an n, and "golden_minus_single" for rules that are compared with it.
    deviations: over seeds, of "spearman" and of golden at the largest n; NaN for one seed. differences:
    rule it is compared with -> figure -> difference, and each seed's.
    """

    figures: RuleFigures
    spearman: Estimate
    lost: Estimate
    last_rise: Estimate
    curves: Mapping[str, Sequence[Estimate]]
    deviations: Mapping[str, float]
    differences: Mapping[str, Mapping[str, tuple[Difference, list[float]]]]


def summarise(bench: EnsembleBench) -> list[RuleSummary]:
    """Return every rule by flip rate, then what choosing by the golden reward and by chance give."""
    blocks = [(figures, rules) for rules in bench.blocks.values() for figures in rules.values()]
    bounds: list[tuple[RuleFigures, Mapping[str, RuleFigures]]] = [(figures, {}) for figures in bench.bounds]
    return [_summary(figures, rules, bench.plan.ns) for figures, rules in blocks + bounds]


def rows(bench: EnsembleBench, summaries: Sequence[RuleSummary]) -> list[Row]:
    """Return the rows for programs: JSON values, null where there is no figure."""
    return [_row(each, bench.plan.ns) for each in summaries]


def lines(bench: EnsembleBench, summaries: Sequence[RuleSummary]) -> list[dict[str, str]]:
    """Return the rows for people."""
    return [_line(each, bench.plan.ns[-1]) for each in summaries]


def checks(bench: EnsembleBench, summaries: Sequence[RuleSummary]) -> dict[str, Target]:
    """Return the claims of arXiv 2310.02743 about mean, minimum and mean less variance against one head."""
    last, found = bench.plan.ns[-1], {}
    claimed = {MEAN, MINIMUM, *(named("mean-var", kappa) for kappa in bench.plan.kappas[:1])}
    for each in summaries:
        if each.figures.rule not in claimed:
            continue
        rule, rate = each.figures.rule, percent(each.figures.flip_rate)
        better = each.differences[SINGLE][f"golden_at_{last}"][0]
        found[f"{rate} flips: golden at n = {last}, {rule} minus single"] = Target(better, 0.0)
        rise = f"{rate} flips: golden at n = {last} minus n = {bench.plan.ns[-2]}, {rule}"
        found[rise] = Target(each.last_rise, 0.0)
    return found


def check_output(folder: Path) -> None:
    """Make the folder, before anything long is run for it. UserError where it or matplotlib cannot be had."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to output {folder} ({error.strerror}): give another folder") from None
    check_target(folder / PICTURES[0])


def write(folder: Path, bench: EnsembleBench, summaries: Sequence[RuleSummary]) -> None:
    """Write page, record and pictures into the folder. Raises UserError where that cannot be."""
    found = {name: target.as_json() for name, target in checks(bench, summaries).items()}
    record = {"versions": versions(), "settings": dict(bench.settings), "rows": rows(bench, summaries)}
    text = json.dumps({"benchmark": "ensembles", **record, "checks": found}, indent=1, allow_nan=False)
    try:
        (folder / RECORD).write_text(text + "\n", encoding="utf-8")
        (folder / PAGE).write_text(page(bench, summaries), encoding="utf-8")
        for name in PICTURES:
            draw_overoptimisation(panels(bench, summaries), folder / name)
    except OSError as error:
        raise UserError(f"cannot write to output {folder} ({error.strerror}): give another folder") from None


def page(bench: EnsembleBench, summaries: Sequence[RuleSummary]) -> str:
    """Return the report as Markdown."""
    ns, parts = bench.plan.ns, ["# Ensembles of reward heads", NOTES]
    told = [{"setting": key, "value": json.dumps(value)} for key, value in bench.settings.items()]
    parts += [table(lines(bench, summaries)), "## Claims", table(_claims(bench, summaries))]
    for name, title in TABLES.items():
        told_of = [each for each in summaries if name in each.curves]
        parts += [f"## {title}", table([_curve_line(each, name, ns) for each in told_of])]
    alt = "Golden reward and proxy over KL, a line a rule."
    parts += [f"![{alt}]({PICTURES[1]})", "## Settings", table(told)]
    return "\n\n".join(parts) + "\n"


def panels(bench: EnsembleBench, summaries: Sequence[RuleSummary]) -> dict[str, dict[str, GainCurve]]:
    """Return what `draw_overoptimisation` takes: a title a flip rate, the learnt rules alone."""
    found: dict[str, dict[str, GainCurve]] = {}
    for each in summaries:
        if each.figures.flip_rate is not None:
            title = f"{percent(each.figures.flip_rate)} of labels flipped"
            drawn = (
                each.curves.get(name, ()) for name in ("golden_gain", "golden_minus_single", "proxy_gain")
            )
            curve = GainCurve(bench.plan.ns, *map(tuple, drawn))
            found.setdefault(title, {})[each.figures.rule] = curve
    return found


def percent(share: float | None) -> str:
    """Return a share as "25 %"; "any" for None."""
    return "any" if share is None else f"{100 * share:g} %"


def _summary(figures: RuleFigures, rules: Mapping[str, RuleFigures], ns: Sequence[int]) -> RuleSummary:
    compared = ("spearman", f"golden_at_{ns[-1]}", "lost", "last_rise")
    curves = {name: [figures.estimate(f"{name}_at_{n}") for n in ns] for name in CURVES}
    against = {} if figures.rule == SINGLE else {name: rules[name] for name in OTHERS if name in rules}
    if against:
        theirs = rules[SINGLE]
        curves["golden_minus_single"] = [figures.minus(theirs, f"golden_at_{n}")[0] for n in ns]
    differences = {
        other: {name: _difference(figures, theirs, name) for name in compared}
        for other, theirs in against.items()
        if other != figures.rule
    }
    return RuleSummary(
        figures,
        figures.estimate("spearman"),
        figures.estimate("lost"),
        figures.estimate("last_rise"),
        curves,
        {name: figures.deviation(name) for name in compared[:2]},
        differences,
    )


def _difference(mine: RuleFigures, theirs: RuleFigures, name: str) -> tuple[Difference, list[float]]:
    found, seeds = mine.minus(theirs, name)
    return found, seeds.tolist()


def _row(each: RuleSummary, ns: Sequence[int]) -> Row:
    figures = each.figures
    curve = [
        {"n": n, "kl_bound": kl_bound(n)}
        | {key: value for name in each.curves for key, value in _numbers(name, each.curves[name][i]).items()}
        for i, n in enumerate(ns)
    ]
    differences = {
        f"minus_{other}": {
            name: {**_numbers("value", found), "p": _number(found.p), "by_seed": [*map(_number, seeds)]}
            for name, (found, seeds) in named_differences.items()
        }
        for other, named_differences in each.differences.items()
    }
    return {
        "flip_rate": figures.flip_rate, "measured_flip_rate": figures.flips, "rule": figures.rule,
        **_numbers("spearman", each.spearman), "best_n": figures.best_n, **_numbers("lost", each.lost),
        **_numbers("last_rise", each.last_rise),
        "deviation_over_seeds": {name: _number(value) for name, value in each.deviations.items()},
        **differences, "curve": curve,
    }  # fmt: skip


def _line(each: RuleSummary, last: int) -> dict[str, str]:
    golden, against = f"golden_at_{last}", each.differences
    minus = {
        f"minus {other}": estimate_text(against[other][golden][0]) if other in against else ""
        for other in OTHERS
    }
    return {
        "flips": percent(each.figures.flip_rate),
        "rule": each.figures.rule,
        "Spearman": figure_text(each.spearman.value),
        f"golden at {last}": figure_text(each.curves["golden"][-1].value),
        "over seeds": figure_text(each.deviations[golden]),
        **minus,
        "last rise": estimate_text(each.last_rise),
        "best n": str(each.figures.best_n),
        f"lost by {last}": figure_text(each.lost.value),
    }


def _curve_line(each: RuleSummary, name: str, ns: Sequence[int]) -> dict[str, str]:
    told = {f"n = {n}": estimate_text(found) for n, found in zip(ns, each.curves[name], strict=True)}
    return {"flips": percent(each.figures.flip_rate), "rule": each.figures.rule, **told}


def _claims(bench: EnsembleBench, summaries: Sequence[RuleSummary]) -> list[dict[str, str]]:
    return [
        {"difference": name, "measured": estimate_text(target.measured)}
        for name, target in checks(bench, summaries).items()
    ]


def _numbers(name: str, found: Estimate) -> Row:
    return {name: _number(found.value), f"{name}_interval": [*map(_number, found.interval)]}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
