"""Boosted trees as a reward head on embeddings: LightGBM, as a classifier of responses or a ranker of pairs.

Kept as LightGBM's own text, `model.txt` beside `config.json`; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from decoder.contracts import UserError
from rewards.head_files import read_head, save_head
from rewards.head_inputs import Ints, RowReader, Split, score_rows, split_targets
from rewards.heads import (
    Embeddings,
    LightgbmOptions,
    Scores,
    change_options,
    fitted,
    make_options,
    options_record,
)
from rewards.stacked_mlp import calibrated_loss

KIND = "head_lightgbm"
MODEL_FILE = "model.txt"
HELD_OUT = "held-out loss"


@dataclass(frozen=True, slots=True)
class LightgbmFit:
    """How a fit ended. loss: held out, -log sigma(s1 - s2) a pair. trees: kept. grown: before it stopped."""

    loss: float
    trees: int
    grown: int


class LightgbmHead:
    """Boosted trees on embeddings, trained on pairs; the score is the sum of leaves, before any sigmoid.

    Source: the CLF-LGB model of "Reusing Embeddings" (arXiv 2502.04357), LightGBM's default hyper-parameters
    on responses labelled winner and loser; the ranker is ours. After `fit`: `booster_`, and `fit_`, how the
    training ended, None in a head that was loaded. The same seed gives the same trees on any number of
    threads.
    """

    def __init__(self, **options: Any) -> None:
        """Take fields of `LightgbmOptions`. Raises UserError for other names and impossible values."""
        self.options = make_options(LightgbmOptions, options)
        self.booster_: Any = None
        self.fit_: LightgbmFit | None = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        return options_record(self.options)

    def set_params(self, **changes: Any) -> LightgbmHead:
        """Change hyper-parameters of the next `fit` and return itself."""
        self.options = change_options(self.options, changes)
        return self

    def fit(self, X: Embeddings, y: Any, groups: ArrayLike | None = None) -> LightgbmHead:
        """Learn from pairs of embeddings and return itself; arguments as in `MlpHead.fit`.

        Labels (N,) serve the objective "binary" alone. The rows of the pairs are read into memory. Raises
        UserError for inputs that cannot be used, and where LightGBM is not installed.
        """
        lightgbm = _lightgbm()
        split = split_targets(y, groups, self.options.held_out, self.options.seed)
        if self.options.objective == "lambdarank" and split.pairs is None:
            raise UserError("lambdarank ranks the rows of pairs and was given labels: give pairs (n, 2)")
        reader = RowReader(X, int(split.rows[0]))
        grown: dict[str, dict[str, list[float]]] = {}
        self.booster_ = lightgbm.train(
            _parameters(self.options),
            _training_set(lightgbm, reader, split, self.options),
            num_boost_round=self.options.trees,
            valid_sets=[_held_out_set(lightgbm, reader, split.held_out)],
            valid_names=["pairs"],
            feval=_held_out_loss(self.options),
            callbacks=[
                lightgbm.early_stopping(self.options.patience, verbose=False),
                lightgbm.record_evaluation(grown),
            ],
        )
        losses = grown["pairs"][HELD_OUT]
        self.fit_ = LightgbmFit(min(losses), int(self.booster_.best_iteration), len(losses))
        return self

    def predict(self, X: ArrayLike) -> Scores:
        """Return scores (M,) float32 of embeddings (M, D), higher better.

        Raises UserError for a head that was not fitted, another D, and rows that are not finite.
        """
        booster, threads = fitted(self.booster_), self.options.threads
        return score_rows(
            X,
            booster.num_feature(),
            lambda rows: booster.predict(rows.numpy(), raw_score=True, num_threads=threads),
        )

    def save_pretrained(
        self,
        directory: str | Path,
        encoder: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the fitted head; `encoder` says what made the embeddings, `about` where labels came from."""
        booster = fitted(self.booster_)
        gain = torch.from_numpy(booster.feature_importance("gain")).float()  # (D,), what each number is worth
        learnt = (booster.num_feature(), options_record(self.options), {"gain": gain})
        save_head(Path(directory), KIND, learnt, encoder, about)
        (Path(directory) / MODEL_FILE).write_text(self._text(), encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, dimension: int | None = None, encoder: Mapping[str, Any] | None = None
    ) -> LightgbmHead:
        """Load a saved head, for embeddings of this dimension and encoder where they are given.

        Raises UserError if it is broken or was made for others, and where LightGBM is not installed.
        """
        saved = read_head(Path(directory), KIND, dimension, encoder)
        head = cls(**saved.options)
        head.booster_ = _read_booster(Path(directory) / MODEL_FILE)
        if head.booster_.num_feature() != saved.dimension:
            raise UserError(
                f"{directory}: the trees read {head.booster_.num_feature()} numbers and config.json says "
                f"{saved.dimension}: train the head again"
            )
        return head

    @property
    def digest(self) -> str:
        """Return what tells these trees from others."""
        return hashlib.sha256(self._text().encode()).hexdigest()[:16]

    def _text(self) -> str:
        """Return the trees that are kept, in LightGBM's own form."""
        booster = fitted(self.booster_)
        return str(booster.model_to_string(num_iteration=booster.best_iteration))


def _lightgbm() -> Any:
    try:
        return importlib.import_module("lightgbm")
    except ModuleNotFoundError as error:
        if error.name != "lightgbm":
            raise
        raise UserError("LightGBM heads need lightgbm: pip install 'tiller-lm[heads]'") from None


def _parameters(options: LightgbmOptions) -> dict[str, Any]:
    """Return LightGBM's parameters; what is not named here is its default."""
    return {
        "objective": options.objective,
        "learning_rate": options.lr,
        "num_leaves": options.leaves,
        "min_data_in_leaf": options.min_leaf_rows,
        "seed": options.seed,
        "num_threads": options.threads,
        "deterministic": True,
        "force_row_wise": True,  # else it times both ways and takes the faster, which may change the result
        "metric": "None",  # the held-out loss alone
        "verbosity": -1,
    }


def _training_set(lightgbm: Any, reader: RowReader, split: Split, options: LightgbmOptions) -> Any:
    """Return the responses with their labels, those of a pair side by side where pairs are ranked."""
    if options.objective == "lambdarank" and split.pairs is not None:
        labels = np.tile(np.array([1, 0], dtype=np.float32), len(split.pairs))
        groups = np.full(len(split.pairs), 2)
        return lightgbm.Dataset(reader(split.pairs.ravel()).numpy(), labels, group=groups)
    return lightgbm.Dataset(reader(split.rows).numpy(), split.labels)


def _held_out_set(lightgbm: Any, reader: RowReader, pairs: Ints) -> Any:
    """Return the rows of held-out pairs, winners first."""
    labels = np.repeat(np.array([1, 0], dtype=np.float32), len(pairs))
    groups = np.full(len(pairs), 2)  # the ranker asks for some; the loss below reads the rows by place
    return lightgbm.Dataset(reader(pairs.T.ravel()).numpy(), labels, group=groups, free_raw_data=False)


def _held_out_loss(options: LightgbmOptions) -> Callable[[NDArray[Any], Any], tuple[str, float, bool]]:
    """Return the loss that the MLPs stop on too, as LightGBM calls it."""

    def measure(predicted: NDArray[Any], held_out: Any) -> tuple[str, float, bool]:
        scores = torch.from_numpy(predicted).double()
        if options.objective == "binary":  # probabilities are handed out
            scores = torch.logit(scores, eps=1e-12)
        winners, losers = scores.chunk(2)
        return HELD_OUT, calibrated_loss(winners - losers)[0], False

    return measure


def _read_booster(path: Path) -> Any:
    lightgbm = _lightgbm()
    try:
        return lightgbm.Booster(model_str=path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): copy or train the head again") from None
    except (UnicodeDecodeError, lightgbm.basic.LightGBMError) as error:
        raise UserError(f"{path} holds no LightGBM model ({error}): copy or train the head again") from None
