"""What the benchmark of LENS compares: the arms of its ablations and its picture, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from decoder.contracts import UserError
from eval.lens_picture import draw_ablations
from eval.lens_plan import NONE, Arm, Cell, LensPlan, ablation_arms
from eval.lens_summary import Line
from eval.stats import Difference, Estimate


def test_ablations_change_one_option_at_a_time_but_noise_with_its_width() -> None:
    arms = ablation_arms()
    assert len({Cell(arm, 4, 100, 0).key for arm in arms}) == len(arms) == len({arm.name for arm in arms})
    several = {arm.options for arm in arms if len(arm.options) > 1}
    assert several == {(("noise", "posterior"), ("variance", 1.0))}
    lens = {arm.options for arm in arms if arm.method == "lens" and arm.combine == "own"}
    assert {value for each in lens for name, value in each if name == "gamma"} == {0, 0.01, 0.5, 1}
    assert {value for each in lens for name, value in each if name == "filter"} == {
        "none", "posterior", "aggregated"
    }  # fmt: skip
    assert len(lens) == 1 + 4 + 3 + 2 + 1 + 3 + 1


def test_a_result_is_kept_under_all_options() -> None:
    """So that one of another default is not taken for it."""
    bare, said = (Cell(Arm("x", "lens", options=o), 4, 100, 0).key for o in ((), (("gamma", 0.1),)))
    assert bare == said
    assert '"gamma": 0.1' in bare


def test_ablations_have_panels_of_numbers_alone(tmp_path: Path) -> None:
    """Words have no place on an axis, nor has a setting of two options at once."""
    pytest.importorskip("matplotlib")
    arms = [arm for arm in ablation_arms(("lens", "lens-conditional")) if arm.method != NONE]
    draw_ablations([line(arm) for arm in arms], tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for option in ("gamma", "latent", "variance"):
        assert f"{option}, 100 seed pairs" in text
    for option in ("filter", "noise", "divergence", "condition"):
        assert f"{option}, 100 seed pairs" not in text


def line(arm: Arm) -> Line:
    reward, change = Estimate(0.5, 0.4, 0.6, 9), Difference(0.1, -0.1, 0.3, 9, 0.5)
    return Line(arm, 4.0, 100, reward, reward, 0.2, {"fit": 1.0}, {NONE: change})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"part": "tables"}, "did you mean table"),
        ({"flip_rate": 0.6}, "flip rate"),
        ({"ratios": (1,)}, "above 1"),
        ({"head": "lgb-clf"}, "unknown option 'steps'"),
        ({"seeds": 0}, "give 1 or more"),
    ],
)
def test_plans_that_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LensPlan(**changes)


def test_arms_that_are_refused() -> None:
    for arguments, said in ((("a", "lans"), "did you mean lens"), (("a", "lens", "outer"), "no combination")):
        with pytest.raises(UserError, match=said):
            Arm(*arguments)
