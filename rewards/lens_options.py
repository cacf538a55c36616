"""What a command line says about augmentation: the method, its options, how much, how rows are combined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer

from decoder.contracts import UserError
from rewards.augment_methods import COMBINATIONS, DEFAULT, METHODS, find_method, method_options
from rewards.augment_plan import plan
from rewards.head_options import read_settings
from rewards.heads import nearest


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    """How pairs are augmented."""

    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = DEFAULT
    ratio: Annotated[float, typer.Option(help="Pairs to learn from over original pairs to learn from.")] = 4.0
    combine: Annotated[
        str | None,
        typer.Option(
            help="Rows that stand side by side, original and synthetic ones: "
            "any (cartesian), of one prompt (within), of two (cross), as they were made (own). "
            "[as the method has it]"
        ),
    ] = None
    copies: Annotated[float | None, typer.Option(help="Synthetic pairs an original one. [ratio - 1]")] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="NAME=VALUE of the method's options, as gamma=0.05; repeat.", metavar="NAME=VALUE"
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the pairs, the fit and the noise.")] = 0

    def values(self) -> dict[str, Any]:
        """Return option -> value of what was set. Raises UserError for what cannot be."""
        return read_settings(get_type_hints(find_method(self.method).kind), self.settings or ())

    @property
    def combination(self) -> str:
        """Return what `combine` says, or the method's own."""
        return self.combine or find_method(self.method).combine

    def check(self) -> None:
        """Raise UserError for a method, options of it, a combination or a ratio that cannot be."""
        method_options(self.method, self.values())
        if self.combination not in COMBINATIONS:
            raise UserError(
                f"unknown --combine {self.combination!r}: {nearest(self.combination, COMBINATIONS)}"
            )
        plan(
            self.method, 1000, self.ratio, self.combination, self.copies,
            synthesises=bool(find_method(self.method).made_by),
        )  # fmt: skip
