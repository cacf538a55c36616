"""The arrays of "Reusing Embeddings" (arXiv 2502.04357) as rows of an embedding store.

Its embeddings are one .npy of (N, K, D) and its golden rewards one of (N, K, 1), N prompts with K responses
each; the raw arrays of the same authors are (K, N, D). Nothing in a file says which, so the user does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from rewards.store_writer import Writer

Layout = Literal["nk", "kn"]
BLOCK_BYTES = 16 << 20  # read at a time


@dataclass(frozen=True, slots=True)
class PaperArrays:
    """Both arrays, mapped from disk.

    embeddings: (N, K, D), or (K, N, D) where the layout is "kn". rewards: (N, K), whatever the file has.
    """

    embeddings: NDArray[Any]
    rewards: NDArray[Any]
    layout: Layout

    @property
    def dimension(self) -> int:
        """Return D."""
        return int(self.embeddings.shape[2])

    def copy_to(
        self, writer: Writer, *, label: str = "golden", advance: Callable[[int], object] = lambda n_rows: None
    ) -> int:
        """Return how many rows were appended: all those of prompts "0" to "N-1" that the writer lacks.

        Texts are "". label: the store's column for the rewards, its only one. advance: told the number of
        rows looked at, block by block. Raises what `Writer.append` does.
        """
        n_prompts, n_samples = self.rewards.shape
        step = max(1, BLOCK_BYTES // (n_samples * self.dimension * self.embeddings.itemsize))
        return sum(
            self._copy_block(writer, label, first, min(first + step, n_prompts), advance)
            for first in range(0, n_prompts, step)
        )

    def _copy_block(
        self, writer: Writer, label: str, first: int, last: int, advance: Callable[[int], object]
    ) -> int:
        keys = [(str(prompt), k) for prompt in range(first, last) for k in range(self.rewards.shape[1])]
        new = np.array([i for i, key in enumerate(keys) if not writer.has(*key)], dtype=np.int64)
        if len(new):
            block = self.embeddings[first:last] if self.layout == "nk" else self.embeddings[:, first:last]
            ordered = block if self.layout == "nk" else block.swapaxes(0, 1)  # (n, K, D)
            writer.append(
                [keys[i][0] for i in new],
                [keys[i][1] for i in new],
                [""] * len(new),
                {label: self.rewards[first:last].reshape(-1)[new]},
                ordered.reshape(len(keys), self.dimension)[new],
            )
        advance(len(keys))
        return len(new)


def open_paper_arrays(
    embeddings: Path | str, rewards: Path | str, *, layout: Layout | None = None
) -> PaperArrays:
    """Return the arrays of two .npy files, mapped: embeddings of three axes, rewards of three or two.

    layout: "nk" for embeddings (N, K, D), "kn" for (K, N, D); rewards of three axes have the same order, of
    two they are (N, K). It may be left out only where the shapes allow one. Raises UserError for files that
    cannot be read, shapes that do not fit each other or the layout, and a layout that must be said.
    """
    vectors, scores = _mapped(Path(embeddings)), _mapped(Path(rewards))
    shapes = f"embeddings {vectors.shape} in {embeddings} and rewards {scores.shape} in {rewards}"
    if (
        vectors.ndim != 3
        or not vectors.size
        or scores.ndim not in (2, 3)
        or scores.shape[2:] not in ((), (1,))
    ):
        raise UserError(f"{shapes}: expected (N, K, D) or (K, N, D), and (N, K, 1), (K, N, 1) or (N, K)")
    possible = _possible(vectors.shape, scores.shape)
    if not possible or (layout is not None and layout not in possible):
        said = f" with --layout {layout}" if layout else ""
        raise UserError(f"{shapes} do not fit each other{said}: transpose one, or give the other layout")
    if layout is None and len(possible) > 1:
        raise UserError(
            f"{shapes}: the shapes do not say which axis counts prompts; say --layout nk if it is the first "
            "of the embeddings, --layout kn if it is the second"
        )
    chosen = layout or possible[0]
    plain = scores.reshape(scores.shape[:2])
    return PaperArrays(vectors, plain.T if scores.ndim == 3 and chosen == "kn" else plain, chosen)


def _possible(vectors: tuple[int, ...], scores: tuple[int, ...]) -> list[Layout]:
    same = vectors[:2] == scores[:2]
    if len(scores) == 3:  # both files have the order of one script
        return ["nk", "kn"] if same else []
    turned = vectors[:2] == scores[1::-1]
    return [*(["nk"] if same else []), *(["kn"] if turned else [])]  # type: ignore[list-item]


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} as .npy ({error}): check the path or copy it again") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        kind = array.dtype if isinstance(array, np.ndarray) else "an archive"
        raise UserError(
            f"{path} holds {kind}, not floating-point numbers: save a float array with numpy.save"
        )
    return array
