"""The embedded judges: a linear layer on MiniLM sentence embeddings, a few hundred floats a layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from eval.minilm import MiniLM, load_minilm

FORMAT = 1


@dataclass(frozen=True, slots=True)
class LinearJudge:
    """P(attribute) = sigmoid(<w, embedding> + b); trained by `eval.train_judge`.

    weights: (len(layers) * 384,). training: data digest, sizes and accuracies, for reports.
    """

    attribute: str
    layers: tuple[int, ...]
    weights: NDArray[Any]
    bias: float
    training: Mapping[str, Any]
    encoder: MiniLM
    threshold: float = 0.5

    @property
    def name(self) -> str:
        """Return "minilm"."""
        return "minilm"

    @property
    def about(self) -> Mapping[str, Any]:
        """Return version and digests."""
        return {
            "judge": self.name,
            "version": FORMAT,
            "encoder": f"all-MiniLM-L6-v2 {self.encoder.digest}",
            "layers": list(self.layers),
            "trained_on": self.training["data"],
            "threshold": self.threshold,
        }

    def score(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return (M,) float64 P(attribute) of each text's first 256 tokens."""
        logits = self.encoder.embed(texts, self.layers).astype(float) @ self.weights + self.bias
        return np.asarray(1 / (1 + np.exp(-logits)))


def save(path: Path, judge: LinearJudge) -> None:
    """Write the judge as JSON, weights to six digits, so that it can be read and diffed."""
    record = {
        "format_version": FORMAT,
        "attribute": judge.attribute,
        "encoder": judge.encoder.digest,
        "layers": list(judge.layers),
        "bias": round(judge.bias, 6),
        "weights": [round(float(weight), 6) for weight in judge.weights],
        "training": dict(judge.training),
    }
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")


def read(path: Path, attribute: str) -> LinearJudge:
    """Return a saved judge. Raises UserError if it is none, of another attribute or another encoder."""
    encoder = load_minilm()
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        judge = LinearJudge(
            record["attribute"], tuple(record["layers"]), np.array(record["weights"], dtype=float),
            float(record["bias"]), record["training"], encoder,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot read judge {path}: {error.strerror}; check the path") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no judge of ours: make one with python -m eval.train_judge") from None
    for what, here, there in (
        ("attribute", attribute, judge.attribute),
        ("encoder", encoder.digest, record["encoder"]),
    ):
        if here != there:
            raise UserError(f"judge {path} has {what} {there}, needed is {here}: train it anew")
    return judge


def load(attribute: str, detail: str | None) -> LinearJudge:
    """Return the shipped judge of that attribute, or one of your own at the path `detail`."""
    if detail:
        return read(Path(detail), attribute)
    with resources.as_file(resources.files("eval") / "judges" / f"{attribute}.json") as path:
        return read(path, attribute)
