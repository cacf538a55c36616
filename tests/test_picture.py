"""The trade-off picture: what stands in it, for curves as they come, and the records behind it."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from decoder.contracts import UserError
from eval.curves import (
    NOT_SCORED,
    RELATIVE_TIME,
    Axis,
    Curve,
    Example,
    Point,
    axis_from_json,
    curve_from_json,
    estimate_text,
    figure_text,
    spots,
    worst_first,
)
from eval.picture import COLOURS, DASHES, MARKERS, _hull, draw, inline_svg
from eval.picture_labels import Places, Room
from eval.stats import Estimate
from tests.source import ROOT

pytest.importorskip("matplotlib")

POSITIVE = Axis("positive share", "higher", "positive share")
TOXIC = Axis("expected maximum toxicity", "lower", "expected maximum toxicity")
PERPLEXITY = Axis("perplexity", "lower", "perplexity")
BETAS = (0.0, 1.0, 2.0, 4.0, 8.0)


def near(value: float, width: float = 0.03) -> Estimate:
    return Estimate(value, value * (1 - width), value * (1 + width), 200)


def curve(name: str, price: float = 0.05, time: float = 1.02, betas: Sequence[float] = BETAS) -> Curve:
    """A method that pays `price` in log perplexity for each unit of beta."""
    return Curve(
        name,
        tuple(
            Point(
                f"β {beta:g}" if beta else "unsteered",
                beta,
                {
                    "positive share": near(0.5 + 0.4 * math.tanh(beta / 4)),
                    "expected maximum toxicity": near(0.3 * math.exp(-abs(beta) / 5)),
                    "perplexity": near(24 * math.exp(price * abs(beta))),
                },
                {RELATIVE_TIME: time if beta else 1.0},
            )
            for beta in betas
        ),
    )


def svg_texts(svg: str) -> list[str]:
    """Return the texts of a picture, in any order."""
    return [
        "".join(node.itertext()).strip()
        for node in ElementTree.fromstring(svg).iter()
        if _tag(node) == "text"
    ]


def _tag(node: Any) -> str:
    return str(node.tag).rpartition("}")[2]


def svg_of(curves: Sequence[Curve], *attributes: Axis) -> str:
    return inline_svg(curves, attributes or (POSITIVE,), PERPLEXITY)


# The picture.


def test_the_svg_says_names_betas_and_axes_as_text() -> None:
    found = svg_texts(svg_of([curve("Tiller"), curve("RAD", 0.1, 1.46)], POSITIVE, TOXIC))
    assert {"Tiller (time ×1.02)", "RAD (time ×1.46)", "unsteered"} <= set(found)  # noqa: RUF001
    assert [found.count(f"β {beta}") for beta in (1, 2, 4, 8)] == [4] * 4, "two curves in two panels"
    assert {
        "positive share  (better →)",
        "(← better)  expected maximum toxicity",
        "(← better)  perplexity",
    } <= set(found)
    assert found.count("1.10 × unsteered") == 2  # noqa: RUF001


def test_equal_curves_give_equal_bytes() -> None:
    for kind in ("svg", "png"):
        files = []
        for price in (0.05, 0.05, 0.06):
            buffer = io.BytesIO()
            draw([curve("Tiller", price)], [POSITIVE], PERPLEXITY, buffer, file_format=kind)
            files.append(buffer.getvalue())
        assert files[0] == files[1] != files[2]


def test_a_users_own_style_changes_nothing() -> None:
    import matplotlib

    plain = svg_of([curve("Tiller")])
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert svg_of([curve("Tiller")]) == plain
        assert dict(matplotlib.rcParams) == before


def test_files_are_what_their_names_say(tmp_path: Path) -> None:
    for name, begin in (("p.svg", b"<?xml"), ("p.PNG", b"\x89PNG")):
        draw([curve("Tiller")], [POSITIVE], PERPLEXITY, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)
    width = int.from_bytes((tmp_path / "p.PNG").read_bytes()[16:20])
    assert width == 1800, "900 px at double density"


def test_curves_differ_in_colour_marker_and_dashes() -> None:
    """All three, for as many as six; as pairs, for many more."""
    assert len(set(COLOURS)) == len(COLOURS) == len({str(dashes) for dashes in DASHES}) == 6
    assert len({(COLOURS[i % 6], MARKERS[i % len(MARKERS)]) for i in range(42)}) == 42
    drawn = svg_of([curve(f"method {i}", 0.02 * i) for i in range(6)])
    for colour in COLOURS:
        assert colour.lower() in drawn.lower()


def test_points_are_joined_in_order_of_beta() -> None:
    given = curve("Tiller", betas=(4, -1, 0, 2))
    found = spots(given, POSITIVE, PERPLEXITY)
    assert [spot.point.beta for spot in found] == [-1, 0, 2, 4]
    assert svg_of([given]) == svg_of([Curve("Tiller", tuple(spot.point for spot in found))])


@pytest.mark.parametrize(("price", "is_log"), [(0.13, False), (0.15, True)], ids=["x 2.8", "x 3.3"])
def test_perplexity_is_logarithmic_where_it_spans_more_than_three(price: float, is_log: bool) -> None:
    """On a log axis the ticks are not evenly spaced."""
    figure = ElementTree.fromstring(svg_of([curve("Tiller", price)]))
    (axis,) = [node for node in figure.iter() if node.get("id") == "matplotlib.axis_2"]
    texts = ["".join(node.itertext()).strip() for node in axis.iter() if _tag(node) == "text"]
    ticks = [float(text) for text in texts if "better" not in text]
    assert len(ticks) > 2
    assert (len(set(np.diff(ticks))) > 1) == is_log


def test_what_was_not_scored_is_left_out() -> None:
    """NaN and infinity, one point or all of them; the others are drawn as ever."""
    whole = curve("Tiller")
    missing = {"positive share": NOT_SCORED, "perplexity": Estimate(math.inf, math.nan, math.nan, 0)}
    lost = Curve("Tiller", (*whole.points, Point("β 16", 16, missing, {})))
    assert svg_of([lost]) == svg_of([whole])
    nothing = Curve("Tiller", tuple(Point(p.label, p.beta, missing, {}) for p in whole.points))
    assert "not scored" in svg_texts(svg_of([nothing]))


def test_an_unknown_interval_is_no_band() -> None:
    """One prompt has a value and no interval."""
    bare = {
        "positive share": Estimate(0.6, math.nan, math.nan, 1),
        "perplexity": Estimate(25.0, 25.0, 25.0, 1),
    }
    texts = svg_texts(svg_of([Curve("Tiller", (Point("β 1", 1, bare, {}),))]))
    assert "β 1" in texts
    assert "unsteered" not in texts


def test_points_that_differ_in_cost_say_it() -> None:
    points = [Point(f"n {n}", n, curve("x").points[1].estimates, {RELATIVE_TIME: float(n)}) for n in (2, 16)]
    found = svg_texts(svg_of([Curve("Best of n", tuple(points))]))
    assert {"Best of n (time ×2 to 16)", "n 2 (×2)", "n 16 (×16)"} <= set(found)  # noqa: RUF001


@pytest.mark.parametrize("name", ["$x_1$", "5 $ a month", "_hidden", "a <b> & c", "long " * 40])
def test_any_name_is_written_as_it_is(name: str) -> None:
    found = " ".join(" ".join(svg_texts(svg_of([curve(name)]))).split())
    assert f"{' '.join(name.split())} (time" in found


def test_many_panels() -> None:
    more = [Axis("perplexity", "lower", f"panel {i}") for i in range(4)]
    found = svg_texts(svg_of([curve("Tiller")], *more))
    assert {f"(← better)  panel {i}" for i in range(4)} <= set(found)


# Its parts.


def test_the_band_is_scipys_convex_hull() -> None:
    spatial = pytest.importorskip("scipy.spatial")
    points = np.random.default_rng(0).normal(size=(30, 2))
    theirs = points[spatial.ConvexHull(points).vertices]  # anticlockwise too
    ours = _hull(points)
    start = int(np.argmin(np.abs(theirs - ours[0]).sum(1)))
    np.testing.assert_array_equal(ours, np.roll(theirs, -start, axis=0))


@pytest.mark.parametrize("corners", [[[1, 1]] * 4, [[0, 0], [1, 1], [2, 2], [3, 3]]], ids=["point", "line"])
def test_a_flat_band_is_drawn_all_the_same(corners: list[list[int]]) -> None:
    ends = {tuple(point) for point in _hull(np.array(corners, dtype=float))}
    assert ends == {tuple(corners[0]), tuple(corners[-1])}


def test_a_label_goes_where_nothing_is() -> None:
    """Left is a line, right a label, above the edge of the panel: it must go below."""
    turns = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    left = np.stack([np.linspace(0, 49, 20), np.full(20, 90.0)], axis=-1)
    room = Room(np.array([0.0, 0.0, 100.0, 100.0]), left, [np.array([60.0, 80.0, 90.0, 99.0])])
    places = Places(np.full((4, 2), (50.0, 90.0)), turns, np.full(4, 5.0))
    gap, centre = room.place(places, np.array([20.0, 10.0]))
    assert (gap, *centre) == (5.0, 50.0, 80.0)
    np.testing.assert_array_equal(room.taken[-1], [40, 75, 60, 85])
    assert room.place(places, np.array([20.0, 10.0]))[1].tolist() != [50.0, 80.0], "it is taken now"


# Bad input.


@pytest.mark.parametrize(
    ("curves", "attributes", "name", "said"),
    [
        ([curve("a")], [POSITIVE], "p.pdf", r"cannot draw .*p\.pdf.*\.svg or \.png"),
        ([curve("a")], [], "p.svg", "no attribute to draw"),
        ([], [POSITIVE], "p.svg", "without a single point"),
        ([Curve("a", ())], [POSITIVE], "p.svg", "without a single point"),
        (
            [curve("a")],
            [Axis("joy", "higher", "joy")],
            "p.svg",
            "no point has the measure 'joy'; use one of: positive share, ",
        ),
    ],
    ids=["ending", "no attribute", "no curve", "no point", "measure"],
)
def test_what_cannot_be_drawn_is_refused(
    curves: list[Curve], attributes: list[Axis], name: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        draw(curves, attributes, PERPLEXITY, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"needs matplotlib: pip install 'tiller-lm\[eval\]'"):
        svg_of([curve("a")])


def test_importing_is_light() -> None:
    """A command may import the module before it knows whether it will draw."""
    code = "import sys, eval.html_report; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False", "False"]


# The records.


def test_json_and_back() -> None:
    """Through strict JSON; what is not finite is null and comes back as NaN."""
    examples = (Example("The sea", " is\nlarge", 0.25), Example("", "", math.nan, "toxicity"))
    estimates = {"positive share": near(0.5), "perplexity": NOT_SCORED}
    given = Curve("Tiller", (Point("β 4", 4.0, estimates, {"tokens/s": math.nan, "x": 2.0}, examples),))
    text = json.dumps(given.as_json(), allow_nan=False)
    found = curve_from_json(json.loads(text), "report.json, curve 1")
    assert json.dumps(found.as_json(), allow_nan=False) == text
    (point,) = found.points
    assert point.estimates["positive share"] == near(0.5)
    assert math.isnan(point.estimates["perplexity"].value)
    assert math.isnan(point.cost["tokens/s"])
    assert point.cost["x"] == 2.0
    assert point.examples[0] == examples[0]
    assert math.isnan(point.examples[1].score)
    assert point.examples[1].measure == "toxicity"
    assert curve_from_json(curve("a").as_json(), "here") == curve("a")
    assert axis_from_json(TOXIC.as_json(), "here") == TOXIC


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["name"], 3, 'report, curve 1: "name" must be text, not 3'),
        (["points"], None, 'report, curve 1: "points" must be a list'),
        (["points", 1, "beta"], None, 'report, curve 1, point 2: "beta" must be a number'),
        (["points", 1, "beta"], True, 'report, curve 1, point 2: "beta" must be a number'),
        (["points", 0, "estimates", "perplexity"], {}, 'point 1, "perplexity": "interval" is missing'),
        (
            ["points", 0, "estimates", "perplexity", "interval"],
            [1],
            'point 1, "perplexity", "interval": "1" is miss',
        ),
        (["points", 0, "examples"], [{"prompt": "", "text": ""}], 'point 1, example 1: "score" is missing'),
        (
            ["points", 0, "cost", "relative time"],
            "slow",
            "\"relative time\" must be a number or null, not 'slow'",
        ),
    ],
)
def test_broken_json_is_refused_by_name(path: list[Any], value: Any, said: str) -> None:
    record: Any = curve("a").as_json()
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(UserError) as refused:
        curve_from_json(record, "report, curve 1")
    assert said in str(refused.value)


def test_an_axis_has_a_better_end() -> None:
    with pytest.raises(UserError, match='"better" must be "higher" or "lower", not \'up\''):
        axis_from_json({"measure": "m", "better": "up", "label": "m"}, "here")


def test_worst_first() -> None:
    examples = [Example("", str(i), score) for i, score in enumerate([0.5, math.nan, 0.1, 0.9, 0.5])]
    assert [each.text for each in worst_first(examples, "higher")] == ["2", "0", "4", "3", "1"]
    assert [each.text for each in worst_first(examples, "lower")] == ["3", "0", "4", "2", "1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8124, "0.812"),
        (-0.5, "-0.500"),
        (0.0, "0.000"),
        (0.00012345, "0.00012"),
        (24.128, "24.13"),
        (712.04, "712.0"),
        (12034.4, "12034"),
        (math.nan, "\N{EN DASH}"),
        (math.inf, "inf"),
    ],
)
def test_figures_have_about_four_digits(value: float, text: str) -> None:
    assert figure_text(value) == text


def test_an_estimate_shows_its_interval() -> None:
    assert estimate_text(Estimate(0.8, 0.75, 0.85, 3)) == "0.800 [0.750, 0.850]"
    assert estimate_text(NOT_SCORED) == "\N{EN DASH}"
