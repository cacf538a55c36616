"""Early dropping: who is given up and when, against a slow simulation on a run that drops nobody."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decoder.best_of import BestOf, Selection, select
from decoder.config import make_config
from decoder.contracts import Completion, Probe, UserError
from decoder.decoder import Decoder
from decoder.dropping import Dropping, DropSchedule
from decoder.hf_backend import HFBackend
from decoder.job import Job
from decoder.models import LoadedModel
from decoder.replay import score_samples
from decoder.sampling import SamplingConfig
from decoder.weighting import WeightedReward
from prompts.reading import Prompt
from rewards.elhsr import ElhsrConfig
from rewards.likelihood import MeanLogProbability
from rewards.path_reward import PathReward
from rewards.scorers import Scorers
from tests.heads import as_lm, tiny_arm
from tests.test_probes import bound

PROMPTS = [[5, 17, 200], [9], [33, 44, 55, 66, 77, 88, 99]]
SAMPLES, LENGTH, STOP = 7, 12, "ae"
SAMPLED = SamplingConfig(temperature=1.5)
NEVER = DropSchedule()
Done = dict[tuple[int, int], Completion]


def probe_of(kind: str, model: PreTrainedModel) -> Probe:
    lm = as_lm(model)
    if kind == "elhsr":
        return bound(lm, ElhsrConfig((0, 2, 4), 32))
    return MeanLogProbability() if kind == "logprob" else PathReward(tiny_arm(lm))


def decoded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Mapping[str, Probe],
    schedule: DropSchedule,
    *,
    rewards: Sequence[WeightedReward] = (),
    prompts: Sequence[int] = (0, 1, 2),
    stop: str = STOP,
) -> Done:
    """Return the completions of these prompts, SAMPLES each, in one batch."""
    rows = [(place, sample) for place in range(len(prompts)) for sample in range(SAMPLES)]
    referee = Dropping(schedule, [place for place, _ in rows]) if schedule.drops else None
    ids = [PROMPTS[prompt] for prompt in prompts]
    job = Job(
        ids, rows, prompts, rewards, SAMPLED, LENGTH, 0, stop=stop, probes=probes, referee=referee
    )  # fmt: skip
    done = list(HFBackend(as_lm(model, tokenizer), tokenizer).complete(job))
    assert len(done) == len(rows)
    return {(each.prompt, each.sample): each for each in done}


def running_scores(model: PreTrainedModel, probe: Probe, full: Done) -> dict[tuple[int, int], list[float]]:
    """Return each sample's score after each of its tokens, every prefix read again as a text of its own."""
    found = {}
    for key, each in full.items():
        prefixes = [each.token_ids[: i + 1] for i in range(len(each.token_ids))]
        ((_, scores),) = score_samples(as_lm(model), [probe], [PROMPTS[key[0]]], [prefixes])
        found[key] = scores[:, 0].tolist()
    return found


def simulated(scores: Mapping[tuple[int, int], list[float]], schedule: DropSchedule) -> dict[Any, int]:
    """Return the tokens each sample gets, by the rules in words, one prompt at a time."""
    tokens = {key: len(values) for key, values in scores.items()}
    for prompt in {prompt for prompt, _ in scores}:
        competing = [sample for p, sample in sorted(scores) if p == prompt]
        for count in range(1, LENGTH + 1):
            last = {s: min(count, len(scores[prompt, s])) - 1 for s in competing}
            now = {s: round(scores[prompt, s][last[s]], 4) for s in competing}  # equal beginnings tie
            kept = sorted(competing, key=lambda s: -now[s])
            if count in schedule.at:
                kept = kept[: math.ceil(schedule.keep * len(kept))]
            ahead = math.inf if len(kept) == 1 else now[kept[0]] - now[kept[1]]
            if schedule.margin is not None and count >= schedule.first and ahead >= schedule.margin:
                kept = kept[:1]
            for sample in set(competing) - set(kept):
                tokens[prompt, sample] = min(count, tokens[prompt, sample])
            competing = sorted(kept)
    return tokens


SCHEDULES = [
    DropSchedule((2, 4, 6)),
    DropSchedule((1,), keep=0.3),
    DropSchedule((3, 5), keep=0.75),
    DropSchedule(margin=0.2, first=3),
    DropSchedule((4,), margin=0.5),
]


@pytest.mark.parametrize("kind", ["elhsr", "logprob", "path"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_rules_by_hand(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, schedule: DropSchedule, kind: str
) -> None:
    """Who goes on and how far is as simulated on full texts; whoever stays keeps tokens and score, whoever
    goes has the beginning of its text and that beginning's score."""
    probe = probe_of(kind, tiny_model)
    full = decoded(tiny_model, tokenizer, {"p": probe}, NEVER)
    scores = running_scores(tiny_model, probe, full)
    expected = simulated(scores, schedule)
    cut = decoded(tiny_model, tokenizer, {"p": probe}, schedule)
    assert {key: len(each.token_ids) for key, each in cut.items()} == expected
    assert any(each.finish_reason == "dropped" for each in cut.values())
    for key, each in cut.items():
        whole = len(each.token_ids) == len(full[key].token_ids)
        assert each.token_ids == full[key].token_ids[: expected[key]]
        assert each.scores["p"] == pytest.approx(scores[key][expected[key] - 1], rel=1e-5, abs=1e-5)
        if whole:
            assert (each.finish_reason, each.text) == (full[key].finish_reason, full[key].text)
        else:
            assert each.finish_reason == "dropped"
            assert each.text == tokenizer.decode(list(each.token_ids), skip_special_tokens=True)


def test_every_architecture_and_reward(
    any_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Under steering, with several probes, survivors have all their tokens, r and scores; dropped rows the
    first part of theirs."""
    steering = [WeightedReward("kind", tiny_arm(as_lm(any_model)), 2.0)]
    probes = {kind: probe_of(kind, any_model) for kind in ("elhsr", "logprob", "path")}
    full = decoded(any_model, tokenizer, probes, NEVER, rewards=steering)
    cut = decoded(any_model, tokenizer, probes, DropSchedule((2, 5)), rewards=steering)
    for key, each in cut.items():
        length = len(each.token_ids)
        assert each.token_ids == full[key].token_ids[:length]
        expected = full[key].token_rewards["kind"][:length]
        assert each.token_rewards["kind"] == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert each.scores["path"] == pytest.approx(expected[-1], rel=1e-5, abs=1e-5)
        if each.finish_reason != "dropped":
            assert dict(each.scores) == pytest.approx(dict(full[key].scores), rel=1e-5, abs=1e-5)
    assert {each.finish_reason for each in cut.values()} >= {"dropped", "length"}


def test_prompts_do_not_compete_with_one_another(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A prompt's samples are dropped as if it were alone in the batch."""
    probes, schedule = {"p": probe_of("elhsr", tiny_model)}, DropSchedule((2, 4), margin=0.4, first=5)
    together = decoded(tiny_model, tokenizer, probes, schedule)
    for prompt in range(3):
        for key, each in decoded(tiny_model, tokenizer, probes, schedule, prompts=[prompt]).items():
            assert each.token_ids == together[key].token_ids
            assert each.finish_reason == together[key].finish_reason


@pytest.mark.parametrize(("kind", "more"), [("elhsr", 0), ("logprob", -1)])
def test_the_tokens_saved_are_not_read(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, more: int
) -> None:
    """Rows given up leave the forward passes: the model reads the tokens of the completions and no others."""
    model, seen = copy.deepcopy(tiny_model), []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0].numel()))
    probes = {"p": probe_of(kind, model)}
    prefill = len(PROMPTS) * max(map(len, PROMPTS))
    read = {}
    for schedule in (NEVER, DropSchedule((2, 4))):
        seen.clear()
        done = decoded(model, tokenizer, probes, schedule, stop="")
        assert sum(seen) == prefill + sum(len(each.token_ids) + more for each in done.values())
        read[schedule.drops] = sum(seen) - prefill
    # Of 7 samples, 4 go on after 2 tokens and 2 after 4.
    assert read[True] == 3 * (7 * 2 + 4 * 2 + 2 * (LENGTH - 4)) + more * 3 * 7
    assert read[True] < 0.6 * read[False]


def test_a_finished_sample_competes_and_stays(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """One that ended by itself is never called dropped, and a good one takes the place of another."""
    probe = probe_of("logprob", tiny_model)
    full = decoded(tiny_model, tokenizer, {"p": probe}, NEVER)
    cut = decoded(tiny_model, tokenizer, {"p": probe}, DropSchedule((6,)))
    early = {key for key, each in full.items() if len(each.token_ids) <= 6}
    assert early
    assert all(cut[key] == full[key] or cut[key].finish_reason == "stop" for key in early)
    dropped = {key for key, each in cut.items() if each.finish_reason == "dropped"}
    scores = running_scores(tiny_model, probe, full)
    for prompt in range(3):
        unfinished = [key for key in full if key[0] == prompt and key not in early]
        alone = simulated({key: scores[key] for key in unfinished}, DropSchedule((6,)))
        if {key for key in unfinished if alone[key] < len(scores[key])} != dropped & set(unfinished):
            return
    pytest.fail("no finished sample pushed another out")


# The referee by itself.


def give_up(
    schedule: DropSchedule, groups: Sequence[int], scores: Sequence[float], finished: Sequence[int] = ()
) -> list[int]:
    """Return the rows dropped after the first token."""
    flags = [row in finished for row in range(len(scores))]
    referee = Dropping(schedule, groups)
    found = referee.give_up(0, torch.arange(len(scores)), torch.tensor(scores), flags)
    return [row for row, out in enumerate(found) if out]


@pytest.mark.parametrize(
    ("scores", "finished", "out"),
    [
        ([1.0, 2.0, 3.0, 4.0], (), [0, 1]),
        ([1.0, 1.0, 1.0, 1.0], (), [2, 3]),  # ties: the lowest stay
        ([1.0, 2.0, 3.0], (), [0]),  # half of 3 is 2
        ([1.0], (), []),
        ([math.nan, 0.0, math.nan, -1.0], (), [0, 2]),
        ([math.nan] * 4, (), [2, 3]),
        ([-math.inf, 1.0], (), [0]),
        ([1.0, 2.0, 3.0, 4.0], (3,), [0, 1]),
        ([1.0, 2.0, 3.0, 4.0], (0,), [1]),
    ],
)
def test_halving(scores: list[float], finished: tuple[int, ...], out: list[int]) -> None:
    assert give_up(DropSchedule((1,)), [0] * len(scores), scores, finished) == out


@pytest.mark.parametrize(
    ("scores", "finished", "out"),
    [
        ([0.0, 1.0, 0.4], (), [0, 2]),
        ([0.0, 1.0, 0.6], (), []),
        ([0.0, 1.0, 0.4], (1,), [0, 2]),  # the leader has ended: no other goes on
        ([math.nan, 1.0, 0.0], (), []),  # what has no score yet may still win
        ([1.0], (), []),
    ],
)
def test_the_leader_alone_goes_on(scores: list[float], finished: tuple[int, ...], out: list[int]) -> None:
    assert give_up(DropSchedule(margin=0.5), [0] * len(scores), scores, finished) == out


def test_groups_are_apart_wherever_their_rows_are() -> None:
    assert give_up(DropSchedule((1,)), [0, 1, 0, 1], [9.0, 1.0, 8.0, 2.0]) == [1, 2]


def test_rows_that_left_are_remembered() -> None:
    """Row 0 ended with the best score: later it fills one of the two places, though it is not live."""
    referee = Dropping(DropSchedule((2,)), [0] * 4)
    first = referee.give_up(
        0, torch.arange(4), torch.tensor([9.0, 1.0, 2.0, 3.0]), [True, False, False, False]
    )
    second = referee.give_up(1, torch.arange(1, 4), torch.tensor([1.0, 3.0, 2.0]), [False] * 3)
    assert first == (False,) * 4
    assert second == (True, False, True)


# The choice.

TEXT = Prompt("0", text="The kettle sang")


def job(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    schedule: DropSchedule,
    names: Sequence[str],
    **numbers: Any,
) -> BestOf:
    decoder = Decoder(LoadedModel(as_lm(model, tokenizer), tokenizer))
    config = make_config(
        {"num_return_sequences": SAMPLES, "max_new_tokens": LENGTH, "temperature": 1.5, **numbers}
    )
    probes = {name: probe_of(name, model) for name in names if name != "majority"}
    ids = decoder.tokenise([TEXT], config, chat=False)
    return BestOf(decoder, [TEXT], ids, [], config, Scorers(tuple(names), None, probes, {}), schedule)


def chosen(best_of: BestOf, rule: str = "ranking") -> Selection:
    (batch,) = best_of.batches()
    return select(TEXT, best_of.draw(batch), best_of.scorers, rule)


@pytest.mark.parametrize("rule", ["ranking", "rank_sum", "scaling", "zscore"])
def test_a_dropped_sample_never_wins(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rule: str
) -> None:
    """Its score stands in its record, and is none in the choice, also by a scorer that would prefer it."""
    best_of = job(tiny_model, tokenizer, DropSchedule((2, 4)), ["elhsr", "logprob"])
    found = chosen(best_of, rule)
    dropped = [each.finish_reason == "dropped" for each in found.samples]
    assert [math.isnan(score) for score in found.scores] == dropped
    assert any(dropped)
    assert not dropped[found.winner]
    assert found.best is found.samples[found.winner]
    assert all(math.isfinite(each.scores["elhsr"]) for each in found.samples)


def test_a_gentle_schedule_keeps_the_winner(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """If the best of all survives, it is still the best of those who did."""
    full = chosen(job(tiny_model, tokenizer, NEVER, ["logprob"]))
    cut = chosen(job(tiny_model, tokenizer, DropSchedule((10,), keep=0.75), ["logprob"]))
    assert not math.isnan(cut.scores[full.winner])
    assert cut.winner == full.winner
    assert cut.best.token_ids == full.best.token_ids


# What cannot be.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"at": (0, 4)}, r"schedule \[0, 4\]: give token counts from 1 on"),
        ({"at": (8, 4)}, r"schedule \[8, 4\].*ascending"),
        ({"at": (4, 4)}, r"schedule \[4, 4\].*ascending"),
        ({"keep": 0.0}, r"keep is 0.0"),
        ({"keep": 1.0}, r"keep is 1.0"),
        ({"keep": math.nan}, r"keep is nan"),
        ({"margin": 0.0}, r"margin is 0.0"),
        ({"margin": -1.0}, r"margin is -1.0"),
        ({"margin": math.nan}, r"margin is nan"),
        ({"margin": math.inf}, r"margin is inf"),
        ({"first": 0}, r"first is 0"),
    ],
)
def test_schedules_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DropSchedule(**given)


def test_samples_that_do_not_meet(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"all 7 samples.*batch_size is 6: raise it to 7"):
        job(tiny_model, tokenizer, DropSchedule((2,)), ["logprob"], batch_size=6)
    job(tiny_model, tokenizer, NEVER, ["logprob"], batch_size=6)


@pytest.mark.parametrize("batch_size", [7, 10, 13, 14, 40])
def test_a_prompts_samples_meet_in_one_batch(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> None:
    """Every prompt whole, each once, in batches of no more rows than allowed, however ragged the prompts."""
    made = job(tiny_model, tokenizer, DropSchedule((2,)), ["logprob"], batch_size=batch_size)
    many = replace(made, prompts=[TEXT] * 30, token_ids=[[5] * (1 + i * 7 % 11) for i in range(30)])
    seen = []
    for batch in many.batches():
        assert len(batch.rows) <= batch_size
        rows = [(batch.prompts[place], sample) for place, sample in batch.rows]
        assert sorted(rows) == [(p, s) for p in sorted(batch.prompts) for s in range(SAMPLES)]
        seen += batch.prompts
    assert sorted(seen) == list(range(30))


def test_a_scorer_that_has_no_running_score(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match=r"'majority' has none: put one of"):
        job(tiny_model, tokenizer, DropSchedule((2,)), ["majority", "logprob"])
    job(tiny_model, tokenizer, DropSchedule((2,)), ["logprob", "majority"])


def test_one_sample_is_never_dropped(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    found = chosen(
        job(tiny_model, tokenizer, DropSchedule((1, 2), margin=0.1), ["logprob"], num_return_sequences=1)
    )
    assert (found.winner, found.best.finish_reason, len(found.best.token_ids)) == (0, "length", LENGTH)
