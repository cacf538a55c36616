"""What scorers are worth on candidates that were kept: BoN@k, gap closed, AUC, and early dropping."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from decoder.contracts import UserError
from eval.candidate_scores import ORACLE, check_rule, combined, expand, is_weighted, score
from eval.candidates import Columns, gold_of, read_seeds
from eval.curves import estimate_text, figure_text
from eval.dropping_curve import DroppingPoint, schedule_text
from eval.report import Target, emit
from eval.selection import ScorerFigures, is_binary, kl_bound
from eval.selection_seeds import by_seed, chosen_estimate, seeded_difference, seeded_dropping, seeded_figures
from eval.stats import Difference, Estimate

if TYPE_CHECKING:  # its module loads torch
    from decoder.dropping import DropSchedule

GAP, KEPT, TOKENS = 0.40, 0.95, 0.55  # to reach: gap closed; gain kept at that share of the tokens
LONGEST = 36  # characters of a scorer's name in a picture
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared, as the command line has it.

    scorers: as `candidate_scores.expand` takes them. combine: a rule for all of them. combined: "A,B:RULE".
    baseline: whom others are compared with, the first if None. gold, judge: as `candidates.gold_of` has them.
    drop: as `parse_schedule` reads it. model: as `Decoder.from_pretrained` takes it.
    """

    scorers: Sequence[str]
    combine: str | None
    combined: Sequence[str]
    baseline: str | None
    gold: str
    judge: str
    drop: Sequence[str]
    chat: bool
    model: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ScorerRow:
    """One scorer: figures, BoN@N, its difference to the baseline's, and (BoN@N, gap closed) of each file."""

    name: str
    figures: ScorerFigures
    chosen: Estimate
    difference: Difference
    seeds: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Compared:
    """All rows, the oracle last, and the points of dropping by the first scorer; n: most samples a prompt."""

    rows: Sequence[ScorerRow]
    dropping: Sequence[DroppingPoint]
    baseline: str
    n: int
    prompts: int
    binary: bool


def bench_best_of_n(paths: Sequence[str], asked: Comparison, output: Path | None) -> None:
    """Compare the scorers, write tables and pictures to the folder if there is one, and emit the report."""
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"output {output} is a file: give a folder")
    found = compare(paths, asked)
    settings = {
        "candidates": list(paths), "gold": asked.gold, "prompts": found.prompts, "n": found.n,
        "baseline": found.baseline, "kl_bound_nats": kl_bound(found.n), "model": asked.model["model"],
    }  # fmt: skip
    if asked.gold != "correct":
        settings["judge"] = asked.judge
    if output is not None:
        _write(output, found, asked, settings)
    rows = [_row(row, found) for row in found.rows] + [_dropping_row(point) for point in found.dropping]
    if found.dropping:
        Console(stderr=True).print(_table([_dropping_line(point) for point in found.dropping], "dropping"))
    emit("best-of-n", rows, _checks(found, asked), settings, shown=[_line(row, found) for row in found.rows])


def compare(paths: Sequence[str], asked: Comparison) -> Compared:
    """Return the figures of every scorer on the candidates of the files, one file a sampling seed.

    What is wrong in files, names and rules raises UserError, nearly all of it before a model is loaded.
    """
    schedules = [parse_schedule(text) for text in asked.drop]
    names = expand(asked.scorers, drops=bool(schedules))
    seeds = read_seeds(paths)
    _check_rules([name for name in names if name != ORACLE], asked)
    gold = gold_of(seeds, asked.gold, asked.judge)
    scored = score(names, seeds, asked.model, chat=asked.chat, drops=bool(schedules))
    columns = {name: column for name, column in scored.columns.items() if name != ORACLE}
    for parts, rule in _combinations([*columns], asked):
        columns[_name(parts, rule)] = combined(scored, parts, rule, seeds)
    baseline = asked.baseline or next(iter(columns))
    if baseline not in columns:
        raise UserError(f"baseline {baseline!r} is not compared; choose among {', '.join(columns)}")
    n = max(len(group.records) for groups in seeds for group in groups)
    every = columns | {ORACLE: gold}
    rows = [_figures(name, each, columns[baseline], gold, powers(n)) for name, each in every.items()]
    points = seeded_dropping(scored.running, gold, schedules) if schedules else []
    return Compared(rows, points, baseline, n, len(seeds[0]), all(map(is_binary, gold)))


def parse_schedule(text: str) -> DropSchedule:
    """Return the schedule of "4,8,12", "4,8:keep=0.25", "margin=1.5@6", or of several parts joined by ":".

    Raises UserError for anything else.
    """
    from decoder.dropping import DropSchedule

    given: dict[str, Any] = {}
    try:
        for part in text.split(":"):
            key, _, value = part.rpartition("=")
            if key == "margin":
                margin, _, first = value.partition("@")
                given |= {"margin": float(margin), "first": int(first or 1)}
            elif key == "keep":
                given["keep"] = float(value)
            else:
                given["at"] = tuple(int(count) for count in part.split(","))
    except ValueError:
        raise UserError(
            f"cannot read drop schedule {text!r}: write token counts such as 4,8,12, with :keep=0.25 for "
            "another share than half, or margin=1.5@6 for a lead of 1.5 from 6 tokens on"
        ) from None
    return DropSchedule(**given)


def powers(n: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... below n, and n."""
    return (*(2**i for i in range(n.bit_length()) if 2**i < n), n)


def _combinations(names: Sequence[str], asked: Comparison) -> list[tuple[list[str], str]]:
    """Return the scorers and the rule of each combination."""
    listed = [text.rpartition(":") for text in asked.combined]
    everything = [([*names], asked.combine)] if asked.combine else []
    return everything + [(parts.split(","), rule) for parts, _, rule in listed]


def _check_rules(names: Sequence[str], asked: Comparison) -> None:
    """Refuse what could not be combined before anything is scored."""
    for parts, rule in _combinations(names, asked):
        check_rule(rule, parts)
        if rule == "ranking" and (heavy := [name for name in parts if is_weighted(name)]):
            raise UserError(
                f"ranking has no use for the weight of {heavy[0]!r}; take rank_sum or zscore with it"
            )


def _name(parts: Sequence[str], rule: str) -> str:
    return f"{'+'.join(parts) if len(parts) < 4 else f'{len(parts)} scorers'} ({rule})"


def _figures(name: str, scores: Columns, baseline: Columns, gold: Columns, ks: Sequence[int]) -> ScorerRow:
    figures, difference = seeded_figures(scores, gold, ks), seeded_difference(scores, baseline, gold)
    return ScorerRow(name, figures, chosen_estimate(scores, gold), difference, by_seed(scores, gold))


def _checks(found: Compared, asked: Comparison) -> dict[str, Target]:
    """Return what the first scorer, and dropping by it, should reach."""
    first, checks = found.rows[0], {}
    if asked.gold == "correct" and _is_sure(first.figures.gap_closed):
        checks[f"{first.name}: share of the oracle gap closed"] = Target(first.figures.gap_closed, GAP)
    thrifty = [point for point in found.dropping if point.tokens.value <= TOKENS and _is_sure(point.gain)]
    if thrifty:
        best = max(thrifty, key=lambda point: point.gain.value)
        checks[f"gain kept at {best.tokens.value:.0%} of the tokens"] = Target(best.gain, KEPT)
    return checks


def _line(row: ScorerRow, found: Compared) -> Row:
    """Return a scorer's figures as people read them."""
    figures, difference = row.figures, row.difference
    versus = (
        "" if row.name in (found.baseline, ORACLE) else f"{estimate_text(difference)} p {difference.p:.3g}"
    )
    line: Row = {
        "scorer": row.name,
        "BoN@1": figure_text(figures.curve.at(1).value),
        f"BoN@{found.n}": estimate_text(row.chosen),
        "gap closed": estimate_text(figures.gap_closed),
    }
    if found.binary:
        line |= {
            "pooled AUC": figure_text(figures.pooled_auc.value),
            "AUC in a prompt": figure_text(figures.within_auc.value),
        }
    else:
        line["Spearman in a prompt"] = estimate_text(figures.within_spearman)
    line[f"minus {found.baseline}"] = versus
    if len(row.seeds) > 1:
        line[f"BoN@{found.n} by file"] = " / ".join(figure_text(chosen) for chosen, _ in row.seeds)
    return line


def _row(row: ScorerRow, found: Compared) -> Row:
    """Return a scorer's figures as programs read them; null where there is none."""
    figures = row.figures
    kinds = ("gap_closed", "pooled_auc", "within_auc", "within_spearman")
    estimates = {kind: getattr(figures, kind) for kind in kinds}
    curve = zip(figures.curve.ks, figures.curve.estimates, strict=True)
    return {
        "scorer": row.name,
        "bon_1": _number(figures.curve.at(1).value),
        "bon_n": _number(row.chosen.value),
        "bon_n_interval": [_number(end) for end in row.chosen.interval],
        **{kind: _number(each.value) for kind, each in estimates.items()},
        **{f"{kind}_interval": [_number(end) for end in each.interval] for kind, each in estimates.items()},
        "difference": _number(row.difference.value),
        "difference_interval": [_number(end) for end in row.difference.interval],
        "p": _number(row.difference.p),
        "curve": [
            {"k": k, "value": _number(at.value), "interval": [*map(_number, at.interval)],
             "kl_bound": kl_bound(k)}
            for k, at in curve
        ],
        "by_file": [{"bon_n": _number(chosen), "gap_closed": _number(gap)} for chosen, gap in row.seeds],
    }  # fmt: skip


def _dropping_line(point: DroppingPoint) -> Row:
    figures = {"tokens": point.tokens, "gain kept": point.gain, "same winner": point.agreement}
    texts = {name: estimate_text(each) for name, each in figures.items()}
    return {"schedule": schedule_text(point.schedule), **texts}


def _dropping_row(point: DroppingPoint) -> Row:
    row: Row = {"schedule": schedule_text(point.schedule), **asdict(point.schedule)}
    for name in ("tokens", "gain", "agreement"):
        each: Estimate = getattr(point, name)
        row |= {name: _number(each.value), f"{name}_interval": [*map(_number, each.interval)]}
    return row


def _label(name: str) -> str:
    """Return a name that leaves a picture its room."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def _is_sure(estimate: Estimate) -> bool:
    """Return whether it has a value and an interval."""
    return all(map(math.isfinite, (estimate.value, *estimate.interval)))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _table(lines: Sequence[Row], title: str) -> Table:
    table = Table(*lines[0], title=title)
    for line in lines:
        table.add_row(*map(str, line.values()))
    return table


def _markdown(lines: Sequence[Row]) -> str:
    cells = [[*lines[0]], ["---"] * len(lines[0]), *([*map(str, line.values())] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _write(folder: Path, found: Compared, asked: Comparison, settings: Mapping[str, Any]) -> None:
    """Write report.json, report.md, best_of.png and, where samples were dropped, dropping.png."""
    from eval.selection_picture import draw_best_of, draw_dropping

    scorers = {"scorers": [_row(row, found) for row in found.rows]}
    dropping = {"dropping": [_dropping_row(point) for point in found.dropping]}
    text = _markdown([_line(row, found) for row in found.rows])
    if found.dropping:
        text += "\n" + _markdown([_dropping_line(point) for point in found.dropping])
    *curves, oracle = [(_label(row.name), row.figures.curve) for row in found.rows]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report = json.dumps({"settings": dict(settings), **scorers, **dropping}, indent=1, allow_nan=False)
        (folder / "report.json").write_text(report + "\n", encoding="utf-8")
        (folder / "report.md").write_text(text, encoding="utf-8")
        label = {"correct": "accuracy", "toxicity": "minus toxicity"}.get(asked.gold, asked.gold)
        draw_best_of(dict(curves), oracle[1], folder / "best_of.png", gold=label)
        if found.dropping:
            draw_dropping({found.rows[0].name: found.dropping}, folder / "dropping.png")
    except OSError as error:
        raise UserError(f"cannot write to output {folder} ({error.strerror}): give another folder") from None
