"""`python -m rewards.preference_data DATA --output DIR`: public preference data as our commands take it.

    python -m rewards.preference_data harmless-base.jsonl.gz --output preferences
    python -m rewards.embed preferences/responses.jsonl --output store
    python -m rewards.train_head store --pairs-file preferences/pairs.jsonl --output head

DATA are pairs of a better and a worse side: strings, or lists of messages, with or without a prompt in a
column of its own. Strings without one, as in HH-RLHF, are dialogues that begin alike: the prompt ends with
the last turn marker that both share, and everything after it is the response, be it several turns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decoder.cli import make_app, run

Data = Annotated[
    str,
    typer.Argument(
        help="CSV, TSV or JSONL (.gz too), Parquet, data set folder or hub id; DATA::split=NAME,subset=NAME.",
        metavar="DATA",
    ),
]
Output = Annotated[Path, typer.Option(help="Folder for responses.jsonl, pairs.jsonl and prompts.jsonl.")]
PromptColumn = Annotated[
    str | None,
    typer.Option(
        help="What was said before: string or messages. [prompt, if there; else what both begin with]"
    ),
]
ChosenColumn = Annotated[str, typer.Option(help="The better side: a string or messages.")]
RejectedColumn = Annotated[str, typer.Option(help="The worse side.")]
Turn = Annotated[
    str, typer.Option(help=r"What a response begins with, in strings without a prompt; \n is a line break.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Read the first pairs only.")]


def preference_data(
    data: Data,
    output: Output,
    prompt_column: PromptColumn = None,
    chosen_column: ChosenColumn = "chosen",
    rejected_column: RejectedColumn = "rejected",
    turn: Turn = r"\n\nAssistant:",
    limit: Limit = None,
) -> None:
    """Write the distinct responses and prompts of preference data, and the pairs by prompt id and sample.

    Left out, and counted, are pairs without a prompt, with an empty response, or with the same one twice.
    """
    from rewards.preference_pairs import PairColumns, collect, read_comparisons, reasons, save

    columns = PairColumns(prompt_column, chosen_column, rejected_column)
    marker = turn.replace("\\n", "\n").replace("\\t", "\t")
    found = collect(read_comparisons(data, columns, marker, limit))
    save(output, found)
    n_responses, left_out = sum(map(len, found.responses)), reasons(found.left_out)
    print(
        f"{output}: {len(found.pairs)} pairs, {n_responses} responses to {len(found.prompts)} prompts; "
        f"left out: {left_out or 'none'}"
    )


app = make_app(preference_data)

if __name__ == "__main__":
    run(app)
