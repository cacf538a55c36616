"""ELHSR and path probes folded over a decode, against formulas on whole texts read again, one at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from decoder.contracts import Completion, Probe, UserError
from decoder.decoder import Decoder
from decoder.hf_backend import HFBackend
from decoder.hf_generate import custom_generate
from decoder.job import Job
from decoder.lm import CausalLM, identify
from decoder.models import LoadedModel
from decoder.replay import left_pad, right_pad, score_path, score_samples
from decoder.sampling import SamplingConfig
from decoder.weighting import WeightedReward
from rewards.elhsr import Elhsr, ElhsrConfig, ElhsrHead, Norm, save_pretrained
from rewards.likelihood import MeanLogProbability, SelfCertainty
from rewards.load import load_reward
from rewards.path_reward import PathReward
from tests.heads import as_lm, tiny_arm
from tests.tiny import ARCHITECTURES, CONTEXT, VOCAB

PROMPTS = [[5, 17, 200], [9], [33, 44, 55, 66, 77, 88, 99]]
SAMPLES, LENGTH = 3, 8
SAMPLED = SamplingConfig(temperature=1.5)
STOP = "aetn"  # ends some rows early: rows leave the batch at different steps
LAYER_SETS = ((0, 1, 2, 3, 4), (2,), (1, 4))


def random_head(config: ElhsrConfig, *, seed: int = 0) -> ElhsrHead:
    """Return a head whose gates and rewards are of size 1."""
    head = ElhsrHead(config, VOCAB)
    generator = torch.Generator().manual_seed(seed)
    scale = 0.02 if config.norm == "none" or config.features == "logits" else 0.2
    with torch.no_grad():
        head.weight.normal_(std=scale, generator=generator)
        head.bias.normal_(std=0.5, generator=generator)
        if head.likelihood is not None:
            head.likelihood.normal_(std=0.2, generator=generator)
    return head


def bound(lm: CausalLM, config: ElhsrConfig, *, seed: int = 0) -> Elhsr:
    return Elhsr.bind(random_head(config, seed=seed), lm, digest=f"{config} {seed}")


def every_shape(lm: CausalLM) -> dict[str, Elhsr]:
    """Return a probe of every choice of layers, norm and gate."""
    shapes = product(LAYER_SETS, ("rms", "none"), (True, False))
    configs = [ElhsrConfig(layers, 32, gate=gate, norm=norm) for layers, norm, gate in shapes]  # type: ignore[arg-type]
    configs += [replace(config, likelihood=True) for config in configs if config.norm == "rms"]
    return {str(config): bound(lm, config, seed=i) for i, config in enumerate(configs)}


def decoded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Mapping[str, Probe],
    *,
    prompts: Sequence[int] = (0, 1, 2),
    samples: Sequence[int] = range(SAMPLES),
    rewards: Sequence[WeightedReward] = (),
    stop: str = STOP,
) -> dict[tuple[int, int], Completion]:
    """Return the completions of these prompts and samples, decoded in one batch."""
    rows = [(place, sample) for place in range(len(prompts)) for sample in samples]
    ids = [PROMPTS[prompt] for prompt in prompts]
    job = Job(ids, rows, prompts, rewards, SAMPLED, LENGTH, 0, stop=stop, probes=probes)
    done = list(HFBackend(as_lm(model, tokenizer), tokenizer).complete(job))
    return {(each.prompt, each.sample): each for each in done}


def read_alone(
    model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """Return the states of each layer (T, d) and the logits (T, V) that have read each token drawn."""
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor([[*prompt, *completion]]), output_hidden_states=True, use_cache=False
        )
    return [states[0, len(prompt) :] for states in output.hidden_states], output.logits[0, len(prompt) :]


def log_p_alone(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """Return log p (T,) of each token drawn."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
    before = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return before.gather(1, torch.tensor(completion)[:, None])[:, 0]


def concatenated(
    head: ElhsrHead, states: Sequence[Tensor], log_p: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return gates and rewards (T,): all taps side by side, one linear layer, as the paper writes it.

    Where the head reads it, log p (T,) is one more number beside them.
    """
    config = head.config
    taps = [states[layer] for layer in config.layers]
    if config.norm == "rms":
        taps = [tap / (tap.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() for tap in taps]
    weight = head.weight.reshape(-1, 2)
    if head.likelihood is not None and log_p is not None:
        taps, weight = [*taps, log_p[:, None]], torch.cat([weight, head.likelihood[None]])
    linear = nn.Linear(len(weight), 2)
    with torch.no_grad():
        linear.weight.copy_(weight.T)
        linear.bias.copy_(head.bias)
        a, r = linear(torch.cat(taps, -1)).unbind(-1)
    return (torch.sigmoid(a) if config.gate else torch.ones_like(a)), r


def weighted_mean(gates: Tensor, rewards: Tensor) -> float:
    pairs = list(zip(gates.tolist(), rewards.tolist(), strict=True))
    return sum(g * r for g, r in pairs) / sum(g for g, _ in pairs)


def replayed(
    lm: CausalLM, probes: Sequence[Probe], done: Mapping[tuple[int, int], Completion], max_tokens: int = 2048
) -> Tensor:
    """Return what the replay says, (rows, probes), in the order of `done`, which is by prompt and sample."""
    samples = [[each.token_ids for (p, _), each in sorted(done.items()) if p == i] for i in range(3)]
    found = list(score_samples(lm, probes, PROMPTS, samples, max_tokens=max_tokens))
    assert [prompt for prompt, _ in found] == [0, 1, 2]
    return torch.cat([scores for _, scores in found])


def scores_of(done: Mapping[tuple[int, int], Completion]) -> Tensor:
    """Return the streamed scores (rows, probes) by prompt and sample."""
    return torch.tensor([list(each.scores.values()) for _, each in sorted(done.items())])


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# The three ways to one score.


def test_streamed_replayed_and_concatenated_agree(
    any_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Every choice of layers, norm and gate, ragged prompts, rows that leave early: one number each."""
    lm = as_lm(any_model, tokenizer)
    probes = every_shape(lm)
    done = decoded(any_model, tokenizer, probes)
    assert len({len(each.token_ids) for each in done.values()}) > 1
    streamed = scores_of(done)
    expected = []
    for (prompt, _), each in sorted(done.items()):
        states, _ = read_alone(any_model, PROMPTS[prompt], each.token_ids)
        log_p = log_p_alone(any_model, PROMPTS[prompt], each.token_ids)
        heads = [random_head(probe.config, seed=i) for i, probe in enumerate(probes.values())]
        expected.append([weighted_mean(*concatenated(head, states, log_p)) for head in heads])
    close(streamed, torch.tensor(expected))
    close(replayed(lm, [*probes.values()], done), streamed)
    close(replayed(lm, [*probes.values()], done, max_tokens=9), streamed)  # a prompt's samples in parts
    assert float(streamed.std(0).min()) > 1e-3


def explicit_logits_score(
    model: PreTrainedModel, head: ElhsrHead, prompt: Sequence[int], completion: Sequence[int]
) -> float:
    """Return the score from the model's own logits (T, V) after each token and the weights (V, 2).

    With norm "rms", from the logits that the state over its root mean square would give.
    """
    states, logits = read_alone(model, prompt, completion)
    if head.config.norm == "rms":
        logits = logits / (states[-1].pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    both = logits @ head.weight.detach() + head.bias.detach()
    return weighted_mean(both[:, 0].sigmoid(), both[:, 1])


@pytest.mark.parametrize(("biased", "norm"), [(False, "none"), (True, "none"), (False, "rms")])
def test_the_logits_mode_reads_what_the_vocabulary_wide_product_does(
    any_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, biased: bool, norm: Norm
) -> None:
    """A (V, 2) product on the logits after each token, with and without a bias in the unembedding."""
    model = copy.deepcopy(any_model)
    if biased:
        bias = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3))
        model.get_output_embeddings().bias = nn.Parameter(bias)
    head = random_head(ElhsrConfig((4,), 32, norm=norm, features="logits"))
    done = decoded(model, tokenizer, {"probe": Elhsr.bind(head, as_lm(model))})
    expected = torch.tensor(
        [
            explicit_logits_score(model, head, PROMPTS[p], each.token_ids)
            for (p, _), each in sorted(done.items())
        ]
    )
    close(scores_of(done)[:, 0], expected)
    if biased:
        unbiased = Elhsr.bind(head, as_lm(any_model))
        wrong = replayed(as_lm(model), [unbiased], done)[:, 0]
        assert float((wrong - expected).abs().max()) > 1e-2


SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 2,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0)),
        lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.06)),
        lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=30.0)),
    ],
    ids=["granite", "cohere", "gemma2"],
)
def test_logits_that_are_no_plain_product_are_refused(make: Callable[[], PreTrainedModel]) -> None:
    """Models that scale or cap their logits, by whatever name their configuration has for it."""
    lm = as_lm(make().eval())
    with pytest.raises(UserError, match="caps or scales its logits"):
        bound(lm, ElhsrConfig((2,), 32, norm="none", features="logits"))
    bound(lm, ElhsrConfig((2,), 32))


# What the formula promises.


def test_gates_of_one_half_are_no_gate(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Zero gate weights make a plain mean of r, the gate ablation's."""
    lm = as_lm(tiny_model)
    open_head = random_head(ElhsrConfig((1, 3), 32))
    with torch.no_grad():
        open_head.weight[..., 0] = 0
        open_head.bias[0] = 0
    plain = Elhsr.bind(random_head(ElhsrConfig((1, 3), 32, gate=False)), lm)
    probes = {"zero": Elhsr.bind(open_head, lm), "off": plain, "gated": bound(lm, ElhsrConfig((1, 3), 32))}
    scores = scores_of(decoded(tiny_model, tokenizer, probes))
    close(scores[:, 0], scores[:, 1])
    assert float((scores[:, 2] - scores[:, 1]).abs().max()) > 1e-2


def test_the_last_token_counts_and_the_score_is_a_mean(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Leaving out the last token, or taking the states one token earlier, is another number; and R lies
    between the least and the greatest r."""
    config = ElhsrConfig((1, 3), 32)
    done = decoded(tiny_model, tokenizer, {"probe": bound(as_lm(tiny_model), config)}, stop="")
    for (prompt, _), each in done.items():
        whole = [*PROMPTS[prompt], *each.token_ids]
        gates, rewards = concatenated(
            random_head(config), read_alone(tiny_model, whole[:-LENGTH], whole[-LENGTH:])[0]
        )
        score = each.scores["probe"]
        assert float(rewards.min()) < score < float(rewards.max())
        assert abs(weighted_mean(gates[:-1], rewards[:-1]) - score) > 1e-4
        states, _ = read_alone(tiny_model, whole[: -LENGTH - 1] or whole[:0], whole[-LENGTH - 1 :])
        early = weighted_mean(*(part[:-1] for part in concatenated(random_head(config), states)))
        assert abs(early - score) > 1e-4


def test_an_end_token_counts_too(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A text that ends itself is scored with its end token, which costs that row one more forward."""
    config = ElhsrConfig((1, 3), 32)
    done = decoded(tiny_model, tokenizer, {"probe": bound(as_lm(tiny_model), config)})
    ended = [(p, each) for (p, _), each in done.items() if each.finish_reason == "stop"]
    assert ended
    for prompt, each in ended:
        states, _ = read_alone(tiny_model, PROMPTS[prompt], each.token_ids)
        expected = weighted_mean(*concatenated(random_head(config), states))
        assert each.scores["probe"] == pytest.approx(expected, rel=1e-5, abs=1e-5)


# Company changes nothing.


def mixed(lm: CausalLM) -> dict[str, Probe]:
    return {
        "elhsr": bound(lm, ElhsrConfig((0, 2, 4), 32)),
        "path": PathReward(tiny_arm(lm)),
        "logprob": MeanLogProbability(),
        "certainty": SelfCertainty(),
    }


@pytest.mark.parametrize("prompt", [0, 1, 2])
def test_padding_batch_and_fork_change_nothing(
    any_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: int
) -> None:
    """A row alone, unpadded and not forked, has the tokens and scores it has among all others."""
    probes = mixed(as_lm(any_model))
    together = decoded(any_model, tokenizer, probes)
    for sample in range(SAMPLES):
        alone = decoded(any_model, tokenizer, probes, prompts=[prompt], samples=[sample])[prompt, sample]
        among = together[prompt, sample]
        assert alone.token_ids == among.token_ids
        assert alone.finish_reason == among.finish_reason
        assert dict(alone.scores) == pytest.approx(dict(among.scores), rel=1e-5, abs=1e-5)


def test_each_probe_beside_others_is_as_alone(
    any_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """What the others read (taps, logits, an end token more) reaches no other probe's score."""
    probes = mixed(as_lm(any_model))
    together = decoded(any_model, tokenizer, probes)
    replay = replayed(as_lm(any_model), [*probes.values()], together)
    close(replay, scores_of(together))
    for name, probe in probes.items():
        alone = decoded(any_model, tokenizer, {name: probe})
        for key, each in alone.items():
            assert each.token_ids == together[key].token_ids
            assert each.scores[name] == pytest.approx(together[key].scores[name], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("summary", ["none", "text", "generated"])
def test_a_steering_reward_sees_every_reading_once(
    any_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, summary: str
) -> None:
    """Beside probes of either kind, r of every token is what it is without; a running mean would tell."""
    lm = as_lm(any_model)
    steering = [WeightedReward("kind", tiny_arm(lm, summary=summary), 2.0)]
    bare = decoded(any_model, tokenizer, {}, rewards=steering)
    probes = {**mixed(lm), "path": PathReward(tiny_arm(lm, summary=summary))}
    probed = decoded(any_model, tokenizer, probes, rewards=steering)
    plain = decoded(any_model, tokenizer, probes)
    assert any(plain[key].token_ids != each.token_ids for key, each in probed.items())
    for key, each in probed.items():
        assert each.token_ids == bare[key].token_ids
        assert each.token_rewards["kind"] == pytest.approx(
            bare[key].token_rewards["kind"], rel=1e-5, abs=1e-5
        )
        assert each.scores["path"] == pytest.approx(each.token_rewards["kind"][-1], rel=1e-5, abs=1e-5)
    close(replayed(lm, [*probes.values()], probed), scores_of(probed))


def test_a_path_score_is_the_rewards_last_word(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Unsteered, it is the last r that the reward gives along the text, teacher-forced."""
    lm = as_lm(tiny_model)
    arm = tiny_arm(lm)
    done = decoded(tiny_model, tokenizer, {"path": PathReward(arm)})
    for (prompt, _), each in done.items():
        assert each.reward is None
        (path,) = score_path(lm, arm, [PROMPTS[prompt]], [each.token_ids])
        assert each.scores["path"] == pytest.approx(path[-1], rel=1e-5, abs=1e-5)


def rows_read(model: PreTrainedModel) -> list[int]:
    """Return a list to which every forward pass adds its number of tokens, from now on."""
    seen: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0].numel()))
    return seen


def test_what_a_probe_costs(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """One token more a row where taps are read, and none where only logits are."""
    model = copy.deepcopy(tiny_model)
    lm, seen = as_lm(model), rows_read(model)
    prompt = len(PROMPTS) * max(map(len, PROMPTS))
    for probes, more in (
        ({}, 0),
        ({"p": MeanLogProbability()}, 0),
        ({"p": bound(lm, ElhsrConfig((2,), 32))}, 1),
    ):
        seen.clear()
        done = decoded(model, tokenizer, probes)
        assert sum(seen) == prompt + sum(len(each.token_ids) - 1 + more for each in done.values())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_text_may_fill_the_context(tokenizer: PreTrainedTokenizerBase, architecture: str) -> None:
    """The last token is read at the last position that there is, in the decode and in the replay."""
    lm = as_lm(ARCHITECTURES[architecture](), tokenizer)
    prompt = [5 + i for i in range(CONTEXT - LENGTH)]
    probes = {"p": bound(lm, ElhsrConfig((1, 4), 32))}
    job = Job([prompt], [(0, 0), (0, 1)], [0], [], SAMPLED, LENGTH, 0, probes=probes)
    done = list(HFBackend(lm, tokenizer).complete(job))
    assert [len(each.token_ids) for each in done] == [LENGTH, LENGTH]
    ((_, scores),) = score_samples(lm, [*probes.values()], [prompt], [[each.token_ids for each in done]])
    close(torch.tensor([[each.scores["p"]] for each in done]), scores)


def test_many_tokens_at_once_after_padded_prompts(any_model: PreTrainedModel) -> None:
    """`LMSession.read`, forked and ragged on either side: taps and logits as of each text alone."""
    session = as_lm(any_model).start((0, 2, 4))
    given, ragged = [[7, 8, 9, 10], [250], [40, 41], [1, 2, 3]], [0, 0, 1, 2]
    with torch.inference_mode():
        session.prefill(*left_pad(PROMPTS))
        session.select(torch.tensor(ragged))
        taps, logits = session.read(*right_pad(given), logits=True)
    assert logits is not None
    for row, (prompt, tokens) in enumerate(zip(ragged, given, strict=True)):
        states, expected = read_alone(any_model, PROMPTS[prompt], tokens)
        torch.testing.assert_close(logits[row, : len(tokens)], expected, rtol=1e-4, atol=1e-4)
        for layer, tap in taps.items():
            torch.testing.assert_close(tap[row, : len(tokens)], states[layer], rtol=1e-4, atol=1e-4)


# On disk.


@pytest.mark.parametrize(
    "config",
    [
        ElhsrConfig((1, 3), 32, gate=False, norm="none"),
        ElhsrConfig((4,), 32, norm="none", features="logits"),
        ElhsrConfig((2, 4), 32, likelihood=True),
    ],
)
def test_a_saved_probe_says_the_same(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, config: ElhsrConfig
) -> None:
    lm = as_lm(tiny_model, tokenizer)
    save_pretrained(random_head(config), tmp_path / "probe", lm.identity, {})
    loaded = load_reward(str(tmp_path / "probe"), lm)
    assert isinstance(loaded, Probe)
    done = decoded(tiny_model, tokenizer, {"saved": loaded, "made": bound(lm, config)})
    close(scores_of(done)[:, 0], scores_of(done)[:, 1])


def test_a_probe_does_not_steer(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """By object or by directory, in `generate` and inside transformers: it is said that it cannot."""
    lm = as_lm(tiny_model, tokenizer)
    save_pretrained(random_head(ElhsrConfig((1, 3), 32)), tmp_path / "probe", lm.identity, {})
    decoder = Decoder(LoadedModel(lm, tokenizer))
    for reward in (bound(lm, ElhsrConfig((1, 3), 32)), str(tmp_path / "probe"), [tmp_path / "probe"]):
        for beta in (1.0, -1.0):
            with pytest.raises(UserError, match="cannot steer tokens"):
                decoder.generate("Rain", reward=reward, beta=beta)
    with pytest.raises(UserError, match="cannot steer tokens"):
        tiny_model.generate(
            torch.tensor([[5, 6]]),
            custom_generate=custom_generate,
            reward=str(tmp_path / "probe"),
            max_new_tokens=3,
        )


def test_digests_tell_weights_apart(
    tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    lm, digests = as_lm(tiny_model, tokenizer), set()
    for seed in (0, 1):
        head = random_head(ElhsrConfig((1, 3), 32), seed=seed)
        save_pretrained(head, tmp_path / str(seed), identify("tiny", tiny_model, tokenizer), {})
        digests |= {Elhsr.from_pretrained(tmp_path / str(seed), lm).digest for _ in range(2)}
    assert len(digests) == 2
