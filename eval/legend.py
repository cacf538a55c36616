"""The legend under a picture: what each line looks like, in as many columns as there is room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # loaded when something is drawn
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from eval.picture import Look

CHARACTERS = 135  # of legend text side by side in a picture of full width
KEY = 8  # characters that the key before a name takes
TITLE_SIZE = 9  # points


def add_legend(figure: Figure, looks: Mapping[str, Look], title: str = "", marker_size: float = 6) -> None:
    """Add a legend of lines by name. title: above it, if any; marker_size: points."""
    keys = [key(look, marker_size) for look in looks.values()]
    place_legend(figure, keys, list(looks), title)


def key(look: Look, marker_size: float) -> Line2D:
    """Return a line that shows a look."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=look.colour, linestyle=look.dashes, marker=look.marker, ms=marker_size)


def place_legend(figure: Figure, keys: Sequence[Line2D], names: Sequence[str], title: str = "") -> None:
    """Add a legend of keys, whose names are shown as they are written: a dollar sign begins no formula."""
    columns = max(1, min(len(names), int(CHARACTERS / (KEY + max(map(len, names))))))
    titled: dict[str, Any] = {"title": title, "title_fontsize": TITLE_SIZE} if title else {}
    legend = figure.legend(
        keys, list(names), loc="outside lower center", ncols=columns, frameon=False, handlelength=4, **titled
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
