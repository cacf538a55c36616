"""The model with its cache: every shortcut it takes, against one plain forward pass of the unpadded text."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from decoder.contracts import Reading, UserError
from decoder.lm import hash_tokenizer, hash_weights, identify, why_no_block
from tests.heads import as_lm, pad
from tests.tiny import CONTEXT, tiny_gpt2, tiny_llama, tiny_tokenizer

PROMPTS = [[5, 17, 200], [9], [33, 44, 55, 66, 77, 88, 99]]
MORE = [[101, 7, 8], [102, 9, 10], [103, 11, 12]]  # tokens fed to each row afterwards
LAYERS = (0, 2, 4)  # the embedding, the middle, the last one with its norm


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def whole(model: PreTrainedModel, ids: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the next token's logits (V,) and every layer's states (T, d), without padding or cache."""
    output = model(input_ids=torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
    return output.logits[0, -1], tuple(state[0] for state in output.hidden_states)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Assert equality to 1e-5 of the largest entry: states reach 70, of which float32 keeps seven digits."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def assert_reads(model: PreTrainedModel, reading: Reading, texts: Sequence[Sequence[int]]) -> None:
    """Assert that logits and taps are those of reading each text alone; taps may cover its end only."""
    assert len(reading.logits) == len(texts)
    for row, ids in enumerate(texts):
        logits, states = whole(model, ids)
        assert_close(reading.logits[row], logits)
        for layer, tap in reading.taps.items():
            real = tap[row, reading.mask[row]]
            assert_close(real, states[layer][-len(real) :])


def column(texts: Sequence[Sequence[int]], position: int) -> Tensor:
    return torch.tensor([text[position] for text in texts])


def test_ragged_batch_is_one_by_one_and_cached_is_uncached(any_model: PreTrainedModel) -> None:
    """Left padding is inert, in logits and in the taps of every kind of layer, at prefill and ever after."""
    session = as_lm(any_model).start(LAYERS)
    reading = session.prefill(*pad(PROMPTS))
    assert [int(n) for n in reading.mask.sum(-1)] == [3, 1, 7]
    assert_reads(any_model, reading, PROMPTS)
    for step in range(3):
        reading = session.feed(column(MORE, step))
        assert reading.mask.tolist() == [[True]] * 3
        assert_reads(any_model, reading, [p + m[: step + 1] for p, m in zip(PROMPTS, MORE, strict=True)])


def test_what_stands_on_padding_is_not_read(any_model: PreTrainedModel) -> None:
    """Lengths come from the mask: any id may stand on padding, also one that is a real token elsewhere."""
    lm = as_lm(any_model)
    zeros, others = (lm.start(LAYERS).prefill(*pad(PROMPTS, pad_id)) for pad_id in (0, 33))
    assert_close(zeros.logits, others.logits)


def test_batch_without_padding(any_model: PreTrainedModel) -> None:
    """The path that needs no mask gives the same as the path that does."""
    texts = [[5, 17, 200, 4], [9, 8, 7, 6]]
    session = as_lm(any_model).start((1,))
    assert_reads(any_model, session.prefill(*pad(texts)), texts)
    assert_reads(any_model, session.feed(torch.tensor([50, 60])), [[*texts[0], 50], [*texts[1], 60]])


def test_last_tap_is_what_the_unembedding_reads(any_model: PreTrainedModel) -> None:
    """The last layer's tap has passed the final norm: times the output embeddings it is the logits."""
    lm = as_lm(any_model)
    reading = lm.start((4,)).prefill(*pad(PROMPTS))
    assert lm.output_embeddings.shape == (300, 32)
    assert_close(reading.taps[4][:, -1] @ lm.output_embeddings.T, reading.logits)


def test_only_the_layers_asked_for(tiny_model: PreTrainedModel) -> None:
    """A reading holds the taps somebody asked for and nothing else; logits are of the last position alone."""
    lm = as_lm(tiny_model)
    assert set(lm.start().prefill(*pad(PROMPTS)).taps) == set()
    reading = lm.start((3, 1)).prefill(*pad(PROMPTS))
    assert set(reading.taps) == {1, 3}
    assert reading.taps[3].shape == (3, 7, 32)
    assert reading.logits.shape == (3, 300)


def test_logits_are_float32_whatever_the_model_is() -> None:
    """Rewards are added to float32 logits; taps keep the model's own precision."""
    reading = as_lm(tiny_llama().bfloat16()).start((2,)).prefill(*pad(PROMPTS))
    assert reading.logits.dtype == torch.float32
    assert reading.taps[2].dtype == torch.bfloat16


def test_fork_is_reading_the_copies(any_model: PreTrainedModel) -> None:
    """Selecting rows several times gives what a prefill of the copies gives: the N-way fork."""
    rows = torch.tensor([2, 0, 0, 1, 2])
    session = as_lm(any_model).start(LAYERS)
    session.prefill(*pad(PROMPTS))
    session.select(rows)
    tokens = torch.tensor([20, 21, 22, 23, 24])
    expected = [[*PROMPTS[row], int(token)] for row, token in zip(rows, tokens, strict=True)]
    assert_reads(any_model, session.feed(tokens), expected)


def test_rows_leave_and_the_others_go_on(any_model: PreTrainedModel) -> None:
    """After dropping rows, also the longest, and after several selects, each row is still its own text."""
    session = as_lm(any_model).start(LAYERS)
    session.prefill(*pad(PROMPTS))
    session.feed(column(MORE, 0))
    session.select(torch.tensor([0, 1]))
    reading = session.feed(column(MORE[:2], 1))
    assert_reads(any_model, reading, [PROMPTS[0] + MORE[0][:2], PROMPTS[1] + MORE[1][:2]])
    session.select(torch.tensor([1]))
    assert_reads(any_model, session.feed(torch.tensor([77])), [PROMPTS[1] + MORE[1][:2] + [77]])


def test_two_sessions_do_not_disturb_each_other(any_model: PreTrainedModel) -> None:
    """Caches belong to the session: two in turn on one model read their own texts, a third is fresh."""
    lm = as_lm(any_model)
    first, second = lm.start((2,)), lm.start((2,))
    first.prefill(*pad(PROMPTS))
    second.prefill(*pad(PROMPTS[:1]))
    first.select(torch.tensor([1, 2]))
    second_reading = second.feed(torch.tensor([60]))
    first_reading = first.feed(torch.tensor([70, 71]))
    assert_reads(any_model, second_reading, [[*PROMPTS[0], 60]])
    assert_reads(any_model, first_reading, [[*PROMPTS[1], 70], [*PROMPTS[2], 71]])
    assert_reads(any_model, lm.start((2,)).prefill(*pad(PROMPTS)), PROMPTS)


@pytest.mark.parametrize("layer", [-1, 5])
def test_layer_that_does_not_exist(tiny_model: PreTrainedModel, layer: int) -> None:
    """A wrong layer is named with the range, before the model runs."""
    with pytest.raises(UserError, match=f"layer {layer} does not exist.*layers 0 to 4"):
        as_lm(tiny_model).start((1, layer))


def test_context_length(any_model: PreTrainedModel) -> None:
    """Every architecture's own name for its context is found."""
    assert as_lm(any_model).context_length() == CONTEXT


def test_model_without_positions_or_context_limit() -> None:
    """Bloom takes no position ids and has no limit: both are found out, and padding is still inert."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4)
        model = BloomForCausalLM(config).eval()
    lm = as_lm(model)
    assert lm.context_length() is None
    session = lm.start((2,))
    assert_reads(model, session.prefill(*pad(PROMPTS)), PROMPTS)
    assert_reads(
        model, session.feed(column(MORE, 0)), [[*p, m[0]] for p, m in zip(PROMPTS, MORE, strict=True)]
    )


CANDIDATES = torch.tensor([[60, 61, 62, 60], [70, 71, 72, 73], [80, 81, 82, 83]])  # one stands twice


def last_states(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """Return the last layer's states at the texts' ends, (B, d), each text read alone."""
    return torch.stack([whole(model, text)[1][-1][-1] for text in texts])


def assert_peeks(model: PreTrainedModel, found: Tensor, texts: Sequence[Sequence[int]], ids: Tensor) -> None:
    """Assert that states (B, K, d) are those of each text followed by each of its candidates, read alone."""
    for states, text, row in zip(found, texts, ids.tolist(), strict=True):
        assert_close(states, last_states(model, [[*text, token] for token in row]))


@pytest.mark.parametrize("prompts", [PROMPTS, [[5, 6], [7, 8], [9, 10]]], ids=["ragged", "even"])
def test_peek_is_every_candidate_alone(any_model: PreTrainedModel, prompts: list[list[int]]) -> None:
    """A block of candidates gives the states of K texts, and the kept one is as if it had been fed alone."""
    session = as_lm(any_model).start((4,))
    session.prefill(*pad(prompts))
    texts = [list(prompt) for prompt in prompts]
    for columns in ([3, 0, 2], [0, 1, 2]):
        assert_peeks(any_model, session.peek(CANDIDATES)[4], texts, CANDIDATES)
        session.keep(torch.tensor(columns))
        texts = [[*text, int(row[c])] for text, row, c in zip(texts, CANDIDATES, columns, strict=True)]
        assert session.lengths.tolist() == [len(text) for text in texts]
    assert_reads(
        any_model, session.feed(column(MORE, 0)), [[*t, m[0]] for t, m in zip(texts, MORE, strict=True)]
    )


def test_rows_are_selected_between_peek_and_keep(any_model: PreTrainedModel) -> None:
    """The N-way fork, and rows that leave, carry the candidates along."""
    session = as_lm(any_model).start((4,))
    session.prefill(*pad(PROMPTS))
    session.peek(CANDIDATES)
    rows, columns = [2, 0, 0], [1, 0, 2]
    session.select(torch.tensor(rows))
    session.keep(torch.tensor(columns))
    texts = [[*PROMPTS[r], int(CANDIDATES[r, c])] for r, c in zip(rows, columns, strict=True)]
    assert_peeks(any_model, session.peek(CANDIDATES)[4], texts, CANDIDATES)
    session.select(torch.tensor([1]))
    session.keep(torch.tensor([3]))
    assert_peeks(any_model, session.peek(CANDIDATES[:1, :1])[4], [[*texts[1], 73]], CANDIDATES[:1, :1])


def test_peek_leaves_nothing_behind(any_model: PreTrainedModel) -> None:
    """Candidates that are forgotten, or peeked over, are no part of the text."""
    session = as_lm(any_model).start((4,))
    session.prefill(*pad(PROMPTS))
    session.peek(CANDIDATES.flip(0))
    assert_peeks(any_model, session.peek(CANDIDATES)[4], PROMPTS, CANDIDATES)
    session.forget()
    session.forget()
    assert_reads(
        any_model, session.feed(column(MORE, 0)), [[*p, m[0]] for p, m in zip(PROMPTS, MORE, strict=True)]
    )


def test_reading_on_over_open_candidates_is_an_error(tiny_model: PreTrainedModel) -> None:
    """What is neither kept nor forgotten would be read as text."""
    session = as_lm(tiny_model).start((4,))
    session.prefill(*pad(PROMPTS))
    session.peek(CANDIDATES)
    for go_on in (lambda: session.feed(column(MORE, 0)), lambda: session.fork(torch.tensor([0]))):
        with pytest.raises(AssertionError, match="keep or forget"):
            go_on()


def test_fork_is_a_session_of_its_own(any_model: PreTrainedModel) -> None:
    """Both go on with their own tokens, also after a peek that wrote into one cache."""
    session = as_lm(any_model).start((4,))
    session.prefill(*pad(PROMPTS))
    twin = session.fork(torch.tensor([2, 2, 0]))
    session.peek(CANDIDATES)
    session.keep(torch.tensor([1, 1, 1]))
    assert_reads(
        any_model,
        twin.feed(torch.tensor([40, 41, 42])),
        [[*PROMPTS[2], 40], [*PROMPTS[2], 41], [*PROMPTS[0], 42]],
    )
    assert_reads(
        any_model,
        session.feed(torch.tensor([50, 51, 52])),
        [[*p, int(c), t] for p, c, t in zip(PROMPTS, CANDIDATES[:, 1], (50, 51, 52), strict=True)],
    )


def test_eager_attention_takes_the_mask_too() -> None:
    """The block does not hang on one implementation of attention."""
    model = tiny_llama()
    model.set_attn_implementation("eager")
    session = as_lm(model).start((4,))
    session.prefill(*pad(PROMPTS))
    assert_peeks(model, session.peek(CANDIDATES)[4], PROMPTS, CANDIDATES)


SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_BLOCK = {
    "Mistral.*SlidingWindow": lambda: MistralForCausalLM(
        MistralConfig(**SMALL, num_key_value_heads=2, intermediate_size=64, sliding_window=4)
    ),
    "Bloom.*positions by itself": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)
    ),
    "Mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=4)
    ),
    "GPTNeo.*local": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=300,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
        )
    ),
}


@pytest.mark.parametrize("reason", NO_BLOCK)
def test_models_that_cannot_read_a_block(reason: str) -> None:
    """Windows, states that roll on and positions of its own are refused by the architecture's name."""
    model = NO_BLOCK[reason]().eval()
    with pytest.raises(UserError, match=f"as one block: {reason}"):
        as_lm(model).start((2,)).peek(CANDIDATES)


def test_no_block_without_a_mask_of_ours() -> None:
    """Attention that takes no mask would let the candidates see each other."""
    model = tiny_llama()
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in str(why_no_block(model))


def test_identity(any_model: PreTrainedModel) -> None:
    """What a saved head is compared with is read off the model, whatever its configuration calls it."""
    found = identify("name", any_model, tiny_tokenizer())
    assert (found.name, found.architecture) == ("name", type(any_model).__name__)
    assert (found.hidden_size, found.num_layers, found.vocab_size) == (32, 4, 300)
    assert found.tokenizer_hash == hash_tokenizer(tiny_tokenizer())
    assert identify("name", any_model, None).tokenizer_hash == ""


def test_weights_have_one_hash_in_every_precision(any_model: PreTrainedModel) -> None:
    """A model and its bfloat16 copy share a hash: precision is told apart by the dtype."""
    half = copy.deepcopy(any_model).bfloat16()
    assert hash_weights(half) == hash_weights(any_model)
    assert hash_weights(half.float()) == hash_weights(any_model)


def test_other_weights_have_another_hash() -> None:
    """Other seeds, other architectures and one changed matrix are told apart."""
    changed = tiny_llama()
    changed.model.layers[3].mlp.up_proj.weight.data[0, 0] += 1
    models = [tiny_llama(), tiny_llama(seed=1), tiny_gpt2(), changed]
    assert len({hash_weights(model) for model in models}) == 4
    assert hash_weights(tiny_llama()) == hash_weights(models[0])


def test_tokenizer_hash_is_of_the_vocabulary() -> None:
    """Tokenizers share a hash when every id means the same piece, however they were made."""
    assert hash_tokenizer(tiny_tokenizer()) == hash_tokenizer(tiny_tokenizer(adds_bos=True))
    other = tiny_tokenizer()
    other.add_tokens(["new"])
    assert hash_tokenizer(other) != hash_tokenizer(tiny_tokenizer())
