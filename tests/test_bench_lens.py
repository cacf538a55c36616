"""The benchmark of LENS: nested pairs, shared fits, resumed runs, paired differences, and what is chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from decoder.cli import make_group, run
from decoder.contracts import UserError
from eval.bench_lens import LensBench, bench_lens, estimate_seconds, read_tuned, write_tuned
from eval.bench_lens_command import LENS_LISTS, lens
from eval.lens_cells import Result, run_group
from eval.lens_material import LensMaterial, open_material, seed_pairs
from eval.lens_plan import (
    METHODS,
    NONE,
    PAIRING,
    Arm,
    Cell,
    LensPlan,
    cells_of,
    groups_of,
    table_arms,
)
from eval.lens_report import by_size, over_sizes
from eval.lens_summary import Tables, checks, chosen_arms, summarise, summarise_sizes
from eval.stats import Estimate, crossed_estimate
from eval.synthetic_embeddings import make_synthetic
from rewards.augment import augment
from rewards.heads import make_head
from rewards.pair_rows import PairRows

PLAN = LensPlan(ratios=(2,), sizes=(20, 40), seeds=2, steps=20, n=8, test_samples=16, head="bt-linear")
QUICK = (("steps", 10), ("latent", 4), ("hidden", 8))
LENS = Arm("lens", "lens", "cartesian", QUICK)
RESIDUAL = Arm("lens-residual", "lens-residual", "own", QUICK)
ARMS = [
    Arm(NONE, NONE),
    Arm(PAIRING, PAIRING),
    Arm("perturbation", "perturbation"),
    Arm("real", "real"),
    LENS,
]
APP = make_group({"lens": lens}, lists={"lens": LENS_LISTS})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 prompts of 6 samples to train on, 8 of 16 to test on."""
    place = tmp_path_factory.mktemp("lens") / "store"
    make_synthetic(place, [6] * 60 + [16] * 8, 24, 0)
    return place


@pytest.fixture(scope="module")
def material(folder: Path) -> LensMaterial:
    return open_material(folder, PLAN)


@pytest.fixture(scope="module")
def found(folder: Path) -> LensBench:
    return bench_lens(folder, PLAN, ARMS, None)


def same(one: Result, other: Result) -> bool:
    """Return whether two results are equal but for their seconds, bit for bit."""
    return replace(one, seconds=None) == replace(other, seconds=None)


def rows_of(pairs: PairRows) -> set[tuple[int, ...]]:
    return set(map(tuple, pairs.pairs.tolist()))


def test_smaller_sizes_are_parts_of_larger_ones(material: LensMaterial) -> None:
    small, large = (seed_pairs(material, n, 0) for n in (20, 40))
    for one, other in zip(small, large, strict=True):
        assert rows_of(one) < rows_of(other)
    assert [len(side) for side in large] == [40, 4]
    prompts = material.store.groups()[0]
    learnt, stopped = (set(prompts[side.pairs.ravel()]) for side in large)
    assert not learnt & stopped
    assert len(seed_pairs(material, 40, 0, 2)[0]) == 80
    assert rows_of(large[0]) != rows_of(seed_pairs(material, 40, 1)[0])
    with pytest.raises(UserError, match="ask for fewer"):
        seed_pairs(material, 4000, 0)


def test_labels_are_flipped_as_often_as_asked(folder: Path) -> None:
    for rate in (0.0, 0.3):
        made = open_material(folder, replace(PLAN, flip_rate=rate))
        golden, pairs = made.store.column("golden"), made.pairs(0)[0].pairs
        assert (golden[pairs[:, 0]] < golden[pairs[:, 1]]).mean() == pytest.approx(rate, abs=0.05)


def test_tuning_never_sees_the_test_prompts(folder: Path, material: LensMaterial) -> None:
    tuning = open_material(folder, replace(PLAN, part="ablations", n=6))
    sides = [set(part.prompts) for part in (tuning.train, tuning.judged, material.judged)]
    assert [len(side) for side in sides] == [48, 12, 8]
    assert not sides[0] & sides[1]
    assert not (sides[0] | sides[1]) & sides[2]
    assert sides[0] | sides[1] == set(material.train.prompts)


def test_at_ratio_one_pairing_and_perturbation_are_none(material: LensMaterial) -> None:
    """Bit for bit: nothing is added, and the same head sees the same pairs."""
    none, *others = (
        run_group(material, [Cell(Arm(name, name), 1.0, 40, 0)])[0]
        for name in (NONE, PAIRING, "perturbation", "real")
    )
    assert none.reward
    for other in others:
        assert other.reward == none.reward
        assert other.spearman == none.spearman


def test_a_shared_fit_is_the_arm_alone(material: LensMaterial) -> None:
    """Two forms of LENS, two ratios, two noises: one fit, and what `augment` by name gives."""
    loud = Arm("loud", "lens", "own", (*QUICK, ("variance", 1.0)))
    cells = [Cell(LENS, 2, 20, 1), Cell(LENS, 4, 20, 1), Cell(RESIDUAL, 2, 20, 1), Cell(loud, 2, 20, 1)]
    assert len(groups_of(cells)) == 1
    together = run_group(material, cells)
    assert len({result.reward for result in together}) == len(cells)
    seeds, stop = seed_pairs(material, 20, 1)
    for cell, result in zip(cells, together, strict=True):
        assert same(run_group(material, [cell])[0], result)
        arm = cell.arm
        made = augment(arm.method, seeds, stop, cell.ratio, combine=arm.combine, seed=1, **arm.values)
        head = make_head("bt-linear", steps=20, patience=10**6, seed=1).fit(made.embeddings, made.targets)
        scores = head.predict(material.judged_embeddings())
        best = [
            np.mean(material.judged.golden[mine][order[-1:]])
            for prompt in np.unique(material.judged.prompts)
            for mine in [np.flatnonzero(material.judged.prompts == prompt)]
            for order in [np.argsort(scores[mine])]
        ]
        wide = open_material(material.store.folder, replace(PLAN, n=16))
        assert run_group(wide, [cell])[0].reward == pytest.approx(best)
    other = Arm("wide", "lens", "cartesian", (("steps", 10), ("latent", 2), ("hidden", 8)))
    assert len(groups_of([*cells, Cell(other, 2, 20, 1), Cell(LENS, 2, 20, 0)])) == 3


def test_a_resumed_run_is_the_uninterrupted_one(folder: Path, found: LensBench, tmp_path: Path) -> None:
    """A journal cut in the middle of a line goes on; processes give what this process does."""
    first = bench_lens(folder, replace(PLAN, seeds=1), ARMS, tmp_path)
    assert len(first.results) == 10
    journal = tmp_path / "table.jsonl"
    journal.write_bytes(journal.read_bytes()[:-50])
    stamp = journal.read_bytes().rpartition(b"\n")[0]
    again = bench_lens(folder, PLAN, ARMS, tmp_path, workers=1)
    assert journal.read_bytes().startswith(stamp)
    assert again.results.keys() == found.results.keys()
    assert all(same(again.results[key], found.results[key]) for key in found.results)
    length = journal.stat().st_size
    bench_lens(folder, PLAN, ARMS, tmp_path)
    assert journal.stat().st_size == length
    with pytest.raises(UserError, match=r"flip_rate 0\.1 there, 0\.2 now"):
        bench_lens(folder, replace(PLAN, flip_rate=0.2), ARMS, tmp_path)
    journal.write_bytes(b"{}\nno json\n")
    with pytest.raises(UserError, match="not as it was written"):
        bench_lens(folder, PLAN, ARMS, tmp_path)


def test_differences_are_paired(found: LensBench) -> None:
    tables = Tables(found)
    for name in (NONE, PAIRING, "lens"):
        itself = tables.minus(name, name, 2, 40)
        assert itself is not None
        assert (itself.value, itself.low, itself.high) == (0.0, 0.0, 0.0)
    table = {line.place: line for line in summarise(found)}
    assert len(table) == 2 * len(ARMS)
    line = table["lens", 2, 40]
    none = table[NONE, 1.0, 40]
    assert line.differences[NONE].value == pytest.approx(line.reward.value - none.reward.value)
    assert line.seconds["fit"] > 0
    claims = checks(found)
    assert len(claims) == 2 * 3  # LENS less none, pairing and perturbation; Gaussians were not asked for
    assert claims["2x of 40: lens minus none"].measured == line.differences[NONE]


def text(found: Estimate) -> str:
    said = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
    return said.replace("-0.000", "0.000")


def test_the_page_has_a_row_a_method_and_a_column_a_size(found: LensBench) -> None:
    lines = summarise(found)
    told = {row["method"]: row for row in by_size(lines, 2)}
    assert list(told) == [arm.name for arm in ARMS]
    for line in lines:
        assert told[line.arm.name][f"{line.n_pairs} pairs"] == text(line.reward)
    minus = {row["method"]: row for row in by_size(lines, 2, NONE)}
    assert set(minus) == {arm.name for arm in ARMS} - {NONE}
    line = next(each for each in lines if each.place == ("lens", 2, 40))
    assert minus["lens"]["40 pairs"] == text(line.differences[NONE])
    told = {row["method"]: row for row in over_sizes(summarise_sizes(found), 2)}
    tables = Tables(found)
    both = [tables.rewards("lens", 2, size) for size in (20, 40)]
    bare = [tables.rewards(NONE, 2, size) for size in (20, 40)]
    assert told["lens"]["golden"] == text(crossed_estimate((both[0] + both[1]) / 2))  # type: ignore[operator]
    mean = np.mean(np.array(both) - np.array(bare))
    assert told["lens"]["minus none"].startswith(f"{mean:.3f} [".replace("-0.000", "0.000"))
    assert told[NONE]["minus none"] == ""


def test_the_share_of_the_golden_reward_is_one(found: LensBench) -> None:
    bounds = found.material.bounds()
    results = {key: replace(result, reward=tuple(bounds[1])) for key, result in found.results.items()}
    for line in summarise(replace(found, results=results)):
        assert (line.share.value, line.share.low, line.share.high) == pytest.approx((1, 1, 1))
    results = {key: replace(result, reward=tuple(bounds[0])) for key, result in found.results.items()}
    assert all(line.share.value == pytest.approx(0) for line in summarise(replace(found, results=results)))


def test_what_cannot_be_is_left_out_and_said(material: LensMaterial, folder: Path) -> None:
    """A cell that fails takes no other with it: 900 labelled pairs are not there."""
    arms = [Arm(NONE, NONE), Arm("real", "real"), Arm(PAIRING, PAIRING)]
    wide = bench_lens(folder, replace(PLAN, ratios=(40,), sizes=(40,), seeds=1), arms, None)
    lines = {line.arm.name: line for line in summarise(wide)}
    assert "ask for fewer" in lines["real"].error
    assert not lines[PAIRING].error
    assert chosen_arms(wide).keys() == {PAIRING}


def test_the_best_setting_is_chosen(found: LensBench) -> None:
    """By the mean over sizes, seeds and prompts; what method none got is not a setting."""
    quiet = Arm("quiet", "perturbation", "own", (("variance", 0.001),))
    cells = cells_of([*ARMS, quiet], PLAN)
    worth = {"quiet": 2.0, "perturbation": 1.0}
    results = {
        cell.key: Result(
            cell.key, (worth.get(cell.arm.name, 0.0),) * 8, (None,) * 8, {"fit": 0.0, "head": 0.0}
        )
        for cell in cells
    }
    bench = replace(found, arms=[*ARMS, quiet], cells=cells, results=results)
    assert chosen_arms(bench)["perturbation"] is quiet
    assert NONE not in chosen_arms(bench)


def test_tuned_settings_reach_the_table(tmp_path: Path) -> None:
    assert read_tuned(tmp_path) == {}
    write_tuned(tmp_path, {"lens": Arm("x", "lens", "own", (("gamma", 0.5),))})
    arms = {arm.name: arm for arm in table_arms(read_tuned(tmp_path))}
    assert arms["lens"] == Arm("lens", "lens", "own", (("gamma", 0.5),))
    assert arms["lens, published"] == Arm("lens, published", "lens")
    assert set(arms) == {*METHODS, "lens, published"}
    (tmp_path / "tuned.json").write_text("[]")
    with pytest.raises(UserError, match="broken"):
        read_tuned(tmp_path)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        run(APP, ["lens", *arguments])
    assert not ended.value.code, capsys.readouterr().err
    told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return told


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ablations first, whose choice the table uses; both leave pages and pictures."""
    pytest.importorskip("matplotlib")
    common = [str(folder), "--size", "20", "--ratio", "2", "--seeds", "1", "--head", "bt-linear",
              "--steps", "20", "--workers", "0", "--output", str(tmp_path)]  # fmt: skip
    baselines = ["--method", "perturbation", "mixup"]
    tuned = call(capsys, *common, *baselines, "--part", "ablations", "--n", "6")
    assert len(tuned["rows"]) == 1 + 2 + 10 + 8
    table = call(capsys, *common, *baselines, "--n", "8")
    assert {row["arm"] for row in table["rows"]} == {NONE, PAIRING, "perturbation", "mixup"}
    chosen = json.loads((tmp_path / "tuned.json").read_text())
    used = next(row for row in table["rows"] if row["arm"] == "mixup")
    assert (used["combine"], used["options"]) == (chosen["mixup"]["combine"], chosen["mixup"]["options"])
    for part in ("table", "ablations"):
        page = (tmp_path / f"{part}.md").read_text()
        assert f"]({part}.png)" in page
        assert "held out of those to train on" in page or part == "table"
        assert (tmp_path / f"{part}.svg").read_text().startswith("<?xml")
        assert json.loads((tmp_path / f"{part}.json").read_text())["rows"]


def test_a_dry_run_says_how_long(folder: Path) -> None:
    told = estimate_seconds(folder, PLAN, ARMS, 2)
    assert told["cells"] == 20
    assert told["fits"] == 4
    assert told["minutes"] > 0


def test_more_samples_than_any_prompt_has_cannot_compete(folder: Path) -> None:
    with pytest.raises(UserError, match="the most is 16"):
        open_material(folder, replace(PLAN, n=17))
