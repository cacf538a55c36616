"""Train an embedded judge: a logistic regression on MiniLM embeddings of labelled texts.

    python -m eval.train_judge shipped-data/sentiment-judge.jsonl --attribute sentiment \
        --label-column positive --test shipped-data/sentiment-test.jsonl --output sentiment.json

Use texts that no reward you mean to judge has learned from.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decoder.cli import make_app, run

if TYPE_CHECKING:
    from rewards.labelled_text import LabelledTexts

LAYERS = (4, 5, 6)
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # C of the logistic regression, chosen by cross-validation


def train_judge(
    train: Annotated[str, typer.Argument(help="CSV, TSV, JSONL or Parquet of labelled texts.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    attribute: Annotated[str, typer.Option(help="toxicity or sentiment; label 1 is toxic, or positive.")],
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the labels, 0 or 1.")] = "label",
    test: Annotated[str | None, typer.Option(help="Another such file; measured, not learned.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the cross-validation.")] = 0,
) -> None:
    """Fit, print accuracy and AUC, and write the judge as JSON."""
    from decoder.contracts import UserError
    from eval.judge import ATTRIBUTES
    from rewards.labelled_text import Source, read_labelled

    if attribute not in ATTRIBUTES:
        raise UserError(f"unknown attribute {attribute!r}: choose one of {', '.join(ATTRIBUTES)}")
    paths = [path for path in (train, test) if path]
    texts = [read_labelled([Source(path, text_column, (label_column,))], str.strip) for path in paths]
    judge = fit(texts[0], attribute, seed)
    print({"train": judge.training["data"], **judge.training["metrics"]})
    if test:
        judge.training["metrics"]["test"] = measure(judge, texts[1])
        print({"test": judge.training["metrics"]["test"]})
    from eval.linear_judge import save

    save(output, judge)


def fit(data: LabelledTexts, attribute: str, seed: int) -> Any:
    """Return the judge of labelled texts; its strength of regularisation is cross-validated."""
    import numpy as np

    from eval.judge import missing_package
    from eval.linear_judge import LinearJudge
    from eval.minilm import load_minilm

    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
    except ImportError:
        raise missing_package("minilm", "scikit-learn to be trained") from None
    encoder = load_minilm()
    labels = (data.labels[:, 0] >= 0.5).astype(int)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    search = GridSearchCV(
        LogisticRegression(max_iter=2000), {"C": STRENGTHS}, scoring="neg_log_loss", cv=folds
    )
    model = search.fit(encoder.embed(data.texts, LAYERS), labels).best_estimator_
    training = {
        "data": f"{len(labels)} texts of {', '.join(data.files)} ({data.fingerprint()[:12]})",
        "metrics": {"C": model.C, "share of label 1": round(float(np.mean(labels)), 3)},
    }
    return LinearJudge(attribute, LAYERS, model.coef_[0], float(model.intercept_[0]), training, encoder)


def measure(judge: Any, data: LabelledTexts) -> dict[str, float]:
    """Return n, accuracy at the threshold and AUC on labelled texts."""
    from sklearn.metrics import roc_auc_score

    labels = data.labels[:, 0] >= 0.5
    scores = judge.score(data.texts)
    accuracy = float(((scores >= judge.threshold) == labels).mean())
    auc = float(roc_auc_score(labels, scores))
    return {"n": len(labels), "accuracy": round(accuracy, 4), "auc": round(auc, 4)}


app = make_app(train_judge)

if __name__ == "__main__":
    run(app)
