"""The winner among a prompt's samples, from the scores each carries and from what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.contracts import UserError
from prompts.answers import is_correct, majority, weighted_vote
from prompts.reading import Prompt
from rewards.combine import RULES, combine, winner
from rewards.scorers import Scorers

Floats = NDArray[Any]
VOTE = "vote"  # the rule that reads texts beside scores
SHARPNESS = 2.0  # of votes, a standard deviation of the scores; chosen on training problems


class NoWinnerError(UserError):
    """No sample of a prompt has a score."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sample as a choice sees it: its text, name -> score, and whether it was given up on the way."""

    text: str
    scores: dict[str, float]
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The winner's index and all samples' combined scores, (N,) float64; NaN never wins."""

    winner: int
    scores: Floats


def choose(candidates: Sequence[Candidate], prompt: Prompt, scorers: Scorers, rule: str) -> Choice:
    """Return which of a prompt's samples is best by its scorers, combined by `rule` if they are several.

    A sample that was dropped cannot win, though it votes in a majority. Raises NoWinnerError where no sample
    has a score, naming the prompt, and UserError for the oracle without an answer.
    """
    table = np.stack([column(name, candidates, prompt) for name in scorers.names])
    table[:, [candidate.dropped for candidate in candidates]] = np.nan
    weights = None if scorers.weights is None else np.array(scorers.weights)
    check_rule(rule, len(table), scorers.weights)
    if rule == VOTE:
        scores = vote(table, [candidate.text for candidate in candidates], weights)
    else:
        scores = table[0] if len(table) == 1 else combine(rule, table, weights)
    try:
        return Choice(winner(scores), scores)
    except UserError as error:
        raise NoWinnerError(f"prompt {prompt.id!r}: {error}") from None


def check_rule(rule: str, n_scorers: int, weights: Sequence[float] | None) -> None:
    """Raise UserError for an unknown rule and one that does not go with these scorers; before drawing."""
    if rule != VOTE and rule not in RULES:
        raise UserError(f"no rule is called {rule!r}: choose one of {', '.join([*RULES, VOTE])}")
    if n_scorers > 1:  # a rule knows itself which weights it takes
        combine("zscore" if rule == VOTE else rule, np.zeros((n_scorers, 1)), weights)


def column(name: str, candidates: Sequence[Candidate], prompt: Prompt) -> Floats:
    """Return one scorer's scores of the samples, (N,) float64."""
    if name == "majority":
        return np.asarray(majority([candidate.text for candidate in candidates]), dtype=float)
    if name == "oracle":
        return np.array([correctness(candidate.text, prompt) for candidate in candidates], dtype=float)
    return np.array([candidate.scores[name] for candidate in candidates], dtype=float)


def correctness(text: str, prompt: Prompt) -> float:
    """Return 1 for a right answer, 0 for a wrong one, NaN where that cannot be decided."""
    if prompt.answer is None:
        raise UserError(f"prompt {prompt.id!r} has no answer: add one, or leave out the oracle")
    found = is_correct(text, prompt.answer)
    return np.nan if found is None else float(found)


def vote(table: Floats, texts: Sequence[str], weights: Floats | None = None) -> Floats:
    """Return each sample's share of the vote on its answer (N,), from scores (S, N); NaN where one is NaN.

    A vote weighs exp(2 z), where z is the z-score combination of the scorers within the group: weighted
    self-consistency (Li et al. 2023), whatever the scale of the scores.
    """
    z = combine("zscore", table, weights)
    scored = ~np.isnan(z)
    votes = np.full(len(texts), np.nan)
    if scored.any():
        weighed = np.exp(SHARPNESS * (z[scored] - z[scored].max()))
        kept = [text for text, counts in zip(texts, scored, strict=True) if counts]
        # Samples of one answer tie; the favourite among them shall win, by far less than one vote weighs.
        votes[scored] = weighted_vote(kept, weighed) + 1e-9 * weighed
    return votes
