"""`python -m rewards.lens STORE --output DIR`: more preference pairs than were labelled, for any head.

python -m rewards.lens store --output augmented --pairs 1000 --ratio 4
python -m rewards.lens store --output augmented --pairs-file preferences.jsonl --ratio 8 --set gamma=0.05
python -m rewards.lens store --output augmented --pairs 1000 --method perturbation --combine own
python -m rewards.train_head augmented --pairs-file augmented/pairs.jsonl --stop-pairs augmented/stop.jsonl \
    --output head
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from decoder.cli import make_app, run
from rewards.head_options import PairOptions
from rewards.lens_options import AugmentOptions
from rewards.training_options import pick, takes

StoreFolder = Annotated[
    Path, typer.Argument(help="Embedding store, as rewards.embed writes it.", metavar="STORE")
]
Output = Annotated[Path, typer.Option(help="Folder for the new store; it shares the files of the other.")]


@takes(AugmentOptions, PairOptions)
def lens(store: StoreFolder, output: Output, **options: Any) -> None:
    """Augment preference pairs in the space of their embeddings: LENS and what it is compared with.

    Prompts are held out first, then pairs to stop on; only the others are augmented. The new store holds
    every row of the old one and the synthetic rows; pairs.jsonl and stop.jsonl beside it name the pairs.
    """
    wanted, pairs = pick(AugmentOptions, options), pick(PairOptions, options)
    wanted.check()
    pairs.check()
    from rewards.output_folder import require_new

    require_new(output)
    # torch takes seconds to import; neither --help nor a mistake in an option must wait for it
    from rewards.lens_run import augment_store

    augment_store(store, pairs, wanted, output)


app = make_app(lens)

if __name__ == "__main__":
    run(app)
