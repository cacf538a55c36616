"""The ARM with its own backbone: what it says is what reading every text anew says, however it is decoded."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from decoder.contracts import Reading, TokenReward, UserError
from decoder.decoder import Decoder
from decoder.lm import CausalLM
from decoder.models import load_model
from decoder.replay import score_path
from rewards.backbone import BackboneConfig, load
from rewards.backbone_arm import BackboneArm
from rewards.backbone_heads import ActionValueHead
from rewards.backbone_session import Backbone, with_bos
from rewards.load import load_reward
from rewards.path_reward import PathReward
from tests.backbones import (
    HIDDEN,
    PROMPTS,
    assert_rewards,
    decode_steps,
    save_reward,
    state,
    tiny_backbone,
    tiny_config,
    widen,
)
from tests.heads import as_lm, pad
from tests.tiny import ARCHITECTURES, BOS, CONTEXT, VOCAB, save_tiny, tiny_llama, tiny_tokenizer

NOTHING = Reading(torch.empty(3, 0), {}, torch.ones(3, 1).bool())  # such a reward reads nothing of it
ROWS = (0, 0, 1, 2, 2)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def lm(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> CausalLM:
    return as_lm(tiny_model, tokenizer)


def make_arm(architecture: str = "llama", rank: int | None = None, **changes: Any) -> BackboneArm:
    backbone = tiny_backbone(architecture)
    return BackboneArm.bind(
        widen(ActionValueHead(HIDDEN, len(changes.get("outputs", ("good",))), rank)),
        backbone,
        tiny_config(backbone, **changes),
        "made",
    )


def matrix(head: ActionValueHead, output: int = 0) -> Tensor:
    """Return W (d, d) of one output, multiplied out where it has factors."""
    weight = head.state[output]
    return weight if head.vocabulary is None else head.vocabulary[output].T @ weight


def naive_value(
    head: ActionValueHead, model: PreTrainedModel, text: list[int], token: int, output: int = 0
) -> float:
    """Return <w, h> + <W h, e(v)>, term by term, h from the whole text read anew."""
    h, e = state(model, text), model.get_output_embeddings().weight[token]
    return float(head.baseline.weight[output] @ h + (matrix(head, output) @ h) @ e)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_is_uncached(lm: CausalLM, architecture: str, rank: int | None) -> None:
    """In a ragged batch that is forked and loses rows, every reward is log P of the text read whole."""
    arm = make_arm(architecture, rank)
    model = arm.backbone.lm.model

    def naive(text: list[int], token: int) -> float:
        return -math.log1p(math.exp(-naive_value(arm.head, model, text, token)))

    assert_rewards(decode_steps(lm, arm, ROWS), ROWS, naive)


def test_replayed_is_decoded(lm: CausalLM) -> None:
    """Teacher-forced along the finished texts, the reward is the decode's."""
    arm = make_arm()
    steps, completions = decode_steps(lm, arm, (0, 1, 2)), [[] for _ in PROMPTS]
    seen: list[list[float]] = [[] for _ in PROMPTS]
    for step in steps:
        for i, row in enumerate(step.rows.tolist()):
            completions[row].append(int(step.token_ids[i]))
            seen[row].append(float(step.rewards[i, step.chosen[i], 0]))
    again = score_path(lm, arm, PROMPTS, completions)
    for left, right in zip(seen, again, strict=True):
        assert left == pytest.approx(right, abs=3e-5)


def test_the_gathered_rows_are_the_full_product() -> None:
    """Scoring candidates is scoring the whole vocabulary and looking them up."""
    arm = make_arm()
    ids = torch.tensor([[3, 299, 0], [7, 7, 8], [1, 2, 3]])
    found = arm.start(*pad(PROMPTS)).score(ids, NOTHING)
    states = torch.stack([state(arm.backbone.lm.model, text) for text in PROMPTS])
    everything = arm.to_reward(arm.head(states, arm.backbone.lm.output_embeddings)[..., 0])
    torch.testing.assert_close(found, everything.gather(1, ids), rtol=0, atol=3e-5)


class Largest(TorchDispatchMode):
    """Remembers the most numbers any operation gave out."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_the_vocabulary_is_never_scored_whole() -> None:
    """No tensor of a step's scoring grows with the vocabulary: (B, K, d) is the largest."""
    session = make_arm(rank=4).start(*pad(PROMPTS))
    with Largest() as seen:
        session.score(torch.tensor([[3, 4], [5, 6], [7, 8]]), NOTHING)
    assert seen.numel == 3 * 2 * HIDDEN


def test_full_is_rank_d() -> None:
    """A W with factors of rank d and the same product is the same reward."""
    full, factored = make_arm(), make_arm(rank=HIDDEN)
    factored.head.vocabulary.copy_(torch.randn(1, HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(1)))
    factored.head.state.copy_(
        torch.linalg.solve(factored.head.vocabulary.double().mT, full.head.state.double())
    )
    factored.head.baseline.load_state_dict(full.head.baseline.state_dict())
    ids = torch.arange(30).reshape(3, 10)
    scores = [arm.start(*pad(PROMPTS)).score(ids, NOTHING) for arm in (full, factored)]
    torch.testing.assert_close(*scores, rtol=0, atol=3e-4)


@pytest.mark.parametrize(("rank", "found"), [(None, HIDDEN), (5, 6)])
def test_the_reward_matrix_has_low_rank(rank: int | None, found: int) -> None:
    """Of 90 prefixes by 300 tokens, the values have a rank within d + 1, and R + 1 for factors.

    It is d for a full W, since the baseline is linear in the same states.
    """
    arm = make_arm(rank=rank)
    texts = torch.randint(3, VOCAB, (90, 6), generator=torch.Generator().manual_seed(2))
    states = arm.backbone.start().prefill(texts, torch.ones_like(texts).bool())
    values = arm.value(states, torch.arange(VOCAB).expand(90, -1)).double()
    sizes = torch.linalg.svdvals(values)
    assert int((sizes > 1e-5 * sizes[0]).sum()) == found <= HIDDEN + 1


def test_rows_are_selected_before_they_are_scored() -> None:
    """A prompt's fork comes before its first token is scored, where a probe walks the reward."""
    arm = make_arm()
    session = arm.start(*pad(PROMPTS))
    session.select(torch.tensor([2, 0, 0, 1]))
    found = session.score(torch.tensor([[3], [4], [5], [6]]), NOTHING)[:, 0].tolist()
    texts = [PROMPTS[2], PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    values = [
        naive_value(arm.head, arm.backbone.lm.model, t, v) for t, v in zip(texts, (3, 4, 5, 6), strict=True)
    ]
    assert found == pytest.approx([-math.log1p(math.exp(-v)) for v in values], abs=3e-5)


def test_composed_with_others() -> None:
    """It adds up with other rewards and declares what it gives."""
    arm = make_arm(output="probability")
    assert arm.output == "probability"
    ids = torch.tensor([[3, 4]] * 3)
    both = (arm * 2 + make_arm("gpt2")).start(*pad(PROMPTS)).score(ids, NOTHING)
    alone = [reward.start(*pad(PROMPTS)).score(ids, NOTHING) for reward in (arm, make_arm("gpt2"))]
    torch.testing.assert_close(both, 2 * alone[0] + alone[1])


def test_the_output_used_is_the_one_named() -> None:
    """Of several outputs the config's steers, whatever stands beside it."""
    outputs = ("one", "two", "three")
    backbone = tiny_backbone()
    head = widen(ActionValueHead(HIDDEN, 3, 4))
    for index, use in enumerate(outputs):
        arm = BackboneArm.bind(head, backbone, tiny_config(backbone, outputs=outputs, use=use))
        found = arm.value(state(backbone.lm.model, PROMPTS[0])[None], torch.tensor([[9, 10]]))
        wanted = [naive_value(head, backbone.lm.model, PROMPTS[0], token, index) for token in (9, 10)]
        assert found[0].tolist() == pytest.approx(wanted, abs=3e-5)


@pytest.mark.parametrize(
    ("link", "output", "wanted", "opposite"),
    [
        (
            "sigmoid",
            "log_probability",
            lambda v: -math.log1p(math.exp(-v)),
            lambda v: -math.log1p(math.exp(v)),
        ),
        ("sigmoid", "probability", lambda v: 1 / (1 + math.exp(-v)), lambda v: 1 / (1 + math.exp(v))),
        ("clamp", "probability", lambda v: min(max(v, 0), 1), lambda v: 1 - min(max(v, 0), 1)),
        (
            "clamp",
            "log_probability",
            lambda v: math.log(max(min(v, 1), 1e-4)),
            lambda v: math.log(max(1 - max(v, 0), 1e-4)),
        ),
    ],
)
def test_links_and_outputs(
    link: Any, output: Any, wanted: Callable[[float], float], opposite: Callable[[float], float]
) -> None:
    """A value becomes r by the closed forms, and the opposite attribute's r by those of 1 - p."""
    arm = make_arm(link=link, output=output)
    values = [-1.5, -0.2, 0.0, 0.3, 0.9, 1.0, 2.0]
    found, other = (reward.to_reward(torch.tensor(values)) for reward in (arm, arm.opposite()))
    assert found.tolist() == pytest.approx([wanted(v) for v in values], abs=1e-6)
    assert other.tolist() == pytest.approx([opposite(v) for v in values], abs=1e-6)
    assert arm.opposite().opposite() == arm


def test_bos_is_put_where_there_is_none() -> None:
    """Each row gets one before its first token, whatever stands on the padding; none gets two."""
    ids, mask = with_bos(*pad([[5, 6, 7], [BOS, 8], [9]], pad_id=4), BOS)
    assert [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)] == [[0, 5, 6, 7], [0, 8], [0, 9]]
    assert mask[:, -1].all()
    same = pad([[BOS, 5], [BOS, 6]])
    assert [x.tolist() for x in with_bos(*same, BOS)] == [x.tolist() for x in same]
    assert with_bos(*same, None)[0] is same[0]


def test_a_text_beyond_the_backbone_is_refused(lm: CausalLM) -> None:
    """The context is the backbone's, BOS included; rows that left no longer count."""
    arm = make_arm("gpt2")
    fits = torch.full((2, CONTEXT - 1), 5)
    mask = torch.ones_like(fits).bool()
    mask[1, :-2] = False
    session = arm.start(fits, mask)
    with pytest.raises(UserError, match=f"reads at most {CONTEXT} tokens, and a text has {CONTEXT + 1}"):
        session.advance(torch.tensor([5, 5]))
    session.select(torch.tensor([1]))
    session.advance(torch.tensor([6]))
    found = session.score(torch.tensor([[7]]), NOTHING)
    value = naive_value(arm.head, arm.backbone.lm.model, [5, 5, 6], 7)
    assert float(found) == pytest.approx(-math.log1p(math.exp(-value)), abs=3e-5)
    with pytest.raises(UserError, match=f"a text has {CONTEXT + 1}"):
        arm.start(torch.full((1, CONTEXT), 5), torch.ones(1, CONTEXT).bool())


def test_in_every_entrance(tiny_dir: Path) -> None:
    """generate, stream and best_of_n take the object; a batch says what one prompt at a time says."""
    decoder, arm = Decoder(load_model(str(tiny_dir), dtype="float32")), make_arm("gpt2")
    assert isinstance(arm, TokenReward)
    prompts, settings = (
        ["The rain", "A quiet street and a good morning", "x"],
        {"max_new_tokens": 6, "beta": 3.0},
    )
    together = decoder.generate(prompts, reward=arm, num_return_sequences=2, **settings)
    for prompt, generation in zip(prompts, together, strict=True):
        alone = decoder.generate(prompt, reward=arm, num_return_sequences=2, **settings)[0]
        for a, b in zip(generation.samples, alone.samples, strict=True):
            assert a.token_ids == b.token_ids
            assert a.token_rewards["BackboneArm"] == pytest.approx(b.token_rewards["BackboneArm"], abs=3e-5)
    streamed = list(decoder.stream(prompts[0], reward=arm, **settings))
    first = together[0].samples[0]
    assert [event.token_id for event in streamed] == list(first.token_ids)
    assert [e.rewards["BackboneArm"] for e in streamed] == pytest.approx(
        first.token_rewards["BackboneArm"], abs=3e-5
    )
    assert first.token_ids != decoder.generate(prompts[0], max_new_tokens=6)[0].samples[0].token_ids
    (chosen,) = decoder.best_of_n(prompts[0], n=3, scorer=PathReward(arm), max_new_tokens=6)
    ids = decoder.tokenizer(prompts[0]).input_ids
    wanted = score_path(decoder.lm, arm, [ids] * 3, [list(done.token_ids) for done in chosen.samples])
    found = [next(iter(done.scores.values())) for done in chosen.samples]
    assert found == pytest.approx([path[-1] for path in wanted], abs=3e-5)


@pytest.mark.parametrize("adaptation", ["none", "lora", "full"])
def test_saved_and_loaded_is_the_same(tmp_path: Path, lm: CausalLM, adaptation: str) -> None:
    """The folder brings back head and backbone: the rewards of the model as it was trained, unmerged."""
    folder, model, head = save_reward(tmp_path, "backbone_arm", adaptation, lm, use="good")
    arm = load_reward(str(folder), lm)
    assert isinstance(arm, BackboneArm)
    assert not any(p.requires_grad for p in (*arm.backbone.lm.model.parameters(), *arm.head.parameters()))
    found = arm.start(*pad(PROMPTS)).score(torch.tensor([[3, 4]] * 3), NOTHING)
    for row, text in zip(found.tolist(), PROMPTS, strict=True):
        values = [naive_value(head, model, text, token, 1) for token in (3, 4)]
        assert row == pytest.approx([-math.log1p(math.exp(-v)) for v in values], abs=3e-5)
    assert load_reward(str(folder), lm).digest == arm.digest
    raw = load_reward(f"{folder}@probability", lm)
    assert raw.start(*pad(PROMPTS)).score(torch.tensor([[3, 4]] * 3), NOTHING).log().tolist() == [
        pytest.approx(row, abs=3e-5) for row in found.tolist()
    ]
    assert raw.digest != arm.digest
    assert len(load(folder, lm)[0].baseline.weight) == 2  # a teacher gets all outputs


def test_the_backbone_takes_the_generators_dtype(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A bfloat16 generator gets a bfloat16 backbone; rewards stay float32 and near."""
    single, half = as_lm(tiny_llama(), tokenizer), as_lm(tiny_llama().bfloat16(), tokenizer)
    folder = save_reward(tmp_path, "backbone_arm", "lora", single)[0]
    scores = []
    for generator in (single, half):
        arm = BackboneArm.from_pretrained(folder, generator)
        assert arm.backbone.lm.model.dtype == generator.model.dtype
        scores.append(arm.start(*pad(PROMPTS)).score(torch.tensor([[3, 4]] * 3), NOTHING))
    assert scores[1].dtype == torch.float32
    torch.testing.assert_close(*scores, rtol=0, atol=0.2)


def nudge(path: Path, name: str) -> None:
    """Add to the last number of a tensor in a safetensors file."""
    tensors = load_file(path)
    key = next(key for key in sorted(tensors) if name in key)
    tensors[key].view(-1)[-1] += 0.01
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("adaptation", "file", "tensor"),
    [
        ("lora", "model.safetensors", "state"),
        ("lora", "adapter/adapter_model.safetensors", "lora_B"),
        ("full", "backbone/model.safetensors", "layers.3.mlp.up_proj"),
    ],
)
def test_the_digest_covers_every_weight(
    tmp_path: Path, lm: CausalLM, adaptation: str, file: str, tensor: str
) -> None:
    """One changed number, anywhere, is another reward."""
    folder = save_reward(tmp_path, "backbone_arm", adaptation, lm)[0]
    before = load_reward(folder, lm).digest
    nudge(folder / file, tensor)
    assert load_reward(folder, lm).digest != before


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config = {key: value for key, value in {**config, **values}.items() if value != "GONE"}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "gpt2"}, "lacks or garbles"),
        ({"backbone": {"name": "gpt2"}}, "lacks or garbles 'architecture'"),
        ({"outputs": []}, "lacks or garbles"),
        ({"link": "GONE"}, "lacks or garbles 'link'"),
        ({"link": "tanh"}, "link is 'tanh', not sigmoid or clamp"),
        ({"output": "odds"}, "output is 'odds'"),
        ({"adaptation": "half"}, "adaptation is 'half', not lora or full or none"),
        ({"use": "ugly"}, "use is 'ugly', not bad or good"),
        ({"rank": 0}, "rank is 0, not a number from 1"),
        ({"rank": 5}, "weights and config disagree"),
        ({"bos_token_id": "<s>"}, "bos_token_id is '<s>'"),
        ({"kind": "rad"}, "weights and config disagree"),
    ],
)
def test_broken_configs(tmp_path: Path, lm: CausalLM, values: dict[str, Any], message: str) -> None:
    """What the file says wrong is named, with what it says."""
    folder = save_reward(tmp_path, "backbone_arm", "none", lm)[0]
    change(folder, **values)
    with pytest.raises(UserError, match=message):
        load_reward(folder, lm)


def test_defaults_of_a_config(tmp_path: Path, lm: CausalLM) -> None:
    """Without "use" the first output steers, without "output" the link tells which."""
    folder = save_reward(tmp_path, "backbone_arm", "none", lm)[0]
    for link, output in (("sigmoid", "log_probability"), ("clamp", "probability")):
        change(folder, use="GONE", output="GONE", link=link)
        config: BackboneConfig = load(folder, lm)[2]
        assert (config.use, config.output) == ("bad", output)


@pytest.mark.parametrize(
    ("adaptation", "gone", "message"),
    [
        ("lora", "adapter", "adapter_config.json is missing"),
        ("lora", "adapter/adapter_model.safetensors", "adapter_model.safetensors is missing"),
        ("full", "backbone", "backbone is missing"),
        ("full", "backbone/model.safetensors", "cannot load the model in"),
        ("lora", "model.safetensors", "cannot be read"),
    ],
)
def test_missing_files(tmp_path: Path, lm: CausalLM, adaptation: str, gone: str, message: str) -> None:
    """A folder that was not copied whole says what is not there."""
    path = save_reward(tmp_path, "backbone_arm", adaptation, lm)[0] / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        load_reward(tmp_path / "reward", lm)


def test_broken_adapters(tmp_path: Path, lm: CausalLM) -> None:
    """An adapter that lacks weights, is of other shapes, holds NaN or is no safetensors file is refused."""
    path = save_reward(tmp_path, "backbone_arm", "lora", lm)[0] / "adapter" / "adapter_model.safetensors"
    whole = load_file(path)
    name = sorted(whole)[-1]
    broken = {
        "stands in one of adapter and backbone only": {k: v for k, v in whole.items() if k != name},
        "size mismatch": {**whole, name: whole[name][:, :1].contiguous()},
        "NaN": {**whole, name: whole[name] * float("nan")},
    }
    for message, tensors in broken.items():
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(UserError, match=message):
            load_reward(tmp_path / "reward", lm)
    path.write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="adapter cannot be read"):
        load_reward(tmp_path / "reward", lm)


def test_other_tokens_are_refused(tmp_path: Path, lm: CausalLM, tiny_model: PreTrainedModel) -> None:
    """A generator with another vocabulary is told both sides; without a tokenizer the sizes must agree."""
    folder = save_reward(tmp_path, "backbone_arm", "lora", lm)[0]
    other = tiny_tokenizer()
    other.add_tokens(["new"])
    foreign = as_lm(tiny_model, other)
    sides = (
        f"{lm.identity.tokenizer_hash!r} with 300.*{foreign.identity.tokenizer_hash!r} with 300.*hf:DIRECTORY"
    )
    with pytest.raises(UserError, match=sides):
        load_reward(folder, foreign)
    load_reward(folder, as_lm(tiny_model))
    for unlike in (as_lm(tiny_llama(vocab=290)), as_lm(tiny_llama(vocab=310), tiny_tokenizer())):
        with pytest.raises(UserError, match="reads other tokens"):
            load_reward(folder, unlike)
    load_reward(folder, as_lm(tiny_llama(vocab=290), tiny_tokenizer()))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match=sides):  # before a backbone is looked for
        load_reward(folder, foreign)


def test_a_tokenizer_that_was_exchanged(tmp_path: Path, lm: CausalLM) -> None:
    """What counts is the tokenizer beside the weights, not only what the config says of it."""
    folder = save_reward(tmp_path, "backbone_arm", "full", lm)[0]
    other = tiny_tokenizer()
    other.add_tokens(["new"])
    other.save_pretrained(folder / "backbone")
    with pytest.raises(UserError, match="reads other tokens"):
        load_reward(folder, lm)


def test_a_base_that_changed(tmp_path: Path, lm: CausalLM) -> None:
    """Another tokenizer or shape under the base's name is refused, other weights cost a warning."""
    folder = save_reward(tmp_path, "backbone_arm", "lora", lm)[0]
    save_tiny(tmp_path / "base", seed=8)
    with pytest.warns(UserWarning, match="other weights"):
        load_reward(folder, lm)
    tiny_llama(hidden=48).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="hidden_size 32 in the reward, 48 in the model"):
        load_reward(folder, lm)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match="does not exist"):
        load_reward(folder, lm)


def test_peft_is_named_when_missing(tmp_path: Path, lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra that brings it is in the message."""
    folder = save_reward(tmp_path, "backbone_arm", "lora", lm)[0]
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'tiller-lm\[train\]'"):
        load_reward(folder, lm)


def test_one_kind_is_not_the_other(tmp_path: Path, lm: CausalLM) -> None:
    """A class asked to load the other's folder says so."""
    folder = save_reward(tmp_path, "rad", "none", lm)[0]
    with pytest.raises(UserError, match="is of kind 'rad', not backbone_arm"):
        BackboneArm.from_pretrained(folder, lm)


def test_a_backbone_without_bos() -> None:
    """Where the config names none, the text is read as it is."""
    backbone = tiny_backbone()
    arm = make_arm()
    plain = BackboneArm(arm.head, Backbone(backbone.lm, None), arm.config, "")
    ids = torch.tensor([[5, 6]])
    (found,) = plain.start(ids, torch.ones_like(ids).bool()).score(torch.tensor([[7]]), NOTHING)
    h = backbone.lm.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
    wanted = plain.to_reward(arm.head(h, backbone.lm.output_embeddings[[7]])[..., 0])
    torch.testing.assert_close(found, wanted, rtol=0, atol=3e-5)
