r"""What a text answers, whether that is right, and how many samples agree; from the text alone.

The answer of a text is its last \boxed{...}, else what stands after its last "####", else after its last
"answer is", else its last number. What follows a question of the model's own ("Question:" at the
beginning of a line, as base models go on after worked examples) answers another question and is not read.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decoder.contracts import UserError

SECONDS = 5  # for each step of a symbolic check
LONGEST_NUMBER = 300  # characters; longer runs of digits are noise, and Python refuses to read some

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_NUMBER = re.compile(
    r"(?<![\w.)\]}])(?P<sign>[-+]?)(?:(?P<whole>\d+) (?=\d+/\d))?"
    rf"(?P<top>{_DIGITS}|\.\d+)(?:\s?/\s?(?P<bottom>{_DIGITS}))?"
)
# Words, as against variables and what joins them: two letters or more.
_WORD = re.compile(r"\b(?!(?:and|or|pi|sqrt)\b)[^\W\d_]{2,}", re.IGNORECASE)
_PART_OF_THE_VALUE = re.compile(r"\b(?:am|pm|dozen|hundred|thousand|million|billion)\b", re.IGNORECASE)
_UNIT = re.compile(
    r"(?<=\d)\s*(?:\^\s*\{?\s*\\circ\s*\}?|°|\\(?:text|mbox|mathrm)\s*\{[^{}\d]*\}(?:\^\{?\d\}?)?"
    r"|(?:km|cm|mm|kg|mg|ml|lbs?|ft|mph|hrs?|st|nd|rd|th)\b)$"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d))")
_WRAPPED = re.compile(
    r"\\(?:text|textbf|mbox|mathrm|mathbf)\s*\{([^{}]*)\}|\$+([^$]*)\$+|\\\((.*?)\\\)|\\\[(.*?)\\\]",
    re.DOTALL,
)
_FORMULA = re.compile(r"(?<![\\\w])\$(?=\S)([^$]*\S)\$(?!\d)|\\\((.+?)\\\)", re.DOTALL)
_COMPUTED = re.compile(r"^(?:(?:[A-Za-z](?:\([A-Za-z]\))?|[\d\s.,+*/()\u00d7\u00f7-]+)\s*=(?!=)\s*)+")
_PHRASE = re.compile(r"\banswer is\b|\bfinal answer\s*:", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\\)[.?!](?=\s|$)|\n")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NEXT_QUESTION = re.compile(r"\n[ \t]*(?:Question|Problem|Q)[ \t]*:")


def extract(text: str) -> str | None:
    r"""Return the final answer of a text, None if there is none.

    A number is given exactly and in lowest terms, so that equal numbers are equal strings: "$1,000.0" is
    "1000", "0.5", "\frac{1}{2}" and "2/4" are "1/2". It loses its unit, currency and percent sign ("50%"
    is "50"), the words around it ("42 apples") and the calculation before it ("6 * 7 = 42").
    """
    said = _said(text)
    return None if said is None else _number_in(said)


def is_correct(text: str, answer: str) -> bool | None:
    """Return whether a text gives that answer; False if it gives none, None if it cannot be decided.

    Where the answer is a number, numbers are compared exactly; where it is words, words are, without case.
    Everything else, and LaTeX against a number, is checked for mathematical equality by math-verify. None:
    the check failed or took longer than SECONDS. That limit needs the main thread of a POSIX system, where
    it takes SIGALRM for its time; elsewhere there is none. Raises UserError without math-verify.
    """
    right = _without_unit(_normalised(answer))
    wanted = number(right)
    said = extract(text) if wanted is not None else _said(text)
    if said is None or said == right:
        return said is not None
    if wanted is not None and (number(said) is not None or "\\" not in said):
        return False
    if _is_words(said) or _is_words(right):
        return said.casefold() == right.casefold()
    return _equal(right, said)


def number(text: str) -> Fraction | None:
    """Return the value of a text that is one number (1,000, -2.5, 3/4 or 1 1/2), else None."""
    found = _NUMBER.fullmatch(text) if len(text) <= LONGEST_NUMBER else None
    return None if found is None else _value(found)


def boxed(text: str) -> str | None:
    r"""Return what the last \boxed{...} with balanced braces holds, None without one."""
    for start in reversed([found.end() for found in re.finditer(r"\\f?boxed\s*\{", text)]):
        depth = 1
        for brace in _BRACE.finditer(text, start):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return text[start : brace.start()]
    return None


def require_checker(answers: Sequence[str]) -> None:
    """Raise UserError if one of the answers needs math-verify to be checked and it is not installed."""
    for answer in answers:
        right = _without_unit(_normalised(answer))
        if number(right) is None and not _is_words(right):
            _checker()
            return


def majority(texts: Sequence[str]) -> NDArray[Any]:
    """Return (N,) float64 in [0, 1]: the share of the N texts that give the same answer as each text.

    A text without answer scores 0 and still counts in N. Answers are the same where `extract` gives
    equal strings, without case: no algebra. Source: Wang et al. 2023, Self-Consistency, the unweighted sum.
    """
    return weighted_vote(texts, np.ones(len(texts)))


def weighted_vote(texts: Sequence[str], weights: ArrayLike) -> NDArray[Any]:
    """Return (N,) float64 in [0, 1]: the share of all weight on texts with the same answer as each text.

    weights: (N,), at least 0, such as a verifier's probabilities. A text without answer scores 0; with no
    weight at all every score is 0. Source: Li et al. 2023, DiVeRSe, voting verifier. Raises ValueError
    for another number of weights, UserError for one that is negative or not finite.
    """
    given = np.asarray(weights, dtype=float)
    if given.shape != (len(texts),):
        raise ValueError(f"{len(texts)} texts, but weights of shape {given.shape}")
    bad = given[~(np.isfinite(given) & (given >= 0))]
    if len(bad):
        raise UserError(f"a vote cannot have the weight {bad[0]}: give finite weights of at least 0")
    answers = [extract(text) for text in texts]
    votes: dict[str, float] = defaultdict(float)
    for answer, weight in zip(answers, given, strict=True):
        votes[(answer or "").casefold()] += weight
    counted = [0.0 if answer is None else votes[answer.casefold()] for answer in answers]
    return np.array(counted) / (given.sum() or 1.0)


def _said(text: str) -> str | None:
    """Return the answer as the text words it, normalised; a number only where nothing marks an answer."""
    asked = _NEXT_QUESTION.search(text)
    text = text[: asked.start()] if asked else text
    marked = (boxed(text), _after_hashes(text), _after_phrase(text))
    for said in filter(None, marked):
        if found := _normalised(said):
            return found
    return _last_number(text)


def _after_hashes(text: str) -> str | None:
    return text.rpartition("####")[2].strip().split("\n")[0] if "####" in text else None


def _after_phrase(text: str) -> str | None:
    """Return the sentence after the last "answer is", or the only formula in it."""
    found = [*_PHRASE.finditer(text)]
    if not found:
        return None
    phrase = _SENTENCE_END.split(text[found[-1].end() :].lstrip(" \t\r\n:*"), maxsplit=1)[0]
    formulas = [*_FORMULA.finditer(phrase)]
    return formulas[0][0] if len(formulas) == 1 else phrase


def _last_number(text: str) -> str | None:
    readable = _FRACTION.sub(lambda found: f" {_over(found)}", re.sub(r"\\?[$€£]", "", _ascii_signs(text)))
    values = [value for found in _NUMBER.finditer(readable) if (value := _value(found)) is not None]
    return str(values[-1]) if values else None


def _number_in(said: str) -> str:
    """Return the number in an answer that puts it in words: the one it begins with, else its last."""
    if number(said) is not None or not _is_words(said) or _PART_OF_THE_VALUE.search(said):
        return said
    led = _NUMBER.match(said)
    value = _value(led) if led else None
    return str(value) if value is not None else _last_number(said) or said


def _without_unit(answer: str) -> str:
    """Return a given answer such as "42 apples" as its number; one with other words or digits as it is."""
    led = _NUMBER.match(answer)
    alone = led and _is_words(answer) and not re.search(r"[\d=<>^]", answer[led.end() :])
    return _number_in(answer) if alone else answer


def _normalised(said: str) -> str:
    """Return an answer without what does not change it: marks, LaTeX spacing, currency; numbers exactly."""
    said = _ascii_signs(said).strip().strip("*").rstrip(".,;:").strip()
    if inner := _WRAPPED.fullmatch(said):
        return _normalised(next(filter(None, inner.groups()), ""))
    said = re.sub(r"\\[!,;]\s*|\\(?:left|right)(?![A-Za-z])|\\?[$%]|[€£]", "", said.replace("{,}", ","))
    said = _UNIT.sub("", _COMPUTED.sub("", " ".join(said.split())))
    said = re.sub(r"^\(([A-Z])\)(?:\s.*)?$", r"\1", said)  # a letter to choose, and reasons for it
    if fraction := re.fullmatch(rf"([-+]?)(\d+)?\s*{_FRACTION.pattern}", said):
        sign, whole, *_ = fraction.groups(default="")
        said = f"{sign}{whole} {_over(fraction, first=3)}" if whole else f"{sign}{_over(fraction, first=3)}"
    value = number(said)
    return said if value is None else str(value)


def _ascii_signs(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")


def _over(fraction: re.Match[str], first: int = 1) -> str:
    """Return a LaTeX fraction as a/b, from the four groups of _FRACTION."""
    braced, bare = fraction.group(first, first + 1), fraction.group(first + 2, first + 3)
    return "{}/{}".format(*(braced if braced[0] else bare))


def _value(found: re.Match[str]) -> Fraction | None:
    """Return the value of a match of _NUMBER; None for a division by 0, and for endless digits."""
    sign, whole, top, bottom = (part and part.replace(",", "") for part in found.groups())
    if len(found[0]) > LONGEST_NUMBER or (bottom and not Fraction(bottom)):
        return None
    value = Fraction(whole or 0) + Fraction(top) / Fraction(bottom or 1)
    return -value if sign == "-" else value


def _is_words(said: str) -> bool:
    return "\\" not in said and bool(_WORD.search(said))


def _equal(right: str, said: str) -> bool | None:
    """Return whether two expressions are mathematically equal; None if that cannot be decided."""
    parse, verify, timed_out = _checker()
    # Time is limited by a signal, which only the main thread may set.
    limited = os.name == "posix" and threading.current_thread() is threading.main_thread()
    seconds = SECONDS if limited else None
    gold, given = (parse(rf"\boxed{{{each}}}", parsing_timeout=seconds) for each in (right, said))
    if all(isinstance(each, str) for each in gold):  # it could not read the answer to compare with
        return None
    try:
        return bool(verify(gold, given, timeout_seconds=seconds, raise_on_error=True))
    except (Exception, timed_out):  # whatever sympy makes of a model's formula, it is no verdict
        return None


@cache
def _checker() -> tuple[Callable[..., Any], Callable[..., bool], type[BaseException]]:
    """Return math-verify's parse and verify, and what verify raises when its time is up."""
    try:
        from math_verify import parse, verify
        from math_verify.errors import TimeoutException
    except ImportError:
        raise UserError(
            "answers that are no plain numbers or words need math-verify: pip install 'tiller-lm[tasks]'"
        ) from None
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of missing limits and spent time
    return parse, verify, TimeoutException
