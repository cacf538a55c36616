"""Methods as curves over beta: the records behind the trade-off picture and its report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from decoder.contracts import UserError
from eval.stats import Estimate

Better = Literal["higher", "lower"]
RELATIVE_TIME = "relative time"  # the cost that is a multiple of unsteered decoding
DASH = "\N{EN DASH}"
NOT_SCORED = Estimate(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True, slots=True)
class Example:
    """One sample.

    score: its judge's, NaN where the judge failed. measure: the axis that the score speaks about, where
    a point has examples of several; "" is the first.
    """

    prompt: str
    text: str
    score: float
    measure: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the example as JSON values; a score that is not finite is null."""
        found = {"prompt": self.prompt, "text": self.text, "score": _json(self.score)}
        return found | ({"measure": self.measure} if self.measure else {})


@dataclass(frozen=True, slots=True)
class Point:
    """A method at one strength.

    label: what people read, such as "β 4". beta: 0 is unsteered; gives the points their order.
    estimates: measure -> figure with its interval. cost: name -> figure; `RELATIVE_TIME` is drawn.
    """

    label: str
    beta: float
    estimates: Mapping[str, Estimate]
    cost: Mapping[str, float]
    examples: tuple[Example, ...] = ()

    def estimate(self, measure: str) -> Estimate:
        """Return the measure's figure; NaN where it was not taken."""
        return self.estimates.get(measure, NOT_SCORED)

    def as_json(self) -> dict[str, Any]:
        """Return the point as JSON values; a number that is not finite is null."""
        return {
            "label": self.label,
            "beta": self.beta,
            "estimates": {name: _estimate_json(each) for name, each in self.estimates.items()},
            "cost": {name: _json(value) for name, value in self.cost.items()},
            "examples": [example.as_json() for example in self.examples],
        }


@dataclass(frozen=True, slots=True)
class Curve:
    """A method at all its strengths."""

    name: str
    points: tuple[Point, ...]

    @property
    def is_steered(self) -> bool:
        """True if some point has a beta other than 0."""
        return any(point.beta for point in self.points)

    def times(self) -> list[float]:
        """Return what the steered points cost, in multiples of unsteered decoding; unknown ones left out."""
        found = [point.cost.get(RELATIVE_TIME, math.nan) for point in self.points if point.beta]
        return [time for time in found if math.isfinite(time)]

    def as_json(self) -> dict[str, Any]:
        """Return the curve as JSON values, which `curve_from_json` reads."""
        return {"name": self.name, "points": [point.as_json() for point in self.points]}


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a point lies in one panel of the picture."""

    point: Point
    x: Estimate
    y: Estimate

    @property
    def at(self) -> tuple[float, float]:
        """Return the two figures."""
        return self.x.value, self.y.value

    def corners(self) -> list[tuple[float, float]]:
        """Return the ends of x's interval, then of y's; an end that is not known is the value itself."""
        across = [(_known(end, self.x.value), self.y.value) for end in self.x.interval]
        return across + [(self.x.value, _known(end, self.y.value)) for end in self.y.interval]


@dataclass(frozen=True, slots=True)
class Axis:
    """A measure to draw: its name in `Point.estimates`, its good end, and what the axis says."""

    measure: str
    better: Better
    label: str

    def as_json(self) -> dict[str, Any]:
        """Return the axis as JSON values, which `axis_from_json` reads."""
        return {"measure": self.measure, "better": self.better, "label": self.label}


# How each attribute is drawn, and against what.
AXES = {
    "sentiment": Axis("positive share", "higher", "positive share"),
    "toxicity": Axis("expected maximum toxicity", "lower", "expected maximum toxicity"),
}
FLUENCY = Axis("perplexity", "lower", "perplexity under the unsteered model")


def curve_from_json(value: object, where: str) -> Curve:
    """Return the curve that `Curve.as_json` wrote; null is NaN.

    where: the place in the file, for messages ("report.json, curve 1"). Raises UserError naming it for
    a missing field or one of another type.
    """
    name = _text(value, "name", where)
    points = _list(value, "points", where)
    return Curve(name, tuple(_point(each, f"{where}, point {i}") for i, each in enumerate(points, 1)))


def axis_from_json(value: object, where: str) -> Axis:
    """Return the axis that `Axis.as_json` wrote; UserError naming `where` for anything else."""
    better = _field(value, "better", where, _is_better, '"higher" or "lower"')
    return Axis(_text(value, "measure", where), better, _text(value, "label", where))


def spots(curve: Curve, attribute: Axis, fluency: Axis) -> list[Spot]:
    """Return the points where both figures are finite, in order of beta."""
    found = [Spot(p, p.estimate(attribute.measure), p.estimate(fluency.measure)) for p in curve.points]
    whole = [spot for spot in found if math.isfinite(spot.x.value) and math.isfinite(spot.y.value)]
    return sorted(whole, key=lambda spot: spot.point.beta)


def worst_first(examples: Sequence[Example], better: Better) -> list[Example]:
    """Return the examples from the worst score to the best, those not scored last; ties keep their order."""
    sign = 1.0 if better == "higher" else -1.0
    return sorted(examples, key=lambda each: (math.isnan(each.score), sign * each.score))


def measure_names(curves: Sequence[Curve]) -> list[str]:
    """Return every measure that some point has, in the order in which they come up."""
    return list(dict.fromkeys(name for curve in curves for point in curve.points for name in point.estimates))


def check_measures(curves: Sequence[Curve], measures: Sequence[str]) -> None:
    """Refuse with a UserError when there is no point at all, or a measure that no point has."""
    if not any(curve.points for curve in curves):
        raise UserError(f"{len(curves)} curves without a single point; give at least one method and one beta")
    found = measure_names(curves)
    for measure in measures:
        if measure not in found:
            raise UserError(f"no point has the measure {measure!r}; use one of: {', '.join(found)}")


def figure_text(value: float) -> str:
    """Return a number with about four digits, as 0.812, 24.13, 712.0 or 12034; a dash for NaN."""
    if math.isnan(value):
        return DASH
    if 0 < abs(value) < 0.001:
        return f"{value:.2g}"
    decimals = 3 - sum(abs(value) >= bound for bound in (10, 100, 1000))
    return f"{value:.{decimals}f}"


def estimate_text(estimate: Estimate) -> str:
    """Return "value [low, high]", or a dash where nothing was scored."""
    if math.isnan(estimate.value):
        return DASH
    return f"{figure_text(estimate.value)} [{figure_text(estimate.low)}, {figure_text(estimate.high)}]"


def _known(end: float, value: float) -> float:
    return end if math.isfinite(end) else value


def _point(value: object, where: str) -> Point:
    estimates = _mapping(value, "estimates", where)
    examples = _list(value, "examples", where)
    cost = _mapping(value, "cost", where)
    return Point(
        _text(value, "label", where),
        _finite(value, "beta", where),
        {name: _estimate(each, f'{where}, "{name}"') for name, each in estimates.items()},
        {name: _number(cost, name, where) for name in cost},
        tuple(_example(each, f"{where}, example {i}") for i, each in enumerate(examples, 1)),
    )


def _example(value: object, where: str) -> Example:
    prompt, text, score = (
        _text(value, "prompt", where),
        _text(value, "text", where),
        _number(value, "score", where),
    )
    named = isinstance(value, Mapping) and "measure" in value
    return Example(prompt, text, score, _text(value, "measure", where) if named else "")


def _estimate(value: object, where: str) -> Estimate:
    ends = dict(enumerate(_list(value, "interval", where)))
    low, high = (_number(ends, end, f'{where}, "interval"') for end in (0, 1))
    return Estimate(_number(value, "value", where), low, high, int(_finite(value, "n", where)))


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.interval
    return {"value": _json(estimate.value), "interval": [_json(low), _json(high)], "n": estimate.n}


def _json(number: float) -> float | None:
    """Return what strict JSON can hold."""
    return number if math.isfinite(number) else None


def _text(value: object, key: str, where: str) -> str:
    return _field(value, key, where, lambda found: isinstance(found, str), "text")


def _list(value: object, key: str, where: str) -> list[Any]:
    return _field(value, key, where, lambda found: isinstance(found, list), "a list")


def _mapping(value: object, key: str, where: str) -> dict[str, Any]:
    return _field(value, key, where, lambda found: isinstance(found, dict), "an object")


def _number(value: object, key: str | int, where: str) -> float:
    found = _field(value, key, where, _is_number, "a number or null")
    return math.nan if found is None else float(found)


def _finite(value: object, key: str, where: str) -> float:
    def fits(found: object) -> bool:
        return found is not None and _is_number(found)

    return float(_field(value, key, where, fits, "a number"))


def _is_number(found: object) -> bool:
    return found is None or (isinstance(found, int | float) and not isinstance(found, bool))


def _is_better(found: object) -> bool:
    return found in ("higher", "lower")


def _field(value: object, key: Any, where: str, fits: Callable[[object], bool], kind: str) -> Any:
    """Return value[key], or refuse it by name."""
    if not isinstance(value, Mapping) or key not in value:
        raise UserError(f'{where}: "{key}" is missing; write the file again with the version that reads it')
    if not fits(value[key]):
        raise UserError(f'{where}: "{key}" must be {kind}, not {value[key]!r:.60}; correct the file')
    return value[key]
