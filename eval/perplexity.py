"""Perplexity of the samples given their prompts, under a named language model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from decoder.contracts import UserError
from decoder.lm import CausalLM
from decoder.models import LoadedModel
from decoder.replay import batches_by_length, left_pad
from decoder.tokenise import encode
from eval.generations import PromptSamples
from eval.metric import Measure, Record, column, mean_measure
from prompts.reading import Prompt

MAX_LOGITS = 2**26  # numbers in one pass's logits, 256 MB in float32: what a large vocabulary fills first
MAX_MEAN = 700.0  # nats a token; exp of more leaves float64


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Conditional perplexity of each continuation given its prompt.

    Prompt and full text are encoded each on its own, as `decoder.tokenise.encode` does for a prompt:
    with the BOS where the tokenizer adds one, and no BOS of ours where it does not. The continuation
    is what follows the longest common prefix of the two id lists, so a token merged over the boundary
    counts as continuation. A first token with nothing before it has no condition and is not counted.

    Text longer than the context is read in windows that move by half a context. A token is counted
    once, in the first window that reaches it, given all that stands before it in that window.

    loaded: the judging model. batch_tokens: most padded positions in a pass; does not change the
        scores beyond rounding. use_token_ids: take the continuation from each sample's own `token_ids`
        (end token included) after the encoded prompt; only for plain prompts and files written with
        this very tokenizer, which no file can prove.
    """

    loaded: LoadedModel
    batch_tokens: int = 4096
    use_token_ids: bool = False
    name: str = "perplexity"

    @property
    def about(self) -> Mapping[str, Any]:
        """Return the judging model, its weights, dtype and context length, and where the tokens come from."""
        lm = self.loaded.lm
        return {
            "model": lm.identity.name,
            "weights": lm.identity.weights,
            "tokenizer": lm.identity.tokenizer_hash,
            "dtype": str(lm.model.dtype).removeprefix("torch."),
            "context_length": lm.context_length(),
            "tokens": "token_ids" if self.use_token_ids else "full text after its common prefix with prompt",
        }

    @property
    def per_sample(self) -> bool:
        """Return True."""
        return True

    def score(self, prompts: Sequence[PromptSamples]) -> list[list[Record]]:
        """Return a sample's {"nll": nats of its continuation, "tokens": n, "perplexity": exp(nll / n)}.

        Both figures are NaN where no token could be counted or the model gave no finite number.
        Raises UserError when `use_token_ids` finds none, or ids that the model does not have.
        """
        texts = [text for prompt in prompts for text in self._read(prompt)]
        records = iter(map(_record, nll_of(self.loaded.lm, texts, self.batch_tokens), texts))
        return [[next(records) for _ in prompt.texts] for prompt in prompts]

    def measures(self, scores: Sequence[Sequence[Record]]) -> list[Measure]:
        """Return "perplexity", exp of all nats over all tokens, and "perplexity_mean".

        The second is the mean over prompts of the mean perplexity of a text, as papers report it. It is
        heavy-tailed, and nothing is dropped here, where some papers leave out texts of 1e5 and more.
        """
        nll, tokens = column(scores, "nll"), column(scores, "tokens")
        units = np.array([_sums(*pair) for pair in zip(nll, tokens, strict=True)])
        scored = sum(int((~np.isnan(values)).sum()) for values in nll)
        total = sum(map(len, nll))
        return [
            Measure("perplexity", units, scored, total, "lower", "exp_ratio"),
            mean_measure("perplexity_mean", column(scores, "perplexity"), "lower"),
        ]

    def _read(self, prompt: PromptSamples) -> Iterator[ConditionedText]:
        before = self._encode(prompt.prompt)
        for index, text in enumerate(prompt.texts):
            if self.use_token_ids:
                after = self._token_ids(prompt, index)
                yield ConditionedText((*before, *after), max(len(before), 1))
            else:
                ids = self._encode(prompt.prompt + text)
                yield ConditionedText(tuple(ids), max(_common_prefix(before, ids), 1))

    def _encode(self, text: str) -> list[int]:
        return encode(self.loaded.tokenizer, Prompt(id="", text=text), chat=False)

    def _token_ids(self, prompt: PromptSamples, index: int) -> list[int]:
        """Return a sample's own ids; UserError where they are missing or the model has no such token."""
        where = f"{prompt.source}: sample {index} of prompt {prompt.id!r}"
        found = prompt.records[index].get("token_ids")
        if not isinstance(found, list | tuple) or not all(type(token) is int for token in found):
            raise UserError(f'{where} has no list of integers "token_ids": score its text instead')
        vocabulary = self.loaded.lm.identity.vocab_size
        wrong = [token for token in found if not 0 <= token < vocabulary]
        if wrong:
            raise UserError(
                f"{where} has token id {wrong[0]}, but {self.loaded.lm.identity.name} has ids 0 to "
                f"{vocabulary - 1}: the file comes from another tokenizer; score its text instead"
            )
        return list(found)


@dataclass(frozen=True, slots=True)
class ConditionedText:
    """Token ids, and the index >= 1 from which they are counted."""

    ids: tuple[int, ...]
    first: int

    @property
    def counted(self) -> int:
        """How many tokens are counted."""
        return max(0, len(self.ids) - self.first)


@dataclass(frozen=True, slots=True)
class Window:
    """A row of one pass: the ids it reads, of which the last `counted` are scored, for text `text`."""

    text: int
    ids: tuple[int, ...]
    counted: int


@torch.inference_mode()
def nll_of(lm: CausalLM, texts: Sequence[ConditionedText], batch_tokens: int = 4096) -> list[float]:
    """Return each text's negative log-likelihood in nats, summed over its counted tokens; 0 for none.

    Float32 log-softmax of the logits as the model's dtype gives them; sums in float64.
    """
    positions = max(2, MAX_LOGITS // lm.identity.vocab_size)
    windows = [
        window
        for index, text in enumerate(texts)
        for window in _windows(index, text, lm.context_length(), positions - 1)
    ]
    sums = [0.0] * len(texts)
    for alike in batches_by_length([len(window.ids) for window in windows], batch_tokens):
        # Rows of one length may count few tokens or many; the logits are as wide as the most counted.
        for rows in batches_by_length([windows[i].counted + 1 for i in alike], positions):
            batch = [windows[alike[row]] for row in rows]
            for window, nll in zip(batch, _pass(lm, batch).tolist(), strict=True):
                sums[window.text] += nll
    return sums


def _windows(index: int, text: ConditionedText, context: int | None, most: int) -> Iterator[Window]:
    """Yield windows that count every token from `first` on once, at most `most` of them each."""
    length = len(text.ids)
    context = context or max(length, 1)
    end = 0
    for begin in range(0, length, max(1, context // 2)):
        start, end = max(end, text.first), min(begin + context, length)
        for piece in range(start, end, most):
            stop = min(piece + most, end)
            yield Window(index, text.ids[begin:stop], stop - piece)
        if end == length:
            return


def _pass(lm: CausalLM, batch: Sequence[Window]) -> Tensor:
    """Return each window's nats, (B,) float64. Only the logits that predict a counted token are made."""
    ids, mask = left_pad([window.ids for window in batch], lm.device)
    kept = max(window.counted for window in batch) + 1
    logits = _logits(lm, ids, mask, kept)  # (B, kept, V); the last one predicts nothing we have
    nats = [
        cross_entropy(row[-1 - window.counted : -1].float(), read[-window.counted :], reduction="none")
        for row, read, window in zip(logits, ids, batch, strict=True)
    ]
    return torch.stack([values.double().sum() for values in nats])


def _logits(lm: CausalLM, ids: Tensor, mask: Tensor, kept: int) -> Tensor:
    """Return the model's own logits at the last `kept` positions of left-padded rows, in its dtype."""
    takes_positions = "position_ids" in inspect.signature(lm.model.forward).parameters
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = lm.model(
        input_ids=ids,
        attention_mask=None if bool(mask.all()) else mask.long(),
        use_cache=False,
        logits_to_keep=kept,
        **({"position_ids": positions} if takes_positions else {}),
    )
    logits: Tensor = output.logits
    return logits


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(left), len(right)))


def _record(nll: float, text: ConditionedText) -> Record:
    mean = nll / text.counted if text.counted else math.nan
    failed = not mean <= MAX_MEAN  # true for NaN as well
    return {
        "nll": math.nan if failed else nll,
        "tokens": text.counted,
        "perplexity": math.nan if failed else math.exp(mean),
    }


def _sums(nll: NDArray[Any], tokens: NDArray[Any]) -> tuple[float, float]:
    """Return one prompt's nats and tokens over its scored samples, NaN if there is none."""
    kept = ~np.isnan(nll)
    return (float(nll[kept].sum()), float(tokens[kept].sum())) if kept.any() else (math.nan, math.nan)
