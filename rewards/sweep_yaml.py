"""Read the grid of a sweep from a YAML file, with messages that name the file and the key."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from decoder.contracts import UserError
from rewards.heads import HEADS, make_options, nearest, options_of
from rewards.sweep_grid import Grid

GRIDS = Path(__file__).resolve().parent / "grids"
NOISE = ("beta", "flip_rate")
REQUIRED = ("heads", "pairing", "n_pairs", "seeds")
OPTIONAL = ("golden", "scale", "splits", "split_seed", "test_share", "test_samples", "best_of", "options")
KEYS = (*REQUIRED[:3], *NOISE, *REQUIRED[3:], *OPTIONAL)
FEWEST_PAIRS = 10  # a head is fitted on


def find_grid(name: str) -> Path:
    """Return the path of a grid: a file, or the name of one that is packaged. Raises UserError if neither."""
    if Path(name).is_file():
        return Path(name)
    known = sorted(path.stem for path in GRIDS.glob("*.yaml"))
    if name in known:
        return GRIDS / f"{name}.yaml"
    raise UserError(f"no file {name}, and no packaged grid of that name: {nearest(name, known)}")


def read_grid(path: Path) -> Grid:
    """Return the grid of a YAML file.

    Raises UserError naming the file and the key for a file that cannot be read, unknown or missing keys and
    heads, options that a head does not have, values that cannot be and values that stand twice.
    """
    given = _mapping(path)
    try:
        return _grid(given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _mapping(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give a grid in YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__}, not keys and values: write `heads: [bt-mlp]`")
    return found


def _grid(given: Mapping[str, Any]) -> Grid:
    _check_keys(given)
    kind = _noise_kind(given)
    samples = _one(given, "test_samples", _whole(1)) if "test_samples" in given else None
    heads = _many(given, "heads", _head)
    return Grid(
        heads=heads,
        pairing=_many(given, "pairing", _pairing),
        n_pairs=_many(given, "n_pairs", _whole(FEWEST_PAIRS)),
        seeds=_many(given, "seeds", _whole(0)),
        noise=_many(given, kind, _beta if kind == "beta" else _flip_rate),
        noise_kind=kind,
        golden=_many({"golden": "golden", **given}, "golden", _text),
        scale=_one({"scale": "std", **given}, "scale", _scale),
        splits=_one({"splits": 1, **given}, "splits", _whole(1)),
        split_seed=_one({"split_seed": 0, **given}, "split_seed", _whole(0)),
        test_share=_one(given, "test_share", _share) if "test_share" in given else None,
        test_samples=samples,
        best_of=_many({"best_of": [2, 5, 10], **given}, "best_of", _whole(1)),
        options=_options(given.get("options"), heads),
    )


def _check_keys(given: Mapping[str, Any]) -> None:
    for key in given:
        if key not in KEYS:
            raise UserError(f"unknown key {key!r}: {nearest(str(key), KEYS)}")
    for key in REQUIRED:
        if key not in given:
            raise UserError(f"there is no {key!r}: a grid needs {', '.join(REQUIRED)} and beta or flip_rate")
    if not isinstance(given["seeds"], list):  # five seeds, or the seed 5?
        raise UserError(f"seeds: {given['seeds']!r} is no list: write them all, such as [0, 1, 2]")


def _noise_kind(given: Mapping[str, Any]) -> str:
    found = [kind for kind in NOISE if kind in given]
    if len(found) != 1:
        raise UserError(
            f"{' and '.join(found) or 'neither beta nor flip_rate'} given: say how noisy labels are by one "
            "of them"
        )
    return found[0]


def _options(given: Any, heads: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return head -> its hyper-parameters, as the head's own record takes them."""
    if not isinstance(given, dict | None):
        raise UserError(f"options: {given!r} is not head by head: write `options: {{bt-mlp: {{lr: 0.01}}}}`")
    found = {}
    for name, chosen in (given or {}).items():
        if name not in heads:
            raise UserError(f"options are given for {name!r}, which is no head here: {nearest(name, heads)}")
        if not isinstance(chosen, dict):
            raise UserError(f"options of {name}: {chosen!r} are not names and values")
        if "seed" in chosen:
            raise UserError(f"options of {name}: the seed is an axis: give it under seeds")
        found[name] = {k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
        kind: type[Any] = options_of(name)
        try:
            make_options(kind, {**HEADS[name].options, **found[name]})
        except UserError as error:
            raise UserError(f"options of {name}: {error}") from None
        except TypeError as error:  # a value of another type, such as text for a number
            raise UserError(f"options of {name}: {chosen} cannot be ({error}): mend the values") from None
    return found


def _many(given: Mapping[str, Any], key: str, read: Callable[[str, Any], Any]) -> tuple[Any, ...]:
    """Return the values of an axis; one value may stand without its brackets."""
    values = given[key] if isinstance(given[key], list) else [given[key]]
    if not values:
        raise UserError(f"{key} is empty: give at least one value")
    found = tuple(read(key, value) for value in values)
    for place, value in enumerate(found):
        if value in found[:place]:
            raise UserError(f"{key} has {value!r} twice: give it once")
    return found


def _one(given: Mapping[str, Any], key: str, read: Callable[[str, Any], Any]) -> Any:
    return read(key, given[key])


def _whole(least: int) -> Callable[[str, Any], int]:
    def read(key: str, value: Any) -> int:
        if type(value) is not int or value < least:
            raise UserError(f"{key}: {value!r} is no whole number of {least} or more")
        return value

    return read


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise UserError(f"{key}: {value!r} is no number; YAML reads 0.001, 1.0e-3 and .inf as numbers")
    return float(value)


def _share(key: str, value: Any) -> float:
    if not 0 < (number := _number(key, value)) <= 1:
        raise UserError(f"{key}: {value} is no share between 0 and 1, such as 0.2")
    return number


def _beta(key: str, value: Any) -> float:
    if not (number := _number(key, value)) >= 0:
        raise UserError(f"{key}: {value} is below 0; 0 tosses coins, .inf has no noise")
    return number


def _flip_rate(key: str, value: Any) -> float:
    if not 0 <= (number := _number(key, value)) <= 0.5:
        raise UserError(f"{key}: {value} is not between 0 and 0.5; 0 has no noise, 0.5 tosses coins")
    return number


def _scale(key: str, value: Any) -> float | str:
    if value == "std":
        return "std"
    if not 0 < (number := _number(key, value)) < math.inf:
        raise UserError(f"{key}: {value} is neither std nor a number above 0")
    return number


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{key}: {value!r} is no name; put it in quotes if it is one")
    return value


def _head(key: str, value: Any) -> str:
    return _known(key, value, HEADS)


def _pairing(key: str, value: Any) -> str:
    from rewards.pairs import PAIRINGS

    return _known(key, value, PAIRINGS)


def _known(key: str, value: Any, names: Iterable[str]) -> str:
    if _text(key, value) not in names:
        raise UserError(f"{key}: unknown {value!r}: {nearest(value, names)}")
    return str(value)
