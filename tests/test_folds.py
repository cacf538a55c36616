"""Folds, likelihood probes and the path probe against the formulas written out, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from decoder.contracts import Drawn, Probe, ProbeSession, Reading, UserError
from decoder.replay import left_pad, right_pad, score_path
from rewards.arm import Summary
from rewards.fold import GatedMean
from rewards.likelihood import MeanLogProbability, SelfCertainty
from rewards.path_reward import PathReward
from rewards.top_logprobs import TopLogprobs, features_of_records
from tests.heads import LAYERS, as_lm, tiny_arm

B, T, V, M = 3, 5, 11, 4
LENGTHS = (5, 2, 4)


def tokens(seed: int = 0, *, spread: float = 3.0) -> Drawn:
    """Return ragged random tokens with logits; what stands on padding is NaN."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[t < length for t in range(T)] for length in LENGTHS])
    logits = torch.randn(B, T, V, generator=generator) * spread
    return Drawn(
        torch.randint(V, (B, T), generator=generator),
        mask,
        {},
        logits.masked_fill(~mask[..., None], math.nan),
    )


def column(drawn: Drawn, t: int) -> Drawn:
    """Return one token a row, as a decode gives them."""
    taps = {layer: states[:, t : t + 1] for layer, states in drawn.taps.items()}
    logits = None if drawn.logits is None else drawn.logits[:, t : t + 1]
    return Drawn(drawn.ids[:, t : t + 1], drawn.mask[:, t : t + 1], taps, logits)


def started(probe: Probe, n_rows: int = B) -> ProbeSession:
    ids = torch.zeros(n_rows, 2, dtype=torch.long)
    session = probe.start(ids, ids == 0, Reading(torch.zeros(n_rows, V), {}, ids == 0))
    assert isinstance(probe, Probe)
    assert isinstance(session, ProbeSession)
    return session


def naive_log_probabilities(drawn: Drawn, row: int, t: int) -> list[float]:
    """Return log p of every token of the vocabulary, in double precision."""
    assert drawn.logits is not None
    weights = [math.exp(z) for z in drawn.logits[row, t].tolist()]
    return [math.log(w / sum(weights)) for w in weights]


# The fold.


def gates_and_rewards(drawn: Drawn) -> tuple[Tensor, Tensor]:
    assert drawn.logits is not None
    return drawn.logits[..., 0].sigmoid(), drawn.logits[..., 1]


def test_the_fold_is_the_gated_mean() -> None:
    """At once, token by token, and the formula; NaN on padding does not reach the score."""
    drawn = tokens()
    assert drawn.logits is not None
    whole, stepped = GatedMean(gates_and_rewards, B), GatedMean(gates_and_rewards, B)
    whole.update(drawn)
    for t in range(T):
        stepped.update(column(drawn, t))
    expected = []
    for row, length in enumerate(LENGTHS):
        pairs = [(1 / (1 + math.exp(-float(z[0]))), float(z[1])) for z in drawn.logits[row, :length]]
        expected.append(sum(g * r for g, r in pairs) / sum(g for g, _ in pairs))
    assert whole.score().tolist() == pytest.approx(expected, abs=1e-5)
    assert stepped.score().tolist() == pytest.approx(expected, abs=1e-5)
    assert whole.score().dtype == torch.float32


def test_padding_may_stand_anywhere() -> None:
    drawn = tokens()
    assert drawn.logits is not None
    order = torch.tensor([4, 0, 3, 1, 2])
    mixed = Drawn(drawn.ids[:, order], drawn.mask[:, order], {}, drawn.logits[:, order])
    straight, shuffled = GatedMean(gates_and_rewards, B), GatedMean(gates_and_rewards, B)
    straight.update(drawn)
    shuffled.update(mixed)
    assert shuffled.score().tolist() == pytest.approx(straight.score().tolist(), abs=1e-6)


def test_forked_and_left_rows_keep_their_own_sums() -> None:
    """Rows that are repeated, reordered and left fold on as rows that were never anything else."""
    first, then = tokens(0), tokens(1)
    session = GatedMean(gates_and_rewards, B)
    session.update(first)
    rows = torch.tensor([2, 0, 0])
    session.select(rows)
    session.update(then)
    assert first.logits is not None
    assert then.logits is not None
    alone = GatedMean(gates_and_rewards, B)
    alone.update(Drawn(first.ids[rows], first.mask[rows], {}, first.logits[rows]))
    alone.update(then)
    assert session.score().tolist() == alone.score().tolist()


def test_no_score_before_a_gate_opens() -> None:
    """NaN without tokens and with gates that are all 0, in those rows alone; a tiny gate is enough for 0."""
    session = GatedMean(lambda drawn: (torch.tensor([[0.0], [1.0], [1e-20]]), torch.full((3, 1), 2.0)), 3)
    assert session.score().isnan().all()
    session.update(column(tokens(), 0))
    assert session.score()[0].isnan()
    assert session.score()[1:].tolist() == pytest.approx([2.0, 0.0], abs=1e-6)


# Likelihood.


@pytest.mark.parametrize("probe", [MeanLogProbability(), SelfCertainty()], ids=lambda probe: probe.digest)
def test_likelihood_is_the_formula(probe: MeanLogProbability | SelfCertainty) -> None:
    drawn = tokens()
    whole, stepped = started(probe), started(probe)
    whole.update(drawn)
    for t in range(T):
        stepped.update(column(drawn, t))
    expected = []
    for row, length in enumerate(LENGTHS):
        found = []
        for t in range(length):
            logs = naive_log_probabilities(drawn, row, t)
            uniform = sum(math.log(1 / V / math.exp(x)) / V for x in logs)
            found.append(uniform if isinstance(probe, SelfCertainty) else logs[int(drawn.ids[row, t])])
        expected.append(sum(found) / length)
    assert whole.score().tolist() == pytest.approx(expected, abs=1e-5)
    assert stepped.score().tolist() == pytest.approx(expected, abs=1e-5)
    assert probe.reads_logits
    assert probe.layers == ()


def test_certainty_of_an_undecided_model_is_zero() -> None:
    ids = torch.zeros(1, 1, dtype=torch.long)
    session = started(SelfCertainty(), 1)
    session.update(Drawn(ids, ids == 0, {}, torch.full((1, 1, 50_000), 7.0)))
    assert float(session.score()) == pytest.approx(0.0, abs=1e-4)


def test_likelihood_probes_refuse_tokens_without_logits() -> None:
    ids = torch.zeros(B, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="without logits"):
        started(MeanLogProbability()).update(Drawn(ids, ids == 0, {}, None))


def top_probe(m: int = M, seed: int = 0) -> TopLogprobs:
    generator = torch.Generator().manual_seed(seed)
    return TopLogprobs(torch.randn(2, m + 1, generator=generator), torch.randn(2, generator=generator))


def naive_features(drawn: Drawn, row: int, t: int, m: int = M) -> list[float]:
    logs = naive_log_probabilities(drawn, row, t)
    return [max(-30.0, x) for x in (logs[int(drawn.ids[row, t])], *sorted(logs)[::-1][:m])]


@pytest.mark.parametrize("spread", [3.0, 40.0])
def test_top_features_and_score(spread: float) -> None:
    """Features as listed, floor included, and the score by the formula from them."""
    drawn, probe = tokens(spread=spread), top_probe()
    assert drawn.logits is not None
    features = TopLogprobs.features(drawn.logits, drawn.ids, M)
    session = started(probe)
    session.update(drawn)
    for row, length in enumerate(LENGTHS):
        expected = [naive_features(drawn, row, t) for t in range(length)]
        for found, wanted in zip(features[row], expected, strict=False):
            assert found.tolist() == pytest.approx(wanted, abs=2e-5)
        a, r = (torch.tensor(expected).double() @ probe.weight.double().T + probe.bias).unbind(-1)
        score = float((a.sigmoid() * r).sum() / a.sigmoid().sum())
        assert float(session.score()[row]) == pytest.approx(score, abs=1e-4)


def test_digest_tells_weights_apart() -> None:
    assert top_probe().digest == top_probe().digest
    assert len({top_probe().digest, top_probe(seed=1).digest, top_probe(m=2).digest}) == 3


def answers(drawn: Drawn, row: int) -> dict[str, object]:
    """Return the answers three APIs would give for a row: alternatives unsorted, and more than needed."""
    logs = [naive_log_probabilities(drawn, row, t) for t in range(LENGTHS[row])]
    chosen = [each[i] for each, i in zip(logs, drawn.ids[row].tolist(), strict=False)]
    others = [{f"t{i}": x for i, x in enumerate(each)} for each in logs]
    chat = [
        {"token": "t", "logprob": x, "top_logprobs": [{"token": k, "logprob": y} for k, y in each.items()]}
        for x, each in zip(chosen, others, strict=True)
    ]
    return {
        "chat": chat,
        "content": {"content": chat},
        "flat": {"tokens": ["t"] * len(chosen), "token_logprobs": chosen, "top_logprobs": others},
    }


@pytest.mark.parametrize("shape", ["chat", "content", "flat"])
def test_answers_of_apis_score_as_the_decode(shape: str) -> None:
    drawn, probe = tokens(), top_probe()
    session = started(probe)
    session.update(drawn)
    for row, length in enumerate(LENGTHS):
        answer = answers(drawn, row)[shape]
        features = features_of_records(answer, M)
        assert features.shape == (length, M + 1)
        assert probe.score_records(answer) == pytest.approx(float(session.score()[row]), abs=1e-5)


def test_very_unlikely_reads_as_the_floor() -> None:
    answer = [{"logprob": -9999.0, "top_logprobs": [{"logprob": -0.5}, {"logprob": -math.inf}]}]
    assert features_of_records(answer, 2).tolist() == [[-30.0, -0.5, -30.0]]


def one(logprob: object, *others: object) -> dict[str, object]:
    return {"logprob": logprob, "top_logprobs": [{"logprob": y} for y in others]}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([one(-1, -1, -2), one(-1, -1)], r"token 1 has 1 alternatives, the probe reads 2"),
        ([{"logprob": -1}], r"token 0 has 0 alternatives"),
        ({"token_logprobs": [-1.0], "top_logprobs": None}, r"token 0 has 0 alternatives"),
        ({"token_logprobs": [None, -1], "top_logprobs": [None, {"a": -1, "b": -2}]}, r"token 0.*null is no"),
        ([one(-1, -1, "x")], r"token 0: the log-probability 'x' is no number"),
        ([one(math.nan, -1, -2)], r"token 0: the log-probability NaN is no number"),
        ([], r"hold no token"),
        ({"content": None}, r"hold no token"),
        ({"token_logprobs": [], "top_logprobs": []}, r"hold no token"),
        ({"token_logprobs": [-1, -2], "top_logprobs": [{"a": -1, "b": -2}]}, r"no log-probabilities of"),
        ([{"token": "a"}], r"these are no log-probabilities of tokens"),
        ({"tokens": ["a"]}, r"these are no log-probabilities of tokens: \{\"tokens\": \[\"a\"\]\}"),
        (None, r"these are no log-probabilities of tokens: null"),
        ([3], r"these are no log-probabilities of tokens: \[3\]"),
    ],
)
def test_answers_that_do_not_do(answer: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        features_of_records(answer, 2)


def test_a_vocabulary_smaller_than_the_probe_reads() -> None:
    with pytest.raises(UserError, match=r"vocabulary has 11 alternatives, the probe reads 12"):
        started(top_probe(m=12))


# The path.

PROMPTS = [[5, 17, 200], [9], [33, 44, 55, 66]]
COMPLETIONS = [[7, 8, 9, 10, 11], [250], [40, 41, 1]]


def reread(model: PreTrainedModel, rows: Sequence[int]) -> tuple[Tensor, Tensor, Reading, Drawn]:
    """Return the prompts (each once) and what a replay reads of each row's completion, text by text."""
    lm = as_lm(model)
    ids, mask = left_pad(PROMPTS)
    reading = lm.start(LAYERS).prefill(ids, mask)
    taken, real = right_pad([COMPLETIONS[row] for row in rows])
    taps = {layer: torch.full((*taken.shape, 32), math.nan) for layer in LAYERS}
    for i, row in enumerate(rows):
        whole, every = left_pad([PROMPTS[row] + COMPLETIONS[row]])
        alone = lm.start(LAYERS).prefill(whole, every)
        for layer in LAYERS:
            taps[layer][i, : len(COMPLETIONS[row])] = alone.taps[layer][0, len(PROMPTS[row]) :]
    return ids, mask, reading, Drawn(taken, real, taps, None)


@pytest.mark.parametrize("summary", ["none", "text", "generated", "mean"])
@torch.inference_mode()
def test_the_path_score_is_the_last_of_score_path(tiny_model: PreTrainedModel, summary: Summary) -> None:
    """Step by step and at once, ragged, forked right after the start, NaN on padding: score_path's number."""
    arm = tiny_arm(as_lm(tiny_model), summary=summary)
    fork = [0, 0, 1, 2, 1]
    ids, mask, reading, drawn = reread(tiny_model, fork)
    expected = [r[-1] for r in score_path(as_lm(tiny_model), arm, PROMPTS, COMPLETIONS)]
    probe = PathReward(arm)
    assert isinstance(probe, Probe)
    assert (probe.layers, probe.reads_logits) == (LAYERS, False)
    whole, stepped = probe.start(ids, mask, reading), probe.start(ids, mask, reading)
    for session in (whole, stepped):
        assert isinstance(session, ProbeSession)
        assert session.score().isnan().all()
        session.select(torch.tensor(fork))
    whole.update(drawn)
    for t in range(drawn.ids.shape[1]):
        stepped.update(column(drawn, t))
    assert whole.score().tolist() == pytest.approx([expected[row] for row in fork], abs=1e-5)
    assert stepped.score().tolist() == pytest.approx(whole.score().tolist(), abs=1e-5)


@torch.inference_mode()
def test_rows_leave_and_padding_stands_in_front(tiny_model: PreTrainedModel) -> None:
    """Rows that are reordered between tokens, or padded on the left, score as before."""
    arm = tiny_arm(as_lm(tiny_model))
    ids, mask, reading, drawn = reread(tiny_model, [0, 1, 2])
    expected = [r[-1] for r in score_path(as_lm(tiny_model), arm, PROMPTS, COMPLETIONS)]
    session = PathReward(arm).start(ids, mask, reading)
    session.update(column(drawn, 0))
    assert float(session.score()[1]) == pytest.approx(expected[1], abs=1e-5)
    left = torch.tensor([2, 0])
    session.select(left)
    for t in range(1, 5):
        each = column(drawn, t)
        session.update(
            Drawn(each.ids[left], each.mask[left], {k: h[left] for k, h in each.taps.items()}, None)
        )
    assert session.score().tolist() == pytest.approx([expected[2], expected[0]], abs=1e-5)

    shifted = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 0, 4, 1, 2]])
    rows = torch.arange(3)[:, None]
    taps = {layer: states[rows, shifted] for layer, states in drawn.taps.items()}
    session = PathReward(arm).start(ids, mask, reading)
    session.update(Drawn(drawn.ids[rows, shifted], drawn.mask[rows, shifted], taps, None))
    assert session.score().tolist() == pytest.approx(expected, abs=1e-5)


@torch.inference_mode()
def test_a_row_that_goes_on_after_padding_has_no_score(tiny_model: PreTrainedModel) -> None:
    arm = tiny_arm(as_lm(tiny_model))
    ids, mask, reading, drawn = reread(tiny_model, [0, 1, 2])
    states = {layer: taps.nan_to_num() for layer, taps in drawn.taps.items()}
    session = PathReward(arm).start(ids, mask, reading)
    session.update(Drawn(drawn.ids, drawn.mask, states, None))
    kept = session.score()
    assert kept.isfinite().all()
    session.update(
        Drawn(drawn.ids[:, :1], torch.tensor([[True], [True], [False]]), column(drawn, 0).taps, None)
    )
    assert session.score().isnan().tolist() == [False, True, False]
    assert session.score()[2] == kept[2]


class Diary:
    """A reward that writes down what its session is asked, and reads no taps."""

    digest, layers = "diary", ()

    def __init__(self) -> None:
        self.calls: list[object] = []

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Diary:
        self.calls.append("start")
        return self

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        assert reading.logits.numel() == 0
        self.calls.append(("score", candidate_ids.tolist()))
        return candidate_ids.float()

    def advance(self, token_ids: Tensor) -> None:
        self.calls.append(("advance", token_ids.tolist()))

    def select(self, rows: Tensor) -> None:
        self.calls.append(("select", rows.tolist()))

    def opposite(self) -> Diary:
        return self


def test_the_reward_is_asked_as_a_decode_asks() -> None:
    """One score a reading, and rows are selected before the reward is told what was drawn."""
    diary = Diary()
    session = started(PathReward(diary), 2)
    for t, rows in enumerate(([0, 1], [1])):
        ids = torch.tensor([[10 * t + row] for row in rows])
        session.update(Drawn(ids, torch.ones_like(ids).bool(), {}, None))
        if t == 0:
            session.select(torch.tensor([1]))
    assert diary.calls == [
        "start", ("score", [[0], [1]]), ("select", [1]), ("advance", [1]), ("score", [[11]]),
    ]  # fmt: skip
    assert session.score().tolist() == [11.0]


def test_the_path_has_a_digest_of_its_own(tiny_model: PreTrainedModel) -> None:
    arms = [tiny_arm(as_lm(tiny_model), seed=seed) for seed in (0, 1)]
    assert len({*(arm.digest for arm in arms), *(PathReward(arm).digest for arm in arms)}) == 4
