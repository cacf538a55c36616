"""Which texts a reward learns from, which it is chosen on, and which only judge it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from rewards.clean_text import make_cleaner, normalise
from rewards.labelled_text import LabelledTexts, Source, parse_source, read_labelled

MIN_EACH_CLASS = 8  # so that a split by eighths leaves some on both sides


@dataclass(frozen=True, slots=True)
class DataOptions:
    """What to learn from: files as `parse_source` reads them.

    columns: the source that every file is like unless it says otherwise. limit: of texts. seed: of the
    split.
    """

    data: tuple[str, ...]
    columns: Source
    detokenize: bool = False
    clean_social: bool = False
    validation: str | None = None
    tests: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0

    def label_columns(self) -> tuple[str, ...]:
        """Return the label columns named; none where they are to be found in the data."""
        return parse_source(self.data[0], self.columns).labels


@dataclass(frozen=True, slots=True)
class Material:
    """What heads are fitted on and judged by; no text is in two parts.

    labelled: training and validation texts. train, validation: int64 text numbers among them. tests:
    name -> texts that nothing is chosen on. seconds: of reading them.
    """

    labelled: LabelledTexts
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    tests: dict[str, LabelledTexts]
    seconds: float


def gather(options: DataOptions) -> Material:
    """Return the texts that the options name.

    Without a validation file an eighth of the data serves. Texts of the test files are taken out of the
    other parts, those of the validation file out of the data. Raises UserError for unusable data.
    """
    begin = time.perf_counter()
    clean = make_cleaner(detokenize=options.detokenize, social=options.clean_social)

    def read(*arguments: str) -> LabelledTexts:
        return read_labelled([parse_source(argument, options.columns) for argument in arguments], clean)

    labelled = read(*options.data)
    reports = {Path(name.partition("::")[0]).name: read(name) for name in options.tests}
    for report in reports.values():
        _check_columns(report, labelled)
    labelled = without(labelled, *reports.values())
    if options.validation is None:
        labelled = take_spaced(labelled, options.limit)
        check_classes(labelled, MIN_EACH_CLASS)
        train, held_out = split_texts(labelled.labels, options.seed)
    else:
        chosen_on = without(read(options.validation), *reports.values())
        _check_columns(chosen_on, labelled)
        labelled, n_train = _join(take_spaced(without(labelled, chosen_on), options.limit), chosen_on)
        train, held_out = np.split(np.arange(len(labelled.texts)), [n_train])
    for part in (train, held_out):
        check_classes(labelled.take(part), 1)
    return Material(labelled, train, held_out, reports, time.perf_counter() - begin)


def check_classes(labelled: LabelledTexts, minimum: int) -> None:
    """Raise UserError unless every label column has `minimum` texts of either class."""
    files = ", ".join(labelled.files)
    for name, labels in zip(labelled.columns, labelled.labels.T, strict=True):
        positive = int((labels >= 0.5).sum())
        fewest = min(positive, len(labels) - positive)
        if fewest == 0:
            raise UserError(
                f"label column {name!r} of {files} has one class only, {int(positive > 0)}: give texts "
                "of both (is --positive-label spelled as in the data?)"
            )
        if fewest < minimum:
            raise UserError(
                f"label column {name!r} of {files} has {fewest} texts of one class: at least {minimum} "
                "of each are needed"
            )


def _check_columns(labelled: LabelledTexts, main: LabelledTexts) -> None:
    if len(labelled.columns) != len(main.columns):
        raise UserError(
            f"{', '.join(labelled.files)} gives {len(labelled.columns)} label columns where the data gives "
            f"{len(main.columns)}: name as many with FILE::label=COLUMN"
        )


def without(labelled: LabelledTexts, *others: LabelledTexts) -> LabelledTexts:
    """Return the texts that none of the others holds."""
    held = {normalise(text) for other in others for text in other.texts}
    kept = [row for row, text in enumerate(labelled.texts) if normalise(text) not in held]
    return labelled.take(np.array(kept, dtype=np.int64))


def take_spaced(labelled: LabelledTexts, n_texts: int | None) -> LabelledTexts:
    """Return at most `n_texts` texts, evenly spaced, so that a file sorted by label keeps both."""
    if n_texts is None or n_texts >= len(labelled.texts):
        return labelled
    return labelled.take(np.linspace(0, len(labelled.texts) - 1, n_texts).round().astype(np.int64))


def split_texts(labels: NDArray[np.float64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return text numbers for training and validation, 7 : 1, each pattern of labels (M, L) split alike."""
    order = np.random.default_rng(seed).permutation(len(labels))
    pattern = (labels >= 0.5) @ (1 << np.arange(labels.shape[1]))
    order = order[np.argsort(pattern[order], kind="stable")]
    held_out = np.arange(len(order)) % 8 == 4
    return np.sort(order[~held_out]), np.sort(order[held_out])


def _join(first: LabelledTexts, second: LabelledTexts) -> tuple[LabelledTexts, int]:
    """Return both as one, and where the second begins."""
    joined = replace(
        first,
        texts=first.texts + second.texts,
        labels=np.concatenate([first.labels, second.labels]),
        files=first.files + second.files,
        n_rows=first.n_rows + second.n_rows,
        n_empty=first.n_empty + second.n_empty,
        n_repeated=first.n_repeated + second.n_repeated,
    )
    return joined, len(first.texts)
