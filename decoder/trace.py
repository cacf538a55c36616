"""What happened to every candidate in a step, as plain records for files."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from decoder.contracts import Step

PLAIN_CANDIDATES = 20  # how many are listed where no reward and no top-k had picked candidates


def trace_rows(
    step: Step,
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[list[dict[str, object]]],
) -> None:
    """Append to each live row's trace one record of this step.

    A record has the token, its rank among the candidates before and after the rewards (1 is the
    likeliest; None if it was not listed), and for every candidate its id, text, base log-probability,
    score and rewards.
    """
    if step.log_normalizer is None:
        raise ValueError("the decode was not traced: its steps carry no normaliser")
    ids, logprobs, scores, rewards = (
        step.candidate_ids,
        step.base_logits - step.log_normalizer,
        step.scores,
        step.rewards,
    )
    if ids is None:
        logprobs, ids = logprobs.topk(min(PLAIN_CANDIDATES, logprobs.shape[-1]), dim=-1)
        scores, rewards = scores.gather(1, ids), rewards[:, :0]
    ranks = scores.argsort(dim=-1, descending=True).argsort(dim=-1) + 1
    columns = zip(
        step.rows.tolist(), step.token_ids.tolist(), ids.tolist(), logprobs.tolist(), scores.tolist(),
        ranks.tolist(), rewards.transpose(1, 2).tolist(), strict=True,
    )  # fmt: skip
    for row, token, row_ids, row_logprobs, row_scores, row_ranks, row_rewards in columns:
        place = row_ids.index(token) if token in row_ids else None
        traces[row].append(
            {
                "token_id": token,
                "token": tokenizer.decode([token]),
                "rank_before": None if place is None else place + 1,
                "rank_after": None if place is None else row_ranks[place],
                "candidate_ids": row_ids,
                "candidates": [tokenizer.decode([i]) for i in row_ids],
                "base_logprobs": row_logprobs,
                "scores": row_scores,
                "rewards": dict(zip(names, row_rewards, strict=True)) if row_rewards else {},
            }
        )
