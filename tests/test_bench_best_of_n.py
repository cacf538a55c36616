"""eval.bench best-of-n and scoring through the real command, on tiny models and small files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from decoder.contracts import UserError
from decoder.decoder import Decoder
from decoder.dropping import DropSchedule
from decoder.hf_backend import HFBackend
from decoder.job import Job
from decoder.replay import running_scores, score_samples
from decoder.sampling import SamplingConfig
from eval import selection
from eval.bench_best_of_n import Comparison, bench_best_of_n, compare, parse_schedule, powers
from eval.bench_scoring import make_probe, text_model
from eval.candidate_scores import score
from eval.candidates import correct, judged_gold, read_seeds
from eval.dropping_curve import dropping_curve
from eval.selection_seeds import seeded_difference, seeded_dropping, seeded_figures
from eval.stats import bootstrap
from rewards.arm import TapArm
from rewards.likelihood import MeanLogProbability
from rewards.path_reward import PathReward
from tests.heads import as_lm, save_arm, tiny_arm
from tests.source import ROOT

pytest.importorskip("matplotlib")

N = 6
QUESTIONS = [(f"q{i}", f"What is {i} + {i}?", str(2 * i)) for i in range(8)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the benchmark as a user does."""
    command = [sys.executable, "-m", "eval.bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)


def done(*arguments: str | Path) -> dict[str, Any]:
    """Run one that must succeed; return its JSON line."""
    found = run(*arguments)
    assert found.returncode == 0, found.stderr
    line: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return line


def candidates(tokenizer: PreTrainedTokenizerFast, seed: int) -> list[dict[str, Any]]:
    """Return lines as decoder.best_of_n writes them, with recorded scores that say something about truth."""
    draw = np.random.default_rng(seed)
    lines = []
    for name, question, answer in QUESTIONS:
        samples = []
        for index in range(N):
            right = bool(draw.random() < 0.4)
            text = f" so it is {answer if right else 90 + index % 2}" + "." * int(draw.integers(0, 3))
            samples.append(
                {
                    "text": text, "sample_index": index, "finish_reason": "stop",
                    "token_ids": tokenizer(text).input_ids, "correct": int(right),
                    "scores": {"made": round(right + draw.normal(), 1), "noise": draw.normal()},
                }
            )  # fmt: skip
        lines.append({"id": name, "prompt": {"text": question, "answer": answer}, "generations": samples})
    return lines


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> list[Path]:
    """Two files of the same prompts; the second has them the other way round."""
    folder = tmp_path_factory.mktemp("candidates")
    return [
        write(folder / "a.jsonl", candidates(tokenizer, 1)),
        write(folder / "b.jsonl", candidates(tokenizer, 2)[::-1]),
    ]


def groups(path: Path, key: str) -> list[list[float]]:
    """Return one field of the samples, prompts sorted by id."""
    lines = sorted(map(json.loads, path.read_text().splitlines()), key=lambda line: line["id"])
    samples = [line["generations"] for line in lines]
    return [[s["correct"] if key == "correct" else s["scores"][key] for s in each] for each in samples]


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory, files: list[Path], tiny_dir: Path
) -> tuple[Path, dict[str, Any]]:
    """One file by everything there is: replayed, recorded, of lengths, of texts, combined, dropped."""
    folder = tmp_path_factory.mktemp("report") / "out"
    scorers = (
        "logprob:2",
        "recorded:made",
        "recorded:noise",
        "self-certainty",
        "majority",
        "length",
        "oracle",
    )
    line = done(
        "best-of-n", files[0], *(part for name in scorers for part in ("--scorer", name)),
        "--combined", "recorded:made,recorded:noise:rank_sum", "--combined", "logprob:vote",
        "--combine", "zscore", "--baseline", "recorded:noise", "--drop", "2,4", "--drop", "margin=0.5@2",
        "--model", tiny_dir, "--output", folder,
    )  # fmt: skip
    return folder, line


def row(line: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [row for row in line["rows"] if row.get("scorer") == name]
    return dict(found)


def test_figures_are_those_of_selection(report: tuple[Path, dict[str, Any]], files: list[Path]) -> None:
    """With one file every number is what eval.selection says of the same groups."""
    made, gold = groups(files[0], "made"), groups(files[0], "correct")
    found = row(report[1], "recorded:made")
    gap, pooled = selection.gap_closed(made, gold), selection.pooled_auc(made, gold)
    within, spearman = selection.within_auc(made, gold), selection.within_spearman(made, gold)
    for name, estimate in [
        ("gap_closed", gap), ("pooled_auc", pooled), ("within_auc", within), ("within_spearman", spearman)
    ]:  # fmt: skip
        assert found[name] == pytest.approx(estimate.value)
        assert found[f"{name}_interval"] == pytest.approx(estimate.interval)
    curve = selection.best_of_curve(made, gold, (1, 2, 4, N))
    assert [point["k"] for point in found["curve"]] == [1, 2, 4, N]
    assert [point["value"] for point in found["curve"]] == pytest.approx([e.value for e in curve.estimates])
    assert found["curve"][-1]["kl_bound"] == pytest.approx(np.log(N) - (N - 1) / N)
    assert found["bon_n"] == pytest.approx(curve.at(N).value)
    paired = selection.best_of_difference(made, groups(files[0], "noise"), gold)
    assert found["difference"] == pytest.approx(paired.value)
    assert found["difference_interval"] == pytest.approx(paired.interval)
    assert found["p"] == pytest.approx(paired.p)


def test_the_oracle_bounds_every_row(report: tuple[Path, dict[str, Any]]) -> None:
    rows = [each for each in report[1]["rows"] if "scorer" in each]
    assert [each["scorer"] for each in rows] == [
        "logprob", "recorded:made", "recorded:noise", "self-certainty", "majority", "short", "long",
        "7 scorers (zscore)", "recorded:made+recorded:noise (rank_sum)", "logprob (vote)", "oracle",
    ]  # fmt: skip
    assert rows[-1]["gap_closed"] == pytest.approx(1)
    assert all(each["bon_n"] <= rows[-1]["bon_n"] + 1e-9 for each in rows)
    assert row(report[1], "recorded:noise")["difference"] == 0


def test_the_folder_holds_tables_and_pictures(report: tuple[Path, dict[str, Any]]) -> None:
    folder, line = report
    saved = json.loads((folder / "report.json").read_text())
    assert saved["scorers"] + saved["dropping"] == line["rows"]
    told = (folder / "report.md").read_text()
    assert "recorded:made" in told
    assert "keep 50 % at 2, 4" in told
    for name in ("best_of.png", "dropping.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_dropping_is_that_of_the_curve(
    report: tuple[Path, dict[str, Any]], files: list[Path], tiny_dir: Path
) -> None:
    """Running scores of a naive read, token by token, through eval.dropping_curve give the same points."""
    decoder = Decoder.from_pretrained(str(tiny_dir))
    running, gold = [], groups(files[0], "correct")
    for line in map(json.loads, files[0].read_text().splitlines()):
        prompt = decoder.tokenizer(line["prompt"]["text"]).input_ids
        runs = []
        for sample in line["generations"]:
            ids = torch.tensor([prompt + sample["token_ids"]])
            with torch.no_grad():
                logs = decoder.lm.model(input_ids=ids).logits[0].float().log_softmax(-1)
            drawn = range(len(prompt), ids.shape[1])
            each = np.array([float(logs[t - 1, ids[0, t]]) for t in drawn])
            runs.append(each.cumsum() / np.arange(1, len(each) + 1))
        running.append(runs)
    schedules = [DropSchedule((2, 4)), DropSchedule(margin=0.5, first=2)]
    found = [each for each in report[1]["rows"] if "schedule" in each]
    for each, point in zip(found, dropping_curve(running, gold, schedules), strict=True):
        assert each["tokens"] == pytest.approx(point.tokens.value)
        assert each["agreement"] == pytest.approx(point.agreement.value)
        assert each["gain"] == pytest.approx(point.gain.value)
    assert row(report[1], "logprob")["bon_n"] == pytest.approx(
        selection.best_of_curve([[run[-1] for run in runs] for runs in running], gold, (N,)).at(N).value
    )


def in_process(
    capsys: pytest.CaptureFixture[str], paths: list[Path], asked: Comparison, output: Path | None = None
) -> dict[str, Any]:
    """Run the benchmark as the command does, without another process; return its JSON line."""
    bench_best_of_n([str(path) for path in paths], asked, output)
    line: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


def comparison(*scorers: str, **options: Any) -> Comparison:
    """Return what the command asks for where only some options are given; its model cannot be loaded."""
    source = {"model": "none", "dtype": "auto", "device": "auto"}
    default = {
        "combine": None, "combined": [], "baseline": None, "gold": "correct", "judge": "minilm", "drop": [],
        "chat": False, "model": source,
    }  # fmt: skip
    return Comparison(scorers, **{**default, **options})


def test_several_files_are_seeds_of_one_prompt(capsys: pytest.CaptureFixture[str], files: list[Path]) -> None:
    """The unit is the prompt with its seeds averaged, and no model is loaded for what needs none."""
    line = in_process(capsys, files, comparison("recorded:made", "recorded:noise"))
    found, units = row(line, "recorded:made"), []
    for file in files:
        made, gold = groups(file, "made"), groups(file, "correct")
        columns = [selection.best_of_units(made, gold, (N,)), selection.best_of_units(gold, gold, (1, N))]
        units.append(np.concatenate(columns, axis=1))
    mean = np.mean(units, axis=0)
    expected = bootstrap(mean, selection.share_of_gap)
    assert line["settings"]["prompts"] == len(QUESTIONS)
    assert found["gap_closed"] == pytest.approx(expected.value)
    assert found["gap_closed_interval"] == pytest.approx(expected.interval)
    assert found["bon_n_interval"] == pytest.approx(bootstrap(mean[:, 0]).interval)
    for each, unit in zip(found["by_file"], units, strict=True):
        assert each["bon_n"] == pytest.approx(unit[:, 0].mean())
        assert each["gap_closed"] == pytest.approx(selection.share_of_gap(unit))


def test_a_copied_seed_changes_no_interval() -> None:
    """Seeds are no units: the same samples twice tell no more than once."""
    draw = np.random.default_rng(0)
    scores, gold = [list(draw.normal(size=(20, 5)))], [list(draw.integers(0, 2, (20, 5)).astype(float))]
    for figures in (
        lambda s, g: seeded_figures(s, g, (1, 5)).gap_closed,
        lambda s, g: seeded_figures(s, g, (1, 5)).curve.at(5),
        lambda s, g: seeded_difference(s, g, g),
    ):
        assert figures(scores * 2, gold * 2) == figures(scores, gold)
    running = [[[(value / 7 + draw.normal(size=7) / 9).cumsum() for value in right] for right in gold[0]]]
    schedules = [DropSchedule((1, 3)), DropSchedule(margin=1.0, first=2)]
    once = dropping_curve(running[0], gold[0], schedules)
    assert np.isfinite([point.gain.low for point in once]).all()
    assert seeded_dropping(running, gold, schedules) == once
    assert seeded_dropping(running * 2, gold * 2, schedules) == once


def test_running_scores_are_the_decodes(
    any_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Each token's score is the one the loop gave while drawing, however the samples are parted."""
    lm = as_lm(any_model, tokenizer)
    prompt = tokenizer("The kettle sang").input_ids
    for probe in (MeanLogProbability(), PathReward(tiny_arm(lm)), make_probe("all-layers", lm)):
        job = Job([prompt], [(0, i) for i in range(5)], [0], [], SamplingConfig(), 9, 3, probes={"p": probe})
        drawn: list[list[int]] = [[] for _ in job.rows]
        seen: list[list[float]] = [[] for _ in job.rows]
        for step in HFBackend(lm, tokenizer).steps(job):
            for row, token, value in zip(
                step.rows.tolist(), step.token_ids.tolist(), step.probe_scores[:, 0].tolist(), strict=True
            ):
                drawn[row].append(token)
                seen[row].append(value)
        drawn[1], seen[1] = drawn[1][:3], seen[1][:3]  # one that ended early
        ((_, found),) = running_scores(lm, probe, [prompt], [drawn], max_tokens=20)
        ((_, finals),) = score_samples(lm, [probe], [prompt], [drawn])
        for running, expected in zip(found, seen, strict=True):
            assert running == pytest.approx(expected, abs=2e-5)
        assert [running[-1] for running in found] == pytest.approx(finals[:, 0].tolist(), abs=2e-5)


def test_answers_are_checked_where_nobody_did(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    lines = candidates(tokenizer, 1)
    for line in lines:
        for sample in line["generations"]:
            del sample["correct"]
    lines[0]["generations"][0]["correct"] = None
    ((first, *rest),) = correct(read_seeds([write(tmp_path / "a.jsonl", lines)]))
    assert np.isnan(first[0])
    for gold, line in zip(rest, candidates(tokenizer, 1)[1:], strict=True):
        assert gold.tolist() == [sample["correct"] for sample in line["generations"]]


class Shouting:
    """Calls a text toxic, or positive, by its share of capitals; remembers what it read."""

    name, threshold, about = "capitals", 0.5, {"judge": "capitals"}

    def __init__(self, attribute: str) -> None:
        self.attribute, self.read = attribute, []  # type: ignore[var-annotated]

    def score(self, texts: Any) -> Any:
        self.read += texts
        return np.array([sum(map(str.isupper, text)) / len(text) for text in texts])


@pytest.mark.parametrize(("attribute", "reads", "best"), [("toxicity", " no", 1), ("sentiment", "Hi no", 0)])
def test_a_judge_gives_gold(tmp_path: Path, attribute: str, reads: str, best: int) -> None:
    """The least toxic is best; each attribute's judge reads what its protocol says."""
    line = {"prompt": {"text": "Hi"}, "generations": [{"text": " NO"}, {"text": " no"}, {"text": " "}]}
    judge = Shouting(attribute)
    ((gold,),) = judged_gold(read_seeds([write(tmp_path / "a.jsonl", [line])]), judge)
    assert judge.read[1] == reads
    assert int(np.nanargmax(gold)) == best
    assert np.isnan(gold[2])


def test_a_golden_reward(capsys: pytest.CaptureFixture[str], files: list[Path]) -> None:
    """Of a gold that is not right or wrong, rank correlation is told and AUC is not."""
    pytest.importorskip("vaderSentiment")
    line = in_process(capsys, files[:1], comparison("recorded:made", gold="sentiment", judge="vader"))
    assert line["settings"]["judge"] == "vader"
    assert line["checks"] == {}
    assert row(line, "oracle")["bon_1"] == row(line, "recorded:made")["bon_1"]


def test_scoring_counts_forwards(tiny_dir: Path) -> None:
    """A prompt once and 3 samples of 4 tokens: the last token of each is read only for a probe of states."""
    line = done("scoring", "--model", tiny_dir, "--batch-size", "3", "--max-new-tokens", "4", "--rounds", "2")
    found = {each["method"]: each for each in line["rows"]}
    counted = {name: each["forwards_per_sample"] * 3 for name, each in found.items()}
    assert counted == pytest.approx(
        {"plain": 1 + 3 * 3, "reading last tokens": 1 + 3 * 4, "streaming": 1 + 3 * 4, "replay": 1 + 3,
         "text model": 3}
    )  # fmt: skip
    assert found["plain"]["over_plain"] == 1
    assert all(each["seconds"] > 0 for each in found.values())
    (check,) = line["checks"].values()
    assert check["target"] == 0.98
    assert line["settings"]["layers"] == 5


def test_the_text_model_is_the_generator(any_model: PreTrainedModel, tiny_dir: Path) -> None:
    """Its backbone is the generator's own, so it is of equal size, and scores follow its own head."""
    decoder = Decoder.from_pretrained(str(tiny_dir))
    model = text_model(decoder)
    assert model.model.base_model is decoder.lm.model.base_model
    first, second = model.score(["The train", "The train"], [" was late", " was good"])
    assert np.isfinite(first)
    assert first != second


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4,8,12", DropSchedule((4, 8, 12))),
        ("4,8:keep=0.25", DropSchedule((4, 8), 0.25)),
        ("margin=1.5@6", DropSchedule(margin=1.5, first=6)),
        ("4:margin=2", DropSchedule((4,), margin=2.0, first=1)),
    ],
)
def test_schedules(text: str, expected: DropSchedule) -> None:
    assert parse_schedule(text) == expected


@pytest.mark.parametrize(
    "text", ["", "four", "4;8", "margin=big", "keep=0.5x", "8,4", "4:keep=2", "4:stop=1"]
)
def test_wrong_schedules(text: str) -> None:
    with pytest.raises(UserError, match="drop"):
        parse_schedule(text)


@pytest.mark.parametrize(("n", "ks"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (16, (1, 2, 4, 8, 16))])
def test_powers(n: int, ks: tuple[int, ...]) -> None:
    assert powers(n) == ks


Change = Any  # what a mistake does to the lines of a file


def _dropped(lines: Any) -> None:
    lines[1]["generations"][2]["finish_reason"] = "dropped"


def _no_gold(lines: Any) -> None:
    del lines[2]["prompt"]["answer"], lines[2]["generations"][0]["correct"]


def _odd_gold(lines: Any) -> None:
    lines[2]["generations"][0]["correct"] = 0.7


def _no_samples(lines: Any) -> None:
    lines[3]["generations"] = []


def _twice(lines: Any) -> None:
    lines[1]["id"] = lines[0]["id"]


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (_dropped, ("line 2, generation 3", "dropped", "--drop-schedule")),
        (_no_gold, ("line 3, generation 1", "correct", "--gold")),
        (_odd_gold, ("line 3, generation 1", "0.7")),
        (_no_samples, ("line 4", "N = 0")),
        (_twice, ("line 2", "used before")),
    ],
)
def test_wrong_files(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, mistake: Change, told: tuple[str, ...]
) -> None:
    lines = candidates(tokenizer, 1)
    mistake(lines)
    with pytest.raises(UserError) as refusal:
        correct(read_seeds([write(tmp_path / "a.jsonl", lines)]))
    assert all(part in str(refusal.value) for part in told), refusal.value


@pytest.mark.parametrize("change", ["text", "answer", "id", "fewer", "more"])
def test_files_of_other_prompts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, change: str) -> None:
    first, second = candidates(tokenizer, 1), candidates(tokenizer, 2)
    if change == "id":
        second[3]["id"] = "other"
    elif change == "fewer":
        del second[3]
    elif change == "more":
        del first[3]
    else:
        second[3]["prompt"][change] = "77"
    paths = [write(tmp_path / "a.jsonl", first), write(tmp_path / "b.jsonl", second)]
    with pytest.raises(UserError, match="same prompts"):
        read_seeds(paths)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), ("--output", "file")),
        (("--scorer", "nobody"), ("nobody", "logprob")),
        (("--scorer", "recorded:nobody"), ("nobody", "made, noise")),
        (("--scorer", "majority", "--scorer", "majority"), ("twice",)),
        (("--scorer", "oracle"), ("no scorer",)),
        (("--scorer", "majority", "--drop", "4"), ("majority", "running scores")),
        (("--scorer", "short", "--scorer", "long", "--combine", "mean"), ("mean", "ranking")),
        (("--scorer", "short", "--combine", "ranking"), ("ranking of short",)),
        (("--scorer", "logprob:2", "--scorer", "long", "--combine", "ranking"), ("logprob:2", "rank_sum")),
        (("--scorer", "short", "--combined", "short,long:ranking"), ("'long'", "no scorer here")),
        (("--scorer", "short", "--baseline", "long"), ("baseline 'long'", "short")),
        (("--scorer", "short", "--gold", "truth"), ("truth", "toxicity")),
        (("--scorer", "short", "--gold", "toxicity", "--judge", "nobody"), ("unknown judge 'nobody'",)),
    ],
)
def test_wrong_choices(
    tmp_path: Path, files: list[Path], arguments: tuple[str, ...], told: tuple[str, ...]
) -> None:
    """Every one is refused before a model is looked for."""
    output = tmp_path / "out"
    if not arguments:
        output.write_text("")
        told = (str(output), "give a folder")
    options: dict[str, Any] = {"--scorer": [], "--combined": [], "--drop": []}
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        options[option] = [*options[option], value] if option in options else value
    scorers = options.pop("--scorer") or ["short"]
    asked = comparison(*scorers, **{option[2:]: value for option, value in options.items()})
    with pytest.raises(UserError) as refusal:
        bench_best_of_n([str(files[0])], asked, output)
    assert all(part in str(refusal.value) for part in told), refusal.value


def test_bad_input_ends_with_2(tmp_path: Path) -> None:
    """Through the command: one line on standard error."""
    found = run("best-of-n", tmp_path / "missing.jsonl")
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "missing.jsonl" in found.stderr


def test_lengths_need_token_ids(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    lines = candidates(tokenizer, 1)
    del lines[0]["generations"][1]["token_ids"]
    with pytest.raises(UserError, match=r"line 1, generation 2: .token_ids. must be a list"):
        compare([str(write(tmp_path / "a.jsonl", lines))], comparison("short"))


def test_tokens_of_another_model(tmp_path: Path, files: list[Path], tiny_dir: Path) -> None:
    """Ids that spell other texts than stand beside them are refused before they are scored."""
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    for line in lines:
        for sample in line["generations"]:
            sample["token_ids"] = [20 + i for i in sample["token_ids"]][:5]
    source = {"model": str(tiny_dir), "dtype": "auto", "device": "auto"}
    with pytest.raises(UserError, match="do not spell their texts"):
        compare([str(write(tmp_path / "a.jsonl", lines))], comparison("logprob", model=source))


def test_models_and_directories_score_in_the_order_asked(
    tmp_path: Path, files: list[Path], tiny_dir: Path
) -> None:
    """A text reward model, a saved token reward and a length between them, over two files at once."""
    decoder = Decoder.from_pretrained(str(tiny_dir))
    save_arm(tmp_path / "arm", decoder.lm.model, decoder.tokenizer)
    judge = text_model(decoder)
    judge.model.save_pretrained(tmp_path / "judge")
    decoder.tokenizer.save_pretrained(tmp_path / "judge")
    names = [f"hf:{tmp_path / 'judge'}", "short", str(tmp_path / "arm")]
    seeds = read_seeds(files)
    source = {"model": str(tiny_dir), "dtype": "auto", "device": "auto"}
    found = score(names, seeds, source, chat=False, drops=False).columns
    assert list(found) == [names[0], "short", "arm"]
    arm = PathReward(TapArm.from_pretrained(tmp_path / "arm", decoder.lm))
    for seed, each in enumerate(seeds):
        for p, group in enumerate(each):
            expected = judge.score([group.prompt] * N, group.texts)
            assert found[names[0]][seed][p] == pytest.approx(expected, abs=1e-5)
            ids = [record["token_ids"] for record in group.records]
            prompt = decoder.tokenizer(group.prompt.text).input_ids
            ((_, scores),) = score_samples(decoder.lm, [arm], [prompt], [ids])
            assert found["arm"][seed][p] == pytest.approx(scores[:, 0].numpy(), abs=1e-5)
            assert found["short"][seed][p].tolist() == [-len(row) for row in ids]
