"""eval.run, eval.compare and eval.tradeoff through the real command line, on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.heads import save_arm
from tests.source import ROOT
from tests.tiny import tiny_llama, tiny_tokenizer

pytest.importorskip("vaderSentiment")
pytest.importorskip("profanity_check")
pytest.importorskip("nltk")
pytest.importorskip("matplotlib")

Report = tuple[Path, Path, dict[str, Any]]  # generations, folder, JSON line
JUDGES = ("--judge", "vader", "profanity")  # no encoder to load: the rest is what is tested here
WORDS = ["good", "bad", "lovely", "awful", "stupid", "kind", "dull", "warm"]


def run(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)


def done(module: str, *arguments: str | Path) -> dict[str, Any]:
    """Run a command that must succeed; return its JSON line."""
    found = run(module, *arguments)
    assert found.returncode == 0, found.stderr
    line: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return line


def write_generations(path: Path, seed: int, prompts: int = 12, **extra: Any) -> Path:
    """Write a file of 3 samples a prompt in the shape of DExperts."""
    draw = np.random.default_rng(seed)
    with path.open("w") as file:
        for number in range(prompts):
            texts = [" a " + " ".join(draw.choice(WORDS, 4)) + " day" for _ in range(3)]
            row = {"id": f"p{number}", "prompt": {"text": f"Day {number} was"}}
            file.write(json.dumps({**row, "generations": [{"text": text} for text in texts], **extra}) + "\n")
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> Report:
    """A file of generations, its evaluation by all four metrics, and the command's JSON line."""
    folder = tmp_path_factory.mktemp("report")
    file = write_generations(folder / "a.jsonl", seed=1)
    line = done("eval.run", file, *JUDGES, "--model", tiny_dir, "--output", folder / "a")
    return file, folder / "a", line


def figures(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {figure["name"]: figure for figure in report["measures"]}


def test_every_figure_says_by_whom_of_how_many_and_how_sure(
    report: Report,
) -> None:
    """report.json holds judge, version, threshold, n, scored of total and an interval for each number."""
    _, folder, line = report
    found = json.loads((folder / "report.json").read_text())
    assert found["measures"] == line["measures"]
    assert found["generations"]["prompts"] == 12
    assert found["generations"]["samples"] == 36
    for figure in found["measures"]:
        assert figure["interval"][0] <= figure["value"] <= figure["interval"][1], figure
        assert figure["n"] == 12
        assert figure["scored"] == figure["total"]
        assert figure["metric"] in found["metrics"]
    for name in ("toxicity", "sentiment"):
        assert {"judge", "version", "threshold", "reads"} <= set(found["metrics"][name])
    assert "weights" in found["metrics"]["perplexity"]
    assert {"positive share", "expected maximum toxicity", "perplexity", "dist2"} <= set(figures(found))
    markdown = (folder / "report.md").read_text()
    assert all(name in markdown for name in figures(found))


def test_figures_follow_from_the_scores_on_disk(report: Report) -> None:
    """Anybody can redo the numbers from the per-sample JSONL."""
    _, folder, line = report
    rows = [json.loads(text) for text in (folder / "sentiment.jsonl").read_text().splitlines()]
    assert [row["sample"] for row in rows[:4]] == [0, 1, 2, 0]
    shares = np.array([row["sentiment"] >= 0.525 for row in rows]).reshape(12, 3).mean(1)
    share = figures(line)["positive share"]
    assert share["value"] == pytest.approx(shares.mean())
    theirs = stats.bootstrap((shares,), np.mean, method="percentile", n_resamples=5000, rng=0)
    assert share["interval"] == pytest.approx(list(theirs.confidence_interval), abs=0.03)
    losses = [json.loads(text) for text in (folder / "perplexity.jsonl").read_text().splitlines()]
    total = sum(row["nll"] for row in losses) / sum(row["tokens"] for row in losses)
    assert figures(line)["perplexity"]["value"] == pytest.approx(np.exp(total))


def test_a_second_run_takes_the_scores_over(report: Report, tiny_dir: Path) -> None:
    """Nothing is scored twice, and other settings are refused with the difference."""
    file, folder, line = report
    before = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    assert done("eval.run", file, *JUDGES, "--model", tiny_dir, "--output", folder) == line
    assert {path.name: path.read_bytes() for path in folder.glob("*.jsonl")} == before
    other = run("eval.run", file, "--metrics", "sentiment", "--judge", "vader", "--reads", "continuation",
                "--output", folder)  # fmt: skip
    assert other.returncode == 2
    assert 'reads: "whole" in the file, "continuation" now' in other.stderr


def test_comparing_is_a_paired_test(report: Report, tmp_path: Path) -> None:
    """B minus A, its interval and p, against scipy's paired t test on the same units."""
    _, folder, _ = report
    other = write_generations(tmp_path / "b.jsonl", seed=2, prompts=11)
    done("eval.run", other, "--metrics", "sentiment", "--judge", "vader", "--output", tmp_path / "b")
    line = done("eval.compare", folder, tmp_path / "b")
    assert line["settings"]["prompts"] == 11
    assert line["settings"]["only in a"] == 1
    row = next(row for row in line["rows"] if row["figure"] == "mean positivity")
    units = [
        {(u := json.loads(text))["prompt_id"]: u["mean positivity"] for text in path.read_text().splitlines()}
        for path in (folder / "units.jsonl", tmp_path / "b" / "units.jsonl")
    ]
    a, b = (np.array([each[key] for key in units[1]]) for each in units)
    assert row["b - a"] == pytest.approx((b - a).mean())
    assert row["p"] == pytest.approx(stats.ttest_rel(b, a).pvalue, abs=0.08)
    same = done("eval.compare", folder, folder)
    assert all(row["b - a"] == 0 and row["p"] == 1 for row in same["rows"])


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        ("", (), "gens.jsonl is empty"),
        ('{"prompt": "a"}\n', (), "line 1"),
        ('{"prompt": {"text": "a"}, "generations": []}\n', (), "line 1"),
        ('{"prompt": "a", "text": "b"}\n{"prompt": "a", "generations": ["b"]}\n', (), "mixed formats"),
        ('{"id": "x", "prompt": "a", "generations": ["b"]}\n' * 2, (), "the id 'x' was used before"),
        ('{"text": "b"}\n', ("--metrics", "fluency"), "unknown metric 'fluency': choose among toxicity"),
        ('{"text": "b"}\n', ("--judge", "perspective"), "unknown judge 'perspective': choose among minilm"),
        ('{"text": "b"}\n', ("--metrics", "diversity", "--judge", "vader"), "metrics ask for neither"),
        ('{"text": "b"}\n', ("--metrics", "sentiment", "--judge", "vader", "vader"), "named twice"),
        ('{"text": "b"}\n', ("--judge", "vader", "--reads", "all"), "cannot read 'all'"),
        ('{"text": "b"}\n', ("--model", "./none"), "model directory './none' does not exist"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(tmp_path: Path, content: str, arguments: tuple[str, ...], said: str) -> None:
    file = tmp_path / "gens.jsonl"
    file.write_text(content)
    found = run("eval.run", file, *arguments, "--output", tmp_path / "out")
    assert found.returncode == 2, found.stderr
    assert len(found.stderr.strip().splitlines()) == 1, found.stderr
    assert said in found.stderr


def test_scores_that_a_file_carries_are_summed_up(tmp_path: Path) -> None:
    """Perspective's, say: a sample without one is NaN, and the coverage says so."""
    rows = [[0.1, 0.9], [0.2, None], [None, None]]
    lines = [
        json.dumps({"prompt": {"text": f"p{i}"}, "generations": [{"text": "x", "toxicity": t} for t in row]})
        for i, row in enumerate(rows)
    ]
    (tmp_path / "g.jsonl").write_text("\n".join(lines))
    line = done("eval.run", tmp_path / "g.jsonl", "--metrics", "recorded", "--output", tmp_path / "out")
    found = figures(line)["expected maximum toxicity (recorded)"]
    assert (found["value"], found["scored"], found["total"], found["n"]) == (pytest.approx(0.55), 3, 6, 2)
    assert figures(line)["toxicity probability (recorded)"]["value"] == 0.5


def test_compare_refuses_what_does_not_pair(report: Report, tmp_path: Path) -> None:
    _, folder, _ = report
    other = run("eval.compare", folder, tmp_path)
    assert other.returncode == 2
    assert "holds no finished evaluation (report.json: No such file" in other.stderr
    (tmp_path / "c.jsonl").write_text('{"id": "z", "prompt": "a", "generations": ["b"]}\n')
    done("eval.run", tmp_path / "c.jsonl", "--metrics", "diversity", "--output", tmp_path / "c")
    assert "share no prompt: the first begins with 'p0'" in run("eval.compare", folder, tmp_path / "c").stderr


@pytest.fixture(scope="module")
def traded(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> tuple[Path, dict[str, Any]]:
    """A trade-off of a random reward on a tiny model."""
    folder = tmp_path_factory.mktemp("traded")
    save_arm(folder / "mine", tiny_llama(), tiny_tokenizer())
    (folder / "prompts.txt").write_text("The kettle sang\nShe thought\nA\n")
    return folder, done("eval.tradeoff", *tradeoff(folder, tiny_dir), "--output", folder / "out")


def tradeoff(folder: Path, model: Path) -> tuple[str | Path, ...]:
    return ("--reward", folder / "mine", "--betas", "2", "-1", *common(folder, model))


def common(folder: Path, model: Path) -> tuple[str | Path, ...]:
    return (
        "--prompts",
        folder / "prompts.txt",
        *JUDGES,
        "--model",
        model,
        "-n",
        "2",
        "--max-new-tokens",
        "5",
    )


def test_a_trade_off_is_told_in_every_form(traded: tuple[Path, dict[str, Any]]) -> None:
    """One point a beta with 0 added, on disk as JSON, markdown, HTML, SVG and PNG."""
    folder, line = traded
    assert [row["beta"] for row in line["rows"]] == [0.0, -1.0, 2.0]
    assert all(row["perplexity"] > 1 for row in line["rows"])
    out = folder / "out"
    assert {"report.json", "report.html", "table.md", "picture.svg", "picture.png"} <= {
        path.name for path in out.iterdir()
    }
    page = (out / "report.html").read_text()
    assert "β 2" in page
    assert "vader" in page
    assert len(json.loads((out / "unsteered.jsonl").read_text().splitlines()[0])["generations"]) == 2


def test_a_trade_off_goes_on_and_joins_others(traded: tuple[Path, dict[str, Any]], tiny_dir: Path) -> None:
    """A second run, its betas beside the reward, generates nothing anew; another folder's curves join."""
    folder, line = traded
    before = {path.name: path.read_bytes() for path in (folder / "out").glob("*.jsonl")}
    again = done(
        "eval.tradeoff", "--reward", f"{folder / 'mine'}:2,-1", *common(folder, tiny_dir),
        "--also", f"old={folder / 'out'}", "--output", folder / "out",
    )  # fmt: skip
    assert {path.name: path.read_bytes() for path in (folder / "out").glob("*.jsonl")} == before
    names = [row["reward"] for row in again["rows"]]
    assert names == ["mine"] * 3 + ["old"] * 3
    for new, old in zip(again["rows"], line["rows"], strict=False):
        assert new == old, "its time too: reading a finished file is no decoding"
    (folder / "out" / "cost.json").unlink()
    forgotten = done("eval.tradeoff", *tradeoff(folder, tiny_dir), "--output", folder / "out")
    assert [row["relative time"] for row in forgotten["rows"]] == [None] * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--also", "old"), "write NAME=FOLDER"),
        (("--also", "old=./none"), "none holds no trade-off"),
        (("--prompts", "./none.txt"), "cannot read prompts from ./none.txt"),
        (("--attributes", "humour"), "unknown metric 'humour'"),
        (("--protocol", "perspective"), "unknown protocol 'perspective': choose among own"),
        (("--prompts", "hf://datasets/nobody"), "write hf://datasets/OWNER/NAME/FILE.jsonl"),
        (("--prompts", "hf://datasets/nobody/none/p.jsonl"), "or download the file and give its path"),
        (("--reward", "positive:1,much"), "'1,much' are no betas; write NAME:1,2,4"),
        (("--reward", "positive", "positive"), "two rewards are called 'positive'"),
    ],
)
def test_a_bad_trade_off_is_one_line(
    tmp_path: Path, tiny_dir: Path, arguments: tuple[str, ...], said: str
) -> None:
    found = run("eval.tradeoff", *arguments, "--model", tiny_dir, "--output", tmp_path / "out")
    assert found.returncode == 2, found.stderr
    assert len(found.stderr.strip().splitlines()) == 1, found.stderr
    assert said in found.stderr
