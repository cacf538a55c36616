"""Labels that come after the embeddings: the same rows, more columns, not a byte of an embedding copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decoder.cli import run
from rewards.relabel import app
from rewards.store import open_store
from rewards.store_writer import open_writer
from tests.stores import MANIFEST, rows_of, work

pytest.importorskip("pyarrow")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished store of 14 rows in four shards."""
    work(tmp_path / "store")
    return tmp_path / "store"


def scores(path: Path, folder: Path, rows: list[int], **more: Any) -> str:
    """A table of labels, 10 times the row number, without texts."""
    store = open_store(folder)
    ids, samples = store.prompt_ids(), store.sample_indices()
    lines = [{"prompt_id": ids[i], "sample_index": int(samples[i]), "score": 10.0 * i, **more} for i in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def relabelled(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        run(app, list(arguments))
    said = capsys.readouterr()
    return int(exit_.value.code or 0), said.out + said.err


def test_a_table_of_scores_becomes_a_label(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = open_store(folder), tmp_path / "new"
    table = scores(tmp_path / "s.jsonl", folder, list(reversed(range(3, 14))))
    code, said = relabelled(capsys, str(folder), table, "--label-column", "gold=score", "--output", str(new))
    assert (code, "11 of 14 rows have gold" in said) == (0, True)
    found = open_store(new)
    found.verify()
    np.testing.assert_array_equal(found.column("gold"), [np.nan] * 3 + [10.0 * i for i in range(3, 14)])
    for name in old.manifest.labels:
        np.testing.assert_array_equal(found.column(name), old.column(name))
    assert found.texts() == old.texts()
    np.testing.assert_array_equal(found.prompt_ids(), old.prompt_ids())
    rows = np.arange(14)
    np.testing.assert_array_equal(found.embeddings(rows).numpy(), old.embeddings(rows).numpy())
    for shard in old.shards:
        name = f"{shard.name}.safetensors"
        assert (folder / name).stat().st_ino == (new / name).stat().st_ino
    assert found.digest != old.digest
    assert open_store(folder).digest == old.digest


def test_the_new_store_takes_more_rows_and_leaves_the_old_one_alone(tmp_path: Path, folder: Path) -> None:
    from rewards.embed_rows import Columns
    from rewards.store_labels import relabel

    before = open_store(folder).digest
    table = scores(tmp_path / "s.jsonl", folder, [0])
    relabel(folder, [table], Columns(labels=("gold=score",)), tmp_path / "new")
    manifest = open_store(tmp_path / "new").manifest
    with open_writer(tmp_path / "new", manifest) as writer:
        more = rows_of([14])
        writer.append(**{**more, "labels": {**more["labels"], "gold": [1.0]}})
    assert open_store(tmp_path / "new").n_rows == 15
    assert (open_store(folder).digest, open_store(folder).manifest) == (before, MANIFEST)


def test_a_label_of_the_same_name_takes_its_place_and_generations_will_do(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(folder)
    name, ids = store.manifest.labels[0], store.prompt_ids()
    lines = [
        {
            "id": prompt,
            "prompt": {"text": "x"},
            "generations": [
                {"text": "y", "sample_index": int(store.sample_indices()[i]), "scores": {"a": float(i)}}
                for i in np.flatnonzero(ids == prompt)
            ],
        }
        for prompt in dict.fromkeys(ids)
    ]
    path = tmp_path / "g.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    new = tmp_path / "new"
    code, _ = relabelled(
        capsys, str(folder), str(path), "--label-column", f"{name}=scores.a", "--output", str(new)
    )
    assert code == 0
    np.testing.assert_array_equal(open_store(new).column(name), np.arange(14.0))
    assert set(open_store(new).manifest.labels) == set(store.manifest.labels)


@pytest.mark.parametrize(
    ("rows", "arguments", "expected"),
    [
        ([0, 1, 0], ("gold=score", "new"), "is labelled twice"),
        ([0], ("gold=nothing", "new"), "no column 'nothing': it has prompt_id, sample_index, score"),
        ([0], ("gold=score", "store"), "is the store itself"),
        ([0], ("gold=score", "s.jsonl"), "is there already"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], rows: list[int],
    arguments: tuple[str, str], expected: str,
) -> None:  # fmt: skip
    table = scores(tmp_path / "s.jsonl", folder, rows)
    label, output = arguments
    code, said = relabelled(
        capsys, str(folder), table, "--label-column", label, "--output", str(tmp_path / output)
    )
    assert code == 2
    assert expected in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.jsonl", "store"]


def test_labels_of_other_rows_are_counted_and_none_at_all_is_refused(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"prompt_id": "nobody", "sample_index": 0, "score": 1}\n')
    output = ("--label-column", "gold=score", "--output", str(tmp_path / "new"))
    code, said = relabelled(capsys, str(folder), str(path), *output)
    assert code == 2
    assert "no label is of a row" in said
    assert "sample" in said
    both = (str(path), scores(tmp_path / "t.jsonl", folder, [0, 1]))
    code, said = relabelled(capsys, str(folder), *both, *output)
    assert code == 0
    assert "2 of 14 rows have gold; 1 labels are of rows it lacks" in said
