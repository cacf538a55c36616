"""Compare two evaluations of the same prompts: paired differences over prompts, with interval and p.

    python -m eval.compare report-a report-b

Takes the folders that `python -m eval.run` wrote. Figures that two different judges or models gave are
not compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decoder.cli import make_app, run


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of an evaluation.")],
    b: Annotated[Path, typer.Argument(help="Folder of another; differences are B minus A.")],
) -> None:
    """Print B minus A of every figure both have, paired over the prompts both have."""
    from eval.comparison import compare_reports, read_report
    from eval.report import emit

    rows, settings = compare_reports(read_report(a), read_report(b))
    emit("compare", rows, {}, settings)


app = make_app(compare)

if __name__ == "__main__":
    run(app)
