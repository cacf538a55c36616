"""How often judges are right: accuracy and AUC on labelled texts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.attribute import judged
from eval.judge import parse_judge
from eval.stats import bootstrap
from rewards.labelled_text import Source, read_labelled
from rewards.measure_arm import rank_auc


def bench_judges(
    path: str, attribute: str, text_column: str, label_column: str, judges: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row a judge and the settings; label 1 means toxic, or positive. Intervals are over texts."""
    data = read_labelled([Source(path, text_column, (label_column,))], str.strip)
    labels = data.labels[:, 0] >= 0.5
    rows = []
    for name in judges:
        judge = parse_judge(name, [attribute]).load()
        begin = time.perf_counter()
        scores = judged(judge, data.texts)
        seconds = time.perf_counter() - begin
        scored = ~np.isnan(scores)
        right = (scores[scored] >= judge.threshold) == labels[scored]
        accuracy = bootstrap(right)
        rows.append(
            {
                "judge": judge.name, "accuracy": accuracy.value, "interval": accuracy.interval,
                "auc": rank_auc(scores[scored], labels[scored]),
                "scored": int(scored.sum()), "total": len(labels), "texts_per_second": len(labels) / seconds,
            }
        )  # fmt: skip
    settings = {"data": path, "attribute": attribute, "share of label 1": float(labels.mean())}
    return rows, settings
