"""Augmentation in text, as a yardstick for LENS: the generator writes new samples and judges them itself.

What arXiv 2509.26074 calls self-rewarding. New samples of the prompts are drawn and embedded in one pass, the
same model is asked about each, and of two samples of a prompt the one that it prefers has won.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from decoder.batching import plan_batches
from decoder.config import make_config
from decoder.contracts import UserError
from decoder.decoder import Decoder
from decoder.models import LoadedModel
from decoder.replay import batches_by_length, left_pad
from decoder.terminal import progress
from prompts.reading import Prompt
from rewards.embed_decoding import open_sink
from rewards.pairs import make_pairs
from rewards.store import Store, open_store

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BATCH_TOKENS = 8192  # padded, of texts that are judged together
# As the samples of rewards/make_assets.sh, but for the seed: other samples of the same distribution.
SAMPLING = {"max_new_tokens": 24, "top_k": 50, "batch_size": 256, "seed": 1}


@dataclass(frozen=True, slots=True)
class Question:
    """What the judge reads: `text` with {text} in it, and two words it may go on with, spaces included."""

    text: str = "Text: {text}\n\nThe mood of the text, positive or negative, is"
    good: str = " positive"
    bad: str = " negative"

    def __post_init__(self) -> None:
        if "{text}" not in self.text:
            raise UserError(f"the question {self.text!r} does not show the text: put {{text}} in it")


def make_question(text: str | None, answers: str) -> Question:
    """Return the question with two words, "good,bad". Raises UserError for other than two."""
    words = [f" {word.strip()}" for word in answers.split(",")]
    if len(words) != 2 or " " in words:
        raise UserError(f"answers {answers!r} are not two words with a comma between them")
    return Question(text or Question().text, *words)


def samples_needed(n_pairs: int, n_prompts: int) -> int:
    """Return the fewest samples a prompt whose pairs within prompts are at least n_pairs."""
    each = -(-n_pairs // n_prompts)
    return math.ceil((1 + math.sqrt(1 + 8 * each)) / 2)


def draw_texts(decoder: Decoder, prompts: Sequence[Prompt], samples: int, folder: Path) -> Store:
    """Return a store, made in `folder`, of so many new samples a prompt, embedded as they are drawn."""
    config = make_config({**SAMPLING, "num_return_sequences": samples})
    token_ids = decoder.tokenise(prompts, config, chat=False)
    loaded, ends = LoadedModel(decoder.lm, decoder.tokenizer), decoder.backend.endings.ids(config.stop)
    batches = plan_batches([len(ids) for ids in token_ids], samples, config.batch_size)
    with (
        open_sink(folder, loaded, ends, chat=False) as sink,
        progress("new texts", len(prompts) * samples) as advance,
    ):
        for batch in batches:
            draw = partial(decoder.complete, batch, token_ids, [], config)
            for _ in sink.complete(batch, prompts, token_ids, draw):
                advance()
    return open_store(folder)


@torch.inference_mode()
def judge(decoder: Decoder, texts: Sequence[str], question: Question) -> Floats:
    """Return (M,), log P(good word) - log P(bad word) after the question about each text.

    Raises UserError for words that begin with the same token.
    """
    good, bad = (_first_token(decoder, word) for word in (question.good, question.bad))
    if good == bad:
        raise UserError(f"{question.good!r} and {question.bad!r} begin with the same token: take other words")
    rows = [decoder.tokenizer(question.text.replace("{text}", text))["input_ids"] for text in texts]
    found = np.empty(len(rows))
    with progress("judging", len(rows)) as advance:
        for places in batches_by_length([len(row) for row in rows], BATCH_TOKENS):
            ids, mask = left_pad([rows[place] for place in places], decoder.lm.device)
            logits = decoder.lm.start().prefill(ids, mask).logits
            found[places] = (logits[:, good] - logits[:, bad]).double().cpu().numpy()
            advance(len(places))
    return found


def judged_pairs(store: Store, scores: Floats, most: int) -> tuple[Ints, Ints]:
    """Return pairs (n, 2) of rows of one prompt, the preferred one first, and the prompt number (n,) of each.

    n is `most`, or as many as there are; texts that the judge likes the same are in no pair together.
    """
    prompts = store.groups()[0]
    sizes = np.bincount(prompts)
    pairs = make_pairs("within", scores, prompts, int((sizes * (sizes - 1) // 2).sum()), _rng())
    told = pairs.differences(scores)
    rows = np.where((told > 0)[:, None], *(np.stack(s, 1) for s in (
        (pairs.first, pairs.second), (pairs.second, pairs.first))))  # fmt: skip
    kept = np.flatnonzero(told != 0)[:most]
    return rows[kept], prompts[pairs.first[kept]]


def _rng() -> np.random.Generator:
    return np.random.default_rng(32)


def _first_token(decoder: Decoder, word: str) -> int:
    ids = decoder.tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError(f"the word {word!r} gives no token: write one, with the space before it")
    return int(ids[0])
