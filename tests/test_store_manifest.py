"""Embeddings of different kinds never meet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards.store import open_store
from rewards.store_manifest import Encoder
from rewards.store_writer import open_writer
from tests.stores import MANIFEST, N, assert_holds, refusal, work

pytest.importorskip("pyarrow")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished store of 14 rows in four shards: 4, 4, 4 and 2."""
    work(tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"encoder": replace(MANIFEST.encoder, weights="w2")},
            "encoder weights 'w1' in the store, 'w2' asked",
        ),
        ({"encoder": replace(MANIFEST.encoder, tokenizer="t2")}, "encoder tokenizer 't1' in the store, 't2'"),
        ({"dimension": 8}, "dimension 6 in the store, 8 asked for"),
        ({"pooling": "mean"}, "pooling 'last' in the store, 'mean' asked for"),
        ({"layers": (2, 1)}, "layers (1, 2) in the store, (2, 1) asked for"),
        ({"dtype": "bfloat16"}, "dtype 'float16' in the store, 'bfloat16' asked for"),
        ({"template": "chat 9f"}, "template 'plain' in the store, 'chat 9f' asked for"),
        ({"max_tokens": 512}, "max_tokens None in the store, 512 asked for"),
    ],
)
def test_another_kind_of_embeddings_is_refused_with_both_sides(
    folder: Path, change: dict[str, Any], said: str
) -> None:
    wanted = replace(MANIFEST, **change)
    assert said in refusal(lambda: open_store(folder, expect=wanted))
    assert said in refusal(lambda: open_writer(folder, wanted))
    assert_holds(open_store(folder, expect=MANIFEST), list(range(N)))


def test_another_name_costs_one_warning(folder: Path) -> None:
    other = replace(MANIFEST, encoder=Encoder("copy of tiny", "w1", "t1", "r2"))
    with pytest.warns(UserWarning, match="encoder name 'tiny' in the store, 'copy of tiny' asked") as caught:
        open_store(folder, expect=other)
    assert len(caught) == 1
    assert "revision 'r1' in the store, 'r2'" in str(caught[0].message)


def test_unknown_weights_are_told_and_then_the_name_must_agree(folder: Path) -> None:
    with pytest.warns(UserWarning, match="encoder weights 'w1' in the store, '' asked for"):
        open_store(folder, expect=replace(MANIFEST, encoder=Encoder("tiny", "", "", "r1")))
    unknown = replace(MANIFEST, encoder=Encoder("other"))
    assert "encoder name 'tiny' in the store, 'other'" in refusal(lambda: open_store(folder, expect=unknown))


def test_other_labels_are_refused_by_the_writer_only(folder: Path) -> None:
    other = replace(MANIFEST, labels=("golden",))
    assert "['golden', 'length'] and ['golden'] were asked for" in refusal(lambda: open_writer(folder, other))
    assert open_store(folder, expect=other).n_rows == N


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("pooling", "mean", "was changed after it was written"),
        ("pooling", "max", "pooling 'max' is not known"),
        ("format_version", 2, "has format_version 2; this version of tiller reads 1"),
        ("kind", "reward", "does not describe an embedding store"),
        ("dimension", None, "lacks or misnames"),
    ],
)
def test_an_edited_manifest_is_refused(folder: Path, key: str, value: object, said: str) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert said in refusal(lambda: open_store(folder))
    path.write_text("{")
    assert "is not valid JSON" in refusal(lambda: open_store(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dimension": 7}, "dimension 7 cannot be that of 2 layers"),
        ({"layers": ()}, "cannot be that of 0 layers"),
        ({"dtype": "int8"}, "dtype 'int8' is not known"),
        ({"labels": ("a", "a")}, "give each its own name"),
        ({"labels": ("text",)}, "cannot be columns"),
    ],
)
def test_impossible_manifests_are_refused(change: dict[str, Any], said: str) -> None:
    assert said in refusal(lambda: replace(MANIFEST, **change))
