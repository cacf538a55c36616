"""The decode loop: its tokens against a slow decode written here, and what it asks of model and rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from decoder.contracts import Reading, RewardSession, Step, TokenReward, UserError
from decoder.lm import CausalLM
from decoder.loop import Rows, decode
from decoder.sampling import SamplingConfig, draw_uniforms
from rewards.arm import TapArm
from tests.heads import Favours, as_lm, pad, tiny_arm
from tests.tiny import tiny_llama

PROMPTS = [[5, 17, 200], [9], [33, 44, 55, 66, 77, 88, 99]]
LENGTH = 8
NEVER: tuple[int, ...] = ()
GREEDY, SAMPLED = SamplingConfig(do_sample=False), SamplingConfig(temperature=1.5)
FILTERED = SamplingConfig(temperature=1.5, top_k=8, top_p=0.9, reward_top_k=12)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def rows_of(
    prompts: Sequence[Sequence[int]],
    betas: Sequence[float] = (),
    *,
    samples: int = 1,
    seed: int = 0,
    length: int = LENGTH,
) -> Rows:
    """Return `samples` rows a prompt, each with the same betas."""
    pairs = [(p, s) for p in range(len(prompts)) for s in range(samples)]
    return Rows(
        *pad(prompts),
        torch.tensor([p for p, _ in pairs]),
        draw_uniforms(seed, [(prompts[p], s) for p, s in pairs], length),
        torch.tensor([list(betas)] * len(pairs)).reshape(len(pairs), len(betas)),
    )


def run(
    lm: CausalLM,
    rows: Rows,
    rewards: Sequence[TokenReward],
    sampling: SamplingConfig,
    stop: Sequence[int] = NEVER,
) -> list[list[int]]:
    """Return each row's tokens."""
    tokens: list[list[int]] = [[] for _ in rows.prompts]
    for step in decode(lm, rows, rewards, sampling, stop_ids=torch.tensor(stop, dtype=torch.long)):
        for row, token in zip(step.rows.tolist(), step.token_ids.tolist(), strict=True):
            tokens[row].append(token)
    return tokens


def naive_rewards(arm: TapArm, states: Sequence[Tensor], embeddings: Tensor) -> list[float]:
    """Return log P(attribute) of every token of the vocabulary after one text: the ARM formula, unfolded."""
    head = arm.head
    parts = []
    for layer in head.config.layers:
        tap = states[layer]  # (T, d)
        parts.append(tap / (tap.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt())
    h = torch.cat(parts, -1)
    projected = head.state.weight @ h[-1] + head.state.bias
    if head.summary is not None:
        projected = projected + head.summary.weight @ h.mean(0)
    rewards = []
    for embedding in embeddings:
        token = head.vocabulary.weight @ embedding + head.vocabulary.bias
        log_odds = float(projected[0] + token[0] + torch.dot(projected[1:], token[1:]))
        rewards.append(-math.log1p(math.exp(-arm.sign * log_odds)))
    return rewards


def naive_decode(
    lm: CausalLM,
    prompt: Sequence[int],
    arms: Sequence[tuple[TapArm, float]],
    sampling: SamplingConfig,
    uniforms: Sequence[float],
    stop: Sequence[int] = NEVER,
) -> list[int]:
    """Decode one row: the whole text read again for each token, every token of the vocabulary scored."""
    ids = list(prompt)
    for uniform in uniforms:
        output = lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        logits = output.logits[0, -1].tolist()
        states = [state[0] for state in output.hidden_states]
        open_ids = sorted(range(len(logits)), key=lambda v: -logits[v])[: sampling.reward_top_k]
        scores = {v: logits[v] for v in open_ids}
        for arm, beta in arms:
            values = naive_rewards(arm, states, lm.output_embeddings)
            for v in open_ids:
                scores[v] += beta * values[v]
        ids.append(naive_draw(scores, sampling, uniform))
        if ids[-1] in stop:
            break
    return ids[len(prompt) :]


def naive_draw(scores: dict[int, float], sampling: SamplingConfig, uniform: float) -> int:
    """Return the token drawn from id -> score, in the candidates' own order."""
    best = max(scores, key=lambda v: scores[v])
    if not sampling.do_sample:
        return best
    weight = {v: math.exp((z - scores[best]) / sampling.temperature) for v, z in scores.items()}
    ranked = sorted(weight, key=lambda v: -weight[v])[: sampling.top_k or None]
    total, kept, mass = sum(weight[v] for v in ranked), set(), 0.0
    for v in ranked:
        if mass < sampling.top_p:
            kept.add(v)
        mass += weight[v] / total
    target, mass = uniform * sum(weight[v] for v in kept), 0.0
    for v in scores:
        mass += weight[v] if v in kept else 0.0
        if v in kept and mass > target:
            return v
    raise AssertionError("the number exceeds the distribution")


@pytest.fixture(scope="module")
def lm(tiny_model: PreTrainedModel) -> CausalLM:
    return as_lm(tiny_model)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, FILTERED], ids=["greedy", "sampled", "filtered"])
def test_steered_tokens_are_the_naive_ones(any_model: PreTrainedModel, sampling: SamplingConfig) -> None:
    """Cache, padding, gathered and folded scores against none of them: the whole loop, token for token."""
    lm = as_lm(any_model)
    arm = tiny_arm(lm)
    rows = rows_of(PROMPTS, [2.0], length=5)
    expected = [
        naive_decode(lm, prompt, [(arm, 2.0)], sampling, uniforms.tolist())
        for prompt, uniforms in zip(PROMPTS, rows.uniforms, strict=True)
    ]
    assert run(lm, rows, [arm], sampling) == expected
    assert run(lm, rows_of(PROMPTS, length=5), [], sampling) != expected, "the reward changed nothing"


def test_several_rewards_add_up(lm: CausalLM) -> None:
    """Two rewards with their own betas, one of them the opposite, against the naive sum."""
    first, second = tiny_arm(lm), tiny_arm(lm, (2,), seed=1, summary="none").opposite()
    rows = rows_of(PROMPTS, [1.5, -2.5], length=5)
    expected = [
        naive_decode(lm, prompt, [(first, 1.5), (second, 2.5)], SAMPLED, uniforms.tolist())
        for prompt, uniforms in zip(PROMPTS, rows.uniforms, strict=True)
    ]
    assert run(lm, rows, [first, second], SAMPLED) == expected


def test_plain_greedy_is_transformers_generate(any_model: PreTrainedModel) -> None:
    """Without a reward, and with one at beta 0, a ragged batch is what `generate` makes of it."""
    ids, mask = pad(PROMPTS, 2)
    theirs = any_model.generate(
        input_ids=ids, attention_mask=mask.long(), max_new_tokens=LENGTH, do_sample=False
    )[:, ids.shape[1] :]
    lm, stop = as_lm(any_model), [any_model.generation_config.eos_token_id]
    ours = run(lm, rows_of(PROMPTS), [], GREEDY, stop)
    assert [row + [2] * (theirs.shape[1] - len(row)) for row in ours] == theirs.tolist()
    assert run(lm, rows_of(PROMPTS, [0.0]), [tiny_arm(lm)], GREEDY, stop) == ours


def test_beta_zero_samples_as_plain(any_model: PreTrainedModel) -> None:
    """A reward at beta 0 changes no sampled token: the same candidates, the same random numbers."""
    lm = as_lm(any_model)
    plain = run(lm, rows_of(PROMPTS, samples=3), [], SamplingConfig(top_k=20))
    assert (
        run(lm, rows_of(PROMPTS, [0.0], samples=3), [tiny_arm(lm)], SamplingConfig(reward_top_k=20)) == plain
    )


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_batch_is_one_by_one_in_any_order(any_model: PreTrainedModel, sampling: SamplingConfig) -> None:
    """A row's tokens depend on its prompt, seed and sample alone, whoever stands beside it."""
    lm = as_lm(any_model)
    arm = tiny_arm(lm)
    together = run(lm, rows_of(PROMPTS, [2.0]), [arm], sampling)
    alone = [run(lm, rows_of([prompt], [2.0]), [arm], sampling)[0] for prompt in PROMPTS]
    assert together == alone
    assert run(lm, rows_of(PROMPTS[::-1], [2.0]), [arm], sampling) == together[::-1]


def test_fork_is_a_batch_of_copies(any_model: PreTrainedModel) -> None:
    """N samples of a prompt that is read once are those of N prompts that are read one by one."""
    lm = as_lm(any_model)
    arm = tiny_arm(lm)
    forked = rows_of(PROMPTS, [2.0], samples=3)
    copies = [prompt for prompt in PROMPTS for _ in range(3)]
    separate = Rows(*pad(copies), torch.arange(9), forked.uniforms, forked.betas)
    found = run(lm, forked, [arm], SAMPLED)
    assert found == run(lm, separate, [arm], SAMPLED)
    assert len({tuple(tokens) for tokens in found}) > 3, "the samples of a prompt are all alike"


def test_each_row_has_its_own_betas(lm: CausalLM) -> None:
    """Rows of several strengths in one batch decode as in batches of one strength each."""
    arm = tiny_arm(lm)
    base, strengths = rows_of(PROMPTS, [0.0], samples=3), [0.0, 1.0, 4.0]
    betas = torch.tensor([[strength] for _ in PROMPTS for strength in strengths])
    mixed = run(
        lm, Rows(base.prompt_ids, base.prompt_mask, base.prompts, base.uniforms, betas), [arm], SAMPLED
    )
    pure = [run(lm, rows_of(PROMPTS, [strength], samples=3), [arm], SAMPLED) for strength in strengths]
    assert mixed == [pure[row % 3][row] for row in range(9)]
    assert pure[0] != pure[2]


def test_rows_leave_at_a_stop_token(lm: CausalLM) -> None:
    """A row ends with the stop token it drew; the others go on as if nothing had happened."""
    arm = tiny_arm(lm)
    whole = run(lm, rows_of(PROMPTS, [2.0], samples=2), [arm], SAMPLED)
    stop = [whole[0][2], whole[3][4]]
    expected = []
    for tokens in whole:
        ends = [i for i, token in enumerate(tokens) if token in stop]
        expected.append(tokens[: ends[0] + 1] if ends else tokens)
    assert run(lm, rows_of(PROMPTS, [2.0], samples=2), [arm], SAMPLED, stop) == expected
    assert len({len(tokens) for tokens in expected}) > 1
    for prompt, tokens, uniforms in zip(
        PROMPTS, expected[::2], rows_of(PROMPTS, samples=2).uniforms[::2], strict=True
    ):
        assert naive_decode(lm, prompt, [(arm, 2.0)], SAMPLED, uniforms.tolist(), stop) == tokens


def test_steps_say_who_is_alive(lm: CausalLM) -> None:
    """`rows` keeps the original numbers, `finished` marks the last token of each, and no row comes back."""
    whole = run(lm, rows_of(PROMPTS), [], SAMPLED)
    stop = torch.tensor([whole[1][2], whole[0][5]])
    alive, counts = {0, 1, 2}, []
    for index, step in enumerate(decode(lm, rows_of(PROMPTS), [], SAMPLED, stop_ids=stop)):
        assert step.index == index
        assert set(step.rows.tolist()) == alive
        counts.append(len(alive))
        for row, token, end in zip(step.rows.tolist(), step.token_ids.tolist(), step.finished, strict=True):
            assert end == (token in stop.tolist() or index == LENGTH - 1)
            alive -= {row} if end else set()
    assert not alive
    assert counts[0] == 3
    assert counts[-1] == 1


@pytest.mark.parametrize(
    ("n_rewards", "sampling", "width"),
    [
        (2, SamplingConfig(reward_top_k=7), 7),
        (1, SamplingConfig(do_sample=False, reward_top_k=7), 7),
        (1, SamplingConfig(reward_top_k=999), 300),
        (0, SamplingConfig(top_k=5), 5),
        (0, SamplingConfig(), None),
        (0, SamplingConfig(do_sample=False, top_k=5), None),
    ],
)
def test_what_a_step_holds(lm: CausalLM, n_rewards: int, sampling: SamplingConfig, width: int | None) -> None:
    """Shapes, dtypes and the two equations that tie a step's tensors together."""
    arms, betas = [tiny_arm(lm), tiny_arm(lm, seed=1)][:n_rewards], [2.0, 0.5][:n_rewards]
    stop = torch.tensor([], dtype=torch.long)
    for step in decode(lm, rows_of(PROMPTS, betas), arms, sampling, stop_ids=stop, trace=True):
        columns = width or 300
        assert step.scores.shape == step.base_logits.shape == (3, columns)
        assert step.rewards.shape == (3, columns if width else 1, n_rewards)
        assert {t.dtype for t in (step.scores, step.base_logits, step.rewards)} == {torch.float32}
        assert {t.dtype for t in (step.token_ids, step.chosen, step.rows)} == {torch.int64}
        weighted = (step.rewards * torch.tensor(betas)).sum(-1) if n_rewards else 0
        torch.testing.assert_close(step.scores, step.base_logits + weighted)
        if width is None:
            assert step.candidate_ids is None
            assert torch.equal(step.chosen, step.token_ids)
        else:
            assert torch.equal(step.candidate_ids.gather(1, step.chosen[:, None])[:, 0], step.token_ids)
            assert (step.base_logits.diff(dim=1) <= 0).all()
        if columns == 300:
            torch.testing.assert_close(step.log_normalizer, step.base_logits.logsumexp(-1, keepdim=True))
        assert (step.log_normalizer >= step.base_logits.logsumexp(-1, keepdim=True) - 1e-5).all()


def test_candidates_are_all_that_is_open(lm: CausalLM) -> None:
    """However strong the reward, the token stays among the base model's best `reward_top_k`."""
    wanted = Favours(tuple(range(0, 300, 2)))
    stop = torch.tensor([], dtype=torch.long)
    sampling = SamplingConfig(reward_top_k=4, temperature=2.0)
    ids = {0: list(PROMPTS[0])}
    for step in decode(lm, rows_of(PROMPTS[:1], [1e4]), [wanted], sampling, stop_ids=stop):
        best = lm.model(input_ids=torch.tensor([ids[0]])).logits[0, -1].topk(4).indices.tolist()
        assert step.candidate_ids[0].tolist() == best
        token = int(step.token_ids[0])
        assert token % 2 == 0 or all(v % 2 for v in best)
        ids[0].append(token)


def test_no_trace_reads_no_vocabulary(lm: CausalLM) -> None:
    """The normaliser costs a pass over the vocabulary: without a trace nobody pays it."""
    stop = torch.tensor([], dtype=torch.long)
    steps = list(decode(lm, rows_of(PROMPTS), [], SAMPLED, stop_ids=stop))
    assert len(steps) == LENGTH
    assert all(step.log_normalizer is None for step in steps)


@dataclass
class Spy:
    """A reward that notes what it is asked, and says what it is told to say."""

    value: float = 0.0
    bad_row: int = -1
    bad_score: float = math.nan
    calls: list[str] = field(default_factory=list)
    layers: tuple[int, ...] = ()
    digest: str = "spy"

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> RewardSession:
        self.calls.append(f"start {len(prompt_ids)}")
        return SpySession(self, torch.arange(len(prompt_ids)))

    def opposite(self) -> TokenReward:
        raise AssertionError("the loop may not ask for the opposite: whoever weighs the rewards does")


class SpySession:
    def __init__(self, spy: Spy, rows: Tensor) -> None:
        self.spy, self.rows = spy, rows

    def score(self, candidate_ids: Tensor, reading: Reading) -> Tensor:
        assert len(reading.logits) == len(candidate_ids) == len(self.rows)
        self.spy.calls.append(f"score {len(candidate_ids)}")
        scores = torch.full(candidate_ids.shape, self.spy.value)
        scores[self.rows == self.spy.bad_row, -1] = self.spy.bad_score
        return scores

    def advance(self, token_ids: Tensor) -> None:
        assert len(token_ids) == len(self.rows)
        self.spy.calls.append(f"advance {len(token_ids)}")

    def select(self, rows: Tensor) -> None:
        self.spy.calls.append(f"select {len(rows)}")
        self.rows = self.rows[rows]


def count_rows(lm: CausalLM, rows: Rows, rewards: Sequence[TokenReward], stop: Sequence[int]) -> list[int]:
    """Return the rows of every forward pass of a decode."""
    passed: list[int] = []
    hook = lm.model.register_forward_hook(
        lambda module, args, options, output: passed.append(len(options["input_ids"])), with_kwargs=True
    )
    try:
        run(lm, rows, rewards, SAMPLED, stop)
    finally:
        hook.remove()
    return passed


def test_a_token_costs_one_row(lm: CausalLM) -> None:
    """Prompts are read once, however many samples they have; then one row a token; nothing after the last."""
    arm = tiny_arm(lm)
    assert count_rows(lm, rows_of(PROMPTS, [2.0], samples=4), [arm], NEVER) == [3] + [12] * (LENGTH - 1)
    assert count_rows(lm, rows_of(PROMPTS, [2.0], length=1), [arm], NEVER) == [3]
    tokens = run(lm, rows_of(PROMPTS, [2.0], samples=4), [arm], SAMPLED)
    stop = [tokens[0][2], tokens[5][4]]
    lengths = [next((i for i, t in enumerate(row) if t in stop), LENGTH - 1) for row in tokens]
    alive = [sum(length > step for length in lengths) for step in range(LENGTH - 1)]
    assert min(alive) < 12
    assert count_rows(lm, rows_of(PROMPTS, [2.0], samples=4), [arm], stop) == [3, *(n for n in alive if n)]


def test_what_a_session_is_asked(lm: CausalLM) -> None:
    """One score a reading; rows are selected before they advance; nothing is asked after the last token."""
    spy = Spy()
    plain = run(lm, rows_of(PROMPTS), [], SamplingConfig(top_k=20, temperature=1.5))
    assert len({row[1] for row in plain}) == 3
    assert plain[1][1] not in plain[0] + plain[2]
    run(lm, rows_of(PROMPTS, [1.0], length=4), [spy], SAMPLED, [plain[1][1]])
    assert spy.calls == [
        "start 3", "score 3", "advance 3", "score 3", "select 2",
        "advance 2", "score 2", "advance 2", "score 2",
    ]  # fmt: skip
    forked = Spy()
    run(lm, rows_of(PROMPTS, [1.0], samples=2, length=2), [forked], SAMPLED)
    assert forked.calls == ["start 3", "score 3", "select 6", "advance 6", "score 6"]
    once = Spy()
    run(lm, rows_of(PROMPTS, [1.0], length=1), [once], SAMPLED)
    assert once.calls == ["start 3", "score 3"]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_names_its_row(lm: CausalLM, sampling: SamplingConfig, bad: float) -> None:
    """NaN and infinity stop the decode and name the row by its original number, also after others left."""
    with pytest.raises(ValueError, match="row 1: "):
        run(lm, rows_of(PROMPTS, [1.0]), [Spy(bad_row=1, bad_score=bad)], sampling)
    first = run(lm, rows_of(PROMPTS, [1.0]), [Spy()], sampling)[0][0]

    class Later(Spy):
        def start(self, prompt_ids: Tensor, prompt_mask: Tensor) -> RewardSession:
            self.bad_row = -1
            return super().start(prompt_ids, prompt_mask)

    spy = Later(bad_score=bad)
    stop = torch.tensor([first])
    steps = decode(lm, rows_of(PROMPTS, [1.0]), [spy], sampling, stop_ids=stop)
    assert next(steps).finished[0]
    assert 0 not in next(steps).rows.tolist()
    spy.bad_row = 2
    with pytest.raises(ValueError, match="row 2: "):
        list(steps)


def test_a_candidate_may_be_forbidden_but_not_all_of_them(lm: CausalLM) -> None:
    """Minus infinity closes a candidate; a row with nothing open is an error, not its last column."""
    run(lm, rows_of(PROMPTS, [1.0]), [Spy(bad_row=1, bad_score=-math.inf)], SAMPLED)
    with pytest.raises(UserError, match="row 0: "):
        run(lm, rows_of(PROMPTS, [1.0]), [Spy(value=-math.inf)], SAMPLED)


def test_a_model_that_is_broken_names_its_row() -> None:
    """NaN in the model's own logits is found as well, without any reward."""
    model = tiny_llama()
    model.lm_head.weight.data[7] = math.nan  # tied: whoever reads token 7 is lost
    with pytest.raises(ValueError, match="row 0: "):
        run(as_lm(model), rows_of(PROMPTS), [], SAMPLED)


def test_a_step_is_made_when_it_is_asked_for(lm: CausalLM) -> None:
    """The loop is a generator: who stops listening pays for no further token, and two of them do not mix."""
    arm = tiny_arm(lm)
    stop = torch.tensor([], dtype=torch.long)
    expected = run(lm, rows_of(PROMPTS, [2.0]), [arm], SAMPLED)
    first = decode(lm, rows_of(PROMPTS, [2.0]), [arm], SAMPLED, stop_ids=stop)
    second = decode(lm, rows_of(PROMPTS[:2], [2.0]), [arm], SAMPLED, stop_ids=stop)
    pairs: list[tuple[Step, Step]] = list(zip(first, second, strict=True))
    assert [[int(step.token_ids[row]) for step, _ in pairs] for row in range(3)] == expected
    assert [[int(step.token_ids[row]) for _, step in pairs] for row in range(2)] == expected[:2]
