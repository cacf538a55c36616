"""`Decoder`, the Python entrance: what goes in, what comes out, and that the ways to it agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from decoder.contracts import Completion, TokenEvent, UserError
from decoder.decoder import Decoder, Generation
from decoder.endings import TextStream
from decoder.models import LoadedModel
from decoder.replay import score_path
from prompts.reading import Prompt
from rewards import load
from tests.heads import Favours, as_lm, save_arm, tiny_arm
from tests.tiny import BOS, CONTEXT, EOS, tiny_gpt2, tiny_llama, tiny_tokenizer

TEXTS = ["The kettle sang", "A", "She thought the film was bad, but"]
CHAT = [{"role": "user", "content": "Hello"}]


def make(model: PreTrainedModel, *, adds_bos: bool = False) -> Decoder:
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    return Decoder(LoadedModel(as_lm(model, tokenizer), tokenizer))


@pytest.fixture(scope="module")
def decoder(tiny_model: PreTrainedModel) -> Decoder:
    return make(tiny_model)


@pytest.fixture(scope="module")
def arm_dir(tiny_model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved reward that fits the tiny model."""
    return save_arm(tmp_path_factory.mktemp("heads") / "kind", tiny_model, tiny_tokenizer())


def tokens(found: Sequence[Generation]) -> list[list[tuple[int, ...]]]:
    return [[sample.token_ids for sample in generation.samples] for generation in found]


def streamed(events: Sequence[TokenEvent]) -> dict[int, list[TokenEvent]]:
    rows: dict[int, list[TokenEvent]] = {}
    for event in events:
        rows.setdefault(event.row, []).append(event)
    return rows


def test_every_form_of_prompt(decoder: Decoder) -> None:
    """A text, a conversation, `Prompt`s, lists of any of these: as many results, in order."""
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    plain, chat = decoder.generate(TEXTS, **options), decoder.generate(CHAT, **options)
    assert [generation.prompt.text for generation in plain] == TEXTS
    assert len(chat) == 1
    assert chat[0].prompt.messages == tuple(CHAT)
    assert tokens(decoder.generate(TEXTS[0], **options)) == tokens(plain[:1])
    assert tokens(decoder.generate({"text": TEXTS[1]}, **options)) == tokens(plain[1:2])
    prompts = [Prompt("x", text=TEXTS[0]), TEXTS[1], CHAT, {"messages": CHAT}]
    mixed = decoder.generate(prompts, **options)
    assert tokens(mixed) == tokens([*plain[:2], *chat, *chat])
    assert [generation.prompt.id for generation in mixed] == ["x", "1", "2", "3"]
    assert mixed[0].text == mixed[0].samples[0].text


@pytest.mark.parametrize("prompts", [[], "", " ", [""], 7, [7], [[]], {"role": "user"}, [{"prompt": "a"}]])
def test_what_is_no_prompt(decoder: Decoder, prompts: Any) -> None:
    """Nothing, emptiness and other shapes are refused in one line."""
    with pytest.raises(UserError) as caught:
        decoder.generate(prompts)
    assert "\n" not in str(caught.value)


def test_a_completion_says_what_it_is(decoder: Decoder) -> None:
    """Text is that of the ids, the finish reason is true, and the rewards belong to the tokens."""
    arm = tiny_arm(decoder.lm)
    found = decoder.generate(TEXTS, reward=arm, beta=2.0, max_new_tokens=6, num_return_sequences=2)
    assert [[s.sample for s in g.samples] for g in found] == [[0, 1]] * 3
    assert [{s.prompt for s in g.samples} for g in found] == [{0}, {1}, {2}]
    for sample in (s for g in found for s in g.samples):
        text = decoder.tokenizer.decode(sample.token_ids, skip_special_tokens=True)
        assert sample.text == text
        ended = sample.token_ids[-1] == EOS
        assert sample.finish_reason == ("stop" if ended else "length")
        assert ended or len(sample.token_ids) == 6
        (values,) = sample.token_rewards.values()
        assert len(values) == len(sample.token_ids)
        assert all(value <= 0 for value in values)
        assert sample.reward == pytest.approx(2.0 * values[-1])
        assert sample.rewards == {"TapArm": values[-1]}
        assert sample.trace is None
    plain = decoder.generate(TEXTS[0], max_new_tokens=2)[0].samples[0]
    assert (plain.reward, plain.token_rewards) == (None, {})


def test_the_end_token_stops_and_is_not_shown() -> None:
    """A row that draws the end token stops there: kept in the ids, left out of the text."""
    decoder = make(tiny_llama())
    wants_end = Favours((EOS,))
    sample = decoder.generate(TEXTS[0], reward=wants_end, beta=1e4, reward_top_k=300, max_new_tokens=5)[
        0
    ].samples[0]
    assert (sample.token_ids, sample.text, sample.finish_reason) == ((EOS,), "", "stop")
    (event,) = decoder.stream(TEXTS[0], reward=wants_end, beta=1e4, reward_top_k=300, max_new_tokens=5)
    assert (event.text, event.finish_reason) == ("", "stop")


@pytest.mark.parametrize(
    "form", ["name", "directory", "directory:beta", "object", "mapping", "list", "own beta"]
)
def test_every_form_of_reward(
    decoder: Decoder, arm_dir: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """A reward by name, directory or object, with its beta beside it or inside it: the same tokens."""
    monkeypatch.setattr(load, "SHIPPED", arm_dir.parent)
    forms: dict[str, tuple[Any, Any]] = {
        "name": ("kind", 2.0),
        "directory": (arm_dir, 2.0),
        "directory:beta": (f"{arm_dir}:2", None),
        "object": (tiny_arm(decoder.lm), 2),
        "mapping": ({"kind": 2.0}, None),
        "list": (["kind"], [2.0]),
        "own beta": ([f"{arm_dir}:2.0"], 7.0),
    }
    reward, beta = forms[form]
    found = decoder.generate(TEXTS, reward=reward, beta=beta, max_new_tokens=5)
    expected = decoder.generate(TEXTS, reward=tiny_arm(decoder.lm), beta=2.0, max_new_tokens=5)
    assert tokens(found) == tokens(expected)
    assert tokens(found) != tokens(decoder.generate(TEXTS, top_k=20, max_new_tokens=5))
    names = {name for g in found for s in g.samples for name in s.token_rewards}
    assert names == ({"TapArm"} if form == "object" else {"kind"})


def test_several_rewards_have_their_names(decoder: Decoder, arm_dir: Path) -> None:
    """Each reward's values have a name of their own, also when one is used twice; the sum is of |beta| r."""
    found = decoder.generate(TEXTS[0], reward=[arm_dir, f"{arm_dir}:-3"], beta=2.0, max_new_tokens=4)
    sample = found[0].samples[0]
    assert list(sample.token_rewards) == ["kind", "kind#2"]
    for is_kind, is_not in zip(*sample.token_rewards.values(), strict=True):
        assert math.exp(is_kind) + math.exp(is_not) == pytest.approx(1, abs=1e-5)
    assert sample.reward == pytest.approx(2 * sample.rewards["kind"] + 3 * sample.rewards["kind#2"])


def test_beta_turns_the_text(decoder: Decoder) -> None:
    """More beta, more reward; negative beta asks for the opposite by log P(not attribute)."""
    arm = tiny_arm(decoder.lm)
    token_ids = [decoder.tokenizer(text).input_ids for text in TEXTS]

    def mean_reward(beta: float) -> float:
        found = decoder.generate(TEXTS, reward=arm, beta=beta, max_new_tokens=6, num_return_sequences=8)
        done = [list(sample.token_ids) for generation in found for sample in generation.samples]
        prompts = [ids for ids in token_ids for _ in range(8)]
        ends = [values[-1] for values in score_path(decoder.lm, arm, prompts, done)]
        return sum(map(math.exp, ends)) / len(ends)

    assert mean_reward(-4.0) + 0.05 < mean_reward(0.0) < mean_reward(4.0) - 0.05
    opposite = decoder.generate(TEXTS, reward=arm.opposite(), beta=3.0, max_new_tokens=6)
    assert tokens(decoder.generate(TEXTS, reward=arm, beta=-3.0, max_new_tokens=6)) == tokens(opposite)


def test_beta_zero_is_the_plain_model(decoder: Decoder) -> None:
    """At beta 0 no token changes, greedy or sampled, and no reward is reported."""
    arm = tiny_arm(decoder.lm)
    for options in ({"do_sample": False}, {"temperature": 2.0, "num_return_sequences": 3}):
        plain = decoder.generate(TEXTS, max_new_tokens=6, **options)
        zero = decoder.generate(TEXTS, max_new_tokens=6, reward=arm, beta=0, **options)
        assert zero == plain


def test_a_reward_leaves_no_state(decoder: Decoder, arm_dir: Path) -> None:
    """Rewards may be swapped between calls: the third call gives what the first gave."""
    other = tiny_arm(decoder.lm, (2, 4), seed=5)
    first = decoder.generate(TEXTS, reward=arm_dir, beta=2.0, max_new_tokens=6)
    second = decoder.generate(TEXTS, reward=other, beta=2.0, max_new_tokens=6)
    assert decoder.generate(TEXTS, reward=arm_dir, beta=2.0, max_new_tokens=6) == first
    assert tokens(second) != tokens(first)
    assert decoder.load_reward(arm_dir) is decoder.load_reward(str(arm_dir))


def test_samples_depend_on_seed_and_sample_not_on_the_batch(decoder: Decoder) -> None:
    """Any batch size, any company, any number of samples: each sample is itself; another seed is another."""
    arm = tiny_arm(decoder.lm)

    def sampled(texts: Sequence[str], **options: Any) -> list[list[tuple[int, ...]]]:
        return tokens(decoder.generate(texts, reward=arm, max_new_tokens=6, **options))

    whole = sampled(TEXTS, num_return_sequences=5)
    for batch_size in (1, 2, 7):
        assert sampled(TEXTS, num_return_sequences=5, batch_size=batch_size) == whole
    assert sampled(TEXTS[1:], num_return_sequences=2) == [samples[:2] for samples in whole[1:]]
    assert sampled(TEXTS, num_return_sequences=5, seed=1) != whole
    assert sampled(TEXTS, seed=-1) == sampled(TEXTS, seed=-1) != sampled(TEXTS, seed=1)
    assert len(set(whole[0])) > 1


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ({"max_new_token": 4}, "'max_new_token': did you mean max_new_tokens"),
        ({"repetition_penalty": 1.2}, "unknown generation argument 'repetition_penalty'"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"reward_top_k": 301}, "reward_top_k is 301: the model has 300"),
        ({"top_k": 301}, "top_k is 301"),
        ({"beta": 2.0}, "beta is 2.0, but there is no reward"),
        ({"reward": "no-such-reward"}, "'no-such-reward'"),
    ],
)
def test_arguments_that_are_refused(decoder: Decoder, argument: dict[str, Any], said: str) -> None:
    """A wrong name or number is named, with the nearest one or the range, by `generate` and `stream`."""
    with pytest.raises(UserError, match=said):
        decoder.generate(TEXTS, **argument)
    with pytest.raises(UserError, match=said):
        list(decoder.stream(TEXTS[0], **argument))


def test_generation_config_is_honoured(decoder: Decoder) -> None:
    """A config gives the numbers, arguments win over it, and its silence on do_sample means greedy."""
    config = GenerationConfig(max_new_tokens=5, do_sample=True, temperature=2.0, num_return_sequences=2)
    named = decoder.generate(TEXTS, max_new_tokens=5, temperature=2.0, num_return_sequences=2)
    assert decoder.generate(TEXTS, generation_config=config) == named
    greedy = decoder.generate(TEXTS, max_new_tokens=5, do_sample=False)
    assert decoder.generate(TEXTS, generation_config=GenerationConfig(max_new_tokens=5)) == greedy
    assert (
        decoder.generate(TEXTS, generation_config=config, do_sample=False, num_return_sequences=1) == greedy
    )
    own = decoder.lm.model.generation_config
    assert decoder.generate(TEXTS, generation_config=own, max_new_tokens=5) == greedy


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"repetition_penalty": 1.3}, "repetition_penalty"),
        ({"stop_strings": ["."]}, "stop_strings"),
        ({"max_length": 30}, "max_length"),
        ({"eos_token_id": [EOS, 50]}, r"ends texts at \[1, 50\], the model at \[1\]"),
        ({"eos_token_id": 50}, "ends texts at 50"),
    ],
)
def test_generation_config_is_refused(decoder: Decoder, setting: dict[str, Any], said: str) -> None:
    """What this loop cannot honour is refused by name, never dropped."""
    with pytest.raises(UserError, match=said):
        decoder.generate(TEXTS, generation_config=GenerationConfig(max_new_tokens=3, **setting))


@pytest.mark.parametrize("adds_bos", [False, True])
def test_never_two_bos(tiny_model: PreTrainedModel, adds_bos: bool) -> None:
    """The template writes a BOS, tokenizers may add one, people may type one: there is one at most."""
    decoder = make(tiny_model, adds_bos=adds_bos)
    config = decoder._configure({})
    prompts = [Prompt("0", text="Hello"), Prompt("1", text="<s>Hello"), Prompt("2", messages=tuple(CHAT))]
    plain, typed, chat = decoder.tokenise(prompts, config, chat=False)
    assert plain.count(BOS) == int(adds_bos)
    assert typed.count(BOS) == chat.count(BOS) == 1
    assert chat[0] == typed[0] == BOS


def test_the_chat_template_is_applied_once(decoder: Decoder) -> None:
    """`chat` makes a plain text a user's message; a conversation passes the template anyway."""
    config = decoder._configure({})
    expected = decoder.tokenizer("<s>user: Hello\nassistant:").input_ids
    prompts = [Prompt("0", text="Hello"), Prompt("1", messages=tuple(CHAT))]
    assert decoder.tokenise(prompts, config, chat=True) == [expected, expected]
    assert decoder.tokenise(prompts[1:], config, chat=False) == [expected]


def test_a_model_without_a_chat_template(tiny_model: PreTrainedModel) -> None:
    """Conversations need a template; without one they are refused, and plain texts still work."""
    decoder = make(tiny_model)
    decoder.tokenizer.chat_template = None
    for prompts, chat in ((CHAT, False), (TEXTS, True)):
        with pytest.raises(UserError, match="no chat template"):
            decoder.generate(prompts, chat=chat)
    assert decoder.generate(TEXTS, max_new_tokens=1)


def test_a_template_that_refuses_names_the_prompt(tiny_model: PreTrainedModel) -> None:
    """Templates refuse roles they do not know: that is the user's to mend, not a traceback."""
    decoder = make(tiny_model)
    decoder.tokenizer.chat_template = "{{ raise_exception('only user, please') }}"
    with pytest.raises(UserError, match=r"prompt 0: .*only user, please"):
        decoder.generate(CHAT)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_the_context_is_never_exceeded(build: Any) -> None:
    """Prompt and new tokens may fill the context to the last position; one more is refused."""
    decoder = make(build())
    ids = [40] * (CONTEXT - 8)
    text = decoder.tokenizer.decode(ids)
    n = len(decoder.tokenizer(text).input_ids)
    sample = decoder.generate([text, "A"], max_new_tokens=CONTEXT - n)[0].samples[0]
    assert sample.finish_reason == "stop" or len(sample.token_ids) == CONTEXT - n
    with pytest.raises(UserError, match=rf"prompt 1: prompt '1' has {n} tokens; .*context of {CONTEXT}"):
        decoder.generate(["A", text], max_new_tokens=CONTEXT - n + 1)


def test_trace_is_what_the_model_says(decoder: Decoder) -> None:
    """Candidates, base log-probabilities, rewards, scores and ranks, each from a forward pass of its own."""
    arm = tiny_arm(decoder.lm)
    options: dict[str, Any] = {"max_new_tokens": 4, "reward_top_k": 6, "trace": True}
    done = decoder.generate(TEXTS, reward=[arm, Favours(tuple(range(150)))], beta=[2.0, -0.5], **options)
    for generation in done:
        ids = decoder.tokenizer(generation.prompt.text).input_ids
        (sample,) = generation.samples
        for token, step in zip(sample.token_ids, sample.trace or (), strict=True):
            check_step(decoder, ids, token, step)
            ids = [*ids, token]


def check_step(decoder: Decoder, ids: list[int], token: int, step: Any) -> None:
    with torch.no_grad():
        logits = decoder.lm.model(input_ids=torch.tensor([ids])).logits[0, -1]
    logprobs, candidates = logits.log_softmax(-1), logits.topk(6).indices.tolist()
    assert step["candidate_ids"] == candidates
    assert step["candidates"] == [decoder.tokenizer.decode([v]) for v in candidates]
    assert (step["token_id"], step["token"]) == (token, decoder.tokenizer.decode([token]))
    assert step["base_logprobs"] == pytest.approx(logprobs[candidates].tolist(), abs=1e-4)
    kind, favoured = step["rewards"]["TapArm"], step["rewards"]["Favours"]
    assert favoured == [-1.0 if v < 150 else 0.0 for v in candidates]  # beta < 0: the opposite's
    scores = [float(logits[v]) + 2 * a + 0.5 * b for v, a, b in zip(candidates, kind, favoured, strict=True)]
    assert step["scores"] == pytest.approx(scores, abs=1e-4)
    place = candidates.index(token)
    assert step["rank_before"] == place + 1
    assert step["rank_after"] == 1 + sum(score > scores[place] for score in scores)


def test_trace_without_a_reward(decoder: Decoder) -> None:
    """A plain decode lists the likeliest tokens; a drawn token outside the list has no rank."""
    done = decoder.generate(TEXTS, max_new_tokens=6, temperature=50.0, trace=True)
    steps = [step for g in done for step in g.samples[0].trace or ()]
    for step in steps:
        listed: Any = step["candidate_ids"]
        assert len(listed) == 20
        assert step["rewards"] == {}
        known = step["token_id"] in listed
        rank = listed.index(step["token_id"]) + 1 if known else None
        assert (step["rank_before"], step["rank_after"]) == (rank, rank)
    assert any(step["rank_before"] is None for step in steps)
    done = decoder.generate(TEXTS, max_new_tokens=2, top_k=3, trace=True)
    assert {len(step["candidate_ids"]) for g in done for step in g.samples[0].trace or ()} == {3}


def test_the_path_scored_again_is_the_path(any_model: PreTrainedModel) -> None:
    """Rewards seen while decoding are those of the finished texts read again, ragged as they are."""
    decoder = make(any_model)
    for summary in ("text", "generated", "none"):
        arm = tiny_arm(decoder.lm, summary=summary)
        whole = decoder.generate(TEXTS, reward=arm, beta=2.0, max_new_tokens=6)
        decoder.backend.endings.stop_ids = torch.tensor([whole[0].samples[0].token_ids[2]])
        samples = [g.samples[0] for g in decoder.generate(TEXTS, reward=arm, beta=2.0, max_new_tokens=6)]
        assert len({len(sample.token_ids) for sample in samples}) > 1
        again = score_path(
            decoder.lm,
            arm,
            [decoder.tokenizer(text).input_ids for text in TEXTS],
            [list(sample.token_ids) for sample in samples],
        )
        for sample, values in zip(samples, again, strict=True):
            assert values == pytest.approx(sample.token_rewards["TapArm"], abs=1e-4)


def test_a_path_that_fills_the_context() -> None:
    """Scoring a short text beside a full one reads no position past the context (GPT-2 has no more)."""
    decoder = make(tiny_gpt2())
    arm = tiny_arm(decoder.lm)
    prompts, completions = [[40] * 120, [41] * 4], [[7] * 8, [8] * 124]
    together = score_path(decoder.lm, arm, prompts, completions)
    assert [len(row) for row in together] == [8, 124]
    for row, prompt, completion in zip(together, prompts, completions, strict=True):
        assert row == pytest.approx(score_path(decoder.lm, arm, [prompt], [completion])[0], abs=1e-4)


def test_stream_is_generate(decoder: Decoder) -> None:
    """The events of a row are its completion: tokens, rewards, finish reason, and the joined text."""
    arm = tiny_arm(decoder.lm)
    options: dict[str, Any] = {"reward": arm, "beta": 2.0, "max_new_tokens": 24, "num_return_sequences": 6}
    rows = streamed(list(decoder.stream(TEXTS[2], **options)))
    (generation,) = decoder.generate(TEXTS[2], **options)
    assert sorted(rows) == list(range(6))
    for sample in generation.samples:
        events = rows[sample.sample]
        assert tuple(event.token_id for event in events) == sample.token_ids
        assert "".join(event.text for event in events) == sample.text
        assert [event.index for event in events] == list(range(len(events)))
        assert [event.rewards["TapArm"] for event in events] == list(sample.token_rewards["TapArm"])
        assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + [
            sample.finish_reason
        ]


def test_stream_takes_one_prompt(decoder: Decoder) -> None:
    """Events carry no prompt, so several prompts are refused rather than mixed."""
    with pytest.raises(UserError, match="stream was given 3 prompts"):
        list(decoder.stream(TEXTS))


def test_stream_beside_the_plain_model(decoder: Decoder) -> None:
    """Plain and steered rows share candidates and numbers; each is what it would be alone."""
    arm = tiny_arm(decoder.lm)
    options: dict[str, Any] = {"max_new_tokens": 5, "num_return_sequences": 3, "reward_top_k": 15}
    rows = streamed(list(decoder.stream(TEXTS[0], reward=arm, beta=2.0, unsteered=True, **options)))
    assert sorted(rows) == list(range(6))
    (steered,) = decoder.generate(TEXTS[0], reward=arm, beta=2.0, trace=True, **options)
    (plain,) = decoder.generate(TEXTS[0], top_k=15, **options)
    for number in range(3):
        assert tuple(e.token_id for e in rows[number]) == plain.samples[number].token_ids
        assert tuple(e.token_id for e in rows[number + 3]) == steered.samples[number].token_ids
        check_shifts(rows[number + 3], steered.samples[number])
    assert all(event.shift != 0 for events in rows.values() for event in events)
    bare = list(decoder.stream(TEXTS[0], max_new_tokens=3))
    assert [event.shift for event in bare] == [0.0] * len(bare)


def check_shifts(events: Sequence[TokenEvent], sample: Completion) -> None:
    for event, step in zip(events, sample.trace or (), strict=True):
        base, steered = (torch.tensor(step[key]).log_softmax(-1) for key in ("base_logprobs", "scores"))
        place = step["candidate_ids"].index(event.token_id)  # type: ignore[attr-defined]
        assert event.shift == pytest.approx(float(steered[place] - base[place]), abs=1e-4)


@pytest.mark.parametrize("text", ["naïve café", "漢字かな", "🙂👩‍👩‍👧 ok", "a\N{REPLACEMENT CHARACTER}b"])
def test_characters_split_over_tokens_are_shown_whole(decoder: Decoder, text: str) -> None:
    """One token a byte: no piece holds half a character, and nothing is lost."""
    ids = decoder.tokenizer(text).input_ids
    stream = TextStream(decoder.tokenizer)
    pieces = [stream.add(token, last=i == len(ids) - 1) for i, token in enumerate(ids)]
    assert "".join(pieces) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
        assert pieces[-1], "the last character came too early"


def test_a_text_cut_inside_a_character(decoder: Decoder) -> None:
    """The last token shows what there is, as the completion's text does."""
    ids = decoder.tokenizer("ok 漢").input_ids[:-1]
    stream = TextStream(decoder.tokenizer)
    pieces = [stream.add(token, last=i == len(ids) - 1) for i, token in enumerate(ids)]
    assert "".join(pieces) == decoder.tokenizer.decode(ids)


def test_spaces_survive_tokens_that_are_not_shown() -> None:
    """Sentence-piece decoders drop a text's first space: a special token must not make one the first."""
    vocabulary = {"<s>": 0, "▁one": 1, "▁two": 2}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    raw.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")
    ids = [1, 2, 0, 2, 0, 0, 1]
    stream = TextStream(tokenizer)
    pieces = [stream.add(token, last=i == len(ids) - 1) for i, token in enumerate(ids)]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True) == "one two two one"
