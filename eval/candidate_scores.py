"""Scores of candidates that were kept, by scorers named as for `decoder.best_of_n`, and combinations.

Probes and token rewards are replayed together: each sample passes the generator once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from eval.candidates import Columns, Group, token_ids
from eval.dropping_curve import Running
from rewards.combine import RULES, combine

if TYPE_CHECKING:  # loaded once the input is known to be good
    from decoder.decoder import Decoder
    from rewards.scorers import Scorers

Floats = NDArray[np.float64]
Seeds = Sequence[Sequence[Group]]
LENGTHS = {"short": -1.0, "long": 1.0}  # the score of a token; "length" stands for both
RECORDED = "recorded:"  # before the name of a score that the file holds
ORACLE, VOTE = "oracle", "vote"
REPLAY_TOKENS = 1024  # positions read at once: a probe of logits has the whole vocabulary at each


@dataclass(frozen=True, slots=True)
class Scored:
    """Name -> scores of each file, prompt and sample, in the order asked for, and what came on the way.

    weights: those that were given, "NAME:WEIGHT". running: of each file, prompt and sample, the first
    scorer's score after every token; empty unless asked for.
    """

    columns: dict[str, Columns]
    weights: Mapping[str, float] = field(default_factory=dict)
    running: Sequence[Sequence[Running]] = ()


def expand(scorers: Sequence[str], *, drops: bool) -> list[str]:
    """Return the names, "length" as two. UserError for one given twice, an unknown one or no scorer.

    drops: whether the first has to have a score at every token.
    """
    from rewards.scorers import check_names

    names = [each for name in scorers for each in (LENGTHS if name == "length" else [name])]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"scorer {name!r} is given twice: leave one out")
    if not [name for name in names if name != ORACLE]:
        raise UserError("no scorer to compare: give --scorer at least once; the oracle is always shown")
    check_names([name for name in names if not _needs_no_model(name)])
    if drops and (_needs_no_model(names[0]) or names[0].startswith("hf:")):
        raise UserError(
            f"dropping is by the first scorer's running scores, and {names[0]!r} has none: put a probe, a "
            "token reward, logprob or self-certainty first"
        )
    return names


def score(names: Sequence[str], seeds: Seeds, model: Mapping[str, Any], *, chat: bool, drops: bool) -> Scored:
    """Return the scores of all samples; names as `expand` gives them, model as `Decoder.from_pretrained`'s.

    Without a scorer that needs it, no model is loaded. Raises UserError for samples without token ids, and
    for those that another tokenizer drew.
    """
    light = {name: _light(name, seeds) for name in names if _needs_no_model(name)}
    heavy = [name for name in names if name not in light]
    if not heavy:
        return Scored(light)
    found = _replayed(heavy, seeds, model, chat=chat, drops=drops)
    given = iter(found.columns)
    ordered = [name if name in light else next(given) for name in names]  # a directory has a shorter name
    return Scored({name: (light | found.columns)[name] for name in ordered}, found.weights, found.running)


def is_weighted(name: str) -> bool:
    """Return whether a scorer is given as NAME:WEIGHT."""
    return not _needs_no_model(name) and ":" in name.removeprefix("hf:") and not Path(name).exists()


def check_rule(rule: str, parts: Sequence[str]) -> None:
    """Raise UserError for a rule that is unknown, or that does not combine so many scorers."""
    if rule not in (*RULES, VOTE):
        raise UserError(f"no rule is called {rule!r}; use one of: {', '.join(RULES)}, {VOTE}")
    if rule != VOTE and len(parts) == 1:
        raise UserError(f"{rule} of {parts[0]}: name several scorers, or let it vote")


def combined(scored: Scored, parts: Sequence[str], rule: str, seeds: Seeds) -> Columns:
    """Return the combined scores of every prompt's samples, each file's apart. Errors as `check_rule`."""
    check_rule(rule, parts)
    for part in parts:
        if part not in scored.columns:
            there = ", ".join(scored.columns)
            raise UserError(f"cannot combine {part!r}: it is no scorer here; choose among {there}")
    weights = [scored.weights.get(part, 1.0) for part in parts]
    shares = weights if any(part in scored.weights for part in parts) else None
    return [
        [
            _joined(rule, np.stack([scored.columns[part][seed][p] for part in parts]), group, shares)
            for p, group in enumerate(groups)
        ]
        for seed, groups in enumerate(seeds)
    ]


def _joined(rule: str, table: Floats, group: Group, weights: Sequence[float] | None) -> Floats:
    """Return one score of each sample from (S, N) scores."""
    from rewards.choice import vote

    if rule == VOTE:
        return vote(table, group.texts, None if weights is None else np.array(weights))
    return combine(rule, table, weights)


def _needs_no_model(name: str) -> bool:
    return name in LENGTHS or name in ("majority", ORACLE) or name.startswith(RECORDED)


def _light(name: str, seeds: Seeds) -> Columns:
    """Return the scores that texts, lengths or records alone give."""
    from rewards.choice import Candidate, column

    def of(group: Group) -> Floats:
        if name in LENGTHS:
            return LENGTHS[name] * np.array([len(ids) for ids in token_ids(group)], dtype=float)
        if name.startswith(RECORDED):
            return _recorded(group, name.removeprefix(RECORDED))
        return column(name, [Candidate(text, {}) for text in group.texts], group.prompt)

    return [[of(group) for group in groups] for groups in seeds]


def _recorded(group: Group, name: str) -> Floats:
    found = []
    for number, record in enumerate(group.records, 1):
        scores = record.get("scores")
        if not isinstance(scores, Mapping) or name not in scores:
            there = ", ".join(scores) if isinstance(scores, Mapping) and scores else "none"
            where = f"{group.prompt.source}, generation {number}"
            raise UserError(f"{where}: no score {name!r} is recorded, only: {there}; name one of those")
        found.append(math.nan if scores[name] is None else float(scores[name]))
    return np.array(found)


def _replayed(
    names: Sequence[str], seeds: Seeds, model: Mapping[str, Any], *, chat: bool, drops: bool
) -> Scored:
    """Return the scores of what needs a model: probes, token rewards and text reward models."""
    from decoder.decoder import Decoder
    from rewards.scorers import load_probe, load_scorers

    ids = [[row for group in same for row in token_ids(group)] for same in zip(*seeds, strict=True)]
    decoder = Decoder.from_pretrained(**model)
    probe = partial(load_probe, lm=decoder.lm)
    loaded = load_scorers(names, probe, **{key: model[key] for key in ("device", "dtype")})
    prompts = _prompt_ids(decoder, seeds, ids, chat=chat)
    scores: dict[str, list[list[Any]]] = {name: [[] for _ in prompts] for name in loaded.names}
    running: list[list[list[float]]] = []
    if drops:  # its last running scores are its scores
        running = _running(decoder, loaded, prompts, ids)
        scores[loaded.names[0]] = [[run[-1] for run in runs] for runs in running]
    rest = {name: probe for name, probe in loaded.probes.items() if not (drops and name == loaded.names[0])}
    if rest:
        scores |= _replay(decoder, rest, prompts, ids)
    columns = {name: _by_seed(found, seeds) for name, found in scores.items()}
    columns |= {name: _read_texts(name, loaded, seeds) for name in loaded.texts}
    columns |= {name: _light(name, seeds) for name in loaded.groups}
    weights = dict(zip(loaded.names, loaded.weights, strict=True)) if loaded.weights else {}
    return Scored(columns, weights, _by_seed(running, seeds, list) if drops else ())


def _prompt_ids(decoder: Decoder, seeds: Seeds, ids: Any, *, chat: bool) -> list[list[int]]:
    """Return each prompt's tokens. UserError where the samples' tokens do not spell their texts."""
    from rewards.rollouts import Rollout, Sample, tokenise_rollouts

    rollouts = []
    for same, rows in zip(zip(*seeds, strict=True), ids, strict=True):
        texts = [text for group in same for text in group.texts]
        samples = tuple(Sample(text, tuple(row)) for text, row in zip(texts, rows, strict=True))
        rollouts.append(Rollout(same[0].prompt, samples, np.zeros(len(samples))))
    return tokenise_rollouts(decoder.tokenizer, rollouts, chat=chat)[0]


def _replay(decoder: Decoder, probes: Mapping[str, Any], prompts: Any, ids: Any) -> dict[str, list[Any]]:
    """Return each probe's scores of all samples of each prompt, from one forward for all probes."""
    from decoder.replay import score_samples
    from decoder.terminal import progress

    found: dict[str, list[Any]] = {name: [] for name in probes}
    with progress("scoring", len(prompts)) as advance:
        passes = score_samples(decoder.lm, [*probes.values()], prompts, ids, max_tokens=REPLAY_TOKENS)
        for _, scores in passes:
            for name, column in zip(probes, scores.double().cpu().numpy().T, strict=True):
                found[name].append(column)
            advance()
    return found


def _running(decoder: Decoder, loaded: Scorers, prompts: Any, ids: Any) -> list[list[list[float]]]:
    """Return the first scorer's running scores of all samples of each prompt."""
    from decoder.replay import running_scores
    from decoder.terminal import progress

    probe, found = loaded.probes[loaded.names[0]], []
    with progress("running scores", len(prompts)) as advance:
        for _, runs in running_scores(decoder.lm, probe, prompts, ids, max_tokens=REPLAY_TOKENS):
            found.append(runs)
            advance()
    return found


def _read_texts(name: str, loaded: Scorers, seeds: Seeds) -> Columns:
    """Return what a text reward model says of prompt and completion."""
    model = loaded.texts[name]
    return [
        [np.array(model.score([group.prompt] * len(group.texts), group.texts)) for group in groups]
        for groups in seeds
    ]


def _by_seed(found: Sequence[Sequence[Any]], seeds: Seeds, make: Any = np.asarray) -> Any:
    """Return, of each file and prompt, its part of what was found for the samples of all files together."""
    parts: list[list[Any]] = []
    starts = [0] * len(found)
    for groups in seeds:
        ends = [start + len(group.records) for start, group in zip(starts, groups, strict=True)]
        parts.append([make(all_[a:b]) for all_, a, b in zip(found, starts, ends, strict=True)])
        starts = ends
    return parts
