"""The report page: everything is in it, nothing from elsewhere, and what models wrote stays text."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from decoder.contracts import UserError
from eval.curves import NOT_SCORED, RELATIVE_TIME, Axis, Curve, Example, Point
from eval.html_report import html_report, markdown_table
from eval.stats import Estimate

pytest.importorskip("matplotlib")

POSITIVE = Axis("positive share", "higher", "positive share")
TOXIC = Axis("toxicity", "lower", "toxicity")
PERPLEXITY = Axis("perplexity", "lower", "perplexity")
VOID = {"meta", "br", "hr", "img", "input", "link"}
EXAMPLES = (
    Example("The sea", " was calm", 0.7),
    Example("The sea", " <script>alert('x')</script> & \"quotes\"", 0.2),
    Example("The sea", " was lost", math.nan),
    Example("The sea", " was grand", 0.9),
)


def curves() -> list[Curve]:
    """Two methods with three points each, every figure told from the others by its value."""
    found = []
    for m, name in enumerate(("Tiller <tap>", "RAD | b")):
        points = []
        for beta in (0.0, 2.0, 8.0):
            share, perplexity = 0.5 + beta / 100 + m / 1000, 24 + beta + m
            estimates = {
                "positive share": Estimate(share, share - 0.02, share + 0.02, 200),
                "toxicity": Estimate(0.3 - beta / 100, 0.1, 0.4, 150 + m),
                "perplexity": Estimate(perplexity, perplexity - 1, perplexity + 1, 199),
                "dist3": NOT_SCORED,
            }
            cost = {"tokens/s": 700.0 + beta + m, RELATIVE_TIME: 1.0 + beta / 10}
            points.append(Point(f"β {beta:g}", beta, estimates, cost, EXAMPLES if beta else ()))
        found.append(Curve(name, tuple(points)))
    return found


class Page(HTMLParser):
    """Reads a page: whether its tags match, and its rows, attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.items: list[str] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag == "li":
            self.items.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if "li" in self.open:
            self.items[-1] += data


def report(**changes: object) -> str:
    given: dict[str, object] = {"title": "Trade-off", "settings": {"seed": 0}, "curves": curves()} | changes
    return html_report(attributes=[POSITIVE, TOXIC], fluency=PERPLEXITY, **given)  # type: ignore[arg-type]


def test_every_point_is_in_the_table_with_interval_n_and_cost() -> None:
    page = Page(report())
    for m, curve in enumerate(curves()):
        for i, point in enumerate(curve.points):
            share, perplexity = (point.estimates[name].value for name in ("positive share", "perplexity"))
            row = [
                point.label,
                f"{share:.3f} [{share - 0.02:.3f}, {share + 0.02:.3f}]n 200",
                f"{0.3 - point.beta / 100:.3f} [0.100, 0.400]n {150 + m}",
                f"{perplexity:.2f} [{perplexity - 1:.2f}, {perplexity + 1:.2f}]n 199",
                "not scored",
                f"{700 + point.beta + m:.1f}",
                f"{1 + point.beta / 10:.3f}",
            ]
            assert ([] if i else [curve.name]) + row in page.rows
    assert page.rows[0] == [
        "method", "point", "positive share (higher is better)", "toxicity (lower is better)",
        "perplexity (lower is better)", "dist3", "tokens/s", RELATIVE_TIME,
    ]  # fmt: skip


def test_the_page_is_whole_and_accessible() -> None:
    """Tags match; tables have captions and scopes; the picture has words."""
    page = Page(report())
    assert page.tags["table"] == page.tags["caption"] == 2
    assert page.tags["th"] == sum(name == "scope" for tag, name, _ in page.attributes if tag == "th")
    assert page.tags["svg"] == page.tags["h1"] == 1
    (alt,) = [value for _, name, value in page.attributes if name == "aria-label" and "curve" in value]
    assert "positive share, toxicity against perplexity" in alt
    assert "Tiller <tap>, RAD | b" in alt
    assert ("html", "lang", "en") in page.attributes
    assert "prefers-color-scheme: dark" in report()


def test_nothing_is_loaded_and_nothing_runs() -> None:
    text = report()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for _tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith("#")
    assert not re.search(r"@import|url\((?!#)", text)
    outside = set(re.findall(r'[\w:]+="https?://[^"]*"', text))
    assert all(each.startswith("xmlns") for each in outside), outside  # names of XML dialects, not addresses


def test_what_models_and_people_wrote_is_text() -> None:
    bad = "<script>alert(1)</script>"
    named = [replace(curves()[0], name=bad)]
    text = report(title=bad, settings={bad: {bad: [bad, 1]}}, curves=named)
    assert bad not in text
    page = Page(text)
    assert "script" not in page.tags
    assert [bad, f"{bad}: {bad}, 1"] in page.rows
    assert "0.200The sea <script>alert('x')</script> & \"quotes\"" in page.items


def test_worst_examples_come_first() -> None:
    """For each point that has some, by the first attribute; those not scored come last."""
    page = Page(report())
    endings = [re.search(r"calm|quotes|lost|grand", item) for item in page.items]
    assert [found and found[0] for found in endings] == ["quotes", "calm", "grand", "lost"] * 4
    assert page.items[3].startswith("not scored")
    assert page.tags["details"] == page.tags["summary"] == 4


def test_examples_of_several_measures_are_kept_apart() -> None:
    """Each in the order of its own axis; one without an axis keeps the order it came in."""
    scores = [
        ("", 0.3),
        ("toxicity", 0.2),
        ("", 0.1),
        ("toxicity", 0.8),
        ("odd", 0.5),
        ("odd", 0.4),
        ("odd", 0.6),
    ]
    examples = tuple(Example("", f"{name} {score}", score, name) for name, score in scores)
    first = curves()[0]
    given = replace(first, points=(*first.points[:2], replace(first.points[2], examples=examples)))
    items = Page(report(curves=[given])).items[-7:]
    assert [item[:5] for item in items] == ["0.100", "0.300", "0.800", "0.200", "0.500", "0.400", "0.600"]


def test_points_stand_in_order_of_beta() -> None:
    first = curves()[0]
    assert report(curves=[replace(first, points=first.points[::-1])]) == report(curves=[first])


def test_text_that_no_page_may_hold() -> None:
    """Control characters and lone surrogates are marked; the page can be written as UTF-8."""
    first = curves()[0]
    odd = (Example("a\x00b", "\ud83d \x1b[31m\n\tعربي", 0.5),)
    given = replace(first, points=tuple(replace(point, examples=odd) for point in first.points))
    page = report(curves=[given])
    page.encode("utf-8")
    assert Page(page).items[0] == "0.500a\ufffdb\ufffd \ufffd[31m\n\tعربي"


def test_settings_are_spelt_out() -> None:
    page = Page(report(settings={"command": "tiller x", "judges": {"a": 1, "b": ["c", "d"]}, "none": None}))
    assert page.rows[-3:] == [["command", "tiller x"], ["judges", "a: 1\nb: c, d"], ["none", "None"]]


def test_a_curve_without_examples_says_so() -> None:
    first = curves()[0]
    bare = replace(first, points=tuple(replace(point, examples=()) for point in first.points))
    assert "No examples were kept." in report(curves=[bare])


def test_nothing_scored_at_all() -> None:
    """The page stands, with every figure said to be missing."""
    names = ("positive share", "toxicity", "perplexity")
    point = Point("β 1", 1.0, dict.fromkeys(names, NOT_SCORED), {RELATIVE_TIME: math.nan})
    page = Page(report(curves=[Curve("a", (point,))]))
    assert page.rows[1] == ["a", "β 1", *["not scored"] * 3, "\N{EN DASH}"]


def test_the_same_curves_from_json_give_the_same_page() -> None:
    from eval.curves import curve_from_json

    stored = json.loads(json.dumps([curve.as_json() for curve in curves()], allow_nan=False))
    again = [curve_from_json(each, "here") for each in stored]
    assert report(curves=again) == report()


def test_the_table_for_papers() -> None:
    lines = markdown_table(curves(), ["positive share", "dist3"]).splitlines()
    assert lines[:3] == [
        "| method | point | positive share | dist3 |",
        "| --- | --- | ---: | ---: |",
        "| Tiller <tap> | β 0 | 0.500 [0.480, 0.520] | \N{EN DASH} |",
    ]
    assert len(lines) == 8
    assert lines[-1] == r"| RAD \| b | β 8 | 0.581 [0.561, 0.601] | " + "\N{EN DASH} |"


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(
        UserError, match="no point has the measure 'joy'; use one of: positive share, toxicity"
    ):
        markdown_table(curves(), ["joy"])
    with pytest.raises(UserError, match="without a single point"):
        report(curves=[])
