"""eval.bench decode --methods: the same work for every method, paired ratios, and the picture over k."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from decoder.cli import run
from decoder.contracts import UserError
from decoder.decoder import Decoder
from decoder.job import Job
from decoder.models import LoadedModel
from decoder.sampling import SamplingConfig
from decoder.weighting import WeightedReward
from eval.bench import app
from eval.bench_decode import Timing, count_reads, endless
from eval.bench_methods import METHODS, USUAL, Plan, Runs, Sources, bench_methods, make_rewards, shown
from eval.latency_picture import _figure, by_panel, check_target, draw_latency
from eval.stats import Estimate
from rewards.backbone_arm import BackboneArm
from rewards.rad import Rad
from tests.backbones import save_reward
from tests.heads import as_lm, save_arm
from tests.tiny import BOS, tiny_gpt2, tiny_llama, tiny_tokenizer

MADE = Sources(tap_arm="random")
PROMPTS = [[5, 17, 200], [33, 44, 55, 66, 77, 88, 99]]
PASSES = {"plain": 1, "tap-arm": 1, "backbone-arm": 2}  # positions read a token, whatever k


def make_decoder(model: PreTrainedModel) -> Decoder:
    tokenizer = tiny_tokenizer()
    return Decoder(LoadedModel(as_lm(model, tokenizer), tokenizer))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """A tiny model that ends its texts at every second token: a benchmark must not let it."""
    model = tiny_llama()
    model.generation_config.eos_token_id = list(range(0, 300, 2))
    return make_decoder(model)


def job(decoder: Decoder, method: str, k: int, n_tokens: int = 6) -> Job:
    rewards = make_rewards(decoder, [method], MADE)
    weighted = [WeightedReward(name, reward, 2.0) for name, reward in rewards.items()]
    sampling = SamplingConfig(top_k=k, reward_top_k=k)
    return Job(PROMPTS, [(0, 0), (1, 0)], range(2), weighted, sampling, n_tokens, seed=0)


# What is timed.


@pytest.mark.parametrize("model", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 7])
def test_a_step_reads_what_its_method_must(model: Any, method: str, k: int) -> None:
    """The ARMs read the same whatever k; RAD reads every candidate once, and no token twice."""
    decoder = make_decoder(model())
    models = [decoder.lm]  # the backbones made up share it
    assert count_reads(decoder, job(decoder, method, k), models) == PASSES.get(method, 1 + k)
    assert not decoder.lm.model.get_input_embeddings()._forward_hooks


def test_a_backbone_of_its_own_is_counted_too(decoder: Decoder) -> None:
    made = job(decoder, "rad", 4)
    (weighted,) = made.rewards
    assert isinstance(weighted.reward, Rad)
    other = replace(weighted.reward.backbone, lm=make_decoder(tiny_gpt2(seed=3)).lm)
    own = replace(made, rewards=[replace(weighted, reward=replace(weighted.reward, backbone=other))])
    assert count_reads(decoder, own, [decoder.lm, other.lm]) == 5
    assert count_reads(decoder, own, [decoder.lm]) == 1


def test_block_and_forked_rad_draw_the_same_texts(decoder: Decoder) -> None:
    """Both forms steer by one head, and every method draws to the full length."""
    drawn = {
        method: torch.stack([step.token_ids for step in endless(decoder).steps(job(decoder, method, 7))])
        for method in METHODS
    }
    assert {tuple(ids.shape) for ids in drawn.values()} == {(6, 2)}
    assert torch.equal(drawn["rad"], drawn["rad-forked"])


def test_made_up_rewards_are_the_same_in_every_run(decoder: Decoder) -> None:
    first, again = (make_rewards(decoder, METHODS, MADE) for _ in range(2))
    assert list(first) == [*METHODS[1:]]
    for name in ("backbone-arm", "rad"):
        weights = [dict(found[name].head.named_parameters()) for found in (first, again)]  # type: ignore[attr-defined]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        assert max(float(weight.abs().max()) for weight in weights[0].values()) > 0
    assert isinstance(first["rad"], Rad)
    assert isinstance(first["backbone-arm"], BackboneArm)
    assert first["rad"].backbone.lm is first["backbone-arm"].backbone.lm is decoder.lm
    assert first["rad"].backbone.bos_token_id == BOS
    assert first["rad"].mode == "block"


# Figures.


def timing(first: float, total: float) -> Timing:
    return Timing(first, total, 1, 0)


def test_latency_and_speedup_are_those_of_the_rounds() -> None:
    """Latency leaves the prompt out; a ratio pairs the runs of one round before it takes the median."""
    times = {
        ("plain", 5): [timing(0.2, 1.0), timing(0.1, 0.5), timing(0.1, 3.3)],
        ("rad", 5): [timing(0.4, 4.0), timing(0.4, 1.0), timing(0.4, 9.9)],
    }
    runs = Runs(size=2, n_tokens=5, times=times, reads={})
    np.testing.assert_allclose(runs.latency("plain", 5), [200.0, 100.0, 800.0])
    found = runs.speedup("plain", "rad", 5)
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 2.0, 4.0))
    assert runs.speedup("rad", "plain", 5).value == pytest.approx(1 / 3)


def test_every_method_at_every_k_and_batch_size(decoder: Decoder) -> None:
    """Rows in the order asked, targets only where they were promised, settings that say what was made up."""
    plan = Plan(USUAL, (1, 32), (5, 20, 40), 2, 2)
    rows, checks, settings = bench_methods(decoder, plan, MADE)
    keys = [(size, k, method) for size in (1, 32) for k in (5, 20, 40) for method in USUAL]
    assert [(row["batch"], row["k"], row["method"]) for row in rows] == keys
    for row in rows:
        assert row["reads_per_token"] == PASSES.get(row["method"], 1 + row["k"])
        for name in ("over_plain", "over_rad", "over_smallest_k"):
            low, high = row[f"{name}_interval"]
            assert 0 < low <= row[name] <= high
        assert row["ms_interval"][0] <= row["ms_per_token"] <= row["ms_interval"][1]
        assert row["interval"][0] <= row["tokens_per_second"] <= row["interval"][1]
    assert {row["over_plain"] for row in rows if row["method"] == "plain"} == {1.0}
    assert {row["over_rad"] for row in rows if row["method"] == "rad"} == {1.0}
    assert {row["over_smallest_k"] for row in rows if row["k"] == 5} == {1.0}
    assert {name: target.at_least for name, target in checks.items()} == {
        "tap-arm/rad throughput, batch 32, k 20": 5.0,
        "backbone-arm/rad throughput, batch 32, k 20": 2.5,
    }
    same = next(row for row in rows if (row["batch"], row["k"], row["method"]) == (32, 20, "tap-arm"))
    assert checks["tap-arm/rad throughput, batch 32, k 20"].measured.value == same["over_rad"]
    assert len(settings["growth"]) == 8
    assert all(("r_squared" in each) == (each["method"] == "rad") for each in settings["growth"])
    assert all("made in memory" in told for told in settings["rewards"].values())
    assert list(shown(rows)[0]) == [
        "batch", "k", "method", "tokens/s", "ms/token", "reads", "/ plain", "/ rad"
    ]  # fmt: skip
    json.dumps([rows, settings])


def test_without_a_base_there_is_no_ratio(decoder: Decoder) -> None:
    rows, checks, settings = bench_methods(decoder, Plan(("tap-arm",), (32,), (20,), 2, 1), MADE)
    assert not [name for name in rows[0] if name in ("over_plain", "over_rad")]
    assert (checks, settings["growth"]) == ({}, [])


# Saved rewards.


def test_saved_rewards_take_their_places(
    decoder: Decoder, tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """What is made up beside a saved reward gets that one's backbone: equal by construction."""
    folder, *_ = save_reward(tmp_path, "rad", "none", decoder.lm)
    tap = save_arm(tmp_path / "tap", tiny_model, tokenizer)
    sources = Sources(str(tap), rad=str(folder))
    found = make_rewards(decoder, METHODS, sources)
    arm, rad = found["backbone-arm"], found["rad"]
    assert isinstance(rad, Rad)
    assert isinstance(arm, BackboneArm)
    assert arm.backbone is rad.backbone
    assert rad.backbone.lm is not decoder.lm
    rows, _, settings = bench_methods(decoder, Plan(("backbone-arm", "rad"), (1,), (3,), 2, 1), sources)
    assert [row["reads_per_token"] for row in rows] == [2, 4]
    assert settings["rewards"]["rad"] == str(folder)
    assert settings["equal_backbones"]


def test_unequal_backbones_promise_nothing(decoder: Decoder, tmp_path: Path) -> None:
    """Targets are for equal backbones; the ratios are reported all the same."""
    plan = Plan(("backbone-arm", "rad"), (32,), (20,), 2, 1)
    arm, rad = ((tmp_path / name) for name in ("arm", "rad"))
    equal = Sources("random", *(str(save_reward(each, kind, "none", decoder.lm)[0])
                                for each, kind in ((arm, "backbone_arm"), (rad, "rad"))))  # fmt: skip
    assert len(bench_methods(decoder, plan, equal)[1]) == 1
    loaded = decoder.load_reward(equal.rad)
    assert isinstance(loaded, Rad)
    lm = replace(loaded.backbone.lm, identity=replace(loaded.backbone.lm.identity, num_layers=4, name="deep"))
    lm = replace(lm, identity=replace(lm.identity, architecture="Other"))
    decoder._rewards[equal.rad] = replace(loaded, backbone=replace(loaded.backbone, lm=lm))
    rows, checks, settings = bench_methods(decoder, plan, equal)
    assert (checks, settings["equal_backbones"]) == ({}, False)
    assert "over_rad" in rows[0]


# Bad input.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("plain", "arm")}, "--methods is 'arm': choose among plain, tap-arm, backbone-arm, rad"),
        ({"ks": (5, 0)}, "--k is 0: give at least 1"),
        ({"batch_sizes": (0,)}, "--batch-size is 0: give at least 1"),
        ({"ks": (5, 5)}, "--k is given twice with the same value: 5, 5"),
    ],
)
def test_bad_plans_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(Plan(USUAL, (1,), (5,), 4, 1), **changes)


def test_bad_sizes_and_rewards_are_refused(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="top_k is 301: the model has 300 tokens"):
        bench_methods(decoder, Plan(USUAL, (1,), (5, 301), 4, 1), MADE)
    with pytest.raises(UserError, match="exceeds the model's context of 128"):
        bench_methods(decoder, Plan(USUAL, (1,), (5,), 128, 1), MADE)
    folder, *_ = save_reward(tmp_path, "rad", "none", decoder.lm)
    with pytest.raises(UserError, match="is a Rad, which is no backbone-arm: give a BackboneArm"):
        make_rewards(decoder, ["backbone-arm"], Sources("random", backbone_arm=str(folder)))


def test_a_backbone_without_blocks_is_for_the_forked_form() -> None:
    model = tiny_llama()
    model.config._attn_implementation = "flex_attention"
    decoder = make_decoder(model)
    with pytest.raises(UserError, match=r"flex_attention attention.*: give rad-forked"):
        make_rewards(decoder, ["rad"], MADE)
    assert list(make_rewards(decoder, ["rad-forked"], MADE)) == ["rad-forked"]


# The command.


def bench(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code and what it printed."""
    with pytest.raises(SystemExit) as stopped:
        run(app, ["decode", *map(str, arguments)])
    return (int(stopped.value.code or 0), *capsys.readouterr())


def test_the_command_reports_and_draws(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "latency.svg"
    asked = ["--methods", "plain", "tap-arm", "--methods", "rad", "--k", 2, 6]
    short = ["--batch-size", 2, "--rounds", 1, "--max-new-tokens", 3, "--reward", "random"]
    code, out, err = bench(capsys, *asked, *short, "--model", tiny_dir, "--picture", picture)
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["benchmark"] == "decode methods"
    assert [(row["k"], row["method"]) for row in found["rows"]] == [
        (k, method) for k in (2, 6) for method in ("plain", "tap-arm", "rad")
    ]
    assert "tokens/s" in err
    assert picture.read_bytes().startswith(b"<?xml")


def test_without_its_options_the_command_is_what_it_was(
    tiny_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: PreTrainedModel
) -> None:
    reward = save_arm(tmp_path / "kind", tiny_model, tiny_tokenizer())
    short = ["--batch-size", 1, "--rounds", 1, "--max-new-tokens", 2]
    code, out, err = bench(capsys, *short, "--model", tiny_dir, "--reward", reward)
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["benchmark"] == "decode"
    assert [row["method"] for row in found["rows"]] == ["generate", "plain", "steered"]
    assert found["settings"]["reward_top_k"] == 20


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("--k", 5, "--reward-top-k", 20),
            "--reward-top-k is 20, but methods are compared: give --k instead",
        ),
        (("--picture", "latency.jpg"), "end its name in .svg, .png or .pdf"),
        (("--methods", "generate"), "--methods is 'generate': choose among plain, tap-arm"),
        (("--reward-top-k", 0), "reward_top_k is 0: give at least 1 candidate"),
    ],
)
def test_the_command_refuses_at_once(
    given: tuple[object, ...], message: str, tiny_dir: Path, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, tiny_model: PreTrainedModel,
) -> None:  # fmt: skip
    reward = save_arm(tmp_path / "kind", tiny_model, tiny_tokenizer())
    code, out, err = bench(capsys, *given, "--model", tiny_dir, "--reward", reward)
    assert (code, out) == (2, "")
    assert message in err


# The picture.


def near(value: float) -> Estimate:
    return Estimate(value, 0.97 * value, 1.03 * value, 7)


def latencies(base: float, slope: float) -> dict[str, dict[int, Estimate]]:
    costs = {"plain": (1, 0), "tap-arm": (1.02, 0), "backbone-arm": (2, 0), "rad": (2, slope)}
    return {
        name: {k: near(times * base + more * k) for k in (5, 20, 80)} for name, (times, more) in costs.items()
    }


PANELS = {1: latencies(20, 0.4), 8: latencies(25, 3), 32: latencies(42, 14)}


def svg_texts(panels: Any) -> list[str]:
    buffer = io.BytesIO()
    draw_latency(panels, buffer)
    nodes = ElementTree.fromstring(buffer.getvalue()).iter()
    found = [part for node in nodes if str(node.tag).endswith("}text") for part in node.itertext()]
    return [part.strip() for part in found if part.strip()]


def test_panels_lines_and_end_figures() -> None:
    pytest.importorskip("matplotlib")
    found = svg_texts(PANELS)
    assert {"batch 1", "batch 8", "batch 32", "k, candidates a step", *USUAL} <= set(found)
    assert {"20.00", "20.40", "40.00", "72.00", "290.0", "1204"} <= set(found)
    assert svg_texts({8: {"a_$x$^2 & <b>": {3: near(2.0)}}}).count("a_$x$^2 & <b>") == 1


@pytest.mark.parametrize("sizes", [(1, 8, 32), (32,), (1, 8, 32, 64)])
def test_what_is_drawn_is_what_was_measured(sizes: tuple[int, ...]) -> None:
    """Both axes begin at 0, every interval lies inside, end figures neither touch nor leave the picture."""
    pytest.importorskip("matplotlib")
    figure = _figure({size: PANELS.get(size, PANELS[32]) for size in sizes}, "plain")
    assert len(figure.axes) == len(sizes)
    for size, panel in zip(sizes, figure.axes, strict=True):
        series = PANELS.get(size, PANELS[32])
        drawn = [line.get_xydata().tolist() for line in panel.lines]  # type: ignore[union-attr]
        for found in series.values():
            assert [[k, each.value] for k, each in found.items()] in drawn
            assert all([[k, each.low], [k, each.high]] in drawn for k, each in found.items())
        assert (panel.get_xlim()[0], panel.get_ylim()[0]) == (0, 0)
        assert panel.get_ylim()[1] > max(each.high for found in series.values() for each in found.values())
        boxes = [note.get_window_extent() for note in panel.texts]
        for i, box in enumerate(boxes):
            assert panel.bbox.x1 < box.x0 < box.x1 <= figure.bbox.x1
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_a_method_looks_alike_in_every_panel() -> None:
    pytest.importorskip("matplotlib")
    figure = _figure({1: PANELS[1], 32: {name: PANELS[32][name] for name in reversed(USUAL)}}, "plain")
    colours = [
        {line.get_color() for line in panel.lines if line.get_xydata()[0].tolist() == [5, value]}  # type: ignore[union-attr]
        for panel, value in zip(figure.axes, (PANELS[s]["rad"][5].value for s in (1, 32)), strict=True)
    ]
    assert colours[0] == colours[1]
    assert len(colours[0]) == 1


def test_rows_become_panels() -> None:
    """Also rows that were read back from JSON."""
    rows = [
        {"batch": 8, "k": k, "method": "rad", "ms_per_token": k / 2, "ms_interval": [k / 4, k], "rounds": 7}
        for k in (5, 20)
    ]
    panels = by_panel(json.loads(json.dumps(rows)))
    assert panels == {8: {"rad": {5: Estimate(2.5, 1.25, 5, 7), 20: Estimate(10, 5, 20, 7)}}}


@pytest.mark.parametrize(("kind", "begin"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_equal_figures_give_equal_bytes(kind: str, begin: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, stream = tmp_path / f"picture.{kind.upper()}", io.BytesIO()
    draw_latency(PANELS, path)
    draw_latency(PANELS, stream, file_format=kind)
    assert path.read_bytes() == stream.getvalue()
    assert path.read_bytes().startswith(begin)


def test_bad_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"picture.jpg' as 'jpg'; end its name in .svg, .png or .pdf"):
        check_target(tmp_path / "picture.jpg")
    with pytest.raises(UserError, match="its folder does not exist"):
        check_target(tmp_path / "none" / "picture.svg")
    with pytest.raises(UserError, match="no latency to draw"):
        draw_latency({1: {}}, io.BytesIO())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'tiller-lm\[eval\]'"):
        check_target(tmp_path / "picture.svg")
