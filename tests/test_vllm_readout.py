"""Running means kept beside the keys and values: any schedule of vLLM's gives the mean of the whole text."""

from __future__ import annotations

import pytest
import torch

from rewards.vllm_readout import PagedSums, Placement, average

BLOCK = 4


def place(texts: list[tuple[int, int, list[int]]]) -> tuple[Placement, torch.Tensor]:
    """Return the placement of texts (first position, tokens now, blocks), and the positions of the tokens."""
    counts = torch.tensor([n for _, n, _ in texts])
    positions = torch.cat([torch.arange(first, first + n) for first, n, _ in texts])
    width = max(len(blocks) for *_, blocks in texts)
    table = torch.tensor([blocks + [0] * (width - len(blocks)) for *_, blocks in texts])
    owner = torch.arange(len(texts)).repeat_interleave(counts)
    slots = table[owner, positions // BLOCK] * BLOCK + positions % BLOCK
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    lengths = torch.tensor([first + n for first, n, _ in texts])
    return Placement(starts, lengths, slots, table, BLOCK, bool((counts == 1).all())), positions


def means(values: torch.Tensor) -> torch.Tensor:
    return values.cumsum(0) / torch.arange(1, len(values) + 1)[:, None]


@pytest.fixture
def texts() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    one, other = torch.randn(11, 3), torch.randn(9, 3)
    other[:8] = one[:8]  # they share two blocks
    return one, other


def test_prompts_in_parts_and_single_tokens(texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    one, other = texts
    sums, blocks, theirs = PagedSums(64, 3, torch.device("cpu")), [5, 2, 9], [7, 3, 1]
    passes = [
        ((0, 6), (0, 5)),
        ((6, 3), (5, 2)),
        ((9, 1), (7, 1)),
        ((10, 1), (8, 1)),
    ]  # (first, tokens) of each
    for (first, n), (second, m) in passes:
        at, positions = place([(first, n, blocks), (second, m, theirs)])
        found = average(
            sums.fold(torch.cat([one[first : first + n], other[second : second + m]]), at), positions
        )
        whole = torch.cat([means(one)[first : first + n], means(other)[second : second + m]])
        torch.testing.assert_close(found, whole)


def test_a_text_goes_on_from_blocks_of_another(texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    one, other = texts
    sums = PagedSums(64, 3, torch.device("cpu"))
    at, _ = place([(0, 11, [5, 2, 9])])
    sums.fold(one, at)
    at, positions = place([(8, 1, [5, 2, 6])])  # a prefix hit: only its last token is read
    torch.testing.assert_close(average(sums.fold(other[8:], at), positions)[0], means(other)[8])


def test_texts_go_on_from_blocks_that_others_fill_in_the_same_pass() -> None:
    torch.manual_seed(0)
    one = torch.randn(11, 3)
    two = torch.cat([one[:4], torch.randn(9, 3)])  # shares a block with the first
    three = torch.cat([two[:8], torch.randn(2, 3)])  # and one more with the second
    sums = PagedSums(64, 3, torch.device("cpu"))
    at, positions = place([(8, 2, [5, 3, 7]), (4, 9, [5, 3, 4, 6]), (0, 11, [5, 2, 9])])
    found = average(sums.fold(torch.cat([three[8:], two[4:], one]), at), positions)
    torch.testing.assert_close(found, torch.cat([means(three)[8:], means(two)[4:], means(one)]))


def test_a_text_read_again_in_other_blocks_says_the_same(texts: tuple[torch.Tensor, torch.Tensor]) -> None:
    one, other = texts
    sums = PagedSums(64, 3, torch.device("cpu"))
    sums.fold(one, place([(0, 11, [5, 2, 9])])[0])
    sums.fold(other, place([(0, 9, [2, 9, 5])])[0])  # it lost its blocks to another text
    at, positions = place([(0, 11, [4, 1, 8]), (0, 9, [10, 11, 12])])
    found = average(sums.fold(torch.cat([one, other]), at), positions)
    torch.testing.assert_close(found, torch.cat([means(one), means(other)]))


def test_long_passes_keep_small_sums_exact() -> None:
    torch.manual_seed(0)
    big, small = torch.randn(4000, 2) * 1e4, torch.randn(4, 2)
    sums = PagedSums(8192, 2, torch.device("cpu"))
    at, positions = place([(0, 4000, list(range(1, 1001))), (0, 4, [1001])])
    found = average(sums.fold(torch.cat([big, small]), at), positions)[-4:]
    torch.testing.assert_close(found, means(small), rtol=1e-6, atol=1e-6)


def test_padding_of_a_captured_graph_is_written_to_no_text() -> None:
    torch.manual_seed(0)
    values = torch.randn(4, 3)
    sums, blocks = PagedSums(16, 3, torch.device("cpu")), [3]  # the last block there is
    at, _ = place([(0, 3, blocks)])
    sums.fold(values[:3], at)
    starts, lengths = torch.tensor([0, 1, 2]), torch.tensor([4, 0])
    padded = Placement(starts, lengths, torch.tensor([15, -1]), torch.tensor([[3], [0]]), BLOCK, single=True)
    found = sums.fold(torch.stack([values[3], torch.full((3,), 99.0)]), padded)
    torch.testing.assert_close(found[0], values.sum(0))
    on, _ = place([(4, 1, [3, 1])])  # goes on from the last slot
    torch.testing.assert_close(sums.fold(values[:1], on)[0], values.sum(0) + values[0])
