"""The paper's .npy arrays become the same rows, whichever way round they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from decoder.contracts import UserError
from rewards import paper_arrays
from rewards.paper_arrays import open_paper_arrays
from rewards.store import open_store
from rewards.store_manifest import Encoder, Manifest
from rewards.store_writer import open_writer

pytest.importorskip("pyarrow")

N, K, D = 5, 3, 4
MANIFEST = Manifest(
    Encoder("gemma-2b"), dimension=D, layers=(18,), pooling="last", dtype="float32", labels=("golden",)
)
RNG = np.random.default_rng(3)
EMBEDDINGS = RNG.standard_normal((N, K, D)).astype(np.float32)  # (N, K, D)
REWARDS = RNG.standard_normal((N, K, 1))


def saved(folder: Path, embeddings: NDArray[Any], rewards: NDArray[Any]) -> tuple[Path, Path]:
    np.save(folder / "e.npy", embeddings)
    np.save(folder / "r.npy", rewards)
    return folder / "e.npy", folder / "r.npy"


def turned(array: NDArray[Any]) -> NDArray[Any]:
    return array.swapaxes(0, 1)


@pytest.mark.parametrize(
    ("embeddings", "rewards", "layout"),
    [
        (EMBEDDINGS, REWARDS, "nk"),
        (turned(EMBEDDINGS), turned(REWARDS), "kn"),
        (EMBEDDINGS, REWARDS[..., 0], "nk"),
        (EMBEDDINGS, REWARDS[..., 0], None),
        (turned(EMBEDDINGS), REWARDS[..., 0], "kn"),
        (turned(EMBEDDINGS), REWARDS[..., 0], None),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 2 * K * D * 4, 1 << 20])
def test_every_layout_gives_the_same_rows(
    tmp_path: Path,
    embeddings: NDArray[Any],
    rewards: NDArray[Any],
    layout: Any,
    block_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paper_arrays, "BLOCK_BYTES", block_bytes)
    arrays = open_paper_arrays(*saved(tmp_path, embeddings, rewards), layout=layout)
    seen: list[int] = []
    with open_writer(tmp_path / "s", MANIFEST) as writer:
        assert arrays.copy_to(writer, advance=seen.append) == N * K
    assert sum(seen) == N * K
    store = open_store(tmp_path / "s", expect=MANIFEST)
    for prompt in range(N):
        for sample in range(K):
            row = prompt * K + sample
            assert (store.prompt_ids()[row], store.sample_indices()[row]) == (str(prompt), sample)
            assert torch.equal(store.embeddings([row])[0], torch.tensor(EMBEDDINGS[prompt, sample]))
            assert store.column("golden")[row] == REWARDS[prompt, sample, 0]
    assert set(store.texts()) == {""}
    assert store.column("golden")[store.grid("golden")].shape == (N, K)


def test_an_interrupted_copy_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_arrays, "BLOCK_BYTES", 1)
    arrays = open_paper_arrays(*saved(tmp_path, EMBEDDINGS, REWARDS), layout="nk")

    def stop(n_rows: int) -> None:
        if not store_is_empty():
            raise KeyboardInterrupt

    def store_is_empty() -> bool:
        return open_store(tmp_path / "s").n_rows == 0

    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "s", MANIFEST, shard_rows=7) as writer:
        arrays.copy_to(writer, advance=stop)
    assert open_store(tmp_path / "s").n_rows == 7  # in the middle of prompt "2"
    with open_writer(tmp_path / "s", MANIFEST) as writer:
        assert arrays.copy_to(writer) == N * K - 7
        assert arrays.copy_to(writer) == 0
    store = open_store(tmp_path / "s")
    np.testing.assert_array_equal(store.embeddings(range(N * K)).numpy(), EMBEDDINGS.reshape(-1, D))
    np.testing.assert_array_equal(store.column("golden"), REWARDS.reshape(-1))


def test_other_labels_and_dimensions_are_the_writers_to_refuse(tmp_path: Path) -> None:
    arrays = open_paper_arrays(*saved(tmp_path, EMBEDDINGS[..., :3], REWARDS), layout="nk")
    assert arrays.dimension == 3
    with open_writer(tmp_path / "s", MANIFEST) as writer:
        with pytest.raises(UserError, match="do not fit a store of dimension 4"):
            arrays.copy_to(writer)
        arrays = open_paper_arrays(*saved(tmp_path, EMBEDDINGS, REWARDS), layout="nk")
        with pytest.raises(UserError, match=r"labels \['reward'\] given, the store has \['golden'\]"):
            arrays.copy_to(writer, label="reward")


@pytest.mark.parametrize(
    ("embeddings", "rewards", "layout", "said"),
    [
        (EMBEDDINGS, REWARDS, None, "say --layout nk if it is the first"),
        (EMBEDDINGS[:3], REWARDS[:3, :, 0], None, "say --layout nk"),  # N = K
        (EMBEDDINGS, turned(REWARDS), "nk", "do not fit each other with --layout nk"),
        (turned(EMBEDDINGS), REWARDS, "kn", "do not fit each other with --layout kn"),
        (EMBEDDINGS, REWARDS[..., 0], "kn", "do not fit each other with --layout kn"),
        (EMBEDDINGS, REWARDS[:4], None, "do not fit each other"),
        (EMBEDDINGS[0], REWARDS, "nk", r"expected \(N, K, D\)"),
        (EMBEDDINGS, EMBEDDINGS, "nk", r"expected \(N, K, D\)"),
        (EMBEDDINGS[:0], REWARDS[:0], "nk", r"expected \(N, K, D\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_both(
    tmp_path: Path, embeddings: NDArray[Any], rewards: NDArray[Any], layout: Any, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        open_paper_arrays(*saved(tmp_path, embeddings, rewards), layout=layout)
    assert f"embeddings {embeddings.shape}" in str(caught.value)
    assert f"rewards {rewards.shape}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_float_arrays_are_refused(tmp_path: Path) -> None:
    embeddings, rewards = saved(tmp_path, EMBEDDINGS, REWARDS)
    np.save(tmp_path / "int.npy", np.zeros((N, K, 1), np.int64))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "archive.npz", REWARDS)
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").touch()
    for name in ("int.npy", "archive.npz"):
        with pytest.raises(UserError, match="not floating-point numbers"):
            open_paper_arrays(embeddings, tmp_path / name, layout="nk")
    for name in ("object.npy", "text.npy", "empty.npy", "missing.npy"):
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            open_paper_arrays(tmp_path / name, rewards, layout="nk")


def test_both_files_stay_mapped(tmp_path: Path) -> None:
    arrays = open_paper_arrays(*saved(tmp_path, EMBEDDINGS, turned(REWARDS)[..., 0].T), layout="nk")
    assert isinstance(arrays.embeddings, np.memmap)
    assert isinstance(arrays.rewards, np.memmap)
