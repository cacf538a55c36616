"""Finished texts read again in batches: every index once, padding bounded, states as of each text alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from decoder.replay import batches_by_length, left_pad, read_texts
from tests.heads import as_lm

TEXTS = [[5, 17, 200], [9], [33, 44, 55, 66, 77, 88, 99], [8, 7], [1, 2, 3, 4, 5]]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=40), limit=st.integers(1, 120))
def test_batches_cover_every_text_once(lengths: list[int], limit: int) -> None:
    """Shortest first, each once; a batch exceeds the limit only when a single text does."""
    batches = list(batches_by_length(lengths, limit))
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= limit


def test_left_padding() -> None:
    """Real tokens stand on the right, under a mask that tells them from padding."""
    ids, mask = left_pad([[7, 8], [0], [4, 5, 6]])
    assert ids.tolist() == [[0, 7, 8], [0, 0, 0], [4, 5, 6]]
    assert mask.tolist() == [[False, True, True], [False, False, True], [True, True, True]]


@pytest.mark.parametrize("max_tokens", [1, 8, 2048])
def test_texts_are_read_as_alone(any_model: PreTrainedModel, max_tokens: int) -> None:
    """Whatever the batches, the states of a text are transformers' own of the text without padding."""
    seen = []
    for indices, reading in read_texts(as_lm(any_model), TEXTS, (0, 2, 4), max_tokens=max_tokens):
        for row, index in enumerate(indices):
            seen.append(index)
            with torch.no_grad():
                output = any_model(input_ids=torch.tensor([TEXTS[index]]), output_hidden_states=True)
            for layer, tap in reading.taps.items():
                expected = output.hidden_states[layer][0]
                found = tap[row, reading.mask[row]]
                assert found.shape == expected.shape
                assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert sorted(seen) == list(range(len(TEXTS)))
