"""The pictures of choosing among samples: what stands in them, and where their labels go."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from decoder.contracts import UserError
from decoder.dropping import DropSchedule
from eval.curves import NOT_SCORED
from eval.dropping_curve import DroppingPoint
from eval.selection import BestOfCurve
from eval.selection_picture import _best_of, draw_best_of, draw_dropping, spread
from eval.stats import Estimate
from tests.source import ROOT

pytest.importorskip("matplotlib")

KS = (1, 2, 4, 8, 16)


def near(value: float, width: float = 0.03) -> Estimate:
    return Estimate(value, value - width, value + width, 200)


def curve(skill: float, ks: Sequence[int] = KS) -> BestOfCurve:
    return BestOfCurve(tuple(ks), tuple(near(0.4 + skill * math.log2(k) / 8) for k in ks))


def point(tokens: float, gain: float, **schedule: Any) -> DroppingPoint:
    return DroppingPoint(DropSchedule(**schedule), near(tokens, 0.01), near(gain, 0.02), near(0.8))


CURVES = {f"scorer {i}": curve(0.1 * i - 0.1) for i in range(10)}
ORACLE = curve(1.0)
SERIES = {
    "keep half": [
        point(0.5, 0.96, at=(16, 32)),
        point(0.3, 0.8, at=(8,)),
        point(0.7, 0.99, at=(64,), keep=0.7),
    ],
    "stop": [point(0.6, 0.9, margin=0.25, first=8), point(0.45, 0.93, at=(8,), margin=0.5)],
}
Draw = Callable[..., None]
DRAWN: list[tuple[Draw, tuple[Any, ...]]] = [(draw_best_of, (CURVES, ORACLE)), (draw_dropping, (SERIES,))]
BOTH = pytest.mark.parametrize(("draw", "given"), DRAWN, ids=["best of", "dropping"])


def svg_texts(draw: Draw, *given: Any) -> list[str]:
    """Return the texts of a picture, a line of each on its own."""
    buffer = io.BytesIO()
    draw(*given, buffer)
    nodes = ElementTree.fromstring(buffer.getvalue()).iter()
    found = [part for node in nodes if str(node.tag).endswith("}text") for part in node.itertext()]
    return [part.strip() for part in found if part.strip()]


# BoN@k.


def test_every_line_is_named_with_its_last_figure() -> None:
    found = svg_texts(draw_best_of, CURVES, ORACLE)
    assert {f"scorer {i}  {0.35 + 0.05 * i:.3f}" for i in range(10)} <= set(found)
    assert {"oracle  0.900", "BoN@1  0.400", "accuracy of the chosen sample  (better →)"} <= set(found)
    assert [found.count(str(k)) for k in KS] == [1] * 5


def test_what_was_not_scored_is_said() -> None:
    nothing = BestOfCurve(KS, (NOT_SCORED,) * 5)
    short = BestOfCurve(KS, (*curve(0.5).estimates[:3], NOT_SCORED, NOT_SCORED))
    found = svg_texts(draw_best_of, {"judge": nothing, "probe": short}, ORACLE)
    assert "not scored: judge" in found
    assert "probe  0.525" in found
    assert not any(text.startswith("judge") for text in found)


@pytest.mark.parametrize("ks", [(1,), (3,), (2, 3, 5), (1, 512)])
def test_ks_come_as_they_like(ks: tuple[int, ...]) -> None:
    found = svg_texts(draw_best_of, {"a": curve(0.5, ks)}, curve(1.0, ks))
    assert any(text.startswith("oracle") for text in found)
    assert any(text.startswith("BoN@1") for text in found) == (1 in ks)


def test_labels_neither_touch_nor_leave_the_picture() -> None:
    """Twelve lines whose ends lie almost at one place."""
    close = {f"a scorer with a long name {i}": curve(0.5 + 0.001 * i) for i in range(12)}
    figure = _best_of(close, ORACLE, "accuracy", 3)
    (panel,) = figure.axes
    boxes = [note.get_window_extent() for note in panel.texts]
    assert len(boxes) == 14
    for i, box in enumerate(boxes):
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert box.x0 >= panel.bbox.x1


def test_only_the_first_curves_have_bands() -> None:
    for bands in (0, 2, 10):
        figure = _best_of(CURVES, ORACLE, "accuracy", bands)
        assert len(figure.axes[0].collections) == bands


def test_spread_is_scipys_isotonic_regression() -> None:
    random = np.random.default_rng(0)
    for n in (1, 2, 5, 12):
        levels, gap = random.random(n), 0.06
        order = np.argsort(levels)
        shift = gap * np.arange(n)
        best = isotonic_regression(levels[order] - shift).x.clip(0, 1 - shift[-1]) + shift
        found = spread(levels, gap)
        np.testing.assert_allclose(found[order], best)
        assert (np.diff(found[order]) >= gap - 1e-12).all()
        assert found.min() >= 0
        assert found.max() <= 1 + 1e-12


def test_spread_keeps_what_has_room() -> None:
    assert spread(np.array([0.9, 0.1, 0.5]), 0.2).tolist() == pytest.approx([0.9, 0.1, 0.5])
    assert spread(np.array([0.5, 0.5]), 0.2).tolist() == pytest.approx([0.4, 0.6])
    assert spread(np.array([1.0, 1.0]), 0.2).tolist() == pytest.approx([0.8, 1.0])
    assert spread(np.zeros(11), 0.2).tolist() == pytest.approx((0.2 * np.arange(11)).tolist())


# Dropping.


def test_every_schedule_is_named() -> None:
    found = svg_texts(draw_dropping, SERIES)
    said = {"16, 32", "8", "70 % at 64", "lead 0.25", "8 + lead 0.5", "full run", "keep half", "stop"}
    assert said <= set(found)
    assert {"target: 95% of the gain", "for 55% of the tokens"} <= set(found)


def test_a_point_without_a_gain_is_left_out() -> None:
    lost = DroppingPoint(DropSchedule(at=(5,)), near(0.5), NOT_SCORED, near(0.5))
    assert "5" not in svg_texts(draw_dropping, {"a": [lost, point(0.5, 0.9, at=(7,))]})
    assert "no gain to keep" in svg_texts(draw_dropping, {"a": [lost]})


def test_an_endless_interval_does_not_squash_the_picture() -> None:
    wild = DroppingPoint(DropSchedule(at=(5,)), near(0.5), Estimate(0.9, -80.0, 90.0, 5), near(0.5))
    found = svg_texts(draw_dropping, {"a": [wild]})
    assert "-2000%" not in found
    assert "100%" in found


# Both.


@BOTH
@pytest.mark.parametrize(("kind", "begin"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_the_suffix_is_the_format_and_equal_figures_give_equal_bytes(
    draw: Draw, given: tuple[Any, ...], kind: str, begin: bytes, tmp_path: Path
) -> None:
    path, stream = tmp_path / f"picture.{kind.upper()}", io.BytesIO()
    draw(*given, path)
    draw(*given, stream, file_format=kind)
    assert path.read_bytes().startswith(begin)
    assert path.read_bytes() == stream.getvalue()


@BOTH
def test_a_users_own_style_changes_nothing(draw: Draw, given: tuple[Any, ...]) -> None:
    import matplotlib

    plain, other = io.BytesIO(), io.BytesIO()
    draw(*given, plain)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        draw(*given, other)
    assert plain.getvalue() == other.getvalue()


@BOTH
def test_names_are_no_mathematics(draw: Draw, given: tuple[Any, ...]) -> None:
    name = "a_$x$^2 & <b>"
    found = svg_texts(draw, {name: next(iter(given[0].values()))}, *given[1:])
    assert any(text.startswith(name) for text in found)


@BOTH
def test_other_endings_are_refused(draw: Draw, given: tuple[Any, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"picture.jpg' as 'jpg'; end its name in .svg, .png or .pdf"):
        draw(*given, tmp_path / "picture.jpg")


@BOTH
def test_a_missing_matplotlib_is_named(
    draw: Draw, given: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'tiller-lm\[eval\]'"):
        draw(*given, io.BytesIO())


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(UserError, match="no scorer to draw; give at least one curve"):
        draw_best_of({}, ORACLE, io.BytesIO())
    with pytest.raises(UserError, match="no schedule to draw; give at least one point"):
        draw_dropping({"a": []}, io.BytesIO())


def test_importing_is_light() -> None:
    code = "import sys, eval.selection_picture; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False", "False"]
