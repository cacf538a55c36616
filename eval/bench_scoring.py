"""What scoring samples costs: while they are generated, in a replay, and by a text reward model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoder.contracts import Drawn, Probe, Reading, UserError
from decoder.decoder import Decoder
from decoder.endings import to_text
from decoder.hf_backend import HFBackend
from decoder.job import Job
from decoder.lm import CausalLM
from decoder.replay import score_samples
from decoder.sampling import SamplingConfig
from decoder.terminal import progress
from eval.bench_decode import Timing, alternate, measured
from eval.report import Target
from eval.stats import bootstrap
from prompts import builtin
from rewards.elhsr import Elhsr, ElhsrConfig, ElhsrHead
from rewards.scorers import load_probe
from rewards.text_reward import TextReward, longest

ALL_LAYERS = "all-layers"
KEPT_SPEED = 0.98  # of generation without a probe
NOISE = 0.01  # standard deviation of a made-up probe's weights


@dataclass(frozen=True, slots=True)
class LastTokens:
    """A `Probe` that has the generator read every sample's last token and does nothing with the taps.

    Beside a real probe it tells that forward's cost from the fold's.
    """

    layers: tuple[int, ...]
    digest: str = "last-tokens"
    reads_logits: bool = False

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, reading: Reading) -> LastTokensSession:
        """Open a session that keeps a 0 a row."""
        return LastTokensSession(torch.zeros(len(prompt_ids), device=prompt_ids.device))


class LastTokensSession:
    """The zeros of the rows."""

    def __init__(self, scores: Tensor) -> None:
        self._scores = scores

    def update(self, drawn: Drawn) -> None:
        """Fold nothing."""

    def score(self) -> Tensor:
        """Return (B,) zeros."""
        return self._scores

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self._scores = self._scores[rows]


def bench_scoring(
    decoder: Decoder, probe: str, batch_size: int, max_new_tokens: int, rounds: int
) -> tuple[list[dict[str, Any]], dict[str, Target], dict[str, Any]]:
    """Return table rows, checks and settings.

    `batch_size` samples of one prompt, none ending early. Generation with and without a probe takes turns at
    every token, and all methods inside each round. Ratios to plain generation are taken within a round;
    their median has a bootstrap interval over rounds.
    """
    prompt = builtin("neutral")[0]
    ids = decoder.tokenizer(prompt.text).input_ids
    _check_length(decoder.lm, len(ids) + max_new_tokens)
    streaming = make_probe(probe, decoder.lm)
    rows = [(0, sample) for sample in range(batch_size)]
    plain = Job([ids], rows, [0], [], SamplingConfig(), max_new_tokens, seed=0)
    reading = replace(plain, probes={"last": LastTokens(streaming.layers)})
    samples = draw(decoder, plain)
    texts = [to_text(decoder.tokenizer, sample) for sample in samples]
    classifier = text_model(decoder)
    jobs = {
        "plain": plain,
        "reading last tokens": reading,
        "streaming": replace(plain, probes={"probe": streaming}),
    }
    found = []
    with progress("scoring", rounds + 1) as advance:
        for number in range(rounds + 1):
            drawn = alternate(decoder, jobs, number)
            replayed = _replay(decoder, streaming, ids, samples)
            read = _read(decoder, classifier, prompt.text or "", texts)
            found.append(drawn | {"replay": replayed, "text model": read})
            advance()
    times = {name: [timings[name] for timings in found[1:]] for name in found[0]}  # the first warms up
    settings = {
        "model": decoder.lm.identity.name, "dtype": str(decoder.lm.model.dtype),
        "device": str(decoder.lm.device),
        "probe": probe, "layers": len(streaming.layers), "batch_size": batch_size,
        "max_new_tokens": max_new_tokens, "rounds": rounds, "threads": torch.get_num_threads(),
        "text model": "the generator's backbone with a fresh scalar head, made in memory: for timing only",
    }  # fmt: skip
    return _rows(times, batch_size), _checks(times, batch_size), settings | _split(times)


def make_probe(name: str, lm: CausalLM) -> Probe:
    """Return a saved probe or, for "all-layers", one of small random weights over every tap."""
    if name != ALL_LAYERS:
        return load_probe(name, lm)
    layers = tuple(range(lm.identity.num_layers + 1))
    head = ElhsrHead(ElhsrConfig(layers, lm.identity.hidden_size))
    with torch.no_grad():
        head.weight.normal_(std=NOISE, generator=torch.Generator().manual_seed(0))
    return Elhsr.bind(head, lm, digest="random")


def text_model(decoder: Decoder) -> TextReward:
    """Return a text reward model of the generator's size: its own backbone under a scalar head.

    The head is random and the backbone shared, so that it fits for timing and for nothing else. Raises
    UserError for an architecture that has no sequence classifier.
    """
    from transformers import AutoModelForSequenceClassification

    lm, tokenizer = decoder.lm, decoder.tokenizer
    config = copy.deepcopy(lm.model.config)
    config.num_labels = 1
    config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    try:
        classifier: Any = AutoModelForSequenceClassification.from_config(config, dtype=lm.model.dtype)
    except ValueError:
        raise UserError(
            f"{lm.identity.architecture} has no sequence classifier in transformers to time as a text reward "
            "model: choose another --model"
        ) from None
    setattr(classifier, classifier.base_model_prefix, lm.model.base_model)
    model = classifier.eval().to(lm.device)
    return TextReward(model, tokenizer, "generator", 0, longest(model, tokenizer))


def draw(decoder: Decoder, job: Job) -> list[list[int]]:
    """Return the token ids of the job's rows, no token ending one early."""
    backend = HFBackend(decoder.lm, decoder.tokenizer)
    backend.endings.stop_ids = backend.endings.stop_ids[:0]
    columns = [step.token_ids for step in backend.steps(job)]
    found: list[list[int]] = torch.stack(columns, 1).tolist()
    return found


def _check_length(lm: CausalLM, tokens: int) -> None:
    limit = lm.context_length()
    if limit is not None and tokens > limit:
        raise UserError(
            f"prompt and max_new_tokens come to {tokens} tokens, and the model reads {limit}: lower "
            "--max-new-tokens"
        )


def _replay(
    decoder: Decoder, probe: Probe, prompt: Sequence[int], samples: Sequence[Sequence[int]]
) -> Timing:
    """Time a second reading of the finished samples, all at once."""
    positions = sum(map(len, samples))
    with measured(decoder) as record:
        for _ in score_samples(decoder.lm, [probe], [prompt], [samples], max_tokens=positions):
            record.token()
    return record.timing()


def _read(decoder: Decoder, model: TextReward, prompt: str, texts: Sequence[str]) -> Timing:
    """Time the text model on prompt and completions, tokenising included, all at once."""
    positions = len(texts) * model.max_tokens
    with measured(decoder) as record:  # the two share a backbone, whose rows are counted
        model.score([prompt] * len(texts), texts, max_tokens=positions)
        record.token()
    return record.timing()


def _seconds(found: Sequence[Timing]) -> np.ndarray:
    return np.array([timing.total for timing in found])


def _rows(times: dict[str, list[Timing]], samples: int) -> list[dict[str, Any]]:
    """Return a row a method; a replay and a text model come on top of plain generation."""
    plain, rows = _seconds(times["plain"]), []
    for name, found in times.items():
        seconds = bootstrap(_seconds(found), np.median)
        share = bootstrap(_seconds(found) / plain, np.median)
        rows.append(
            {
                "method": name, "seconds": seconds.value, "seconds_interval": seconds.interval,
                "ms_per_sample": 1e3 * seconds.value / samples,
                "over_plain": share.value, "over_plain_interval": share.interval,
                "forwards_per_sample": found[0].rows / samples,
            }
        )  # fmt: skip
    return rows


def _checks(times: dict[str, list[Timing]], samples: int) -> dict[str, Target]:
    kept = bootstrap(_seconds(times["plain"]) / _seconds(times["streaming"]), np.median)
    return {f"plain/streaming time, batch {samples}": Target(kept, KEPT_SPEED)}


def _split(times: dict[str, list[Timing]]) -> dict[str, Any]:
    """Return what streaming adds, as shares of plain generation: the last tokens' forward, and the fold."""
    plain = _seconds(times["plain"])
    reading, streaming = _seconds(times["reading last tokens"]), _seconds(times["streaming"])
    shares = {"last tokens' forward": (reading - plain) / plain, "fold": (streaming - reading) / plain}
    found = {name: bootstrap(each, np.median) for name, each in shares.items()}
    return {
        f"streaming adds: {name}": {"share": each.value, "interval": each.interval}
        for name, each in found.items()
    }
