"""What people see: progress on standard error, and plain and steered text side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from decoder.display import SideBySide
from decoder.weighting import WeightedReward
from prompts.reading import Prompt

if TYPE_CHECKING:
    from decoder.config import DecodeConfig
    from decoder.decoder import Decoder


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show a bar with time left on standard error; yield the function that advances it by one or by more."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count=1: bar.advance(task, count)


def show_side_by_side(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    rewards: Sequence[WeightedReward],
    config: DecodeConfig,
    *,
    chat: bool,
    title: str,
) -> None:
    """Show each prompt's plain and steered samples while they grow, tokens coloured by the rewards.

    Both sides choose among the same candidates with the same random numbers; only beta differs.
    """
    token_ids = decoder.tokenise(prompts, config, chat=chat)
    samples = range(config.num_return_sequences)
    with SideBySide(title, [(reward.name, reward.beta) for reward in rewards]) as view:
        for prompt, ids in zip(prompts, token_ids, strict=True):
            shown = f"{prompt.messages[-1]['content']}\n" if prompt.messages else str(prompt.text)
            lines = [view.row(shown) for _ in samples]
            for event in decoder.stream_tokens(ids, rewards, config, unsteered=True):
                column, sample = divmod(event.row, len(samples))
                lines[sample].add(column, event.text, event.shift)
                if event.finish_reason is not None:
                    lines[sample].finish(column, _mean_reward(event.rewards, rewards), event.finish_reason)


def _mean_reward(values: Mapping[str, float], rewards: Sequence[WeightedReward]) -> float | None:
    """Return the rewards of a text's last token, averaged by the size of their betas."""
    total = sum(abs(reward.beta) for reward in rewards)
    return sum(abs(reward.beta) * values[reward.name] for reward in rewards) / total if total else None
