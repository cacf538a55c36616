"""`rewards.train_head` on a small store with a linear golden reward: what it learns, tells and refuses."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from decoder.cli import run
from eval.head_measures import head_measures
from eval.stats import bootstrap
from rewards.heads import load_head
from rewards.output_folder import FILES
from rewards.pairs import split_prompts
from rewards.store import Store, open_store
from rewards.store_manifest import Encoder, Manifest
from rewards.store_writer import create
from rewards.train_head import app

D, PROMPTS, SAMPLES = 12, 120, 8
ENCODER = Encoder("tiny", weights="w1", tokenizer="t1")
SMALL = ("--set", "widths=16", "--set", "epochs=3", "--set", "lr=0.05")


def make_store(
    folder: Path, seed: int = 0, dimension: int = D, encoder: Encoder = ENCODER, prompts: int = PROMPTS
) -> Path:
    """Write a store of prompts with 8 rows each; "golden" is linear in the embedding, "partial" has gaps."""
    rng = np.random.default_rng(seed)
    n = prompts * SAMPLES
    scales = np.random.default_rng(7).uniform(0.2, 5, dimension)  # the same reward whatever the seed
    embeddings = rng.normal(1, scales, (n, dimension)).astype(np.float32)
    golden = embeddings @ (np.random.default_rng(8).normal(size=dimension) / scales)
    partial = np.where(np.arange(n) % 8 == 3, np.nan, golden)
    manifest = Manifest(
        encoder=encoder, dimension=dimension, layers=(4,), dtype="float32", labels=("golden", "partial")
    )
    with create(folder, manifest, shard_rows=150) as writer:
        ids = [f"p{row // SAMPLES}" for row in range(n)]
        texts = [f"text {seed} {row}" for row in range(n)]
        labels = {"golden": golden, "partial": partial}
        writer.append(ids, [row % SAMPLES for row in range(n)], texts, labels, embeddings)
    return folder


class Done(NamedTuple):
    code: int
    out: str
    error: str


def call(command: Any, *arguments: object) -> Done:
    """Run a command in this process, from its arguments to its exit."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), pytest.raises(SystemExit) as end:
        run(command, [str(argument) for argument in arguments])
    return Done(int(end.value.code or 0), out.getvalue(), error.getvalue())


def refused(done: Done, *said: str) -> None:
    """Check that a command ended with 2 and one line that says all of this."""
    assert done.code == 2, done.error
    lines = [line for line in done.error.splitlines() if line.strip()]
    assert len(lines) == 1, done.error
    assert lines[0].startswith("error: ")
    for part in said:
        assert part in lines[0]


def trained(store: Path, output: Path, *options: object) -> dict[str, Any]:
    """Train through the command line; return what the head tells of itself."""
    done = call(app, store, "--output", output, *options)
    assert done.code == 0, done.error
    told: dict[str, Any] = json.loads((output / "config.json").read_text())
    return told


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("made") / "store")


@pytest.fixture(scope="module")
def linear(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear head with perfect labels."""
    folder = tmp_path_factory.mktemp("linear") / "head"
    trained(store, folder, "--head", "bt-linear", "--pairs", 2500)
    return folder


def held_out(found: Store, seed: int = 0, share: float = 0.2) -> tuple[NDArray[Any], ...]:
    """Return rows, golden rewards and prompts of the prompts that the command holds out."""
    rows = np.flatnonzero(split_prompts(found.groups()[0], (1 - share, share), seed)[1])
    return rows, found.column("golden")[rows], found.groups()[0][rows]


def test_a_linear_reward_is_found(store: Path, linear: Path) -> None:
    told = json.loads((linear / "config.json").read_text())
    assert told["metrics"]["spearman"]["value"] >= 0.99
    assert told["metrics"]["pairwise_accuracy"]["value"] >= 0.97
    assert told["training"]["flip_rate"] == told["training"]["expected_flip_rate"] == 0
    assert told["training"]["n_pairs"] == 2500


def test_the_figures_are_those_of_the_saved_head(store: Path, linear: Path) -> None:
    """Every figure and interval again, from the folder and the rows that were held out."""
    told, found = json.loads((linear / "config.json").read_text()), open_store(store)
    rows, golden, groups = held_out(found)
    assert told["training"]["test"] == {
        "store": "store", "store_digest": found.digest, "n_rows": 192, "n_prompts": 24, "n_pairs": 0,
    }  # fmt: skip
    scores = load_head(linear).predict(found.embeddings(rows))
    measures = head_measures(scores, golden, groups, (1, 2, 5, 8))
    assert list(told["metrics"]) == [each.name for each in measures]
    for each in measures:
        expected = bootstrap(each.units)
        shown = told["metrics"][each.name]
        assert shown["value"] == pytest.approx(expected.value)
        assert [shown["low"], shown["high"]] == pytest.approx(expected.interval)
        assert shown["scored"] == shown["total"] == 24


def test_the_best_of_one_is_the_mean(store: Path, linear: Path) -> None:
    metrics = json.loads((linear / "config.json").read_text())["metrics"]
    _, golden, groups = held_out(open_store(store))
    mean = np.mean([golden[groups == prompt].mean() for prompt in np.unique(groups)])
    assert metrics["best_of_1"]["value"] == pytest.approx(mean)
    assert metrics["improvement_at_1"]["value"] == pytest.approx(0, abs=1e-12)
    assert metrics["quantile_at_1"]["value"] == pytest.approx(0.5)
    best = np.mean([golden[groups == prompt].max() for prompt in np.unique(groups)])
    assert metrics["best_of_8"]["value"] == pytest.approx(best, rel=0.02)


def test_it_tells_where_it_came_from(store: Path, linear: Path) -> None:
    told, found = json.loads((linear / "config.json").read_text()), open_store(store)
    assert told["kind"] == "head_mlp"
    assert told["encoder"]["encoder"] == {"name": "tiny", "weights": "w1", "tokenizer": "t1", "revision": ""}
    assert (told["encoder"]["layers"], told["encoder"]["pooling"]) == ([4], "last")
    assert told["training"]["store_digest"] == found.digest
    assert told["training"]["command"].startswith("python -m rewards.train_head")
    assert set(told["training"]["seconds"]) == {"gather", "fit", "measure"}
    assert told["training"]["versions"]["torch"]


def test_the_report_names_the_next_command(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "head"
    done = call(app, store, "--output", folder, "--pairs", 300, "--flip-rate", 0.2, *SMALL)
    assert done.code == 0, done.error
    assert "spearman" in done.out
    assert "expected 20.0%" in done.out
    assert f"python -m rewards.score {store} --head {folder}" in done.out
    assert f"python -m decoder.best_of_n --model tiny --scorer {folder}" in done.out


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (("--head", "clf-mlp", *SMALL, "--precision", "bfloat16", "--pairing", "cross"), "head_mlp"),
        (("--members", 3, "--rule", "mean-std", "--kappa", 0.3, "--bootstrap", *SMALL), "head_ensemble"),
        (("--head", "lgb-rank", "--set", "trees=30", "--pairing", "similar"), "head_lightgbm"),
        (("--head", "lgb-clf", "--members", 2, "--rule", "min", "--set", "trees=30"), "head_ensemble"),
    ],
)
def test_every_kind_is_trained_saved_and_replaced(
    options: tuple[object, ...], kind: str, store: Path, tmp_path: Path
) -> None:
    if "lgb" in str(options):
        pytest.importorskip("lightgbm")
    told = trained(store, tmp_path / "head", "--pairs", 600, *options)
    assert told["kind"] == kind
    assert told["metrics"]["spearman"]["value"] > 0.5
    load_head(tmp_path / "head", D)
    assert {path.name for path in (tmp_path / "head").iterdir()} <= FILES
    again = ("--output", tmp_path / "head", "--pairs", 200, "--head", "bt-linear")
    refused(call(app, store, *again), "is not empty", "--overwrite")
    assert call(app, store, *again, "--overwrite").code == 0
    assert {path.name for path in (tmp_path / "head").iterdir()} == {"config.json", "model.safetensors"}


def test_something_else_is_never_replaced(store: Path, tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "model.txt").write_text("trees")
    (tmp_path / "head" / "thesis.txt").write_text("years")
    refused(call(app, store, "--output", tmp_path / "head", "--overwrite"), "thesis.txt", "not replaced")
    assert (tmp_path / "head" / "thesis.txt").read_text() == "years"


def test_an_ensemble_keeps_what_was_asked_for(store: Path, tmp_path: Path) -> None:
    options = ("--members", 2, "--rule", "mean-var", "--kappa", 0.25, "--seed", 5)
    told = trained(store, tmp_path / "head", "--pairs", 200, *SMALL, *options)
    assert told["options"] == {
        "n_members": 2, "rule": "mean-var", "kappa": 0.25, "bootstrap": False, "seed": 5,
    }  # fmt: skip
    seeds = [
        json.loads((tmp_path / "head" / "members" / str(i) / "config.json").read_text())["options"]["seed"]
        for i in range(2)
    ]
    assert seeds == [5, 6]


def test_noise_is_what_was_asked_for(store: Path, tmp_path: Path) -> None:
    """The flip rate is calibrated; beta is as given; pairs are the same whatever the noise."""
    rate = trained(store, tmp_path / "a", "--head", "bt-linear", "--pairs", 1200, "--flip-rate", 0.3)
    assert rate["training"]["expected_flip_rate"] == pytest.approx(0.3)
    assert rate["training"]["flip_rate"] == pytest.approx(0.3, abs=0.05)
    beta = rate["training"]["beta"]
    same = trained(store, tmp_path / "b", "--head", "bt-linear", "--pairs", 1200, "--beta", beta)
    assert same["training"]["flip_rate"] == rate["training"]["flip_rate"]
    doubled = ("--beta", 2 * beta, "--scale", 2 * rate["training"]["scale"])
    again = trained(store, tmp_path / "c", "--head", "bt-linear", "--pairs", 1200, *doubled)
    assert again["training"]["flip_rate"] == rate["training"]["flip_rate"]


def test_rows_without_a_reward_are_left_out(store: Path, tmp_path: Path) -> None:
    told = trained(store, tmp_path / "head", "--reward-column", "partial", "--pairs", 200, *SMALL)
    assert told["training"]["rows_without_reward"] == PROMPTS
    assert told["training"]["test"]["n_rows"] == 24 * 7
    assert "best_of_7" in told["metrics"]


def test_another_store_judges(store: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other", seed=1, prompts=10)
    told = trained(store, tmp_path / "head", "--head", "bt-linear", "--pairs", 600, "--test", other)
    assert told["training"]["test"]["store"] == "other"
    assert told["training"]["test"]["n_rows"] == 80
    assert told["metrics"]["spearman"]["value"] >= 0.98


def test_your_own_preferences(store: Path, tmp_path: Path) -> None:
    """Both forms of a line; the pairs of prompts held out measure, those across both sides are left out."""
    found, rng = open_store(store), np.random.default_rng(0)
    golden, ids, samples = found.column("golden"), found.prompt_ids(), found.sample_indices()
    lines, pairs = [], []
    for number in range(900):
        start = int(rng.integers(PROMPTS)) * SAMPLES
        one, other = start + rng.permutation(SAMPLES)[:2]
        if number % 90 == 0:
            other = (one + SAMPLES) % len(golden)
        best, worst = (one, other) if golden[one] > golden[other] else (other, one)
        pairs.append((best, worst))
        keys = [{"prompt_id": ids[row], "sample_index": int(samples[row])} for row in (best, worst)]
        line = {"chosen": keys[0], "rejected": keys[1]}
        if ids[best] == ids[worst] and number % 2:
            line = {"prompt_id": ids[best], "chosen": int(samples[best]), "rejected": int(samples[worst])}
        lines.append(json.dumps(line))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n\n")
    told = trained(store, tmp_path / "head", "--head", "bt-linear", "--pairs-file", tmp_path / "pairs.jsonl")
    rows = held_out(found)[0]
    inside = np.isin(pairs, rows)
    assert told["training"]["n_pairs"] == (~inside).all(1).sum()
    assert told["training"]["test"]["n_pairs"] == inside.all(1).sum() > 100
    assert told["training"]["n_pairs_left_out"] == 900 - (inside.all(1) | (~inside).all(1)).sum()
    judged = np.array(pairs)[inside.all(1)]
    scores = load_head(tmp_path / "head").predict(found.embeddings(np.arange(len(found))))
    right = scores[judged[:, 0]] > scores[judged[:, 1]]
    by_prompt = [right[ids[judged[:, 0]] == each].mean() for each in np.unique(ids[judged[:, 0]])]
    assert told["metrics"]["preference_accuracy"]["value"] == pytest.approx(np.mean(by_prompt))
    assert told["metrics"]["spearman"]["value"] > 0.98


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "broken JSON"),
        ("[1]", "must be an object"),
        ('{"prompt_id": "p1", "chosen": 0}', '"rejected" names no row'),
        ('{"prompt_id": "p1", "chosen": 0, "rejected": "1"}', '"rejected" names no row'),
        ('{"prompt_id": true, "chosen": 0, "rejected": 1}', '"chosen" names no row'),
        ('{"prompt_id": "p1", "chosen": 0, "rejected": 80}', "has no sample 80 of prompt 'p1'"),
        ('{"prompt_id": "q", "chosen": 0, "rejected": 1}', "has no sample 0 of prompt 'q'"),
        ('{"prompt_id": "p1", "chosen": 2, "rejected": 2}', "one row is chosen and rejected"),
    ],
)
def test_preferences_that_cannot_be_read(line: str, said: str, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt_id": "p1", "chosen": 0, "rejected": 1}\n' + line + "\n")
    refused(
        call(app, store, "--output", tmp_path / "head", "--pairs-file", path), "pairs.jsonl, line 2", said
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--reward-column", "gold"), "has no label 'gold': it has golden, partial"),
        (("--pairs", 100_000), "100000 pairs asked for, but 768 rows of 96 prompts have only 2688"),
        (("--pairing", "withn"), "unknown pairing 'withn': did you mean within"),
        (("--head", "bt-mpl"), "unknown head 'bt-mpl': did you mean bt-mlp"),
        (("--set", "lrr=1"), "unknown option 'lrr': did you mean lr"),
        (("--set", "lr"), "write NAME=VALUE"),
        (("--set", "lr=fast"), "'fast' is not a number"),
        (("--set", "widths=3,x"), "'3,x' is not whole numbers"),
        (("--set", "epochs=1.5"), "'1.5' is not a whole number"),
        (("--set", "lr=1", "--set", "lr=2"), "lr is given twice"),
        (("--set", "lr=-1"), "lr -1.0 must be a number above 0"),
        (("--set", "seed=1"), "give it as --seed 1"),
        (("--precision", "float16"), "precision 'float16' is not known"),
        (("--head", "lgb-clf", "--precision", "bfloat16"), "unknown option 'precision'"),
        (("--rule", "min"), "--rule is about an ensemble"),
        (("--members", 3, "--rule", "median"), "unknown rule 'median'"),
        (("--flip-rate", 0.5), "--flip-rate 0.5 is not in [0, 0.5)"),
        (("--flip-rate", 0.1, "--beta", 1), "two ways"),
        (("--beta", -1), "--beta -1.0"),
        (("--scale", "var"), "--scale var: give std or a number"),
        (("--test-share", 1.5), "--test-share 1.5"),
        (("--test", "x", "--test-share", 0.2), "give one of them"),
        (("--test-share", 0.001), "too few"),
        (("--pairs-file", "x", "--pairing", "cross"), "--pairing is about pairs that are drawn"),
        (("--pairs-file", "nowhere.jsonl"), "cannot read pairs from nowhere.jsonl"),
        (("--test", "nowhere"), "is no embedding store"),
    ],
)
def test_what_is_refused(options: tuple[object, ...], said: str, store: Path, tmp_path: Path) -> None:
    refused(call(app, store, "--output", tmp_path / "head", *options), said)
    assert not (tmp_path / "head").exists()


def test_stores_that_do_not_fit_are_refused(store: Path, tmp_path: Path) -> None:
    refused(call(app, tmp_path, "--output", tmp_path / "head"), "is no embedding store")
    refused(call(app, store, "--output", tmp_path / "head", "--test", store), "which the head learns from")
    wide = make_store(tmp_path / "wide", dimension=15)
    said = ("dimension 15 in the store, 12 asked for",)
    refused(call(app, store, "--output", tmp_path / "head", "--test", wide), *said)
    other = make_store(tmp_path / "other", encoder=Encoder("big", weights="w2", tokenizer="t1"))
    said = ("encoder weights 'w2' in the store, 'w1' asked for", "'big'", "'tiny'")
    refused(call(app, store, "--output", tmp_path / "head", "--test", other), *said)
    assert not (tmp_path / "head").exists()
