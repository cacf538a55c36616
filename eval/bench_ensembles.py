"""Ensembles of reward heads under label noise: do they choose better than one head, and longer?

The question of Coste et al. (arXiv 2310.02743): as more samples compete, a learnt reward of the chosen one
keeps rising while its golden reward may fall; mean, minimum and mean less disagreement are said to put that
off. Members are fitted once a flip rate and seed, and every rule combines the same scores; a seed draws
pairs, labels and weights anew. Flip rates share their pairs, and `rewards.sweep` draws the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from decoder.terminal import progress
from eval.head_measures import head_measures, overoptimisation
from eval.metric import Measure
from eval.stats import Difference, Estimate
from rewards.head_ensemble import HeadEnsemble, combine_members
from rewards.head_store import check_kind
from rewards.heads import check_rule, make_head
from rewards.store import Store, open_store
from rewards.sweep_cells import ROWS_AT_ONCE, Bench, targets_of
from rewards.sweep_grid import Cell, Grid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SINGLE, MEAN, MINIMUM = "single", "mean", "min"
UPPER, RANDOM = "golden itself", "random sample"


@dataclass(frozen=True, slots=True)
class EnsemblePlan:
    """What is fitted and measured. Raises UserError for values that cannot be.

    golden: the label that is the golden reward. flip_rates: shares of wrong labels, 0 to 0.5. members: heads
    an ensemble, alike but for the seed, and with `bootstrap` for the pairs they drew. kappas: each a rule
    with the variance and one with the deviation. seeds: ensembles a flip rate. ns: samples that compete,
    rising from 1. test_samples: prompts with so many are for testing alone; None for the largest n.
    """

    golden: str = "golden"
    head: str = "bt-mlp"
    pairing: str = "within"
    n_pairs: int = 2000
    flip_rates: tuple[float, ...] = (0.0, 0.25)
    members: int = 5
    kappas: tuple[float, ...] = (0.5,)
    bootstrap: bool = False
    seeds: int = 5
    ns: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    test_samples: int | None = None

    def __post_init__(self) -> None:
        for name in ("n_pairs", "members", "seeds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: give 1 or more")
        for rate in self.flip_rates:
            if not 0 <= rate <= 0.5:
                raise UserError(f"the flip rate {rate} is not between 0 and 0.5; 0.5 tosses coins")
        for kappa in self.kappas:
            check_rule("mean-var", kappa)
        for name, values in (("flip rate", self.flip_rates), ("kappa", [f"{k:g}" for k in self.kappas])):
            if len(set(values)) < len(values):
                raise UserError(f"a {name} is given twice: {', '.join(map(str, values))}; give each once")
        if len(self.ns) < 2 or self.ns[0] != 1 or list(self.ns) != sorted(set(self.ns)):
            raise UserError(f"ns {list(self.ns)} must rise from 1, such as 1 4 16 64")
        make_head(self.head)


@dataclass(frozen=True, slots=True)
class JudgedRows:
    """Rows (M,) of a store that heads are judged on, their golden rewards and their prompts, (M,) each."""

    store: Store
    rows: Ints
    golden: Floats
    prompts: Ints


@dataclass(frozen=True, slots=True)
class RuleFigures:
    """What one rule is worth under one flip rate; None for a rule that no label touches.

    flips: the measured share of wrong labels, the mean over seeds. by_name: (S, V, P) of "spearman",
    "golden_at_N" and "proxy_at_N" for every N, the gains of both over N = 1, and of the golden reward at the
    largest N: "last_rise", it less that at the N before, and "lost", that at `best_n` less it. S seeds, P
    test prompts, NaN where a prompt was not scored; V heads that are each measured alone, the members of
    SINGLE, else 1.
    """

    rule: str
    flip_rate: float | None
    flips: float | None
    best_n: int
    by_name: Mapping[str, Floats]

    def measure(self, name: str) -> Measure:
        """Return a figure with a unit a prompt, the mean over seeds and heads."""
        units = self.by_name[name].mean(axis=(0, 1))
        return Measure(name, units, int((~np.isnan(units)).sum()), len(units))

    def estimate(self, name: str) -> Estimate:
        """Return a figure with its interval over test prompts."""
        return self.measure(name).estimate()

    def by_seed(self, name: str) -> Floats:
        """Return a figure (S, V) of every seed and head; NaN where no prompt was scored."""
        found = self.by_name[name]
        n_scored = (~np.isnan(found)).sum(axis=2)
        return np.divide(
            np.nansum(found, axis=2), n_scored, where=n_scored > 0, out=np.full(found.shape[:2], np.nan)
        )

    def deviation(self, name: str) -> float:
        """Return the deviation of a lone head, or of an ensemble, from seed to seed; NaN for one seed."""
        values = self.by_seed(name)
        return float(np.sqrt(values.var(axis=0, ddof=1).mean())) if len(values) > 1 else float("nan")

    def minus(self, other: RuleFigures, name: str) -> tuple[Difference, Floats]:
        """Return the difference to another rule, paired over test prompts, and (S,) that of each seed."""
        seeds = self.by_seed(name).mean(axis=1) - other.by_seed(name).mean(axis=1)
        return self.measure(name).minus(other.measure(name)), seeds


@dataclass(frozen=True, slots=True)
class EnsembleBench:
    """Figures by flip rate and rule, SINGLE first; those no label touches; settings, as JSON values."""

    plan: EnsemblePlan
    blocks: Mapping[float, Mapping[str, RuleFigures]]
    bounds: Sequence[RuleFigures]
    settings: Mapping[str, Any]


def bench_ensembles(folder: Path, test: Path | None, plan: EnsemblePlan) -> EnsembleBench:
    """Return the figures of every rule under every flip rate.

    folder: the store to learn from, and to test on where `test` names no other. Only prompts with as many
    samples as the largest n are tested, so that every n is of the same ones. Raises UserError for stores
    and labels that cannot be used, for more pairs than there are, and where no prompt is left to test.
    """
    bench = _open(folder, test, plan)
    tested, left_out = judged_rows(bench, plan)
    cells = bench.grid.cells()
    flips: dict[float, list[float]] = {}
    found: dict[float, dict[str, list[dict[str, Floats]]]] = {}
    with progress("ensembles", len(cells)) as advance:
        for cell in cells:
            ensemble, measured = fit_ensemble(bench, cell, plan)
            flips.setdefault(cell.noise, []).append(measured)
            for rule, scores in rule_scores(_member_scores(ensemble, tested), plan.kappas).items():
                seeds = found.setdefault(cell.noise, {}).setdefault(rule, [])
                seeds.append(score_figures(scores, tested, plan.ns))
            advance()
    blocks = {
        rate: {
            rule: rule_figures(rule, each, rate, float(np.mean(flips[rate]))) for rule, each in rules.items()
        }
        for rate, rules in found.items()
    }
    return EnsembleBench(plan, blocks, _bounds(tested, plan.ns), _settings(bench, tested, left_out, plan))


def judged_rows(bench: Bench, plan: EnsemblePlan) -> tuple[JudgedRows, int]:
    """Return the rows to judge on, and how many test prompts were left out for having too few of them."""
    parts, store = bench.parts(plan.golden, 0), bench.test or bench.store
    prompts, counts = np.unique(parts.test_prompts, return_counts=True)
    kept = np.isin(parts.test_prompts, prompts[counts >= plan.ns[-1]])
    if not kept.any():
        raise UserError(
            f"no test prompt of store {store.folder} has {plan.ns[-1]} samples with a known "
            f"{plan.golden!r}; the most is {counts.max()}: let fewer compete (--ns)"
        )
    rows = JudgedRows(store, parts.test[kept], parts.test_rewards[kept], parts.test_prompts[kept])
    return rows, int((counts < plan.ns[-1]).sum())


def fit_ensemble(bench: Bench, cell: Cell, plan: EnsemblePlan) -> tuple[HeadEnsemble, float]:
    """Return the fitted members of a flip rate and seed, and the measured share of wrong labels."""
    targets = targets_of(bench, cell)
    ensemble = HeadEnsemble(
        make_head(cell.head),
        n_members=plan.members,
        bootstrap=plan.bootstrap,
        seed=cell.seed * plan.members,  # no two ensembles share a member's seed
    )
    ensemble.fit(bench.store.embeddings, targets.pairs, targets.owners)
    return ensemble, targets.flip_rate


def rule_scores(members: NDArray[Any], kappas: Sequence[float]) -> dict[str, NDArray[Any]]:
    """Return rule -> scores (V, M) of members' standardised scores (E, M): SINGLE all of them, V = E."""
    found = {SINGLE: members, **{rule: combine_members(members, rule)[None] for rule in (MEAN, MINIMUM)}}
    for kappa in kappas:
        for rule in ("mean-var", "mean-std"):
            found[named(rule, kappa)] = combine_members(members, rule, kappa)[None]
    return found


def named(rule: str, kappa: float) -> str:
    """Return what a rule with this kappa is called, as "mean-var 0.5"."""
    return f"{rule} {kappa:g}"


def score_figures(scores: NDArray[Any], test: JudgedRows, ns: Sequence[int]) -> dict[str, Floats]:
    """Return the figures (V, P) of heads' scores (V, M) by name; see `RuleFigures`.

    Raises UserError for a head whose scores are all equal.
    """
    found: dict[str, list[NDArray[Any]]] = {}
    for row in scores:
        curve = overoptimisation(row, test.golden, test.prompts, ns)
        spearman = head_measures(row, test.golden, test.prompts, (1,))[0]
        for measure in (spearman, *curve.golden, *curve.proxy):
            found.setdefault(measure.name, []).append(measure.units)
    return {name: np.stack(units) for name, units in found.items()}


def rule_figures(
    rule: str, seeds: Sequence[Mapping[str, Floats]], rate: float | None = None, flips: float | None = None
) -> RuleFigures:
    """Return what a rule is worth, of each seed's `score_figures`."""
    found = {name: np.stack([seed[name] for seed in seeds]) for name in seeds[0]}
    ns = [int(name.removeprefix("golden_at_")) for name in found if name.startswith("golden_at_")]
    for n in ns:
        for reward in ("golden", "proxy"):
            found[f"{reward}_gain_at_{n}"] = found[f"{reward}_at_{n}"] - found[f"{reward}_at_{ns[0]}"]
    best = max(ns, key=lambda n: float(found[f"golden_at_{n}"].mean()))
    found["last_rise"] = found[f"golden_at_{ns[-1]}"] - found[f"golden_at_{ns[-2]}"]
    found["lost"] = found[f"golden_at_{best}"] - found[f"golden_at_{ns[-1]}"]
    return RuleFigures(rule, rate, flips, best, found)


def _open(folder: Path, test: Path | None, plan: EnsemblePlan) -> Bench:
    store, other = open_store(folder), None if test is None else open_store(test)
    if other is not None:
        check_kind(other, store.manifest)
        if other.digest == store.digest:
            raise UserError(f"--test {test} holds the rows that heads learn from: give another store or none")
    grid = Grid(
        heads=(plan.head,), pairing=(plan.pairing,), n_pairs=(plan.n_pairs,), seeds=tuple(range(plan.seeds)),
        noise=plan.flip_rates, noise_kind="flip_rate", golden=(plan.golden,),
        test_samples=plan.test_samples or plan.ns[-1],
    )  # fmt: skip
    return Bench(store, grid, head_measures, other)


def _member_scores(ensemble: HeadEnsemble, test: JudgedRows) -> NDArray[Any]:
    """Return the members' standardised scores (E, M) of the test rows."""
    starts = range(0, len(test.rows), ROWS_AT_ONCE)
    read = (test.store.embeddings(test.rows[first : first + ROWS_AT_ONCE]) for first in starts)
    return np.concatenate([ensemble.member_scores(each) for each in read], axis=1)


def _bounds(test: JudgedRows, ns: Sequence[int]) -> list[RuleFigures]:
    """Return what choosing by the golden reward, and choosing any sample, would give."""
    upper = score_figures(test.golden[None], test, ns)
    anyone = {name: np.full_like(units, np.nan) for name, units in upper.items()}
    anyone |= {f"golden_at_{n}": upper[f"golden_at_{ns[0]}"] for n in ns}
    return [rule_figures(UPPER, [upper]), rule_figures(RANDOM, [anyone])]


def _settings(bench: Bench, test: JudgedRows, left_out: int, plan: EnsemblePlan) -> dict[str, Any]:
    parts = bench.parts(plan.golden, 0)
    return {
        **asdict(plan), "store": str(bench.store.folder), "store_digest": bench.store.digest,
        "test_store": str(test.store.folder), "test_store_digest": test.store.digest,
        "dimension": bench.store.manifest.dimension, "test_samples": bench.grid.test_samples,
        "n_train_prompts": len(np.unique(parts.train_prompts)), "n_train_rows": len(parts.train),
        "n_test_prompts": len(np.unique(test.prompts)), "n_test_rows": len(test.rows),
        "n_test_prompts_left_out": left_out,
    }  # fmt: skip
