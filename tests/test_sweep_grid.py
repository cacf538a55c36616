"""Grids of sweeps: what their lists multiply out to, and what is refused with what advice."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from decoder.contracts import UserError
from rewards.sweep_grid import Cell
from rewards.sweep_yaml import GRIDS, find_grid, read_grid
from tests.sweeps import grid

GOOD = """
heads: [bt-linear, lgb-clf]
pairing: cross
beta: [0.5, .inf]
n_pairs: [100, 200]
seeds: [3, 4]
"""


def read(tmp_path: Path, text: str) -> object:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return read_grid(path)


def test_lists_are_multiplied_out(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD + "splits: 2\ngolden: [kind, useful]\n")
    expected = [
        (head, golden, split, "cross", n_pairs, seed, noise)
        for head in ("bt-linear", "lgb-clf")
        for golden in ("kind", "useful")
        for split in (0, 1)
        for n_pairs in (100, 200)
        for seed in (3, 4)
        for noise in (0.5, math.inf)
    ]
    assert found.cells() == [Cell(number, *values) for number, values in enumerate(expected)]
    assert len(expected) == 64


def test_groups_hold_every_cell_once_and_one_head_each() -> None:
    axes = grid(heads=("bt-linear", "lgb-clf"), seeds=tuple(range(5)))
    groups = axes.groups()
    assert sorted((cell for group in groups for cell in group), key=lambda cell: cell.number) == axes.cells()
    assert all(len({cell.head for cell in group}) == 1 for group in groups)
    sizes = {head: {len(g) for g in groups if g[0].head == head} for head in axes.heads}
    assert sizes == {"bt-linear": {6, 7}, "lgb-clf": {2}}, "20 cells: three even parts of at most 8, and twos"
    assert groups == axes.groups()
    assert groups != sorted(groups, key=lambda group: group[0].number), "the order says nothing about heads"


def test_what_is_packaged(tmp_path: Path) -> None:
    sizes = {path.stem: len(read_grid(path).cells()) for path in GRIDS.glob("*.yaml")}
    assert sizes == {"findings": 1_600, "paper": 12_960, "small": 1_080}
    assert find_grid("paper") == GRIDS / "paper.yaml"
    (tmp_path / "mine").touch()
    assert find_grid(str(tmp_path / "mine")) == tmp_path / "mine"
    with pytest.raises(UserError, match="did you mean small"):
        find_grid("smal")


def test_the_record_is_json_and_says_everything() -> None:
    axes = grid(noise=(math.inf,), options={"lgb-clf": {"trees": 3}})
    record = json.loads(json.dumps(axes.record(), allow_nan=False))
    assert record == axes.record()
    assert set(record) == set(type(axes).__slots__)
    assert record["noise"] == ["inf"]
    assert record["options"] == {"lgb-clf": {"trees": 3}}


def test_options_are_read(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD + "options: {bt-linear: {widths: [4, 4], lr: 0.01}}\n")
    assert found.options == {"bt-linear": {"widths": (4, 4), "lr": 0.01}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("seed: 1", "unknown key 'seed': did you mean seeds"),
        ("flip_rate: 0.1", "beta and flip_rate given: say how noisy labels are by one"),
        ("beta: []", "beta is empty"),
        ("beta: [-1]", "beta: -1 is below 0"),
        ("beta: [1, 1.0]", "beta has 1.0 twice"),
        ("beta: 1e-1x", "beta: '1e-1x' is no number"),
        ("beta: yes", "beta: True is no number"),
        ("seeds: 5", "seeds: 5 is no list"),
        ("seeds: [0.5]", "seeds: 0.5 is no whole number of 0 or more"),
        ("n_pairs: [9]", "n_pairs: 9 is no whole number of 10 or more"),
        ("heads: [bt-lin]", "heads: unknown 'bt-lin': did you mean bt-linear"),
        ("heads: [[a]]", r"heads: \['a'\] is no name"),
        ("pairing: withn", "pairing: unknown 'withn': did you mean within"),
        ("test_share: 1.5", "test_share: 1.5 is no share"),
        ("scale: -2", "scale: -2 is neither std nor"),
        ("splits: 0", "splits: 0 is no whole number of 1 or more"),
        ("options: {bt-mlp: {lr: 1.0}}", "options are given for 'bt-mlp', which is no head here"),
        ("options: {bt-linear: {lrr: 1.0}}", "options of bt-linear: unknown option 'lrr': did you mean lr"),
        ("options: {bt-linear: {lr: fast}}", "options of bt-linear: {'lr': 'fast'} cannot be"),
        ("options: {bt-linear: {seed: 1}}", "options of bt-linear: the seed is an axis"),
        ("options: {bt-linear: 3}", "options of bt-linear: 3 are not names and values"),
        ("options: [1]", r"options: \[1\] is not head by head"),
    ],
)
def test_refusals_name_file_and_key(tmp_path: Path, change: str, told: str) -> None:
    key = change.split(":")[0]
    kept = [line for line in GOOD.splitlines() if not line.startswith(f"{key}:")]
    with pytest.raises(UserError, match=told) as caught:
        read(tmp_path, "\n".join([*kept, change]))
    assert str(caught.value).startswith(f"{tmp_path / 'grid.yaml'}: ")


@pytest.mark.parametrize("key", ["heads", "pairing", "n_pairs", "seeds", "beta"])
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=key):
        read(tmp_path, "\n".join(line for line in GOOD.splitlines() if not line.startswith(key)))


def test_flip_rates_have_their_range(tmp_path: Path) -> None:
    text = GOOD.replace("beta: [0.5, .inf]", "flip_rate: [0, 0.25, 0.5]")
    assert read(tmp_path, text).noise == (0.0, 0.25, 0.5)
    with pytest.raises(UserError, match=r"flip_rate: 0\.6 is not between 0 and 0\.5"):
        read(tmp_path, text.replace("0.25", "0.6"))


def test_files_that_are_no_grid(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no YAML"):
        read(tmp_path, "heads: [")
    with pytest.raises(UserError, match="holds list, not keys"):
        read(tmp_path, "- 1")
    with pytest.raises(UserError, match="cannot read"):
        read_grid(tmp_path / "none.yaml")
