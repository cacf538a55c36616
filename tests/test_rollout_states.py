"""States of completions against those of every text alone, in every dtype, and what the cache does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decoder.contracts import UserError
from decoder.lm import CausalLM, LMSession
from rewards import features, rollout_states
from rewards.rollout_states import RolloutStates, read_completions, read_rollout_states
from tests.heads import as_lm
from tests.tiny import CONTEXT, EOS, tiny_llama

LAYERS = (0, 2, 4)
Rows = tuple[list[list[int]], list[list[list[int]]]]


@pytest.fixture(scope="module")
def rollouts() -> Rows:
    """Six prompts of 1 to 9 tokens with 1 to 5 completions of 1 to 11, all ended."""
    rng = np.random.default_rng(0)

    def row(most: int) -> list[int]:
        return [int(i) for i in rng.integers(20, 300, rng.integers(1, most + 1))]

    prompts = [row(9) for _ in range(6)]
    return prompts, [[[*row(10), EOS] for _ in range(n)] for n in (3, 1, 5, 2, 2, 4)]


@pytest.fixture(scope="module")
def lm(tiny_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> CausalLM:
    return as_lm(tiny_model, tokenizer)


def read(lm: CausalLM, rollouts: Rows, layers: tuple[int, ...], cache: Path) -> RolloutStates:
    return read_rollout_states(lm, *rollouts, layers, cache)


def alone(lm: CausalLM, prompt: list[int], completion: list[int], layer: int) -> torch.Tensor:
    """Return the states that have read the completion's tokens, from one plain forward pass."""
    with torch.no_grad():
        hidden = lm.model(torch.tensor([[*prompt, *completion]]), output_hidden_states=True).hidden_states
    return hidden[layer][0, len(prompt) :]


def flat(rollouts: Rows) -> list[tuple[list[int], list[int]]]:
    return [(prompt, row) for prompt, rows in zip(*rollouts, strict=True) for row in rows]


def test_states_are_those_that_have_read_the_token(
    any_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rollouts: Rows, tmp_path: Path
) -> None:
    lm = as_lm(any_model, tokenizer)
    states = read(lm, rollouts, LAYERS, tmp_path)
    assert states.lengths.tolist() == [len(row) for _, row in flat(rollouts)]
    for number, (prompt, completion) in enumerate(flat(rollouts)):
        rows, positions = states.rows_of(torch.tensor([number]))
        assert positions.tolist() == list(range(len(completion)))
        for layer in LAYERS:
            expected = alone(lm, prompt, completion, layer)
            torch.testing.assert_close(states.taps[layer][rows], expected, atol=1e-4, rtol=1e-4)


def test_states_are_those_a_decode_sees(lm: CausalLM, rollouts: Rows, tmp_path: Path) -> None:
    """Fed token by token after its prompt: the reading that follows a token holds that token's state."""
    states = read(lm, rollouts, LAYERS, tmp_path)
    prompt, completion = flat(rollouts)[4]
    session = lm.start(LAYERS)
    with torch.inference_mode():
        session.prefill(torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.bool))
        readings = [session.feed(torch.tensor([token])) for token in completion]
    rows = states.rows_of(torch.tensor([4]))[0]
    for layer in LAYERS:
        seen = torch.cat([reading.taps[layer][0] for reading in readings])
        torch.testing.assert_close(states.taps[layer][rows], seen, atol=1e-4, rtol=1e-4)


def test_rows_of_several_completions(lm: CausalLM, rollouts: Rows, tmp_path: Path) -> None:
    states = read(lm, rollouts, (1,), tmp_path)
    rows, positions = states.rows_of(torch.tensor([7, 2]))
    starts = np.cumsum([0, *(len(row) for _, row in flat(rollouts))])
    assert rows.tolist() == [*range(starts[7], starts[8]), *range(starts[2], starts[3])]
    assert positions.tolist() == [*range(starts[8] - starts[7]), *range(starts[3] - starts[2])]
    assert int(starts[-1]) == len(states.taps[1])


@pytest.mark.parametrize("max_tokens", [1, 25, 2048])
def test_completions_are_read_in_batches_that_fit(lm: CausalLM, rollouts: Rows, max_tokens: int) -> None:
    """Every completion once, its prompt's others beside it as far as they fit, and the same states."""
    lengths = [len(row) for _, row in flat(rollouts)]
    sizes, seen = [], []
    for numbers, taps, mask in read_completions(lm, *rollouts, (3,), max_tokens=max_tokens):
        sizes.append(len(numbers))
        seen += numbers
        assert mask.sum(-1).tolist() == [lengths[i] for i in numbers]
        assert mask.numel() <= max_tokens or len(numbers) == 1
        for i, tap, real in zip(numbers, taps[3], mask, strict=True):
            torch.testing.assert_close(tap[real], alone(lm, *flat(rollouts)[i], 3), atol=1e-4, rtol=1e-4)
    assert sorted(seen) == list(range(len(lengths)))
    assert max(sizes) == {1: 1, 25: 3, 2048: 5}[max_tokens]


@pytest.mark.parametrize(
    ("dtype", "suffix"), [(torch.bfloat16, "bf16"), (torch.float32, "f32"), (torch.float16, "f16")]
)
def test_states_are_kept_bit_for_bit(
    dtype: torch.dtype, suffix: str, tokenizer: PreTrainedTokenizerBase, rollouts: Rows, tmp_path: Path
) -> None:
    """What the cache gives back equals what the same pass handed out."""
    lm = as_lm(tiny_llama().to(dtype), tokenizer)
    for _ in range(2):  # written, and read again
        states = read(lm, rollouts, LAYERS, tmp_path)
        assert {tap.dtype for tap in states.taps.values()} == {dtype}
        for numbers, taps, mask in read_completions(lm, *rollouts, LAYERS):
            rows = states.rows_of(torch.tensor(numbers))[0]
            assert all(torch.equal(states.taps[layer][rows], taps[layer][mask]) for layer in LAYERS)
    assert {path.suffix for path in tmp_path.iterdir()} == {f".{suffix}"}


def test_only_what_is_missing_is_read(
    lm: CausalLM,
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other weights, dtypes, completions or ends of a prompt have files of their own."""
    asked: list[tuple[int, ...]] = []

    def counting(lm: CausalLM, *arguments: Any) -> Iterator[object]:
        asked.append(arguments[-1])
        return read_completions(lm, *arguments)

    monkeypatch.setattr(rollout_states, "read_completions", counting)
    first = read(lm, rollouts, (1, 3), tmp_path)
    again = read(lm, rollouts, (3, 2, 1), tmp_path)
    assert asked == [(1, 3), (2,)]
    assert torch.equal(first.taps[3], again.taps[3])
    assert list(again.taps) == [3, 2, 1]
    prompts, completions = rollouts
    moved = [[*prompts[2], completions[2][0][0]]], [[completions[2][0][1:]]]
    for other, rows in (
        (as_lm(tiny_llama(seed=1), tokenizer), rollouts),
        (as_lm(tiny_llama().bfloat16(), tokenizer), rollouts),
        (lm, (prompts[2:3], [completions[2][:1]])),
        (lm, moved),  # the same tokens, one of them the prompt's
    ):
        read(other, rows, (1,), tmp_path)
    assert len(asked) == 6
    assert len(list(tmp_path.iterdir())) == 7


def test_a_broken_reading_leaves_no_file(
    lm: CausalLM, rollouts: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(lm: CausalLM, *arguments: Any) -> Iterator[object]:
        yield next(read_completions(lm, *arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(rollout_states, "read_completions", breaks)
    with pytest.raises(KeyboardInterrupt):
        read(lm, rollouts, LAYERS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_found_before_the_work(
    lm: CausalLM, rollouts: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_bytes = 3 * 4 * 32 * sum(len(row) for _, row in flat(rollouts))
    usage = type("Usage", (), {"free": n_bytes - 1})
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(LMSession, "prefill", lambda *_: pytest.fail("it read"))
    with pytest.raises(UserError, match="GB free: give another folder with --cache"):
        read(lm, rollouts, LAYERS, tmp_path)


def test_states_that_are_no_numbers_are_refused(
    tokenizer: PreTrainedTokenizerBase, rollouts: Rows, tmp_path: Path
) -> None:
    model = tiny_llama()
    torch.nn.init.constant_(model.model.layers[2].mlp.down_proj.weight, math.nan)
    with pytest.raises(UserError, match=r"layer 4 are not finite: try --dtype float32"):
        read(as_lm(model, tokenizer), rollouts, (1, 4), tmp_path)
    assert not list(tmp_path.iterdir())


def test_models_of_several_dtypes_are_refused(
    tokenizer: PreTrainedTokenizerBase, rollouts: Rows, tmp_path: Path
) -> None:
    """Integers that are the bits of a bfloat16 must never be written from a float32."""
    model = tiny_llama().bfloat16()
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, output: output.float())
    model.model.layers.float()
    model.model.norm.float()
    model.lm_head.register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16(),))
    with pytest.raises(UserError, match=r"torch.float32 and the embeddings torch.bfloat16: load the model"):
        read(as_lm(model, tokenizer), rollouts, LAYERS, tmp_path)


def test_completions_the_model_cannot_read_are_refused(lm: CausalLM, tmp_path: Path) -> None:
    prompts = [[20, 21], [22]]
    with pytest.raises(UserError, match=rf"completion 2 has {CONTEXT + 1} tokens with its prompt"):
        read(lm, (prompts, [[[5]], [[30] * CONTEXT]]), (1,), tmp_path)
    with pytest.raises(UserError, match="completion 3 holds token 300 and tiny has 300"):
        read(lm, (prompts, [[[5], [6]], [[7, 300]]]), (1,), tmp_path)
