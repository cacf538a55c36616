"""What is told of the benchmark of LENS: rows, claims, a page, pictures, and the settings it chose."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decoder.append_file import write_failures
from decoder.models import versions
from eval.bench_lens import LensBench, write_tuned
from eval.curves import figure_text
from eval.ensembles_report import check_output
from eval.lens_picture import draw_ablations, draw_table
from eval.lens_plan import NONE
from eval.lens_summary import AGAINST, Line, checks, chosen_arms, summarise, summarise_sizes
from eval.report import Target, emit
from eval.stats import Estimate
from eval.sweep_report import table

__all__ = ["check_output", "report"]
Row = dict[str, Any]
Sizes = Mapping[tuple[str, float], Mapping[str, Estimate]]  # (arm, ratio) -> figures by name
NOTES = (
    "Golden reward of the best of n by a head's score, exact over all subsets. `pairs`: seed pairs to learn "
    "from; a tenth as many more, of other prompts, to stop on. `ratio`: pairs to learn from over seed pairs; "
    "every head makes as many updates. `share`: of the way from a random sample to the best of n by the "
    "golden reward itself. Brackets hold 95 % bootstrap intervals: seeds and prompts are both drawn with "
    "replacement, independently, 2,000 times; differences are paired over both. The bootstrap of crossed "
    "factors errs to the wide side where seeds and prompts interact, and few seeds to the narrow. `real`: as "
    "many pairs, all labelled. Seconds are of one processor: `fit` of the synthesiser, `rest` of synthesis "
    "and head."
)
TUNING = (
    "Measured on prompts that were held out of those to train on; the test prompts were not looked at. "
    "Chosen: the setting with the highest golden reward, the mean over sizes, ratios and seeds."
)


def report(bench: LensBench, output: Path | None) -> None:
    """Print the tables and the JSON line, and write page, record and pictures into the folder, if any.

    Ablations leave what they chose there, for the table.
    """
    lines = summarise(bench)
    claims = checks(bench) if bench.plan.part == "table" else {}
    if output is not None:
        _write(output, bench, lines, claims)
    emit(f"lens {bench.plan.part}", rows(lines), claims, bench.settings, shown(lines))


def rows(lines: Sequence[Line]) -> list[Row]:
    """Return the rows for programs: JSON values, null where there is no figure."""
    return [_row(line) for line in lines]


def shown(lines: Sequence[Line]) -> list[dict[str, str]]:
    """Return the rows for people."""
    return [_shown(line) for line in lines]


def by_size(lines: Sequence[Line], ratio: float, minus: str = "") -> list[dict[str, str]]:
    """Return a row a method, a column a number of seed pairs: golden reward at a ratio, or less another's."""
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        at_ratio = line.ratio == ratio or line.arm.method == NONE
        told = line.differences.get(minus) if minus else line.reward
        if at_ratio and told is not None and not line.error:
            row = found.setdefault(line.arm.name, {"method": line.arm.name})
            row[f"{line.n_pairs} pairs"] = _told(told)
    columns = dict.fromkeys(name for row in found.values() for name in row)
    return [{name: row.get(name, "") for name in columns} for row in found.values()]


def over_sizes(
    found: Mapping[tuple[str, float], Mapping[str, Estimate]], ratio: float
) -> list[dict[str, str]]:
    """Return a row a method: what `summarise_sizes` has found at a ratio."""
    columns = ("golden", *(f"minus {name}" for name in AGAINST))
    return [
        {"method": name, **{column: _told(told[column]) if column in told else "" for column in columns}}
        for (name, at), told in found.items()
        if at == ratio
    ]


def page(bench: LensBench, lines: Sequence[Line], claims: Mapping[str, Target]) -> str:
    """Return the report as Markdown."""
    parts = [f"# LENS: {bench.plan.part}", NOTES]
    if bench.plan.part == "ablations":
        parts += [TUNING, table([{"method": m, "chosen": a.name} for m, a in chosen_arms(bench).items()])]
    else:
        found = summarise_sizes(bench)
        for ratio in bench.plan.ratios:
            parts += [f"## Over all sizes, at {ratio:g} x", table(over_sizes(found, ratio))]
        for ratio in bench.plan.ratios:
            parts += [f"## Golden reward at {ratio:g} x", table(by_size(lines, ratio))]
            for other in AGAINST:
                parts += [f"## The same, minus {other}", table(by_size(lines, ratio, other))]
    parts += [f"![Golden reward of the best of n.]({bench.plan.part}.png)"]
    parts += ["## Everything", table(shown(lines))]
    if claims:
        parts += ["## Claims", table(_claims(claims))]
    left_out = {line.arm.name: line.error for line in lines if line.error}
    if left_out:
        parts += ["## Left out", table([{"arm": name, "why": why} for name, why in left_out.items()])]
    told = [{"setting": key, "value": json.dumps(value)} for key, value in bench.settings.items()]
    return "\n\n".join([*parts, "## Settings", table(told)]) + "\n"


def _write(folder: Path, bench: LensBench, lines: Sequence[Line], claims: Mapping[str, Target]) -> None:
    part = bench.plan.part
    found = {name: target.as_json() for name, target in claims.items()}
    record = {"benchmark": f"lens {part}", "versions": versions(), "settings": dict(bench.settings)}
    text = json.dumps({**record, "rows": rows(lines), "checks": found}, indent=1, allow_nan=False)
    with write_failures(folder, "give another --output"):
        (folder / f"{part}.json").write_text(text + "\n", encoding="utf-8")
        (folder / f"{part}.md").write_text(page(bench, lines, claims), encoding="utf-8")
        for ending in ("svg", "png"):
            (draw_ablations if part == "ablations" else draw_table)(lines, folder / f"{part}.{ending}")
    if part == "ablations":
        write_tuned(folder, chosen_arms(bench))


def _claims(claims: Mapping[str, Target]) -> list[dict[str, str]]:
    """Return a row a difference, a column a ratio and size."""
    found: dict[str, dict[str, str]] = {}
    for name, target in claims.items():
        place, _, what = name.partition(": ")
        found.setdefault(what, {"golden reward": what})[place] = _told(target.measured)
    return list(found.values())


def _row(line: Line) -> Row:
    differences = {
        f"minus_{name}": {**_numbers("value", found), "p": found.p}
        for name, found in line.differences.items()
    }
    return {
        "arm": line.arm.name, "method": line.arm.method, "combine": line.arm.combine,
        "options": line.arm.values, "ratio": line.ratio, "n_pairs": line.n_pairs,
        **_numbers("reward", line.reward), **_numbers("share", line.share),
        "spearman": _number(line.spearman),
        "seconds": dict(line.seconds), **differences, "error": line.error or None,
    }  # fmt: skip


def _shown(line: Line) -> dict[str, str]:
    minus = {
        f"minus {name}": _told(line.differences[name]) if name in line.differences else "" for name in AGAINST
    }
    seconds = line.seconds
    return {
        "pairs": str(line.n_pairs),
        "ratio": f"{line.ratio:g}",
        "method": line.arm.name,
        "golden": "left out" if line.error else _told(line.reward),
        "share": figure_text(line.share.value),
        "Spearman": figure_text(line.spearman),
        **minus,
        "fit s": f"{seconds['fit']:.1f}" if seconds else "",
        "rest s": f"{seconds['synthesis'] + seconds['head']:.1f}" if seconds else "",
    }


def _told(found: Estimate) -> str:
    """Return an estimate with as many decimals as any other: a column of small differences can be read."""
    value, low, high = (round(each, 3) + 0.0 for each in (found.value, found.low, found.high))  # no -0.000
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _numbers(name: str, found: Estimate) -> Row:
    return {name: _number(found.value), f"{name}_interval": [*map(_number, found.interval)]}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
