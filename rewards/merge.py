"""`python -m rewards.merge STORES... --output NEW`: several stores as one, their files shared.

    python -m rewards.embed part-0.jsonl --output store-0    # a worker each, on any machine
    python -m rewards.embed part-1.jsonl --output store-1
    python -m rewards.merge store-0 store-1 --output store

A store has one writer at a time, so that many workers write many stores.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decoder.cli import make_app, run
from decoder.contracts import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewards.store import Store

Stores = Annotated[list[Path], typer.Argument(help="Stores of the same kind of embeddings and labels.")]
Output = Annotated[Path, typer.Option(help="Folder of the new store; it shares the files of the others.")]


def merge(stores: Stores, output: Output) -> None:
    """Make one store of several, rows in the order of the stores, without copying a file."""
    from rewards.output_folder import require_new, write_folder
    from rewards.store import open_store

    require_new(output)
    opened = [open_store(folder) for folder in stores]
    for store in opened[1:]:
        _require_same(store, opened[0])
    _require_distinct(opened)
    write_folder(output, lambda half: _write(opened, half))
    typer.echo(f"{output}: {sum(map(len, opened))} rows of {len(opened)} stores")


def _require_same(store: Store, first: Store) -> None:
    from rewards.store_manifest import check_same

    check_same(store.folder, store.manifest, first.manifest)
    if store.manifest.labels != first.manifest.labels:
        sides = " and ".join(
            f"{each.folder} has the labels {list(each.manifest.labels)}" for each in (first, store)
        )
        raise UserError(f"{sides}: give all the same, in one order, with rewards.relabel")


def _require_distinct(stores: Sequence[Store]) -> None:
    """Refuse a row that stands in two stores."""
    owner: dict[tuple[str, int], Path] = {}
    for store in stores:
        for key in zip(store.prompt_ids().tolist(), store.sample_indices().tolist(), strict=True):
            if key in owner:
                raise UserError(
                    f"prompt {key[0]!r}, sample {key[1]} is in {owner[key]} and in {store.folder}: "
                    "embed the parts with an --id-prefix each, or leave one out"
                )
            owner[key] = store.folder


def _write(stores: Sequence[Store], folder: Path) -> None:
    """Fill the folder with links to all shards, numbered anew, the log and the manifest."""
    from rewards.store_manifest import write_manifest
    from rewards.store_shards import share_shards

    share_shards([(store.folder, shard) for store in stores for shard in store.shards], folder)
    write_manifest(folder, stores[0].manifest)


app = make_app(merge)

if __name__ == "__main__":
    run(app)
