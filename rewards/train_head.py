"""`python -m rewards.train_head STORE --output HEAD`: from embeddings and their rewards to a reward head.

python -m rewards.train_head store --output head --reward-column golden --flip-rate 0.1
python -m rewards.train_head store --output head --head lgb-clf --pairing cross --pairs 20000
python -m rewards.train_head store --output head --members 5 --rule mean-std --kappa 1 --bootstrap
python -m rewards.train_head store --output head --pairs-file preferences.jsonl --set widths=64
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from decoder.cli import make_app, run
from rewards.head_options import HeadOptions, PairOptions
from rewards.training_options import pick, takes

StoreFolder = Annotated[
    Path, typer.Argument(help="Embedding store, as rewards.embed writes it.", metavar="STORE")
]
Output = Annotated[Path, typer.Option(help="Folder for the head.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a head in the output folder.")]


@takes(HeadOptions, PairOptions)
def train_head(store: StoreFolder, output: Output, overwrite: Overwrite = False, **options: Any) -> None:
    """Train a reward head on stored embeddings, from pairs that a noisy annotator labels.

    Pairs are drawn from rows and labelled by a golden reward of the store, with as many labels flipped as
    asked for; or they are your own. Reports, on prompts held out, the rank correlation within a prompt, the
    pairwise accuracy, and what the best of n samples by the head is worth, exactly, over all subsets.
    """
    from rewards.output_folder import plan_output

    wanted, pairs = pick(HeadOptions, options), pick(PairOptions, options)
    wanted.check()
    pairs.check()
    plan_output(output, (), overwrite=overwrite)
    # torch takes seconds to import; neither --help nor a mistake in an option must wait for it
    from rewards.head_run import train_and_save

    train_and_save(store, pairs, wanted, output)


app = make_app(train_head)

if __name__ == "__main__":
    run(app)
