"""What a command line says about a head: which one, its hyper-parameters, an ensemble of it, its pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from decoder.contracts import UserError
from rewards.annotation import STD
from rewards.heads import HEADS, RULES, check_rule, make_options, nearest, options_of
from rewards.pairs import PAIRINGS

GOLDEN = "golden"
TEST_SHARE = 0.2
N_PAIRS = 10_000


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """Which head, and how many of it."""

    head: Annotated[str, typer.Option(help=f"{', '.join(HEADS)}.")] = "bt-mlp"
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="NAME=VALUE of its hyper-parameters, as widths=256,256 or lr=.01; repeat.",
            metavar="NAME=VALUE",
        ),
    ] = None  # fmt: skip
    precision: Annotated[
        str | None, typer.Option(help="Of an MLP's products in training: float32 or bfloat16. [float32]")
    ] = None
    members: Annotated[int, typer.Option(min=1, help="Heads that differ in seed, as one.")] = 1
    rule: Annotated[
        str | None,
        typer.Option(help=f"How members' scores become one: {', '.join(RULES)} (less kappa times). [mean]"),
    ] = None
    kappa: Annotated[float | None, typer.Option(min=0, help="Of mean-var and mean-std. [0.5]")] = None
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="Each member draws its pairs with replacement.")
    ] = False
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the pairs, their noise and the fit.")] = 0

    def hyperparameters(self) -> dict[str, Any]:
        """Return name -> value of what differs from the head's defaults. UserError for what cannot be."""
        said = parse_settings(self.head, self.settings or ())
        if "seed" in said:
            raise UserError(f"--set seed={said['seed']}: give it as --seed {said['seed']}")
        if self.precision is not None:
            said["precision"] = self.precision
        chosen = {**said, "seed": self.seed}
        kind: type[Any] = options_of(self.head)
        make_options(kind, {**HEADS[self.head].options, **chosen})
        return chosen

    def check(self) -> None:
        """Raise UserError for a head, hyper-parameters or an ensemble that cannot be."""
        self.hyperparameters()
        for name in ("rule", "kappa", "bootstrap") if self.members == 1 else ():
            if getattr(self, name) not in (None, False):
                raise UserError(f"--{name} is about an ensemble: give --members 2 or more")
        check_rule(self.rule or RULES[0], self.kappa or 0.0)


@dataclass(frozen=True, slots=True)
class PairOptions:
    """Which pairs a head learns from, and who labels them."""

    reward_column: Annotated[
        str | None, typer.Option(help=f"Label of the store that is the golden reward. [{GOLDEN}]")
    ] = None
    pairing: Annotated[
        str,
        typer.Option(help=f"{', '.join(PAIRINGS)}."),
    ] = "within"
    pairs: Annotated[int, typer.Option(min=1, help="How many.")] = N_PAIRS
    flip_rate: Annotated[
        float | None, typer.Option(help="Share of labels that contradict the golden reward. [0]")
    ] = None
    beta: Annotated[
        float | None, typer.Option(help="P(label) = sigma(beta * difference / scale), instead of a rate.")
    ] = None
    scale: Annotated[
        str, typer.Option(help="Of beta: std, the deviation of all golden rewards, or a number.")
    ] = STD
    pairs_file: Annotated[
        Path | None,
        typer.Option(
            help='JSONL of your own preferences: {"prompt_id", "chosen", "rejected"}, the last two sample '
            'indices, or {"chosen": {"prompt_id", "sample_index"}, "rejected": {...}}.'
        ),
    ] = None
    stop_pairs: Annotated[
        Path | None,
        typer.Option(help="The like, to stop the training on, instead of a share of the pairs."),
    ] = None
    test: Annotated[
        Path | None, typer.Option(help="Store to report on, instead of prompts held out of this one.")
    ] = None
    test_share: Annotated[
        float | None, typer.Option(help=f"Share of prompts to hold out and report on. [{TEST_SHARE}]")
    ] = None

    def check(self) -> None:
        """Raise UserError for options that contradict each other or cannot be."""
        if self.pairing not in PAIRINGS:
            raise UserError(f"unknown pairing {self.pairing!r}: {nearest(self.pairing, PAIRINGS)}")
        if self.pairs_file is not None:
            self._refuse_with_file()
        elif self.stop_pairs is not None:
            raise UserError(f"--stop-pairs {self.stop_pairs} belongs to pairs that are given: --pairs-file")
        if self.flip_rate is not None and self.beta is not None:
            raise UserError(
                f"--flip-rate {self.flip_rate:g} and --beta {self.beta:g} are two ways to say how noisy "
                "labels are: give one"
            )
        if self.flip_rate is not None and not 0 <= self.flip_rate < 0.5:
            raise UserError(f"--flip-rate {self.flip_rate} is not in [0, 0.5): 0 is a perfect annotator")
        if self.beta is not None and not self.beta >= 0:
            raise UserError(f"--beta {self.beta}: give 0 (coin tosses) or more, inf for no noise")
        if self.test is not None and self.test_share is not None:
            raise UserError(f"--test {self.test} and --test-share {self.test_share}: give one of them")
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise UserError(f"--test-share {self.test_share}: give a share between 0 and 1, such as 0.2")
        self.noise_scale()

    def noise_scale(self) -> float | str:
        """Return "std" or the number. Raises UserError for anything else."""
        if self.scale == STD:
            return STD
        try:
            number = float(self.scale)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise UserError(f"--scale {self.scale}: give {STD} or a number above 0")
        return number

    def _refuse_with_file(self) -> None:
        """Refuse options about pairs that are drawn beside pairs that are given."""
        drawn = PairOptions(pairs_file=self.pairs_file)
        for name in ("pairing", "pairs", "flip_rate", "beta", "scale"):
            if getattr(self, name) != getattr(drawn, name):
                raise UserError(
                    f"--{name.replace('_', '-')} is about pairs that are drawn, and --pairs-file "
                    f"{self.pairs_file} gives them: leave one out"
                )


def parse_settings(head: str, settings: Sequence[str]) -> dict[str, Any]:
    """Return option -> value of texts such as "widths=256,256", "lr=.01" or "loss=clf".

    Raises UserError for an unknown head or option, with the nearest ones, a value that does not read as one,
    and an option given twice.
    """
    return read_settings(get_type_hints(options_of(head)), settings)


def read_settings(kinds: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return option -> value of texts NAME=VALUE; kinds: option -> type. UserError as `parse_settings`."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write NAME=VALUE, such as lr=.01")
        if name not in kinds:
            raise UserError(f"--set {setting}: unknown option {name!r}: {nearest(name, kinds)}")
        if name in found:
            raise UserError(f"--set {setting}: {name} is given twice: leave one out")
        found[name] = _value(text, kinds[name], setting)
    return found


def _value(text: str, kind: Any, setting: str) -> Any:
    if kind is bool:
        if text not in ("true", "false"):
            raise UserError(f"--set {setting}: {text!r} is neither true nor false")
        return text == "true"
    try:
        if kind in (int, float):
            return kind(text)
        if kind == tuple[int, ...]:
            return tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        what = {int: "a whole number", float: "a number"}.get(kind, "whole numbers, as 256,256")
        raise UserError(f"--set {setting}: {text!r} is not {what}") from None
    return text
