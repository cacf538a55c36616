"""LENS beside augmentation in text, in one run: seconds of as many new pairs, and what they are worth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoder.contracts import UserError
from decoder.decoder import Decoder
from decoder.models import LoadedModel
from eval.bench_lens import read_tuned, settings_of
from eval.head_measures import head_measures
from eval.lens_cells import PATIENCE
from eval.lens_material import LensMaterial, open_material, seed_pairs
from eval.lens_plan import LensPlan
from eval.lens_text import SAMPLING, Question, draw_texts, judge, judged_pairs, samples_needed
from eval.report import Target, emit
from eval.stats import bootstrap, crossed_difference, crossed_estimate
from prompts.reading import Prompt, read
from rewards.augment import augment
from rewards.augment_methods import DEFAULT
from rewards.embed_tokens import TextForm
from rewards.encoder import EncoderOptions, encoder_of
from rewards.head_inputs import Ints, split_of_pairs
from rewards.head_store import check_kind
from rewards.heads import make_head
from rewards.pair_rows import PairRows

SECONDS, TIMES = 60.0, 18.0  # that LENS and its head may take; less than text
AGREEMENT_PAIRS = 500  # on which the judge is measured
MADE = ("lens", DEFAULT)  # in the space of embeddings: the paper's form, and what rewards.lens does
ARMS = ("none", *MADE, "text", "real")


@dataclass(frozen=True, slots=True)
class TextPairs:
    """Pairs (n, 2) of rows of new embeddings (M, D), each pair's prompt id, and the seconds of every step."""

    embeddings: Tensor
    pairs: Ints
    prompt_ids: list[str]
    seconds: Mapping[str, float]


def text_part(
    folder: Path, plan: LensPlan, prompts: Path, model: str, limit: int | None, output: Path | None,
    question: Question = Question(),
) -> None:  # fmt: skip
    """Print what LENS and text augmentation cost and are worth, of one size and ratio.

    prompts: those of the store, by id. limit: new pairs at most. output: where ablations have tuned LENS.
    Raises UserError for several sizes or ratios, and for a model that did not embed the store.
    """
    if len(plan.sizes) > 1 or len(plan.ratios) > 1:
        raise UserError("--part text measures one --size at one --ratio: give one of each")
    material = open_material(folder, plan)
    decoder = Decoder.from_pretrained(model, dtype="bfloat16")  # as rewards/make_assets.sh
    check_kind(material.store, _manifest(decoder))
    wanted = round((plan.ratios[0] - 1) * plan.sizes[0])
    wanted = wanted if limit is None else min(wanted, limit)
    texts = _text_pairs(decoder, _prompts_of(material, prompts)[: 2 * wanted], wanted, question)
    agreement = _agreement(decoder, material, _prompts_of(material, prompts), question)
    rewards, seconds = _arms(material, texts, wanted, output)
    settings = {**settings_of(material), "size": plan.sizes[0], "ratio": plan.ratios[0], "new_pairs": wanted,
                "question": asdict(question), "sampling": SAMPLING, "judge_agreement": agreement,
                "seeds": plan.seeds, "threads": torch.get_num_threads()}  # fmt: skip
    emit("lens text", _rows(rewards, seconds, texts), _checks(rewards, seconds, texts), settings)


def _text_pairs(decoder: Decoder, prompts: Sequence[Prompt], wanted: int, question: Question) -> TextPairs:
    """Return judged pairs of new samples, timed; a seventh more than wanted: some prompts are to stop on."""
    began = time.perf_counter()
    samples = samples_needed(-(-wanted * 8 // 7), len(prompts))
    with TemporaryDirectory() as folder:
        store = draw_texts(decoder, prompts, samples, Path(folder) / "store")
        drawn = time.perf_counter()
        text_of = {prompt.id: prompt.text or "" for prompt in prompts}
        ids = store.prompt_ids().tolist()
        shown = [text_of[each] + text for each, text in zip(ids, store.texts(), strict=True)]
        scores = judge(decoder, shown, question)
        pairs, numbers = judged_pairs(store, scores, len(scores) ** 2)
        done = time.perf_counter()
        named = [store.groups()[1][number] for number in numbers.tolist()]
        return TextPairs(
            store.embeddings(np.arange(len(store))), pairs, named,
            {"sampling": drawn - began, "judging": done - drawn, "synthesis": done - began},
        )  # fmt: skip


def _arms(
    material: LensMaterial, texts: TextPairs, wanted: int, output: Path | None
) -> tuple[dict[str, list[Any]], dict[str, list[dict[str, float]]]]:
    """Return rewards (S, P) and seconds of every arm."""
    plan, tuned = material.plan, read_tuned(output)
    size, ratio = plan.sizes[0], 1 + wanted / plan.sizes[0]
    chosen = {name: {"combine": arm.combine, **arm.values} for name, arm in tuned.items()}
    rewards: dict[str, list[Any]] = {name: [] for name in ARMS}
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    for seed in range(plan.seeds):
        seeds, stop = seed_pairs(material, size, seed)
        for name in ARMS:
            began = time.perf_counter()
            if name == "text":
                learnt: tuple[Any, Any] = _with_texts(material, seeds, stop, texts, wanted)
            else:
                pairs = seed_pairs(material, size, seed, ratio)[0] if name == "real" else seeds
                method, times = (name, ratio) if name in MADE else ("none", 1)
                options = chosen.get(name, {}) if name in MADE else {}
                found = augment(method, pairs, stop, times, seed=seed, **options)
                learnt = found.embeddings, found.targets
            made = time.perf_counter()
            rewards[name].append(_reward(material, seed, *learnt))
            spent = {"synthesis": made - began, "head": time.perf_counter() - made}
            seconds[name].append({**spent, **(dict(texts.seconds) if name == "text" else {})})
    return rewards, seconds


def _with_texts(
    material: LensMaterial, seeds: PairRows, stop: PairRows, texts: TextPairs, wanted: int
) -> tuple[Tensor, Any]:
    """Return embeddings and targets: the seed pairs and judged ones, none of a prompt that is stopped on."""
    numbers, ids = material.store.groups()
    held = {ids[number] for number in numbers[stop.pairs[:, 0]]}
    kept = np.array([i for i, name in enumerate(texts.prompt_ids) if name not in held][:wanted], dtype=int)
    own, other = (side.read(np.arange(len(side))).flatten(0, 1) for side in (seeds, stop))
    rows = [np.arange(2 * len(side)).reshape(-1, 2) for side in (seeds, stop)]
    start = len(own) + len(other)
    learn = np.concatenate([rows[0], start + texts.pairs[kept]])
    return torch.cat([own, other, texts.embeddings]), split_of_pairs(learn, len(own) + rows[1])


def _reward(material: LensMaterial, seed: int, embeddings: Any, targets: Any) -> Any:
    plan, judged = material.plan, material.judged
    head = make_head(plan.head, steps=plan.steps, patience=PATIENCE, seed=seed).fit(embeddings, targets)
    scores = head.predict(material.judged_embeddings())
    return head_measures(scores, judged.golden, judged.prompts, (plan.n,))[2].units


def _agreement(
    decoder: Decoder, material: LensMaterial, prompts: Sequence[Prompt], question: Question
) -> float:
    """Return the share of original pairs that the judge orders as the annotator did; one half is chance."""
    pairs = material.pairs(0)[0].pairs[:AGREEMENT_PAIRS]
    text_of, ids = {p.id: p.text or "" for p in prompts}, material.store.prompt_ids()
    rows = pairs.ravel()
    shown = [text_of[ids[row]] + text for row, text in zip(rows, material.store.texts(rows), strict=True)]
    scores = judge(decoder, shown, question).reshape(-1, 2)
    return float((scores[:, 0] > scores[:, 1]).mean() + (scores[:, 0] == scores[:, 1]).mean() / 2)


def _prompts_of(material: LensMaterial, file: Path) -> list[Prompt]:
    """Return the prompts to learn from, in the order of the file. UserError where some are not there."""
    ids = np.array(material.store.groups()[1], dtype=object)
    wanted = set(ids[np.unique(material.train.prompts)].tolist())
    found = [prompt for prompt in read(file) if prompt.id in wanted]
    if len(found) < len(wanted):
        raise UserError(
            f"{file} has {len(found)} of the {len(wanted)} prompts to learn from: give all of them"
        )
    return found


def _manifest(decoder: Decoder) -> Any:
    loaded = LoadedModel(decoder.lm, decoder.tokenizer)
    return encoder_of(loaded, EncoderOptions(form=TextForm("all", "none"))).manifest("float16", ())


def _rows(
    rewards: Mapping[str, list[Any]], seconds: Mapping[str, list[dict[str, float]]], texts: TextPairs
) -> list[dict[str, Any]]:
    rows = []
    for name, found in rewards.items():
        told, minus = crossed_estimate(np.array(found)), crossed_difference(found, rewards["none"])
        spent = {part: float(np.median([s[part] for s in seconds[name]])) for part in ("synthesis", "head")}
        split = {part: texts.seconds[part] if name == "text" else "" for part in ("sampling", "judging")}
        rows.append(
            {"method": name, "reward": told.value, "interval": told.interval, "minus_none": minus.value,
             "minus_none_interval": minus.interval, **split,
             **{f"{part}_seconds": value for part, value in spent.items()}}
        )  # fmt: skip
    return rows


def _checks(
    rewards: Mapping[str, list[Any]], seconds: Mapping[str, list[dict[str, float]]], texts: TextPairs
) -> dict[str, Target]:
    found: dict[str, Target] = {}
    for name in MADE:
        spent = np.array([each["synthesis"] for each in seconds[name]])
        spare = SECONDS - spent - [each["head"] for each in seconds[name]]
        times = texts.seconds["synthesis"] / spent
        worth = crossed_difference(rewards[name], rewards["text"])
        found |= {
            f"seconds to spare of 60 for {name} and its head": Target(bootstrap(spare), 0.0),
            f"seconds of text synthesis over those of {name}": Target(bootstrap(times), TIMES),
            f"golden reward, {name} minus text": Target(worth, 0.0),
        }
    return found
