"""Clean texts before a reward learns from them: what tokenised corpora and social media leave behind.

A generator writes ordinary prose. A head trained on "it 's n't good ." or "RT @name :" learns from
states that the generator is never in; on SST-2, undoing the tokens' spacing raised the AUC from .86 to .94.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from decoder.contracts import UserError

Cleaner = Callable[[str], str]

_SOCIAL = re.compile(r"https?://\S+|www\.\S+|\bRT\b|@\w+:?|&[#\w]+;")
_LEADING = re.compile(r"^[^\w#$]+")
_LONE_I = re.compile(r"(?<![\w.'-])i(?=$|[ ',!?;:]|\.(?!\w))")  # not the one of "i.e."
_BRACKETS = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}
_BRACKET = re.compile("|".join(_BRACKETS), re.IGNORECASE)


def make_cleaner(*, detokenize: bool, social: bool) -> Cleaner:
    """Return the function that cleans one text. Raises UserError if it needs nltk and that is missing."""
    steps: list[Cleaner] = [clean_social] if social else []
    if detokenize:
        steps.append(_detokenizer())

    def clean(text: str) -> str:
        for step in steps:
            text = step(text)
        return text.strip()

    return clean


def clean_social(text: str) -> str:
    """Return a post without retweet marks, names, links, HTML entities and leading punctuation."""
    plain = _SOCIAL.sub(" ", html.unescape(text))
    return _LEADING.sub("", " ".join(plain.split()))


def _detokenizer() -> Cleaner:
    try:
        from nltk.tokenize.treebank import TreebankWordDetokenizer
    except ImportError:
        raise UserError("--detokenize needs nltk: pip install 'tiller-lm[train]'") from None
    join = TreebankWordDetokenizer().detokenize

    def detokenize(text: str) -> str:
        """Return the text as prose: spacing, capital I, a capital in front and a stop at the end."""
        words = _BRACKET.sub(lambda found: _BRACKETS[found.group().lower()], text).split()
        prose = _LONE_I.sub("I", str(join(words)))
        if not prose:
            return prose
        stop = "" if prose[-1] in ".!?\u2026\"')" else "."
        return prose[0].upper() + prose[1:] + stop

    return detokenize


def normalise(text: str) -> str:
    """Return what two texts share when they count as one: case and spacing do not matter."""
    return " ".join(text.casefold().split())
